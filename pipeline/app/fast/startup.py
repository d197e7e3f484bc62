"""Imports of large libraries, without what they don't need."""

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from app.fast.compiler import COMPILER, stand_in
from app.fast.ranks import rank_count


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import large libraries inside: no cyclic collection, no `datasets`, no compiler before it is called.

    Importing torch and transformers creates millions of objects that live to the end of the process; each full
    collection would walk all of them, during the imports, later, and once more at exit. The rows are plain lists, so
    the `datasets` package (a second to import) is hidden; where it is not installed, the folder `datasets/` beside
    `scripts/` would pass for it.
    """
    sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]
    let_segments_grow()
    gc.disable()
    try:
        with _models_read_once(), _compiler_at_first_call():
            yield
    finally:
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
def _models_read_once() -> Iterator[None]:
    """Let transformers read the sources of its thousand model folders once: its cache of them holds 128 folders.

    It looks for `__all__` in each file, twice, at half a second a time; line by line, where one search does.
    """
    original = functools.lru_cache

    def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:  # noqa: ANN401 - as functools'
        if getattr(maxsize, "__name__", "") != "create_import_structure_from_path":
            return original(maxsize, typed)
        there = maxsize.__globals__
        by_line = there.get("fetch__all__")
        if by_line is not None:
            there["fetch__all__"] = lambda text: by_line(text[text.rfind("\n__all__") + 1 :])
        return functools.cache(maxsize)

    with patch.object(functools, "lru_cache", lru_cache):
        yield


@contextmanager
def _compiler_at_first_call() -> Iterator[None]:
    """Let `torch.compile` load the compiler where what it returns is called, and have all others wait for that.

    bitsandbytes decorates fallbacks with it that neither a GPU nor the CPU runs. transformers' support of sharded
    tensors loads half of the compiler, too: one process alone has none.
    """
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

    if "transformers" not in sys.modules and COMPILER not in sys.modules:
        stand_in(torch)
        if rank_count() == 1:
            torch.distributed.is_available = lambda: False
    with patch.object(torch, "compile", compile_later):
        yield
