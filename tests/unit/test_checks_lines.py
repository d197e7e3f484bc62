"""Parsing of stdout: the Trainer's dict lines of both transformers versions, and the evaluation's key lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steph.contract.lines import (
    adapter_trouble_in,
    answer_troubles_in,
    missing_weights_in,
    parse_evaluation,
    parse_metrics,
    raised_while_answering,
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
    found = [parse_metrics(line) for line in ("{'loss': nan}", "{'loss': 'inf'}", "{'loss': 'nan'}")]
    values = [one.get("loss") if one else None for one in found]
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


SETUP = "Initializing RAG pipeline...\nHF Model: m\n  LoRA Path: {lora}\n"
RESULT = "EVALUATION RESULTS\nTotal Samples: 3\nCorrect: {n}\nAccuracy: {a}%\n"


@pytest.mark.parametrize(
    ("printed", "counted", "lora", "contradictions"),
    [
        (
            SETUP.format(lora=None) + RESULT.format(n=0, a=0) + SETUP.format(lora="x") + RESULT.format(n=1, a=33),
            1,
            "x",
            0,
        ),
        (
            SETUP.format(lora="x") + RESULT.format(n=1, a=33) + SETUP.format(lora=None) + RESULT.format(n=0, a=0),
            1,
            "x",
            0,
        ),
        (SETUP.format(lora="x") + RESULT.format(n=1, a=33) + RESULT.format(n=3, a=100), 3, "x", 1),
        (SETUP.format(lora="x") + RESULT.format(n=1, a=33) + RESULT.format(n=1, a=33), 1, "x", 0),
        (SETUP.format(lora="x") + "LoRA Path: None\n" + RESULT.format(n=1, a=33), 1, "None", 0),
        (SETUP.format(lora=None) + "LoRA Path: x\n" + RESULT.format(n=1, a=33), 1, "x", 0),
        (SETUP.format(lora="x") + RESULT.format(n=1, a=33) + "LoRA Path: None\n", 1, "x", 0),
    ],
)
def test_what_was_printed_last_above_the_counted_results_speaks(
    printed: str, counted: int, lora: str, contradictions: int
) -> None:
    """Of several blocks the one that the file counts; a block with no set-up of its own contradicts it."""
    lines = parse_evaluation(printed, (3, counted))
    assert (lines.correct, lines.lora_path, len(lines.contradictions)) == (counted, lora, contradictions)


@pytest.mark.parametrize(
    ("line", "models"),
    [
        ("Loaded model: gpt2", ("gpt2",)),
        ("Loading checkpoint from '/models/gpt2'...", ("/models/gpt2",)),
        ("INFO: Using model=Qwen/Qwen3-8B", ("Qwen/Qwen3-8B",)),
        ("使用モデル: gpt2", ("gpt2",)),
        ("Loading embedding model: e5", ()),
        ("Loading checkpoint shards: 100%", ()),
        ("Using model parallelism", ()),
    ],
)
def test_what_a_program_says_it_loaded_is_read(line: str, models: tuple[str, ...]) -> None:
    """The main model's name or path, not an embedding's, a shard's or a manner."""
    assert parse_evaluation(line).loaded_models == models


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("Using OpenAI-compatible endpoint http://10.0.0.5:8000/v1 (model x)", 1),
        ('HTTP Request: POST http://127.0.0.1:11434/api/chat "HTTP/1.1 200 OK"', 1),
        ("base_url=https://api.openai.com/v1", 1),
        ("接続先: http://10.0.0.5:8000", 1),
        ("HTTP Request: HEAD https://huggingface.co/x/resolve/main/config.json", 0),
        ("TensorBoard at http://localhost:6006", 0),
        ("wandb: View run at https://wandb.ai/x", 0),
    ],
)
def test_a_server_that_was_asked_is_seen(line: str, count: int) -> None:
    """An address that answers questions; the Hub's and a dashboard's do not."""
    assert len(parse_evaluation(line).endpoints) == count


@pytest.mark.parametrize(
    ("line", "is_trouble"),
    [
        ("Generation failed for question 2, using default answer a", True),
        ("ERROR while generating: CUDA error", True),
        ("2 問目の推論に失敗したため、既定の回答を使います", True),
        ("Generation errors: 0", False),
        ("推論の失敗: 0 件", False),
        ("generation failed once, retrying", False),
        ("if generation failed, unknown is recorded", False),
    ],
)
def test_a_question_that_could_not_be_asked_is_told(line: str, is_trouble: bool) -> None:
    """A program's own words for it; none of them, or one that was tried again, is no trouble."""
    assert bool(answer_troubles_in(line)) is is_trouble


def test_tracebacks_out_of_generation_are_told_from_others() -> None:
    """An upload that failed afterwards says nothing about the answers."""
    block = "Traceback (most recent call last):\n  File x, line 1, in run\n    {}\nRuntimeError: x\n"
    text = block.format("out = model.generate(**inputs)") + block.format("upload(path)")
    assert raised_while_answering(text) == 1


@pytest.mark.parametrize(
    ("text", "accuracy"),
    [
        ("33.33%", 0.3333),
        ("33.33 %", 0.3333),
        ("0.5", 0.5),
        ("1/4", 0.25),
        ("66.67", 0.6667),
        ("100.00%", 1.0),
        ("0.00%", 0.0),
    ],
)
def test_accuracy_is_read_as_percentage_or_fraction(text: str, accuracy: float) -> None:
    """Both forms give a figure from 0 to 1."""
    assert parse_evaluation(f"Accuracy: {text}").accuracy == pytest.approx(accuracy)


def test_the_total_before_the_evaluation_is_not_the_result() -> None:
    """`Total samples to evaluate` announces and does not count."""
    assert parse_evaluation("Total samples to evaluate: 3\n").total is None


def test_the_line_that_says_that_the_adapter_was_not_loaded_is_quoted() -> None:
    """The first such line of an output, whatever stands around it."""
    assert (
        adapter_trouble_in("LoRA Path: x\nLoRA disabled: rank mismatch\nAccuracy: 5%") == "LoRA disabled: rank mismatch"
    )
    assert adapter_trouble_in("LoRA Path: x\nAccuracy: 5%") is None


def test_tracebacks_are_counted_behind_prefixes_and_bars() -> None:
    """A rank's prefix or an open progress bar does not hide a traceback."""
    start = "Traceback (most recent call last):"
    assert tracebacks_in(f"[rank0]: {start}\n  x\n 3/9 [00:01]{start}\n{start}\n") == 3


@given(st.text(max_size=400))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever a child prints, parsing gives values and never an exception."""
    lines = parse_evaluation(text)
    assert len(lines.key_lines) <= 13
    for line in split_lines(text):
        parse_metrics(line)
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
