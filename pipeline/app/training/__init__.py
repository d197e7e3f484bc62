"""LoRA training: rows, batches, memory, the Trainer and its metrics."""
