"""What it means: logs to causes, artifacts to checks, results to verdicts. Reads files, changes nothing."""
