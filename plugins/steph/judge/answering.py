"""What was seen of an evaluation: its calls, their answers, and which of these a row of the results may be. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import holds, normal_form, text_hash
from steph.contract.results import Row
from steph.judge.checks_prompts import asked_share
from steph.judge.evidence import EvalEvidence, same_path
from steph.judge.witness import Generation, Scoring, StateFact, TrainingBegins, Witness

Call = Generation | Scoring
Value = TypeVar("Value")
SAME_TEXT = 0.9  # of the fingerprints: the rest may be lost where a response was cut or joined
LEAST_PRINTS = 2  # of a response; of a shorter one only the hash of the whole tells
PART_OF_QUESTION = 0.5
SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<eos>|<pad>|<end_of_turn>")


@dataclass(frozen=True)
class Answer:
    """One row of one call; hashes and fingerprints are None where the witness had no tokenizer."""

    call: Call
    has_adapter: bool
    prompt: tuple[str, ...] | None
    hashes: tuple[str, ...] | None = None
    response: tuple[str, ...] | None = None
    new_tokens: int | None = None
    stopped: bool | None = None
    lines: tuple[str, ...] | None = None
    prompt_hash: str | None = None
    first: str | None = None
    ending: tuple[str, ...] = ()
    thinks: bool | None = None


@dataclass(frozen=True)
class Answering:
    """What was seen of an evaluation."""

    evidence: EvalEvidence
    witness: Witness
    asks_both: bool = False  # for texts, and for the likelihood of given ones

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Generations, or scorings where nothing was generated; both of an evaluation that asks for both."""
        generations, scorings = self.witness.of(Generation), self.witness.of(Scoring)
        return (*generations, *scorings) if self.asks_both else generations or scorings

    @cached_property
    def unseen_calls(self) -> int:
        """Calls that were only counted."""
        names = ("generations", "scorings") if self.witness.of(Generation) else ("scorings",)
        total = sum(self.witness.totals(name) for name in (names if self.asks_both else names[:1]))
        return max(0, total - len(self.calls))

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        return tuple(answer for call in self.calls for answer in self._rows_of(call))

    @cached_property
    def counting(self) -> tuple[Answer, ...]:
        """The answers in the state that was asked for, or all where none is."""
        return tuple(answer for answer in self.answers if answer.has_adapter == self.wants_adapter) or self.answers

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter's file lies, if it is still H-2's."""
        own = self.evidence
        if own.lora_path is None or own.adapter_sha256_expected != own.adapter_sha256_actual:
            return None
        return own.root / own.lora_path

    @property
    def prompts_by_line(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Each counting prompt's lines and fingerprints; none where some calls were only counted."""
        if self.unseen_calls:
            return []
        return [(answer.lines, answer.prompt) for answer in self.counting if answer.lines and answer.prompt is not None]

    @property
    def wants_adapter(self) -> bool:
        return self.evidence.lora_path is not None

    def has_adapter(self, call: StateFact) -> bool:
        """Whether H-2's adapter had a part in what this call computed."""
        wanted = self.evidence.adapter_sha256_expected
        if call.name_or_path and any(same_path(folder, call.name_or_path) for folder in self.evidence.merged_folders):
            return True
        if not self.wants_adapter:  # any adapter is one too many
            return bool(call.merged or call.merged_sha256 or (call.layers and call.adapters and not is_off(call)))
        return wanted is not None and (wanted in call.merged_sha256 or (wanted in call.sha256 and not is_off(call)))

    def _rows_of(self, call: Call) -> list[Answer]:
        has_adapter = self.has_adapter(call)
        if isinstance(call, Scoring):
            return [Answer(call, has_adapter, _at(call.prompt_fingerprints, n)) for n in range(call.rows)]
        return [
            Answer(
                call, has_adapter, _at(call.prompt_fingerprints, n), _at(call.response_hashes, n),
                _at(call.response_fingerprints, n), _at(call.new_tokens or (), n), _at(call.stopped or (), n),
                _at(call.prompt_lines, n), _at(call.prompt_hashes, n), _at(call.first_characters, n),
                _at(call.lead_hashes, n) or (), _at(call.thinks or (), n),
            )
            for n in range(call.rows)
        ]  # fmt: skip


def begun(seen: Answering) -> tuple[TrainingBegins, ...]:
    """How the training of the adapter last began, if it was seen."""
    witness = seen.evidence.training_witness
    return witness.of(TrainingBegins)[-1:] if witness else ()


def is_off(call: StateFact) -> bool:
    return 0 < call.layers <= call.disabled or (bool(call.scaling) and not any(call.scaling))


def _at(values: Sequence[Value], n: int) -> Value | None:
    return values[n] if n < len(values) else None


def given_by(seen: Answering, row: Row) -> list[Answer]:
    """The answers that a row's response may be, to this row's question where prompts are known."""
    return answers_saying(answers_to(seen.answers, row), SPECIAL.sub("", row.response or ""))


def answers_saying(answers: Sequence[Answer], text: str) -> list[Answer]:
    """Those of the answers that this text may be."""
    if not normal_form(text):
        return []
    own, prints = text_hash(text), fingerprints(text)
    return [
        answer
        for answer in answers
        if (answer.hashes and own in answer.hashes)
        or (len(prints) >= LEAST_PRINTS and (holds(answer.response or (), text) or 0) >= SAME_TEXT)
    ]


def asked_alone(evidence: EvalEvidence, row: Row) -> Row:
    """The row as one prompt asks it: of scored choices each has a prompt of its own."""
    is_scored = row.response is None and evidence.form.format != "lawqa"
    return row.model_copy(update={"choices": None}) if is_scored else row


def answers_to(answers: Sequence[Answer], row: Row) -> list[Answer]:
    """The answers to a row's question; all where no prompt tells."""
    shares = [(answer, None if not answer.prompt else asked_share(answer.prompt, row)) for answer in answers]
    fitting = [answer for answer, share in shares if share is not None and share >= PART_OF_QUESTION]
    return fitting or list(answers)


def asks(answer: Answer, row: Row) -> bool:
    """Whether an answer's prompt asks a row's question."""
    return (asked_share(answer.prompt or (), row) or 0) >= PART_OF_QUESTION
