"""StepH: a pytest-based hardware acceptance suite for QLoRA fine-tuning pipelines."""

__version__ = "0.2.0"
