"""Checks that a training did what was asked, in the time that its process lived."""

from __future__ import annotations

import bisect
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from steph.base.files import sha256_or_none
from steph.base.messages import say
from steph.base.text import one_line
from steph.base.units import gib
from steph.contract.lines import Metrics
from steph.contract.training_files import OwnFigures, TrainerState
from steph.judge.evidence import CardMemory
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.plan.steps import epochs_in
from steph.record.settings import TrainSettings
from steph.record.values import Check

LEAST_SHARE = 0.7  # of the steps that the file's rows make: a validation split, and some rows that are too long
EPOCH_SLACK = 0.02
# a pattern that begins with its own letters is looked for fast, in megabytes of log
_PACKING = re.compile(r"[Pp]ack(?:ing|ed)\b(?!['\"]?\s{0,9}(?:[=:]|is)?\s{0,9}(?i:false|off|no|none|0|disabled)\b)")
_NOT_PACKING = re.compile(r"(?:[a-z]|\b(?:no|not|without) )$", re.I)
STEPS_COMPLETE = CheckKind("steps_complete", "H-2", FAIL, core=True)
LEAST_RATES = 3  # printed; fewer may all be of the warm-up
LEAST_RATE_SHARE, MOST_RATE_SHARE = 0.5, 1.01  # of the asked one: the peak stands between two printed lines
LEAST_PROGRESS, MOST_PROGRESS = 0.8, 1.45  # of the epochs that so many steps make; some rows may be held out
EPOCH_TOLERANCE = 0.02  # transformers 4 prints two decimals
BATCH_AS_ASKED = CheckKind("batch_as_asked", "H-2", FAIL, optional=True)
LEARNING_RATE_AS_ASKED = CheckKind("learning_rate_as_asked", "H-2", WARN, optional=True)
TRAINED_FROM_START = CheckKind("trained_from_start", "H-2", FAIL, trap=15, optional=True)
STATE_OF_THIS_RUN = CheckKind("state_of_this_run", "H-2", FAIL, trap=15, optional=True)
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
FULL_SHARE = 0.93  # of the card: a Windows driver keeps some hundred MiB of it to itself
SLOWDOWN = 8.0  # a spill makes steps some ten times slower; short and long rows alone can make them five times slower
SLOWDOWN_PER_TOKEN = 5.0  # where the rows' lengths are known
MEASURABLE_SECONDS = 0.01  # below this a line's arrival says more about the pipe than about the step
LEAST_STEPS = 3  # on either side; fewer can be a checkpoint or a warm-up
NO_MEMORY_SPILL = CheckKind("no_memory_spill", "H-2", WARN, optional=True)


@dataclass(frozen=True)
class StepsEvidence:
    """Steps done, due by the rows of the file, and counted by the Trainer (`max_steps`); None where unknown."""

    done: int | None
    due: int | None
    counted: int | None
    epochs: float | None
    settings: TrainSettings
    says_packing: bool = False
    stopped_itself: bool = False  # by a callback, after an evaluation


def says_packing(output: str) -> bool:
    """Whether the program says that it packs several rows into one."""
    return any(not _NOT_PACKING.search(output[max(0, m.start() - 10) : m.start()]) for m in _PACKING.finditer(output))


def steps_check(evidence: StepsEvidence) -> Check:
    """All steps of the file's rows, or all that the Trainer counted over the rows that it was left with."""
    done, due, counted = evidence.done, evidence.due, evidence.counted
    if done is None or due is None:
        return STEPS_COMPLETE.check(None, "unknown", done=done, due=due)
    if evidence.stopped_itself and counted is not None and done < counted:
        return STEPS_COMPLETE.check(False, "stopped", severity=WARN, done=done, due=due)
    if done == counted and done < due and _lacks_a_step(evidence):
        epochs, asked = evidence.epochs, evidence.settings.num_epochs
        return STEPS_COMPLETE.check(False, "short_epoch", severity=WARN, done=done, due=due, epochs=epochs, asked=asked)
    if done == due or done != counted or done > due or not _is_through(evidence):
        return STEPS_COMPLETE.check(done == due, "counted", done=done, due=due)
    share, epochs = done / due, evidence.epochs
    if share >= LEAST_SHARE or evidence.says_packing:
        return STEPS_COMPLETE.check(True, "fewer_rows", done=done, due=due, epochs=epochs)
    return STEPS_COMPLETE.check(False, "few_rows", severity=WARN, done=done, due=due, epochs=epochs, share=share)


def _is_through(evidence: StepsEvidence) -> bool:
    """Whether the asked epochs are done, over whatever rows; a cap of steps ends them earlier, and is due as it is."""
    return evidence.epochs is not None and evidence.epochs >= evidence.settings.num_epochs - EPOCH_SLACK


def _lacks_a_step(evidence: StepsEvidence) -> bool:
    """Whether packed rows ended less than one step before the asked epochs: the rest did not fill a step."""
    if not (evidence.says_packing and evidence.epochs and evidence.done) or _is_through(evidence):
        return False
    return evidence.epochs * (1 + 1 / evidence.done) >= evidence.settings.num_epochs - EPOCH_SLACK


@dataclass(frozen=True)
class Asked:
    """What was asked, and what the training printed and left: `epochs` of its last line, `rows` that it was given.

    `packed`: several of them may have become one.
    """

    settings: TrainSettings
    metrics: tuple[Metrics, ...]
    state: TrainerState
    epochs: float | None
    rows: int | None
    packed: bool = False


def asked_checks(asked: Asked) -> tuple[Check, ...]:
    """All checks of the flags that leave a trace in every Trainer's own figures."""
    return (_batch_check(asked), _rate_check(asked), _start_check(asked.metrics), _state_check(asked))


def _batch_check(asked: Asked) -> Check:
    """A batch that was halved in silence after an OOM, or a flag that is not read, shows in state and epoch.

    Accumulated micro-batches may go through the model as one: a larger batch, and the same rows a step.
    """
    size, state = asked.settings.batch_size, asked.state
    ran = state.train_batch_size if state.fresh and state.train_batch_size is not None else size
    fused, rest = divmod(ran, size)
    if rest or asked.settings.gradient_accumulation_steps % max(fused, 1) or not fused:
        return BATCH_AS_ASKED.check(False, "other_size", asked=size, ran=ran)
    steps = state.global_step if state.fresh and not state.problem else None
    if not steps or asked.epochs is None or not asked.rows or asked.packed:
        return BATCH_AS_ASKED.check(None, "incomparable")
    due = epochs_in(steps, asked.rows, asked.settings)
    apart = abs(asked.epochs - due) > EPOCH_TOLERANCE and not (LEAST_PROGRESS <= asked.epochs / due <= MOST_PROGRESS)
    figures: dict[str, Any] = {"steps": steps, "epochs": asked.epochs, "due": due}
    if fused > 1:
        return BATCH_AS_ASKED.check(not apart, "fused", asked=size, ran=ran, **figures)
    if apart:
        return BATCH_AS_ASKED.check(False, "other_progress", severity=WARN, **figures)
    return BATCH_AS_ASKED.check(True, "as_asked", **figures)


def _rate_check(asked: Asked) -> Check:
    steps = [m for m in asked.metrics if m.get("loss") is not None]
    rates = [rate for m in steps if (rate := m.get("learning_rate")) is not None and math.isfinite(rate)]
    if len(rates) < LEAST_RATES:
        return LEARNING_RATE_AS_ASKED.check(None, "too_few", rates=len(rates))
    rate, largest = asked.settings.learning_rate, max(rates)
    holds = LEAST_RATE_SHARE <= largest / rate <= MOST_RATE_SHARE
    return LEARNING_RATE_AS_ASKED.check(holds, "compared", asked=rate, largest=largest)


def _start_check(metrics: tuple[Metrics, ...]) -> Check:
    """The first loss is as far from the start as losses are from each other, unless earlier ones are missing."""
    epochs = [epoch for m in metrics if m.get("loss") is not None and (epoch := m.get("epoch")) is not None]
    gaps = [later - earlier for earlier, later in pairwise(epochs) if later > earlier]
    if not gaps:
        return TRAINED_FROM_START.check(None, "too_few")
    first, interval = epochs[0], median(gaps)
    late = first > 2.5 * interval + EPOCH_TOLERANCE
    return TRAINED_FROM_START.check(not late, "compared", first=first, interval=interval)


def _state_check(asked: Asked) -> Check:
    written, printed = asked.state.epoch if asked.state.fresh else None, asked.epochs
    if written is None or printed is None:
        return STATE_OF_THIS_RUN.check(None, "none")
    holds = abs(written - printed) <= EPOCH_TOLERANCE
    return STATE_OF_THIS_RUN.check(holds, "compared", written=written, printed=printed)


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


@dataclass(frozen=True)
class TimedStep:
    """One step: when it ended, in seconds since the attempt's start, how long it took, and its tokens where known."""

    ended_seconds: float
    seconds: float
    tokens: int | None = None


def steps_between(arrivals: tuple[float, ...], logging_steps: int) -> tuple[TimedStep, ...]:
    """The steps between loss lines by the lines' arrival, the average one where a line stands for several."""
    every = max(1, logging_steps)
    return tuple(TimedStep(later, (later - earlier) / every) for earlier, later in pairwise(arrivals))


def steps_before(end_seconds: float, seconds: tuple[float, ...], tokens: tuple[int, ...]) -> tuple[TimedStep, ...]:
    """A pipeline's own step times, the last of which ended at `end_seconds`, without the first: it warms up."""
    counts: tuple[int | None, ...] = tokens if len(tokens) == len(seconds) else (None,) * len(seconds)
    steps: list[TimedStep] = []
    for taken, count in zip(reversed(seconds[1:]), reversed(counts[1:]), strict=True):
        steps.append(TimedStep(end_seconds, taken, count))
        end_seconds -= taken
    return tuple(reversed(steps))


def spill_check(card: CardMemory, steps: tuple[TimedStep, ...]) -> Check:
    """Whether training stayed in the card's own memory; None where nothing can be compared."""
    reserved = card.peak_reserved_bytes
    if reserved is not None and reserved > card.total_bytes:
        return NO_MEMORY_SPILL.check(
            False,
            "beyond_the_card",
            reserved=gib(reserved),
            total=gib(card.total_bytes),
            remedy=say("spill.remedy"),
        )
    if not card.samples:
        return NO_MEMORY_SPILL.check(None, "no_samples")
    share = max(used for _, used in card.samples) / card.total_bytes
    if share < FULL_SHARE:
        return NO_MEMORY_SPILL.check(True, "most", share=share)
    return _slowdown(card, steps, share)


def _slowdown(card: CardMemory, steps: tuple[TimedStep, ...], share: float) -> Check:
    full = [step for step in steps if _used_share(card, step.ended_seconds) >= FULL_SHARE]
    roomy = [step for step in steps if _used_share(card, step.ended_seconds) < FULL_SHARE]
    before = median(step.seconds for step in roomy) if roomy else 0.0
    if min(len(full), len(roomy)) < LEAST_STEPS or before < MEASURABLE_SECONDS:
        return NO_MEMORY_SPILL.check(None, "incomparable", share=share, before=len(roomy), after=len(full))
    by_token = all(step.tokens for step in steps)
    # the quarter of the full card's steps that is fastest: a spill slows all, a checkpoint or a long row only some
    ratio = quantiles((_cost(step, by_token) for step in full), n=4)[0] / median(_cost(s, by_token) for s in roomy)
    after = median(step.seconds for step in full)
    is_kept = ratio < (SLOWDOWN_PER_TOKEN if by_token else SLOWDOWN)
    return NO_MEMORY_SPILL.check(
        is_kept,
        "kept" if is_kept else "spilled",
        share=share,
        before=before,
        after=after,
        ratio=say("spill.by_token" if by_token else "spill.of_the_faster", times=ratio),
        remedy=say("spill.remedy"),
    )


def _used_share(card: CardMemory, at_seconds: float) -> float:
    """The share of the card in use at a moment, by the last sample until then."""
    at = bisect.bisect_right(card.samples, at_seconds, key=lambda sample: sample[0])
    return card.samples[max(0, at - 1)][1] / card.total_bytes


def _cost(step: TimedStep, by_token: bool) -> float:
    return step.seconds / step.tokens if by_token and step.tokens else step.seconds
