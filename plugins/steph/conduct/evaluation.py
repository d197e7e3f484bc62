"""The evaluation script on an adapter of this record, at the 4-bit setting that its training ended on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steph.base.files import sha256_or_none
from steph.base.messages import Message, say
from steph.base.terms import AnyStage, StageId, Verdict
from steph.conduct.attempts import Finished, build_index, planned, run_attempt, side_folder
from steph.conduct.preparation import config_template, place_of
from steph.conduct.stage_run import StageRun
from steph.conduct.training_job import real_dataset
from steph.contract import production
from steph.contract.commands import Call, evaluate_call
from steph.contract.questions import Question, frame_in, questions_in
from steph.contract.results import Row
from steph.contract.training_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from steph.judge.checks_evaluation import adapter_files, judge_evaluation
from steph.judge.checks_process import machine_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.verdict import Outcome
from steph.judge.witness import Witness, read_witness
from steph.record.settings import EvalSettings, TrainSettings
from steph.record.values import Attempt, ModelChoice, ProductionCall, StageResult, TrainOutcome


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
class _Plan:
    """What one evaluation runs with; `beside` are H-3's rows, where the variant is held against them.

    `questions` and `adapter_files` are as they were before the script ran, which may write to either.
    """

    variant: Variant
    settings: EvalSettings
    output_path: str
    trained: TrainOutcome
    beside: tuple[Row, ...] | None
    questions: tuple[Question, ...] | None = None
    adapter_files: Mapping[str, str] | None = None

    @property
    def lora_path(self) -> str | None:
        return self.trained.adapter_folder if self.variant.with_adapter else None

    @property
    def label(self) -> Message:
        bits = "attempt.samples_in_4bit" if self.settings.load_in_4bit else "attempt.samples"
        label = say(bits, samples=self.settings.samples)
        return say("attempt.variant", label=label, name=self.variant.name) if self.variant.name else label


@dataclass(frozen=True)
class Evaluation:
    """The record's model, evaluated with the adapter that `training`, a stage of this record, left."""

    run: StageRun
    model: ModelChoice
    training: StageResult

    def evaluate(self, variant: Variant, beside: tuple[Row, ...] | None = None) -> Outcome:
        """Evaluate once; BLOCKED where the adapter on disk is not the one that the training wrote."""
        attempt = self.training.last_attempt
        trained = attempt.training if attempt else None
        if attempt is None or trained is None or trained.adapter_sha256 is None:
            return self._blocked(say("adapter.unrecorded", stage=self.training.stage))
        trouble = self._adapter_trouble(attempt, trained) if variant.with_adapter else None
        if trouble:
            return self._blocked(trouble)
        settings = self._settings(variant, attempt)
        if settings.use_rag:
            build_index(self.run)
        files = adapter_files(self.run.setup.root / trained.adapter_folder)
        plan = _Plan(variant, settings, self._output_path(variant), trained, beside, self.run.setup.questions(), files)

        def judge(finished: Finished) -> Attempt:
            return self._judge(finished, plan)

        return Outcome.of_attempt(run_attempt(self.run, self._planned(plan), self._call(plan), judge))

    def _blocked(self, reason: Message) -> Outcome:
        return Outcome(Verdict.BLOCKED, say("adapter.run_again", reason=reason, stage=self.training.stage))

    def _adapter_trouble(self, attempt: Attempt, trained: TrainOutcome) -> Message | None:
        """What of the adapter on disk is not as the training recorded it; its configuration scales its weights."""
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

    def _settings(self, variant: Variant, attempt: Attempt) -> EvalSettings:
        asked = self.run.setup.profile.evaluate
        used_4bit = attempt.settings.use_4bit if isinstance(attempt.settings, TrainSettings) else asked.load_in_4bit
        return asked.changed(
            load_in_4bit=asked.load_in_4bit and used_4bit,
            use_cot=asked.use_cot or variant.use_cot,
            use_rag=asked.use_rag or variant.use_rag,
        )

    def _output_path(self, variant: Variant) -> str:
        path = Path(self.run.setup.description.output)
        return str(path.with_stem(f"{path.stem}-{variant.name}") if variant.name else path)

    def _planned(self, plan: _Plan) -> Attempt:
        return planned(
            plan.variant.stage,
            plan.label,
            model_name=self.model.name,
            settings=plan.settings,
            limit_seconds=self.run.left_seconds(self.run.setup.profile.limits.evaluate_attempt_seconds),
            production=self._production(plan.settings) if plan.variant is DIRECT else None,
        )

    def _call(self, plan: _Plan) -> Call:
        setup = self.run.setup
        evaluate = setup.description.evaluate
        folder = side_folder(self.run, "given") if evaluate.config else None
        on_gpu, rows = setup.device is not None, setup.description.train_file
        place = place_of(setup.root, setup.python, evaluate, setup.dataset, folder, on_gpu=on_gpu, train_file=rows)
        call = evaluate_call(
            setup.description, place, self.model.name, plan.settings, adapter=plan.lora_path, output=plan.output_path
        )
        if place.config is not None and call.config is not None:
            Path(place.config).write_text(call.config, encoding="utf-8")
        return call

    def _production(self, settings: EvalSettings) -> ProductionCall:
        setup = self.run.setup
        files = production.Files(
            setup.root,
            train_file=setup.description.train_file,
            dataset=real_dataset(setup),
            template=config_template(setup.root, setup.description.evaluate),
        )
        record = self.run.journal.record()
        model, count = setup.profile.production.model, production.questions_of(record)
        return production.production_evaluation(setup.description, files, model, settings, count)

    def _judge(self, finished: Finished, plan: _Plan) -> Attempt:
        setup = self.run.setup
        root, paths = setup.root, setup.description.paths
        rows = paths.train_file_cot if plan.variant.use_cot else setup.description.train_file
        row_format = setup.description.train.rows.format
        train_file = root / (rows or "")
        has_rows = train_file.is_file()
        evidence = EvalEvidence(
            root=root,
            dataset=root / setup.dataset.path if setup.dataset else None,
            output_path=plan.output_path,
            settings=plan.settings,
            model_name=self.model.name,
            lora_path=plan.lora_path,
            stdout=finished.stdout,
            output=finished.output,
            returncode=finished.attempt.returncode,
            attempt_started_unix=finished.started_unix,
            seconds=finished.outcome.seconds,
            adapter_sha256_expected=plan.trained.adapter_sha256,
            adapter_sha256_actual=sha256_or_none(root / plan.trained.adapter_folder / ADAPTER_WEIGHTS_NAME),
            train_questions=questions_in(train_file, row_format) if has_rows else None,
            train_frame=frame_in(train_file, row_format) if has_rows and not plan.settings.use_rag else None,
            beside=plan.beside,
            output_pattern=paths.evaluation_output_pattern,
            rehearsal=setup.is_rehearsal,
            random_weights=setup.context.twin,
            on_gpu=setup.device is not None,
            witness=read_witness(finished.folder),
            training_witness=self._training_witness(),
            questions=plan.questions,
            dataset_sha256=setup.dataset.sha256 if setup.dataset else None,
            adapter_files=plan.adapter_files,
            description=setup.description,
        )
        of_machine = machine_checks(finished.processes(setup), finished.stdout)
        evaluation, checks, artifacts = judge_evaluation(evidence, of_machine)
        return finished.attempt.changed(evaluation=evaluation, checks=checks, artifacts=artifacts)

    def _training_witness(self) -> Witness | None:
        """What was seen of the training that left the adapter; None where its folder is not in the record any more."""
        attempt = self.training.last_attempt
        folder = self.run.journal.folder / attempt.folder if attempt and attempt.folder else None
        return read_witness(folder) if folder else None
