"""Questions that a record answers itself."""

from __future__ import annotations

import pytest
import record_factory as factory
from steph.base.terms import StageId
from steph.memory.calibration import calibration_of
from steph.memory.shapes import BUILT_IN
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, PredictedPeak, Record
from steph.tell import compare
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
    (row,) = compare.listing_rows([(record, 0)])
    assert row["list.model"] == SMALL.partition("/")[2]
    assert calibration_of(record).shape == BUILT_IN[SMALL]
    assert _record(H3=LARGE).stages[StageId.H3].model is not None
    (row,) = compare.listing_rows([(_record(H3=LARGE), 0)])
    assert row["list.model"] != LARGE.partition("/")[2]


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


def test_an_attempt_of_release_0_1_0_has_its_figures() -> None:
    """Its journals had the peaks of the only card and the three figures of a prediction side by side."""
    old = factory.trained(1, TrainSettings()).model_dump(mode="json", exclude={"device_peaks", "predicted"})
    figures = {"peak_device_bytes": 7, "peak_own_bytes": 5, "device_peaks": []}
    bounds = {"predicted_peak_bytes": 5, "predicted_low_bytes": 4, "predicted_high_bytes": 6}
    found = Attempt.model_validate(old | figures | bounds)
    assert (found.peak_device_bytes, found.peak_own_bytes) == (7, 5)
    assert found.predicted == PredictedPeak(peak_bytes=5, low_bytes=4, high_bytes=6)
    assert Attempt.model_validate_json(found.model_dump_json()) == found
    none = Attempt.model_validate(old | dict.fromkeys((*figures, *bounds)) | {"device_peaks": []})
    assert (none.device_peaks, none.predicted) == ((), None)


def test_an_attempt_on_several_cards_of_release_0_1_0_keeps_each() -> None:
    """The highest of them stood beside the list, and is what the attempt says today."""
    peaks = [
        {"uuid": name, "peak_device_bytes": size, "peak_own_bytes": size - 1} for name, size in (("a", 9), ("b", 7))
    ]
    old = factory.trained(1, TrainSettings()).model_dump(mode="json", exclude={"device_peaks"})
    found = Attempt.model_validate(old | {"peak_device_bytes": 9, "peak_own_bytes": 8, "device_peaks": peaks})
    assert [peak.uuid for peak in found.device_peaks] == ["a", "b"]
    assert (found.peak_device_bytes, found.peak_own_bytes) == (9, 8)
