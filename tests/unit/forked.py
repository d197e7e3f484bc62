"""What a forked process does at its end, but for one thing: taking apart what the process before it has loaded.

Python would free every module one by one, and so copy all of the pages that it shares with the host: it takes longer
than a small training. Loaded by hosts that fork for each job; standard library only.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def end_after(work: Callable[[], object]) -> NoReturn:
    """Do it, then end as a Python process ends: with its status, what it says of an error, and its exit functions."""
    status: object = 0
    try:
        work()
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
