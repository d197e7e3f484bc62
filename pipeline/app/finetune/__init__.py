"""Fine-tuning rows built from the question set."""
