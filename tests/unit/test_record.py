"""Questions that a record answers itself."""

from __future__ import annotations

import record_factory as factory
from steph.measured import calibration_of
from steph.plan.shapes import BUILT_IN
from steph.record import Record, StageId
from steph.tell import listing

SMALL, LARGE = "Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen1.5-4B-Chat"


def _record(**models: str) -> Record:
    """A green record whose stages name these models."""
    record = factory.green_acceptance()
    named = {
        stage: result.model_copy(
            update={"model": factory.model_choice(models[stage.name]) if stage.name in models else None}
        )
        for stage, result in record.stages.items()
    }
    return record.model_copy(update={"stages": named})


def test_the_model_is_the_one_that_training_ended_on() -> None:
    """H-2's where it had to go to a smaller one, else H-1's, and never one that only H-3 names."""
    for models, name in (
        ({"H1": LARGE, "H2": SMALL}, SMALL),
        ({"H1": LARGE}, LARGE),
        ({"H3": LARGE}, None),
        ({}, None),
    ):
        found = _record(**models).model
        assert (found.name if found else None) == name


def test_everybody_asks_the_record_for_it() -> None:
    """The list and the memory model speak of the same model."""
    record = _record(H1=LARGE, H2=SMALL)
    (row,) = listing.rows([(record, 0)])
    assert row.model == SMALL.partition("/")[2]
    assert calibration_of(record).shape == BUILT_IN[SMALL]
    assert _record(H3=LARGE).stages[StageId.H3].model is not None
    (row,) = listing.rows([(_record(H3=LARGE), 0)])
    assert row.model != LARGE.partition("/")[2]
