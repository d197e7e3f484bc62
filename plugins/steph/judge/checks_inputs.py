"""Checks of what a model was given beside its tokens: mask, positions, and what steers its answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steph.base.fingerprint import fingerprints, normal_form, text_hash
from steph.base.messages import say
from steph.base.text import one_line
from steph.contract.results import Row
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.witness import Batch, Generation
from steph.record.values import Check

MOST_MISPLACED = 0.1  # of a row's tokens; a packed text of one token is misplaced by its form
SOUND_PENALTIES = (0.9, 1.3)
MOST_FORCED_TOKENS = 1.0
LEAST_LINE_CHARS = 4
LEAST_PROMPTS = 3  # what all of them have is a template's
FORCING = ("force_words_ids", "constraints", "forced_bos_token_id", "forced_decoder_ids", "sequence_bias",
           "prefix_allowed_tokens_fn")  # fmt: skip
_MARKS = re.compile(r"[<＜]|\[/?INST|\[/?SYS")  # of templates: these may be special tokens, which leave no text

MASK_AND_POSITIONS = CheckKind("mask_and_positions", "H-2・H-3", FAIL, optional=True)
ANSWERS_FREE = CheckKind("answers_free", "H-3", WARN, optional=True)
PROMPTS_AS_RECORDED = CheckKind("prompts_as_recorded", "H-3", WARN, trap=27, optional=True)


def inputs_check(facts: Sequence[Batch | Generation]) -> Check:
    """The mask hides padding only and all of what stands before a row; positions rise one by one."""
    troubles: dict[str, int] = {}
    rows = 0
    for fact in facts:
        found = {
            "inputs.hidden": [n > 0 for n in fact.hidden or ()],
            "inputs.bare_padding": [n > 0 for n in fact.bare_padding or ()],
            "inputs.misplaced": [share > MOST_MISPLACED for share in fact.misplaced or ()],
        }
        if isinstance(fact, Generation):
            found["inputs.padding_behind"] = list(fact.padding_behind or ())
        else:
            found["inputs.foreseen"] = [n > 0 for n in fact.foreseen or ()]
        rows += max(map(len, found.values()))
        for what, flags in found.items():
            troubles[what] = troubles.get(what, 0) + sum(flags)
    if not rows:
        return MASK_AND_POSITIONS.check(None, "none")
    told = [say(what, rows=count) for what, count in troubles.items() if count]
    worst = max(troubles.values())
    return MASK_AND_POSITIONS.check(
        not worst,
        "wrong" if told else "sound",
        severity=WARN if 0 < 2 * worst <= rows else None,
        rows=rows,
        troubles=told,
    )


def steering_check(calls: Sequence[Generation]) -> Check:
    """What the program alone asked `generate` to force, forbid or punish."""
    if not calls:
        return ANSWERS_FREE.check(None, "none")
    found = {name: value for call in calls for name, value in call.steering.items() if _steers(name, value)}
    forces = any(name in FORCING for name in found)
    shown = [one_line(f"{name}={value:g}", 60) for name, value in sorted(found.items())]
    return ANSWERS_FREE.check(
        not found, "steered" if found else "free", severity=FAIL if forces else None, arguments=shown
    )


def _steers(name: str, value: float) -> bool:
    if name.endswith("penalty"):
        return not SOUND_PENALTIES[0] <= value <= SOUND_PENALTIES[1]
    return value > MOST_FORCED_TOKENS if name in ("min_new_tokens", "min_length") else True


def recorded_prompts_check(rows: Sequence[Row], prompts: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Check:
    """Every line of a row's own prompt was in one of the prompts that were seen, and no others but a template's.

    `prompts`: the hashes of each one's lines, and its fingerprints. A line at the prompt's edge may have a template's
    text on it; lines with a template's marks are not compared.
    """
    seen = [({*lines}, {*prints}) for lines, prints in prompts if lines]
    compared = lost = 0
    own: list[tuple[Row, set[str]]] = []  # each row, and the lines of the prompt that is most like its own
    for row in rows:
        lines = _lines(row.asked) if isinstance(row.prompt, str) else []
        if not lines or not seen:
            continue
        compared += 1
        missing, n = min((sum(not _has(one, *line) for line in lines), n) for n, one in enumerate(seen))
        lost += missing > 0
        own.append((row, seen[n][0]))
    if not compared:
        return PROMPTS_AS_RECORDED.check(None, "none")
    added = _added(own)
    if not lost and 2 * added > compared:
        return PROMPTS_AS_RECORDED.check(False, "added", compared=compared, added=added)
    return PROMPTS_AS_RECORDED.check(not lost, "compared", compared=compared, lost=lost)


def _added(own: Sequence[tuple[Row, set[str]]]) -> int:
    """How many prompts have lines that neither their rows record nor all prompts have, as those of a template."""
    if len(own) < LEAST_PROMPTS:
        return 0
    frame = set[str].intersection(*(lines for _, lines in own))
    added = 0
    for row, lines in own:
        told, asked = (
            {text_hash(line)[:8] for line in str(text or "").splitlines() if line.strip()}
            for text in (row.prompt, row.asked)
        )
        # a recorded line with a template's text on it is another line there
        added += len(lines - told - asked - frame) > len(asked - lines)
    return added


def _lines(text: str | None) -> list[tuple[str, bool]]:
    lines = [line for line in (text or "").strip().splitlines() if line.strip()]
    return [
        (line, n in (0, len(lines) - 1))
        for n, line in enumerate(lines)
        if not _MARKS.search(line) and len(normal_form(line)) >= LEAST_LINE_CHARS
    ]


def _has(seen: tuple[set[str], set[str]], line: str, is_edge: bool) -> bool:
    return text_hash(line)[:8] in seen[0] or (is_edge and {*fingerprints(line)} <= seen[1])
