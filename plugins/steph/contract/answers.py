"""How long training rows are and how many lose their answer when they are cut: known before a step is trained.

Comes in: a training file, in any row format, and the model's `tokenizer.json`. Goes out: counts.
Needs `tokenizers` when it is asked, never torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from steph.base.files import json_lines
from steph.base.messages import say
from steph.contract.rows import RowFormat, TrainingRow, training_row

Truncation = Literal["right", "keeps_answer"]

# <|im_start|>user\n, <|im_end|>\n<|im_start|>assistant\n and the closing <|im_end|>, less the "\n" that is counted
# between input and output: 3 + 5 + 1 - 1, measured with the Qwen tokenizer; a system message comes on top
CHATML_OVERHEAD_TOKENS = 8
CHATML_TURN_TOKENS = 4  # the same for each turn of a conversation
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
    turns: int = 0  # of a conversation, which a chat template joins


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
    row_format: RowFormat = "input_output",
) -> RowLengths:
    """Count the rows' tokens as this pipeline trains on them.

    A template can't be seen from outside: of `input_output` a row's text is taken as input, a line break and output, of
    a conversation as ChatML. With "right" the text is cut at its end, and the answer is lost where the text doesn't
    fit whole; with "keeps_answer" only where the answer alone doesn't fit.

    `overhead_tokens`: what the template adds around a row; default ChatML's for conversations and for "keeps_answer",
    and 0 for other rows (plain text). `first_rows`: how many rows are trained on, None: all.

    Tokens are counted once for each state of the two files, however often they are asked.
    Raises ValueError naming file and line of a row that can't be read, OSError where a file can't be opened.
    """
    rows = row_tokens(train_file, tokenizer_json, row_format)[:first_rows]
    plain = CHATML_OVERHEAD_TOKENS if truncation == "keeps_answer" else 0
    around = [
        overhead_tokens if overhead_tokens is not None else (CHATML_TURN_TOKENS * row.turns or plain) for row in rows
    ]
    whole = tuple(extra + row.text for extra, row in zip(around, rows, strict=True))
    kept = tuple(extra + row.output for extra, row in zip(around, rows, strict=True))
    needed = whole if truncation == "right" else kept
    return RowLengths(whole, needed, tuple(row.output + CHATML_CLOSING_TOKENS for row in rows))


def row_tokens(train_file: Path, tokenizer_json: Path, row_format: RowFormat = "input_output") -> tuple[RowTokens, ...]:
    """Token lengths of every row, in file order; remembered until one of the files changes."""
    return _row_tokens(*_state(train_file), *_state(tokenizer_json), row_format)


def _state(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path.resolve(), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _row_tokens(
    train_file: Path,
    _train_mtime: int,
    _train_size: int,
    tokenizer_json: Path,
    _mtime: int,
    _size: int,
    row_format: RowFormat,
) -> tuple[RowTokens, ...]:
    rows = _read_rows(train_file, row_format)
    tokenizer = _load_tokenizer(tokenizer_json)
    texts = tokenizer.encode_batch([row.text.rstrip() for row in rows], add_special_tokens=False)
    answers = tokenizer.encode_batch([row.answer.rstrip() for row in rows], add_special_tokens=False)
    turns = (len(row.turns) if row.is_chat else 0 for row in rows)
    return tuple(
        RowTokens(len(text.ids), len(answer.ids), n) for text, answer, n in zip(texts, answers, turns, strict=True)
    )


def _load_tokenizer(tokenizer_json: Path) -> Any:  # noqa: ANN401 - tokenizers is imported only when it is needed
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(say("row.no_tokenizer", path=tokenizer_json, reason=error)) from error
    # a published tokenizer.json may carry its own limits, which would hide every row over them
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_rows(train_file: Path, row_format: RowFormat) -> list[TrainingRow]:
    """All rows of a file; raises ValueError that names file and row."""
    rows = []
    for line in json_lines(train_file.read_bytes()):
        where = f"{train_file}:{line.number}"
        if line.row is None:
            raise ValueError(say("row.at", line=where, reason=line.trouble))
        try:
            rows.append(training_row(line.row, row_format))
        except ValueError as error:
            raise ValueError(say("row.at", line=where, reason=error)) from error
    if not rows:
        raise ValueError(say("row.none", path=train_file))
    return rows
