"""The real question set with the real models' tokenizer, where both are at hand."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from app.training.rows import IGNORED, TrainingRow, encode_rows, read_rows
from small_run import RunScript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def data() -> Path:
    """The folder of development data."""
    folder = os.environ.get("STEPH_TEST_DATA")
    if not folder:
        pytest.skip("STEPH_TEST_DATA is not set: no real question set, no real tokenizer")
    return Path(folder)


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> "PreTrainedTokenizerFast":
    """Qwen2.5's tokenizer with its chat template."""
    from app.llm.chat_tokens import load_tokenizer

    return load_tokenizer(str(data / "tokenizers/qwen2.5"))


@pytest.fixture(scope="module")
def rows(data: Path, tmp_path_factory: pytest.TempPathFactory, run_script: RunScript) -> list[TrainingRow]:
    """Direct rows with worked examples, three questions held out."""
    source, output = data / "lawqa_jp/data/selection.json", tmp_path_factory.mktemp("real") / "rows.jsonl"
    flags = ("--mode", "direct", "--no-rag", "--few-shot", "--holdout", 3)
    done = run_script("build_finetune_dataset", "--lawqa-path", source, "--output-path", output, *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text(encoding="utf-8").splitlines()[0])["meta"]["dataset"] == "lawqa_jp"
    return read_rows(output, "direct")


def test_real_rows_have_the_published_length(rows: list[TrainingRow], tokenizer: "PreTrainedTokenizerFast") -> None:
    """140 questions less three; rows of some 460 tokens, 700 at most, as the published ones, so that costs compare."""
    encoded = encode_rows(tokenizer, rows, max_seq_length=4096, loss_on_output_only=True)
    lengths = [len(row["input_ids"]) for row in encoded.rows]
    assert len(lengths) == 137
    assert 400 < sum(lengths) / len(lengths) < 550
    assert 600 < max(lengths) < 800


@pytest.mark.parametrize("limit", [512, 384, 256])
def test_no_answer_is_lost_on_the_way_down_the_ladder(
    rows: list[TrainingRow], tokenizer: "PreTrainedTokenizerFast", limit: int
) -> None:
    """At the lengths of a retry after running out of memory, each row still ends with its letter and <|im_end|>."""
    encoded = encode_rows(tokenizer, rows, max_seq_length=limit, loss_on_output_only=True)
    assert encoded.shortened_rows > 0
    for row, given in zip(encoded.rows, rows, strict=True):
        assert len(row["input_ids"]) <= limit
        answer = [label for label in row["labels"] if label != IGNORED]
        assert tokenizer.decode(answer) == f"{given.answer}<|im_end|>"
        text = tokenizer.decode(row["input_ids"])
        assert text.startswith("<|im_start|>system\n")
        assert text.count("<|im_start|>") == 3
        assert f"回答:<|im_end|>\n<|im_start|>assistant\n{given.answer}<|im_end|>" in text
