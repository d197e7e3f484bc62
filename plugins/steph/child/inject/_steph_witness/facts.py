"""Writing facts as they happen, and running hooks so that a failing one costs nothing but itself."""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MESSAGE_LIMIT = 200


class _Output:
    """Where this process's facts go; a forked child begins its own file."""

    folder: str | None = None
    is_open = False
    file: TextIO | None = None
    pid = 0


class _Compiler:
    """Torch's switch for compiling frames as they are called: off inside hooks; None where there is no torch."""

    switch: Callable[[Any], Any] | None = None


class _Spent:
    """Seconds inside hooks, all threads together; a hook inside a hook counts once."""

    seconds = 0.0


_off: set[str] = set()
_inside = threading.local()
_forgetters: list[Callable[[], None]] = []
_closers: list[Callable[[], dict[str, Any]]] = []


def open_in(folder: str) -> None:
    """Facts go to this folder from now on; said again it changes nothing."""
    if _Output.folder is not None or _Output.is_open:
        return
    _Output.folder, _Output.is_open = folder, True
    os.register_at_fork(after_in_child=_begin_anew)
    atexit.register(_end)


def write(fact: str, **values: Any) -> None:
    """One fact, one line; a folder that is gone or full must not be noticed by the process."""
    if _Output.folder is None:
        return
    values = {"fact": fact, "at": round(values.pop("at", time.time()), 6), **values}
    try:
        line = json.dumps(values, default=str, allow_nan=False)
    except (ValueError, TypeError):
        line = json.dumps(_plain(values), default=str)
    try:
        file = _Output.file
        if file is None:
            rank = os.environ.get("RANK", "")
            name = f"witness-{rank if rank.isdigit() else 'none'}-{os.getpid()}.jsonl"
            # kept open: a line at a time is what survives a SIGKILL
            file = _Output.file = open(os.path.join(_Output.folder, name), "a", encoding="utf-8", errors="replace")  # noqa: SIM115
        file.write(line + "\n")
        file.flush()
    except (OSError, ValueError):
        _Output.folder = None


def _plain(value: Any) -> Any:
    """Numbers that JSON has no form for, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def guarded(where: str) -> Callable[[_Function], _Function]:
    """Decorate a hook: it never raises, its time is counted, and after a failure it is not called again."""

    def decorate(function: _Function) -> _Function:
        def run(*arguments: Any, **named: Any) -> Any:
            if where in _off:
                return None
            outermost = not getattr(_inside, "hook", False)
            compiling = _Compiler.switch(None) if _Compiler.switch else None
            began = time.perf_counter()
            if outermost:
                _inside.hook, _inside.began = True, began
            try:
                return function(*arguments, **named)
            except Exception as error:
                blind(where, error)
            finally:
                if _Compiler.switch:
                    _Compiler.switch(compiling)
                if outermost:
                    _inside.hook, _inside.kept = False, {}
                    _Spent.seconds += time.perf_counter() - began
            return None

        return run  # type: ignore[return-value]

    return decorate


def never_compile(*functions: Callable[..., Any]) -> None:
    """Have torch not compile these, nor what they call through a guard; called when torch is there."""
    frames: Any = getattr(getattr(sys.modules.get("torch._C"), "_dynamo", None), "eval_frame", None)
    if frames is None:
        return
    _Compiler.switch = frames.set_eval_frame
    for function in (guarded("compiler")(never_compile), *functions):
        if hasattr(frames, "skip_code"):
            frames.skip_code(function.__code__)
        else:  # torch 2.7 and later
            skip = frames._FrameAction.SKIP
            frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))


def blind(where: str, error: BaseException) -> None:
    """Say that from here on nothing is seen there."""
    _off.add(where)
    write("blind", where=where, error=f"{type(error).__name__}: {error}"[:_MESSAGE_LIMIT])


def are_off(*where: str) -> bool:
    """Whether one of these hooks failed, so that what it counted is too little."""
    return not _off.isdisjoint(where)


def hook_seconds() -> float:
    """Seconds that all hooks of this process took, the one that asks included."""
    running = time.perf_counter() - _inside.began if getattr(_inside, "hook", False) else 0.0
    return round(_Spent.seconds + running, 6)


def kept() -> dict[int, Any] | None:
    """A store until this thread's outermost hook returns, in which no code of the program's runs; None outside."""
    if not getattr(_inside, "hook", False):
        return None
    found: dict[int, Any] | None = getattr(_inside, "kept", None)
    if found is None:
        found = _inside.kept = {}
    return found


def forgets(function: Callable[[], None]) -> Callable[[], None]:
    """Decorate what a forked child calls first: what its parent saw is the parent's."""
    _forgetters.append(function)
    return function


def at_end(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Decorate what is called at the process's end; what it returns goes into the last fact."""
    _closers.append(function)
    return function


def _begin_anew() -> None:
    _Output.file = None  # the parent's descriptor; nothing is left unwritten in it
    _Spent.seconds = 0.0
    for forget in _forgetters:
        forget()


def _end() -> None:
    if _Output.file is None:
        return
    values: dict[str, Any] = {}
    for close in _closers:
        values.update(guarded(f"end of {close.__module__.rpartition('.')[2]}")(close)() or {})
    write("ended", hook_seconds=hook_seconds(), **values)


def uncaught() -> str | None:
    """The type of the exception that ends this process, as far as the interpreter knows it."""
    kind = getattr(sys, "last_type", None)
    return None if kind is None else kind.__qualname__
