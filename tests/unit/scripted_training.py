"""A training stage whose attempts end as scripted; what they run, are predicted and leave in the journal is real."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import record_factory as factory
from planted import TRAIN_FILE, plant
from steph.base.messages import verbatim
from steph.base.terms import AnyStage, Cause, EndedBy, Phase, Severity, StageId
from steph.conduct import preparation, training
from steph.conduct.attempts import Judge
from steph.conduct.jobs import open_job
from steph.conduct.models import expected
from steph.conduct.preparation import MIN_ATTEMPT_SECONDS, Console, Setup, StageRun
from steph.conduct.training import settings_at, walk_ladder
from steph.contract.commands import Call
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.judge.verdict import Outcome
from steph.memory.shapes import BUILT_IN, parameter_count
from steph.record.events import StageStarted
from steph.record.settings import Device, TrainSettings
from steph.record.values import Attempt, Check, Diagnosis, ModelChoice, RejectedCandidate, StageResult
from steph.run import hub, inputs
from steph.run.journal import Journal, opened_event
from suite_runs import make_model

PROFILE = load_profile(profile_path("rtx3080", Path(__file__).parents[2]))
BASE, LADDER = PROFILE.train, PROFILE.ladder
OK = Check(id="ok", severity=Severity.FAIL, holds=True, message=verbatim("よい"))

OOM = Diagnosis(cause=Cause.CUDA_OOM, phase=Phase.FIRST_STEP)
OOM_LOADING = Diagnosis(cause=Cause.CUDA_OOM, phase=Phase.LOAD)
NO_BNB = Diagnosis(cause=Cause.BNB_SETUP)
DRIFT = Diagnosis(cause=Cause.API_DRIFT)


def choice(name: str) -> ModelChoice:
    """A published model by its name, of which nothing is on the disk."""
    return factory.model_choice(name, snapshot_path=None, parameters=parameter_count(BUILT_IN[name]))


def on_disk(folder: Path) -> ModelChoice:
    """A model of the smallest kind that is there whole, as a stage after H-1 needs it."""
    place = str(make_model(folder))
    return factory.model_choice(place, source="local", revision=None, snapshot_path=place)


SMALL, LARGE = choice("Qwen/Qwen1.5-1.8B-Chat"), choice("Qwen/Qwen1.5-4B-Chat")
THREE = "Qwen/Qwen2.5-3B-Instruct"


MAX_STEPS_FLAG = "--max-steps-override"


@dataclass
class ScriptedTraining:
    """One training stage; attempt after attempt ends as `ends` says, and well where it says nothing more.

    `spends_all`: an attempt leaves the stage too little time for another one. `flags`: what the script takes beyond the
    spec's; None: its `--help` is asked. `of`: whose stage it is; each trains on H-2's rows.
    """

    folder: Path
    ends: Sequence[Diagnosis] = ()
    spends_all: bool = False
    card: Device | None = None
    trainer: str | None = None
    no_predict: bool = False
    flags: tuple[str, ...] | None = (MAX_STEPS_FLAG,)
    truncation: str = "right"
    train: TrainSettings = BASE
    of: AnyStage = StageId.H2
    planned: list[Attempt] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = plant(self.folder / "root")
        description = Description.model_validate(
            {
                "trainer": self.trainer,
                "optional_flags": self.flags,
                "truncation": self.truncation,
                "paths": {"train_file_cot": TRAIN_FILE},
            }
        )
        options = Options("rtx3080", root, None, None, False, None, self.folder, no_predict=self.no_predict)
        profile = PROFILE.model_copy(update={"train": self.train})
        dataset, context = inputs.read_dataset(root, description), factory.context(gpu=self.card)
        self.setup = Setup(options, profile, description, sys.executable, self.card, dataset, context)
        self.journal = Journal(self.folder / "record")
        self.journal.append(opened_event("r", context))
        self.journal.append(StageStarted(at="2026-01-01T00:00:00+00:00", stage=StageId.H2))
        self.run = StageRun(self.setup, self.journal, Console(self.said.append, False), time.monotonic() + 3600)
        self.job = open_job(self.run, self.of)

    def attempt(self, run: StageRun, plan: Attempt, call: Call, judge: Judge) -> Attempt:
        """In place of `run_attempt`: note what was planned and end as scripted."""
        assert isinstance(plan.settings, TrainSettings)
        self.planned.append(plan)
        self.calls.append(call)
        number = len(self.planned)
        ended: dict[str, object] = {"label": plan.label, "checks": (OK,)}
        if number <= len(self.ends):
            ended |= {"returncode": 1, "ended_by": EndedBy.EXIT, "diagnosis": self.ends[number - 1]}
        return factory.trained(number, plan.settings).model_copy(update=ended)

    def walk(self, monkeypatch: pytest.MonkeyPatch, model: ModelChoice, start: TrainSettings | None = None) -> Outcome:
        """Run the stage on these scripted attempts."""

        def attempt(run: StageRun, plan: Attempt, call: Call, judge: Judge) -> Attempt:
            if self.spends_all:
                self.leave(monkeypatch, MIN_ATTEMPT_SECONDS - 0.01)
            return self.attempt(run, plan, call, judge)

        monkeypatch.setattr(training, "run_attempt", attempt)
        return walk_ladder(self.job, model, start)

    def leave(self, monkeypatch: pytest.MonkeyPatch, left_seconds: float) -> None:
        """Set the clock on until the stage has only so much time left."""
        moment = self.run.ends_at - left_seconds
        monkeypatch.setattr(preparation, "time", SimpleNamespace(monotonic=lambda: moment))

    @property
    def tried(self) -> list[str]:
        """The attempts' labels in their order."""
        return [str(plan.label) for plan in self.planned]

    @property
    def recorded(self) -> StageResult:
        """What the journal says of H-2."""
        return self.journal.record().stages[StageId.H2]


def offer(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """A Hub that has these models alone; the list grows by every name that it is asked for."""
    asked: list[str] = []

    def choose(candidates: tuple[str, ...], **options: object) -> ModelChoice:
        (name,) = candidates
        assert options["is_explicit"] is False
        asked.append(name)
        if name not in names:
            raise hub.NoModelError((RejectedCandidate(name=name, cause=Cause.HUB_NOT_FOUND, message=verbatim("404")),))
        return choice(name)

    monkeypatch.setattr(hub, "choose", choose)
    monkeypatch.setattr(hub, "download", lambda choice, **options: choice)
    return asked


def card_for(model: ModelChoice, trainer: str, rung: int, base: TrainSettings = BASE) -> Device:
    """A card with just as much free memory as this rung needs in its least case."""
    card, context = factory.device(total_bytes=80 << 30), factory.context()
    options = Options("rtx3080", Path(), None, None, False, None, Path())
    description = Description.model_validate({"trainer": trainer})
    setup = Setup(options, PROFILE, description, "python", card, factory.data()[0], context)
    found = expected(setup, model, settings_at(base, LADDER, rung))
    assert found is not None
    return card.model_copy(update={"total_bytes": card.used_bytes + found.least.peak.low_bytes})
