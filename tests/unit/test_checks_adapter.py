"""What an adapter's matrices must show after a training: safetensors files in, checks out."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from steph.base.messages import say
from steph.base.terms import Severity
from steph.contract.training_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, TrainerState
from steph.judge.checks_adapter import last_check, weight_checks
from steph.record.values import Check

LAYER = "base_model.model.model.layers.{}.self_attn.q_proj.lora_B.weight"
EXPERT = "base_model.model.model.layers.0.mlp.experts.{}.up_proj.lora_B.weight"
TOWER = "base_model.model.vision_tower.encoder.layers.{}.self_attn.q_proj.lora_B.weight"


def write(folder: Path, matrices: Mapping[str, float], dtype: str = "F32") -> Path:
    """An adapter with these tensors, each of one value."""
    folder.mkdir(exist_ok=True)
    header, data = {}, b""
    for name, value in matrices.items():
        raw = struct.pack("<f", value) if dtype == "F32" else bytes(1)
        header[name] = {"dtype": dtype, "shape": [1], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / ADAPTER_WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def trained(folder: Path, matrices: Mapping[str, float], dtype: str = "F32") -> Check:
    """The check `adapter_trained` of such an adapter."""
    return found("adapter_trained", write(folder, matrices, dtype))


def found(check_id: str, folder: Path) -> Check:
    """The check of this id of a folder's weights."""
    return next(check for check in weight_checks(folder)[1] if check.id == check_id)


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
    assert ("layers.47." in str(check.message)) is (moved == 47)
    assert ("何も学習していない" in str(check.message)) is (moved == 0)


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
    assert trained(tmp_path, dict(zip(names, (1.0, 0.5), strict=True))).holds is True


def test_matrices_that_can_not_be_read_are_unmeasured(tmp_path: Path) -> None:
    """A number format that is not decoded is neither moved nor still, and so never green."""
    check = trained(tmp_path, {LAYER.format(0): 0.0}, dtype="F8_E4M3")
    assert (check.holds, check.severity) == (None, Severity.FAIL)


@pytest.mark.parametrize(("init", "holds"), [(True, True), ("gaussian", True), ("pissa", None), (False, None)])
def test_a_start_that_is_not_zero_rules_the_check_out(init: object, holds: bool | None, tmp_path: Path) -> None:
    """PiSSA and its like draw B from the model's weights: that it is not zero says nothing, and is no fault."""
    (tmp_path / ADAPTER_CONFIG_NAME).write_text(json.dumps({"init_lora_weights": init}), encoding="utf-8")
    check = trained(tmp_path, {LAYER.format(0): 1.0})
    assert check.holds is holds
    assert check.applies is bool(holds)
    assert trained(tmp_path, {LAYER.format(0): 0.0}).holds is False


@pytest.mark.parametrize(
    ("names", "alone"),
    [
        (("q_proj.lora_A.weight", "q_proj.lora_B.weight", "q_proj.lora_B.bias"), None),
        (("q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"), None),
        (("embed_tokens.lora_embedding_A", "embed_tokens.lora_embedding_B", "q.lora_magnitude_vector"), None),
        (("q_proj.lora_A.weight", "q_proj.lora_B.weight", "v_proj.lora_A.weight"), "v_proj.lora_A"),
        (("q_proj.lora_B.weight",), "q_proj.lora_B"),
        (("embed_tokens.lora_embedding_B",), "lora_embedding_B"),
    ],
)
def test_every_matrix_needs_the_other_one_of_its_pair(
    names: tuple[str, ...], alone: str | None, tmp_path: Path
) -> None:
    """Half a pair is loaded with the other half at random, or not at all; biases and magnitudes have none."""
    check = found("adapter_weights", write(tmp_path, dict.fromkeys(names, 1.0)))
    assert check.holds is (alone is None)
    assert alone is None or alone in str(check.message)


@pytest.mark.parametrize(
    ("last", "best", "holds"),
    [(1.0, None, True), (0.5, None, False), (0.5, 1.0, True), (0.5, 0.7, False)],
)
def test_what_was_saved_is_the_last_checkpoints_or_the_best_ones(
    last: float, best: float | None, holds: bool, tmp_path: Path
) -> None:
    """`load_best_model_at_end` saves another than the last, which the state names; anything else was saved early."""
    write(tmp_path, {LAYER.format(0): 1.0})
    state = TrainerState(write(tmp_path / "checkpoint-10", {LAYER.format(0): last}), fresh=True)
    if best is not None:
        write(tmp_path / "checkpoint-5", {LAYER.format(0): best})
        state = replace(state, best_folder="checkpoint-5")
    assert last_check(tmp_path, state).holds is holds


def test_checkpoints_that_can_not_be_compared_accuse_nobody(tmp_path: Path) -> None:
    """Another number format, other names, a checkpoint without weights or of an earlier run: not measured."""
    write(tmp_path, {LAYER.format(0): 1.0})
    state = TrainerState(write(tmp_path / "checkpoint-10", {LAYER.format(0): 1.0}), fresh=True)
    assert last_check(tmp_path, replace(state, fresh=False)).holds is None
    assert last_check(tmp_path, TrainerState(problem=say("checkpoint.none"))).holds is None
    write(tmp_path / "checkpoint-10", {LAYER.format(0): 1.0}, dtype="F8_E4M3")
    assert last_check(tmp_path, state).holds is None
    write(tmp_path / "checkpoint-10", {LAYER.format(1): 1.0})
    assert last_check(tmp_path, state).holds is None
    (tmp_path / "checkpoint-10" / ADAPTER_WEIGHTS_NAME).unlink()
    check = last_check(tmp_path, state)
    assert (check.holds, check.severity) == (None, Severity.INFO)
