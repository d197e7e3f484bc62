"""Checks of the adapter that an evaluation is given: the one of the record, loaded whole, left as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steph.base.files import sha256_of
from steph.base.messages import say
from steph.base.text import one_line
from steph.contract.lines import EvalLines, adapter_trouble_in
from steph.contract.training_files import ADAPTER_WEIGHTS_NAME
from steph.judge.artifacts import MAX_HASHED_BYTES
from steph.judge.checks_adapter import base_check
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.values import Check

ADAPTER_UNCHANGED = CheckKind("adapter_unchanged", "H-3", FAIL, core=True)
ADAPTER_LOADED = CheckKind("adapter_loaded", "H-3", FAIL)
ADAPTER_LEFT_ALONE = CheckKind("adapter_left_alone", "H-3", WARN, optional=True)
ADAPTER_IN_USE = (ADAPTER_UNCHANGED, ADAPTER_LOADED, ADAPTER_LEFT_ALONE)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def adapter_use_checks(evidence: EvalEvidence, lines: EvalLines) -> tuple[Check, ...]:
    """All checks of the adapter's files; none for an evaluation without one."""
    if evidence.lora_path is None:
        return ()
    expected, actual = evidence.adapter_sha256_expected, evidence.adapter_sha256_actual
    same = None if expected is None or actual is None else expected == actual
    none = say("training.none")
    trouble = adapter_trouble_in(evidence.output, besides=lines.of_other_blocks)
    return (
        base_check(evidence.root / evidence.lora_path, evidence.model_name),
        ADAPTER_UNCHANGED.check(
            same,
            "compared",
            recorded=expected[:12] if expected else none,
            now=actual[:12] if actual else none,
        ),
        ADAPTER_LOADED.check(trouble is None, "trouble" if trouble else "clean", line=one_line(trouble or "", 200)),
        _left_alone_check(evidence.adapter_files, evidence.root / evidence.lora_path),
    )


def adapter_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file of an adapter that decides what it does: its configuration and its weights, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file()) if folder.is_dir() else ()
    kept = (path for path in files if path.name.startswith("adapter_") or _is_weights(path))
    return {path.name: sha256_of(path) for path in kept if path.stat().st_size <= MAX_HASHED_BYTES}


def _is_weights(path: Path) -> bool:
    return path.suffix in _WEIGHTS and path.name != "training_args.bin"


def _left_alone_check(before: Mapping[str, str] | None, folder: Path) -> Check:
    """Weights that changed are another check's; a second weights file or a new configuration misleads the next user."""
    if before is None:
        return ADAPTER_LEFT_ALONE.check(None, "not_recorded")
    after = adapter_files(folder)
    names = sorted({*before, *after} - {ADAPTER_WEIGHTS_NAME})
    changed = [one_line(name, 60) for name in names if before.get(name) != after.get(name)]
    return ADAPTER_LEFT_ALONE.check(not changed, "changed" if changed else "same", files=changed)
