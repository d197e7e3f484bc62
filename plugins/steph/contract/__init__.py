"""Every outside format, each read in one place into the suite's own values."""
