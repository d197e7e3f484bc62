"""Runs the evaluation script on an adapter of this record, at the 4-bit setting that its training ended on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steph.base.files import sha256_or_none
from steph.base.messages import Message, say
from steph.base.terms import AnyStage, StageId, Verdict
from steph.conduct.attempts import Finished, build_index, planned, run_attempt, side_folder
from steph.conduct.preparation import StageRun, config_template, place_of
from steph.conduct.training_job import real_dataset
from steph.contract import commands
from steph.contract.commands import Call, evaluate_call
from steph.contract.questions import frame_in, questions_in
from steph.contract.results import Row
from steph.contract.training_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from steph.judge.checks_evaluation import adapter_files, judge_evaluation
from steph.judge.checks_process import machine_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.verdict import Outcome
from steph.judge.witness import read_witness
from steph.record.settings import EvalSettings, TrainSettings
from steph.record.values import Attempt, ModelChoice, StageResult, TrainOutcome


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
        """Evaluate once; BLOCKED where the adapter on disk is not the one that the training wrote.

        `h3_rows` are what the variant is held against: H-3's, or the same questions asked with the adapter.
        """
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
            load_in_4bit=asked.load_in_4bit and used_4bit,
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
                train_frame=frame_in(train_file, row_format) if has_rows and not settings.use_rag else None,
                witness=read_witness(finished.folder),
                training_witness=read_witness(seen) if seen else None,
            )
            of_machine = machine_checks(finished.processes(setup), finished.stdout)
            evaluation, checks, artifacts = judge_evaluation(evidence, of_machine)
            return finished.attempt.changed(evaluation=evaluation, checks=checks, artifacts=artifacts)

        plan, call = self._planned(variant, settings, known.keywords["lora_path"], known.keywords["output_path"])
        return Outcome.of_attempt(run_attempt(self.run, plan, call, judge))

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
        whole = None
        if variant is DIRECT:
            files = commands.Files(
                setup.root, train_file=rows, dataset=real_dataset(setup), template=config_template(setup.root, evaluate)
            )
            model, count = setup.profile.production.model, commands.questions_of(self.run.journal.record())
            whole = commands.production_evaluation(description, files, model, settings, count)
        attempt = planned(
            variant.stage,
            say("attempt.variant", label=label, name=variant.name) if variant.name else label,
            model_name=self.model.name,
            settings=settings,
            limit_seconds=self.run.left_seconds(setup.profile.limits.evaluate_attempt_seconds),
            production=whole,
        )
        return attempt, call
