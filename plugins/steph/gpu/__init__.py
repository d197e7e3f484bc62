"""The GPUs: what their driver says of them, which ones a program sees, who holds them, and their memory over time."""
