"""`steph init` proposes small models of the family that a folder is made for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from steph.contract.draft import FAMILIES, draft, family_of, findings, survey
from steph.memory.shapes import model_shape, parameter_count

pytestmark = pytest.mark.usefixtures("english")
LLAMAS = ["meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"]
TRAIN = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--model", default="{model}"); parser.add_argument("--data"); parser.add_argument("--output-dir")
trainer = SFTTrainer(model=parser.parse_args().model, args=SFTConfig(max_steps=10))
trainer.train()
"""


@pytest.mark.parametrize(
    ("model", "candidates"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", LLAMAS),
        (
            "unsloth/Meta-Llama-3.1-8B-bnb-4bit",
            ["meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"],
        ),
        ("google/gemma-3-27b-it", ["google/gemma-3-1b-it", "google/gemma-2-2b-it"]),
        ("mistralai/Mixtral-8x7B-v0.1", ["mistralai/Mistral-7B-Instruct-v0.3"]),
        ("microsoft/phi-4", ["microsoft/Phi-4-mini-instruct", "microsoft/Phi-3.5-mini-instruct"]),
        ("Qwen/Qwen3-8B", None),
        ("openai/gpt-oss-120b", None),
    ],
)
def test_small_candidates_are_of_the_family_that_is_named(
    tmp_path: Path, model: str, candidates: list[str] | None
) -> None:
    """A default in a script; Qwen's are the profile's own, and a family without a small one proposes nothing."""
    (tmp_path / "train.py").write_text(TRAIN.replace("{model}", model), encoding="utf-8")
    found = survey(tmp_path)
    text = draft(found)
    assert tomllib.loads(text.replace("…", "0")).get("model", {}).get("candidates") == candidates, text
    assert ("are named" in " ".join(findings(found))) is (family_of(model) is not None)


def test_a_configuration_in_the_folder_says_its_family(tmp_path: Path) -> None:
    """A model's folder below the root: its model_type."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gemma2"}', encoding="utf-8")
    family = survey(tmp_path).family
    assert family is not None
    assert family.name == "Gemma"


def test_a_word_in_a_path_is_no_model(tmp_path: Path) -> None:
    """llama.cpp, LLaMA-Factory and a folder named gemma are no models."""
    (tmp_path / "README.md").write_text("pip install llamafactory; see docs/llama.md, runs/gemma/out", encoding="utf-8")
    assert survey(tmp_path).family is None


def test_the_sizes_of_known_shapes_are_counted() -> None:
    """Where this suite carries a model's shape, the table's parameters are that shape's."""
    known = {
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "mistralai/Mistral-7B-Instruct-v0.3",
    }
    small = {model: parameters for family in FAMILIES for model, parameters in family.small.items()}
    assert known <= small.keys()
    assert {model: parameter_count(model_shape(model)) for model in known} == {model: small[model] for model in known}
