"""What a training stage trains on: its rows, where its output goes, and what its script can be asked for.

Goes out: for a model and settings, the attempt to ask for and the evidence that it left. At which settings, and what
its end leads to, is for `training` and the trainings beside H-2 to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steph.base.terms import AnyStage, ExtendedId, StageId
from steph.conduct.attempts import Finished, Request
from steph.conduct.preparation import Setup
from steph.conduct.side_commands import script_flags, side_folder, training_rows
from steph.conduct.stage_run import Run
from steph.contract.answers import AnswerLoss, RowLengths, row_lengths
from steph.contract.commands import MAX_STEPS_FLAG, TRAIN_FILE_FLAG, folder_beside, train_command
from steph.judge.base_model import has_random_weights
from steph.judge.evidence import TrainEvidence
from steph.judge.witness import read_witness
from steph.plan.steps import steps_per_epoch
from steph.record.environment import Device
from steph.record.events import DataRead, RungSkipped
from steph.record.settings import TrainSettings
from steph.record.values import DataFile, ModelChoice, SkippedRung
from steph.run import inputs
from steph.run.journal import now


@dataclass(frozen=True)
class Course:
    """What stays the same over a stage's trainings; `output_dir` is from the pipeline root.

    `flags`: what the script takes beyond the spec's.
    """

    run: Run
    stage: AnyStage
    train_file: DataFile
    output_dir: str
    flags: frozenset[str]

    @property
    def setup(self) -> Setup:
        """The facts of the run that it belongs to."""
        return self.run.setup

    def request(self, model: ModelChoice, settings: TrainSettings) -> Request:
        """One training at these settings; raises OSError where its rows can't be written."""
        return Request(
            stage=self.stage,
            label=settings.short(),
            argv=self.command(model.name, settings),
            limit_seconds=self.run.left_seconds(self.setup.profile.limits.train_attempt_seconds),
            settings=settings,
            model_name=model.name,
            writes=(self.setup.root / self.output_dir,),
        )

    def evidence(
        self, finished: Finished, model: ModelChoice, settings: TrainSettings, loss: AnswerLoss | None = None
    ) -> TrainEvidence:
        """What the judge is given of one that ended well; `loss`: the answers that its length cut off."""
        return TrainEvidence(
            output_dir=self.setup.root / self.output_dir,
            output_dir_name=self.output_dir,
            settings=settings,
            model_name=model.name,
            train_rows=self.rows_trained(settings),
            stdout=finished.stdout,
            output=finished.output,
            returncode=finished.attempt.returncode,
            attempt_started_unix=finished.started_unix,
            line_arrivals=finished.outcome.timed_lines,
            lost_answers=(loss.lost_rows, loss.rows) if loss else None,
            card=finished.card_memory(self.setup.device),
            base_tokenizer=_tokenizer_of(model),
            base_folder=_tokenizer_of(model).parent,
            seconds=finished.attempt.seconds,
            attempt_ended_unix=finished.ended_unix,
            output_place=next(iter(finished.places), None),
            inputs=tuple((self.setup.root / file.path, file.sha256) for file in (self.setup.dataset, self.train_file)),
            random_weights=self.setup.context.twin or has_random_weights(model.name, _tokenizer_of(model).parent),
            rehearsal=self.setup.is_rehearsal,
            witness=read_witness(finished.folder),
            train_file=_train_file_in(finished.attempt.argv, self.setup.root),
            description=self.setup.description,
        )

    def command(self, model_name: str, settings: TrainSettings) -> tuple[str, ...]:
        """The command that trains at these settings, kept within `max_steps` by its flag or else by fewer rows."""
        train_file, has_flag = self.train_file.path, MAX_STEPS_FLAG in self.flags
        is_too_long = self._is_too_long(settings)
        if is_too_long and not has_flag:
            subset = side_folder(self.run, "subset") / Path(train_file).name
            inputs.write_subset(self.setup.root, train_file, self.rows_trained(settings), subset)
            train_file = str(subset)
        return train_command(
            self.setup.python,
            self.setup.description,
            model_name,
            train_file,
            settings,
            cap_steps=is_too_long and has_flag,
            output_dir=self.output_dir,
        )

    def rows_trained(self, settings: TrainSettings) -> int:
        """All rows, or the first ones where only fewer rows keep the script within `max_steps`."""
        if MAX_STEPS_FLAG in self.flags or not self._is_too_long(settings):
            return self.train_file.rows
        steps_an_epoch = max(1, settings.max_steps // settings.num_epochs)
        return min(self.train_file.rows, steps_an_epoch * settings.effective_batch_size)

    def row_lengths(self, model: ModelChoice, settings: TrainSettings) -> RowLengths | None:
        """How long the rows are that these settings train on; None, and said once, where they can't be counted."""
        tokenizer = _tokenizer_of(model)
        if not tokenizer.is_file():
            return None
        path, rows = self.setup.root / self.train_file.path, self.rows_trained(settings)
        try:
            return row_lengths(path, tokenizer, self.setup.description.truncation, first_rows=rows)
        except (ValueError, OSError) as error:  # a tokenizer newer than this suite's library: as where there is none
            self.run.console.line_once(f"{self.stage} answers not counted: {error}")
            return None

    def note_skipped(self, label: str, reason: str) -> None:
        """Say and journal that one of these trainings is not tried, and why (Japanese)."""
        self.run.console.line(f"{self.stage} {label}: {reason}")
        skipped = SkippedRung(label=label, reason=reason)
        self.run.journal.append(RungSkipped(at=now(), stage=self.stage, skipped=skipped))

    def _is_too_long(self, settings: TrainSettings) -> bool:
        return steps_per_epoch(self.train_file.rows, settings) * settings.num_epochs > settings.max_steps


def open_course(run: Run, stage: AnyStage = StageId.H2) -> Course:
    """Build the stage's rows where they must be, read and journal them, and ask the script for its flags.

    Raises InputError for rows that can't be built or read.
    """
    paths = run.setup.description.paths
    if stage is ExtendedId.COT_TRAINING:
        train_file, output_dir = training_rows(run, paths.train_file_cot, "cot"), folder_beside(paths.output_dir, "cot")
    else:
        train_file, output_dir = training_rows(run, paths.train_file, "direct"), paths.output_dir
    read = (run.setup.dataset, train_file)
    others = [file for file in run.journal.record().data if file.role not in {new.role for new in read}]
    run.journal.append(DataRead(at=now(), data=(*read, *others)))
    return Course(run, stage, train_file, output_dir, script_flags(run))


def half_precision_of(device: Device | None) -> Literal["bf16", "fp16"]:
    """The half precision of a card: fp16 where its compute capability is known and too low for bf16."""
    return "fp16" if device is not None and device.has_bf16 is False else "bf16"


def _tokenizer_of(model: ModelChoice) -> Path:
    return Path(model.snapshot_path or model.name) / "tokenizer.json"


def _train_file_in(argv: Sequence[str], root: Path) -> Path | None:
    """The rows that a command trains on: the stage's own, or the fewer ones that were written for it."""
    at = argv.index(TRAIN_FILE_FLAG) + 1 if TRAIN_FILE_FLAG in argv else len(argv)
    return root / argv[at] if at < len(argv) else None
