"""Doing it: the Hub, one child process at a time, the journal. The only room that touches the world."""
