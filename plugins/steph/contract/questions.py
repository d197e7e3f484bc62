"""The questions of the data set and of the training file, in a form in which they can be compared. Reads files only."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steph.base.files import TABLES, UnreadableError, json_lines, parse_json, project_files, read_bytes, row_lines
from steph.base.messages import say
from steph.contract.rows import RowFormat, training_rows_in

MAX_DATASET_BYTES, MOST_SEARCHED_BYTES = 512 << 20, 64 << 20
REPEATED_CHARS = 40  # a shorter question and its choices may well stand in an answer
LEAST_QUESTION_CHARS = 12  # a shorter one without choices stands in many a text by chance
TEMPLATE_CHARS = 12  # a shorter common beginning or end of all prompts says nothing
_PART = "\x1f"
# what may number choices; a choice has a label only where all of them have one, in this order
_SEQUENCES = (
    tuple("abcdefghij"), tuple("123456789"), tuple("0123456789"), tuple("アイウエオカキクケコ"),
    tuple("イロハニホヘト"), ("i", "ii", "iii", "iv", "v", "vi"), tuple("甲乙丙丁戊"), tuple("一二三四五"),
)  # fmt: skip
NUMBERINGS = _SEQUENCES[:2]  # of answers
_LABEL = re.compile(
    r"^[\s(\[【「<]*(?:(?:選択肢|option|choice|肢)\s*)?([a-z]{1,3}|\d{1,2}|[ア-コイロハニホヘト甲乙丙丁戊一二三四五])[\s.、,::)\]】」>]+(?=\S)",
    re.IGNORECASE,
)
QUESTION_KEYS = (
    "question", "query", "problem", "prompt", "instruction", "input", "text", "sentence", "goal", "ctx", "問題文",
)  # fmt: skip
_CHOICES_KEYS = ("choices", "options", "選択肢")
_ANSWER_KEYS = ("answer", "label", "target", "expected", "gold", "output", "completion", "正解")
_CHOICE_COLUMN = re.compile(r"(?:choice|option|ending|op|opt|選択肢)[ _]?([0-9a-h])", re.IGNORECASE)
_TEXT_KEYS, _LABEL_KEYS = ("text", "content", "value", "choice", "選択肢"), ("label", "key", "id", "symbol", "記号")


@dataclass(frozen=True)
class Question:
    """One question of the data set: its comparable key, its right letter, and the law text that it comes with."""

    key: str
    answer: str
    context: str = ""
    also_right: tuple[str, ...] = ()  # what else stands for that answer: each of several, or a solution's end


@dataclass(frozen=True)
class Choices:
    """A question's choices in their order; `labels` are what numbers them, empty where nothing does."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()


def question_key(question: str, choices: object) -> str:
    """Reduce question and choices to text without spacing, width and labels; many questions differ in choices only."""
    return _squeeze(question) + _PART + _PART.join(map(_squeeze, choices_of(choices).texts))


def key_texts(key: str) -> tuple[str, tuple[str, ...]]:
    """A key's question and its choices, in normal form; a question without choices has none."""
    question, *choices = key.split(_PART)
    return question, tuple(filter(None, choices))


def label_places(labels: Sequence[str]) -> dict[str, int] | None:
    """Which choice each label stands for, where these labels, in order, number choices; None where they do not."""
    is_known = any(tuple(labels) == known[: len(labels)] for known in _SEQUENCES)
    return {label: place for place, label in enumerate(labels)} if labels and is_known else None


def next_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """What would number choices beside these: those behind them, and 0 before 1; nothing where they are no sequence."""
    known = next((known for known in _SEQUENCES if labels and tuple(labels) == known[: len(labels)]), ())
    return (*known[len(labels) :], *(["0"] if known[:1] == ("1",) else []))


def choices_of(choices: object) -> Choices:
    """Read choices as results write them: lines, a list, a mapping of labels, or a list of mappings."""
    if isinstance(choices, Mapping):
        texts, names = _first_of(choices, _TEXT_KEYS), _first_of(choices, _LABEL_KEYS)
        if isinstance(texts, list) and isinstance(names, list) and len(texts) == len(names):  # as ARC has them
            return Choices(tuple(map(str, texts)), tuple(str(one).strip().lower() for one in names))
        pairs = sorted(choices.items(), key=lambda item: str(item[0]))
        found = _without_labels([str(value) for _, value in pairs])
        return Choices(found.texts, tuple(str(key).strip().lower() for key, _ in pairs))
    if isinstance(choices, list | tuple) and choices and all(isinstance(one, Mapping) for one in choices):
        found = _without_labels([str(_first_of(one, _TEXT_KEYS) or next(iter(one.values()), "")) for one in choices])
        labels = [_first_of(one, _LABEL_KEYS) for one in choices]
        has_labels = all(label is not None for label in labels)
        return Choices(found.texts, tuple(str(one).strip().lower() for one in labels) if has_labels else found.labels)
    if isinstance(choices, list | tuple):
        return _without_labels([str(choice) for choice in choices])
    lines = [line for line in str(choices or "").splitlines() if line.strip()]
    return _without_labels(_split(lines[0]) if len(lines) == 1 else lines)


def _first_of(values: Mapping[Any, object], keys: tuple[str, ...]) -> object:
    return next((values[key] for key in keys if key in values), None)


def _without_labels(parts: list[str]) -> Choices:
    """The parts without what numbers them; a number that begins one choice alone is part of its text."""
    plain = [unicodedata.normalize("NFKC", part).strip() for part in parts]
    found = [_LABEL.match(part) for part in plain]
    labels = tuple(hit[1].lower() for hit in found if hit)
    if not plain or len(labels) < len(plain) or not any(labels == known[: len(labels)] for known in _SEQUENCES):
        return Choices(tuple(plain))
    return Choices(tuple(part[hit.end() :] for part, hit in zip(plain, found, strict=True) if hit), labels)


def _split(line: str) -> list[str]:
    """Choices that stand in one line, taken apart before each label of a sequence; the whole line where it has none."""
    text = unicodedata.normalize("NFKC", line)
    for known in _SEQUENCES[:4]:
        places: list[int] = []
        at = 0
        for label in known:
            hit = re.compile(rf"(?:^|(?<=[\s、,/|。]))[(\[]?{label}[\s.、::)\]]+(?=\S)", re.IGNORECASE).search(text, at)
            if hit is None or (not places and hit.start() > 0):
                break
            places.append(hit.start())
            at = hit.end()
        if len(places) > 1:
            return [text[start:end] for start, end in zip(places, [*places[1:], len(text)], strict=True)]
    return [line]


def _squeeze(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def answer_labels(golds: Sequence[str], choices: Sequence[Choices]) -> tuple[str, ...]:
    """The labels that answers are, in order: a sequence that has every right answer, as long as the most choices.

    Choices may be numbered otherwise than answers are. Right answers of no known sequence are labels themselves.
    """
    wanted = {plain_label(gold) for gold in golds} or {"a"}
    most = max((len(one.texts) for one in choices), default=0)
    own = max((one.labels for one in choices), key=len, default=())
    if own and wanted <= set(own):
        return own
    for known in _SEQUENCES:
        if wanted <= set(known):
            return known[: max(most or 4, max(map(known.index, wanted)) + 1)]
    return tuple(sorted(wanted))


def as_label(answer: object, choices: object, first: int | None = None) -> str | None:
    """The label of the choice that an answer is: by its label, by its text, or by its number counted from `first`.

    A text may have its label before it. Choices without labels are a, b, c. None for what is none of them or the text
    of two of them, and for numbers where `first` is None.
    """
    found, said = choices if isinstance(choices, Choices) else choices_of(choices), plain_label(answer)
    labels = found.labels or NUMBERINGS[0][: len(found.texts)]
    if not said or len(found.texts) < 2 or len(labels) < len(found.texts):
        return None
    if said in found.labels:
        return said
    texts = [_squeeze(plain_label(text)) for text in found.texts]
    plain = unicodedata.normalize("NFKC", str(answer)).strip()
    led = _LABEL.match(plain)
    label = led[1].lower() if led else ""
    if led and label in labels and texts[labels.index(label)] == _squeeze(plain_label(plain[led.end() :])):
        return label
    same = [label for label, text in zip(labels, texts, strict=True) if text == _squeeze(said)]
    if same or said in labels:
        return (same or [said])[0] if len(same) < 2 else None
    place = int(said) - first if first is not None and said.isascii() and said.isdecimal() else -1
    return labels[place] if 0 <= place < len(labels) else None


def are_labels(answers: Set[str], choices: Sequence[Choices]) -> bool:
    """Whether answers are labels as they stand: those of the choices, or of one sequence where nothing numbers them."""
    own = {label for one in choices for label in one.labels}
    return answers <= own if own else any(answers <= {*known} for known in _SEQUENCES)


def repeats_question(text: str, question: str, choices: object) -> bool:
    """Whether a text has the question and then every choice in order, word for word, as a prompt has them."""
    parts = [_squeeze(question), *map(_squeeze, choices_of(choices).texts)]
    if sum(map(len, parts)) < REPEATED_CHARS or not all(parts):
        return False
    squeezed, at = _squeeze(text), 0
    for part in parts:
        found = squeezed.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def samples_of(dataset: Path, *, named: bool = False) -> list[Mapping[str, object]]:
    """The rows of a data set, as `samples_in` finds them; raises UnreadableError."""
    return samples_in(read_bytes(dataset, MAX_DATASET_BYTES), dataset, named=named)


def samples_in(data: bytes, path: Path, *, named: bool = False) -> list[Mapping[str, object]]:
    """The rows in a data set's bytes: the list `samples` of a JSON object, a JSON list, JSON Lines, or a table.

    `named`: the list `samples` alone, as the preset `lawqa` reads it. Raises UnreadableError where it has neither.
    """

    def rows_in() -> list[Mapping[str, object]]:
        return [line.row for line in row_lines(data, path, "replace") if line.row is not None]

    if path.suffix.lower() in TABLES and not named:
        return rows_in()
    try:
        raw = parse_json(data)
    except UnreadableError:
        first = next(json_lines(data, "replace"), None)
        if named or first is None or first.row is None or "samples" in first.row:
            raise
        return rows_in()
    if isinstance(raw, Mapping) and "samples" in raw:
        return _objects(raw["samples"])
    rows = _objects(raw) if isinstance(raw, list) else rows_in()
    if named or not rows:  # an object over several lines is no row
        raise UnreadableError(say("input.no_samples"))
    return rows


def rows_with(root: Path, questions: Sequence[str], besides: Collection[Path]) -> int | None:
    """How many rows the file below a project's folder has that asks these questions, before all others or anywhere.

    Several such files, as a copy is, count as one where they are as long. None for none, or for several lengths.
    """
    wanted = [_squeeze(question) for question in questions]
    first, anywhere = set[int](), set[int]()
    for path in project_files(root, MOST_SEARCHED_BYTES) if all(wanted) else ():
        if path.suffix not in (".json", ".jsonl", *TABLES) or path in besides:
            continue
        with contextlib.suppress(UnreadableError):
            rows = samples_of(path)
            pairs = zip(wanted, rows, strict=False)
            if len(rows) >= len(wanted) and all(_asks(row, question) for question, row in pairs):
                first.add(len(rows))
            elif all(any(_asks(row, question) for row in rows) for question in wanted):
                anywhere.add(len(rows))
    counts = first or anywhere
    return counts.pop() if len(counts) == 1 else None


def _asks(row: Mapping[str, object], question: str) -> bool:
    """Whether one of a row's texts is this question, or stands in it: a prompt has words around it."""
    texts = (_squeeze(text) for text in row.values() if isinstance(text, str))
    return any(text == question or (len(text) >= LEAST_QUESTION_CHARS and text in question) for text in texts)


def _objects(rows: object) -> list[Mapping[str, object]]:
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def questions_of(dataset: Path) -> tuple[Question, ...]:
    """The data set's questions in order, by lawqa_jp's keys or else by usual ones; raises UnreadableError."""
    rows = samples_of(dataset)
    if any("問題文" in row for row in rows):
        return tuple(
            Question(
                question_key(str(row.get("問題文", "")), row.get("選択肢")),
                plain_label(row.get("output", "")),
                str(row.get("コンテキスト") or ""),
            )
            for row in rows
        )
    found = [(row, text) for row in rows if isinstance(text := _first_of(row, QUESTION_KEYS), str)]
    if not rows or len(found) < len(rows):
        raise UnreadableError(say("unreadable.no_questions", rows=len(rows), without=len(rows) - len(found)))
    if len({text for _, text in found}) == 1 < len(rows):  # one instruction for all: what differs is asked
        names = [key for key in QUESTION_KEYS if all(isinstance(row.get(key), str) for row in rows)]
        most = max(names, key=lambda key: len({row[key] for row in rows}))
        found = [(row, str(row[most])) for row in rows]
    return tuple(
        Question(
            question_key(text, _choices_in(row)), "" if answer is None else plain_label(answer),
            also_right=tuple(map(plain_label, _parts_of(answer))),
        )
        for row, text in found
        for answer in [_first_of(row, _ANSWER_KEYS)]
    )  # fmt: skip


def _choices_in(row: Mapping[str, object]) -> object:
    """A row's choices, which may each have a column of their own: `choice0`, `option_a`, `opa`."""
    told = _first_of(row, _CHOICES_KEYS)
    named = sorted((hit[1].lower(), row[key]) for key in row if (hit := _CHOICE_COLUMN.fullmatch(key)))
    return told if told is not None or len(named) < 2 else [text for _, text in named]


def _parts_of(answer: object) -> Iterator[object]:
    """Each of several right answers, and what stands at a solution's end."""
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, list):
        for one in answer:
            yield from (one,) if not isinstance(one, Mapping | list) else _parts_of(one)
    elif isinstance(answer, str) and "####" in answer:
        yield answer.rpartition("####")[2]


def as_in_dataset(keys: Sequence[str], dataset: Sequence[Question]) -> tuple[str, ...]:
    """The keys as the data set has them: results may lack the choices, or hold a question within a template."""
    known = {question.key for question in dataset}
    alone = {_question_of(question.key): question.key for question in dataset}

    def found(key: str) -> str:
        question = _question_of(key)
        if key in known or question in alone:
            return key if key in known else alone[question]
        inside = [text for text in alone if len(text) >= LEAST_QUESTION_CHARS and text in question]
        return alone[max(inside, key=len)] if inside else key

    return tuple(map(found, keys))


def plain_label(value: object) -> str:
    """A label as it is compared: without width, case, spacing and brackets."""
    return unicodedata.normalize("NFKC", str(value)).strip(" \t\r\n()[].。").lower()


def questions_in(train_file: Path, row_format: RowFormat = "input_output") -> frozenset[str]:
    """Keys of the questions in a training file; rows without `meta.question` give their whole prompt instead.

    Of a conversation also the last turn before the answer alone. Raises OSError where the file can't be read; rows of
    another format are skipped.
    """
    keys = set[str]()
    for row in training_rows_in(train_file, row_format):
        if row.question:
            keys.add(question_key(row.question, row.choices))
            continue
        keys.add(_squeeze(row.prompt or row.text))
        keys |= {_squeeze(row.last_prompt)} if row.is_chat else set()
    return frozenset(keys - {""})


def prompt_template_in(train_file: Path, row_format: RowFormat = "input_output") -> tuple[str, str] | None:
    """The beginning and the end that all prompts of a file share, cut at line ends; None below two rows."""
    prompts = [row.prompt for row in training_rows_in(train_file, row_format)]
    if len(prompts) < 2:
        return None
    head = _common_beginning(prompts)
    tail = _common_beginning([prompt[::-1] for prompt in prompts])[::-1]
    return _squeeze(head[: head.rfind("\n") + 1]), _squeeze(tail[tail.find("\n") + 1 :] if "\n" in tail else "")


def _common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)  # these two differ first where any two do
    return first[: next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def prompt_template_agrees(template: tuple[str, str], prompt: str) -> bool | None:
    """Whether an evaluation prompt has the template of the training's; None where the template is too short to tell."""
    parts = [part for part in template if len(part) >= TEMPLATE_CHARS]
    if not parts:
        return None
    squeezed = _squeeze(prompt)
    return all(part in squeezed for part in parts)


def is_in_training(key: str, train_questions: frozenset[str]) -> bool:
    """Whether a question is in the training file, by its own key or inside a whole prompt.

    A question without choices is also there where the training asks it with some, or where the training's own text is
    the end of it: an evaluation's template stands before a question.
    """
    question, *choices = key.split(_PART)
    # the training may also ask it without its choices
    if key in train_questions or {question, question + _PART} & train_questions - {"", _PART}:
        return True
    parts = [part for part in (question, *choices) if part]
    prompts = [text for text in train_questions if _PART not in text]
    if len(parts) != 1:
        return any(all(part in text for part in parts) for text in prompts) if parts else False
    alone = {_question_of(text) for text in train_questions}
    return question in alone or (
        len(question) >= LEAST_QUESTION_CHARS
        and any(question in text or (len(text) >= LEAST_QUESTION_CHARS and text in question) for text in prompts)
    )


def without_choices(key: str) -> str:
    """A question's key by its question alone."""
    return _question_of(key) + _PART


def _question_of(key: str) -> str:
    return key.partition(_PART)[0]
