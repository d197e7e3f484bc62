"""What is refused before anything starts: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest
import record_factory as factory
from steph.base.messages import speaking, words_of
from steph.base.terms import StageId
from steph.conduct.preparation import prepare
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.run.inputs import InputError

CLONE = Path(__file__).parents[2]
CARD = factory.device()


@pytest.mark.parametrize(
    ("cap_bytes", "said"),
    [
        (CARD.total_bytes + 1, "10.11 GiB is more than this card's 10.11 GiB; give less, or leave it out"),
        (24 << 30, "24.00 GiB is more than this card's 10.11 GiB; give less, or leave it out"),
        (1 << 29, "a cap of 0.50 GiB leaves nothing for the allocator: a process holds 0.84 GiB beside it; give more"),
        (CARD.total_bytes, None),
        (1 << 30, None),
    ],
)
def test_a_cap_that_no_child_can_honour_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap_bytes: int, said: str | None
) -> None:
    """More than the card, or less than a process holds beside its allocator: one line that names the option."""
    monkeypatch.setattr("steph.run.gpu.visible_devices", lambda environ: (CARD,))
    options = Options("rtx3080", CLONE / "pipeline", None, None, False, cap_bytes, tmp_path)
    profile = load_profile(profile_path("rtx3080", CLONE))
    if said is None:
        assert prepare(options, profile, [StageId.H1]).context.vram_cap_bytes == cap_bytes
        return
    with pytest.raises(InputError) as refused:
        prepare(options, profile, [StageId.H1])
    assert words_of(refused.value).text("en") == f"--steph-vram-cap: {said}"


def test_one_cap_for_cards_of_two_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is given a share of each card, and the same share of two sizes can't be the same card."""
    cards = tuple(CARD.model_copy(update={"uuid": f"GPU-{gib}", "total_bytes": gib << 30}) for gib in (80, 24))
    monkeypatch.setattr("steph.run.gpu.visible_devices", lambda environ: cards)
    profile = load_profile(profile_path("rtx3080", CLONE))
    train = profile.train.model_copy(update={"launcher": "torchrun", "num_processes": 2})
    options = Options("rtx3080", CLONE / "pipeline", None, None, False, 8 << 30, tmp_path)
    with speaking("en"), pytest.raises(InputError, match="--steph-vram-cap: the cards differ in size"):
        prepare(options, profile.model_copy(update={"train": train}), [StageId.H1])


def test_a_twin_that_cannot_be_made_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose shape the suite doesn't carry: no record is opened; the later stages need none."""
    monkeypatch.setattr("steph.run.gpu.visible_devices", lambda environ: (CARD,))
    options = Options("rtx3080", CLONE / "pipeline", None, "nope/none", True, None, tmp_path)
    profile = load_profile(profile_path("rtx3080", CLONE))
    with speaking("en"), pytest.raises(InputError, match="--steph-twin: no built-in shape for 'nope/none'"):
        prepare(options, profile, [StageId.H1])
    assert prepare(options, profile, [StageId.H3]).context.twin
