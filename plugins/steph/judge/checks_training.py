"""Judges one training attempt (H-2) by its files and lines. Reads the output folder, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steph.base.files import is_fresh, is_later, sha256_of
from steph.base.messages import say
from steph.base.terms import Severity
from steph.contract.description import TrainArtifacts
from steph.contract.globs import files_at
from steph.contract.lines import Metrics, parse_metrics
from steph.contract.training_files import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    STATE_NAME,
    OwnFigures,
    TrainerState,
    adapter_folder,
    read_own_figures,
    read_state,
)
from steph.contract.training_log import TrainingLog, losses_in_words, read_log
from steph.judge.checks_adapter import (
    TOKENIZER_NAME,
    base_check,
    config_checks,
    last_check,
    tokenizer_check,
    weight_checks,
)
from steph.judge.checks_figures import LossEvidence, StepEvidence, loss_checks, step_checks
from steph.judge.checks_process import process_checks
from steph.judge.checks_progress import (
    Asked,
    StepsEvidence,
    TimeEvidence,
    asked_checks,
    says_packing,
    spill_check,
    steps_before,
    steps_between,
    steps_check,
    time_checks,
)
from steph.judge.checks_row_answers import row_answers_check
from steph.judge.checks_seen import is_mean
from steph.judge.checks_witness import has_packed_batches, last_save, training_in, witnessed_training_checks
from steph.judge.evidence import TrainEvidence
from steph.judge.folders import BaseModel, artifacts_under, read_base
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs, lacking_in_training, without_inapplicable
from steph.judge.witness import TrainingEnds
from steph.plan.steps import steps_due, steps_in, steps_per_epoch
from steph.record.values import Artifact, Check, TrainOutcome

_NEVER_EMPTY = (".safetensors", ".bin", ".pt", ".pth", ".json")
MOST_NAMED = 8  # of files
MOST_LOSSES = 10_000  # in the record, which stays small; a profile allows 500 steps

LINE_TRAIN_RESULT = CheckKind("line_train_result", "H-2", FAIL, needs=(Needs.FINAL_LINE,))
CHECKPOINT_TRAINER_STATE = CheckKind("checkpoint_trainer_state", "H-2", FAIL, needs=(Needs.TRAINER_STATE,))
ARTIFACTS_FRESH = CheckKind("artifacts_fresh", "H-2", FAIL, trap=15, core=True)
NO_LEFTOVERS = CheckKind("no_leftovers", "H-2", INFO, trap=15)
NO_EMPTY_FILES = CheckKind("no_empty_files", "H-2", WARN, optional=True)
EPOCHS_AS_ASKED = CheckKind("epochs_as_asked", "H-2", WARN, trap=12, optional=True)
ANSWERS_KEPT = CheckKind("answers_kept", "H-2", WARN, trap=1, optional=True, needs=(Needs.TRAIN_ROWS,))


def judge_training(
    evidence: TrainEvidence, besides: Sequence[Check] = ()
) -> tuple[TrainOutcome, tuple[Check, ...], tuple[Artifact, ...]]:
    """Read what the attempt left behind and check it; missing files are findings, never exceptions.

    `besides` are further checks of it: they come last, and the description rules them out as it does the others.
    """
    artifacts_said = evidence.description.train.artifacts
    folder = adapter_folder(evidence.root, evidence.filled(artifacts_said.adapter), evidence.attempt_started_unix)
    states = [path for said in artifacts_said.state for path in files_at(evidence.root, evidence.filled(said))]
    state = read_state(evidence.output_dir, evidence.attempt_started_unix, states)
    log = _log(evidence, state)
    own = read_own_figures(evidence.output_dir, evidence.attempt_started_unix)
    base = read_base(evidence.base_folder)
    artifacts = artifacts_under(evidence.output_dir, evidence.output_dir_name)
    outcome = _outcome(evidence, log, state, own, folder, _adapter_sha256(evidence, folder, artifacts))
    tensors, weights = weight_checks(folder, base)
    packed = says_packing(evidence.output) or has_packed_batches(evidence.witness)
    checks = (
        *process_checks(evidence.returncode, evidence.output, on_gpu=evidence.card is not None),
        _final_line_check(log.final),
        *weights,
        *config_checks(folder, evidence.settings, tensors, evidence.unsaid),
        last_check(folder, state, _last_loss_unix(evidence), is_mean=_is_mean(evidence, outcome.adapter_sha256)),
        tokenizer_check(_tokenizer_of(evidence, folder), evidence.base_tokenizer),
        base_check(folder, evidence.model_name),
        _state_check(evidence, state),
        *_freshness_checks(evidence, state, folder),
        _empty_files_check(artifacts),
        steps_check(_steps_evidence(evidence, outcome, state, packed)),
        _epochs_check(evidence, outcome),
        *asked_checks(Asked(evidence.settings, log.metrics, state, outcome.epochs_done, evidence.train_rows, packed)),
        *loss_checks(_loss_evidence(evidence, log, state, outcome)),
        *step_checks(_step_evidence(evidence, log, state, base)),
        *time_checks(_time_evidence(evidence, log, state, own, outcome)),
        *witnessed_training_checks(evidence, outcome.adapter_sha256),
        *_spill_checks(evidence, own),
        _answers_check(evidence.lost_answers),
        row_answers_check(evidence),
        *besides,
    )
    lacks = lacking_in_training(
        evidence.description.train.rows,
        has_final_line=evidence.is_scripted or log.final is not None,
        keeps_state=bool(artifacts_said.state),
        is_loop=_needs_no_state(evidence, state),
    )
    return outcome, without_inapplicable(checks, lacks), artifacts


def _log(evidence: TrainEvidence, state: TrainerState) -> TrainingLog:
    """What was printed, of other programs than the spec's also on stderr or in words; else the Trainer's state."""
    log = read_log(evidence.stdout)
    if evidence.is_scripted:
        return log
    if not log.losses and log.final is None:
        log = read_log(evidence.output)
    if not log.losses and not (state.fresh and state.losses):
        log = replace(log, metrics=losses_in_words(evidence.output))
    return replace(log, final=log.final or (state.final if state.fresh else None))


def _tokenizer_of(evidence: TrainEvidence, folder: Path) -> Path:
    path = folder / TOKENIZER_NAME
    return path if path.is_file() else evidence.output_dir / TOKENIZER_NAME


def _ends(evidence: TrainEvidence) -> TrainingEnds | None:
    """How the last training ended that was seen; None for the spec's script, whose files must tell."""
    seen = evidence.witness.of(TrainingEnds) if evidence.witness and not evidence.is_scripted else ()
    return seen[-1] if seen else None


def _adapter_sha256(evidence: TrainEvidence, folder: Path, artifacts: tuple[Artifact, ...]) -> str | None:
    name = f"{_name(evidence, folder)}/{ADAPTER_WEIGHTS_NAME}"
    known = next((artifact.sha256 for artifact in artifacts if artifact.path == name), None)
    weights = folder / ADAPTER_WEIGHTS_NAME
    return known or (sha256_of(weights) if weights.is_file() else None)  # a link is no artifact


def _name(evidence: TrainEvidence, folder: Path) -> str:
    """A folder as the pipeline knows it: from the root where it lies there."""
    if folder == evidence.output_dir:
        return evidence.output_dir_name.rstrip("/")
    return folder.relative_to(evidence.root).as_posix() if folder.is_relative_to(evidence.root) else str(folder)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _outcome(
    evidence: TrainEvidence,
    log: TrainingLog,
    state: TrainerState,
    own: OwnFigures,
    folder: Path,
    adapter_sha256: str | None,
) -> TrainOutcome:
    final, ends_seen = log.final, _ends(evidence)
    printed = tuple(value for m in log.losses if (value := m.get("loss")) is not None)
    # a long output is cut in its middle: where the disk has more losses than were read, it has all of them
    losses = state.losses if state.fresh and len(state.losses) > len(printed) else printed
    ends = (final, *reversed(log.losses))
    epochs = _finite(next((value for m in ends if m and (value := m.get("epoch")) is not None), None))
    if epochs is None and not evidence.is_scripted:
        epochs = state.epoch if state.fresh else ends_seen.epoch if ends_seen else None
    runtime = _finite(final.get("train_runtime")) if final else None
    rows, settings = evidence.train_rows, evidence.settings
    estimated = steps_in(epochs, rows, settings) if epochs is not None and rows and 0 <= epochs < 1e6 else None
    return TrainOutcome(
        output_dir=evidence.output_dir_name,
        steps_done=state.global_step
        if state.fresh and state.problem is None
        else ends_seen.steps
        if ends_seen and ends_seen.steps is not None
        else estimated,
        steps_due=steps_due(rows, settings) if rows else ends_seen.due if ends_seen else None,
        epochs_done=epochs,
        train_loss=_finite(final.get("train_loss")) if final else None,
        train_runtime_seconds=runtime,
        losses=tuple(value for value in losses or state.losses if math.isfinite(value))[:MOST_LOSSES],
        step_seconds=tuple(step.seconds for step in steps_between(_loss_arrivals(evidence), settings.logging_steps)),
        tokens_per_second=state.tokens_seen / runtime if state.tokens_seen and runtime else own.tokens_per_second,
        train_rows=rows,
        adapter_sha256=adapter_sha256,
        adapter_dir=None if folder == evidence.output_dir else _name(evidence, folder),
        checkpoint=state.folder.name if state.folder and state.fresh else None,
    )


def _loss_arrivals(evidence: TrainEvidence) -> tuple[float, ...]:
    """When each loss came, in seconds from the start; what is printed again is no step."""
    arrivals = [(seconds, line) for seconds, line in evidence.line_arrivals if parse_metrics(line)]
    log = read_log("\n".join(line for _, line in arrivals))
    return tuple(arrivals[place][0] for place in log.places)


def _is_mean(evidence: TrainEvidence, adapter_sha256: str | None) -> bool:
    """Whether the adapter's file was seen to be saved after the last step, from the mean of the last ones."""
    seen, witness = training_in(evidence.witness), evidence.witness
    if seen is None or seen.ends is None or witness is None:
        return False
    save = last_save(seen, witness, adapter_sha256)
    return save is not None and is_mean(save.matrices, seen.ends.matrices)


def _last_loss_unix(evidence: TrainEvidence) -> float | None:
    """When the last loss came, by the files' clock."""
    arrivals = _loss_arrivals(evidence)
    return evidence.attempt_started_unix + arrivals[-1] if arrivals else None


def _lived(evidence: TrainEvidence) -> float | None:
    """How long the process lived by the clock on the wall, which goes on while a machine sleeps."""
    if evidence.seconds is None or evidence.attempt_ended_unix is None:
        return evidence.seconds
    return max(evidence.seconds, evidence.attempt_ended_unix - evidence.attempt_started_unix)


def _spill_checks(evidence: TrainEvidence, own: OwnFigures) -> tuple[Check, ...]:
    if evidence.card is None:
        return ()
    arrivals = _loss_arrivals(evidence)
    steps = (
        steps_before(arrivals[-1], own.step_seconds, own.step_tokens)
        if arrivals and own.step_seconds
        else steps_between(arrivals, evidence.settings.logging_steps)
    )
    return (spill_check(evidence.card, steps),)


def _final_line_check(final: Metrics | None) -> Check:
    loss = final.get("train_loss") if final else None
    if final is None or loss is None:
        return LINE_TRAIN_RESULT.check(False, "missing")
    return LINE_TRAIN_RESULT.check(True, "shown", runtime=final.get("train_runtime"), loss=loss)


def _state_check(evidence: TrainEvidence, state: TrainerState) -> Check:
    """A state that was not kept, beside a training whose steps were seen, hides nothing."""
    if state.problem or state.folder is None:
        ends = _ends(evidence)
        seen = ends is not None and ends.steps is not None
        return CHECKPOINT_TRAINER_STATE.check(False, "unusable", severity=WARN if seen else None, reason=state.problem)
    steps, losses = state.global_step, len(state.losses)
    return CHECKPOINT_TRAINER_STATE.check(True, "read", checkpoint=state.folder.name, steps=steps, losses=losses)


def _needs_no_state(evidence: TrainEvidence, state: TrainerState) -> bool:
    """Whether a loop trained, which has no Trainer: neither its folder nor its description has a state."""
    ends = _ends(evidence)
    named = evidence.description.train.artifacts.state != TrainArtifacts().state
    return ends is not None and ends.source == "loop" and state.folder is None and not named


def _freshness_checks(evidence: TrainEvidence, state: TrainerState, folder: Path) -> tuple[Check, ...]:
    named = [folder / ADAPTER_WEIGHTS_NAME, folder / ADAPTER_CONFIG_NAME]
    if state.folder:
        named.append(state.folder / STATE_NAME)
    present = [path for path in named if path.is_file()]
    place = evidence.output_dir if all(path.is_relative_to(evidence.output_dir) for path in present) else evidence.root
    old = [path.relative_to(place).as_posix() for path in present if not is_fresh(path, evidence.attempt_started_unix)]
    ended = evidence.attempt_ended_unix
    later = [path.relative_to(place).as_posix() for path in present if ended and is_later(path, ended)]
    fresh = not old and not later if present else None
    seen = "later" if later else "old" if old else "fresh"
    leftovers = state.stale_folders
    return (
        ARTIFACTS_FRESH.check(fresh, seen, old=old or say("training.none"), later=later, files=len(present)),
        NO_LEFTOVERS.check(not leftovers, "left" if leftovers else "none", checkpoints=leftovers),
    )


def _empty_files_check(artifacts: tuple[Artifact, ...]) -> Check:
    empty = [file.path for file in artifacts if file.size_bytes == 0 and file.path.endswith(_NEVER_EMPTY)]
    return NO_EMPTY_FILES.check(
        not empty if artifacts else None, "empty" if empty else "none", files=empty[:MOST_NAMED]
    )


def _steps_evidence(evidence: TrainEvidence, outcome: TrainOutcome, state: TrainerState, packed: bool) -> StepsEvidence:
    ends, seen = _ends(evidence), training_in(evidence.witness)
    return StepsEvidence(
        done=outcome.steps_done,
        due=outcome.steps_due,
        counted=state.max_steps if state.fresh and state.problem is None else ends.due if ends else None,
        epochs=outcome.epochs_done,
        settings=evidence.settings,
        says_packing=packed,
        stopped_itself=seen is not None and seen.ends is not None and seen.ends.stopped_itself,
    )


def _epochs_check(evidence: TrainEvidence, outcome: TrainOutcome) -> Check:
    epochs, asked = outcome.epochs_done, evidence.settings.num_epochs
    if epochs is None:
        return EPOCHS_AS_ASKED.check(None, "none")
    rows = evidence.train_rows
    half_a_step = 0.5 / steps_per_epoch(rows, evidence.settings) if rows else 0.005
    return EPOCHS_AS_ASKED.check(epochs <= asked + half_a_step, "compared", asked=asked, epochs=epochs)


def _loss_evidence(
    evidence: TrainEvidence, log: TrainingLog, state: TrainerState, outcome: TrainOutcome
) -> LossEvidence:
    final, printed = log.final, [(value, m) for m in log.losses if (value := m.get("loss")) is not None]
    training = training_in(evidence.witness)
    seen = [(line.loss, line.epoch) for line in training.logged if line.loss is not None] if training else []
    return LossEvidence(
        witnessed=tuple(loss for loss, _ in seen),
        witnessed_epochs=tuple(epoch for _, epoch in seen),
        printed=tuple(loss for loss, _ in printed),
        printed_norms=tuple(m.get("grad_norm") for _, m in printed),
        printed_epochs=tuple(m.get("epoch") for _, m in printed),
        logged=state.losses if state.fresh else (),
        logged_epochs=tuple(m.get("epoch") for m in state.history) if state.fresh else (),
        has_state=state.fresh and state.problem is None,
        train_loss=final.get("train_loss") if final else None,
        steps_done=outcome.steps_done,
        rehearsal=evidence.rehearsal,
    )


def _step_evidence(evidence: TrainEvidence, log: TrainingLog, state: TrainerState, base: BaseModel) -> StepEvidence:
    return StepEvidence(
        printed=log.losses,
        logged=state.history if state.fresh else (),
        earlier=log.earlier,
        warmup_ratio=evidence.settings.warmup_ratio,
        vocabulary=base.vocabulary,
        random_weights=evidence.random_weights,
    )


def _time_evidence(
    evidence: TrainEvidence, log: TrainingLog, state: TrainerState, own: OwnFigures, outcome: TrainOutcome
) -> TimeEvidence:
    return TimeEvidence(
        final=log.final,
        settings=evidence.settings,
        state=state,
        own=own,
        losses=outcome.losses,
        steps_done=outcome.steps_done,
        epochs=outcome.epochs_done,
        rows=evidence.train_rows,
        seconds=_lived(evidence),
        loss_arrivals=_loss_arrivals(evidence),
        output_dir=evidence.output_dir,
        output_place=evidence.output_place,
        inputs=evidence.inputs,
    )


def _answers_check(lost_answers: tuple[int, int] | None) -> Check:
    if lost_answers is None:
        return ANSWERS_KEPT.check(None, "uncounted")
    lost, rows = lost_answers
    over_half = 2 * lost > rows
    return ANSWERS_KEPT.check(
        lost == 0,
        "counted",
        severity=Severity.FAIL if over_half else None,
        rows=rows,
        lost=lost,
    )
