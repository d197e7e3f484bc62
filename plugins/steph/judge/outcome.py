"""What a stage came to, before it is journalled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steph.judge.verdict import checks_verdict, passed, stage_verdict
from steph.record import Attempt, Check, Verdict


@dataclass(frozen=True)
class Outcome:
    """A verdict with its one sentence (Japanese), the checks it stands on and the settings it gave up."""

    verdict: Verdict
    explanation: str
    checks: tuple[Check, ...] = ()
    given_up: tuple[str, ...] = ()

    @classmethod
    def of_checks(cls, checks: Sequence[Check], conditions: Sequence[str] = ()) -> Outcome:
        """The outcome of a stage that has no attempt of its own."""
        verdict, explanation = checks_verdict(checks) or passed(conditions)
        return cls(verdict, explanation, tuple(checks))

    @classmethod
    def of_attempt(cls, attempt: Attempt, given_up: Sequence[str] = ()) -> Outcome:
        """The outcome that a stage's last attempt decides."""
        verdict, explanation = stage_verdict(attempt, attempt.checks, given_up)
        return cls(verdict, explanation, attempt.checks, tuple(given_up))
