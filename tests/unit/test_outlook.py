"""H-4's memory: the production model on the rented card and on this one, corrected by what the record measured."""

from __future__ import annotations

import pytest
import record_factory as factory
from steph.base.messages import LANGUAGES, Language, speaking
from steph.base.terms import StageId
from steph.base.units import GIB
from steph.record.settings import Device, ProductionTarget, TrainSettings
from steph.record.values import PredictedPeak, ProductionCall, Record
from steph.tell.outlook import is_production_card, production_outlook, unnamed_trainer_words

SLICE = "NVIDIA A100-SXM4-40GB MIG 3g.20gb"


def _record(trainer: str | None = "answer", device: Device | None = None, cap_bytes: int | None = None) -> Record:
    record = factory.green_acceptance()
    environment = record.context.environment
    if device is not None:
        environment = environment.model_copy(update={"device": device})
    update = {"trainer": trainer, "environment": environment, "vram_cap_bytes": cap_bytes}
    record = record.model_copy(update={"context": record.context.model_copy(update=update)})
    h2 = record.stages[StageId.H2]
    unmeasured = h2.attempts[-1].model_copy(update={"probes": ()})
    return record.model_copy(
        update={"stages": record.stages | {StageId.H2: h2.model_copy(update={"attempts": (unmeasured,)})}}
    )


def test_the_production_run_is_predicted_on_the_rented_card() -> None:
    """Both trainers' target fits the assumed 19.5 GiB; the plain one's largest batch at the largest length does not."""
    for trainer in ("full", "answer"):
        found = production_outlook(_record(trainer))
        assert found is not None
        assert found.there is not None
        assert (found.there.usable_bytes, found.there.is_assumed) == (round(19.5 * GIB), True)
        target = found.there.grid[2, 1024]
        assert target.low_bytes < target.peak_bytes < target.high_bytes
        assert target.verdict == "fits"
        assert found.there.largest is not None
        assert found.there.grid[found.there.largest].verdict == "fits"
        assert (found.there.grid[8, 2048].verdict == "does_not_fit") is (trainer == "full")


def test_the_production_model_fits_the_small_card_without_the_upcast() -> None:
    """An RTX 3080: sure with the lean trainer; with the plain one not, and the lean one is shown beside it."""
    lean, plain = production_outlook(_record("reference")), production_outlook(_record("full"))
    assert lean is not None
    assert plain is not None
    assert lean.here is not None
    assert lean.here.grid[2, 1024].verdict == "fits"
    assert lean.lean is None
    assert plain.here is not None
    assert plain.here.grid[2, 1024].verdict == "does_not_fit"
    assert plain.lean is not None
    assert plain.lean.grid[2, 1024] == lean.here.grid[2, 1024]


def test_this_card_is_as_large_as_others_leave_it() -> None:
    """What was free before the run, and no more than the cap."""
    card = factory.device(total_bytes=80 * GIB).model_copy(update={"used_bytes": 3 * GIB})
    for cap_bytes, usable in ((None, 77 * GIB), (9 * GIB, 9 * GIB)):
        found = production_outlook(_record(device=card, cap_bytes=cap_bytes))
        assert found is not None
        assert found.here is not None
        assert found.here.usable_bytes == usable


def test_on_the_rented_card_its_own_size_counts() -> None:
    """A MIG slice of 19,968 MiB with 400 used: measured, no assumption, and no second card."""
    card = factory.device(SLICE, 19_968 * 2**20).model_copy(update={"is_mig": True, "used_bytes": 400 * 2**20})
    found = production_outlook(_record(device=card))
    assert found is not None
    assert found.there is not None
    assert (found.there.usable_bytes, found.there.is_assumed) == (19_568 * 2**20, False)
    assert found.here is None


@pytest.mark.parametrize(
    ("name", "gib", "is_one"),
    [(SLICE, 19.5, True), ("GRID A100D-20C", 20.0, True), ("NVIDIA A100-PCIE-40GB", 40.0, False),
     ("NVIDIA GeForce RTX 3090", 20.0, False)],
)  # fmt: skip
def test_a_slice_of_an_a100_is_known_by_name_and_size(name: str, gib: float, is_one: bool) -> None:
    """A whole A100 and another card of that size are not the rented one."""
    assert is_production_card(factory.device(name, round(gib * GIB)), ProductionTarget()) is is_one


def test_without_a_card_only_the_rented_one_is_predicted() -> None:
    """A rehearsal on the CPU: the formulas need no card, and nothing is said of this machine."""
    found = production_outlook(factory.rehearsal())
    assert found is not None
    assert found.there is not None
    assert found.there.is_assumed
    assert (found.here, found.lean) == (None, None)


def test_nothing_is_predicted_before_a_training() -> None:
    """No H-2 settings: no outlook."""
    assert production_outlook(factory.green_acceptance().model_copy(update={"stages": {}})) is None


def test_what_the_production_model_lacks_is_named() -> None:
    """LoRA on a module that no formula knows gives a reason instead of an error."""
    record = _record()
    h2 = record.stages[StageId.H2]
    odd = h2.attempts[-1].model_copy(update={"settings": TrainSettings(target_modules=("qkv",))})
    stages = record.stages | {StageId.H2: h2.model_copy(update={"attempts": (odd,)})}
    found = production_outlook(record.model_copy(update={"stages": stages}))
    assert found is not None
    assert found.there is None
    assert "qkv" in str(found.unpredicted)


def test_peaks_of_an_undescribed_pipeline_that_no_formula_explains_promise_nothing() -> None:
    """1.0 GiB, less than any known trainer takes: no prediction for another model, and how to get one."""
    record = _record("undescribed")
    h2 = record.stages[StageId.H2]
    light = h2.attempts[-1].model_copy(update={"probes": (factory.probe(1.0),)})
    stages = record.stages | {StageId.H2: h2.model_copy(update={"attempts": (light,)})}
    found = production_outlook(record.model_copy(update={"stages": stages}))
    assert found is not None
    assert found.there is None
    assert "--steph-calibrate" in str(found.unpredicted)


@pytest.mark.parametrize("chosen", LANGUAGES)
@pytest.mark.parametrize(("trainer", "is_said"), [("undescribed", True), ("answer", False), (None, False)])
def test_a_report_says_what_narrows_a_prediction_for_every_trainer(
    trainer: str | None, is_said: bool, chosen: Language
) -> None:
    """Below the intervals of H-1 and H-2: `trainer` in steph.toml, where it names none."""
    record = _record(trainer)
    predicted = PredictedPeak(peak_bytes=8 * GIB, low_bytes=4 * GIB, high_bytes=20 * GIB)
    h2 = record.stages[StageId.H2]
    attempt = h2.attempts[-1].model_copy(update={"predicted": predicted})
    record = record.model_copy(update={"stages": {StageId.H2: h2.model_copy(update={"attempts": (attempt,)})}})
    with speaking(chosen):
        said = unnamed_trainer_words(record, StageId.H2)
    assert (("`trainer`" in said), ("`steph.toml`" in said)) == (is_said, is_said)


def _going_to(record: Record, target: ProductionTarget) -> Record:
    return record.model_copy(update={"context": record.context.changed(production=target)})


def test_another_card_of_the_profile_is_as_large_as_the_table_or_the_profile_says() -> None:
    """An RTX 4090 by its name, and a card that no table has by its size."""
    for target, size_gib in (
        (ProductionTarget(card="RTX 4090"), 23.52),
        (ProductionTarget(card="MI300X", card_memory_gib=191.5), 191.5),
    ):
        found = production_outlook(_going_to(_record(), target))
        assert found is not None
        assert found.there is not None
        assert found.there.usable_bytes == round(size_gib * GIB)


@pytest.mark.parametrize(
    ("card", "name", "gib", "is_one"),
    [("RTX 3090", "NVIDIA GeForce RTX 3090", 24.0, True), ("RTX 3090", "NVIDIA GeForce RTX 3090 Ti", 24.0, False),
     ("RTX 4080", "NVIDIA GeForce RTX 4080 SUPER", 16.0, False), ("RTX 4080", "NVIDIA GeForce RTX 4080", 16.0, True),
     ("RTX 4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti", 16.0, True),
     ("RTX 4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti", 8.0, False),
     ("L40", "NVIDIA L40S", 45.0, False), ("A100 80GB", "NVIDIA A100-SXM4-80GB", 80.0, True),
     ("A100 80GB", "NVIDIA A100-SXM4-40GB", 40.0, False)],
)  # fmt: skip
def test_the_profiles_card_is_known_among_its_sisters(card: str, name: str, gib: float, is_one: bool) -> None:
    """Another model of the same line or another size of the same model is another card."""
    assert is_production_card(factory.device(name, round(gib * GIB)), ProductionTarget(card=card)) is is_one


def test_a_production_model_of_no_known_shape_has_no_prediction() -> None:
    """The reason is that its shape is not known, and there is no error."""
    found = production_outlook(_going_to(_record(), ProductionTarget(model="someone/unheard-of-13b")))
    assert found is not None
    assert found.there is None
    assert "unheard-of-13b" in str(found.unpredicted)


EIGHT_B = 8_190_735_360
PRODUCTION = TrainSettings(max_seq_length=1024, gradient_accumulation_steps=4)


def _trained_production(settings: TrainSettings, peak_gib: float, card_gib: int = 80) -> Record:
    """A record that trained the production model's shape on a card of this size, with this peak of its process."""
    record = _record(device=factory.device("NVIDIA H100", card_gib * GIB))
    choice = factory.model_choice(parameters=EIGHT_B)
    attempt = factory.trained(1, settings, peak_gib=peak_gib + 0.41)
    h1, h2 = (record.stages[stage] for stage in (StageId.H1, StageId.H2))
    stages = {StageId.H1: h1.changed(model=choice), StageId.H2: h2.changed(attempts=(attempt,))}
    return record.model_copy(update={"stages": record.stages | stages})


def test_what_was_measured_here_stands_in_the_predictions_place() -> None:
    """The production model at the production settings: one figure, on this card and on the rented one."""
    found = production_outlook(_trained_production(PRODUCTION, 8.25))
    assert found is not None
    assert found.here is not None
    assert found.there is not None
    for card in (found.here, found.there):
        shown = card.grid[2, 1024]
        assert shown.is_measured
        assert shown.peak_bytes == pytest.approx(8.25 * GIB, abs=2)
        assert not card.grid[2, 512].is_measured


def test_a_faster_way_that_was_taken_here_says_nothing_of_a_smaller_card() -> None:
    """On 80 GiB the trainer spends memory on speed: 30 GiB is this card's figure, not what the run needs."""
    found = production_outlook(_trained_production(PRODUCTION, 30))
    assert found is not None
    assert found.here is not None
    assert found.there is not None
    assert found.here.grid[2, 1024].is_measured
    assert not found.there.grid[2, 1024].is_measured
    assert found.there.grid[2, 1024].high_bytes < 19 * GIB


@pytest.mark.parametrize(
    "settings",
    [TrainSettings(max_seq_length=512, gradient_accumulation_steps=4), PRODUCTION.changed(lora_r=64),
     PRODUCTION.changed(gradient_accumulation_steps=2), PRODUCTION.changed(use_4bit=False)],
)  # fmt: skip
def test_other_settings_are_no_measurement_of_the_production_run(settings: TrainSettings) -> None:
    """Whatever changes the memory of a step between here and there leaves the prediction, but LoRA's rank carries."""
    found = production_outlook(_trained_production(settings, 8.25))
    assert found is not None
    assert found.there is not None
    assert found.there.grid[2, 1024].is_measured is (settings.lora_r == 64)


def test_a_production_model_whose_layers_no_formula_gives_has_no_prediction() -> None:
    """A mixture of experts is known by its sizes, and its memory was never measured: the reason says so."""
    found = production_outlook(_going_to(_record(), ProductionTarget(model="Qwen/Qwen3-30B-A3B")))
    assert found is not None
    assert found.there is None
    assert "qwen3_moe" in str(found.unpredicted)


@pytest.mark.parametrize("trainer", ["answer", "undescribed"])
def test_weights_count_as_they_were_seen(trainer: str) -> None:
    """Where the program can't be told of 4-bit, 8 and 16 bits take as much more as they are; fp32 has no formula."""
    peaks = {}
    for bits in (4, 8, 16, 32):
        record = _record(trainer)
        h2, call = record.stages[StageId.H2], ProductionCall(commands=(("t.py",),), said={"model": "--base"})
        last = h2.attempts[-1]
        assert last.training is not None
        seen = last.training.changed(weight_bits=bits)
        last = last.changed(settings=TrainSettings(use_4bit=False), production=call, training=seen)
        found = production_outlook(record.changed(stages={**record.stages, StageId.H2: h2.changed(attempts=(last,))}))
        assert found is not None
        peaks[bits] = found.there.grid[2, 1024].peak_bytes / GIB if found.there else str(found.unpredicted)
    four, eight, half, single = peaks.values()
    assert not isinstance(four, str)
    assert not isinstance(eight, str)
    assert not isinstance(half, str)
    # 6.95e9 weights in the linears of Qwen3-8B: 3.34, 6.47 and 12.94 GiB
    assert eight - four > 3.1
    assert half - four == pytest.approx(9.6, abs=2.5)
    assert "30.51 GiB" in str(single)  # 8,190,735,360 parameters of 4 bytes
    assert "torch.bfloat16" in str(single)


def test_fp32_on_a_cpu_is_no_word_on_a_card() -> None:
    """Many programs hold fp32 there alone: nothing is predicted, and nothing is said to be changed."""
    record = factory.rehearsal()
    h2 = record.stages[StageId.H2]
    last = h2.attempts[-1]
    assert last.training is not None
    call = ProductionCall(commands=(("t.py",),), said={"model": "--base"})
    plain = last.changed(
        settings=TrainSettings(use_4bit=False), production=call, training=last.training.changed(weight_bits=32)
    )
    found = production_outlook(record.changed(stages={**record.stages, StageId.H2: h2.changed(attempts=(plain,))}))
    assert found is not None
    assert found.there is None
    assert "30.51 GiB" in str(found.unpredicted)
    assert "torch.bfloat16" not in str(found.unpredicted)
