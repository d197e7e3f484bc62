"""What a case means and what to do next, in the words of its program's own settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from steph.base.messages import Message, catalog, has_message, placeholders, say
from steph.base.redact import redact
from steph.base.terms import Cause, Phase
from steph.diagnose.exceptions import Chain
from steph.diagnose.facts import Facts
from steph.diagnose.table import Case, Step, cases, common_settings, package_of, steps, steps_of

_STEPS_SHOWN = 2
_SAID_LINES, _SAID_CHARACTERS, _HINT_CHARACTERS = 12, 2000, 300
_SENTENCE_END = re.compile(r"(?<=[.!?;]) +|\n+|, (?=please )", re.I)
_INSTRUCTS = re.compile(
    r"(?:please|either|try|use|set|run|consider|make sure|ensure|re-?install|upgrade|update|downgrade|pass|specify"
    r"|reduc(?:e|ing)|you (?:can(?!['n])|should|must|need|may|have to)|to (?:fix|disable|avoid|enable|solve|resolve)"
    r"|did you|instead)\b",
    re.I,
)
_IMPLIES = re.compile(
    r".{0,200}?(?:\brun with\b|\bpip install\b|\bneeds? to\b|\bha(?:s|ve) to be\b|\bshould be\b|\bmust be\b"
    r"|\bmay help\b|\binstead of\b|\bbut you didn't\b|\bmake sure\b)",
    re.I,
)
_PACKAGE = re.compile(r"(?:site|dist)-packages[/\\](\w{1,60})[/\\]|[/\\](unsloth)_compiled_cache[/\\]")
_STANDARD_LIBRARY = re.compile(r"[/\\]python3(?:\.\d{1,2})?[/\\]\w{1,60}[/\\.]|[/\\]Lib[/\\]\w{1,60}[/\\.]|<frozen ")
_OF_THE_SYSTEM = re.compile(r"\[(?:Errno|WinError) \d")  # no library is at fault
_NOT_AT_FAULT = frozenset(("torch", "numpy", "fire", "click", "typer"))
_SAYS_NOTHING = re.compile(
    r"report|\bdocs\b|file an? (?:issue|ticket|bug)|open an issue|for more info|documentation|LAUNCH_BLOCKING"
    r"|USE_CUDA_DSA|TORCH_LOGS|NCCL_DEBUG|enable traceback|look up|try again",
    re.I,
)


@dataclass(frozen=True)
class Words:
    """What is said of one cause or case: its meaning, and the steps to take, the best one first."""

    meaning: Message
    steps: tuple[Message, ...]


def case_of(
    cause: Cause,
    told: str | None,
    phase: Phase | None,
    chain: Chain,
    evidence: str,
    log: str,
    facts: Facts,
    above: str = "",
) -> Case | None:
    """The first row of the cause that fits all that is known; `told` is the case whose wording decided the cause.

    `evidence` is the exception or line that told the cause, `log` the whole text; `above` are the lines before an
    exception, which stand for its frames where the log shows none in a known form.
    """
    texts = [text[:8000] for raised in chain for text in raised.texts] or [evidence]
    frames = "\n".join(frame[:500] for raised in chain for frame in raised.frames[-200:]) or above
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
                found = {name: value for name, value in match.groupdict().items() if value}
                return {"package": package_of(found["module"]), **found} if "module" in found else found
    return {}


def instruction_in(chain: Chain) -> str | None:
    """The sentence in an exception's message that says what to do, the outermost's first; None without one."""
    for raised in reversed(chain):
        said = "\n".join(raised.message[:_SAID_LINES])[:_SAID_CHARACTERS]
        sentences = [one for one in map(str.strip, _SENTENCE_END.split(said)) if not _SAYS_NOTHING.search(one)]
        found = next(filter(_INSTRUCTS.match, sentences), None) or next(filter(_IMPLIES.match, sentences), None)
        if found is not None:
            return redact(found[:_HINT_CHARACTERS].rstrip(";"))
    return None


def advice_of_unknown(chain: Chain, cause: Cause) -> tuple[Message, ...]:
    """Steps for an exception of unknown form: what its message says, and the package that raised it."""
    hint = instruction_in(chain)
    package = package_raised_in(chain) if cause is Cause.OTHER else None
    said = redact("\n".join(chain[-1].message)[:_HINT_CHARACTERS].strip()) if chain else ""
    found = [say("diagnose.step.message_says", hint=hint)] if hint is not None else []
    if package is not None and not _is_deliberate(chain):
        found.append(say("diagnose.step.raised_in", package=package))
    elif package is not None and hint is None and said:
        found.append(say("diagnose.step.refused", package=package, said=said))
    return tuple(found)


def _is_deliberate(chain: Chain) -> bool:
    """Whether the innermost frame shows a `raise`: the code looked for this, and says so in words of its own."""
    frames = chain[-1].frames
    last = max((at for at, line in enumerate(frames) if 'File "' in line), default=len(frames))
    return any(line.strip().startswith("raise ") for line in frames[last + 1 :])


def package_raised_in(chain: Chain) -> str | None:
    """The package in whose code an exception was raised, torch and the standard library apart; None for own code."""
    if chain and _OF_THE_SYSTEM.match(chain[-1].message[0]):
        return None
    frames = [frame for raised in chain[-1:] for frame in raised.frames[-200:] if 'File "' in frame]
    for frame in reversed(frames):
        match = _PACKAGE.search(frame[:500])
        if match is not None and (match[1] or match[2]) not in _NOT_AT_FAULT:
            return package_of(match[1] or match[2])
        if match is None and not _STANDARD_LIBRARY.search(frame[:500]):
            return None
    return None


def words_of(
    cause: Cause,
    case: Case | None,
    facts: Facts | None,
    found: Mapping[str, str] | None = None,
    first: tuple[Message, ...] = (),
) -> Words:
    """What is said of a case, else of its cause, after the steps that are to stand `first`.

    Without `facts` every step is shown: the page of causes has no log.
    """
    base = f"diagnose.case.{case.id}" if case else f"diagnose.cause.{cause.value}"
    values = dict(common_settings() if facts is None else facts.values())
    values.update({**(case.values if case else {}), **(found or {})})
    ids = case.steps if case else steps_of(cause)
    if not ids:
        messages = [f"{base}.{part}" for part in ("do", "next") if has_message(f"{base}.{part}")]
    else:
        rows = [steps()[one] for one in ids]
        messages = [_step_message(row, values, facts) for row in rows if facts is None or _applies(row, facts)]
    if facts is not None:
        sayable = [one for one in messages if _has_settings(one, values)]
        if not sayable:  # the program is part of a larger one, or was taken for another
            values.update({name: spelled for name, spelled in common_settings().items() if not values.get(name)})
        messages = (sayable or messages)[:_STEPS_SHOWN]
    meaning, *advice = (
        say(one, **{name: values[name] for name in placeholders(catalog("en")[one]) if name in values})
        for one in (f"{base}.means", *messages)
    )
    if first:
        advice = [*first, *advice][:_STEPS_SHOWN]
    return Words(meaning, tuple(advice))


def _has_settings(message: str, values: Mapping[str, str]) -> bool:
    """Whether the program has every setting that the message names; one that it lacks is spelled as nothing."""
    return all(values.get(name) != "" for name in placeholders(catalog("en")[message]))


def _applies(step: Step, facts: Facts) -> bool:
    return facts.flags.issuperset(step.when) and not facts.flags.intersection(step.unless)


def _step_message(step: Step, values: Mapping[str, str], facts: Facts | None) -> str:
    is_known = facts is not None and step.known is not None and step.known in values
    return f"diagnose.step.{step.id}" + (".known" if is_known else "")
