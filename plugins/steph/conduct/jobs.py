"""Plans, runs and judges one stage's trainings and its evaluation.

Of a training: its rows, its output folder, what its script can be asked for; at which settings, and what its end leads
to, is for `training` and `extended` to say. An evaluation is of an adapter of this record, at the 4-bit setting that
its training ended on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from steph.base.files import sha256_or_none
from steph.base.messages import Message, phrase, say, verbatim
from steph.base.terms import AnyStage, ExtendedId, StageId, Verdict
from steph.conduct.attempts import Finished, build_index, run_attempt, script_flags, side_folder, training_rows
from steph.conduct.preparation import Setup, StageRun, config_template, place_of
from steph.contract import commands
from steph.contract.commands import (
    Call,
    evaluate_call,
    folder_beside,
    passed_names,
    train_call,
    unsaid_settings,
    words_of,
)
from steph.contract.description import TrainWhen
from steph.contract.questions import prompt_template_in, questions_in
from steph.contract.results import Row
from steph.contract.rows import RowLengths, TruncatedAnswers, row_lengths
from steph.contract.training_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from steph.judge.checks_evaluation import adapter_files, judge_evaluation
from steph.judge.checks_process import machine_checks
from steph.judge.checks_training import judge_training
from steph.judge.evidence import EvalEvidence, TrainEvidence, has_random_weights
from steph.judge.verdict import Outcome
from steph.judge.witness import read_witness
from steph.record.events import DataRead, RungSkipped
from steph.record.settings import DataFile, Device, EvalSettings, TrainSettings, steps_due, steps_per_epoch
from steph.record.values import Attempt, ModelChoice, SkippedRung, StageResult, TrainOutcome
from steph.run import inputs
from steph.run.journal import now


@dataclass(frozen=True)
class TrainingJob:
    """All that stays the same over a stage's trainings."""

    run: StageRun
    stage: AnyStage
    train_file: DataFile | None  # None where the program takes its rows from elsewhere
    output_dir: str  # from the pipeline root
    flags: frozenset[str] | None  # what a script of `lawqa` takes beyond the spec's; None of any other program

    @property
    def setup(self) -> Setup:
        """The facts of the run that it belongs to."""
        return self.run.setup

    @property
    def settings_of_h2(self) -> TrainSettings:
        """The settings that H-2 ended on; the profile's where it has no attempt."""
        last = self.run.journal.record().stages[StageId.H2].last_attempt
        return last.settings if last and isinstance(last.settings, TrainSettings) else self.setup.profile.train

    def planned(
        self,
        model: ModelChoice,
        settings: TrainSettings,
        rows: RowLengths | None,
        *,
        label: Message | None = None,
        output_only: bool = False,
    ) -> tuple[Attempt, Call]:
        """One training on `rows`; H-2's tells the production run as well. Raises OSError where rows can't be kept."""
        whole = None
        if self.stage is StageId.H2:
            setup, file, wanted = self.setup, self.train_file, self.setup.profile.production
            files = commands.Files(
                setup.root,
                train_file=file.path if file else None,
                is_alone=file is not None and len(list((setup.root / file.path).parent.iterdir())) == 1,
                dataset=real_dataset(setup),
                template=self._template,
                rows=file.rows if file and not file.is_sample else None,
            )
            has_4bit = "use_4bit" in commands.passed_names(setup.description.train, self._template)
            target = commands.target_settings(settings, wanted, has_4bit=has_4bit)
            whole = commands.production_training(setup.description, files, wanted.model, target)
        attempt = Attempt(
            stage=self.stage,
            number=0,
            label=label or verbatim(settings.short()),
            started_at="",
            model_name=model.name,
            settings=settings,
            limit_seconds=self.run.left_seconds(self.setup.profile.limits.train_attempt_seconds),
            longest_row_tokens=rows.longest_tokens if rows else None,
            mean_row_tokens=rows.mean_tokens if rows else None,
            longest_answer_tokens=rows.longest_answer_tokens if rows else None,
            production=whole,
        )
        return attempt, self._call(model.name, settings, output_only=output_only)

    def judged(
        self, finished: Finished, model: ModelChoice, settings: TrainSettings, truncated: TruncatedAnswers | None = None
    ) -> Attempt:
        """One that ended well, with what it left, and every check of it; a fact that is not in the evidence goes to
        its check here."""
        of_machine = machine_checks(finished.processes(self.setup), finished.stdout)
        training, checks, artifacts = judge_training(self.evidence(finished, model, settings, truncated), of_machine)
        return finished.attempt.changed(training=training, checks=checks, artifacts=artifacts)

    def evidence(
        self, finished: Finished, model: ModelChoice, settings: TrainSettings, truncated: TruncatedAnswers | None = None
    ) -> TrainEvidence:
        """What the judge is given of one that ended well; `truncated`: the answers that its length cut off."""
        setup, tokenizer = self.setup, _tokenizer_of(model)
        files = (file for file in (setup.dataset, self.train_file) if file is not None)
        return TrainEvidence(
            output_dir=setup.root / self.output_dir,
            output_dir_name=self.output_dir,
            settings=settings,
            model_name=model.name,
            train_rows=self.rows_trained(settings) or None,
            stdout=finished.stdout,
            output=finished.output,
            returncode=finished.attempt.returncode,
            attempt_started_unix=finished.started_unix,
            line_arrivals=finished.outcome.timed_lines,
            lost_answers=(truncated.lost_rows, truncated.rows) if truncated else None,
            card=finished.card_memory(setup.device),
            base_tokenizer=tokenizer,
            base_folder=tokenizer.parent,
            seconds=finished.attempt.seconds,
            attempt_ended_unix=finished.ended_unix,
            output_place=finished.place,
            inputs=tuple((setup.root / file.path, file.sha256) for file in files),
            random_weights=setup.context.twin or has_random_weights(model.name, tokenizer.parent),
            rehearsal=setup.is_rehearsal,
            witness=read_witness(finished.folder),
            train_file=finished.call.train_file if finished.call else None,
            row_format=setup.description.train.rows.format,
            questions=setup.questions(),
            description=setup.description,
            unsaid=unsaid_settings(setup.description, self._template),
            words=words_of(setup.description.train, self._template),
        )

    @property
    def takes_output_only(self) -> bool:
        """Whether the program can be asked for the loss on the answers alone."""
        return self._knows(self.setup.description.train.when.output_only)

    @property
    def _template(self) -> str | None:
        return config_template(self.setup.root, self.setup.description.train)

    def _call(self, model_name: str, settings: TrainSettings, *, output_only: bool) -> Call:
        """The call that trains at these settings, kept within `max_steps` by its words or else by fewer rows."""
        setup, train = self.setup, self.setup.description.train
        can_pass = passed_names(train, self._template)
        train_file, train_dir, folder = self.train_file.path if self.train_file else None, None, None
        trained = self.rows_trained(settings)
        has_fewer = self.train_file is not None and trained < self.train_file.rows
        if has_fewer or {"train_dir", "config"} & can_pass:
            folder = side_folder(self.run, "given")
            if train_file is not None and (has_fewer or "train_dir" in can_pass):
                rows = folder / "rows" / f"train{Path(train_file).suffix}"  # data sets go by this name
                rows.parent.mkdir()
                inputs.write_subset(setup.root, train_file, trained, rows)
                train_dir = str(rows.parent)
                train_file = str(rows) if has_fewer else train_file
        place = place_of(
            setup.root,
            setup.python,
            train,
            setup.dataset,
            folder,
            on_gpu=setup.device is not None,
            train_file=train_file,
            train_dir=train_dir,
        )
        call = train_call(
            setup.description,
            place,
            model_name,
            settings,
            cap_steps=self._is_too_long(settings) and self._can_cap,
            steps=min(settings.max_steps, steps_due(trained, settings)) if trained else None,
            output_dir=self.output_dir,
            output_only=output_only and self.takes_output_only,
        )
        if place.config is not None and call.config is not None:
            Path(place.config).write_text(call.config, encoding="utf-8")
        return call

    def _knows(self, words: tuple[str, ...]) -> bool:
        """Whether words that are there under a condition can be passed: a script of `lawqa` may lack their flag."""
        return bool(words) and (self.flags is None or words[0] in self.flags)

    @property
    def _can_cap(self) -> bool:
        train = self.setup.description.train
        has_words = self._knows(train.when.max_steps)
        return has_words or "max_steps" in passed_names(train.changed(when=TrainWhen()), self._template)

    def rows_trained(self, settings: TrainSettings) -> int:
        """All rows, or the first ones where only fewer rows keep the program within `max_steps`; 0: nobody knows."""
        if self.train_file is None:
            return 0
        if self._can_cap or not self._is_too_long(settings):
            return self.train_file.rows
        steps_an_epoch = max(1, settings.max_steps // settings.num_epochs)
        return min(self.train_file.rows, steps_an_epoch * settings.effective_batch_size)

    def row_lengths(self, model: ModelChoice, settings: TrainSettings) -> RowLengths | None:
        """How long the rows are that these settings train on; None, and said once, where they can't be counted."""
        tokenizer = _tokenizer_of(model)
        if not tokenizer.is_file() or self.train_file is None:
            return None
        path, rows = self.setup.root / self.train_file.path, self.rows_trained(settings)
        try:
            return row_lengths(
                path,
                tokenizer,
                self.setup.description.truncation,
                first_rows=rows,
                row_format=self.setup.description.train.rows.format,
            )
        except (ValueError, OSError) as error:  # a tokenizer newer than this suite's library: as where there is none
            self.run.console.line_once(f"{self.stage} {phrase('row.not_counted', reason=error)}")
            return None

    def note_skipped(self, label: Message, reason: Message) -> None:
        """Say and journal that one of these trainings is not tried, and why."""
        self.run.console.line(f"{self.stage} {label}: {reason}")
        skipped = SkippedRung(label=label, reason=reason)
        self.run.journal.append(RungSkipped(at=now(), stage=self.stage, skipped=skipped))

    def _is_too_long(self, settings: TrainSettings) -> bool:
        if self.train_file is None:  # nobody knows how many rows there are
            return True
        return steps_per_epoch(self.train_file.rows, settings) * settings.num_epochs > settings.max_steps


def open_job(run: StageRun, stage: AnyStage = StageId.H2) -> TrainingJob:
    """Build, read and journal the stage's rows, and ask its script for its flags; raises InputError."""
    description = run.setup.description
    output_dir = description.output_dir
    if stage is ExtendedId.COT_TRAINING:
        train_file: DataFile | None = training_rows(run, description.paths.train_file_cot, "cot")
        output_dir = folder_beside(output_dir, "cot")
    else:
        train_file = training_rows(run, description.train_file, "direct") if description.train_file else None
    read = tuple(file for file in (run.setup.dataset, train_file) if file is not None)
    others = [file for file in run.journal.record().data if file.role not in {new.role for new in read}]
    run.journal.append(DataRead(at=now(), data=(*read, *others)))
    return TrainingJob(run, stage, train_file, output_dir, script_flags(run))


def real_dataset(setup: Setup) -> str | None:
    """The questions of the production run: this run's, unless they are only the bundled sample."""
    if setup.dataset is None or not setup.dataset.is_sample:
        return setup.dataset.path if setup.dataset else None
    return setup.description.paths.dataset


def half_precision_of(device: Device | None) -> Literal["bf16", "fp16"]:
    """The half precision of a card: fp16 where its compute capability is known and too low for bf16."""
    return "fp16" if device is not None and device.has_bf16 is False else "bf16"


def _tokenizer_of(model: ModelChoice) -> Path:
    return Path(model.snapshot_path or model.name) / "tokenizer.json"


@dataclass(frozen=True)
class Variant:
    """One way to evaluate; `name` tells its attempt's label and its JSON from H-3's own, whose name is empty."""

    stage: AnyStage
    name: str = ""
    use_cot: bool = False
    use_rag: bool = False
    with_adapter: bool = True


DIRECT = Variant(StageId.H3)


@dataclass(frozen=True)
class Evaluation:
    """The record's model, evaluated with the adapter that `training`, a stage of this record, left."""

    run: StageRun
    model: ModelChoice
    training: StageResult

    def evaluate(self, variant: Variant, h3_rows: tuple[Row, ...] | None = None) -> Outcome:
        """Evaluate once, held against `h3_rows`; BLOCKED where the adapter is not the one that the training wrote."""
        setup, root, stage = self.run.setup, self.run.setup.root, self.training.stage
        attempt = self.training.last_attempt
        trained = attempt.training if attempt else None
        trouble: Message | None = say("adapter.unrecorded", stage=stage)
        if attempt is not None and trained is not None and trained.adapter_sha256 is not None:
            trouble = self._adapter_trouble(attempt, trained) if variant.with_adapter else None
        if attempt is None or trained is None or trouble is not None:
            return Outcome(Verdict.BLOCKED, say("adapter.run_again", reason=trouble, stage=stage))
        asked = setup.profile.evaluate
        used_4bit = attempt.settings.use_4bit if isinstance(attempt.settings, TrainSettings) else asked.load_in_4bit
        settings = asked.changed(
            load_in_4bit=commands.evaluated_in_4bit(setup.description, asked, trained_in_4bit=used_4bit),
            use_cot=asked.use_cot or variant.use_cot,
            use_rag=asked.use_rag or variant.use_rag,
        )
        if settings.use_rag:
            build_index(self.run)
        path = Path(setup.description.output)
        known = partial(
            EvalEvidence,
            root=root,
            dataset=root / setup.dataset.path if setup.dataset else None,
            dataset_sha256=setup.dataset.sha256 if setup.dataset else None,
            output_path=str(path.with_stem(f"{path.stem}-{variant.name}") if variant.name else path),
            output_pattern=setup.description.paths.evaluation_output_pattern,
            settings=settings,
            model_name=self.model.name,
            lora_path=trained.adapter_folder if variant.with_adapter else None,
            adapter_sha256_expected=trained.adapter_sha256,
            h3_rows=h3_rows,
            rehearsal=setup.is_rehearsal,
            random_weights=setup.context.twin,
            on_gpu=setup.device is not None,
            questions=setup.questions(),  # as these are before the script runs, which may write to them
            adapter_files=adapter_files(root / trained.adapter_folder),
            description=setup.description,
        )
        seen = self.run.journal.folder / attempt.folder if attempt.folder else None
        files = commands.Files(
            root,
            train_file=setup.description.train_file,
            dataset=real_dataset(setup),
            template=config_template(root, setup.description.evaluate),
        )

        def judge(finished: Finished) -> Attempt:
            rows = setup.description.paths.train_file_cot if variant.use_cot else setup.description.train_file
            train_file, row_format = root / (rows or ""), setup.description.train.rows.format
            has_rows = train_file.is_file()
            evidence = known(
                stdout=finished.stdout,
                output=finished.output,
                returncode=finished.attempt.returncode,
                attempt_started_unix=finished.started_unix,
                seconds=finished.outcome.seconds,
                adapter_sha256_actual=sha256_or_none(root / trained.adapter_folder / ADAPTER_WEIGHTS_NAME),
                train_questions=questions_in(train_file, row_format) if has_rows else None,
                train_template=prompt_template_in(train_file, row_format)
                if has_rows and not settings.use_rag
                else None,
                witness=read_witness(finished.folder),
                training_witness=read_witness(seen) if seen else None,
            )
            of_machine = machine_checks(finished.processes(setup), finished.stdout)
            evaluation, checks, artifacts = judge_evaluation(evidence, of_machine)
            whole = None
            if variant is DIRECT:
                count = commands.questions_of(self.run.journal.record(), evaluation)
                model = setup.profile.production.model
                whole = commands.production_evaluation(setup.description, files, model, settings, count)
            return finished.attempt.changed(evaluation=evaluation, checks=checks, artifacts=artifacts, production=whole)

        plan, call = self._planned(variant, settings, known.keywords["lora_path"], known.keywords["output_path"])
        return Outcome.of_attempt(run_attempt(self.run, plan, call, judge))

    def _adapter_trouble(self, attempt: Attempt, trained: TrainOutcome) -> Message | None:
        """How the adapter on disk differs from what the training recorded; its configuration scales its weights."""
        stage, folder = self.training.stage, self.run.setup.root / trained.adapter_folder
        found = sha256_or_none(folder / ADAPTER_WEIGHTS_NAME)
        if found is None:
            return say("adapter.missing", path=folder / ADAPTER_WEIGHTS_NAME)
        if found != trained.adapter_sha256:
            return say("adapter.differs", stage=stage, path=folder / ADAPTER_WEIGHTS_NAME)
        name = f"{trained.adapter_folder.rstrip('/')}/{ADAPTER_CONFIG_NAME}"
        recorded = next((artifact.sha256 for artifact in attempt.artifacts if artifact.path == name), None)
        if recorded is not None and sha256_or_none(self.run.setup.root / name) != recorded:
            return say("adapter.config_differs", file=ADAPTER_CONFIG_NAME, stage=stage, folder=folder)
        return None

    def _planned(
        self, variant: Variant, settings: EvalSettings, adapter: str | None, output: str
    ) -> tuple[Attempt, Call]:
        """The attempt and what it runs; a file of settings is written into a folder of the record."""
        setup, description = self.run.setup, self.run.setup.description
        evaluate, on_gpu, rows = description.evaluate, setup.device is not None, description.train_file
        folder = side_folder(self.run, "given") if evaluate.config else None
        place = place_of(setup.root, setup.python, evaluate, setup.dataset, folder, on_gpu=on_gpu, train_file=rows)
        call = evaluate_call(description, place, self.model.name, settings, adapter=adapter, output=output)
        if place.config is not None and call.config is not None:
            Path(place.config).write_text(call.config, encoding="utf-8")
        label = say("attempt.samples_in_4bit" if settings.load_in_4bit else "attempt.samples", samples=settings.samples)
        attempt = Attempt(
            stage=variant.stage,
            number=0,
            label=say("attempt.variant", label=label, name=variant.name) if variant.name else label,
            started_at="",
            model_name=self.model.name,
            settings=settings,
            limit_seconds=self.run.left_seconds(setup.profile.limits.evaluate_attempt_seconds),
        )
        return attempt, call
