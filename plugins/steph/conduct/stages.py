"""Runs stages, each within its time, and journals each one's verdict."""

from __future__ import annotations

import time
from collections.abc import Callable

from steph.base.messages import say
from steph.base.terms import NEEDS, AnyStage, ExtendedId, StageId, Verdict
from steph.base.text import one_line
from steph.conduct.extended import run_extended
from steph.conduct.jobs import DIRECT, Evaluation, TrainingJob, open_job
from steph.conduct.models import NoModel, choose_model, model_checks, model_trouble, predicted_candidates
from steph.conduct.preparation import Console, Setup, StageRun
from steph.conduct.training import calibrate, walk_ladder
from steph.gpu.watch import is_back
from steph.judge.verdict import Outcome
from steph.record.events import CandidatesPredicted, ModelChosen, StageEnded, StageStarted
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, ModelChoice, Record, StageResult
from steph.run.inputs import InputError
from steph.run.journal import Journal, now
from steph.run.runner import RunnerError

MESSAGE_CHARS = 300  # of an error that nobody expected


class Conductor:
    """Runs stages into one journal; `tell` is called after each so that the report is never behind."""

    def __init__(self, setup: Setup, journal: Journal, console: Console, tell: Callable[[Record], None]) -> None:
        self.setup = setup
        self.journal = journal
        self.console = console
        self._tell = tell
        self._job: TrainingJob | None = None  # of H-2

    def run(self, stage: AnyStage, budget_seconds: float) -> StageResult:
        """Run one stage within its budget and return its result; what it raises has been journalled first."""
        error = self.setup.context.environment.device_error
        blocked = Outcome(Verdict.FAIL, say("stage.no_gpu", error=error)) if error else self._blocked(stage)
        self.journal.append(StageStarted(at=now(), stage=stage))
        started = time.monotonic()
        limits = self.setup.profile.limits
        match stage:
            case StageId.H1:
                limit_seconds = limits.h1_seconds
            case StageId.H2 | ExtendedId.COT_TRAINING | ExtendedId.ONE_STEP:
                limit_seconds = limits.h2_seconds
            case ExtendedId.HEART:
                limit_seconds = limits.h2_seconds + limits.h3_seconds
            case _:
                limit_seconds = limits.h3_seconds
        run = StageRun(self.setup, self.journal, self.console, started + min(budget_seconds, limit_seconds))
        try:
            outcome = blocked or self._stage(stage, run)
        except (InputError, RunnerError) as error:
            outcome = Outcome(Verdict.FAIL, say("stage.cannot_run", error=error))
        except BaseException as error:
            said, name = one_line(error, MESSAGE_CHARS), type(error).__name__
            named = said or name if isinstance(error, KeyboardInterrupt) else f"{name}: {said}" if said else name
            self._end(stage, Outcome(Verdict.CRASHED, say("stage.broken_off", error=named)), started)
            raise
        self._end(stage, outcome, started)
        if stage is StageId.H2 and outcome.verdict.is_green and self.setup.options.calibrate:
            last = self.journal.record().stages[StageId.H2].last_attempt
            if self._job is not None and last is not None and isinstance(last.settings, TrainSettings):
                calibrate(self._job, self._model(), last.settings)  # the verdict stands whatever happens here
                self._tell(self.journal.record())
        return self.journal.record().results[stage]

    def _stage(self, stage: AnyStage, run: StageRun) -> Outcome:
        trouble = model_trouble(self._model()) if stage is not StageId.H1 else None
        if trouble:
            return Outcome(Verdict.BLOCKED, trouble)
        match stage:
            case StageId.H1:
                return self._reach_model(run)
            case StageId.H2:
                self._job = open_job(run)
                return walk_ladder(self._job, self._model())
            case StageId.H3 if self.setup.description.evaluate.none is not None:
                return Outcome(Verdict.NOT_RUN, say("stage.no_evaluation", reason=self.setup.description.evaluate.none))
            case StageId.H3:
                training = self.journal.record().stages[StageId.H2]
                return Evaluation(run, self._model(), training).evaluate(DIRECT)
            case _:
                return run_extended(run, stage, self._model())

    def _reach_model(self, run: StageRun) -> Outcome:
        found = choose_model(run)
        candidates = predicted_candidates(self.setup, found)
        self.journal.append(CandidatesPredicted(at=now(), stage=StageId.H1, candidates=candidates))
        if isinstance(found, NoModel):
            return found.outcome
        self.journal.append(ModelChosen(at=now(), stage=StageId.H1, model=found))
        substitute = (say("condition.substitute", model=found.name),) if found.automatic_substitute else ()
        return Outcome.of_checks(model_checks(self.setup, found), substitute)

    def _model(self) -> ModelChoice:
        """The model of the record; raises InputError where it names none."""
        model = self.journal.record().model
        if model is None:
            raise InputError(say("input.no_model"))
        return model

    def _blocked(self, stage: AnyStage) -> Outcome | None:
        record = self.journal.record()
        for needed in NEEDS[stage]:
            verdict = record.verdict_of(needed)
            if not verdict.is_green:
                why = "blocked.not_run" if verdict is Verdict.NOT_RUN else "blocked.not_green"
                return Outcome(Verdict.BLOCKED, say(why, stage=needed, verdict=verdict))
            if record.results[needed].stale:
                return Outcome(Verdict.BLOCKED, say("blocked.stale", stage=needed))
        last = newest_of_session(record)  # of whatever stage: the card must not hold its memory any more
        if last is None or last.memory_returned is not False or is_back(last.device_peaks):
            return None
        return Outcome(Verdict.BLOCKED, say("blocked.memory_held", stage=last.stage))

    def _end(self, stage: AnyStage, outcome: Outcome, started: float) -> None:
        ended = StageEnded(
            at=now(),
            stage=stage,
            verdict=outcome.verdict,
            explanation=outcome.explanation,
            seconds=round(time.monotonic() - started, 3),
            checks=outcome.checks,
            given_up=outcome.given_up,
        )
        self.journal.append(ended)
        self.console.line(f"{stage} {outcome.verdict}: {outcome.explanation}")
        self._tell(self.journal.record())


def newest_of_session(record: Record) -> Attempt | None:
    """The attempt that the record's newest session began last."""
    since = record.sessions[-1].started_at if record.sessions else ""
    newest = (result.newest_attempt for result in record.results.values())
    own = (attempt for attempt in newest if attempt is not None and attempt.started_at >= since)
    return max(own, key=lambda attempt: attempt.started_at, default=None)
