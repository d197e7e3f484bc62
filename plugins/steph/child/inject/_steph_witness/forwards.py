"""Calls of a model from outside: its first training batches, and what it scored."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

from . import facts, splice

_MOST_FRAMES = 48
_own_code: set[types.CodeType] = set()
_asked = threading.local()  # the frame of the call whose loss is wanted


def hook_class(cls: Any) -> None:
    """See the calls of this class's models.

    `__call__` becomes a copy of torch's own, with a call of ours in it; the other modules keep theirs, and a copy
    leaves no other traceback than the original. While something compiles the model there is no such call.
    """
    torch: Any = sys.modules["torch"]
    call = torch.nn.Module.__call__
    copy = splice.copy_between(call, _called, _returned, unless=torch.compiler.is_compiling)
    _own_code.add(copy.__code__)
    cls.__call__ = copy


def hook_compiled(module: Any) -> None:
    """A compiled model is called through its wrapper."""
    hook_class(module.OptimizedModule)


def _called(given: dict[str, Any]) -> None:
    from . import generation, training

    model = given["self"]
    if generation.in_progress() or not _is_outermost():
        return
    torch: Any = sys.modules["torch"]
    arguments = {**dict(zip(("input_ids", "attention_mask"), given["args"])), **given["kwargs"]}
    if torch.is_grad_enabled() and (model.training or _trains(model, arguments)):
        _asked.frame = id(sys._getframe(2)) if training.received(model, arguments) else None
    else:
        training.without_gradient(model, arguments)
        generation.scored(model, arguments)


def _returned(result: Any) -> Any:
    """The model's own loss, or its logits, of a call that is asked for them; the result is passed on."""
    if getattr(_asked, "frame", None) is not None and _asked.frame == id(sys._getframe(1)):
        _asked.frame = None
        _hand_over(result)
    return result


@facts.guarded("model's loss")
def _hand_over(result: Any) -> None:
    from . import training

    first = result[0] if isinstance(result, tuple) and result else None
    training.model_gave(getattr(result, "loss", first))
    training.model_predicted(getattr(result, "logits", first))


def _trains(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether a model in evaluation mode is trained all the same, as where someone wants no dropout."""
    from . import training

    is_for_training = training.in_progress(of_trainer=True) or arguments.get("labels") is not None
    return is_for_training and training.has_optimizer() and any(one.requires_grad for one in model.parameters())


def _is_outermost() -> bool:
    """Whether no other call of a model stands above this one; such calls stand close above each other."""
    frame = sys._getframe(3).f_back  # past this, `_called`, its guard and the call itself
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return True
        if frame.f_code in _own_code:
            return False
        frame = frame.f_back
    return True
