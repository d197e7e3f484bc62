"""Questions that a record answers itself."""

from __future__ import annotations

import pytest
import record_factory as factory
from steph.base.terms import StageId
from steph.memory.calibration import calibration_of
from steph.memory.shapes import BUILT_IN
from steph.record.settings import TrainSettings
from steph.record.values import Record
from steph.tell import listing
from steph.tell.outlook import production_outlook

GIB = 2**30
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


def test_a_value_is_changed_in_fields_that_it_has() -> None:
    """The others stay, the original too; a field that there is not is refused by its name instead of being kept."""
    settings = TrainSettings(max_steps=5)
    changed = settings.changed(batch_size=1, use_4bit=False)
    assert changed == TrainSettings(max_steps=5, batch_size=1, use_4bit=False)
    assert (type(changed), settings) == (TrainSettings, TrainSettings(max_steps=5))
    for unknown in ("batchsize", "effective_batch_size", "short"):
        with pytest.raises(TypeError, match=f"TrainSettings has no field {unknown}"):
            settings.changed(max_steps=1, **{unknown: 1})


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


def test_a_cap_above_what_others_left_makes_no_room() -> None:
    """9 GiB asked of a card with 8 free are 8, for the prediction; without a card none."""
    card = factory.device(total_bytes=10 * GIB).model_copy(update={"used_bytes": 2 * GIB})
    for cap_bytes, usable in ((9 * GIB, 8 * GIB), (7 * GIB, 7 * GIB), (None, 8 * GIB)):
        record = factory.green_acceptance()
        context = factory.context(gpu=card, vram_cap_bytes=cap_bytes)
        record = record.model_copy(update={"context": context.model_copy(update={"trainer": "full"})})
        assert context.usable_bytes == card.usable_bytes(cap_bytes) == usable
        outlook = production_outlook(record)
        assert outlook is not None
        assert outlook.here is not None
        assert outlook.here.usable_bytes == usable
    assert factory.rehearsal().context.usable_bytes is None
