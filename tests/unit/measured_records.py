"""Records whose H-2 measured what given constants predict: one length, or two."""

from __future__ import annotations

import record_factory as factory
from steph.base.terms import Purpose, StageId, TrainerName
from steph.memory.calibration import workload_of
from steph.memory.forecast import Constants, predict
from steph.memory.shapes import BUILT_IN
from steph.memory.terms import Workload
from steph.record.settings import Context, TrainSettings
from steph.record.values import Attempt, Probe, Record

SHAPE = BUILT_IN[factory.MODEL]
OWN, OTHER = TrainSettings(), TrainSettings(max_seq_length=256, max_steps=5)


def attempt(settings: TrainSettings, work: Workload, truth: Constants, number: int = 1) -> Attempt:
    """An attempt that measured what `truth` predicts for `work`."""
    found = predict(SHAPE, work, truth)
    probe = Probe(pid=1, peak_allocated_bytes=found.peak_allocated_bytes, peak_reserved_bytes=found.peak_reserved_bytes)
    update = {
        "probes": (probe,),
        "device_peaks": factory.card_peaks(None, found.peak_reserved_bytes + round(truth.context_bytes)),
        "longest_row_tokens": 707,
        "folder": f"H-2-{number}",
    }
    return factory.trained(number, settings).model_copy(update=update)


def record_of(
    trainer: TrainerName | str,
    attempts: tuple[Attempt, ...],
    calibration: tuple[Attempt, ...] = (),
) -> Record:
    """A green record of a pipeline of that kind with these attempts in H-2."""
    record = factory.green_acceptance()
    h2 = record.stages[StageId.H2].model_copy(update={"attempts": attempts, "calibration_attempts": calibration})
    context = Context.model_validate(record.context.model_dump() | {"trainer": trainer})
    return record.model_copy(update={"context": context, "stages": record.stages | {StageId.H2: h2}})


def pair(truth: Constants, kind: TrainerName = TrainerName.FULL) -> tuple[Attempt, Attempt]:
    """H-2's own attempt and one at half of its length, by a trainer of that kind."""
    return attempt(OWN, workload_of(OWN, kind), truth), attempt(OTHER, workload_of(OTHER, kind), truth, 2)


def two_lengths(trainer: TrainerName | str, truth: Constants) -> Record:
    """A record with H-2 at 512 tokens and a calibration at 256, of the plain kind."""
    own, other = pair(truth)
    return record_of(trainer, (own,), (other.model_copy(update={"purpose": Purpose.CALIBRATE}),))
