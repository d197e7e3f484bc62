"""Runs at the start of each Python process of an attempt: sets the witness up, has it leave a probe, steps aside.

Found through PYTHONPATH; runs in the pipeline's own interpreter (3.9 and later), whatever that has installed. It never
imports torch, starts no thread, writes to no stream, and any failure of its own is silent: the process must behave as
without it. The probe `probe-<rank>-<pid>.json` (see Probe in record/values.py) goes to STEPH_PROBE_DIR, only where
torch was loaded. The witness beside this file (`_steph_witness`) tells what the process did with its model.
"""

from __future__ import annotations

import atexit
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "datasets",
    "trl",
)
_MESSAGE_LIMIT = 2000


def _write_probe(folder: str | None = os.environ.get("STEPH_PROBE_DIR")) -> None:
    torch = sys.modules.get("torch")
    if not folder or torch is None:
        return
    import json

    rank = os.environ.get("RANK", "")
    probe: dict[str, object] = {"pid": os.getpid(), "rank": int(rank) if rank.isdigit() else None}
    for read in (_versions, _peak_rss, _exception, _device):
        try:
            probe.update(read(torch))
        except Exception:  # noqa: S112  what one of them can't tell must not cost the others
            continue
    path = os.path.join(folder, f"probe-{rank if rank.isdigit() else 'none'}-{os.getpid()}.json")
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(probe, file)
    os.replace(path + ".part", path)


def _versions(torch: object) -> dict[str, object]:
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
    return {"packages": {name: str(version) for name, version in found.items() if version is not None}}


def _peak_rss(torch: object) -> dict[str, object]:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    return {"peak_rss_bytes": kib * 1024}


def _exception(torch: object) -> dict[str, object]:
    # the interpreter sets these before it prints an uncaught exception, so no excepthook has to be touched
    kind = getattr(sys, "last_type", None)
    if kind is None:
        return {}
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {"exception_type": name, "exception_message": _without_secrets(str(getattr(sys, "last_value", "")))}


def _device(torch: object) -> dict[str, object]:
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return {}
    # the device that worked: with all cards visible, a rank uses only its own
    index = max(range(cuda.device_count()), key=cuda.max_memory_reserved)
    uuid = getattr(cuda.get_device_properties(index), "uuid", None)
    fraction = getattr(cuda, "get_per_process_memory_fraction", None)
    return {
        "device_uuid": None if uuid is None else _prefixed(str(uuid)),
        "peak_allocated_bytes": cuda.max_memory_allocated(index),
        "peak_reserved_bytes": cuda.max_memory_reserved(index),
        "allocator_retries": cuda.memory_stats(index).get("num_alloc_retries"),
        "memory_fraction": None if fraction is None else fraction(index),
    }


def _prefixed(uuid: str) -> str:
    return uuid if uuid.startswith(("GPU-", "MIG-")) else "GPU-" + uuid


def _without_secrets(text: str) -> str | None:
    """The message cut and redacted by the suite's own rules; None where those can't be loaded here."""
    import importlib.util

    place = os.path.join(os.path.dirname(os.path.dirname(_HERE)), "base", "text.py")
    spec = importlib.util.spec_from_file_location("_steph_redact", place)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        redactor = module.StreamRedactor()
        data: bytes = redactor.feed(text.encode("utf-8", "replace")) + redactor.flush()
    except Exception:
        return None
    return data.decode("utf-8", "replace")[:_MESSAGE_LIMIT]


def _at_exit() -> None:
    try:
        _write_probe()
    except Exception:
        return


def _step_aside() -> None:
    """Leave no trace on the path and run the sitecustomize that would have run without this one, as site would."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _start_witness(folder: str | None = os.environ.get("STEPH_PROBE_DIR")) -> None:
    """Load the witness under its own name; it is on no path, so that no name of the process's own is in its way."""
    if not folder:
        return
    place = os.path.join(_HERE, "_steph_witness")
    spec = spec_from_file_location(
        "_steph_witness",
        os.path.join(place, "__init__.py"),
        submodule_search_locations=[place],
    )
    if spec is None or spec.loader is None:
        return
    module = sys.modules["_steph_witness"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        module.start(folder)
    except Exception:
        sys.modules.pop("_steph_witness", None)


atexit.register(_at_exit)
_start_witness()
_step_aside()
