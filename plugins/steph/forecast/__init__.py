"""Memory ahead: what a record measured, what it says of another model or card, and `steph fit`."""
