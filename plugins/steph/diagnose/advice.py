"""What a case means and what to do next, in the words of its program's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steph.base.messages import Language, has_message, text
from steph.base.terms import Cause, Phase
from steph.diagnose.exceptions import Chain
from steph.diagnose.facts import Facts
from steph.diagnose.table import Case, Step, cases, common_settings, steps, steps_of

_STEPS_SHOWN = 2


@dataclass(frozen=True)
class Words:
    """What is said of one cause or case: its meaning, and the steps to take, the best one first."""

    meaning: str
    steps: tuple[str, ...]


class _Values(dict[str, str]):
    """Values of messages; one that the log does not say is shown by its name."""

    def __missing__(self, key: str) -> str:
        return f"[{key}]"


def case_of(
    cause: Cause, told: str | None, phase: Phase | None, chain: Chain, evidence: str, log: str, facts: Facts
) -> Case | None:
    """The first row of the cause that fits all that is known; `told` is the case whose wording decided the cause.

    `evidence` is the exception or line that told the cause, `log` the whole text.
    """
    texts = [text[:8000] for raised in chain for text in raised.texts] or [evidence]
    frames = "\n".join(frame[:500] for raised in chain for frame in raised.frames[-200:])
    for case in cases():
        if case.cause is cause and (case.id == told or _fits(case, phase, texts, evidence, frames, log, facts)):
            return case
    return None


def _fits(
    case: Case, phase: Phase | None, texts: list[str], evidence: str, frames: str, log: str, facts: Facts
) -> bool:
    if case.phases and phase not in case.phases:
        return False
    if not facts.flags.issuperset(case.facts):
        return False
    if case.frames is not None and not case.frames.search(frames):
        return False
    worded = any(pattern.search(one) for pattern in case.raised for one in texts) or any(
        pattern.search(line) for pattern in case.printed for line in evidence.split("\n")
    )
    if case.log is not None:  # beside a log pattern, wordings are other ways to know the case
        return worded or case.log.search(log) is not None
    return worded or not (case.raised or case.printed)


def captured(case: Case, texts: list[str]) -> dict[str, str]:
    """What the named groups of the case's wordings hold in the first text that fits."""
    for pattern in (*case.raised, *case.printed):
        for one in texts:
            match = pattern.search(one)
            if match is not None:
                return {name: value for name, value in match.groupdict().items() if value}
    return {}


def words_of(
    cause: Cause, case: Case | None, facts: Facts | None, language: Language, found: Mapping[str, str] | None = None
) -> Words:
    """The words for a case, else for its cause. Without `facts` every step is shown: the page of causes has no log."""
    base = f"diagnose.case.{case.id}" if case else f"diagnose.cause.{cause.value}"
    values = _Values(common_settings() if facts is None else facts.values())
    if facts is not None:
        values.setdefault("card", text("diagnose.unknown_card", language))
    values.update({**(case.values if case else {}), **(found or {})})
    ids = case.steps if case else steps_of(cause)
    if not ids:
        said = (text(f"{base}.{part}", language, values) for part in ("do", "next") if has_message(f"{base}.{part}"))
    else:
        rows = [steps()[one] for one in ids]
        chosen = rows if facts is None else [row for row in rows if _applies(row, facts)][:_STEPS_SHOWN]
        said = (text(_step_message(row, values, facts), language, values) for row in chosen)
    return Words(text(f"{base}.means", language, values), tuple(said))


def _applies(step: Step, facts: Facts) -> bool:
    return facts.flags.issuperset(step.when) and not facts.flags.intersection(step.unless)


def _step_message(step: Step, values: Mapping[str, str], facts: Facts | None) -> str:
    is_known = facts is not None and step.known is not None and step.known in values
    return f"diagnose.step.{step.id}" + (".known" if is_known else "")
