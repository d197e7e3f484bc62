"""A training stage: the script down the ladder, until an attempt stands or nothing is left to try."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from steph.conduct.attempts import Finished, Request, run_attempt
from steph.conduct.console import Console
from steph.conduct.models import smaller_model
from steph.conduct.prediction import Expectation, expected, with_prediction, worth_trying
from steph.conduct.preparation import Setup
from steph.conduct.side_commands import run_side_command, side_folder, training_rows
from steph.judge.checks_process import machine_checks
from steph.judge.checks_train import ANSWERS_KEPT, judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.outcome import Outcome
from steph.plan.answers import AnswerLoss, RowLengths, row_lengths
from steph.plan.commands import MAX_STEPS_FLAG, train_command
from steph.plan.ladder import MoveKind, epoch_steps, given_up, ladder_without_4bit, next_move, settings_at
from steph.plan.settings import Rung
from steph.record import (
    AnyStage,
    Attempt,
    Device,
    Diagnosis,
    ModelChoice,
    Severity,
    SkippedRung,
    StageId,
    TrainSettings,
    Verdict,
)
from steph.run import inputs, output
from steph.run.events import DataRead, ModelChosen, RungSkipped
from steph.run.journal import Journal, now

MIN_ATTEMPT_SECONDS = 5.0
BF16_SINCE = 8  # major compute capability of the first cards with bf16 in hardware


@dataclass(frozen=True)
class Course:
    """What a training stage trains on, and where its output goes; paths from the pipeline root."""

    stage: AnyStage
    mode: Literal["direct", "cot"]
    train_file: str
    output_dir: str


@dataclass(frozen=True)
class Walk:
    """Where on the ladder a stage stands; `half` is what the card trains in without 4-bit."""

    model: ModelChoice
    base: TrainSettings
    ladder: tuple[Rung, ...]
    rung: int = 0
    skipped: frozenset[int] = frozenset()
    smaller_model: str | None = None  # taken in the place of the record's
    half: Literal["bf16", "fp16"] = "bf16"

    @property
    def settings(self) -> TrainSettings:
        """The settings of this rung, without the changes of skipped ones."""
        return settings_at(self.base, self.ladder, self.rung, skipped=self.skipped, half=self.half)


class Training:
    """One training stage, H-2 where no other course is given: what stays the same over its attempts."""

    def __init__(
        self, setup: Setup, journal: Journal, console: Console, deadline: float, course: Course | None = None
    ) -> None:
        paths = setup.description.paths
        self.setup = setup
        self.journal = journal
        self.console = console
        self.deadline = deadline
        self.course = course or Course(StageId.H2, "direct", paths.train_file, paths.output_dir)
        self.train_file = training_rows(setup, journal, console, deadline, self.course.train_file, self.course.mode)
        read = (setup.dataset, self.train_file)
        others = [file for file in journal.record().data if file.role not in {new.role for new in read}]
        journal.append(DataRead(at=now(), data=(*read, *others)))
        self.can_cap_steps = self.knows_flag(MAX_STEPS_FLAG)
        self._uncounted = ""  # the last line about rows that can't be counted

    def run(self, model: ModelChoice, start: TrainSettings | None = None) -> Outcome:
        """Walk the ladder; the outcome is that of the last attempt, with what was given up on the way.

        `start`: settings that are known to work, from which the walk goes on.
        """
        walk: Walk | None = self._first_walk(model, start)
        last: Attempt | None = None
        meaningless: list[tuple[AnswerLoss, TrainSettings]] = []
        too_large: Expectation | None = None
        while walk is not None:
            loss = self._answers_lost(walk)
            if loss is not None and loss.lost_rows * 2 > loss.rows:
                meaningless.append((loss, walk.settings))
                walk = self._skip(walk, loss)
                continue
            expectation = self._expected(walk, loss)
            if expectation and self._is_hopeless(expectation, walk.settings, last):
                walk = self._skip_predicted(walk, expectation, last)
                too_large = expectation
                continue
            left = self.deadline - time.monotonic()
            if left < MIN_ATTEMPT_SECONDS:
                return Outcome(
                    Verdict.TIMEOUT, f"{self.course.stage}の制限時間を使い切った", last.checks if last else ()
                )
            last = self._attempt(walk, loss, left, expectation)
            if last.returncode == 0 or last.diagnosis is None:
                return Outcome.of_attempt(last, (), self._conditions(walk))
            walk = self._step_down(walk, last.diagnosis)
        if last is not None:
            return Outcome.of_attempt(last)
        if too_large is not None:
            return Outcome(Verdict.FAIL, f"載る設定がない: {too_large.words()}。--steph-no-predict で全段を試せる")
        return no_rung_keeps_the_answers(meaningless)

    def _first_walk(self, model: ModelChoice, start: TrainSettings | None) -> Walk:
        """The rung of these settings, or they alone where they are on no rung, also not on one without 4-bit."""
        profile = self.setup.profile
        top = Walk(model, profile.train, profile.ladder, half=self.half_precision())
        if start is None:
            return top
        ladders = ((top.base, top.ladder), ladder_without_4bit(top.base, top.ladder, top.half))
        rungs = (
            replace(top, base=base, ladder=ladder, rung=rung)
            for base, ladder in ladders
            for rung in range(len(ladder) + 1)
        )
        return next((walk for walk in rungs if walk.settings == start), replace(top, base=start, ladder=()))

    def knows_flag(self, flag: str) -> bool:
        """Whether the training script takes a flag beyond the spec's: its description says so, else its `--help`."""
        known = self.setup.description.optional_flags
        return flag in (self._flags_in_help if known is None else known)

    @cached_property
    def _flags_in_help(self) -> frozenset[str]:
        folder = side_folder(self.journal, "help")
        script = self.setup.description.paths.train_script
        run_side_command(self.setup, (self.setup.python, script, "--help"), folder, self.deadline)
        return frozenset(re.findall(r"--[\w-]+", output.stdout_text(folder)))

    def row_lengths(self, model: ModelChoice, settings: TrainSettings) -> RowLengths | None:
        """How long the rows are that these settings train on; None, and said once, where they can't be counted."""
        tokenizer = Path(model.snapshot_path or model.name) / "tokenizer.json"
        if not tokenizer.is_file():
            return None
        path, rows = self.setup.root / self.train_file.path, self.rows_trained(settings)
        try:
            return row_lengths(path, tokenizer, self.setup.description.truncation, first_rows=rows)
        except (ValueError, OSError) as error:  # a tokenizer newer than this suite's library: as where there is none
            self._say_uncounted(f"{self.course.stage} answers not counted: {error}")
            return None

    def _say_uncounted(self, line: str) -> None:
        if line != self._uncounted:
            self.console.line(line)
        self._uncounted = line

    def _answers_lost(self, walk: Walk) -> AnswerLoss | None:
        rows = self.row_lengths(walk.model, walk.settings)
        return rows.lost_at(walk.settings.max_seq_length) if rows else None

    def _expected(self, walk: Walk, loss: AnswerLoss | None) -> Expectation | None:
        return expected(self.setup, walk.model, walk.settings, loss.longest_tokens if loss else None)

    def _is_hopeless(self, expectation: Expectation, settings: TrainSettings, last: Attempt | None) -> bool:
        gave_up_4bit = self.setup.profile.train.use_4bit and not settings.use_4bit
        return not worth_trying(expectation, last, gave_up_4bit=gave_up_4bit)

    def _attempt(self, walk: Walk, loss: AnswerLoss | None, left: float, expectation: Expectation | None) -> Attempt:
        settings = walk.settings
        argv, rows = self.command(walk.model.name, settings)
        request = Request(
            stage=self.course.stage,
            label=settings.short(),
            argv=argv,
            deadline_seconds=min(left, self.setup.profile.limits.train_attempt_seconds),
            settings=settings,
            model_name=walk.model.name,
            predicted=expectation.likely if expectation else None,
            longest_row_tokens=loss.longest_tokens if loss else None,
            mean_row_tokens=loss.mean_tokens if loss else None,
            writes=(self.setup.root / self.course.output_dir,),
        )

        def judge(finished: Finished) -> Attempt:
            return self._judge(finished, walk, rows, loss)

        return run_attempt(self.setup, self.journal, self.console, request, judge)

    def command(
        self, model_name: str, settings: TrainSettings, output_dir: str | None = None
    ) -> tuple[tuple[str, ...], int]:
        """The command that trains at these settings, kept within `max_steps`, and the rows that it trains on."""
        train_file, rows = self.train_file.path, self.rows_trained(settings)
        too_long = self._is_too_long(settings)
        if too_long and not self.can_cap_steps:
            subset = side_folder(self.journal, "subset") / Path(train_file).name
            inputs.write_subset(self.setup.root, train_file, rows, subset)
            train_file = str(subset)
        argv = train_command(
            self.setup.python,
            self.setup.description,
            model_name,
            train_file,
            settings,
            cap_steps=too_long and self.can_cap_steps,
            output_dir=output_dir or self.course.output_dir,
        )
        return argv, rows

    def rows_trained(self, settings: TrainSettings) -> int:
        """All rows, or the first ones where only fewer rows keep the script within `max_steps`."""
        if self.can_cap_steps or not self._is_too_long(settings):
            return self.train_file.rows
        return max(1, settings.max_steps * settings.effective_batch_size // settings.num_epochs)

    def _is_too_long(self, settings: TrainSettings) -> bool:
        return epoch_steps(self.train_file.rows, settings) * settings.num_epochs > settings.max_steps

    def _judge(self, finished: Finished, walk: Walk, rows: int, loss: AnswerLoss | None) -> Attempt:
        output_dir = self.course.output_dir
        evidence = TrainEvidence(
            output_dir=self.setup.root / output_dir,
            output_dir_name=output_dir,
            settings=walk.settings,
            model_name=walk.model.name,
            train_rows=rows,
            stdout=finished.stdout,
            output=finished.output,
            returncode=finished.attempt.returncode,
            attempt_started_unix=finished.started_unix,
            line_arrivals=finished.outcome.timed_lines,
            lost_answers=(loss.lost_rows, loss.rows) if loss else None,
            card=finished.card_memory(self.setup.device),
            base_tokenizer=Path(walk.model.snapshot_path or walk.model.name) / "tokenizer.json",
            rehearsal=self.setup.is_rehearsal,
        )
        training, checks, artifacts = judge_training(evidence)
        checks = (*checks, *machine_checks(finished.processes(self.setup), finished.stdout))
        return finished.attempt.model_copy(update={"training": training, "checks": checks, "artifacts": artifacts})

    def _skip(self, walk: Walk, loss: AnswerLoss) -> Walk | None:
        reason = f"{loss.rows}行中{loss.lost_rows}行で答えが切り落とされるため、この長さでの学習に意味がない"
        self._note_skip(walk, reason)
        if walk.rung >= len(walk.ladder):
            return None
        return replace(walk, skipped=walk.skipped | {walk.rung}, rung=walk.rung + 1)

    def _skip_predicted(self, walk: Walk, expectation: Expectation, last: Attempt | None) -> Walk | None:
        """The rung below with this one's change kept; below the last a smaller model where nothing was tried."""
        self._note_skip(walk, f"{expectation.words()}のため試さない")
        if walk.rung < len(walk.ladder):
            return replace(walk, rung=walk.rung + 1)
        return self._with_smaller_model(walk) if last is None else None

    def _note_skip(self, walk: Walk, reason: str) -> None:
        skipped = SkippedRung(label=walk.settings.short(), reason=reason)
        self.journal.append(RungSkipped(at=now(), stage=self.course.stage, skipped=skipped))
        self.console.line(f"{self.course.stage} {skipped.label}: {reason}")

    def _step_down(self, walk: Walk, diagnosis: Diagnosis) -> Walk | None:
        move = next_move(diagnosis, walk.rung, walk.ladder)
        self.console.line(f"{self.course.stage} {walk.settings.short()}: {move.reason}")
        match move.kind:
            case MoveKind.NEXT_RUNG:
                return replace(walk, rung=walk.rung + 1)
            case MoveKind.WITHOUT_4BIT:
                base, ladder = ladder_without_4bit(walk.base, walk.ladder, walk.half)
                return replace(walk, base=base, ladder=ladder, rung=0, skipped=frozenset())
            case MoveKind.SMALLER_MODEL:
                return self._with_smaller_model(walk)
            case MoveKind.STOP:
                return None

    def _with_smaller_model(self, walk: Walk) -> Walk | None:
        if self.course.stage is not StageId.H2:  # the record's other stages stand on H-2's model
            return None
        model = smaller_model(self.setup, self.journal, self.console, walk.model, self.deadline)
        if model is None:
            return None
        model = with_prediction(self.setup, model)
        self.journal.append(ModelChosen(at=now(), stage=StageId.H2, model=model))
        return replace(walk, model=model, rung=0, skipped=frozenset(), smaller_model=model.name)

    def half_precision(self) -> Literal["bf16", "fp16"]:
        """What this card can train in without 4-bit."""
        return half_precision_of(self.setup.device)

    def _conditions(self, walk: Walk) -> tuple[str, ...]:
        smaller = (f"より小さいモデル {walk.smaller_model} に変更",) if walk.smaller_model else ()
        return (*given_up(self.setup.profile.train, walk.settings), *smaller)


def half_precision_of(device: Device | None) -> Literal["bf16", "fp16"]:
    """The half precision of a card: fp16 where its compute capability is known and too low for bf16."""
    if device is None or device.compute_capability is None:
        return "bf16"
    return "bf16" if int(device.compute_capability.partition(".")[0]) >= BF16_SINCE else "fp16"


def no_rung_keeps_the_answers(skipped: Sequence[tuple[AnswerLoss, TrainSettings]]) -> Outcome:
    """The outcome where every rung was skipped: the longest one's count, and the length that would keep all answers."""
    loss, settings = max(skipped, key=lambda pair: pair[1].max_seq_length)
    counts = f"max-seq-length {settings.max_seq_length} で {loss.rows} 行中 {loss.lost_rows} 行"
    reason = f"どの設定でも過半数の行で答えが切り落とされる({counts})。全行の答えが残る長さは {loss.fitting_seq_length}"
    return Outcome(
        Verdict.FAIL,
        f"{reason}。学習は行っていない",
        (ANSWERS_KEPT.check(False, f"{reason}。", severity=Severity.FAIL),),
    )
