"""What only speed and small memory need; training works the same without it."""
