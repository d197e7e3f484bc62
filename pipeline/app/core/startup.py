"""Imports of large libraries, without what they don't need."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import large libraries inside: no cyclic collection, and no `datasets`.

    Importing torch and transformers creates millions of objects that live to the end of the process; each full
    collection would walk all of them, during the imports, later, and once more at exit. The rows are plain lists, so
    the `datasets` package (a second to import) is hidden; where it is not installed, the folder `datasets/` beside
    `scripts/` would pass for it.
    """
    sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
