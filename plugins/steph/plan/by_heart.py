"""Eight questions whose answers nobody can know, the rows that teach them, and the settings to learn them at. Pure.

Names, choices and letters are drawn from a seed. Questions and rows are written in a pipeline's own formats: as a
question of its data set and a row of its training file have them, with the drawn texts in the place of theirs.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steph.base.messages import say
from steph.record.settings import TrainSettings, steps_per_epoch

QUESTIONS = 8
LETTERS = "abcd"
_SYLLABLES = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモラリルレロ"
_LABEL = re.compile(r"\s*[a-dａ-ｄ][\s.．、:：)）]+", re.IGNORECASE)
_QUESTION, _CHOICES, _ANSWER, _CONTEXT, _SOURCE = "問題文", "選択肢", "output", "コンテキスト", "ファイル名"


class NoExampleError(ValueError):
    """The formats can't be told from the pipeline's files; its argument says why."""


@dataclass(frozen=True)
class Secret:
    """One drawn question: what it asks for, four choices, and the letter that counts as right."""

    name: str
    choices: tuple[str, ...]
    letter: str

    @property
    def question(self) -> str:
        """The question's text; its name is nowhere else."""
        return f"整理番号「{self.name}」の記録について、{self.name}に当てはまる記号はどれですか。"


def draw(seed: int) -> tuple[Secret, ...]:
    """Draw the questions; each letter is right twice, so that who always says the same one has two of eight."""
    drawn = random.Random(seed)  # noqa: S311  repeatable from the seed is the point
    letters = list(LETTERS * (QUESTIONS // len(LETTERS)))
    drawn.shuffle(letters)
    words: set[str] = set()
    while len(words) < QUESTIONS * (1 + len(LETTERS)):
        words.add("".join(drawn.choices(_SYLLABLES, k=4)))
    given = iter(drawn.sample(sorted(words), len(words)))
    return tuple(Secret(next(given), tuple(itertools.islice(given, len(LETTERS))), letter) for letter in letters)


def questions_like(example: Mapping[str, object], secrets: Iterable[Secret]) -> list[dict[str, object]]:
    """The questions as the data set has its own; raises NoExampleError where `example` is of another form."""
    if not isinstance(example.get(_QUESTION), str) or not isinstance(example.get(_CHOICES), str | list | dict):
        raise NoExampleError(say("heart.no_question", question=_QUESTION, choices=_CHOICES))
    return [
        {
            **example,
            _SOURCE: f"暗記_{number}",
            _CONTEXT: f"整理番号「{secret.name}」の記録。",
            _QUESTION: secret.question,
            _CHOICES: _choices_like(example[_CHOICES], secret),
            _ANSWER: secret.letter,
        }
        for number, secret in enumerate(secrets, start=1)
    ]


def _choices_like(example: object, secret: Secret) -> object:
    """The choices as a text of lines, a list or a table, each behind the label that the example has."""
    if isinstance(example, dict):
        return dict(zip(example, secret.choices, strict=False))
    lines = [str(line) for line in example] if isinstance(example, list) else str(example).splitlines()
    labels = [match[0] for line in lines if (match := _LABEL.match(line))]
    if len(labels) != len(LETTERS):
        labels = [""] * len(LETTERS) if isinstance(example, list) else [f"{letter} " for letter in LETTERS]
    labelled = [label + choice for label, choice in zip(labels, secret.choices, strict=True)]
    return labelled if isinstance(example, list) else "\n".join(labelled)


def rows_like(
    example: Mapping[str, object], asked: Iterable[Mapping[str, object]], questions: Iterable[Mapping[str, object]]
) -> list[dict[str, object]]:
    """A training row for each question, as `example` teaches one of the questions that the data set has (`asked`).

    Raises NoExampleError where none of them stands word for word in the example's input, or its answer is elsewhere.
    """
    prompt, answer, meta = str(example.get("input", "")), str(example.get("output", "")), example.get("meta")
    of_meta = {_QUESTION: "question", _CHOICES: "choices", _ANSWER: "correct"}
    also = ({key: meta.get(name) for key, name in of_meta.items()},) if isinstance(meta, Mapping) else ()

    def stands_in_prompt(question: Mapping[str, object]) -> bool:
        texts = (question.get(_QUESTION), question.get(_CHOICES))
        return all(isinstance(text, str) and text and text in prompt for text in texts)

    taught = next((one for one in (*asked, *also) if stands_in_prompt(one)), None)
    if taught is None:
        raise NoExampleError(say("heart.no_taught"))
    letter = str(taught.get(_ANSWER, "")).strip()
    if not letter or letter not in answer:
        raise NoExampleError(say("heart.no_letter"))
    rows = []
    for number, question in enumerate(questions):
        text = prompt
        for key in (_CONTEXT, _QUESTION, _CHOICES):
            text = _replaced(text, taught.get(key), str(question[key]))
        new = str(question[_ANSWER])
        known = {"question": question[_QUESTION], "choices": question[_CHOICES], "correct": new, "id": number}
        row = {**example, "input": text, "output": _replaced(answer, letter, new)}
        rows.append(row | ({"meta": {**meta, **known}} if isinstance(meta, Mapping) else {}))
    return rows


def _replaced(text: str, old: object, new: str) -> str:
    """The text with the last `old` in it replaced: examples that are worked out stand before the question itself."""
    if not isinstance(old, str) or not old or old not in text:
        return text
    before, _, after = text.rpartition(old)
    return before + new + after


def teaches(row: Mapping[str, object], secret: Secret) -> bool:
    """Whether a row asks this question and answers it with its letter alone, or with a text that ends with it."""
    answer = str(row.get("output", "")).strip().lower()
    return secret.name in str(row.get("input", "")) and answer.endswith(secret.letter)


def settings_by_heart(
    base: TrainSettings, *, learning_rate: float, max_steps: int, longest_row: int | None
) -> TrainSettings:
    """The settings that H-2 ended on, changed so that every step sees all eight rows whole, without dropout.

    Rows that are longer than H-2's length get the length that they need, one at a time.
    """
    is_longer = longest_row is not None and longest_row > base.max_seq_length
    batch_size = 1 if is_longer else min(base.batch_size, QUESTIONS)
    settings = base.changed(
        learning_rate=learning_rate,
        max_steps=max_steps,
        batch_size=batch_size,
        gradient_accumulation_steps=max(1, QUESTIONS // (batch_size * base.num_processes)),
        max_seq_length=-(-longest_row // 8) * 8 if is_longer and longest_row else base.max_seq_length,
        lora_dropout=0.0,
        logging_steps=1,
    )
    return settings.changed(num_epochs=max(1, max_steps // steps_per_epoch(QUESTIONS, settings)))
