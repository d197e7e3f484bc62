"""The stages beyond the spec's three: CoT, retrieval, the base model, a step without 4-bit, answers learnt by heart.

The single step takes the loss on the output only: what was asked for is what was done, or not. A pipeline may quantise
whether asked or not, and its flag for the loss may do nothing; both pass any other stage. The witness says which layers
were quantised and which tokens carried a label.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steph.base.files import UnreadableError, json_rows, sha256_or_none
from steph.base.messages import Message, say
from steph.base.terms import AnyStage, ExtendedId, Severity, StageId, Verdict
from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.by_heart import learn_by_heart
from steph.conduct.evaluation import Evaluation, Variant
from steph.conduct.side_commands import script_flags
from steph.conduct.stage_run import StageRun
from steph.conduct.training import Training
from steph.conduct.training_job import TrainingJob, half_precision_of, open_job
from steph.contract import asked
from steph.contract.commands import folder_beside
from steph.contract.description import Description, EvaluateWhen
from steph.contract.results import Row
from steph.contract.results_lawqa import read_results
from steph.judge.checks_extended import cot_rows_check
from steph.judge.checks_heart import output_only_check, unquantised_check
from steph.judge.checks_process import process_checks
from steph.judge.checks_witness import training_in
from steph.judge.verdict import Outcome, checks_verdict, passed
from steph.judge.witness import read_witness
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Check, ModelChoice, Record
from steph.run import inputs

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
            return _train_on_cot(run, model)
        case ExtendedId.ONE_STEP:
            return take_one_step(run, model)
        case ExtendedId.HEART:
            return learn_by_heart(run, model)
    base = ExtendedId.COT_TRAINING if stage is ExtendedId.COT else StageId.H2
    evaluation = Evaluation(run, model, record.results[base])
    if stage is ExtendedId.COT:
        return evaluation.evaluate(COT)
    setup = run.setup
    beside = answers_of_h3(setup.root, record)
    if isinstance(beside, Outcome):
        return beside
    if stage is ExtendedId.BASE:
        return evaluation.evaluate(BASE, beside)
    return evaluation.evaluate(RAG, None if setup.profile.evaluate.use_rag else beside)  # else H-3 had passages itself


def _ruled_out(description: Description, stage: AnyStage) -> Message | str | None:
    """What a description lacks that an extended stage needs; None where it lacks nothing."""
    when = description.evaluate.when
    has_cot_rows = (
        "train_script" in asked.passed(description.train) or "train_file_cot" in description.paths.model_fields_set
    )
    if stage is ExtendedId.COT_TRAINING and not has_cot_rows:
        return "paths.train_file_cot"
    if stage is ExtendedId.COT and not when.use_cot:
        return "evaluate.when.use_cot"
    if stage is ExtendedId.RAG and not when.use_rag and not when.no_rag:
        return "evaluate.when.use_rag"
    without = asked.passed(description.evaluate.changed(when=EvaluateWhen()))
    if stage in (ExtendedId.BASE, ExtendedId.HEART) and "adapter" in without:
        return say("extended.without_adapter")
    return None


def _train_on_cot(run: StageRun, model: ModelChoice) -> Outcome:
    """H-2 on CoT rows, from the settings that it ended on; rows that mostly teach no reasoning are not trained on."""
    job = open_job(run, ExtendedId.COT_TRAINING)
    path = run.setup.description.paths.train_file_cot
    check = cot_rows_check(json_rows(run.setup.root / path))
    if check.severity is Severity.FAIL:
        return Outcome(Verdict.FAIL, say("extended.not_trained", path=path, finding=check.message), (check,))
    last = run.journal.record().stages[StageId.H2].last_attempt
    start = last.settings if last and isinstance(last.settings, TrainSettings) else None
    outcome = Training(job).walk(model, start)
    return replace(outcome, checks=(*outcome.checks, check))


def answers_of_h3(root: Path, record: Record) -> tuple[Row, ...] | Outcome:
    """The rows of H-3's JSON, as long as it is the file that H-3 recorded."""
    attempt = record.stages[StageId.H3].last_attempt
    named = attempt.evaluation.output_path if attempt and attempt.evaluation else None
    written = next((artifact for artifact in attempt.artifacts if artifact.path == named), None) if attempt else None
    if written is None:
        return Outcome(Verdict.BLOCKED, say("extended.no_results"))
    path = root / written.path
    if sha256_or_none(path) != written.sha256:
        return Outcome(Verdict.BLOCKED, say("extended.other_results", path=path))
    try:
        return read_results(path).results
    except UnreadableError as error:
        return Outcome(Verdict.BLOCKED, say("extended.unreadable_results", path=path, error=error))


def take_one_step(run: StageRun, model: ModelChoice) -> Outcome:
    """Train a single step as H-2 ended, but without 4-bit; what nobody could see is said and is no failure."""
    description, root = run.setup.description, run.setup.root
    # not journalled: what H-2 trained on stays as the record has it
    rows, file = description.train.rows, description.train_file
    rows_file = inputs.read_train_file(root, file, row_format=rows.format) if file else None
    job = TrainingJob(
        run, ExtendedId.ONE_STEP, rows_file, folder_beside(description.output_dir, "step"), script_flags(run)
    )
    settings = _step_settings(job)
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
    found = [unquantised_check(witness, seen)]
    if job.takes_output_only:
        found.append(output_only_check(seen, lengths.longest_answer if lengths else None))
    return _step_outcome(attempt, tuple(found))


def _step_outcome(attempt: Attempt, found: tuple[Check, ...]) -> Outcome:
    """Red where something was not as asked; with conditions where it did not fit on the card or was not seen."""
    ended = () if attempt.ran_out_of_memory else process_checks(attempt.returncode, "")[:1]
    checks = (*ended, *found)
    conditions = [say("condition.unmeasured", reason=check.message) for check in found if check.holds is None]
    if attempt.ran_out_of_memory:
        conditions.insert(0, say("condition.one_step_oom"))
    hard = any(check.severity is Severity.FAIL for check in checks)
    verdict, explanation = (checks_verdict(checks) if hard else None) or passed(conditions)
    return Outcome(verdict, explanation, checks)


def _step_settings(job: TrainingJob) -> TrainSettings:
    base, device = job.settings_of_h2, job.setup.device
    half = base.mixed_precision or (half_precision_of(device) if device else None)
    return base.changed(use_4bit=False, mixed_precision=half, max_steps=1, num_epochs=1, logging_steps=1)
