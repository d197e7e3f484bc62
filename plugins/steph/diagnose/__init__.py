"""Why a program ended badly: its log becomes a cause, a case with a known fix, and what to do next."""
