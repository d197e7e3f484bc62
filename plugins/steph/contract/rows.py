"""Training rows: the one reader of every row format, for those who refuse a file, count its tokens or judge by it.

A file has one JSON object a line, or one JSON array of them. A byte order mark before the first row is no part of it,
and only line breaks end a line: statutes hold U+2028 and the like, which Python's `str.splitlines` takes for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steph.base.files import json_rows
from steph.base.messages import say

RowFormat = Literal["input_output", "prompt_completion", "messages", "alpaca", "sharegpt", "text", "none"]
"""How rows are written. `none`: the rows are not in a file of the pipeline root, such as a data set of the Hub."""

_ANSWERING = ("assistant", "gpt", "model", "bot", "chatgpt", "bing")  # the roles whose text is learnt
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
_CONVERSATIONS = {"messages": ("messages",), "sharegpt": ("conversations", "conversation", "messages")}


@dataclass(frozen=True, slots=True)
class Turn:
    """One part of a training row and whose it is: `system`, `user`, `assistant`, or what the row calls it."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """What one row teaches: its turns in order, of which the last is the answer.

    `joint` is what stands between two turns where no chat template joins them. `question` and `choices` are what the
    row's `meta` says it asks, empty where it has none.
    """

    turns: tuple[Turn, ...]
    is_chat: bool = False
    joint: str = "\n"
    question: str = ""
    choices: object = None

    @property
    def answer(self) -> str:
        """What is learnt last."""
        return self.turns[-1].text

    @property
    def prompt(self) -> str:
        """All that stands before the answer, empty where a row is one text."""
        return self.joint.join(turn.text for turn in self.turns[:-1])

    @property
    def asked(self) -> str:
        """The last text before the answer: the question as it was asked, without the system's words."""
        return self.turns[-2].text if len(self.turns) > 1 else self.answer

    @property
    def unlearnt(self) -> tuple[str, ...]:
        """The texts that no answer is: of every turn but the assistant's."""
        return tuple(turn.text for turn in self.turns[:-1] if turn.role not in _ANSWERING)

    @property
    def text(self) -> str:
        """The whole row."""
        return self.joint.join(turn.text for turn in self.turns)


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
    match row_format:
        case "input_output":
            return _of_turns(row, (Turn("user", _text(row, "input")), Turn("assistant", _text(row, "output"))))
        case "prompt_completion":
            return _prompt_completion(row)
        case "messages" | "sharegpt":
            return _conversation(row, _CONVERSATIONS[row_format])
        case "alpaca":
            return _alpaca(row)
        case "text":
            return _of_turns(row, (Turn("text", _text(row, "text")),))
        case "none":
            raise ValueError(say("row.no_file"))


def format_of(rows: Iterable[Mapping[str, object]]) -> RowFormat | None:
    """The format that fits every one of some rows; None where none does, or where there are no rows."""
    kept = list(rows)
    candidates: tuple[RowFormat, ...] = (
        "messages", "sharegpt", "prompt_completion", "alpaca", "input_output", "text",
    )  # fmt: skip
    return next((one for one in candidates if kept and all(_fits(row, one) for row in kept)), None)


def _fits(row: Mapping[str, object], row_format: RowFormat) -> bool:
    try:
        training_row(row, row_format)
    except ValueError:
        return False
    return True


def _of_turns(
    row: Mapping[str, object], turns: tuple[Turn, ...], *, is_chat: bool = False, joint: str = "\n"
) -> TrainingRow:
    meta = row.get("meta")
    question = str(meta.get("question") or "") if isinstance(meta, Mapping) else ""
    choices = meta.get("choices") if isinstance(meta, Mapping) and question else None
    return TrainingRow(turns, is_chat, joint, question, choices)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(say("row.no_text", key=repr(key)))
    return value


def _prompt_completion(row: Mapping[str, object]) -> TrainingRow:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return _chat(row, _turns([*prompt, *completion], "prompt"))
    turns = (Turn("user", _text(row, "prompt")), Turn("assistant", _text(row, "completion")))
    return _of_turns(row, turns, joint="")


def _conversation(row: Mapping[str, object], keys: tuple[str, ...]) -> TrainingRow:
    key = next((key for key in keys if isinstance(row.get(key), list)), None)
    if key is None:
        raise ValueError(say("row.no_list", key=repr(keys[0])))
    turns = _turns(row[key], key)
    system = row.get("system")
    first = (Turn("system", system),) if isinstance(system, str) and system else ()
    return _chat(row, (*first, *turns))


def _chat(row: Mapping[str, object], turns: tuple[Turn, ...]) -> TrainingRow:
    """Up to the last answer: what is said after it is not learnt from."""
    last = max((n for n, turn in enumerate(turns) if turn.role in _ANSWERING), default=None)
    if last is None:
        raise ValueError(say("row.no_answer"))
    return _of_turns(row, turns[: last + 1], is_chat=True)


def _turns(messages: object, key: str) -> tuple[Turn, ...]:
    turns = []
    for n, message in enumerate(messages if isinstance(messages, list) else [], start=1):
        if not isinstance(message, Mapping):
            raise ValueError(say("row.no_object", turn=n, key=repr(key)))
        role = next((message[name] for name in _ROLE_KEYS if name in message), None)
        content = next((message[name] for name in _TEXT_KEYS if message.get(name) is not None), "")
        if not isinstance(role, str):
            raise ValueError(say("row.no_role", turn=n, key=repr(key)))
        turns.append(Turn(role, _content(content, n, key)))
    return tuple(turns)


def _content(content: object, n: int, key: str) -> str:
    """A turn's text, also where it is a list of parts; a call of a tool has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    raise ValueError(say("row.no_turn_text", turn=n, key=repr(key)))


def _alpaca(row: Mapping[str, object]) -> TrainingRow:
    instruction, more, system = _text(row, "instruction"), row.get("input"), row.get("system")
    asked = f"{instruction}\n{more}" if isinstance(more, str) and more else instruction
    history = row.get("history")
    earlier = [
        Turn(role, str(text))
        for pair in (history if isinstance(history, list) else [])
        if isinstance(pair, list | tuple) and len(pair) == 2
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    first = [Turn("system", system)] if isinstance(system, str) and system else []
    turns = (*first, *earlier, Turn("user", asked), Turn("assistant", _text(row, "output")))
    return _of_turns(row, turns, is_chat=True)
