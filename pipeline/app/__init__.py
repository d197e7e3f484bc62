"""The reference pipeline: fine-tune a small language model on legal questions, and evaluate it."""
