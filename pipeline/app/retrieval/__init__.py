"""Finding passages for a question, and asking a model with them."""
