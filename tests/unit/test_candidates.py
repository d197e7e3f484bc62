"""H-1's candidates, each with its predicted peak on this card or the reason why there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.messages import verbatim
from steph.base.terms import Cause, StageId, TrainerName, Verdict
from steph.base.units import GIB
from steph.conduct.models import NoModel, predicted_candidates
from steph.conduct.preparation import Setup
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.judge.verdict import Outcome
from steph.memory.shapes import BUILT_IN, config_of
from steph.record.events import CandidatesPredicted, RecordOpened, StageStarted, fold
from steph.record.settings import Device
from steph.record.values import Candidate, RejectedCandidate
from steph.tell.report import parts

REPOSITORY = Path(__file__).parents[2]
NAMES = ("Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen1.5-4B-Chat", "nobody/none", "Qwen/Qwen3-8B")
GONE = RejectedCandidate(name=NAMES[0], cause=Cause.HUB_NOT_FOUND, message=verbatim("404"))


def _setup(card: Device | None, *, profile: str = "rtx3080", names: tuple[str, ...] = NAMES) -> Setup:
    record = factory.green_acceptance()
    found = load_profile(profile_path(profile, REPOSITORY))
    found = found.model_copy(update={"model": found.model.model_copy(update={"candidates": names})})
    options = Options(profile, REPOSITORY, None, None, False, None, REPOSITORY)
    description = Description(trainer=TrainerName.FULL)
    return Setup(options, found, description, "python", card, record.data[0], record.context)


def _by_name(candidates: tuple[Candidate, ...]) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in candidates}


def test_every_candidate_has_a_peak_or_a_reason() -> None:
    """The chosen, a rejected and an untried one of known shape are predicted; one of unknown shape says so."""
    choice = factory.model_choice(NAMES[1], snapshot_path=None, rejected=(GONE,))
    found = _by_name(predicted_candidates(_setup(factory.device()), choice))
    assert tuple(found) == NAMES
    assert [found[name].outcome for name in NAMES] == ["rejected", "chosen", "not_tried", "not_tried"]
    assert [found[name].predicted is not None for name in NAMES] == [True, True, False, True]
    for name in (NAMES[0], NAMES[1], NAMES[3]):
        predicted = found[name].predicted
        assert predicted is not None
        assert predicted.low_bytes is not None
        assert predicted.high_bytes is not None
        assert predicted.low_bytes < predicted.peak_bytes < predicted.high_bytes
    assert [p and p.verdict for p in (found[NAMES[0]].predicted, found[NAMES[3]].predicted)] == ["fits", "does_not_fit"]
    assert "形が分からない" in str(found["nobody/none"].unpredicted_reason)
    assert {candidate.settings for candidate in found.values()} == {"512/b2/4bit"}


def test_where_no_model_can_be_had_the_candidates_are_predicted_all_the_same() -> None:
    """None is chosen; those that were tried are rejected, those behind a failed download were not tried."""
    nothing = NoModel(Outcome(Verdict.FAIL, verbatim("")), (GONE,))
    found = predicted_candidates(_setup(factory.device()), nothing)
    assert [candidate.outcome for candidate in found] == ["rejected", "not_tried", "not_tried", "not_tried"]


def test_without_a_gpu_the_reason_is_that() -> None:
    """The CPU rehearsal predicts no peak and says why."""
    choice = factory.model_choice(NAMES[0], snapshot_path=None)
    found = predicted_candidates(_setup(None), choice)
    assert {str(candidate.unpredicted_reason) for candidate in found} >= {"GPU を使わないため"}
    assert all(candidate.predicted is None for candidate in found)


def test_a_model_asked_for_comes_before_the_profiles() -> None:
    """A folder named by --steph-model is the one chosen, its shape read from its own config.json."""
    setup = _setup(factory.device())
    setup = replace(setup, options=replace(setup.options, model="Qwen/Qwen3-1.7B"))
    found = predicted_candidates(setup, factory.model_choice("Qwen/Qwen3-1.7B", snapshot_path=None))
    assert [candidate.outcome for candidate in found] == ["chosen", *["not_tried"] * 4]


def test_a_config_in_the_hubs_cache_gives_the_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that is neither built in nor whole on this disk, but whose config.json lies in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--nobody--none"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    shape = BUILT_IN["Qwen/Qwen3-4B"]
    (repo / "snapshots" / "abc" / "config.json").write_text(json.dumps(config_of(shape)))
    found = _by_name(predicted_candidates(_setup(factory.device()), factory.model_choice(NAMES[0], snapshot_path=None)))
    assert found["nobody/none"].predicted is not None


def test_a_config_of_another_kind_is_a_reason_too(tmp_path: Path) -> None:
    """A model type that the formulas don't know is named, not predicted, and no option that nobody typed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    setup = _setup(factory.device(), names=(str(folder),))
    (found,) = predicted_candidates(setup, factory.model_choice(str(folder), snapshot_path=str(folder)))
    assert found.unpredicted_reason is not None
    assert str(found.unpredicted_reason).startswith(f"計算できない: {folder}: ")
    assert "mamba" in str(found.unpredicted_reason)


def test_the_record_and_the_report_hold_them() -> None:
    """From the event to H-1's section, with peak, interval, verdict and the dash with its reason."""
    candidates = predicted_candidates(_setup(factory.device()), factory.model_choice(NAMES[0], snapshot_path=None))
    events = (
        RecordOpened(at="", id="r", context=factory.context()),
        StageStarted(at="", stage=StageId.H1),
        CandidatesPredicted(at="", stage=StageId.H1, candidates=candidates),
    )
    record = fold(events)
    assert record.stages[StageId.H1].candidates == candidates
    text = {part.id: part.text for part in parts(record)}["h1"]
    chosen, unknown = candidates[0], candidates[2]
    assert chosen.predicted is not None
    assert f"| `{NAMES[0]}` | 選んだ |" in text
    assert f"{chosen.predicted.peak_bytes / GIB:.2f} GiB(" in text
    assert f"| `{NAMES[3]}` | 試していない |" in text
    assert "❌ 載らない" in text
    assert f"–({unknown.unpredicted_reason})" in text


def test_the_production_profile_reads_the_slices_real_size() -> None:
    """a100-20gb: Qwen3-8B at 1024/b2, accumulation 4, held against what the device itself shows, not against 20 GiB."""
    profile = load_profile(profile_path("a100-20gb", REPOSITORY))
    train = profile.train
    assert (train.max_seq_length, train.batch_size, train.gradient_accumulation_steps) == (1024, 2, 4)
    choice = factory.model_choice("Qwen/Qwen3-8B", snapshot_path=None)
    verdicts = {}
    for mib in (19_968, 14_000):
        card = factory.device("NVIDIA A100-SXM4-40GB MIG 3g.20gb", mib * 2**20).model_copy(update={"used_bytes": 0})
        setup = _setup(card, profile="a100-20gb", names=profile.model.candidates)
        (found,) = predicted_candidates(setup, choice)
        verdicts[mib] = found.predicted and found.predicted.verdict
    assert verdicts == {19_968: "fits", 14_000: "too_close"}
