"""Parsing of stdout: the Trainer's dict lines of both transformers versions, and the evaluation's key lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steph.judge.lines import (
    adapter_trouble_in,
    metrics_in,
    missing_weights_in,
    parse_evaluation,
    parse_metrics,
    split_lines,
    tracebacks_in,
)


@pytest.mark.parametrize(
    "line",
    [
        "{'train_runtime': 46.9, 'train_loss': 1.55, 'epoch': 1.43}",
        "{'train_runtime': '46.9', 'train_loss': '1.55', 'epoch': '1.43'}",
        "  {'train_runtime': 4.69e1, 'train_loss': 1.55, 'note': 'text', 'epoch': 1.43}  ",
    ],
)
def test_dict_lines_of_transformers_4_and_5_give_the_same_numbers(line: str) -> None:
    """Numbers and quoted numbers are one; values that are text are left out."""
    found = parse_metrics(line)
    assert found is not None
    assert (found.get("train_runtime"), found.get("train_loss"), found.get("epoch")) == (46.9, 1.55, 1.43)
    assert found.get("note") is None


def test_nan_and_infinity_are_numbers() -> None:
    """A loss of nan, inf or 'nan' reaches the checks as such."""
    values = [m.get("loss") for m in metrics_in(["{'loss': nan}", "{'loss': 'inf'}", "{'loss': 'nan'}"])]
    assert [value is not None and math.isfinite(value) for value in values] == [False, False, False]
    assert None not in values


@pytest.mark.parametrize("line", ["", "{}", "{'a'", "loss: 1.0", "[{'loss': 1.0}]", "{'loss': 'text'}"])
def test_other_text_is_no_dict_line(line: str) -> None:
    """Only a whole dict line with a number counts."""
    assert parse_metrics(line) is None


def test_progress_bars_colours_and_carriage_returns_hide_no_line() -> None:
    """Lines behind a progress bar's carriage return or within colour codes are found."""
    assert split_lines("\r 1/3\r 2/3\r{'loss': 1.0}\n\n\x1b[32mAccuracy: 5%\x1b[0m") == (
        " 1/3", " 2/3", "{'loss': 1.0}", "Accuracy: 5%",
    )  # fmt: skip


def test_the_last_block_of_results_counts() -> None:
    """Where results are printed twice, the figures of the last block are taken."""
    block = "EVALUATION RESULTS\nTotal Samples: {n}\nAccuracy: {a}%\n"
    lines = parse_evaluation(block.format(n=3, a="33.33") + block.format(n=5, a="40.00"))
    assert (lines.total, lines.accuracy) == (5, 0.4)


@pytest.mark.parametrize(
    ("text", "accuracy"),
    [("33.33%", 0.3333), ("33.33 %", 0.3333), ("0.5", 0.5), ("66.67", 0.6667), ("100.00%", 1.0), ("0.00%", 0.0)],
)
def test_accuracy_is_read_as_percentage_or_fraction(text: str, accuracy: float) -> None:
    """Both forms give a figure from 0 to 1."""
    assert parse_evaluation(f"Accuracy: {text}").accuracy == pytest.approx(accuracy)


def test_the_total_before_the_evaluation_is_not_the_result() -> None:
    """`Total samples to evaluate` announces and does not count."""
    assert parse_evaluation("Total samples to evaluate: 3\n").total is None


@pytest.mark.parametrize(
    "text",
    [
        "UserWarning: Found missing adapter keys while loading the checkpoint: ['x'].",
        "WARNING LoRA weights could not be loaded, continuing with the base model",
        "Failed to load LoRA adapter from runs/x",
        "ValueError: Can't find 'adapter_config.json' at 'runs/x'",
        "WARNING: falling back to base model",
        "adapter_config.json broken, continuing without LoRA",
        "Skipping the adapter: version mismatch",
        "no adapter was found in runs/x",
        "LoRAアダプターの読み込みに失敗しました",
        "LoRA を読み込めないため、ベースモデルで評価します",
        "アダプタが見つかりません: runs/x",
    ],
)
def test_a_line_that_says_that_the_adapter_was_not_loaded_is_found(text: str) -> None:
    """The wordings of PEFT and of hand-written scripts are known."""
    assert adapter_trouble_in(f"before\n{text}\nafter") == text


@pytest.mark.parametrize(
    "text",
    [
        "  LoRA Path: runs/debug_small_model/direct_norag_small_4bit",
        "Failed to load CPU gemm_4bit_forward: No module named 'kernels'",
        "Loading adapter weights from runs/x",
        "README.md not found",
        "Using base model: Qwen/Qwen1.5-1.8B-Chat",
        "Loading base model, then the LoRA adapter",
        "LoRA アダプターを読み込みました",
        "Merging the LoRA adapter into the base model",
    ],
)
def test_harmless_lines_say_nothing_about_the_adapter(text: str) -> None:
    """Neither the adapter's path nor another library's warning is a failure to load it."""
    assert adapter_trouble_in(text) is None


def test_tracebacks_are_counted_behind_prefixes_and_bars() -> None:
    """A rank's prefix or an open progress bar does not hide a traceback."""
    start = "Traceback (most recent call last):"
    assert tracebacks_in(f"[rank0]: {start}\n  x\n 3/9 [00:01]{start}\n{start}\n") == 3


@given(st.text(max_size=400))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever a child prints, parsing gives values and never an exception."""
    lines = parse_evaluation(text)
    assert len(lines.key_lines) <= 13
    metrics_in(split_lines(text))
    adapter_trouble_in(text)


@given(st.dictionaries(st.sampled_from(["loss", "epoch", "grad_norm"]), st.floats(-1e9, 1e9), min_size=1))
def test_what_the_trainer_prints_is_read_back(values: dict[str, float]) -> None:
    """Both versions' lines give back each value, to the four digits that transformers 5 prints."""
    four, five = parse_metrics(str(values)), parse_metrics(str({k: f"{v:.4g}" for k, v in values.items()}))
    assert four is not None
    assert five is not None
    for key, value in values.items():
        assert four.get(key) == value
        assert five.get(key) == pytest.approx(value, rel=1e-3)


V4_MADE_UP = (
    "Some weights of Qwen2ForCausalLM were not initialized from the model checkpoint at m and are newly initialized: "
    "['lm_head.weight']"
)
V5_MADE_UP = (
    "\x1b[1mQwen2ForCausalLM LOAD REPORT\x1b[0m from: m\nKey            | Status  |\n"
    "---------------+---------+-\nlm_head.weight | MISSING |\n\nNotes:\n- MISSING:\tthose params were newly initialized"
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (V4_MADE_UP, V4_MADE_UP),
        (V5_MADE_UP, "lm_head.weight | MISSING |"),
        (V5_MADE_UP.replace("MISSING |", "MISMATCH | Reinit"), "lm_head.weight | MISMATCH | Reinit"),
        (V4_MADE_UP.replace("Qwen2ForCausalLM", "BertModel"), None),
        (V5_MADE_UP.replace("Qwen2ForCausalLM", "XLMRobertaForSequenceClassification"), None),
        (V5_MADE_UP.replace("| MISSING |", "| UNEXPECTED |"), None),
        ("You should probably TRAIN this model\nMISSING: nothing", None),
    ],
)
def test_weights_that_were_made_up_are_seen_in_what_either_transformers_prints(text: str, line: str | None) -> None:
    """Of the model that generates alone: a retriever's pooler is always new, and unexpected weights do no harm."""
    assert missing_weights_in(f"Loading…\n{text}\nRAG Mode: Enabled\n") == line
