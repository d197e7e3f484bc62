"""Runs stages, the spec's three and those beyond, each within its time, and journals each one's verdict.

Beyond: CoT, retrieval, the base model, one step without 4-bit, answers learnt by heart. The single step takes the loss
on the output only. A pipeline may quantise whether asked or not, and its flag for the loss may do nothing; both pass
any other stage. The witness says which layers were quantised and which tokens carried a label.

By heart, eight answers that nobody can know are trained, and asked for in fresh processes with and without the adapter.
Whatever is wrong between a row and an answer shows: labels, template, end token, saving, loading, scaling. Questions
and rows are written into the record's folder, never into the pipeline's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from steph.base.files import UnreadableError, json_rows, sha256_or_none
from steph.base.messages import NOTHING, Message, say
from steph.base.terms import NEEDS, AnyStage, Cause, ExtendedId, Severity, StageId, Verdict
from steph.base.text import one_line
from steph.conduct.attempts import Finished, require_built, run_attempt, script_flags, side_folder
from steph.conduct.jobs import DIRECT, Evaluation, TrainingJob, Variant, half_precision_of, open_job
from steph.conduct.models import NoModel, choose_model, model_checks, model_trouble, predicted_candidates
from steph.conduct.preparation import Console, Setup, StageRun
from steph.conduct.training import calibrate, walk_ladder
from steph.contract.commands import build_command, folder_beside, passed_names
from steph.contract.description import Description, EvaluateWhen
from steph.contract.questions import samples_of
from steph.contract.results import Row
from steph.contract.results_files import read_results
from steph.judge import checks_extended
from steph.judge.checks_figures import LOSS
from steph.judge.checks_process import process_checks
from steph.judge.checks_setup import training_in
from steph.judge.evidence import results_form
from steph.judge.verdict import Outcome, checks_verdict, passed
from steph.judge.witness import read_witness
from steph.record.events import CandidatesPredicted, ModelChosen, StageEnded, StageStarted
from steph.record.settings import DataFile, TrainSettings
from steph.record.values import Attempt, Check, ModelChoice, Record, StageResult
from steph.run import inputs
from steph.run.inputs import InputError
from steph.run.journal import Journal, now
from steph.run.runner import RunnerError, is_back

STAGE = ExtendedId.HEART
WITH, WITHOUT = Variant(STAGE, "heart"), Variant(STAGE, "heart-base", with_adapter=False)
BAD_USAGE = 2  # argparse's exit status
_RANK = {False: 0, None: 1, True: 2}


@dataclass(frozen=True)
class Material:
    """What is learnt, and the two files that say it in the pipeline's formats."""

    seed: int
    secrets: tuple[checks_extended.Secret, ...]
    questions: DataFile
    rows: DataFile


def learn_by_heart(run: StageRun, model: ModelChoice) -> Outcome:
    """Train the eight rows and ask for them; where the loss does not get low it is unmeasured, with that reason."""
    try:
        material = make_material(run, side_folder(run, "heart"), drawn_seed())
    except (checks_extended.NoExampleError, InputError) as error:
        return Outcome(Verdict.NOT_RUN, say("heart.no_rows", error=error))
    output_dir = folder_beside(run.setup.description.output_dir, "heart")
    trained = _train(TrainingJob(run, STAGE, material.rows, output_dir, script_flags(run)), model)
    if not trained.ended_well or trained.training is None:
        return Outcome.of_attempt(trained)
    losses = trained.training.losses
    rate = trained.settings.learning_rate if isinstance(trained.settings, TrainSettings) else 0.0
    low = checks_extended.loss_low_check(losses, len(losses), rate, material.seed)
    checks = (*trained.checks, low)
    broken = checks_verdict(checks)
    if broken:
        return Outcome(*broken, checks)
    if low.holds is None:
        return _unmeasured(low.message, checks)
    return _ask_twice(run, model, material, trained, checks)


def drawn_seed() -> int:
    """Drawn, so that nobody can know the answers; `STEPH_HEART_SEED` repeats a run's. Raises InputError."""
    given = os.environ.get("STEPH_HEART_SEED", "")
    if given and not given.isdecimal():
        raise InputError(say("input.heart_seed", given=repr(given)))
    return int(given) if given else secrets.randbits(32)


def _ask_twice(
    run: StageRun, model: ModelChoice, material: Material, trained: Attempt, checks: tuple[Check, ...]
) -> Outcome:
    """Both evaluations, judged by the letters that were drawn."""
    profile = run.setup.profile
    asks = profile.evaluate.changed(samples=checks_extended.QUESTIONS, use_rag=False, use_cot=False)
    setup = replace(run.setup, dataset=material.questions, profile=profile.changed(evaluate=asks))
    result = StageResult(stage=STAGE, verdict=Verdict.PASS, explanation=NOTHING, started_at="", attempts=(trained,))
    evaluation = Evaluation(replace(run, setup=setup), model, result)
    losses = trained.training.losses if trained.training else ()
    seen = training_in(read_witness(run.journal.folder / trained.folder))
    counts = [count for batch in seen.batches for count in batch.supervised or ()] if seen else []
    most = max(counts, default=None)  # labels that a row carried
    rows_with: tuple[Row, ...] | None = None
    for variant in (WITH, WITHOUT):
        if run.is_out_of_time:
            return Outcome(Verdict.TIMEOUT, say("stage.out_of_time", stage=STAGE), checks)
        outcome = evaluation.evaluate(variant, rows_with)
        attempt = run.journal.record().results[STAGE].last_attempt
        if outcome.verdict is Verdict.BLOCKED or attempt is None:
            return outcome
        if not attempt.ended_well:  # one that answered its own questions in H-3 may not take these
            cause = attempt.diagnosis.cause if attempt.diagnosis else None
            is_refused = attempt.returncode == BAD_USAGE or cause is Cause.BAD_DATA
            return _unmeasured(say("condition.refused", code=attempt.returncode), checks) if is_refused else outcome
        rows = None  # where the results can't be read, which is a finding of its own
        if attempt.evaluation and attempt.evaluation.output_path:
            with contextlib.suppress(UnreadableError):
                rows = rows_of(setup.root, attempt.evaluation.output_path, setup.description, variant)
        if variant is WITH:
            heart = checks_extended.remembered_check(rows, material.secrets, losses, most)
        else:
            heart = checks_extended.unknown_check(rows, material.secrets)
        if heart.holds is None and rows is not None:
            return _unmeasured(heart.message, (*checks, heart))
        worst: dict[str, Check] = {}  # one check of each id, the worst of several runs
        for check in (*checks, *_hard(attempt.checks), heart):
            known = worst.get(check.id)
            worst[check.id] = check if known is None or _RANK[check.holds] < _RANK[known.holds] else known
        checks = tuple(worst.values())
        rows_with = rows
    verdict, explanation = checks_verdict(checks) or passed(())
    return Outcome(verdict, explanation, checks)


def _unmeasured(reason: Message, checks: tuple[Check, ...]) -> Outcome:
    verdict, explanation = passed((say("condition.heart_unmeasured", reason=reason),))
    return Outcome(verdict, explanation, checks)


def make_material(run: StageRun, folder: Path, seed: int) -> Material:
    """Draw the questions, write them and their rows into `folder`; raises NoExampleError or InputError."""
    drawn = checks_extended.draw(seed)
    description = run.setup.description
    if run.setup.dataset is None or description.train_file is None:
        raise checks_extended.NoExampleError(say("heart.no_files"))
    if description.evaluate.results.format != "lawqa" or description.train.rows.format != "input_output":
        raise checks_extended.NoExampleError(say("heart.not_lawqa"))
    samples = samples_of(run.setup.root / run.setup.dataset.path, named=True)
    questions = checks_extended.questions_like(samples[0], drawn)
    asked, taught = folder / "selection.json", folder / "rows.jsonl"
    letters = {"seed": seed, "letters": [secret.letter for secret in drawn]}
    for path, content in ((folder / "drawn.json", letters), (asked, {"samples": questions})):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    if description.build is not None:
        values = {"dataset": str(asked), "train_file": str(taught), "mode": "direct", "samples": "0"}
        require_built(run, build_command(run.setup.python, description.build.command, values), folder, str(taught))
    else:
        example = next(iter(json_rows(run.setup.root / description.train_file)), {})
        made = checks_extended.rows_like(example, samples, questions)
        taught.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    rows_file = inputs.read_train_file(folder, taught.name)
    rows = list(json_rows(taught))
    if len(rows) != len(drawn) or not all(
        any(checks_extended.teaches(row, secret) for row in rows) for secret in drawn
    ):
        raise checks_extended.NoExampleError(say("heart.not_taught", path=taught))
    dataset = DataFile(
        role="dataset", path=str(asked), sha256=sha256_or_none(asked) or "", rows=checks_extended.QUESTIONS
    )
    return Material(seed, drawn, dataset, rows_file.changed(path=str(taught)))


def _train(job: TrainingJob, model: ModelChoice) -> Attempt:
    """Train at the settings that H-2 ended on, at the profile's rate; its losses are judged apart."""
    heart = job.setup.profile.by_heart
    base = job.settings_of_h2
    lengths = job.row_lengths(model, base)
    settings = checks_extended.settings_by_heart(
        base,
        learning_rate=heart.learning_rate,
        max_steps=heart.max_steps,
        longest_row=lengths.longest_tokens if lengths else None,
    )
    plan, call = job.planned(
        model, settings, lengths, label=say("attempt.by_heart", settings=settings.short()), output_only=True
    )

    def judge(finished: Finished) -> Attempt:
        attempt = job.judged(finished, model, settings)
        return attempt.changed(checks=_hard(attempt.checks))

    return run_attempt(job.run, plan, call, judge)


def _hard(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """The checks that must hold of any run; the loss at this rate and the answers' quality are judged apart."""
    of_loss = {kind.id for kind in LOSS}
    return tuple(check for check in checks if check.severity is Severity.FAIL and check.id not in of_loss)


COT = Variant(ExtendedId.COT, "cot", use_cot=True)
RAG = Variant(ExtendedId.RAG, "rag", use_rag=True)
BASE = Variant(ExtendedId.BASE, "base", with_adapter=False)


def run_extended(run: StageRun, stage: AnyStage, model: ModelChoice) -> Outcome:
    """Run one extended stage; what it needs is green in the record."""
    record = run.journal.record()
    if reason := _ruled_out(run.setup.description, stage):
        return Outcome(Verdict.NOT_RUN, say("extended.not_described", key=reason))
    match stage:
        case ExtendedId.COT_TRAINING:
            return train_on_cot(run, model)
        case ExtendedId.ONE_STEP:
            return take_one_step(run, model)
        case ExtendedId.HEART:
            return learn_by_heart(run, model)
    base = ExtendedId.COT_TRAINING if stage is ExtendedId.COT else StageId.H2
    evaluation = Evaluation(run, model, record.results[base])
    if stage is ExtendedId.COT:
        return evaluation.evaluate(COT)
    setup = run.setup
    h3_rows = answers_of_h3(setup.root, record, setup.description)
    if isinstance(h3_rows, Outcome):
        return h3_rows
    if stage is ExtendedId.BASE:
        return evaluation.evaluate(BASE, h3_rows)
    return evaluation.evaluate(RAG, None if setup.profile.evaluate.use_rag else h3_rows)  # else H-3 had passages itself


def _ruled_out(description: Description, stage: AnyStage) -> Message | str | None:
    """What a description lacks that an extended stage needs; None where it lacks nothing."""
    when = description.evaluate.when
    has_cot_rows = (
        "train_script" in passed_names(description.train) or "train_file_cot" in description.paths.model_fields_set
    )
    if stage is ExtendedId.COT_TRAINING and not has_cot_rows:
        return "paths.train_file_cot"
    if stage is ExtendedId.COT and not when.use_cot:
        return "evaluate.when.use_cot"
    if stage is ExtendedId.RAG and not when.use_rag and not when.no_rag:
        return "evaluate.when.use_rag"
    without = passed_names(description.evaluate.changed(when=EvaluateWhen()))
    if stage in (ExtendedId.BASE, ExtendedId.HEART) and "adapter" in without:
        return say("extended.without_adapter")
    return None


def train_on_cot(run: StageRun, model: ModelChoice) -> Outcome:
    """H-2 on CoT rows, from the settings that it ended on; rows that mostly teach no reasoning are not trained on."""
    job = open_job(run, ExtendedId.COT_TRAINING)
    path = run.setup.description.paths.train_file_cot
    check = checks_extended.cot_rows_check(json_rows(run.setup.root / path))
    if check.severity is Severity.FAIL:
        return Outcome(Verdict.FAIL, say("extended.not_trained", path=path, finding=check.message), (check,))
    outcome = walk_ladder(job, model, job.settings_of_h2)
    return replace(outcome, checks=(*outcome.checks, check))


def rows_of(root: Path, path: str, description: Description, variant: Variant = DIRECT) -> tuple[Row, ...]:
    """The rows of a file of results, in the description's format; raises UnreadableError."""
    output = Path(description.output)
    asked = str(output.with_stem(f"{output.stem}-{variant.name}") if variant.name else output)
    return read_results(root, root / path, results_form(description, asked)).results


def answers_of_h3(root: Path, record: Record, description: Description) -> tuple[Row, ...] | Outcome:
    """The rows of H-3's results, as long as they are in the file that H-3 recorded."""
    attempt = record.stages[StageId.H3].last_attempt
    named = attempt.evaluation.output_path if attempt and attempt.evaluation else None
    written = next((artifact for artifact in attempt.artifacts if artifact.path == named), None) if attempt else None
    if written is None:
        return Outcome(Verdict.BLOCKED, say("extended.no_results"))
    path = root / written.path
    if sha256_or_none(path) != written.sha256:
        return Outcome(Verdict.BLOCKED, say("extended.other_results", path=path))
    try:
        return rows_of(root, written.path, description)
    except UnreadableError as error:
        return Outcome(Verdict.BLOCKED, say("extended.unreadable_results", path=path, error=error))


def take_one_step(run: StageRun, model: ModelChoice) -> Outcome:
    """Train a single step as H-2 ended, but without 4-bit; what nobody could see is said and is no failure."""
    description, root = run.setup.description, run.setup.root
    # not journalled: what H-2 trained on stays as the record has it
    rows, file = description.train.rows, description.train_file
    rows_file = inputs.read_train_file(root, file, row_format=rows.format) if file else None
    output_dir = folder_beside(description.output_dir, "step")
    job = TrainingJob(run, ExtendedId.ONE_STEP, rows_file, output_dir, script_flags(run))
    base, device = job.settings_of_h2, run.setup.device
    half = base.mixed_precision or (half_precision_of(device) if device else None)
    settings = base.changed(use_4bit=False, mixed_precision=half, max_steps=1, num_epochs=1, logging_steps=1)
    lengths = job.row_lengths(model, settings)
    plan, call = job.planned(
        model, settings, lengths, label=say("attempt.one_step", settings=settings.short()), output_only=True
    )

    def judge(finished: Finished) -> Attempt:
        return job.judged(finished, model, settings).changed(checks=())  # its own are below

    attempt = run_attempt(run, plan, call, judge)
    if not attempt.ended_well and not attempt.ran_out_of_memory:
        return Outcome.of_attempt(attempt)
    witness = read_witness(run.journal.folder / attempt.folder)
    seen = training_in(witness)
    found = [checks_extended.unquantised_check(witness, seen)]
    if job.takes_output_only:
        found.append(checks_extended.output_only_check(seen, lengths.longest_answer_tokens if lengths else None))
    ended = () if attempt.ran_out_of_memory else process_checks(attempt.returncode, "")[:1]
    checks = (*ended, *found)
    conditions = [say("condition.unmeasured", reason=check.message) for check in found if check.holds is None]
    if attempt.ran_out_of_memory:
        conditions.insert(0, say("condition.one_step_oom"))
    hard = any(check.severity is Severity.FAIL for check in checks)
    verdict, explanation = (checks_verdict(checks) if hard else None) or passed(conditions)
    return Outcome(verdict, explanation, checks)


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
        # of whatever stage of this session: the card must not hold its memory any more
        since = record.sessions[-1].started_at if record.sessions else ""
        newest = (result.newest_attempt for result in record.results.values())
        own = (attempt for attempt in newest if attempt is not None and attempt.started_at >= since)
        last = max(own, key=lambda attempt: attempt.started_at, default=None)
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
