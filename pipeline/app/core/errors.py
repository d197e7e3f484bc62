"""Failures that the user can mend, and how a script ends on them."""

import sys
from collections.abc import Callable

from app.fast.ranks import only_first_prints, rank, rank_count


class PipelineError(Exception):
    """An input is missing or broken; the message names the file, the key and the remedy in one line."""


def exit_code_of(main: Callable[[], int]) -> int:
    """Run `main` and give its exit code; a `PipelineError` becomes one `Error: …` line on stderr and exit code 1.

    Every other exception passes, so that its traceback is seen whole. Of several ranks only the first prints to stdout.
    """
    try:
        with only_first_prints():
            return main()
    except PipelineError as error:
        sys.stdout.flush()
        print(f"Error: {error}" + (f" (rank {rank()})" if rank_count() > 1 else ""), file=sys.stderr)
        return 1
