"""H-1: the model is there whole and of the asked size, or the stage says for each candidate why not."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import record_factory as factory
from scripted_training import LARGE, PROFILE, SMALL, THREE
from steph.base.messages import say, speaking, verbatim
from steph.base.terms import Cause, EndedBy, Severity, StageId, Verdict
from steph.child import twin
from steph.conduct import models
from steph.conduct.models import NoModel, choose_model, model_checks, smaller_model
from steph.conduct.preparation import Console, Setup, StageRun, twin_source
from steph.contract.description import Description
from steph.contract.options import Options
from steph.memory.shapes import BUILT_IN, TINY_NAME, parameter_count
from steph.record.values import Attempt, ModelChoice, RejectedCandidate
from steph.run import hub, model_files
from steph.run.fetch import HubError, HubFailure
from steph.run.inputs import InputError
from steph.run.journal import Journal
from suite_runs import make_model

GONE = RejectedCandidate(name="a/b", cause=Cause.HUB_NOT_FOUND, message=verbatim("404"))


def _setup(folder: Path, *, model: str | None = None, is_twin: bool = False) -> Setup:
    options = Options("rtx3080", folder, None, model, is_twin, None, folder)
    context = factory.context().model_copy(update={"twin": is_twin})
    return Setup(options, PROFILE, Description(), "python", None, factory.data()[0], context)


def _run(setup: Setup, folder: Path) -> StageRun:
    return StageRun(setup, Journal(folder / "record"), Console(lambda _: None, False), time.monotonic() + 60)


def _chosen(setup: Setup, folder: Path) -> ModelChoice | NoModel:
    return choose_model(_run(setup, folder))


def _choose(monkeypatch: pytest.MonkeyPatch, found: ModelChoice | Exception) -> list[tuple[tuple[str, ...], object]]:
    """A Hub that gives this answer; what it was asked for, and whether a person named it."""
    asked: list[tuple[tuple[str, ...], object]] = []

    def choose(candidates: tuple[str, ...], **options: object) -> ModelChoice:
        asked.append((candidates, options["is_explicit"]))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(hub, "choose", choose)
    monkeypatch.setattr(hub, "download", lambda choice, **options: choice)
    return asked


def test_candidates_are_the_profiles_or_the_one_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--steph-model` replaces the list, and is marked as a person's choice."""
    asked = _choose(monkeypatch, SMALL)
    assert _chosen(_setup(tmp_path), tmp_path / "a") == SMALL
    assert _chosen(_setup(tmp_path, model="c/d"), tmp_path / "b") == SMALL
    assert asked == [(PROFILE.model.candidates, False), (("c/d",), True)]


def test_where_no_candidate_can_be_had_each_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAIL on a hard check that does not hold, and the rejected ones are kept."""
    other = RejectedCandidate(name="c/d", cause=Cause.HUB_GATED, message=verbatim("gated"))
    _choose(monkeypatch, hub.NoModelError((GONE, other)))
    found = _chosen(_setup(tmp_path), tmp_path)
    assert isinstance(found, NoModel)
    assert found.rejected == (GONE, other)
    assert (found.outcome.verdict, str(found.outcome.explanation)) == (
        Verdict.FAIL,
        "使えるモデルがない: a/b: 404、c/d: gated",
    )
    assert [(check.id, check.severity, check.holds) for check in found.outcome.checks] == [
        ("model_available", Severity.FAIL, False)
    ]


def test_a_download_that_fails_rejects_the_choice_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates before it stay rejected, it comes last, and the stage fails with its reason."""
    _choose(monkeypatch, SMALL.model_copy(update={"rejected": (GONE,)}))

    def full(choice: ModelChoice, **options: object) -> ModelChoice:
        raise HubError(HubFailure(Cause.DISK_FULL, say("hub.no_space", error="[Errno 28]")))

    monkeypatch.setattr(hub, "download", full)
    found = _chosen(_setup(tmp_path), tmp_path)
    assert isinstance(found, NoModel)
    failed = RejectedCandidate(name=SMALL.name, cause=Cause.DISK_FULL, message=say("hub.no_space", error="[Errno 28]"))
    assert found.rejected == (GONE, failed)
    assert (found.outcome.verdict, str(found.outcome.explanation)) == (
        Verdict.FAIL,
        "ダウンロードできない: ディスクの空きがない: [Errno 28]",
    )
    assert found.outcome.checks[0].holds is False


def test_a_model_must_be_whole_on_the_disk(tmp_path: Path) -> None:
    """No folder, or one without config.json, is a hard check that does not hold."""
    setup, whole = _setup(tmp_path), make_model(tmp_path / "model")
    for path, holds in ((None, False), (str(tmp_path), False), (str(whole), True)):
        check = model_checks(setup, SMALL.model_copy(update={"snapshot_path": path}))[0]
        assert (check.id, check.severity, check.holds) == ("model_available", Severity.FAIL, holds)


@pytest.mark.parametrize(
    ("parameters", "holds"),
    [(1_500_000_000, True), (1_499_999_999, False), (4_100_000_000, True), (4_100_000_001, False)],
)
def test_both_ends_of_the_profiles_range_are_in_it(tmp_path: Path, parameters: int, holds: bool) -> None:
    """The message gives the size and the range in billions."""
    check = model_checks(_setup(tmp_path), SMALL.model_copy(update={"parameters": parameters}))[1]
    assert check.holds is holds
    assert f"{parameters / 1e9:.2f}B" in str(check.message)
    assert "1.5B〜4.1B" in str(check.message)


@pytest.mark.parametrize(("source", "warned"), [("hub", False), ("local", False), ("cache", True)])
def test_a_copy_that_the_hub_did_not_confirm_is_a_warning(tmp_path: Path, source: str, warned: bool) -> None:
    """Only what came from the cache in the Hub's place is told."""
    checks = model_checks(_setup(tmp_path), SMALL.model_copy(update={"source": source}))
    told = [(check.severity, check.holds) for check in checks if check.id == "hub_confirmed"]
    assert told == ([(Severity.WARN, False)] if warned else [])


def test_a_smaller_model_is_smaller_and_of_known_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of the same size, larger ones and those of unknown shape are not asked for."""
    setup = _setup(tmp_path)
    names = (LARGE.name, "nobody/none", SMALL.name, THREE)
    profile = PROFILE.model_copy(update={"model": PROFILE.model.model_copy(update={"candidates": names})})
    asked = _choose(monkeypatch, hub.NoModelError((GONE,)))
    run = _run(replace(setup, profile=profile), tmp_path)
    three = SMALL.model_copy(update={"name": THREE, "parameters": parameter_count(BUILT_IN[THREE])})
    for model, expected in ((LARGE, [THREE, SMALL.name]), (three, [SMALL.name]), (SMALL, [])):
        asked.clear()
        assert smaller_model(run, model) is None
        assert asked == [((name,), False) for name in expected]
    unknown = SMALL.model_copy(update={"parameters": None})
    assert smaller_model(run, unknown) is None
    assert asked == []


def test_a_rehearsal_goes_to_a_smaller_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--steph-twin` the next smaller shape is made, not downloaded."""
    monkeypatch.setenv("STEPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(twin, "is_kept", lambda arguments: True)
    monkeypatch.setattr(model_files, "folder_parameters", lambda folder: parameter_count(BUILT_IN[THREE]))
    found = smaller_model(_run(_setup(tmp_path, is_twin=True), tmp_path), LARGE)
    assert found is not None
    assert (found.source, found.automatic_substitute) == ("twin", True)
    assert found.parameters == parameter_count(BUILT_IN[THREE])


@pytest.mark.parametrize(
    ("returncode", "lines", "verdict", "said"),
    [
        (-9, (), Verdict.CRASHED, "シグナル 9 で終了(原因: 不明)"),
        (1, ("reading", "q.json: not UTF-8 (byte 0)"), Verdict.FAIL, ": q.json: not UTF-8 (byte 0)"),
    ],
)
def test_a_twin_that_cannot_be_made_says_how_its_making_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    returncode: int,
    lines: tuple[str, ...],
    verdict: Verdict,
    said: str,
) -> None:
    """The script's end is H-1's verdict, and its last line is in H-1's own."""
    monkeypatch.setenv("STEPH_CACHE", str(tmp_path / "cache"))
    ended = partial(
        Attempt,
        stage=StageId.H1,
        number=1,
        started_at="",
        returncode=returncode,
        last_lines=lines,
        ended_by=EndedBy.EXIT,
    )
    monkeypatch.setattr(models, "run_attempt", lambda run, plan, call, judge: ended(label=plan.label))
    found = _chosen(_setup(tmp_path, model=TINY_NAME, is_twin=True), tmp_path)
    assert isinstance(found, NoModel)
    assert found.outcome.verdict is verdict
    assert str(found.outcome.explanation).startswith("twinを作れない: ")
    assert str(found.outcome.explanation).endswith(said)


@pytest.mark.parametrize(
    ("name", "takes"), [(TINY_NAME, False), ("Qwen/Qwen3-0.6B", True), ("meta-llama/Llama-3.2-1B", False)]
)
def test_a_qwen_tokenizer_of_this_disk_is_for_models_that_have_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, takes: bool
) -> None:
    """Who has one in the Hub's cache can still rehearse with the tiny model, whose tokenizer is trained on the spot."""
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": ["<|im_start|>"]}', encoding="utf-8")
    monkeypatch.setenv("STEPH_TOKENIZER", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"input": "x", "output": "y"}\n', encoding="utf-8")
    described = Description.model_validate({"paths": {"train_file": "rows.jsonl"}, "build": None, "optional_flags": []})
    setup = replace(_setup(tmp_path, is_twin=True), description=described)
    found = models.tokenizer_of(setup, twin_source(name, on_gpu=True))
    assert (found.folder is not None) is takes
    assert bool(found.texts) is not takes


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_a_tokenizer_is_trained_on_rows_of_any_form(tmp_path: Path, name: str) -> None:
    """A table's rows are texts as those of JSON are."""
    (tmp_path / name).write_text('["a"]' if name.endswith("n") else '{"q": "x"}\n', encoding="utf-8")
    described = Description.model_validate({"paths": {"train_file": name}, "build": None, "optional_flags": []})
    setup = replace(_setup(tmp_path, is_twin=True), description=described, dataset=None)
    assert models.tokenizer_of(setup, twin_source(TINY_NAME, on_gpu=False)).texts == (setup.root / name,)


def test_a_twin_of_an_unknown_model_names_the_known_ones(tmp_path: Path) -> None:
    """Only published shapes that the suite carries can be made without a download."""
    with (
        speaking("en"),
        pytest.raises(
            InputError, match=r"no built-in shape for 'a/b', and no config.*; known: .*Qwen/Qwen1\.5-1\.8B-Chat"
        ),
    ):
        _chosen(_setup(tmp_path, model="a/b", is_twin=True), tmp_path)
