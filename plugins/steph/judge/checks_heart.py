"""Judges answers learnt by heart, and a single step without 4-bit: what only trainings of their own can show. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from steph.base.text import one_line
from steph.contract.questions import question_key
from steph.contract.results import Row
from steph.judge.checks_witness import Seen, why_unseen
from steph.judge.kinds import FAIL, INFO, CheckKind
from steph.judge.witness import ModelFact, Witness
from steph.plan.by_heart import Secret
from steph.record.values import Check

LEAST_REMEMBERED = 7  # of 8; by chance 4 runs in 10,000 have as many
MOST_GUESSED = 4  # by chance 97 runs in 100 have no more
LOW_LOSS = 0.1  # mean of the last steps
LAST_STEPS = 3
CERTAIN_NATS = 0.7  # a row's whole loss below which its letter is the likeliest one
TEMPLATE_TOKENS = 8  # what may close an answer
MOST_SUPERVISED_SHARE = 0.5  # of a row whose answer is a letter, where its tokens could not be counted

HEART_LOSS_LOW = CheckKind("heart_loss_low", "H-3heart", INFO)
HEART_REMEMBERED = CheckKind("heart_remembered", "H-3heart", FAIL, optional=True)
HEART_UNKNOWN = CheckKind("heart_unknown", "H-3heart", FAIL, optional=True)
STEP_UNQUANTISED = CheckKind("step_unquantised", "H-2step", FAIL, trap=5, optional=True)
STEP_OUTPUT_ONLY = CheckKind("step_output_only", "H-2step", FAIL, trap=9, optional=True)
HEART = (HEART_LOSS_LOW, HEART_REMEMBERED, HEART_UNKNOWN, STEP_UNQUANTISED, STEP_OUTPUT_ONLY)


def loss_low_check(losses: Sequence[float], steps: int, learning_rate: float, seed: int) -> Check:
    """Whether the loss got near zero; None, with the figures, where it did not or where nobody wrote it down."""
    how: dict[str, Any] = {"rate": learning_rate, "steps": steps, "seed": seed}
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
