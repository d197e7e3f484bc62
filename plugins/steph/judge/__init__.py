"""What it means: artifacts to checks, results to verdicts. Reads files, changes nothing."""
