"""The ladder: which settings each rung has, and where every cause and phase leads."""

from __future__ import annotations

from pathlib import Path

import pytest
from steph.base.messages import say
from steph.base.terms import Cause, Phase
from steph.conduct.training import Move, MoveKind, given_up, ladder_without_4bit, next_move, settings_at
from steph.contract.settings import load_profile, profile_path
from steph.record.settings import steps_per_epoch
from steph.record.values import Diagnosis

PROFILE = load_profile(profile_path("rtx3080", Path(__file__).parents[2]))
BASE, LADDER = PROFILE.train, PROFILE.ladder


def _move(cause: Cause, phase: Phase | None = Phase.STEP, rung: int = 0) -> Move:
    return next_move(Diagnosis(cause=cause, phase=phase), rung, LADDER)


def test_rungs_are_cumulative_as_the_spec_lists_them() -> None:
    """512/b2, 384/b2, 256/b2, 256/b1, 256/b1 without 4-bit."""
    shown = [settings_at(BASE, LADDER, rung).short() for rung in range(len(LADDER) + 1)]
    assert shown == ["512/b2/4bit", "384/b2/4bit", "256/b2/4bit", "256/b1/4bit", "256/b1/bf16"]


def test_a_card_without_bf16_drops_4bit_in_fp16() -> None:
    """The rung without 4-bit trains in fp16 where the card has no bf16."""
    assert settings_at(BASE, LADDER, 4, half="fp16").mixed_precision == "fp16"


def test_a_precision_that_was_asked_for_is_kept_without_4bit() -> None:
    """A profile that trains in fp16 goes on in fp16, on the ladder's own rung and where bitsandbytes can't be used."""
    asked = BASE.model_copy(update={"mixed_precision": "fp16"})
    assert settings_at(asked, LADDER, 4).mixed_precision == "fp16"
    assert ladder_without_4bit(asked, LADDER)[0].mixed_precision == "fp16"


def test_smaller_batches_keep_the_effective_batch() -> None:
    """Accumulation doubles where the batch is halved."""
    for rung in range(len(LADDER) + 1):
        settings = settings_at(BASE, LADDER, rung)
        assert settings.batch_size * settings.gradient_accumulation_steps == 4


def test_a_skipped_rung_gives_its_change_back() -> None:
    """Where 384 and 256 are meaningless, the rung after them is 512 with batch 1."""
    settings = settings_at(BASE, LADDER, 3, skipped={1, 2})
    assert (settings.max_seq_length, settings.batch_size) == (512, 1)


@pytest.mark.parametrize("phase", [Phase.FIRST_STEP, Phase.STEP, Phase.SAVE, Phase.EVAL, None])
def test_cuda_oom_in_steps_goes_down_and_stops_at_the_last_rung(phase: Phase | None) -> None:
    """An OOM after preparing steps down one rung, and at the bottom it stops."""
    assert _move(Cause.CUDA_OOM, phase).kind is MoveKind.NEXT_RUNG
    assert _move(Cause.CUDA_OOM, phase, rung=len(LADDER)).kind is MoveKind.STOP


@pytest.mark.parametrize("phase", [Phase.LOAD, Phase.PREPARE])
def test_cuda_oom_before_the_first_step_asks_for_a_smaller_model(phase: Phase) -> None:
    """Batch and length can't cure an OOM while loading or preparing."""
    assert _move(Cause.CUDA_OOM, phase).kind is MoveKind.SMALLER_MODEL


def test_bitsandbytes_trouble_goes_without_4bit_at_the_first_settings() -> None:
    """A broken bitsandbytes jumps to no 4-bit at the first rung's batch and length, and stops if that fails too."""
    assert _move(Cause.BNB_SETUP).kind is MoveKind.WITHOUT_4BIT
    top, rest = ladder_without_4bit(BASE, LADDER)
    assert top.short() == "512/b2/bf16"
    assert next_move(Diagnosis(cause=Cause.BNB_SETUP), 0, rest).kind is MoveKind.STOP
    assert settings_at(top, rest, len(rest)).short() == "256/b1/bf16"


@pytest.mark.parametrize("cause", sorted(set(Cause) - {Cause.CUDA_OOM, Cause.BNB_SETUP}))
def test_any_other_cause_stops_at_once(cause: Cause) -> None:
    """Lower settings cure nothing but memory and bitsandbytes."""
    assert _move(cause) == Move(MoveKind.STOP, say("ladder.no_help", cause=cause.value))


def test_what_was_given_up_is_named() -> None:
    """A degraded pass lists each setting with its value before and after."""
    assert tuple(map(str, given_up(BASE, settings_at(BASE, LADDER, 2)))) == ("max-seq-length 512 → 256",)
    assert given_up(BASE, BASE) == ()
    assert tuple(map(str, given_up(BASE, settings_at(BASE, LADDER, 4)))) == (
        "max-seq-length 512 → 256",
        "batch-size 2 → 1",
        "gradient-accumulation-steps 2 → 4",
        "4bit あり → なし",
        "mixed precision なし → bf16",
    )


@pytest.mark.parametrize(("rows", "batch", "accumulation", "steps"), [(140, 2, 2, 35), (141, 2, 2, 36), (1, 2, 2, 1)])
def test_steps_per_epoch_round_up_twice(rows: int, batch: int, accumulation: int, steps: int) -> None:
    """Steps per epoch are the Trainer's: batches rounded up, then accumulation rounded up."""
    settings = BASE.model_copy(update={"batch_size": batch, "gradient_accumulation_steps": accumulation})
    assert steps_per_epoch(rows, settings) == steps


def test_several_processes_share_an_epoch() -> None:
    """Two processes take two batches at a time, so an epoch has half the steps."""
    settings = BASE.model_copy(update={"num_processes": 2})
    assert (steps_per_epoch(140, BASE), steps_per_epoch(140, settings)) == (35, 18)
