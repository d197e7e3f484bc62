"""Code that is no library's and stands inside a model: forwards that were replaced, hooks on modules and gradients."""

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from . import facts, models

# libraries that are often run from a clone; all others are known by the folder that they are installed in
_LIBRARIES = (
    *("torch", "transformers", "transformers_modules", "peft", "accelerate", "trl", "bitsandbytes", "deepspeed"),
    *("unsloth", "unsloth_zoo", "liger_kernel", "llamafactory", "axolotl", "kernels", "flash_attn", "xformers"),
    *("optimum", "auto_gptq", "gptqmodel", "awq", "hqq", "fla", "cut_cross_entropy", "swift", "lm_eval", "ms_swift"),
)
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages", "unsloth_compiled_cache"))
_STANDARD = os.path.dirname(os.__file__) + os.sep
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@facts.guarded("own code")
def described(model: Any) -> dict[str, dict[str, int]]:
    """How many modules have what of the program's own, by their class."""
    with models.as_tensors():
        return _described(models.base_of(model))


def _described(model: Any) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {"forwards": {}, "hooks": {}, "gradient_hooks": {}}
    usual: dict[type, bool] = {}  # of classes: whether their forward is a replaced one
    for _, module in models.modules_of(model):
        own, cls = module.__dict__, type(module)
        if "forward" in own:
            is_replaced = _is_replaced(module)
        else:
            is_replaced = usual[cls] if cls in usual else usual.setdefault(cls, _is_replaced(module))
        if is_replaced:
            _add(found["forwards"], cls.__name__)
        if any(is_own(hook) for hooks in filter(None, map(own.get, _HOOKS)) for hook in hooks.values()):
            _add(found["hooks"], cls.__name__)
        for parameter in own.get("_parameters", {}).values():
            if parameter is not None and any(map(is_own, _gradient_hooks(parameter))):
                _add(found["gradient_hooks"], cls.__name__)
    return found


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _gradient_hooks(parameter: Any) -> Iterator[Any]:
    for kind in _GRADIENT_HOOKS:
        yield from (getattr(parameter, kind, None) or {}).values()


def _is_replaced(module: Any) -> bool:
    """Whether its forward is the program's own and its class is not."""
    cls = type(module)
    forward = module.__dict__.get("forward")
    own = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if forward is None:
        code = getattr(getattr(cls, "forward", None), "__code__", None)
        if code is None or own is None or code.co_filename == own:
            return False
        forward = cls.forward
    return is_own(forward) and not (own is not None and _is_own_file(own, cls.__module__))


def is_own_class(cls: type) -> bool:
    """Whether a class is the program's own."""
    path = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return path is None or _is_own_file(path, cls.__module__)


def is_own(function: Any) -> bool:
    """Whether a function is the program's own, or one that no library would hook in."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if isinstance(function, types.BuiltinFunctionType):
        return True  # torch.zeros_like for a gradient: no library hooks one in as it is
    if not hasattr(function, "__code__"):
        function = vars(type(function)).get("__call__")
    code = getattr(function, "__code__", None)
    return code is not None and _is_own_file(code.co_filename, getattr(function, "__module__", None))


def _is_own_file(path: str, module: str | None) -> bool:
    if (module or "").partition(".")[0] in _LIBRARIES or path.startswith("<"):
        return False
    return not path.startswith(_STANDARD) and not any(part in path for part in _INSTALLED)
