"""Which of an adapter's matrices a training must have moved: a safetensors file in, the check out."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from steph.judge.checks_adapter import WEIGHTS_NAME, weight_checks
from steph.record import Check, Severity

LAYER = "base_model.model.model.layers.{}.self_attn.q_proj.lora_B.weight"
EXPERT = "base_model.model.model.layers.0.mlp.experts.{}.up_proj.lora_B.weight"
TOWER = "base_model.model.vision_tower.encoder.layers.{}.self_attn.q_proj.lora_B.weight"


def trained(folder: Path, matrices: Mapping[str, float], dtype: str = "F32") -> Check:
    """The check `adapter_trained` of an adapter with these tensors, each of one value."""
    header, data = {}, b""
    for name, value in matrices.items():
        raw = struct.pack("<f", value) if dtype == "F32" else bytes(1)
        header[name] = {"dtype": dtype, "shape": [1], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return next(check for check in weight_checks(folder)[1] if check.id == "adapter_trained")


@pytest.mark.parametrize(
    ("moved", "holds", "severity"),
    [(48, True, None), (47, False, Severity.WARN), (24, False, Severity.WARN), (23, False, Severity.FAIL),
     (1, False, Severity.FAIL), (0, False, Severity.FAIL)],
)  # fmt: skip
def test_matrices_that_stayed_at_zero_are_a_warning_and_most_of_them_a_failure(
    moved: int, holds: bool, severity: Severity | None, tmp_path: Path
) -> None:
    """Of 48 matrices each must have moved; where fewer than half did, gradients did not reach the model."""
    check = trained(tmp_path, {LAYER.format(n): float(n < moved) for n in range(48)})
    assert check.holds is holds
    assert severity is None or check.severity is severity
    assert ("layers.47." in check.message) is (moved == 47)


@pytest.mark.parametrize("idle", [EXPERT, TOWER])
def test_a_part_that_no_token_may_reach_is_not_accused(idle: str, tmp_path: Path) -> None:
    """Experts that were never chosen and the tower of images stay at zero in a sound training on text."""
    rest = {LAYER.format(n): 1.0 for n in range(2)}
    assert trained(tmp_path, rest | {idle.format(n): 0.0 for n in range(30)}).holds is True
    assert trained(tmp_path, dict.fromkeys(rest, 0.0) | {idle.format(n): 1.0 for n in range(30)}).holds is False


def test_an_adapter_of_nothing_but_experts_is_judged_by_them(tmp_path: Path) -> None:
    """Where there is nothing else, the experts themselves must have moved."""
    assert trained(tmp_path, {EXPERT.format(n): 0.0 for n in range(4)}).holds is False
    assert trained(tmp_path, {EXPERT.format(n): 1.0 for n in range(4)}).holds is True


def test_of_an_embeddings_pair_the_first_matrix_begins_at_zero(tmp_path: Path) -> None:
    """PEFT draws an embedding's B at random: it says nothing, and its A must have moved."""
    names = [f"base_model.model.model.embed_tokens.lora_embedding_{part}" for part in "AB"]
    assert trained(tmp_path, dict(zip(names, (0.0, 1.0), strict=True))).holds is False
    assert trained(tmp_path, dict(zip(names, (1.0, 0.0), strict=True))).holds is True


def test_matrices_that_can_not_be_read_are_unmeasured(tmp_path: Path) -> None:
    """A number format that is not decoded is neither moved nor still, and so never green."""
    check = trained(tmp_path, {LAYER.format(0): 0.0}, dtype="F8_E4M3")
    assert (check.holds, check.severity) == (None, Severity.FAIL)
