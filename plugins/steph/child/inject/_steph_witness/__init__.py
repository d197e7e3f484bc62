"""The witness: what a process really did with its model.

`sitecustomize` loads this package by path, under its private name, where STEPH_PROBE_DIR is set; it is never found on a
path. It sets the hooks of a library's module right after that has loaded: those in `training`, `adapters`, `generation`
and `models`. What they see goes to `witness-<rank>-<pid>.jsonl`, one fact a line, flushed as it happens (`facts`).

It changes nothing. No hook stands between a caller and what is called: `splice` puts its calls into a library's
function itself, under the same name and lines, so that tracebacks, warnings and sources are those without it. It
imports no library, starts no thread, draws no random number. A hook that fails says so and is not called again.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # every Python process comes by here: `typing` would take longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

# a library's module, our part that knows it, and the function there which sets the hooks
HOOKS = {
    "torch.optim.optimizer": ("training", "hook_optimizers"),
    "torch.utils.data.dataloader": ("training", "hook_loaders"),
    "torch._dynamo.eval_frame": ("generation", "hook_compiled"),
    "transformers.trainer": ("training", "hook_trainer"),
    "transformers.trainer_callback": ("training", "hook_callbacks"),
    "transformers.modeling_utils": ("models", "hook_models"),
    "transformers.models.auto.auto_factory": ("models", "hook_auto_classes"),
    "transformers.tokenization_utils_base": ("tokens", "hook_tokenizers"),
    "transformers.generation.utils": ("generation", "hook_generation"),
    "transformers.integrations.peft": ("adapters", "hook_transformers"),
    "safetensors.torch": ("adapters", "hook_safetensors"),
    "peft.peft_model": ("adapters", "hook_peft_model"),
    "peft.utils.save_and_load": ("adapters", "hook_state_dicts"),
    "peft.utils.loftq_utils": ("adapters", "hook_loftq"),
    "peft.tuners.tuners_utils": ("adapters", "hook_tuners"),
    "peft.tuners.lora.model": ("adapters", "hook_lora"),
}
# engines whose work can't be seen from Python: that one was there is all there is to tell
ENGINES = ("vllm", "llama_cpp", "sglang", "ctransformers", "openai", "ollama", "mlx_lm", "tensorrt_llm")


class _HookedSpec(ModuleSpec):
    """A spec that notices that its module has loaded: the import system says so by setting `_initializing` to False.

    A loader of ours would stand in the traceback of a module that raises while it loads.
    """

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_steph_initializing", False))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_steph_initializing"] = value
        if not value:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            self.__dict__.pop("_steph_initializing", None)
            self.__dict__["_initializing"] = False
            _set_hooks(self.name)


class _Finder:
    """First on the meta path; finds what the others find."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that has hooks, such that they are set; None for all others."""
        if name not in HOOKS and name not in ENGINES:
            return None
        try:
            import_module(f"{__package__}.facts").open_in(self.folder)
        except Exception:
            HOOKS.clear()
        spec = _found_by_others(self, name, path, target)
        if spec is not None and type(spec) is ModuleSpec:
            spec.__dict__.pop("_initializing", None)
            spec.__class__ = _HookedSpec
        return spec

    def invalidate_caches(self) -> None:
        """There are none."""


def start(folder: str) -> None:
    """Watch this process; facts go to `folder`. Until a library with hooks is imported it costs next to nothing."""
    sys.meta_path.insert(0, _Finder(folder))


def _found_by_others(
    own: object, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        find: Any = getattr(finder, "find_spec", None)
        if finder is not own and find is not None:
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                return spec
    return None


def _set_hooks(name: str) -> None:
    try:
        facts = import_module(f"{__package__}.facts")
        facts.guarded(name)(_hook)(facts, name)
    except Exception:
        return


def _hook(facts: Any, name: str) -> None:
    module = sys.modules.get(name)
    if module is None:  # it raised while it loaded
        return
    if name in HOOKS:
        part, function = HOOKS[name]
        getattr(import_module(f"{__package__}.{part}"), function)(module)
    version = getattr(sys.modules.get(name.partition(".")[0]), "__version__", None)
    facts.write("hooked", module=name, version=None if version is None else str(version))
