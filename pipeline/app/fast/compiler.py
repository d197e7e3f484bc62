"""A stand-in for torch's compiler, which takes a second to import and which nothing here uses.

torch imports `torch._dynamo` at the first step of an optimizer and at the first call of many a function, only to have
it leave them alone; accelerate asks it whether a model was compiled. The stand-in answers these few, and makes way for
the real one when it is asked for anything else.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"
# all that transformers' masks take out of it; it needs nothing else of it
_ALONE = f"{COMPILER}._trace_wrapped_higher_order_op"


def stand_in(torch: ModuleType) -> None:
    """Put the stand-in where imports find it; before the compiler is loaded."""
    place = Path(torch.__path__[0], *_ALONE.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(_ALONE, place)
    if not place.is_file() or spec is None or spec.loader is None:
        return
    sys.modules[COMPILER] = _StandIn(COMPILER)
    sys.meta_path.append(_RealModules())
    sys.modules[_ALONE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[_ALONE])


def _leave(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:  # noqa: ANN401 - a decorator
    return _leave if function is None else function


class _StandIn(ModuleType):
    __path__ = []  # noqa: RUF012 - a package, without files of its own
    disable = allow_in_graph = assume_constant_result = staticmethod(_leave)
    graph_break = staticmethod(lambda *_: None)
    eval_frame = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the compiler has
        if name.startswith("__"):  # what inspect and importlib ask of any module
            raise AttributeError(name)
        return getattr(_real(), name)


class _RealModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the compiler's modules while the stand-in has its place: by loading the compiler."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or not isinstance(sys.modules.get(COMPILER), _StandIn):
            return None
        _real()
        importlib.import_module(name)
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It was executed when it was loaded."""


def _real() -> ModuleType:
    if isinstance(sys.modules.get(COMPILER), _StandIn):
        del sys.modules[COMPILER]
    return importlib.import_module(COMPILER)
