"""How long training rows are and how many lose their answer when they are cut: known before a step is trained.

Comes in: a training file (JSON lines with `input` and `output`) and the model's `tokenizer.json`. Goes out: counts.
Needs `tokenizers` when it is asked, never torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from steph.base.files import JsonLine, json_lines

Truncation = Literal["right", "keeps_answer"]

# <|im_start|>user\n, <|im_end|>\n<|im_start|>assistant\n and the closing <|im_end|>, less the "\n" that is counted
# between input and output: 3 + 5 + 1 - 1, measured with the Qwen tokenizer; a system message comes on top
CHATML_OVERHEAD_TOKENS = 8
CHATML_CLOSING_TOKENS = 2  # <|im_end|>\n: learnt with the answer


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """What one length does to a training file.

    `lost_rows`: rows whose last answer token is cut off. `fitting_seq_length`: the shortest length in tokens, the
    template's overhead included, that loses no answer.
    """

    rows: int
    lost_rows: int
    fitting_seq_length: int


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Tokens of one row: the whole text (input, a line break, output) and the output alone."""

    text: int
    output: int


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Tokens of the rows that are trained on, in file order, the template's overhead included; never empty.

    `whole`: each row's. `needed`: what a length must leave of each, so that its answer is not lost. `answers`: what is
    learnt of each where the loss is taken of answers alone.
    """

    whole: tuple[int, ...]
    needed: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def longest(self) -> int:
        """The longest row."""
        return max(self.whole)

    @property
    def longest_answer(self) -> int:
        """The longest answer with what closes it."""
        return max(self.answers)

    @property
    def middle(self) -> int:
        """The row that half of them do not exceed."""
        return int(median(self.whole))

    @property
    def mean(self) -> float:
        """The average row."""
        return fmean(self.whole)

    def lost_at(self, max_seq_length: int) -> AnswerLoss:
        """What cutting to this length does to the answers."""
        return AnswerLoss(
            rows=len(self.whole),
            lost_rows=sum(length > max_seq_length for length in self.needed),
            fitting_seq_length=max(self.needed),
        )


def row_lengths(
    train_file: Path,
    tokenizer_json: Path,
    truncation: Truncation,
    overhead_tokens: int | None = None,
    first_rows: int | None = None,
) -> RowLengths:
    """Count the rows' tokens as this pipeline trains on them.

    The published pipeline's exact template can't be seen from outside, so a row's text is taken as input, a line
    break and output. With "right" the text is cut at its end, and the answer is lost where the text doesn't fit whole;
    with "keeps_answer" only where the answer alone doesn't fit.

    `overhead_tokens`: what the template adds around a row; default 0 for "right" (plain text) and ChatML's for
    "keeps_answer". `first_rows`: how many rows are trained on, None: all.

    Tokens are counted once for each state of the two files, however often they are asked.
    Raises ValueError naming file and line of a row that can't be read, OSError where a file can't be opened.
    """
    if overhead_tokens is None:
        overhead_tokens = 0 if truncation == "right" else CHATML_OVERHEAD_TOKENS
    rows = row_tokens(train_file, tokenizer_json)[:first_rows]
    whole = tuple(overhead_tokens + row.text for row in rows)
    needed = whole if truncation == "right" else tuple(overhead_tokens + row.output for row in rows)
    return RowLengths(whole, needed, tuple(row.output + CHATML_CLOSING_TOKENS for row in rows))


def row_tokens(train_file: Path, tokenizer_json: Path) -> tuple[RowTokens, ...]:
    """Token lengths of every row, in file order; remembered until one of the files changes."""
    return _row_tokens(*_state(train_file), *_state(tokenizer_json))


def _state(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path.resolve(), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _row_tokens(
    train_file: Path, _train_mtime: int, _train_size: int, tokenizer_json: Path, _mtime: int, _size: int
) -> tuple[RowTokens, ...]:
    rows = _read_rows(train_file)
    tokenizer = _load_tokenizer(tokenizer_json)
    texts = tokenizer.encode_batch([f"{text}\n{answer}" for text, answer in rows], add_special_tokens=False)
    answers = tokenizer.encode_batch([answer for _, answer in rows], add_special_tokens=False)
    return tuple(RowTokens(len(text.ids), len(answer.ids)) for text, answer in zip(texts, answers, strict=True))


def _load_tokenizer(tokenizer_json: Path) -> Any:  # noqa: ANN401 - tokenizers is imported only when it is needed
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{tokenizer_json}: no tokenizer: {error}") from error
    # a published tokenizer.json may carry its own limits, which would hide every row over them
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_rows(train_file: Path) -> list[tuple[str, str]]:
    rows = [_texts(line, f"{train_file}:{line.number}") for line in json_lines(train_file.read_bytes())]
    if not rows:
        raise ValueError(f"{train_file}: no rows")
    return rows


def _texts(line: JsonLine, where: str) -> tuple[str, str]:
    """A row's input and output; raises ValueError."""
    if line.row is None:
        raise ValueError(f"{where} {line.trouble}")
    text, answer = line.row.get("input"), line.row.get("output")
    for key, value in (("input", text), ("output", answer)):
        if not isinstance(value, str):
            raise ValueError(f"{where}: key {key!r} is missing or no text")
    return str(text), str(answer).rstrip()
