"""`steph fit` on names as people write them, on quantised weights, and beyond what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from steph.base.messages import speaking
from steph.cli import app
from steph.contract.settings import card_by_name
from steph.memory.shapes import COMMON, Weights, config_of, same_model, weights_by_config, weights_by_name
from typer.testing import CliRunner

ONE = ("--batch-size", "1", "--max-seq-length", "1024")


def _said(*words: str) -> tuple[int, str]:
    with speaking("en"):
        result = CliRunner().invoke(app, ["fit", *words], env={"STEPH_LANGUAGE": "en", "HF_HUB_OFFLINE": "1"})
    return result.exit_code, result.output


def _asked(*words: str) -> dict[str, Any]:
    status, text = _said(*words, "--json")
    assert status == 0, text
    found: dict[str, Any] = json.loads(text)
    return found


# cards


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RTX 3060 12GB", "RTX 3060"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Quadro RTX 8000", "RTX 8000"),
        ("4090", "RTX 4090"),
        ("3090 24GB", "RTX 3090"),
        ("T4 16GB", "T4"),
        ("NVIDIA GeForce RTX 4080", "RTX 4080"),
        ("3080 ti", "RTX 3080 Ti"),
        ("RTX 3080 12GB", "RTX 3080 12GB"),
        ("RTX 3080 10GB", "RTX 3080"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("4060 Ti 16GB", "RTX 4060 Ti 16GB"),
        ("RTX 4060 Ti (8 GB)", "RTX 4060 Ti 8GB"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("A6000", "RTX A6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA B200", "B200"),
        ("H100 NVL", "H100 NVL"),
        ("NVIDIA TITAN RTX", "TITAN RTX"),
    ],
)
def test_a_card_is_found_as_people_and_nvidia_smi_write_it(written: str, meant: str) -> None:
    """Form, maker and the size that it is sold with are no other card."""
    assert card_by_name(written).name == meant


@pytest.mark.parametrize(
    "written", ["RTX 3060 8GB", "RTX 4070 12GB Laptop", "RTX 3080 Laptop GPU", "H100 MIG 3g.40gb", "MI300X", ""]
)
def test_another_card_of_a_like_name_is_not_taken_for_it(written: str) -> None:
    """Less or other memory under nearly the same name: one line that says what is known."""
    with speaking("en"), pytest.raises(ValueError, match="not known"):
        card_by_name(written)


def test_a_name_for_several_sizes_asks_which_and_two_cards_are_asked_for_by_their_number() -> None:
    """A100 is three sizes; `2x T4` is one card twice."""
    with speaking("en"), pytest.raises(ValueError, match=r"in full \(A100 20GB slice, A100 40GB, A100 80GB\)"):
        card_by_name("A100")
    with speaking("en"), pytest.raises(ValueError, match=r"in full \(RTX 4060 Ti 16GB, RTX 4060 Ti 8GB\)"):
        card_by_name("RTX 4060 Ti")
    for written in ("2x T4", "T4 x2", "2 x RTX 3090"):
        with pytest.raises(ValueError, match="--cards"):
            card_by_name(written)


# names and weights


@pytest.mark.parametrize(
    ("name", "known", "weights"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B", Weights("awq", 4)),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B", Weights("gptq-int8", 8)),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Llama-3-8B", Weights("bnb-4bit", 4)),
        ("unsloth/phi-4-unsloth-bnb-4bit", "microsoft/phi-4", Weights("unsloth-bnb-4bit", 4)),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B", Weights("fp8", 8)),
        ("NousResearch/Llama-2-7b-hf", "meta-llama/Llama-2-7b", Weights()),
        ("someone/Llama-3-8B-pruned", None, Weights()),
        ("Qwen3-9B-4bit", None, Weights("4bit", 4)),
    ],
)
def test_a_name_tells_the_model_and_its_weights(name: str, known: str | None, weights: Weights) -> None:
    """Another owner's copy and a quantised one have the common model's sizes; one that only begins like it has not."""
    assert (same_model(name), weights_by_name(name)) == (known, weights)


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        (None, Weights()),
        ({"quant_method": "gptq", "bits": 4}, Weights("gptq", 4)),
        ({"quant_method": "gptq", "bits": 8}, Weights("gptq", 8)),
        ({"quant_method": "awq", "bits": 4}, Weights("awq", 4)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Weights("bitsandbytes", 4)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, Weights("bitsandbytes", 8)),
        ({"quant_method": "fp8"}, Weights("fp8", 8)),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
            Weights("compressed-tensors", 4),
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 1}}, Weights("compressed-tensors", 8)),
        ({"quant_method": "something new"}, Weights("something new", 8)),
        ("garbage", Weights()),
    ],
)
def test_a_config_tells_how_its_weights_are_quantised(quantization: object, weights: Weights) -> None:
    """Where the bits are not said, the more is counted."""
    assert weights_by_config({"quantization_config": quantization}) == weights


def test_quantised_weights_are_counted_in_their_bits_and_only_bitsandbytes_as_measured(tmp_path: Path) -> None:
    """By name or by a folder: AWQ is an estimate, GPTQ in 8 bits takes what 8 bits do, and 16 bits can't be had."""
    plain = _asked("--model", "Qwen2.5-7B", "--card", "RTX 4090", "--trainer", "trl", *ONE)
    same = _asked("--model", "unsloth/Qwen2.5-7B-bnb-4bit", "--card", "RTX 4090", "--trainer", "trl", *ONE)
    awq = _asked("--model", "Qwen/Qwen2.5-7B-AWQ", "--card", "RTX 4090", "--trainer", "trl", *ONE)
    assert same["high_gib"] == plain["high_gib"]
    assert any("taken for Qwen/Qwen2.5-7B" in line for line in same["basis"])
    assert awq["high_gib"] == pytest.approx(1.1 * plain["high_gib"], rel=1e-3)
    config = config_of(COMMON["Qwen/Qwen2.5-7B"]) | {"quantization_config": {"quant_method": "gptq", "bits": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = ("--model", str(tmp_path), "--card", "RTX 4090")
    eight = _asked("--model", "Qwen2.5-7B", "--bits", "8", "--card", "RTX 4090", "--trainer", "trl", *ONE)
    assert _asked(*folder, "--trainer", "trl", *ONE)["total_gib"] == eight["total_gib"]
    for words in (("--bits", "16"), ("--no-4bit",)):
        status, text = _said(*folder, *words)
        assert status == 2
        assert text.startswith("steph: --bits 16: these weights are published in 8 bits (gptq)")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Qwen/Qwen3-8B-GGUF", "GGUF weights are for inference"),
        ("qwen2.5:7b", "Qwen/Qwen2.5-7B"),
        ("Llama 3.1 8B", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_names_like_it(model: str, said: str) -> None:
    """No page of names where some are near."""
    status, text = _said("--model", model, "--card", "T4")
    assert status == 2
    assert said in text
    assert len(text) < 400


# beyond what was measured


def test_each_thing_beyond_what_was_measured_widens_the_answer_for_itself() -> None:
    """Gemma-3-12B, 8 bits, 15,000 tokens: a run of Unsloth like this was seen to run out of memory on an H100."""
    model = ("--model", "gemma-3-12b", "--trainer", "unsloth", "--target-modules", "all-linear", "--batch-size", "1")
    found = _asked(*model, "--bits", "8", "--max-seq-length", "15000", "--card", "H100 80GB")
    assert sum("10 % more" in line for line in found["basis"]) == 3
    assert found["verdict"] == "too_close"


def test_a_quantised_base_is_not_surely_shared_between_cards() -> None:
    """Llama-3-70B with ZeRO-3 on eight cards: in 4 bits not sure of 31 GiB; in 16 bits the base is surely shared."""
    model = ("--model", "Llama-3-70B", "--trainer", "trl", "--batch-size", "1", "--max-seq-length", "2048")
    shared = ("--cards", "8", "--sharing", "zero3")
    found = _asked(*model, *shared, "--card", "RTX 5090")
    one = _asked(*model, "--card", "RTX 5090")
    assert found["verdict"] == "too_close"
    assert found["high_gib"] > one["high_gib"]
    assert any("bnb_4bit_quant_storage" in line for line in found["basis"])
    half = _asked(*model, *shared, "--card", "A100 80GB", "--bits", "16")
    assert half["verdict"] == "fits"
    assert not any("bnb_4bit_quant_storage" in line for line in half["basis"])


def test_every_known_trainer_of_an_unnamed_one_is_as_wide_as_if_it_were_named() -> None:
    """A card without bf16, an image tower, two cards: what `--trainer trl` answers, and no narrower."""
    for more in ((), ("--cards", "2", "--sharing", "zero3")):
        words = ("--model", "gemma-3-4b", "--card", "T4", *ONE, *more)
        named = _asked(*words, "--trainer", "trl")
        listed = _asked(*words)["by_trainer"]["trl"]
        assert listed == {name: named[name] for name in ("low_gib", "high_gib", "verdict")}


def test_a_trainers_version_is_said_since_others_may_hold_more() -> None:
    """The line of the trainer names what was measured."""
    found = _asked("--model", "Qwen3-8B", "--card", "T4", "--trainer", "unsloth", *ONE)
    assert any("Unsloth 2026.10; other versions may hold more" in line for line in found["basis"])


def test_no_card_without_bf16_is_offered_for_what_was_foreseen_with_it() -> None:
    """Llama-3.1-70B would fit 47 GiB with bf16, which an RTX 8000 has not, so that it needs more there."""
    words = ("--model", "Llama-3.1-70B", "--trainer", "trl", "--batch-size", "2", "--max-seq-length", "1024")
    found = _asked(*words, "--card", "RTX 3080")
    assert found["high_gib"] + 0.1 < card_by_name("RTX 8000").usable_gib < 1.1 * found["high_gib"]
    assert found["larger_card"] == "RTX A6000"  # as large, and with bf16


def test_rows_beyond_the_models_positions_are_said() -> None:
    """Llama 2 has 4,096; where names of one shape differ, nothing is said."""
    words = ("--card", "RTX 4090", "--batch-size", "1", "--max-seq-length", "5000")
    assert any("longer than the 4096 positions" in line for line in _asked("--model", "Llama-2-7b", *words)["basis"])
    assert not any("positions" in line for line in _asked("--model", "Llama-3-8B", *words)["basis"])


def test_training_all_weights_is_not_called_lora() -> None:
    """The first line says what is trained."""
    status, text = _said("--model", "Qwen3-0.6B", "--card", "T4", "--full-finetuning", *ONE)
    assert status == 0
    assert "16-bit, all weights, adamw_torch" in text.splitlines()[0]
