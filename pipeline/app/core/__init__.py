"""What every part shares: errors, prompts, settings and files; standard library only."""
