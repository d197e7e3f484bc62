"""Training rows: the one reader of every row format, and how many tokens rows have, known before a step is trained.

A file has one JSON object a line, or one JSON array of them, or is a table whose first line names its columns. A byte
order mark before the first row is no part of it, and only line breaks end a line of JSON: statutes hold U+2028 and the
like, which Python's `str.splitlines` takes for one.
Counting needs `tokenizers`, never torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, TypeAlias

from steph.base.files import json_rows, row_lines
from steph.base.messages import say

RowFormat: TypeAlias = str
"""How rows are written: a name of FORMATS, or a person's own keys, `question + passage -> answer`. `none`: the rows are
not in a file of the pipeline root, such as a data set of the Hub."""
FORMATS = ("input_output", "prompt_completion", "messages", "alpaca", "sharegpt", "text", "none")
_ARROW, _AND = "->", "+"
# what people call the two columns of a file of their own
_ASKED = (
    "question", "query", "instruction", "prompt", "input", "source", "problem", "text", "sentence", "utterance",
    "ask", "質問", "問題", "問い", "入力",
)  # fmt: skip
_ANSWERED = (
    "answer", "response", "output", "completion", "target", "reply", "solution", "answers", "label", "category",
    "intent", "sentiment", "summary", "回答", "解答", "答え", "出力",
)  # fmt: skip
Truncation = Literal["right", "keeps_answer"]

_ANSWERING = ("assistant", "gpt", "model", "bot", "chatgpt", "bing")  # the roles whose text is learnt
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
_CONVERSATIONS = {"messages": ("messages",), "sharegpt": ("conversations", "conversation", "messages")}
# <|im_start|>user\n, <|im_end|>\n<|im_start|>assistant\n and the closing <|im_end|>, less the "\n" that is counted
# between input and output: 3 + 5 + 1 - 1, measured with the Qwen tokenizer; a system message comes on top
CHATML_OVERHEAD_TOKENS = 8
CHATML_TURN_TOKENS = 4  # the same for each turn of a conversation
CHATML_CLOSING_TOKENS = 2  # <|im_end|>\n: learnt with the answer


@dataclass(frozen=True, slots=True)
class Turn:
    """One part of a training row and whose it is: `system`, `user`, `assistant`, or what the row calls it."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """What one row teaches: its turns in order, of which the last is the answer."""

    turns: tuple[Turn, ...]
    is_chat: bool = False
    separator: str = "\n"  # between two turns where no chat template joins them
    question: str = ""  # what the row's `meta` says it asks, with these choices
    choices: object = None

    @property
    def answer(self) -> str:
        """The last text, which is learnt."""
        return self.turns[-1].text

    @property
    def prompt(self) -> str:
        """All that stands before the answer, empty where a row is one text."""
        return self.separator.join(turn.text for turn in self.turns[:-1])

    @property
    def last_prompt(self) -> str:
        """The last text before the answer: the question without the system's words; the whole of a single text."""
        return self.turns[-2].text if len(self.turns) > 1 else self.answer

    @property
    def prompt_texts(self) -> tuple[str, ...]:
        """The texts of all turns that are not the assistant's."""
        return tuple(turn.text for turn in self.turns[:-1] if turn.role not in _ANSWERING)

    @property
    def text(self) -> str:
        """The whole row."""
        return self.separator.join(turn.text for turn in self.turns)


def training_rows_in(path: Path, row_format: RowFormat = "input_output") -> Iterator[TrainingRow]:
    """The rows of a file as what they teach; those of another format are passed over. Raises OSError."""
    for row in json_rows(path):
        try:
            yield training_row(row, row_format)
        except ValueError:
            continue


def training_row(row: Mapping[str, object], row_format: RowFormat = "input_output") -> TrainingRow:
    """Read one row; raises ValueError with a message of what it lacks, whose words follow the row's name.

    The formats are those of TRL (`prompt_completion`, `messages`, `text`: its "dataset formats and types") and of
    LLaMA-Factory (`alpaca`, `sharegpt`: its data README); a completion or prompt may be a list of messages, too.
    """
    system = row.get("system")
    first = (Turn("system", system),) if isinstance(system, str) and system else ()
    turns: tuple[Turn, ...]
    is_chat, separator = False, "\n"
    match row_format:
        case "input_output":
            turns = (Turn("user", _text(row, "input")), Turn("assistant", _text(row, "output")))
        case "prompt_completion":
            prompt, completion, separator = row.get("prompt"), row.get("completion"), ""
            if isinstance(prompt, list) and isinstance(completion, list):
                turns, is_chat, separator = _turns([*prompt, *completion], "prompt"), True, "\n"
            else:
                turns = (Turn("user", _text(row, "prompt")), Turn("assistant", _text(row, "completion")))
        case "messages" | "sharegpt":
            keys = _CONVERSATIONS[row_format]
            key = next((key for key in keys if isinstance(row.get(key), list)), None)
            if key is None:
                raise ValueError(say("row.no_list", key=repr(keys[0])))
            turns, is_chat = (*first, *_turns(row[key], key)), True
        case "alpaca":
            turns, is_chat = (*first, *_alpaca(row)), True
        case "text":
            turns = (Turn("text", _text(row, "text")),)
        case "none":
            raise ValueError(say("row.no_file"))
        case _:
            asked, answered = own_keys(row_format) or ((), "")
            prompts = [text for key in asked for text in _own_texts(row, key) if text]  # a list of choices is many
            answers = _own_texts(row, answered)  # which may be empty, as where nothing is to be found
            turns = (*(Turn("user", text) for text in prompts), Turn("assistant", "\n".join(answers)))
            if not prompts or not answers:
                raise ValueError(say("row.no_text", key=repr(answered if prompts else asked[0])))
    if is_chat:  # what is said after the last answer is not learnt from
        last = max((n for n, turn in enumerate(turns) if turn.role in _ANSWERING), default=None)
        if last is None:
            raise ValueError(say("row.no_answer"))
        turns = turns[: last + 1]
    meta = row.get("meta")
    question = str(meta.get("question") or "") if isinstance(meta, Mapping) else ""
    choices = meta.get("choices") if isinstance(meta, Mapping) and question else None
    return TrainingRow(turns, is_chat, separator, question, choices)


def own_keys(row_format: RowFormat) -> tuple[tuple[str, ...], str] | None:
    """The keys of the prompt, and that of the answer, which an arrow stands between; None where there is none."""
    before, arrow, answer = (part.strip() for part in row_format.partition(_ARROW))
    prompts = tuple(key.strip() for key in before.split(_AND))
    return (prompts, answer) if arrow and all(prompts) and answer else None


def _own_texts(row: Mapping[str, object], path: str) -> list[str]:
    """What stands at a key, or at a dotted path of keys and places in lists, as text; a list's parts one by one."""
    value: object = row.get(path)
    if value is None:
        value = row
        for key in path.split("."):
            if isinstance(value, list) and key.isdecimal():
                value = value[int(key)] if int(key) < len(value) else ""
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
    parts = (value or [""]) if isinstance(value, list) else [value]
    return [str(part) for part in parts if isinstance(part, str | int | float)]


def format_of(rows: Iterable[Mapping[str, object]]) -> RowFormat | None:
    """The format that fits every one of some rows; None where none does, or where there are no rows."""
    kept = list(rows)
    named: tuple[RowFormat, ...] = (
        "messages", "sharegpt", "prompt_completion", "alpaca", "input_output", "text",
    )  # fmt: skip
    pairs = (f"{asked} {_ARROW} {answered}" for asked in _ASKED for answered in _ANSWERED)
    # a text that has a label beside it is no whole row
    for candidate in sorted((*named, *pairs), key="text".__eq__) if kept else ():
        try:
            for row in kept:
                training_row(row, candidate)
        except ValueError:
            continue
        return candidate
    return None


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(say("row.no_text", key=repr(key)))
    return value


def _turns(messages: object, key: str) -> tuple[Turn, ...]:
    turns = []
    for n, message in enumerate(messages if isinstance(messages, list) else [], start=1):
        if not isinstance(message, Mapping):
            raise ValueError(say("row.no_object", turn=n, key=repr(key)))
        role = next((message[name] for name in _ROLE_KEYS if name in message), None)
        if not isinstance(role, str):
            raise ValueError(say("row.no_role", turn=n, key=repr(key)))
        content = next((message[name] for name in _TEXT_KEYS if message.get(name) is not None), "")
        if isinstance(content, list):  # of parts; a call of a tool has no text
            parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
            content = "".join(part for part in parts if isinstance(part, str))
        if not content and isinstance(calls := message.get("tool_calls"), list):  # they are the answer
            told = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
            parts = [one.get(key, "") for one in told if isinstance(one, Mapping) for key in ("name", "arguments")]
            content = "\n".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in parts)
        if not isinstance(content, str):
            raise ValueError(say("row.no_turn_text", turn=n, key=repr(key)))
        turns.append(Turn(role, content))
    return tuple(turns)


def _alpaca(row: Mapping[str, object]) -> tuple[Turn, ...]:
    instruction, more, history = _text(row, "instruction"), row.get("input"), row.get("history")
    asked = f"{instruction}\n{more}" if isinstance(more, str) and more else instruction
    earlier = [
        Turn(role, str(text))
        for pair in (history if isinstance(history, list) else [])
        if isinstance(pair, list | tuple) and len(pair) == 2
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return (*earlier, Turn("user", asked), Turn("assistant", _text(row, "output")))


@dataclass(frozen=True, slots=True)
class TruncatedAnswers:
    """How many answers of a training file one length cuts off."""

    rows: int
    lost_rows: int  # whose last answer token is cut off
    fitting_seq_length: int  # the shortest in tokens, the template's included, that loses no answer


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Tokens of one row: the whole text (input, a line break, output) and the output alone."""

    text_tokens: int
    output_tokens: int
    turns: int = 0  # of a conversation, which a chat template joins


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Tokens of the rows that are trained on, in file order, the template's overhead included; never empty."""

    whole: tuple[int, ...]  # each row's
    needed: tuple[int, ...]  # what a length must leave of each, so that its answer is not lost
    answers: tuple[int, ...]  # what is learnt of each where the loss is taken of answers alone

    @property
    def longest_tokens(self) -> int:
        """Length of the longest row in tokens."""
        return max(self.whole)

    @property
    def longest_answer_tokens(self) -> int:
        """Length of the longest answer in tokens, with what closes it."""
        return max(self.answers)

    @property
    def median_tokens(self) -> int:
        """Median row length in tokens."""
        return int(median(self.whole))

    @property
    def mean_tokens(self) -> float:
        """Mean row length in tokens."""
        return fmean(self.whole)

    def truncated_at(self, max_seq_length: int) -> TruncatedAnswers:
        """The answers that cutting to this length cuts off."""
        return TruncatedAnswers(
            rows=len(self.whole),
            lost_rows=sum(length > max_seq_length for length in self.needed),
            fitting_seq_length=max(self.needed),
        )


def row_lengths(
    train_file: Path,
    tokenizer_json: Path,
    truncation: Truncation,
    first_rows: int | None = None,
    row_format: RowFormat = "input_output",
) -> RowLengths:
    """Count the rows' tokens as this pipeline trains on them.

    A template can't be seen from outside: of `input_output` a row's text is taken as input, a line break and output, of
    a conversation as ChatML. With "right" the text is cut at its end, and the answer is lost where the text doesn't
    fit whole; with "keeps_answer" only where the answer alone doesn't fit.

    The template adds ChatML's tokens to conversations and for "keeps_answer", and nothing to other rows (plain text).
    `first_rows`: how many rows are trained on, None: all.

    Tokens are counted once for each state of the two files, however often they are asked.
    Raises ValueError naming file and line of a row that can't be read, OSError where a file can't be opened.
    """
    rows = row_tokens(train_file, tokenizer_json, row_format)[:first_rows]
    plain = CHATML_OVERHEAD_TOKENS if truncation == "keeps_answer" else 0
    around = [CHATML_TURN_TOKENS * row.turns or plain for row in rows]
    whole = tuple(extra + row.text_tokens for extra, row in zip(around, rows, strict=True))
    kept = tuple(extra + row.output_tokens for extra, row in zip(around, rows, strict=True))
    needed = whole if truncation == "right" else kept
    return RowLengths(whole, needed, tuple(row.output_tokens + CHATML_CLOSING_TOKENS for row in rows))


def row_tokens(train_file: Path, tokenizer_json: Path, row_format: RowFormat = "input_output") -> tuple[RowTokens, ...]:
    """Token lengths of every row, in file order; remembered until one of the files changes."""
    return _row_tokens(_state(train_file), _state(tokenizer_json), row_format)


_State = tuple[Path, int, int]  # path, time and size, by which a file is the same


def _state(path: Path) -> _State:
    status = path.stat()
    return path.resolve(), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _row_tokens(train: _State, tokenizer: _State, row_format: RowFormat) -> tuple[RowTokens, ...]:
    from tokenizers import Tokenizer

    rows, train_file = list[TrainingRow](), train[0]
    for line in row_lines(train_file.read_bytes(), train_file):
        try:
            if line.row is None:
                raise ValueError(line.trouble)
            rows.append(training_row(line.row, row_format))
        except ValueError as error:
            raise ValueError(say("row.at", line=f"{train_file}:{line.number}", reason=error)) from error
    if not rows:
        raise ValueError(say("row.none", path=train_file))
    try:
        reader: Any = Tokenizer.from_file(str(tokenizer[0]))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(say("row.no_tokenizer", path=tokenizer[0], reason=error)) from error
    # a published tokenizer.json may carry its own limits, which would hide every row over them
    reader.no_truncation()
    reader.no_padding()
    texts = reader.encode_batch([row.text.rstrip() for row in rows], add_special_tokens=False)
    answers = reader.encode_batch([row.answer.rstrip() for row in rows], add_special_tokens=False)
    return tuple(
        RowTokens(len(text.ids), len(answer.ids), len(row.turns) if row.is_chat else 0)
        for row, text, answer in zip(rows, texts, answers, strict=True)
    )
