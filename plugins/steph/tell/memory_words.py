"""How predicted memory is said: H-1's candidates, the calibration, and H-4's cards.

Takes values of a record or of an `Outlook`, gives words and Markdown; what stands around them is in `templates/`.
"""

from __future__ import annotations

from steph.base import units
from steph.base.messages import NOTHING, Message, phrase, say, text
from steph.base.terms import StageId
from steph.base.units import GIB
from steph.memory.calibration import Calibration
from steph.memory.trainers import TRAINERS
from steph.record.values import Attempt, Candidate, PredictedPeak, Record
from steph.tell import wording
from steph.tell.advice import Advice
from steph.tell.markdown import Markdown, inline, prose, said, table
from steph.tell.outlook import CardOutlook, Outlook

Point = tuple[int, int]  # batch size, max_seq_length


def trained_at(record: Record, candidate: Candidate) -> Attempt | None:
    """Find the training of this candidate at the settings that it was predicted for, where its memory was measured."""
    h2 = record.stages.get(StageId.H2)
    if h2 is None or candidate.outcome != "chosen":
        return None
    same = (a for a in h2.attempts if a.ended_well and a.peak_own_bytes and str(a.label) == candidate.settings)
    return next(same, None)


def unnamed_trainer_words(record: Record, stage: StageId) -> Markdown:
    """Say why a stage's predicted intervals are wide, and what narrows them; empty where the trainer is named."""
    result = record.stages.get(stage)
    if result is None or record.context.trainer != "undescribed":
        return Markdown()
    found = [*(one.predicted for one in result.candidates), *(one.predicted for one in result.attempts)]
    if not any(one is not None and not one.is_measured for one in found):
        return Markdown()
    return said("memory.unnamed_trainer")


def calibration_words(outlook: Outlook | None) -> Markdown:
    """Say what the second length gave: slope and intercept, or why none."""
    line = outlook.calibration.line if outlook else None
    if outlook is None or line is None:
        reason = (outlook.calibration.shortfall if outlook else None) or say("memory.calibration.no_prediction")
        return prose(say("memory.calibration.none", reason=reason))
    per_token, fixed = line[0] / 2**20, line[1] / GIB
    use = say("memory.calibration.used" if outlook.calibration.is_described else "memory.calibration.not_used")
    return prose(say("memory.calibration.line", fixed=fixed, per_token=per_token, use=use))


def basis_words(found: Calibration) -> str:
    """Say what a prediction rests on: measured peaks, or constants that were built in."""
    if not found.is_described:
        name = "undescribed"
    elif found.line is not None:
        name = "line"
    elif not found.is_explained:
        name = "off"
    else:
        name = "points" if found.point_count else "built_in"
    off, points = found.constants.relative_error, found.point_count
    return phrase(f"memory.basis.{name}", trainer=found.trainer, trainers=list(TRAINERS), off=off, points=points)


def picks_its_way(found: Calibration) -> bool:
    """Whether the trainer trades free memory for speed by itself."""
    return TRAINERS[found.trainer].picks_its_way


def point_words(point: Point) -> str:
    """Give a setting as `512/b2`."""
    return f"{point[1]}/b{point[0]}"


def peak_words(prediction: PredictedPeak) -> str:
    """Give a predicted peak with its interval, or the measured one that stands in its place."""
    if prediction.is_measured:
        return phrase("memory.measured", peak=units.gib(prediction.peak_bytes))
    peak, low, high = (units.gib(x) for x in (prediction.peak_bytes, prediction.low_bytes, prediction.high_bytes))
    return phrase("memory.peak", peak=peak, low=low, high=high)


def headroom_words(card: CardOutlook, prediction: PredictedPeak) -> str:
    """Say what is left of the card at a peak, or what it is short of."""
    left = card.headroom_bytes(prediction)
    return units.gib(left) if left >= 0 else phrase("memory.short", size=units.gib(-left))


def grid(card: CardOutlook) -> Markdown:
    """Give the card's predictions by length and batch size."""
    batches = sorted({batch for batch, _ in card.grid})
    rows = []
    for length in sorted({length for _, length in card.grid}):
        cells = []
        for found in (card.grid.get((batch, length)) for batch in batches):
            if found is None:
                cells.append(text("memory.no_forecast"))
                continue
            sign = wording.fits_word(found.verdict).split()[0]
            span = text("memory.as_measured")
            if not found.is_measured:
                span = phrase("memory.range", low=found.low_bytes / GIB, high=found.high_bytes / GIB)
            cells.append(Markdown(f"{sign} {found.peak_bytes / GIB:.2f}<br>{inline(span)}"))
        rows.append((str(length), *cells))
    return table(("seq \\ batch", *map(str, batches)), rows)


def trained_words(advice: Advice, card: Message) -> Message:
    """Say that the production model was trained on this very card; nothing where it was not."""
    trained = advice.trained_here
    if trained is None:
        return NOTHING
    values = {"model": advice.destination.model, "card": card, "label": trained.label}
    if not trained.peak_own_bytes:
        return say("memory.here.trained", **values)
    return say("memory.here.trained_peak", peak=units.gib(trained.peak_own_bytes), **values)
