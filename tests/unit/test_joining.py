"""What a rerun and the record that it joins must have in common, the model's revision among it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import record_factory as factory
from huggingface_hub import constants
from steph.base.messages import verbatim
from steph.base.terms import StageId, Verdict
from steph.conduct.models import model_trouble
from steph.conduct.preparation import Console, Setup
from steph.conduct.session import differences
from steph.conduct.stages import Conductor
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.record.events import AttemptEnded, ModelChosen, StageEnded, StageStarted
from steph.record.settings import GitState
from steph.record.values import ModelChoice, Record
from steph.run.journal import Journal, now, opened_event
from steph.run.model_files import repo_folder
from suite_runs import make_model

ROOT = Path(__file__).parents[2]
THEN, NOW = "1a" * 20, "2b" * 20


def setup_of(record: Record, model: str | None = None) -> Setup:
    """A run under the record's own facts."""
    options = Options("rtx3080", ROOT, None, model, False, None, ROOT)
    profile = load_profile(profile_path("rtx3080", ROOT))
    device = record.context.environment.device
    return Setup(options, profile, Description(), "python", device, record.data[0], record.context)


def with_model(record: Record, **changes: object) -> Record:
    """The record with this changed about the model that H-1 chose."""
    h1 = record.stages[StageId.H1]
    assert h1.model is not None
    chosen = h1.model_copy(update={"model": h1.model.model_copy(update=changes)})
    return record.model_copy(update={"stages": {**record.stages, StageId.H1: chosen}})


def cache(folder: Path, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub cache in which main of the records' model is this commit, whole."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    repository = repo_folder(folder, factory.MODEL)
    (repository / "snapshots").mkdir(parents=True, exist_ok=True)
    if not (repository / "snapshots" / revision).exists():
        make_model(repository / "snapshots" / revision)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(revision, encoding="utf-8")


def told(record: Record, setup: Setup) -> list[str]:
    """The differences as an English reader is told them."""
    return [one.text("en") for one in differences(record, setup)]


def test_a_run_under_the_same_facts_differs_in_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same context, data and model, at the revision that the record names, join."""
    cache(tmp_path, THEN, monkeypatch)
    record = with_model(factory.green_acceptance(), revision=THEN)
    assert differences(record, setup_of(record)) == []
    assert differences(record, setup_of(record, factory.MODEL)) == []


def test_a_model_that_was_updated_since_is_named_with_both_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run fetched the model's new commit: the old adapter must not be judged on it."""
    cache(tmp_path, NOW, monkeypatch)
    record = with_model(factory.green_acceptance(), revision=THEN)
    assert told(record, setup_of(record)) == [f"model was {factory.MODEL}@{THEN[:12]}, is {factory.MODEL}@{NOW[:12]}"]


def test_a_revision_that_can_not_be_seen_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache emptied nothing is known of it; a record whose H-1 chose nothing names no model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    record = with_model(factory.green_acceptance(), revision=THEN)
    assert differences(record, setup_of(record)) == []
    without = record.model_copy(update={"stages": {}, "data": ()})
    assert differences(without, setup_of(record, "some/other")) == []


def test_every_fact_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profile, root, interpreter, commit, card, cap, twin, data and model, each with both values."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    record = factory.green_acceptance()
    setup = setup_of(record, "some/other")
    environment = record.context.environment.model_copy(update={"device": None})
    changes = {
        "profile_sha256": "f" * 64,
        "pipeline_root": "/elsewhere",
        "pipeline_python": "/bin/python",
        "pipeline_git": GitState(),
        "environment": environment,
        "vram_cap_bytes": 8 << 30,
    }
    context = record.context.model_copy(update=changes)
    assert setup.dataset is not None
    dataset = setup.dataset.model_copy(update={"sha256": "e" * 64})
    found = told(record, replace(setup, context=context, dataset=dataset))
    assert [line.partition(" was ")[0] for line in found] == [
        "profile content", "pipeline root", "pipeline python", "pipeline commit", "device", "vram cap",
        "dataset sha256", "model",
    ]  # fmt: skip
    assert found[-1].endswith("is some/other")
    twin = replace(setup, context=record.context.model_copy(update={"twin": True}))
    assert told(record, twin) == ["twin was no, is yes"]
    described = replace(setup, context=record.context.model_copy(update={"trainer": "answer"}))
    plain = record.model_copy(update={"context": record.context.model_copy(update={"trainer": "undescribed"})})
    assert "trainer was undescribed, is answer" in told(plain, described)


def test_a_folder_given_through_a_link_is_the_folder_that_was_recorded(tmp_path: Path) -> None:
    """H-1 records where a link leads; the same command again must join."""
    folder = make_model(tmp_path / "real")
    (tmp_path / "link").symlink_to(folder)
    record = with_model(factory.green_acceptance(), name=str(folder), source="local", revision=None)
    assert differences(record, setup_of(record, str(tmp_path / "link"))) == []


@pytest.mark.parametrize(
    ("cached", "said"), [(THEN, None), (NOW, "版が記録と違う"), (None, "手元に揃っていない")], ids=str
)
def test_what_would_be_loaded_is_held_against_the_recorded_revision(
    cached: str | None, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded commit passes; another one, and an emptied cache, are one line each."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if cached:
        cache(tmp_path, cached, monkeypatch)
    trouble = model_trouble(factory.model_choice().model_copy(update={"revision": THEN}))
    assert trouble is None if said is None else said in str(trouble)


def test_a_folder_that_is_gone_is_a_line_too(tmp_path: Path) -> None:
    """A local model or a twin has no revision, but must still be whole."""
    folder = make_model(tmp_path / "model")
    model = ModelChoice(name=str(folder), source="local", reason=verbatim(""), snapshot_path=str(folder))
    assert model_trouble(model) is None
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(model_trouble(model))


@pytest.mark.parametrize("stage", [StageId.H2, StageId.H3])
def test_a_stage_is_blocked_where_the_model_is_another_than_the_records(
    stage: StageId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moved the cache since H-1, neither training nor evaluation starts on other weights."""
    cache(tmp_path / "hub", NOW, monkeypatch)
    record = with_model(factory.green_acceptance(), revision=THEN)
    journal = Journal(tmp_path / "run")
    journal.append(opened_event("r", record.context))
    for needed in (StageId.H1, StageId.H2):
        result = record.stages[needed]
        journal.append(StageStarted(at=now(), stage=needed))
        if result.model:
            journal.append(ModelChosen(at=now(), stage=needed, model=result.model))
        for attempt in result.attempts:
            journal.append(AttemptEnded(at=now(), attempt=attempt))
        journal.append(StageEnded(at=now(), stage=needed, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1.0))
    conductor = Conductor(setup_of(record), journal, Console(lambda text: None, False), lambda told: None)
    result = conductor.run(stage, 60)
    journal.close()
    assert (result.verdict, result.attempts) == (Verdict.BLOCKED, ())
    assert f"記録 {THEN[:12]}、キャッシュ {NOW[:12]}" in str(result.explanation)
