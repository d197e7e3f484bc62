"""Checks that a training did what was asked, in the time that its process lived, from the inputs that it was given.

A log that is replayed, metrics of another run and copied artifacts have figures that agree with each other, and not
with how long the process lived.
"""

from __future__ import annotations

import bisect
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

from steph.base.files import sha256_or_none
from steph.base.messages import say
from steph.base.text import one_line
from steph.base.units import gib
from steph.contract.training_files import OwnFigures
from steph.judge.evidence import CardMemory, Trained
from steph.judge.kinds import FAIL, WARN, CheckKind, Figures
from steph.record.settings import epochs_in
from steph.record.values import Check

LEAST_SHARE = 0.7  # of the steps that the file's rows make: a validation split, and some rows that are too long
LEAST_RATES = 3  # printed; fewer may all be of the warm-up
LEAST_RATE_SHARE, MOST_RATE_SHARE = 0.5, 1.01  # of the asked one: the peak stands between two printed lines
LEAST_PROGRESS, MOST_PROGRESS = 0.8, 1.45  # of the epochs that so many steps make; some rows may be held out
EPOCH_TOLERANCE = 0.02  # transformers 4 prints two decimals
LIVED_SLACK_SECONDS, LIVED_SLACK_SHARE = 2.0, 0.02  # clocks, and seconds that a machine slept
TOO_SHORT_SHARE = 0.1  # of the time between the first and the last loss line
MEASURABLE_SPAN_SECONDS = 1.0
ROUNDED_RATE = 5e-4  # the Trainer rounds rates to three decimals
MOST_ROWS_SHARE, LEAST_ROWS_SHARE = 1.1, 0.5
LOSS_TOLERANCE = 0.01
FULL_SHARE = 0.93  # of the card: a Windows driver keeps some hundred MiB of it to itself
SLOWDOWN = 8.0  # a spill makes steps some ten times slower; short and long rows alone can make them five times slower
SLOWDOWN_PER_TOKEN = 5.0  # where the rows' lengths are known
MEASURABLE_SECONDS = 0.01  # below this a line's arrival says more about the pipe than about the step
LEAST_STEPS = 3  # on either side; fewer can be a checkpoint or a warm-up
# a pattern that begins with its own letters is looked for fast, in megabytes of log
_PACKING = re.compile(r"[Pp]ack(?:ing|ed)\b(?!['\"]?\s{0,9}(?:[=:]|is)?\s{0,9}(?i:false|off|no|none|0|disabled)\b)")
_NOT_PACKING = re.compile(r"(?:[a-z]|\b(?:no|not|without) )$", re.I)

STEPS_COMPLETE = CheckKind("steps_complete", "H-2", FAIL, core=True)
BATCH_AS_ASKED = CheckKind("batch_as_asked", "H-2", FAIL, optional=True)
LEARNING_RATE_AS_ASKED = CheckKind("learning_rate_as_asked", "H-2", WARN, optional=True)
TRAINED_FROM_START = CheckKind("trained_from_start", "H-2", FAIL, trap=15, optional=True)
STATE_OF_THIS_RUN = CheckKind("state_of_this_run", "H-2", FAIL, trap=15, optional=True)
RUNTIME_LIVED = CheckKind("runtime_lived", "H-2", FAIL, optional=True)
SPEED_AGREES = CheckKind("speed_agrees", "H-2", WARN, optional=True)
OWN_FIGURES_AGREE = CheckKind("own_figures_agree", "H-2", WARN, optional=True)
INPUTS_UNCHANGED = CheckKind("inputs_unchanged", "H-2", WARN, optional=True)
OUTPUT_IN_PLACE = CheckKind("output_in_place", "H-2", WARN, optional=True)
NO_MEMORY_SPILL = CheckKind("no_memory_spill", "H-2", WARN, optional=True)


def says_packing(output: str) -> bool:
    """Whether the program says that it packs several rows into one."""
    return any(not _NOT_PACKING.search(output[max(0, m.start() - 10) : m.start()]) for m in _PACKING.finditer(output))


def steps_check(trained: Trained) -> Check:
    """All steps of the file's rows, or all that the Trainer counted over the rows that it was left with.

    A cap of steps ends the asked epochs earlier, and is due as it is.
    """
    done, due, counted, epochs = trained.steps_done, trained.steps_due, trained.steps_counted, trained.epochs
    if done is None or due is None:
        return STEPS_COMPLETE.check(None, "unknown", done=done, due=due)
    if trained.stopped_itself and counted is not None and done < counted:
        return STEPS_COMPLETE.check(False, "stopped", severity=WARN, done=done, due=due)
    asked = trained.settings.num_epochs
    is_through = epochs is not None and epochs >= asked - EPOCH_TOLERANCE
    lacks_a_step = trained.packed and epochs and done and epochs * (1 + 1 / done) >= asked - EPOCH_TOLERANCE
    if lacks_a_step and not is_through and done == counted and done < due:  # what was left did not fill a step
        return STEPS_COMPLETE.check(False, "short_epoch", severity=WARN, done=done, due=due, epochs=epochs, asked=asked)
    if (
        trained.is_plain_text
        and is_through
        and done == counted
        and done > due
        and (epochs or 0) <= asked + EPOCH_TOLERANCE
    ):
        return STEPS_COMPLETE.check(False, "more_rows", severity=WARN, done=done, due=due, epochs=epochs)
    if done != counted or done >= due or not is_through:
        return STEPS_COMPLETE.check(done == due, "counted", done=done, due=due)
    if done / due >= LEAST_SHARE or trained.packed:
        return STEPS_COMPLETE.check(True, "fewer_rows", done=done, due=due, epochs=epochs)
    return STEPS_COMPLETE.check(False, "few_rows", severity=WARN, done=done, due=due, epochs=epochs, share=done / due)


def asked_checks(trained: Trained) -> tuple[Check, ...]:
    """All checks of the flags that leave a trace in every Trainer's own figures."""
    rates = [rate for rate in trained.printed("learning_rate") if math.isfinite(rate)]
    asked_rate, largest = trained.settings.learning_rate, max(rates, default=0.0)
    rate = LEARNING_RATE_AS_ASKED.check(None, "too_few", rates=len(rates))
    if len(rates) >= LEAST_RATES:
        holds = LEAST_RATE_SHARE <= largest / asked_rate <= MOST_RATE_SHARE
        rate = LEARNING_RATE_AS_ASKED.check(holds, "compared", asked=asked_rate, largest=largest)
    # the first loss is as far from the start as losses are from each other, unless earlier ones are missing
    epochs = trained.printed("epoch")
    gaps = [later - earlier for earlier, later in pairwise(epochs) if later > earlier]
    start = TRAINED_FROM_START.check(None, "too_few")
    if gaps:
        first, interval = epochs[0], median(gaps)
        is_late = first > 2.5 * interval + EPOCH_TOLERANCE
        start = TRAINED_FROM_START.check(not is_late, "compared", first=first, interval=interval)
    written, printed = trained.state.epoch if trained.state.fresh else None, trained.epochs
    state = STATE_OF_THIS_RUN.check(None, "none")
    if written is not None and printed is not None:
        holds = abs(written - printed) <= EPOCH_TOLERANCE
        state = STATE_OF_THIS_RUN.check(holds, "compared", written=written, printed=printed)
    return _batch_check(trained), rate, start, state


def _batch_check(trained: Trained) -> Check:
    """A batch that was halved in silence after an OOM, or a flag that is not read, shows in state and epoch.

    Accumulated micro-batches may go through the model as one: a larger batch, and the same rows a step.
    """
    settings, state, epochs = trained.settings, trained.state, trained.epochs
    size = settings.batch_size
    ran = state.train_batch_size if state.fresh and state.train_batch_size is not None else size
    fused, rest = divmod(ran, size)
    if rest or settings.gradient_accumulation_steps % max(fused, 1) or not fused:
        return BATCH_AS_ASKED.check(False, "other_size", asked=size, ran=ran)
    steps = state.global_step if state.fresh and not state.problem else None
    if not steps or epochs is None or not trained.rows or trained.packed:
        return BATCH_AS_ASKED.check(None, "incomparable")
    due = epochs_in(steps, trained.rows, settings)
    apart = abs(epochs - due) > EPOCH_TOLERANCE and not (LEAST_PROGRESS <= epochs / due <= MOST_PROGRESS)
    figures: Figures = {"steps": steps, "epochs": epochs, "due": due}
    if fused > 1:
        return BATCH_AS_ASKED.check(not apart, "fused", asked=size, ran=ran, **figures)
    if apart:
        return BATCH_AS_ASKED.check(False, "other_progress", severity=WARN, **figures)
    return BATCH_AS_ASKED.check(True, "as_asked", **figures)


def time_checks(trained: Trained) -> tuple[Check, ...]:
    """All checks of figures against process, inputs and folder."""
    changed = [path.name for path, before in trained.inputs if sha256_or_none(path) != before]
    inputs = INPUTS_UNCHANGED.check(None, "unknown")
    if trained.inputs:
        inputs = INPUTS_UNCHANGED.check(not changed, "changed" if changed else "same", files=changed)
    # a link that the attempt itself made leads to what somebody else may have written
    now, before = trained.output_dir.resolve(), trained.output_place
    place = OUTPUT_IN_PLACE.check(None, "unknown")
    if before is not None:
        place = OUTPUT_IN_PLACE.check(now == before, "same" if now == before else "moved", place=one_line(now, 160))
    return _runtime_check(trained), _speed_check(trained), _own_check(trained), inputs, place


def _final_figure(trained: Trained, key: str) -> float | None:
    value = trained.log.final.get(key) if trained.log.final else None
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _longest(seconds: float) -> float:
    return seconds * (1 + LIVED_SLACK_SHARE) + LIVED_SLACK_SECONDS


def _runtime_check(trained: Trained) -> Check:
    runtime, lived, arrivals = _final_figure(trained, "train_runtime"), trained.seconds, trained.loss_arrivals
    if runtime is None or lived is None:
        return RUNTIME_LIVED.check(None, "unknown")
    if runtime > _longest(lived):
        return RUNTIME_LIVED.check(False, "too_long", runtime=runtime, lived=lived)
    span = arrivals[-1] - arrivals[0] if arrivals else 0.0
    if span > MEASURABLE_SPAN_SECONDS and runtime < TOO_SHORT_SHARE * span:
        return RUNTIME_LIVED.check(False, "too_short", severity=WARN, runtime=runtime, lived=lived, span=span)
    return RUNTIME_LIVED.check(True, "fits", runtime=runtime, lived=lived)


def _speed_check(trained: Trained) -> Check:
    """Samples and steps a second stand for all of the run; fewer rows than the file's are held out or packed."""
    runtime, samples, steps = (
        _final_figure(trained, f"train_{key}") for key in ("runtime", "samples_per_second", "steps_per_second")
    )
    done, rows = trained.steps_done, trained.rows
    if not runtime or done is None or not rows or (samples is None and steps is None):
        return SPEED_AGREES.check(None, "unknown")
    rounding, settings = ROUNDED_RATE * runtime, trained.settings
    apart = []
    if samples is not None:
        batch = trained.state.train_batch_size or settings.batch_size
        most = max(rows * math.ceil(trained.epochs or settings.num_epochs), done * settings.effective_batch_size)
        shown, least = samples * runtime, min(rows, done * min(batch, settings.batch_size)) * LEAST_ROWS_SHARE
        if not least - rounding <= shown <= most * MOST_ROWS_SHARE + rounding + 1:
            apart.append(say("times.rows", rate=samples, runtime=runtime, made=shown, rows=rows, steps=done))
    if steps is not None and abs(steps * runtime - done) > max(1.0, 0.05 * done) + rounding:
        apart.append(say("times.steps", rate=steps, runtime=runtime, made=steps * runtime, steps=done))
    return SPEED_AGREES.check(not apart, "apart" if apart else "fits", differences=apart)


def _own_check(trained: Trained) -> Check:
    own, done = trained.own, trained.steps_done
    if own == OwnFigures():
        return OWN_FIGURES_AGREE.check(None, "none")
    counts = {"steps": own.steps, "losses": len(own.losses) or None, "step_seconds": len(own.step_seconds) or None}
    apart = [
        say("times.own_count", name=name, count=count, steps=done)
        for name, count in counts.items()
        if count is not None and done is not None and count != done
    ]
    if own.epochs is not None and trained.epochs is not None and abs(own.epochs - trained.epochs) > EPOCH_TOLERANCE:
        apart.append(say("times.own_epochs", epochs=own.epochs, printed=trained.epochs))
    if trained.seconds is not None and sum(own.step_seconds) > _longest(trained.seconds):
        apart.append(say("times.own_seconds", total=sum(own.step_seconds), lived=trained.seconds))
    pairs = zip(own.losses, trained.losses, strict=False) if len(own.losses) == len(trained.losses) else ()
    finite = [(one, other) for one, other in pairs if math.isfinite(one) and math.isfinite(other)]
    if any(not math.isclose(one, other, rel_tol=LOSS_TOLERANCE, abs_tol=1e-3) for one, other in finite):
        apart.append(say("times.own_losses"))
    return OWN_FIGURES_AGREE.check(not apart, "apart" if apart else "fits", differences=apart)


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
    """Whether training stayed in the card's own memory; None where nothing can be compared.

    Instead of an out-of-memory error the driver may swap into system memory, and steps become many times slower: on
    Windows and WSL2 by default (CUDA - Sysmem Fallback Policy), on Linux with paged optimizers. Only two things accuse:
    torch reserved more than the card has, or steps are slow for as long as the card is full and were fast before.
    """
    reserved, total, remedy = card.peak_reserved_bytes, card.total_bytes, say("spill.remedy")
    if reserved is not None and reserved > total:
        figures: Figures = {"reserved": gib(reserved), "total": gib(total)}
        return NO_MEMORY_SPILL.check(False, "beyond_the_card", remedy=remedy, **figures)
    if not card.samples:
        return NO_MEMORY_SPILL.check(None, "no_samples")
    share = max(used for _, used in card.samples) / total
    if share < FULL_SHARE:
        return NO_MEMORY_SPILL.check(True, "most", share=share)
    full, roomy = list[TimedStep](), list[TimedStep]()
    for step in steps:  # by the last sample until the step's end
        at = bisect.bisect_right(card.samples, step.ended_seconds, key=lambda sample: sample[0])
        if card.samples[max(0, at - 1)][1] / total >= FULL_SHARE:
            full.append(step)
        elif not full:  # what was fast only afterwards says nothing: it may be the first steps that were slow
            roomy.append(step)
    before = median(step.seconds for step in roomy) if roomy else 0.0
    if min(len(full), len(roomy)) < LEAST_STEPS or before < MEASURABLE_SECONDS:
        return NO_MEMORY_SPILL.check(None, "incomparable", share=share, before=len(roomy), after=len(full))
    by_token = all(step.tokens for step in steps)

    def cost(step: TimedStep) -> float:
        return step.seconds / step.tokens if by_token and step.tokens else step.seconds

    # the quarter of the full card's steps that is fastest: a spill slows all, a checkpoint or a long row only some
    ratio = quantiles(map(cost, full), n=4)[0] / median(map(cost, roomy))
    is_kept = ratio < (SLOWDOWN_PER_TOKEN if by_token else SLOWDOWN)
    slower = say("spill.by_token" if by_token else "spill.of_the_faster", times=ratio)
    figures = {"share": share, "before": before, "after": median(step.seconds for step in full), "ratio": slower}
    return NO_MEMORY_SPILL.check(is_kept, "kept" if is_kept else "spilled", remedy=remedy, **figures)
