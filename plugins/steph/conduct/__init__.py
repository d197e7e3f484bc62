"""Conducts a run: sessions, stages and attempts, through all rooms above, one way."""
