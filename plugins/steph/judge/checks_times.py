"""Checks that a training's own figures fit the process that printed them: its life, its steps, its inputs, its folder.

A log that is replayed, metrics of another run and copied artifacts have figures that agree with each other, and not
with how long the process lived. Reads the files that it is given the paths of, changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from steph.base.files import sha256_or_none
from steph.base.messages import say
from steph.base.text import one_line
from steph.contract.lines import Metrics
from steph.contract.training_files import OwnFigures, TrainerState
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.record.settings import TrainSettings
from steph.record.values import Check

LIVED_SLACK_SECONDS, LIVED_SLACK_SHARE = 2.0, 0.02  # clocks, and seconds that a machine slept
TOO_SHORT_SHARE = 0.1  # of the time between the first and the last loss line
MEASURABLE_SPAN_SECONDS = 1.0
ROUNDED_RATE = 5e-4  # the Trainer rounds rates to three decimals
MOST_ROWS_SHARE, LEAST_ROWS_SHARE = 1.1, 0.5
LOSS_TOLERANCE = 0.01

RUNTIME_LIVED = CheckKind("runtime_lived", "H-2", FAIL, optional=True)
SPEED_AGREES = CheckKind("speed_agrees", "H-2", WARN, optional=True)
OWN_FIGURES_AGREE = CheckKind("own_figures_agree", "H-2", WARN, optional=True)
INPUTS_UNCHANGED = CheckKind("inputs_unchanged", "H-2", WARN, optional=True)
OUTPUT_IN_PLACE = CheckKind("output_in_place", "H-2", WARN, optional=True)
TIMES = (RUNTIME_LIVED, SPEED_AGREES, OWN_FIGURES_AGREE, INPUTS_UNCHANGED, OUTPUT_IN_PLACE)


@dataclass(frozen=True)
class TimeEvidence:
    """A training's figures beside what is known of its process.

    `seconds` is how long it lived, `loss_arrivals` when its loss lines came, in seconds from its start. `rows` are
    those of the file that it was given. `output_place` is where the output folder really was before it, `inputs` are
    files with the sha256 that they had before.
    """

    final: Metrics | None
    settings: TrainSettings
    state: TrainerState
    own: OwnFigures
    losses: tuple[float, ...]
    steps_done: int | None
    epochs: float | None
    rows: int | None
    seconds: float | None
    loss_arrivals: tuple[float, ...]
    output_dir: Path
    output_place: Path | None = None
    inputs: tuple[tuple[Path, str], ...] = ()


def time_checks(evidence: TimeEvidence) -> tuple[Check, ...]:
    """All checks of figures against process, inputs and folder."""
    return (
        _runtime_check(evidence),
        _speed_check(evidence),
        _own_check(evidence),
        _inputs_check(evidence.inputs),
        _place_check(evidence.output_dir, evidence.output_place),
    )


def _figure(evidence: TimeEvidence, key: str) -> float | None:
    value = evidence.final.get(key) if evidence.final else None
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _longest(seconds: float) -> float:
    return seconds * (1 + LIVED_SLACK_SHARE) + LIVED_SLACK_SECONDS


def _runtime_check(evidence: TimeEvidence) -> Check:
    runtime, lived = _figure(evidence, "train_runtime"), evidence.seconds
    if runtime is None or lived is None:
        return RUNTIME_LIVED.check(None, "unknown")
    if runtime > _longest(lived):
        return RUNTIME_LIVED.check(False, "too_long", runtime=runtime, lived=lived)
    arrivals = evidence.loss_arrivals
    span = arrivals[-1] - arrivals[0] if arrivals else 0.0
    if span > MEASURABLE_SPAN_SECONDS and runtime < TOO_SHORT_SHARE * span:
        return RUNTIME_LIVED.check(False, "too_short", severity=WARN, runtime=runtime, lived=lived, span=span)
    return RUNTIME_LIVED.check(True, "fits", runtime=runtime, lived=lived)


def _speed_check(evidence: TimeEvidence) -> Check:
    """Samples and steps a second stand for all of the run; fewer rows than the file's are held out or packed."""
    runtime, samples, steps = (
        _figure(evidence, f"train_{key}") for key in ("runtime", "samples_per_second", "steps_per_second")
    )
    done, rows = evidence.steps_done, evidence.rows
    if not runtime or done is None or not rows or (samples is None and steps is None):
        return SPEED_AGREES.check(None, "unknown")
    rounding, settings = ROUNDED_RATE * runtime, evidence.settings
    apart = []
    if samples is not None:
        batch = evidence.state.train_batch_size or settings.batch_size
        most = max(rows * math.ceil(evidence.epochs or settings.num_epochs), done * settings.effective_batch_size)
        shown, least = samples * runtime, min(rows, done * min(batch, settings.batch_size)) * LEAST_ROWS_SHARE
        if not least - rounding <= shown <= most * MOST_ROWS_SHARE + rounding + 1:
            apart.append(say("times.rows", rate=samples, runtime=runtime, made=shown, rows=rows, steps=done))
    if steps is not None and abs(steps * runtime - done) > max(1.0, 0.05 * done) + rounding:
        apart.append(say("times.steps", rate=steps, runtime=runtime, made=steps * runtime, steps=done))
    return SPEED_AGREES.check(not apart, "apart" if apart else "fits", differences=apart)


def _own_check(evidence: TimeEvidence) -> Check:
    own, done = evidence.own, evidence.steps_done
    apart = [
        say("times.own_count", name=name, count=count, steps=done)
        for name, count in (
            ("steps", own.steps),
            ("losses", len(own.losses) or None),
            ("step_seconds", len(own.step_seconds) or None),
        )
        if count is not None and done is not None and count != done
    ]
    if own.epochs is not None and evidence.epochs is not None and abs(own.epochs - evidence.epochs) > 0.02:
        apart.append(say("times.own_epochs", epochs=own.epochs, printed=evidence.epochs))
    if evidence.seconds is not None and sum(own.step_seconds) > _longest(evidence.seconds):
        apart.append(say("times.own_seconds", total=sum(own.step_seconds), lived=evidence.seconds))
    pairs = zip(own.losses, evidence.losses, strict=False) if len(own.losses) == len(evidence.losses) else ()
    finite = [(one, other) for one, other in pairs if math.isfinite(one) and math.isfinite(other)]
    if any(not math.isclose(one, other, rel_tol=LOSS_TOLERANCE, abs_tol=1e-3) for one, other in finite):
        apart.append(say("times.own_losses"))
    if own == OwnFigures():
        return OWN_FIGURES_AGREE.check(None, "none")
    return OWN_FIGURES_AGREE.check(not apart, "apart" if apart else "fits", differences=apart)


def _inputs_check(inputs: tuple[tuple[Path, str], ...]) -> Check:
    if not inputs:
        return INPUTS_UNCHANGED.check(None, "unknown")
    changed = [path.name for path, before in inputs if sha256_or_none(path) != before]
    return INPUTS_UNCHANGED.check(not changed, "changed" if changed else "same", files=changed)


def _place_check(output_dir: Path, before: Path | None) -> Check:
    """A link that the attempt itself made leads to what somebody else may have written."""
    if before is None:
        return OUTPUT_IN_PLACE.check(None, "unknown")
    now = output_dir.resolve()
    return OUTPUT_IN_PLACE.check(now == before, "same" if now == before else "moved", place=one_line(now, 160))
