"""How many rows lose their answer at a length, counted with a real tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from steph.base.messages import speaking
from steph.contract.rows import CHATML_OVERHEAD_TOKENS, row_lengths, row_tokens

# The published pipeline's rows begin with a few-shot preamble of this size: their mean is 460 tokens, 227 without it
PREAMBLE_TOKENS = 233


@pytest.fixture
def character_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer whose tokens are single characters, so that lengths can be counted by eye."""
    tokenizers = pytest.importorskip("tokenizers")
    characters = ["\n", *"abcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.enable_truncation(5)  # as some published files have it: must not hide a long row
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Write training rows as JSON lines."""
    lines = [json.dumps({"input": text, "output": answer}, ensure_ascii=False) for text, answer in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def qwen_data() -> tuple[Path, Path]:
    """The real questions and the Qwen tokenizer, or a skip."""
    data = os.environ.get("STEPH_TEST_DATA")
    if not data:
        pytest.skip("STEPH_TEST_DATA is not set")
    folder = Path(data)
    return folder / "lawqa_jp/data/selection.json", folder / "tokenizers/qwen2.5/tokenizer.json"


def test_right_truncation_loses_the_answer_one_token_too_short(tmp_path: Path, character_tokenizer: Path) -> None:
    """A row of ten tokens keeps its answer at ten and loses it at nine."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("abcdefgh", "a")])
    assert row_lengths(train_file, character_tokenizer, "right").truncated_at(10).lost_rows == 0
    assert row_lengths(train_file, character_tokenizer, "right").truncated_at(9).lost_rows == 1


def test_a_pipeline_that_keeps_answers_loses_only_what_alone_is_too_long(
    tmp_path: Path, character_tokenizer: Path
) -> None:
    """Where the prompt is shortened instead, only an answer that alone is too long is lost."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("a" * 50, "b"), ("a", "b" * 20)])
    truncated = row_lengths(train_file, character_tokenizer, "keeps_answer").truncated_at(27)
    assert (truncated.rows, truncated.lost_rows, truncated.fitting_seq_length) == (2, 1, 28)  # with ChatML's eight
    assert row_lengths(train_file, character_tokenizer, "keeps_answer").truncated_at(28).lost_rows == 0


def test_overhead_counts_against_the_length(tmp_path: Path, character_tokenizer: Path) -> None:
    """The template's tokens are part of every row's length."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("abc", "a")])
    truncated = row_lengths(train_file, character_tokenizer, "keeps_answer").truncated_at(8)
    assert (truncated.lost_rows, truncated.fitting_seq_length) == (1, 9)


def test_rows_are_counted_once_by_one_rule(tmp_path: Path, character_tokenizer: Path) -> None:
    """The template counts for a pipeline that keeps its answers alone, in every figure; only rows trained on count."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("abc", "a"), ("abcdef", "a"), ("a" * 20, "a"), ("a" * 90, "a")])
    plain = row_lengths(train_file, character_tokenizer, "right", first_rows=3)
    assert (plain.whole, plain.needed) == ((5, 8, 22), (5, 8, 22))
    assert (plain.longest_tokens, plain.median_tokens, plain.mean_tokens) == (22, 8, 35 / 3)
    templated = row_lengths(train_file, character_tokenizer, "keeps_answer", first_rows=3)
    assert templated.whole == tuple(tokens + CHATML_OVERHEAD_TOKENS for tokens in plain.whole)
    assert templated.needed == (1 + CHATML_OVERHEAD_TOKENS,) * 3


def test_a_changed_file_is_counted_again(tmp_path: Path, character_tokenizer: Path) -> None:
    """Lengths are remembered only until the file changes."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("abc", "a")])
    assert row_tokens(train_file, character_tokenizer) is row_tokens(train_file, character_tokenizer)
    write_rows(train_file, [("abc", "a"), ("abcd", "a")])
    assert [row.text_tokens for row in row_tokens(train_file, character_tokenizer)] == [5, 6]


def test_a_line_separator_inside_a_row_is_text(tmp_path: Path, character_tokenizer: Path) -> None:
    """U+2028 inside a string doesn't end a JSON line."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("abc\u2028def", "a")])
    assert row_lengths(train_file, character_tokenizer, "right").truncated_at(100).rows == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": "a", "output": "b"}\n{"input": "a"}\n', r"rows.jsonl:2: has no text 'output'"),
        ('{"input": 1, "output": "b"}\n', r"rows.jsonl:1: has no text 'input'"),
        ("{\n", r"rows.jsonl:1: it is not valid JSON"),
        ("[1]\n", r"rows.jsonl:1: it holds no JSON object"),
        ("\n", r"rows.jsonl: no rows"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, character_tokenizer: Path, content: str, message: str
) -> None:
    """What can't be counted is refused with file, line and key."""
    train_file = tmp_path / "rows.jsonl"
    train_file.write_text(content)
    with speaking("en"), pytest.raises(ValueError, match=message):
        row_lengths(train_file, character_tokenizer, "right").truncated_at(10)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    """A file that is no tokenizer is refused by name."""
    train_file = write_rows(tmp_path / "rows.jsonl", [("abc", "a")])
    (tmp_path / "tokenizer.json").write_text("{}")
    with speaking("en"), pytest.raises(ValueError, match=r"tokenizer.json: no tokenizer"):
        row_lengths(train_file, tmp_path / "tokenizer.json", "right").truncated_at(10)


def test_chatml_overhead_is_what_the_qwen_tokenizer_says() -> None:
    """ChatML adds as many tokens around a row as the constant says."""
    _, tokenizer_json = qwen_data()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    chat = "<|im_start|>user\n質問<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    assert len(tokenizer.encode(chat).ids) - len(tokenizer.encode("質問\na").ids) == CHATML_OVERHEAD_TOKENS


def test_the_spec_s_own_ladder_cuts_the_answers_of_the_real_questions(tmp_path: Path) -> None:
    """On rows like the published pipeline's, 512 tokens cut some answers, 384 nearly all, 256 all 140."""
    questions, tokenizer_json = qwen_data()
    samples = json.loads(questions.read_text(encoding="utf-8"))["samples"]
    preamble = "例" * PREAMBLE_TOKENS
    rows = [(f"{preamble}{s['指示']}\n{s['問題文']}\n{s['選択肢']}", s["output"]) for s in samples]
    train_file = write_rows(tmp_path / "direct.jsonl", rows)
    losses = {
        length: row_lengths(train_file, tokenizer_json, "right").truncated_at(length)
        for length in (1024, 512, 384, 256)
    }
    assert 450 < row_lengths(train_file, tokenizer_json, "right").mean_tokens < 470
    assert losses[1024].lost_rows == 0
    assert 15 <= losses[512].lost_rows <= 45
    assert 110 <= losses[384].lost_rows < 140
    assert losses[256].lost_rows == 140
    kept = [
        row_lengths(train_file, tokenizer_json, "keeps_answer").truncated_at(length).lost_rows for length in (512, 256)
    ]
    assert kept == [0, 0]
