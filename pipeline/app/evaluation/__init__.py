"""Multiple-choice evaluation: asking, parsing, counting, reporting."""
