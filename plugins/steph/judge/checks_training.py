"""Judges one training attempt (H-2) by its files and lines. Reads the output folder, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steph.base.files import files_at, is_fresh, is_later, sha256_of
from steph.base.messages import say
from steph.base.terms import Severity
from steph.contract.description import TrainArtifacts
from steph.contract.lines import parse_metrics
from steph.contract.training_files import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    STATE_NAME,
    OwnFigures,
    TrainerState,
    TrainingLog,
    adapter_folder,
    losses_in_words,
    read_log,
    read_own_figures,
    read_state,
)
from steph.judge import checks_adapter, checks_progress
from steph.judge.checks_figures import loss_checks, step_checks
from steph.judge.checks_process import process_checks
from steph.judge.checks_row_answers import file_checks
from steph.judge.checks_rows import with_blocks
from steph.judge.checks_seen import is_mean
from steph.judge.checks_setup import has_packed_batches, last_save, training_in, weight_bits
from steph.judge.checks_witness import witnessed_training_checks
from steph.judge.evidence import Trained, TrainEvidence, artifacts_under, read_base
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures, Needs, lacking_in_training, without_inapplicable
from steph.judge.witness import TrainingEnds
from steph.record.settings import steps_due, steps_in, steps_per_epoch
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
    evidence: TrainEvidence, further: Sequence[Check] = ()
) -> tuple[TrainOutcome, tuple[Check, ...], tuple[Artifact, ...]]:
    """Read what the attempt left behind and check it; missing files are findings, never exceptions.

    `further` checks of it come last, and the description rules them out as it does the others.
    """
    evidence = with_blocks(evidence)
    said = evidence.description.train.artifacts
    started = evidence.attempt_started_unix
    folder = adapter_folder(evidence.root, evidence.filled(said.adapter), started)
    states = [path for pattern in said.state for path in files_at(evidence.root, evidence.filled(pattern))]
    state, own = read_state(evidence.output_dir, started, states), read_own_figures(evidence.output_dir, started)
    base = read_base(evidence.base_folder)
    artifacts = artifacts_under(evidence.output_dir, evidence.output_dir_name)
    # of the spec's script the files must tell how the training ended
    seen = evidence.witness.of(TrainingEnds) if evidence.witness and not evidence.is_scripted else ()
    ends = seen[-1] if seen else None
    trained = _trained(evidence, state, own, ends, base.vocabulary)
    training = training_in(evidence.witness)
    outcome = _outcome(evidence, trained, folder, artifacts)
    outcome = outcome.changed(
        weight_bits=weight_bits(training.begins) if training else None,
        # a loop of one's own prints no such figure
        train_runtime_seconds=outcome.train_runtime_seconds or (ends.seconds if ends else None),
    )
    tensors, weights = checks_adapter.weight_checks(folder, base)
    tokenizer = folder / checks_adapter.TOKENIZER_NAME
    if not tokenizer.is_file():
        tokenizer = evidence.output_dir / checks_adapter.TOKENIZER_NAME
    last_loss_unix = started + trained.loss_arrivals[-1] if trained.loss_arrivals else None
    save = last_save(training, evidence.witness, outcome.adapter_sha256) if evidence.witness else None
    ended = training.ends.matrices if training and training.ends else None
    is_saved_mean = save is not None and is_mean(save.matrices, ended)  # of the last steps, saved after the last one
    scalings = training.begins.lora.scaling if training and training.begins.lora else ()
    checks = (
        *process_checks(evidence.returncode, evidence.output, on_gpu=evidence.card is not None),
        _final_line_check(trained),
        *weights,
        *checks_adapter.config_checks(folder, evidence.settings, tensors, evidence.unsaid, scalings),
        checks_adapter.last_check(folder, state, last_loss_unix, is_mean=is_saved_mean),
        checks_adapter.tokenizer_check(tokenizer, evidence.base_tokenizer, base.vocabulary, tensors),
        checks_adapter.base_check(folder, evidence.model_name),
        *_file_checks(evidence, state, ends, folder, artifacts),
        checks_progress.steps_check(trained),
        _epochs_check(trained),
        *checks_progress.asked_checks(trained),
        *loss_checks(trained),
        *step_checks(trained),
        *checks_progress.time_checks(trained),
        *witnessed_training_checks(evidence, outcome.adapter_sha256),
        *_spill_checks(evidence, trained),
        _answers_check(evidence.lost_answers),
        *file_checks(evidence),
        *further,
    )
    # neither the folder nor the description has a state: a loop has no Trainer, and a Trainer need not save checkpoints
    stateless = say("lacks.no_state") if not said.state else None
    if state.folder is None and said.state == TrainArtifacts().state and ends is not None and not evidence.is_scripted:
        stateless = say("lacks.loop") if ends.source == "loop" else say("lacks.no_checkpoint")
    lacks = lacking_in_training(
        evidence.description.train.rows,
        has_final_line=evidence.is_scripted or trained.log.final is not None,
        stateless=stateless,
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


def _trained(
    evidence: TrainEvidence, state: TrainerState, own: OwnFigures, ends: TrainingEnds | None, vocabulary: int | None
) -> Trained:
    log, rows, settings = _log(evidence, state), evidence.train_rows, evidence.settings
    is_read = state.fresh and state.problem is None
    printed = tuple(value for line in log.losses if (value := line.get("loss")) is not None)
    # a long output is cut in its middle: where the disk has more losses than were read, it has all of them
    losses = state.losses if state.fresh and len(state.losses) > len(printed) else printed or state.losses
    told = (line.get("epoch") for line in (log.final, *reversed(log.losses)) if line)
    epochs = _finite(next((epoch for epoch in told if epoch is not None), None))
    if epochs is None and not evidence.is_scripted:
        epochs = state.epoch if state.fresh else ends.epoch if ends else None
    steps = state.global_step if is_read else ends.steps if ends else None
    if steps is None and not is_read and epochs is not None and rows and 0 <= epochs < 1e6:
        steps = steps_in(epochs, rows, settings)
    # what is printed again is no step
    arrivals = [(seconds, line) for seconds, line in evidence.line_arrivals if parse_metrics(line)]
    places = read_log("\n".join(line for _, line in arrivals)).places
    lived, ended = evidence.seconds, evidence.attempt_ended_unix
    training = training_in(evidence.witness)
    return Trained(
        settings=settings,
        log=log,
        state=state,
        own=own,
        losses=tuple(value for value in losses if math.isfinite(value))[:MOST_LOSSES],
        steps_done=steps,
        steps_due=steps_due(rows, settings) if rows else ends.due if ends else None,
        steps_counted=state.max_steps if is_read else ends.due if ends else None,
        stopped_itself=training is not None and training.ends is not None and training.ends.stopped_itself,
        epochs=epochs,
        rows=rows,
        packed=checks_progress.says_packing(evidence.output) or has_packed_batches(evidence.witness),
        is_plain_text=evidence.row_format == "text",
        # the clock on the wall goes on while a machine sleeps
        seconds=max(lived, ended - evidence.attempt_started_unix) if lived is not None and ended is not None else lived,
        loss_arrivals=tuple(arrivals[place][0] for place in places),
        output_dir=evidence.output_dir,
        output_place=evidence.output_place,
        inputs=evidence.inputs,
        witnessed=tuple(training.logged) if training else (),
        own_rates=training.ends.rates if training and training.ends else (),
        vocabulary=vocabulary,
        random_weights=evidence.random_weights,
        rehearsal=evidence.rehearsal,
    )


def _outcome(evidence: TrainEvidence, trained: Trained, folder: Path, artifacts: tuple[Artifact, ...]) -> TrainOutcome:
    final, state = trained.log.final, trained.state
    runtime = _finite(final.get("train_runtime")) if final else None
    steps = checks_progress.steps_between(trained.loss_arrivals, evidence.settings.logging_steps)
    name = str(folder)  # as the pipeline knows it: from the root where it lies there
    if folder == evidence.output_dir:
        name = evidence.output_dir_name.rstrip("/")
    elif folder.is_relative_to(evidence.root):
        name = folder.relative_to(evidence.root).as_posix()
    weights = folder / ADAPTER_WEIGHTS_NAME
    known = next((one.sha256 for one in artifacts if one.path == f"{name}/{ADAPTER_WEIGHTS_NAME}"), None)
    return TrainOutcome(
        output_dir=evidence.output_dir_name,
        steps_done=trained.steps_done,
        steps_due=trained.steps_due,
        epochs_done=trained.epochs,
        train_loss=_finite(trained.train_loss),
        train_runtime_seconds=runtime,
        losses=trained.losses,
        step_seconds=tuple(step.seconds for step in steps),
        tokens_per_second=state.tokens_seen / runtime
        if state.tokens_seen and runtime
        else trained.own.tokens_per_second,
        train_rows=evidence.train_rows,
        adapter_sha256=known or (sha256_of(weights) if weights.is_file() else None),  # a link is no artifact
        adapter_dir=None if folder == evidence.output_dir else name,
        checkpoint=state.folder.name if state.folder and state.fresh else None,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _spill_checks(evidence: TrainEvidence, trained: Trained) -> tuple[Check, ...]:
    if evidence.card is None:
        return ()
    arrivals, own = trained.loss_arrivals, trained.own
    steps = checks_progress.steps_between(arrivals, evidence.settings.logging_steps)
    if arrivals and own.step_seconds:
        steps = checks_progress.steps_before(arrivals[-1], own.step_seconds, own.step_tokens)
    return (checks_progress.spill_check(evidence.card, steps),)


def _final_line_check(trained: Trained) -> Check:
    final, loss = trained.log.final, trained.train_loss
    if final is None or loss is None:
        return LINE_TRAIN_RESULT.check(False, "missing")
    return LINE_TRAIN_RESULT.check(True, "shown", runtime=final.get("train_runtime"), loss=loss)


def _file_checks(
    evidence: TrainEvidence,
    state: TrainerState,
    ends: TrainingEnds | None,
    folder: Path,
    artifacts: tuple[Artifact, ...],
) -> tuple[Check, ...]:
    """The Trainer's state is there, the files are of this attempt, nothing older lies beside them, and none is empty.

    A state that was not kept, beside a training whose steps were seen, hides nothing.
    """
    named = [folder / ADAPTER_WEIGHTS_NAME, folder / ADAPTER_CONFIG_NAME]
    if state.folder:
        named.append(state.folder / STATE_NAME)
    if state.problem or state.folder is None:
        severity = WARN if ends is not None and ends.steps is not None else None
        kept = CHECKPOINT_TRAINER_STATE.check(False, "unusable", severity=severity, reason=state.problem)
    else:
        figures: Figures = {"steps": state.global_step, "losses": len(state.losses)}
        kept = CHECKPOINT_TRAINER_STATE.check(True, "read", checkpoint=state.folder.name, **figures)
    present = [path for path in named if path.is_file()]
    place = evidence.output_dir if all(path.is_relative_to(evidence.output_dir) for path in present) else evidence.root
    started, ended = evidence.attempt_started_unix, evidence.attempt_ended_unix
    old = [path.relative_to(place).as_posix() for path in present if not is_fresh(path, started)]
    later = [path.relative_to(place).as_posix() for path in present if ended and is_later(path, ended)]
    fresh = not old and not later if present else None
    seen = "later" if later else "old" if old else "fresh"
    leftovers = state.stale_folders
    empty = [file.path for file in artifacts if file.size_bytes == 0 and file.path.endswith(_NEVER_EMPTY)]
    whole, found = not empty if artifacts else None, "empty" if empty else "none"
    return (
        kept,
        ARTIFACTS_FRESH.check(fresh, seen, old=old or say("training.none"), later=later, files=len(present)),
        NO_LEFTOVERS.check(not leftovers, "left" if leftovers else "none", checkpoints=leftovers),
        NO_EMPTY_FILES.check(whole, found, files=empty[:MOST_NAMED]),
    )


def _epochs_check(trained: Trained) -> Check:
    epochs, asked, rows = trained.epochs, trained.settings.num_epochs, trained.rows
    if epochs is None:
        return EPOCHS_AS_ASKED.check(None, "none")
    half_a_step = 0.5 / steps_per_epoch(rows, trained.settings) if rows else 0.005
    return EPOCHS_AS_ASKED.check(epochs <= asked + half_a_step, "compared", asked=asked, epochs=epochs)


def _answers_check(lost_answers: tuple[int, int] | None) -> Check:
    if lost_answers is None:
        return ANSWERS_KEPT.check(None, "uncounted")
    lost, rows = lost_answers
    severity = Severity.FAIL if 2 * lost > rows else None
    return ANSWERS_KEPT.check(lost == 0, "counted", severity=severity, rows=rows, lost=lost)
