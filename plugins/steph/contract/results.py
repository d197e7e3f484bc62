"""What an evaluation's results say, whoever wrote them, as one value for every format. Pure.

Their places in JSON are dotted paths: `results.*.acc,none`, where `*` stands for any one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from steph.base.messages import Message
from steph.contract.questions import Choices, answer_labels, are_labels, as_label, choices_of, plain_label

if TYPE_CHECKING:
    from steph.contract.results_files import ResultsFormat

MOST_SECONDS = 1e9
ROUNDED_DIGITS = 5  # a share with so many decimals is not taken for a rounded one
ACCURACY_TOLERANCE = 6e-5  # two digits of a percentage, rounded; a printed one may have fewer
MOST_LABEL_CHARS = 20
NO_ANSWER, FAILED = "unknown", "error"  # what is written in an answer's place

EvaluationKind = Literal["generate", "choice", "loglikelihood", "metric"]


@dataclass(frozen=True)
class ResultsForm:
    """What a description says of an evaluation and its results.

    `file` and `rows` are filled in and from the pipeline root, and may hold `*` and `**`; `rows` may be a dotted path,
    as `score`, `count`, `model`, `adapter` and the values of `row` are.
    """

    format: ResultsFormat = "lawqa"
    kind: EvaluationKind = "choice"
    lines: tuple[str, ...] = ()
    file: str | None = None
    rows: str | None = None
    score: str | None = None
    count: str | None = None
    model: str | None = None
    adapter: str | None = None
    row: Mapping[str, str] = field(default_factory=dict)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


class Config(_Part):
    """What the evaluation says it ran with; later versions may add keys, which are kept, or leave some out."""

    model_config = ConfigDict(extra="allow")

    rag_enabled: object = None
    cot_enabled: object = None
    ensemble_runs: object = None
    top_k: object = None
    llm_model: object = None
    hf_model_name: object = None
    backend: object = None
    lora_path: object = None
    load_in_4bit: object = None
    total_samples: object = None


class Summary(_Part):
    """The figures that the evaluation sums up; `accuracy` is 0 to 1."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    correct_count: Annotated[int, Field(ge=0)]
    total_count: Annotated[int, Field(ge=0)]


class Score(_Part):
    """One figure of the results: of which task, by which metric, over how many samples."""

    task: str = ""
    metric: str = ""
    value: float
    count: Annotated[int, Field(ge=0)] | None = None
    is_mean: bool | None = True  # the mean of its rows' scores; None: unknown, as of a metric over a whole corpus


def _lowered(value: object) -> object:
    return plain_label(value) if isinstance(value, str) else value


class Row(_Part):
    """One answered question; newer pipelines alone have `seconds`, `new_tokens`, `finish_reason` and `prompt`."""

    question: str
    choices: object = None
    correct_answer: Annotated[str, StringConstraints(max_length=2000)] = ""
    predicted_answer: Annotated[str, BeforeValidator(_lowered)] = ""  # a label, a text, `unknown` or `error`
    is_correct: bool
    also_right: tuple[str, ...] = ()  # each of several right answers, of which one is enough
    response: str | None = None  # None: the model was not asked for a text
    score: float | None = None  # what it counts, where that may be a part of 1
    runs: tuple[str, ...] = ()  # the responses of several runs, of which the answer was voted
    task: str = ""
    seconds: object = None
    finish_reason: object = None
    prompt: object = None
    retrieved_docs_count: object = None
    new_tokens: object = None

    @property
    def asked(self) -> str | None:
        """The prompt as one text, also where it is a list of a chat's messages; None where the row has none."""
        if isinstance(self.prompt, str):
            return self.prompt or None
        if isinstance(self.prompt, list):
            said = [turn.get("content") if isinstance(turn, dict) else turn for turn in self.prompt]
            return "\n".join(text for text in said if isinstance(text, str)) or None
        return None

    @property
    def is_answered(self) -> bool:
        """Whether an answer was read, right or wrong."""
        return self.predicted_answer not in (NO_ANSWER, FAILED)

    @property
    def counts(self) -> float:
        """The value that the row adds to a score that is its rows' mean."""
        return self.score if self.score is not None else float(self.is_correct)

    @property
    def own_seconds(self) -> float | None:
        """The seconds that it took; None where what is written is no such time."""
        if isinstance(self.seconds, int | float) and 0 <= self.seconds < MOST_SECONDS:
            return float(self.seconds)
        return None


class Results(_Part):
    """The content of one evaluation's files."""

    config: Config = Config()
    summary: Summary | None = None  # of the format `lawqa`
    results: tuple[Row, ...] = ()
    scores: tuple[Score, ...] = ()  # of the others
    contradictions: tuple[Message, ...] = ()  # what its files say against each other
    begun_unix: float | None = None  # when they say that the evaluation began
    kind: EvaluationKind | None = None  # what the program says that it asked; None: only the description tells
    whole: Annotated[int, Field(ge=1)] | None = None  # questions of the whole data set, where the file says how many

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that its answers are, in their order: those that its right answers are taken from."""
        golds = [row.correct_answer for row in self.results]
        labels = answer_labels(golds, [choices_of(row.choices) for row in self.results])
        if labels != tuple(sorted({*golds})):
            return labels
        # words: of a few questions the right answers may all be `yes`
        answers = {row.predicted_answer for row in self.results if row.is_answered}
        return tuple(sorted({*golds} | {one for one in answers if 0 < len(one) <= MOST_LABEL_CHARS}))

    @property
    def mean_counts(self) -> float | None:
        """The mean of what the rows count, None without rows."""
        return sum(row.counts for row in self.results) / len(self.results) if self.results else None


@dataclass(frozen=True)
class ResultsFile:
    """The file that was found (None: none), the name the pipeline has for it, and its content or what is wrong."""

    path: Path | None
    name: str
    fresh: bool = False
    content: Results | None = None
    problem: Message | None = None
    others: tuple[str, ...] = ()  # files of this attempt under the asked name that tell other results
    rows_files: tuple[Path, ...] = ()  # files of their own that hold its rows


def with_labels(rows: tuple[Row, ...], *, has_flags: bool) -> tuple[Row, ...]:
    """The rows with labels for answers that are recorded as the text or the number of a choice.

    As they are where all answers are labels already, or few right ones are any choice. What is the text of two choices
    stays unread. `has_flags`: the rows say themselves what is right; else it is told again by the labels.
    """
    choices = [choices_of(row.choices) for row in rows]
    told = {answer for row in rows for answer in (row.correct_answer, row.predicted_answer if row.is_answered else "")}
    says_numbers = any(
        row.predicted_answer.isdigit() and row.predicted_answer == _lowered(row.response) for row in rows
    )
    is_numbered = says_numbers or any(label.isdigit() for own in choices for label in own.labels)
    if is_numbered or any(len(own.texts) < 2 for own in choices) or are_labels(told - {""}, choices):
        return rows
    pairs = list(zip(rows, choices, strict=True))

    def read(first: int | None) -> list[tuple[str | None, str | None]]:
        answers = ((as_label(row.correct_answer, own, first), row, own) for row, own in pairs)
        return [(gold, as_label(row.predicted_answer, own, first)) for gold, row, own in answers]

    def fits(first: int) -> tuple[int, int]:
        """How many answers are choices by such numbers; how many agree with what is called right and was responded."""
        both = read(first)
        known = sum(one is not None for pair in both for one in pair)
        agree = sum((gold == said) == row.is_correct for (gold, said), row in zip(both, rows, strict=True) if has_flags)
        responded = [as_label(row.response or "", own, first) for row, own in pairs]
        return known, agree + sum(
            said is not None and said == one for (_, said), one in zip(both, responded, strict=True)
        )

    from_0, from_1 = fits(0), fits(1)
    both = read(None if from_0 == from_1 else int(from_1 > from_0))
    if 2 * sum(gold is not None for gold, _ in both) < len(rows):
        return rows
    found = []
    for (row, own), (gold, said) in zip(pairs, both, strict=True):
        each = Choices(tuple(dict.fromkeys(own.texts)))  # one that is a choice of these alone is the text of two
        right = gold or ("" if as_label(row.correct_answer, each) else row.correct_answer)
        answer = said or (NO_ANSWER if as_label(row.predicted_answer, each) else row.predicted_answer)
        update: dict[str, object] = {"correct_answer": right, "predicted_answer": answer}
        if not has_flags and gold and said:
            update |= {"is_correct": gold == said, "score": float(gold == said)}
        found.append(row.model_copy(update=update))
    return tuple(found)


def half_digit(value: float) -> float:
    """Half of the last digit that a share was written with; of a rounded percentage the same."""
    digits = len(f"{value:.12g}".partition(".")[2])
    return 0.51 * 10.0**-digits if 0 < digits < ROUNDED_DIGITS else 0.0


def values_at(value: object, path: str) -> tuple[object, ...]:
    """All values at a path, in order; a key with dots is found whole, a number counts a list's items from 0."""
    return tuple(_values(value, path.split(".") if path else []))


def value_at(value: object, path: str | None) -> object:
    """The first value at a path, None where there is none or no path."""
    return next(iter(values_at(value, path)), None) if path is not None else None


def _values(value: object, parts: list[str]) -> Iterator[object]:
    if not parts:
        yield value
        return
    if isinstance(value, Mapping):
        if parts[0] == "*":
            for child in value.values():
                yield from _values(child, parts[1:])
            return
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in value:
                yield from _values(value[key], parts[length:])
                return
    elif isinstance(value, list):
        if parts[0] == "*":
            for child in value:
                yield from _values(child, parts[1:])
        elif parts[0].isdigit() and int(parts[0]) < len(value):
            yield from _values(value[int(parts[0])], parts[1:])
