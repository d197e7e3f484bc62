"""The conductor where a stage can't even begin."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import record_factory as factory
from fake_nvml import FakeNvml, Gpu
from japanese import is_told_in_japanese
from scripted_training import on_disk
from steph.base.messages import Message, say, speaking, verbatim
from steph.base.terms import AnyStage, Cause, ExtendedId, Purpose, Severity, StageId, Verdict
from steph.conduct.attempts import child_environment
from steph.conduct.models import model_checks
from steph.conduct.preparation import MIN_ATTEMPT_SECONDS, Console, Setup, StageRun, prepare
from steph.conduct.stages import Conductor
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.record.events import AttemptEnded, Event, ModelChosen, SessionStarted, StageEnded, StageStarted
from steph.record.settings import Device, Environment, TrainSettings
from steph.record.values import Attempt, Record, RejectedCandidate, StageResult
from steph.run import hub
from steph.run.gpu import DeviceError
from steph.run.inputs import InputError
from steph.run.journal import Journal, opened_event, read_record

ROOT = Path(__file__).parents[2]
BROKEN = say("nvml.error", code=18, error=say("nvml.versions_differ"))


def _setup(device_error: Message | None) -> Setup:
    record = factory.green_acceptance()
    environment = record.context.environment.model_copy(update={"device": None, "device_error": device_error})
    context = record.context.model_copy(update={"environment": environment})
    options = Options("rtx3080", ROOT, None, None, False, None, ROOT)
    profile = load_profile(profile_path("rtx3080", ROOT))
    return Setup(options, profile, Description(), "python", None, record.data[0], context)


def test_a_card_whose_driver_fails_is_a_failed_stage_not_a_skipped_one(tmp_path: Path) -> None:
    """Device nodes without a working NVML: every stage FAILs with the driver's line, and the report is told."""
    told: list[Record] = []
    setup = _setup(BROKEN)
    journal = Journal(tmp_path / "run")
    journal.append(opened_event("r", setup.context))
    conductor = Conductor(setup, journal, Console(lambda text: None, False), told.append)
    results = [conductor.run(stage, 60) for stage in StageId]
    journal.close()
    assert [result.verdict for result in results] == [Verdict.FAIL] * 3
    assert all(str(BROKEN) in str(result.explanation) for result in results)
    assert told[-1].verdict_of(StageId.H1) is Verdict.FAIL


def test_what_the_driver_says_reaches_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing NVML is no exception of the preparation but a fact of the environment."""

    def broken(environ: object) -> None:
        raise DeviceError(BROKEN, 18)

    monkeypatch.setattr("steph.run.gpu.visible_devices", broken)
    setup = _setup(None)
    options = replace(setup.options, pipeline_root=ROOT / "pipeline", report=tmp_path)
    assert prepare(options, setup.profile, [StageId.H1]).context.environment.device_error == BROKEN


def test_the_drivers_line_is_told_in_the_reports_language_and_an_old_records_as_it_stands() -> None:
    """The record holds it as an id; one of release 0.1.0 holds a sentence."""
    machine = _setup(BROKEN).context.environment
    again = Environment.model_validate_json(machine.model_dump_json()).device_error
    assert again is not None
    assert is_told_in_japanese(again)
    assert again.text("en") == "NVML error 18: driver and library versions differ; reboot or reload the driver"
    old = Environment.model_validate({**machine.model_dump(), "device_error": "NVML error 9: no driver"})
    assert str(old.device_error) == "NVML error 9: no driver"


@pytest.mark.parametrize(
    ("left", "whole", "within_60", "is_over"),
    [
        (90, 90, 60, False),
        (MIN_ATTEMPT_SECONDS + 1, 6, 6, False),
        (MIN_ATTEMPT_SECONDS - 1, 4, 4, True),
        (-9, 1, 1, True),
    ],
)
def test_a_child_may_take_what_is_left_of_its_stage(
    tmp_path: Path, left: float, whole: float, within_60: float, is_over: bool
) -> None:
    """Its own limit is the most, a second the least; with less than an attempt takes, none is begun."""
    run = StageRun(_setup(None), Journal(tmp_path / "run"), Console(lambda text: None, False), time.monotonic() + left)
    assert whole - 0.5 < run.left_seconds() <= whole
    assert within_60 - 0.5 < run.left_seconds(60) <= within_60
    assert run.is_out_of_time is is_over


def _conducted(folder: Path, stage: StageId, *before: Event) -> StageResult:
    """A stage run after these events, and what the record says of it then."""
    setup = _setup(None)
    journal = Journal(folder / "run")
    journal.append(opened_event("r", setup.context))
    for event in before:
        journal.append(event)
    return Conductor(setup, journal, Console(lambda text: None, False), lambda record: None).run(stage, 60)


def _green(stage: StageId, *attempts: Attempt) -> list[Event]:
    return [
        StageStarted(at="t", stage=stage),
        *(AttemptEnded(at="t", attempt=attempt) for attempt in attempts),
        StageEnded(at="t", stage=stage, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1),
    ]


def test_a_stage_on_a_replaced_base_is_blocked(tmp_path: Path) -> None:
    """H-1 anew makes H-2 stale: H-3 does not evaluate what was trained on another model."""
    events = [*_green(StageId.H1), *_green(StageId.H2), *_green(StageId.H1)]
    result = _conducted(tmp_path, StageId.H3, *events)
    assert result.verdict is Verdict.BLOCKED
    assert "H-2 の結果が古い" in str(result.explanation)


def test_a_stage_alone_says_what_must_run_before_it(tmp_path: Path) -> None:
    """In an empty record the first stage that is missing is named, and that it comes first."""
    result = _conducted(tmp_path, StageId.H3)
    assert (result.verdict, str(result.explanation)) == (
        Verdict.BLOCKED,
        "H-1 が NOT_RUN のため実行しない。先に H-1 を実行する",
    )


@pytest.mark.parametrize("purpose", Purpose)
def test_memory_that_did_not_come_back_blocks_the_next_stage(tmp_path: Path, purpose: Purpose) -> None:
    """What still lies on the card would be taken from the next stage, whichever attempt left it there."""
    trained = factory.trained(1, TrainSettings())
    left = trained.model_copy(update={"number": 2, "folder": "2", "purpose": purpose, "memory_returned": False})
    result = _conducted(tmp_path, StageId.H3, *_green(StageId.H1), *_green(StageId.H2, trained, left))
    assert result.verdict is Verdict.BLOCKED
    assert "GPUメモリが解放されていない" in str(result.explanation)


def test_a_record_that_names_no_model_fails_with_the_remedy(tmp_path: Path) -> None:
    """A green H-1 without its model, as a torn journal may leave it, starts nothing."""
    result = _conducted(tmp_path, StageId.H3, *_green(StageId.H1), *_green(StageId.H2))
    assert (result.verdict, str(result.explanation)) == (
        Verdict.FAIL,
        "実行に必要なものが揃わない: 記録にモデルがない。先に H-1 を実行する",
    )
    assert result.explanation.text("en").endswith(": the record names no model; run H-1 first")


def test_an_adapter_whose_digest_nobody_recorded_is_not_evaluated(tmp_path: Path) -> None:
    """A green H-2 without its adapter's sha256 can't be told from another adapter."""
    trained = factory.trained(1, TrainSettings())
    assert trained.training is not None
    nameless = trained.model_copy(update={"training": trained.training.model_copy(update={"adapter_sha256": None})})
    chosen = ModelChosen(at="t", stage=StageId.H1, model=on_disk(tmp_path / "model"))
    for attempt in (nameless, trained.model_copy(update={"training": None})):
        events = [*_green(StageId.H1), chosen, *_green(StageId.H2, attempt)]
        result = _conducted(tmp_path / str(attempt.label) / str(attempt.training is None), StageId.H3, *events)
        assert (result.verdict, result.attempts) == (Verdict.BLOCKED, ())
        assert str(result.explanation) == "H-2の記録にアダプタのsha256がない。H-2を再実行する"


def test_h1_without_a_model_fails_with_its_candidates_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each candidate is on record as rejected, and the stage ends with what was wrong with it."""

    def none(candidates: tuple[str, ...], **options: object) -> None:
        raise hub.NoModelError(
            [RejectedCandidate(name=candidates[0], cause=Cause.HUB_NOT_FOUND, message=verbatim("404"))]
        )

    monkeypatch.setattr(hub, "choose", none)
    result = _conducted(tmp_path, StageId.H1)
    first = _setup(None).profile.model.candidates[0]
    assert (result.verdict, str(result.explanation)) == (Verdict.FAIL, f"使えるモデルがない: {first}: 404")
    assert [candidate.name for candidate in result.candidates if candidate.outcome == "rejected"] == [first]
    assert result.model is None


def test_what_a_stage_raises_is_journalled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the suite's own leaves the stage CRASHED with its name, and goes on."""

    def broken(candidates: tuple[str, ...], **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(hub, "choose", broken)
    with pytest.raises(ZeroDivisionError):
        _conducted(tmp_path, StageId.H1)
    result = read_record(tmp_path / "run").stages[StageId.H1]
    assert (result.verdict, str(result.explanation)) == (Verdict.CRASHED, "実行が中断された: ZeroDivisionError")


@pytest.mark.parametrize(("parameters", "holds"), [(1_800_000_000, True), (8_000_000_000, False), (None, None)])
@pytest.mark.parametrize("asked_for", [None, "some/model"])
def test_a_model_outside_the_range_or_of_unknown_size_passes_only_when_asked_for(
    parameters: int | None, holds: bool | None, asked_for: str | None
) -> None:
    """A candidate must be known to be of the spec's size; a model that a person names is only warned about."""
    setup = _setup(None)
    setup = replace(setup, options=replace(setup.options, model=asked_for))
    choice = factory.model_choice("some/model", snapshot_path=None).model_copy(update={"parameters": parameters})
    found = next(check for check in model_checks(setup, choice) if check.id == "parameters_in_range")
    assert found.holds is holds
    assert found.severity is (Severity.WARN if asked_for else Severity.FAIL)


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        ((factory.device(),), "needs a GPU for each process; visible: 1"),
        ((factory.device(), factory.device().model_copy(update={"is_mig": True})), "one MIG slice only"),
    ],
)
def test_several_processes_need_a_whole_gpu_each(
    visible: tuple[Device, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer cards than processes, or slices of one, are one line with profile and key before anything is written."""
    monkeypatch.setattr("steph.run.gpu.visible_devices", lambda environ: visible)
    setup = _setup(None)
    train = setup.profile.train.model_copy(update={"launcher": "torchrun", "num_processes": 2})
    options = replace(setup.options, pipeline_root=ROOT / "pipeline", report=tmp_path)
    with speaking("en"), pytest.raises(InputError, match=f"num_processes = 2 .*{said}"):
        prepare(options, setup.profile.model_copy(update={"train": train}), [StageId.H1])


def test_a_stage_uses_a_gpu_for_each_of_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three visible cards two are the run's; one process is shown the first, two are shown both."""
    cards = tuple(factory.device().model_copy(update={"uuid": f"GPU-{n}"}) for n in range(3))
    monkeypatch.setattr("steph.run.gpu.visible_devices", lambda environ: cards)
    setup = _setup(None)
    train = setup.profile.train.model_copy(update={"launcher": "torchrun", "num_processes": 2})
    options = replace(setup.options, pipeline_root=ROOT / "pipeline", report=tmp_path, vram_cap_bytes=8 << 30)
    ready = prepare(options, setup.profile.model_copy(update={"train": train}), [StageId.H1])
    assert [card.uuid for card in ready.context.environment.further_devices] == ["GPU-1"]
    for count, shown in ((1, "GPU-0"), (2, "GPU-0,GPU-1")):
        environment = child_environment(ready, {}, on_gpu=True, num_processes=count)
        assert environment["CUDA_VISIBLE_DEVICES"] == shown
        assert "per_process_memory_fraction" in (environment["PYTORCH_CUDA_ALLOC_CONF"] or "")


EARLIER, SESSION, LATER = (f"2026-11-20T0{hour}:00:00.000+00:00" for hour in (1, 2, 3))


def _after(folder: Path, last: AnyStage, started_at: str, *, returned: bool | None) -> Journal:
    """A record of three green stages and perhaps an extended one; of these `last` has an attempt, 5 GiB on the card."""
    record = factory.green_acceptance()
    journal = Journal(folder)
    journal.append(opened_event("r", record.context))
    journal.append(SessionStarted(at=SESSION, command=(), stages=(last,)))
    for stage in dict.fromkeys((*StageId, last)):
        journal.append(StageStarted(at=SESSION, stage=stage))
        if stage is last:
            attempt = record.stages[StageId.H3].attempts[-1]
            figures = {"device_peaks": factory.card_peaks(6 << 30, 5 << 30), "memory_returned": returned}
            attempt = attempt.model_copy(update={"stage": last, "started_at": started_at, **figures})
            journal.append(AttemptEnded(at=SESSION, attempt=attempt))
        journal.append(StageEnded(at=SESSION, stage=stage, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1.0))
    return journal


@pytest.mark.parametrize(
    ("last", "started_at", "returned", "used_gib", "is_blocked"),
    [
        (StageId.H3, LATER, False, 2, True),
        (ExtendedId.RAG, LATER, False, 2, True),
        (ExtendedId.COT, LATER, False, 2, True),
        (StageId.H3, LATER, False, 1, False),
        (StageId.H3, EARLIER, False, 2, False),
        (StageId.H3, LATER, True, 2, False),
        (StageId.H3, LATER, None, 2, False),
    ],
)
def test_a_stage_waits_for_the_memory_of_whatever_this_session_ran_before_it(
    last: AnyStage,
    started_at: str,
    returned: bool | None,
    used_gib: int,
    is_blocked: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory that is still held blocks what comes next; what has come back, or an earlier session left, does not."""
    journal = _after(tmp_path / "run", last, started_at, returned=returned)
    card = factory.device()
    monkeypatch.setattr("steph.run.gpu._load", lambda: FakeNvml(Gpu(card.uuid, used=used_gib << 30)))
    conductor = Conductor(
        replace(_setup(None), device=card), journal, Console(lambda text: None, False), lambda r: None
    )
    result = conductor.run(ExtendedId.BASE, 60)
    journal.close()
    said = f"{last} の終了後もGPUメモリが解放されていない"
    assert (said in str(result.explanation)) is is_blocked, str(result.explanation)
    assert not result.verdict.is_green
