"""What a record and a run that joins it must have in common: one value, made of both sides alike."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from steph.base.terms import StageId
from steph.base.units import gib
from steph.conduct.preparation import Setup
from steph.record.values import Context, DataFile, ModelChoice, Record
from steph.run import model_files
from steph.run.model_files import IncompleteModelError

SHA_CHARS = 12


@dataclass(frozen=True)
class JoinFacts:
    """Each fact as a person is told it; None where it is not known, which agrees with everything."""

    profile_content: str
    pipeline_root: str
    pipeline_python: str
    pipeline_commit: str
    device: str
    vram_cap: str
    twin: str
    trainer: str | None
    description_of_training: str | None
    dataset_sha256: str | None
    model: str | None


def differences(record: Record, setup: Setup) -> list[str]:
    """What disagrees between a record and the run that wants to join it, one phrase each."""
    chosen = record.stages[StageId.H1].model if StageId.H1 in record.stages else None
    dataset = next((data for data in record.data if data.role == "dataset"), None)
    then = _facts(record.context, dataset, _named(chosen.name, chosen.revision) if chosen else None)
    current = _facts(setup.context, setup.dataset, _present_model(chosen, setup) if chosen else None)
    names = [field.name for field in fields(JoinFacts)]
    pairs = {name: (getattr(then, name), getattr(current, name)) for name in names}
    return [
        f"{name.replace('_', ' ')} was {before}, is {after}"
        for name, (before, after) in pairs.items()
        if before is not None and after is not None and before != after
    ]


def cached_revision(name: str) -> str | None:
    """The commit that a pipeline would load offline by a model's id; None where no whole copy is in the cache."""
    try:
        return model_files.cached_model(model_files.default_cache_dir(), name).revision
    except IncompleteModelError:
        return None


def _facts(context: Context, dataset: DataFile | None, model: str | None) -> JoinFacts:
    cap_bytes = context.vram_cap_bytes
    return JoinFacts(
        profile_content=context.profile_sha256[:SHA_CHARS],
        pipeline_root=context.pipeline_root,
        pipeline_python=context.pipeline_python,
        pipeline_commit=context.pipeline_git.commit or "none",
        device=", ".join(device.uuid for device in context.environment.devices) or "none",
        vram_cap="none" if cap_bytes is None else gib(cap_bytes),
        twin="yes" if context.twin else "no",
        trainer=context.trainer,
        description_of_training=context.described_sha256[:SHA_CHARS] if context.described_sha256 else None,
        dataset_sha256=dataset.sha256[:SHA_CHARS] if dataset else None,
        model=None if context.twin else model,
    )


def _present_model(recorded: ModelChoice, setup: Setup) -> str:
    """The model that this run would use: what it was asked for, else the record's, as it lies in the cache now."""
    asked = setup.options.model
    if asked is not None and _place(asked) != recorded.name:
        return _place(asked)
    if recorded.revision is None:
        return recorded.name
    return _named(recorded.name, cached_revision(recorded.name) or recorded.revision)


def _place(name: str) -> str:
    """A folder as H-1 records it, an id as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _named(name: str, revision: str | None) -> str:
    return f"{name}@{revision[:SHA_CHARS]}" if revision else name
