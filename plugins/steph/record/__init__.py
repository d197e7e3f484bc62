"""The record of one acceptance or rehearsal: its values, its events, the fold of one to the other, its schema."""
