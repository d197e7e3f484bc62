"""Imports of large libraries, without what they don't need."""

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_FOR_OTHER_WORK = ("sklearn", "scipy", "pandas")


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import large libraries inside: no cyclic collection, no packages for other work, no compiler before it is called.

    Importing torch and transformers creates millions of objects that live to the end of the process; each full
    collection would walk all of them, during the imports, later, and once more at exit. The rows are plain lists, so
    the `datasets` package (a second to import) is hidden; where it is not installed, the folder `datasets/` beside
    `scripts/` would pass for it. transformers imports scikit-learn and its kin wherever they are installed (another
    second), for assisted generation and for losses of pictures; afterwards they can be imported again. bitsandbytes
    decorates fallbacks that neither a GPU nor the CPU runs with `torch.compile`, which loads the whole compiler (two
    seconds) on sight.
    """
    hidden = [name for name in ("datasets", *_FOR_OTHER_WORK) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    let_segments_grow()
    gc.disable()
    try:
        with _compilation_at_first_call():
            yield
    finally:
        for name in {*hidden} & {*_FOR_OTHER_WORK}:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


def let_segments_grow() -> None:
    """Ask torch's allocator for segments that grow, which leave few holes, unless the environment says otherwise.

    Before torch is imported. Qwen3-8B on 1 × 2048 reserved a quarter more than it used without them.
    """
    name = next((name for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF") if os.environ.get(name)), None)
    given = os.environ[name] if name else ""
    if "expandable_segments" not in given and "backend" not in given:
        os.environ[name or "PYTORCH_CUDA_ALLOC_CONF"] = ",".join(filter(None, (given, "expandable_segments:True")))


@contextmanager
def _compilation_at_first_call() -> Iterator[None]:
    import torch

    compile_now = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Any:  # noqa: ANN401 - as torch.compile
        if function is None:
            return functools.partial(compile_later, **options)
        compiled = functools.cache(functools.partial(compile_now, function, **options))

        @functools.wraps(function)
        def call(*arguments: object, **named: object) -> object:
            return compiled()(*arguments, **named)

        return call

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now
