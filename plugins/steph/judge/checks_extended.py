"""Checks of the extended stages, and the eight questions whose answers nobody can know, with the rows that teach them.

The stages: reasoning, retrieval, what the adapter changes, answers learnt by heart. Of the questions, names, choices
and letters are drawn from a seed. Questions and rows are written in a pipeline's own formats: as a question of its data
set and a row of its training file have them, with the drawn texts in the place of theirs.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steph.base.messages import say
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.contract.lines import EvalLines
from steph.contract.questions import question_key
from steph.contract.results import Results, Row
from steph.judge.checks_setup import Seen, why_unseen
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures
from steph.judge.reading import reasoning_of, strict_letter
from steph.judge.witness import ModelFact, Witness
from steph.record.settings import TrainSettings, steps_per_epoch
from steph.record.values import AnswerComparison, Check

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


REASONING_CHARS = 10  # fewer are no reason: "Reasoning: なし" has two
PASSAGE_CHARS = 10
LEAST_REMEMBERED = 7  # of 8; by chance 4 runs in 10,000 have as many
MOST_GUESSED = 4  # by chance 97 runs in 100 have no more
LOW_LOSS = 0.1  # mean of the last steps
LAST_STEPS = 3
CERTAIN_NATS = 0.7  # a row's whole loss below which its letter is the likeliest one
TEMPLATE_TOKENS = 8  # what may close an answer
MOST_SUPERVISED_SHARE = 0.5  # of a row whose answer is a letter, where its tokens could not be counted

COT_ROWS_SOUND = CheckKind("cot_rows_sound", "H-2cot", WARN)
LINE_COT_ENABLED = CheckKind("line_cot_enabled", "H-3cot", FAIL)
COT_REASONED = CheckKind("cot_reasoned", "H-3cot", WARN, quality=True)
RAG_RETRIEVED = CheckKind("rag_retrieved", "H-3rag", FAIL)
RAG_IN_PROMPT = CheckKind("rag_in_prompt", "H-3rag", FAIL, optional=True)
BASE_SAME_QUESTIONS = CheckKind("base_same_questions", "H-3base", FAIL)
ADAPTER_CHANGES_RESPONSES = CheckKind("adapter_changes_responses", "H-3base", WARN, quality=True)
HEART_LOSS_LOW = CheckKind("heart_loss_low", "H-3heart", INFO)
HEART_REMEMBERED = CheckKind("heart_remembered", "H-3heart", FAIL, optional=True)
HEART_UNKNOWN = CheckKind("heart_unknown", "H-3heart", FAIL, optional=True)
STEP_UNQUANTISED = CheckKind("step_unquantised", "H-2step", FAIL, trap=5, optional=True)
STEP_OUTPUT_ONLY = CheckKind("step_output_only", "H-2step", FAIL, trap=9, optional=True)


def extended_checks(evidence: EvalEvidence, lines: EvalLines, results: Results | None) -> tuple[Check, ...]:
    """The checks that the evaluation's own settings ask for; none for an evaluation as H-3 runs it."""
    rows = results.results if results else None
    checks: list[Check] = []
    if evidence.settings.use_cot:
        line = LINE_COT_ENABLED.check(False, "missing")
        if lines.cot is not None:
            line = LINE_COT_ENABLED.check(lines.cot.startswith("Enabled"), "shown", shown=one_line(lines.cot, 80))
        reasoned = COT_REASONED.check(None, "none", rehearsal=evidence.rehearsal)
        if rows:
            bare = sum(len(reasoning_of(row.response or "")) < REASONING_CHARS for row in rows)
            counts: Figures = {"questions": len(rows), "bare": bare}
            reasoned = COT_REASONED.check(bare == 0, "counted", rehearsal=evidence.rehearsal, **counts)
        checks += [line, reasoned]
    if evidence.settings.use_rag:
        checks += [_retrieved_check(rows, evidence.settings.top_k), _prompt_check(rows, evidence.h3_rows)]
    if evidence.lora_path is None:
        checks += _base_checks(rows, evidence.h3_rows, rehearsal=evidence.rehearsal)
    return tuple(checks)


def compared(rows: tuple[Row, ...] | None, h3_rows: tuple[Row, ...] | None) -> AnswerComparison | None:
    """What the adapter changes: `rows` were answered without it, `h3_rows` with it; None for different questions."""
    if not rows or not h3_rows or _keys(rows) != _keys(h3_rows):
        return None
    pairs = list(zip(rows, h3_rows, strict=True))
    return AnswerComparison(
        questions=len(pairs),
        same_responses=sum(without.response == adapted.response for without, adapted in pairs),
        changed_answers=sum(without.predicted_answer != adapted.predicted_answer for without, adapted in pairs),
        right_to_wrong=sum(without.is_correct and not adapted.is_correct for without, adapted in pairs),
        wrong_to_right=sum(adapted.is_correct and not without.is_correct for without, adapted in pairs),
    )


def cot_rows_check(rows: Iterable[Mapping[str, object]]) -> Check:
    """Whether training rows teach reasoning: text before a last line that gives the row's own letter."""
    kept, bare, astray, unsound = list(rows), 0, 0, 0
    for row in kept:
        text, meta = str(row.get("output", "")), row.get("meta")
        correct = meta.get("correct") if isinstance(meta, Mapping) else None
        letter = strict_letter((text.strip().splitlines() or [""])[-1], cot=True)
        is_bare = len(reasoning_of(text)) < REASONING_CHARS
        is_astray = letter is None or (isinstance(correct, str) and letter != correct.strip().lower())
        bare, astray, unsound = bare + is_bare, astray + is_astray, unsound + (is_bare or is_astray)
    severity = Severity.FAIL if 2 * unsound > len(kept) else None
    counts: Figures = {"rows": len(kept), "bare": bare, "astray": astray}
    return COT_ROWS_SOUND.check(unsound == 0 if kept else None, "counted", severity=severity, **counts)


def _retrieved_check(rows: tuple[Row, ...] | None, top_k: int) -> Check:
    counts = [row.retrieved_docs_count for row in rows or () if type(row.retrieved_docs_count) is int]
    if not rows or len(counts) < len(rows):
        return RAG_RETRIEVED.check(None, "no_counts", questions=len(rows or ()), counts=len(counts))
    without = sum(count < 1 for count in counts)
    figures: Figures = {"questions": len(rows), "without": without, "least": min(counts), "top_k": top_k}
    return RAG_RETRIEVED.check(without == 0, "counted", **figures)


def _prompt_check(rows: tuple[Row, ...] | None, h3_rows: tuple[Row, ...] | None) -> Check:
    """Whether a prompt says more than the one without retrieval for the same question."""
    without = dict(zip(_keys(h3_rows or ()), h3_rows or (), strict=True))
    measured = []
    for row, key in zip(rows or (), _keys(rows or ()), strict=True):
        other = without[key].prompt if key in without else None
        if isinstance(row.prompt, str) and isinstance(other, str):
            known = {line.strip() for line in other.splitlines()}
            measured.append(sum(len(line.strip()) for line in row.prompt.splitlines() if line.strip() not in known))
    if not measured:
        return RAG_IN_PROMPT.check(None, "none")
    bare = sum(added < PASSAGE_CHARS for added in measured)
    return RAG_IN_PROMPT.check(bare == 0, "counted", questions=len(measured), bare=bare, least=min(measured))


def _base_checks(
    rows: tuple[Row, ...] | None, h3_rows: tuple[Row, ...] | None, *, rehearsal: bool
) -> tuple[Check, Check]:
    found = compared(rows, h3_rows)
    if not rows or not h3_rows or found is None:
        are_there = bool(rows and h3_rows)
        what = "others" if are_there else "none"
        counts: Figures = {"without": len(rows or ()), "adapted": len(h3_rows or ())} if are_there else {}
        same = BASE_SAME_QUESTIONS.check(False if are_there else None, what, **counts)
        return same, ADAPTER_CHANGES_RESPONSES.check(None, what, rehearsal=rehearsal)
    differs = found.same_responses < found.questions
    figures: Figures = {
        "questions": found.questions,
        "same": found.same_responses,
        "changed": found.changed_answers,
        "spoiled": found.right_to_wrong,
        "mended": found.wrong_to_right,
    }
    effect = ADAPTER_CHANGES_RESPONSES.check(differs, "counted" if differs else "same", rehearsal=rehearsal, **figures)
    return BASE_SAME_QUESTIONS.check(True, "same", without=len(rows), adapted=len(h3_rows)), effect


def _keys(rows: tuple[Row, ...]) -> tuple[str, ...]:
    return tuple(question_key(row.question, row.choices) for row in rows)


def loss_low_check(losses: Sequence[float], steps: int, learning_rate: float, seed: int) -> Check:
    """Whether the loss got near zero; None, with the figures, where it did not or where nobody wrote it down."""
    how: Figures = {"rate": learning_rate, "steps": steps, "seed": seed}
    if not losses:
        return HEART_LOSS_LOW.check(None, "none", **how)
    last = _last(losses)
    return HEART_LOSS_LOW.check(True if last <= LOW_LOSS else None, "fell", first=losses[0], last=last, **how)


def remembered_check(
    rows: Sequence[Row] | None, secrets: Sequence[Secret], losses: Sequence[float], supervised: int | None
) -> Check:
    """At least seven of eight with the adapter, after a loss that got low.

    `supervised`: most tokens of a row that carried a label, None where nobody saw it. A low mean over hundreds of
    tokens says little of one letter: where the letters are wrong then, nothing is proven.
    """
    right = right_answers(rows, secrets)
    if right is None:
        return HEART_REMEMBERED.check(None, "others")
    is_certain = supervised is None or _last(losses) * supervised <= CERTAIN_NATS
    if right < LEAST_REMEMBERED and not is_certain:
        return HEART_REMEMBERED.check(None, "uncertain", questions=len(secrets), right=right, supervised=supervised)
    return HEART_REMEMBERED.check(right >= LEAST_REMEMBERED, "counted", questions=len(secrets), right=right)


def unknown_check(rows: Sequence[Row] | None, secrets: Sequence[Secret]) -> Check:
    """At most four of eight without the adapter: nobody can know more."""
    right = right_answers(rows, secrets)
    if right is None:
        return HEART_UNKNOWN.check(None, "others")
    holds = right <= MOST_GUESSED
    return HEART_UNKNOWN.check(holds, "few" if holds else "too_many", questions=len(secrets), right=right)


def right_answers(rows: Sequence[Row] | None, secrets: Sequence[Secret]) -> int | None:
    """How many of the drawn letters were given; None where other questions were answered than those."""
    if rows is None:
        return None
    given = {question_key(row.question, ""): row.predicted_answer for row in rows}
    keys = [question_key(secret.question, "") for secret in secrets]
    if len(rows) != len(secrets) or set(given) != set(keys):
        return None
    return sum(given[key] == secret.letter for key, secret in zip(keys, secrets, strict=True))


def _last(losses: Sequence[float]) -> float:
    last = losses[-LAST_STEPS:]
    return sum(last) / len(last) if last else math.inf


def unquantised_check(witness: Witness, seen: Seen | None) -> Check:
    """Trap 5: no layer was quantised where nobody asked for it; by the training, else by the model that was loaded."""
    facts = [seen.begins] if seen else [fact for fact in witness.of(ModelFact) if fact.parameters]
    if not facts:
        holds, why = why_unseen(witness, "training")
        return STEP_UNQUANTISED.check(None if holds is False else holds, why)
    layers = sum(kind.layers for kind in facts[-1].quantised)
    kinds = sorted({one_line(kind.kind or "?", 40) for kind in facts[-1].quantised})
    return STEP_UNQUANTISED.check(layers == 0, "quantised" if layers else "none", layers=layers, kinds=kinds)


def output_only_check(seen: Seen | None, longest_answer: int | None) -> Check:
    """Trap 9: with the flag only the answer carries labels; `longest_answer` in tokens, None where not counted."""
    batches = [batch for batch in seen.batches if batch.supervised and batch.shape] if seen else []
    if not batches:
        return STEP_OUTPUT_ONLY.check(None, "none")
    most = max(count for batch in batches for count in batch.supervised or ())
    if longest_answer is not None:
        holds = 0 < most <= longest_answer + TEMPLATE_TOKENS
        return STEP_OUTPUT_ONLY.check(holds, "counted", most=most, longest=longest_answer)
    supervised = sum(count for batch in batches for count in batch.supervised or ())
    tokens = sum(batch.shape[0] * batch.shape[-1] * (1 - (batch.padding or 0)) for batch in batches)
    share = supervised / max(tokens, 1)
    return STEP_OUTPUT_ONLY.check(0 < share <= MOST_SUPERVISED_SHARE, "share", percent=100 * share)
