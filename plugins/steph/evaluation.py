"""H-3: the evaluation script on the adapter of this record's H-2, at the 4-bit setting that H-2 ended on."""

from __future__ import annotations

import time

from steph.attempts import Finished, Request, run_attempt
from steph.console import Console
from steph.judge.checks_eval import judge_evaluation
from steph.judge.evidence import EvalEvidence
from steph.judge.questions import frame_in, questions_in
from steph.outcome import Outcome
from steph.plan.commands import evaluate_command
from steph.preparation import Setup
from steph.record import Attempt, EvalSettings, ModelChoice, StageId, StageResult, TrainSettings, Verdict
from steph.run import inputs
from steph.run.journal import Journal
from steph.training import machine_checks

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def evaluate(
    setup: Setup, journal: Journal, console: Console, model: ModelChoice, training: StageResult, deadline: float
) -> Outcome:
    """Evaluate the record's adapter once; BLOCKED where the adapter on disk is not the one that H-2 trained."""
    paths = setup.description.paths
    trained = training.last_attempt
    if trained is None or trained.training is None or trained.training.adapter_sha256 is None:
        return Outcome(Verdict.BLOCKED, "H-2の記録にアダプタのsha256がない。H-2を再実行する")
    adapter = setup.root / paths.output_dir / ADAPTER
    found = inputs.file_sha256(adapter)
    if found is None:
        return Outcome(Verdict.BLOCKED, f"アダプタがない: {adapter}。H-2を再実行する")
    if found != trained.training.adapter_sha256:
        return Outcome(Verdict.BLOCKED, f"アダプタがH-2の記録と違う(sha256不一致): {adapter}。H-2を再実行する")
    if _config_changed(setup, trained):
        return Outcome(Verdict.BLOCKED, f"{CONFIG} がH-2の記録と違う(sha256不一致): {adapter.parent}。H-2を再実行する")
    settings = _settings(setup, trained)
    argv = evaluate_command(
        setup.python, setup.description, model.name, setup.dataset.path, settings, lora_path=paths.output_dir
    )
    request = Request(
        stage=StageId.H3,
        label=f"{settings.samples}問/{'4bit' if settings.load_in_4bit else '4bitなし'}",
        argv=argv,
        deadline_seconds=min(max(1.0, deadline - time.monotonic()), setup.profile.limits.evaluate_attempt_seconds),
        settings=settings,
        model_name=model.name,
        writes=(setup.root / paths.evaluation_output,),
    )

    def judge(finished: Finished) -> Attempt:
        return _judge(setup, finished, model, settings, found)

    return Outcome.of_attempt(run_attempt(setup, journal, console, request, judge))


def _config_changed(setup: Setup, trained: Attempt) -> bool:
    """Whether the adapter's configuration, which scales its weights, is not the one that H-2 recorded."""
    name = f"{setup.description.paths.output_dir.rstrip('/')}/{CONFIG}"
    recorded = next((artifact.sha256 for artifact in trained.artifacts if artifact.path == name), None)
    return recorded is not None and inputs.file_sha256(setup.root / name) != recorded


def _settings(setup: Setup, trained: Attempt) -> EvalSettings:
    settings = EvalSettings(**setup.profile.evaluate.model_dump())
    used_4bit = trained.settings.use_4bit if isinstance(trained.settings, TrainSettings) else settings.load_in_4bit
    return settings.model_copy(update={"load_in_4bit": settings.load_in_4bit and used_4bit})


def _judge(
    setup: Setup, finished: Finished, model: ModelChoice, settings: EvalSettings, adapter_sha256: str
) -> Attempt:
    paths = setup.description.paths
    train_file = setup.root / paths.train_file
    evidence = EvalEvidence(
        root=setup.root,
        dataset=setup.root / setup.dataset.path,
        output_path=paths.evaluation_output,
        settings=settings,
        model_name=model.name,
        lora_path=paths.output_dir,
        stdout=finished.stdout,
        output=finished.output,
        returncode=finished.attempt.returncode,
        attempt_started_unix=finished.started_unix,
        seconds=finished.outcome.seconds,
        adapter_sha256_expected=adapter_sha256,
        adapter_sha256_actual=inputs.file_sha256(setup.root / paths.output_dir / ADAPTER),
        train_questions=questions_in(train_file) if train_file.is_file() else None,
        train_frame=frame_in(train_file) if train_file.is_file() else None,
        rehearsal=setup.is_rehearsal,
    )
    evaluation, checks, artifacts = judge_evaluation(evidence)
    checks = (*checks, *machine_checks(setup, finished))
    return finished.attempt.model_copy(update={"evaluation": evaluation, "checks": checks, "artifacts": artifacts})
