"""Learnt by heart: eight answers that nobody can know are trained, and asked in fresh processes with and without them.

Whatever is wrong between a row and an answer shows: labels, template, end token, saving, loading, scaling. It goes
through the pipeline's own two programs; questions and rows are written into the record's folder, never into the root.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from steph.base.files import UnreadableError, json_rows, sha256_or_none
from steph.base.messages import NOTHING, Message, say
from steph.base.terms import Cause, ExtendedId, Severity, Verdict
from steph.conduct.attempts import Finished, run_attempt
from steph.conduct.evaluation import Evaluation, Variant
from steph.conduct.side_commands import require_built, script_flags, side_folder
from steph.conduct.stage_run import StageRun
from steph.conduct.training_job import TrainingJob
from steph.contract.commands import build_command, folder_beside
from steph.contract.questions import samples_of
from steph.contract.results import Row
from steph.contract.results_lawqa import read_results
from steph.judge.checks_heart import loss_low_check, remembered_check, unknown_check
from steph.judge.checks_loss import LOSS
from steph.judge.checks_witness import training_in
from steph.judge.verdict import Outcome, checks_verdict, passed
from steph.judge.witness import read_witness
from steph.plan.by_heart import (
    QUESTIONS,
    NoExampleError,
    Secret,
    draw,
    questions_like,
    rows_like,
    settings_by_heart,
    teaches,
)
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Check, DataFile, ModelChoice, StageResult
from steph.run import inputs
from steph.run.inputs import InputError

STAGE = ExtendedId.HEART
WITH, WITHOUT = Variant(STAGE, "heart"), Variant(STAGE, "heart-base", with_adapter=False)
BAD_USAGE = 2  # argparse's exit status


@dataclass(frozen=True)
class Material:
    """What is learnt, and the two files that say it in the pipeline's formats."""

    seed: int
    secrets: tuple[Secret, ...]
    questions: DataFile
    rows: DataFile


def learn_by_heart(run: StageRun, model: ModelChoice) -> Outcome:
    """Train the eight rows and ask for them; where the loss does not get low it is unmeasured, with that reason."""
    try:
        material = make_material(run, side_folder(run, "heart"), drawn_seed())
    except (NoExampleError, InputError) as error:
        return Outcome(Verdict.NOT_RUN, say("heart.no_rows", error=error))
    job = TrainingJob(
        run,
        STAGE,
        material.rows,
        folder_beside(run.setup.description.output_dir, "heart"),
        script_flags(run),
    )
    trained = _train(job, model)
    if not trained.ended_well or trained.training is None:
        return Outcome.of_attempt(trained)
    losses = trained.training.losses
    rate = trained.settings.learning_rate if isinstance(trained.settings, TrainSettings) else 0.0
    low = loss_low_check(losses, len(losses), rate, material.seed)
    checks = (*trained.checks, low)
    broken = checks_verdict(checks)
    if broken:
        return Outcome(*broken, checks)
    if low.holds is None:
        return _unmeasured(low.message, checks)
    return _asked(run, model, material, trained, checks)


def drawn_seed() -> int:
    """Drawn, so that nobody can know the answers; `STEPH_HEART_SEED` repeats a run's. Raises InputError."""
    given = os.environ.get("STEPH_HEART_SEED", "")
    if given and not given.isdecimal():
        raise InputError(say("input.heart_seed", given=repr(given)))
    return int(given) if given else secrets.randbits(32)


def _asked(
    run: StageRun, model: ModelChoice, material: Material, trained: Attempt, checks: tuple[Check, ...]
) -> Outcome:
    """Both evaluations, judged by the letters that were drawn."""
    profile = run.setup.profile
    asks = profile.evaluate.changed(samples=QUESTIONS, use_rag=False, use_cot=False)
    setup = replace(run.setup, dataset=material.questions, profile=profile.changed(evaluate=asks))
    result = StageResult(stage=STAGE, verdict=Verdict.PASS, explanation=NOTHING, started_at="", attempts=(trained,))
    evaluation = Evaluation(replace(run, setup=setup), model, result)
    losses = trained.training.losses if trained.training else ()
    supervised = _supervised(run.journal.folder / trained.folder)
    beside: tuple[Row, ...] | None = None
    for variant in (WITH, WITHOUT):
        if run.is_out_of_time:
            return Outcome(Verdict.TIMEOUT, say("stage.out_of_time", stage=STAGE), checks)
        outcome = evaluation.evaluate(variant, beside)
        attempt = run.journal.record().results[STAGE].last_attempt
        if outcome.verdict is Verdict.BLOCKED or attempt is None:
            return outcome
        if not attempt.ended_well:
            return _refused(attempt, checks) or outcome
        rows = _rows(setup.root, attempt)
        heart = (
            remembered_check(rows, material.secrets, losses, supervised)
            if variant is WITH
            else unknown_check(rows, material.secrets)
        )
        if heart.holds is None and rows is not None:
            return _unmeasured(heart.message, (*checks, heart))
        checks = _merged((*checks, *_hard(attempt.checks), heart))
        beside = rows
    verdict, explanation = checks_verdict(checks) or passed(())
    return Outcome(verdict, explanation, checks)


def _refused(attempt: Attempt, checks: tuple[Check, ...]) -> Outcome | None:
    """An evaluation that answered its own questions in H-3 and does not take these; None where it failed otherwise."""
    cause = attempt.diagnosis.cause if attempt.diagnosis else None
    if attempt.returncode != BAD_USAGE and cause is not Cause.BAD_DATA:
        return None
    return _unmeasured(say("condition.refused", code=attempt.returncode), checks)


def _unmeasured(reason: Message, checks: tuple[Check, ...]) -> Outcome:
    verdict, explanation = passed((say("condition.heart_unmeasured", reason=reason),))
    return Outcome(verdict, explanation, checks)


def make_material(run: StageRun, folder: Path, seed: int) -> Material:
    """Draw the questions and write them and their rows into `folder`.

    Raises NoExampleError or InputError where the pipeline's formats can't be told or its builder fails.
    """
    drawn = draw(seed)
    description = run.setup.description
    if run.setup.dataset is None or description.train_file is None:
        raise NoExampleError(say("heart.no_files"))
    if description.evaluate.results.format != "lawqa" or description.train.rows.format != "input_output":
        raise NoExampleError(say("heart.not_lawqa"))
    samples = samples_of(run.setup.root / run.setup.dataset.path, named=True)
    questions = questions_like(samples[0], drawn)
    asked, taught = folder / "selection.json", folder / "rows.jsonl"
    _write(folder / "drawn.json", {"seed": seed, "letters": [secret.letter for secret in drawn]})
    _write(asked, {"samples": questions})
    if description.build is not None:
        values = {"dataset": str(asked), "train_file": str(taught), "mode": "direct", "samples": "0"}
        require_built(run, build_command(run.setup.python, description.build.command, values), folder, str(taught))
    else:
        example = next(iter(json_rows(run.setup.root / description.train_file)), {})
        rows = rows_like(example, samples, questions)
        taught.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    rows_file = inputs.read_train_file(folder, taught.name)
    if not _teach(taught, drawn):
        raise NoExampleError(say("heart.not_taught", path=taught))
    dataset = DataFile(role="dataset", path=str(asked), sha256=sha256_or_none(asked) or "", rows=QUESTIONS)
    return Material(seed, drawn, dataset, rows_file.changed(path=str(taught)))


def _teach(path: Path, drawn: tuple[Secret, ...]) -> bool:
    rows = list(json_rows(path))
    return len(rows) == len(drawn) and all(any(teaches(row, secret) for row in rows) for secret in drawn)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _train(job: TrainingJob, model: ModelChoice) -> Attempt:
    """Train at the settings that H-2 ended on, at the profile's rate; its losses are judged apart."""
    heart = job.setup.profile.by_heart
    base = job.settings_of_h2
    lengths = job.row_lengths(model, base)
    settings = settings_by_heart(
        base,
        learning_rate=heart.learning_rate,
        max_steps=heart.max_steps,
        longest_row=lengths.longest if lengths else None,
    )
    plan, call = job.planned(
        model, settings, lengths, label=say("attempt.by_heart", settings=settings.short()), output_only=True
    )

    def judge(finished: Finished) -> Attempt:
        attempt = job.judged(finished, model, settings)
        return attempt.changed(checks=_hard(attempt.checks))

    return run_attempt(job.run, plan, call, judge)


def _hard(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """What must hold of any run; how the loss goes at this rate, and how good the answers are, is judged apart."""
    of_loss = {kind.id for kind in LOSS}
    return tuple(check for check in checks if check.severity is Severity.FAIL and check.id not in of_loss)


def _merged(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """One check of each id, the worst of several runs."""
    order = {False: 0, None: 1, True: 2}
    worst: dict[str, Check] = {}
    for check in checks:
        known = worst.get(check.id)
        worst[check.id] = check if known is None or order[check.holds] < order[known.holds] else known
    return tuple(worst.values())


def _rows(root: Path, attempt: Attempt) -> tuple[Row, ...] | None:
    """What was answered; None where the results can't be read, which is a finding of its own."""
    written = attempt.evaluation.output_path if attempt.evaluation else None
    try:
        return read_results(root / written).results if written else None
    except UnreadableError:
        return None


def _supervised(folder: Path) -> int | None:
    """The most labels that a row carried, where that was seen."""
    seen = training_in(read_witness(folder))
    return max((count for batch in seen.batches for count in batch.supervised or ()), default=None) if seen else None
