"""One training step without 4-bit and with the loss on the output only: what was asked for is what was done, or not.

A pipeline may quantise whether asked or not, and its flag for the loss may do nothing; both pass any other stage. The
witness says which layers were quantised and which tokens carried a label.
"""

from __future__ import annotations

from steph.base.messages import say
from steph.base.terms import ExtendedId, Severity, StageId
from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.side_commands import script_flags
from steph.conduct.stage_run import Run
from steph.conduct.training_job import TrainingJob, half_precision_of
from steph.contract.commands import folder_beside
from steph.judge.checks_heart import output_only_check, unquantised_check
from steph.judge.checks_process import process_checks
from steph.judge.checks_witness import training_in
from steph.judge.verdict import Outcome, checks_verdict, passed
from steph.judge.witness import read_witness
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Check, ModelChoice
from steph.run import inputs

STAGE = ExtendedId.ONE_STEP


def take_one_step(run: Run, model: ModelChoice) -> Outcome:
    """Train a single step as H-2 ended, but without 4-bit; what nobody could see is said and is no failure."""
    description, root = run.setup.description, run.setup.root
    # not journalled: what H-2 trained on stays as the record has it
    rows, file = description.train.rows, description.train_file
    rows_file = inputs.read_train_file(root, file, row_format=rows.format) if file else None
    job = TrainingJob(run, STAGE, rows_file, folder_beside(description.output_dir, "step"), script_flags(run))
    settings = _settings(job)
    lengths = job.row_lengths(model, settings)
    plan, call = job.planned(model, settings, lengths, label=f"one step {settings.short()}", output_only=True)

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
    return _outcome(attempt, tuple(found))


def _outcome(attempt: Attempt, found: tuple[Check, ...]) -> Outcome:
    """Red where something was not as asked; with conditions where it did not fit on the card or was not seen."""
    ended = () if attempt.ran_out_of_memory else process_checks(attempt.returncode, "")[:1]
    checks = (*ended, *found)
    conditions = [say("condition.unmeasured", reason=check.message) for check in found if check.holds is None]
    if attempt.ran_out_of_memory:
        conditions.insert(0, say("condition.one_step_oom"))
    hard = any(check.severity is Severity.FAIL for check in checks)
    verdict, explanation = (checks_verdict(checks) if hard else None) or passed(conditions)
    return Outcome(verdict, explanation, checks)


def _settings(job: TrainingJob) -> TrainSettings:
    setup = job.setup
    ended = job.run.journal.record().stages[StageId.H2].last_attempt
    base = ended.settings if ended and isinstance(ended.settings, TrainSettings) else setup.profile.train
    half = base.mixed_precision or (half_precision_of(setup.device) if setup.device else None)
    return base.changed(use_4bit=False, mixed_precision=half, max_steps=1, num_epochs=1, logging_steps=1)
