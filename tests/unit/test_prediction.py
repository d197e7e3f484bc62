"""What the suite predicts before it runs, and which rungs it therefore leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.terms import Phase
from steph.base.units import GIB
from steph.conduct.models import expected, usable_bytes, worth_trying
from steph.conduct.preparation import Setup
from steph.contract.description import Description
from steph.contract.options import Options
from steph.contract.rows import RowLengths
from steph.contract.settings import Profile, load_profile, profile_path
from steph.record.settings import Device, TrainSettings

SETTINGS = TrainSettings()
EIGHT = factory.model_choice("Qwen/Qwen3-8B", snapshot_path=None)
SMALL = factory.model_choice("Qwen/Qwen1.5-1.8B-Chat", snapshot_path=None)
REPOSITORY = Path(__file__).parents[2]


def _profile() -> Profile:
    return load_profile(profile_path("rtx3080", REPOSITORY))


def _setup(trainer: str | None, card: Device | None, cap_bytes: int | None = None) -> Setup:
    options = Options("rtx3080", REPOSITORY, None, None, False, cap_bytes, REPOSITORY)
    record = factory.green_acceptance()
    description = Description.model_validate({"trainer": trainer})
    return Setup(options, _profile(), description, "python", card, record.data[0], record.context)


def test_the_trainer_decides_whether_the_large_model_can_fit_the_small_card() -> None:
    """Qwen3-8B on 10 GB: hopeless with the fp32 upcast, sure without."""
    full = expected(_setup("full", factory.device()), EIGHT, SETTINGS)
    answer = expected(_setup("answer", factory.device()), EIGHT, SETTINGS)
    assert full is not None
    assert answer is not None
    assert full.cannot_fit
    assert answer.surely_fits
    assert not worth_trying(full, None, gave_up_4bit=False)
    assert worth_trying(answer, None, gave_up_4bit=False)


def test_without_a_card_or_a_shape_nothing_is_predicted() -> None:
    """On the CPU, and for a model that nobody knows, the suite says nothing rather than something."""
    assert expected(_setup("answer", None), EIGHT, SETTINGS) is None
    unknown = factory.model_choice("nobody/none", snapshot_path=None)
    assert expected(_setup("answer", factory.device()), unknown, SETTINGS) is None


def test_a_cap_and_other_programs_make_the_card_smaller() -> None:
    """What a child may use is the smaller of the cap and what is free."""
    card = factory.device(total_bytes=80 * GIB).model_copy(update={"used_bytes": GIB})
    assert usable_bytes(_setup("full", card)) == 79 * GIB
    assert usable_bytes(_setup("full", card, 9 * GIB)) == 9 * GIB
    assert usable_bytes(_setup("full", card, 100 * GIB)) == 79 * GIB


def test_of_several_cards_the_smallest_counts() -> None:
    """Every process holds the model: a training over two cards fits where it fits the smaller one."""
    large, small = (factory.device(total_bytes=size * GIB) for size in (80, 10))
    one = _setup("full", large)
    environment = one.context.environment.model_copy(update={"device": large, "further_devices": (small,)})
    train = one.profile.train.model_copy(update={"launcher": "torchrun", "num_processes": 2})
    both = replace(
        one,
        context=one.context.model_copy(update={"environment": environment}),
        profile=one.profile.model_copy(update={"train": train}),
    )
    assert usable_bytes(both) == small.usable_bytes(None)
    assert both.context.usable_bytes == small.usable_bytes(None)
    assert usable_bytes(replace(both, profile=one.profile)) == large.usable_bytes(None)


def test_real_rows_shorter_than_the_limit_lower_the_prediction() -> None:
    """The answer trainer pads to the longest row, the plain one to the maximum."""
    for trainer, is_lower in (("answer", True), ("full", False)):
        setup = _setup(trainer, factory.device())
        rows = RowLengths((200, 150), (200, 150), (3, 3))
        whole, real = expected(setup, SMALL, SETTINGS), expected(setup, SMALL, SETTINGS, rows)
        assert whole is not None
        assert real is not None
        assert (real.least.peak.peak_bytes < whole.least.peak.peak_bytes) is is_lower


def test_long_answers_raise_the_prediction_up_to_the_logits_that_are_held_at_once() -> None:
    """128 positions have 16 times the logits of two letters, and no answer has more; the plain trainer makes all."""
    for trainer, is_higher in (("answer", True), ("full", False)):
        setup = _setup(trainer, factory.device())
        short, long = (expected(setup, SMALL, SETTINGS, RowLengths((512,), (512,), (answer,))) for answer in (3, 243))
        assert short is not None
        assert long is not None
        assert (long.least.peak.peak_bytes - short.least.peak.peak_bytes > 0.1 * GIB) is is_higher
        longer = expected(setup, SMALL, SETTINGS, RowLengths((512,), (512,), (500,)))
        assert longer is not None
        assert longer.least.peak.peak_bytes == long.least.peak.peak_bytes


def test_giving_up_4bit_after_an_oom_needs_a_sure_fit() -> None:
    """A 4B model in bf16 on 10 GB: close enough to try first, not as the cure of an OOM."""
    four = factory.model_choice("Qwen/Qwen3-4B", snapshot_path=None)
    plain = TrainSettings(use_4bit=False, mixed_precision="bf16", batch_size=1, max_seq_length=256)
    found = expected(_setup("answer", factory.device(total_bytes=round(9.2 * GIB))), four, plain)
    assert found is not None
    assert not found.surely_fits
    assert not found.cannot_fit
    ran_out = factory.out_of_memory(1, SETTINGS, Phase.FIRST_STEP)
    assert worth_trying(found, None, gave_up_4bit=True)
    assert not worth_trying(found, ran_out, gave_up_4bit=True)
    assert worth_trying(found, ran_out, gave_up_4bit=False)


def test_an_undescribed_trainer_is_predicted_but_never_passed_over() -> None:
    """Where nobody said how the trainer uses memory, a setting that seems too large is still tried."""
    large = factory.model_choice("Qwen/Qwen3-8B", snapshot_path=None)
    for trainer, is_tried in (("full", False), (None, True)):
        found = expected(_setup(trainer, factory.device(total_bytes=6 * GIB)), large, SETTINGS)
        assert found is not None
        assert found.cannot_fit
        assert worth_trying(found, None, gave_up_4bit=False) is is_tried


def test_what_is_expected_is_said_with_the_card() -> None:
    """What the profile's settings will need of this card, in words."""
    setup = _setup("answer", factory.device())
    expectation = expected(setup, SMALL, setup.profile.train)
    assert expectation is not None
    assert f"{expectation.card_bytes / GIB:.2f} GiB" in str(expectation.words())


@pytest.mark.parametrize("trainer", ["full", "answer"])
def test_the_likely_way_is_never_below_the_least(trainer: str) -> None:
    """What the trainer will probably use is at least what it can do with."""
    found = expected(_setup(trainer, factory.device()), SMALL, SETTINGS)
    assert found is not None
    assert found.likely.peak.peak_bytes >= found.least.peak.peak_bytes
