"""What every room may import: values, terms, and the only readers and formatters of their kind."""
