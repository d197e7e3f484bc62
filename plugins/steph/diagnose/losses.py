"""Whether the losses that a trainer printed stopped being numbers.

transformers 4 prints floats, transformers 5 quoted strings; with `logging_nan_inf_filter` (the default) a NaN loss is
printed as 0.0 and only `grad_norm` shows it.
"""

from __future__ import annotations

import math
import re

from steph.diagnose.reader import PrintedLine

_PAIR = re.compile(
    r"['\"](\w+)['\"]:\s*(?:np\.float\d+\()?['\"]?(-?(?:nan|inf(?:inity)?|\d[\d.]{0,40}(?:e[-+]?\d{1,9})?))\b", re.I
)
# a value beside a name is shown; a sentence must end or go on as one that tells of an event, not of a setting
_FREE = re.compile(
    r"(?<!best )(?<!best_)\b(?P<name>\w{0,60}loss)(?:"
    r"['\"]?\s{0,9}[:=]\s{0,9}['\"]?(?:tensor\()?-?nan\b"
    r"|\s{1,9}(?:is|was|became|turned)\s{1,9}(?:now\s{1,9}|a\s{1,9})?(?:tensor\()?-?nan\b(?:\s{0,9}(?:or|/)\s{0,9}inf\w*)?"
    r"(?=\s{0,9}(?:$|[.,;:!?)\]}(]|(?:at|in|on|for|after|since|from|again|now|here|skipp|stopp|abort|detect|and|-)))"
    r")(?![-_ ]?(?:guard|check|filter|safe|handl|monitor|policy|watch|protect|tolera)\w*)",
    re.I,
)
_CONDITION = re.compile(r"\b(?:if|when|whenever|whether|unless|until|in case|should|stops? on)\b[^.;:!?]{0,80}$", re.I)
_OF_VALIDATION = re.compile(r"(?:val|valid\w*|eval|test|dev)_", re.I)
_FINITE = re.compile(r"\bloss\s*[:=]\s*\d")
_LOSSES = ("loss", "train_loss", "eval_loss")
_DROP_FROM = 0.05  # a loss above this that is exactly 0.0 in the next two lines did not get there by learning


def nan_loss_lines(lines: tuple[PrintedLine, ...]) -> tuple[PrintedLine, ...]:
    """The lines that show a loss that is NaN or infinite, or 0.0 with a NaN gradient norm; empty where all is well."""
    rows = [(line, _pairs(line.text)) for line in lines if "loss" in line.text.lower() and len(line.text) < 4000]
    printed = [(line, pairs) for line, pairs in rows if pairs]
    bad = [line for line, pairs in printed if _is_bad(pairs)]
    return tuple(bad or _fell_to_zero(printed) or _in_words([line for line, _ in rows]))


def _pairs(text: str) -> dict[str, float]:
    if "{" not in text:
        return {}
    return {key: float(value) for key, value in _PAIR.findall(text)}


def _is_bad(pairs: dict[str, float]) -> bool:
    losses = [pairs[key] for key in _LOSSES if key in pairs]
    broken_gradient = not math.isfinite(pairs.get("grad_norm", 0.0))
    return any(not math.isfinite(loss) or (loss == 0.0 and broken_gradient) for loss in losses)


def _fell_to_zero(printed: list[tuple[PrintedLine, dict[str, float]]]) -> list[PrintedLine]:
    steps = [(line, pairs["loss"]) for line, pairs in printed if "loss" in pairs and "grad_norm" not in pairs]
    for (_, before), (line, loss), (_, after) in zip(steps, steps[1:], steps[2:], strict=False):
        if before > _DROP_FROM and loss == 0.0 and after == 0.0:
            return [line]
    return []


def _in_words(lines: list[PrintedLine]) -> list[PrintedLine]:
    bad = [line for line in lines if _says_nan(line)]
    if not bad or any(line.index > bad[-1].index and _FINITE.search(line.text) for line in lines):
        return []
    return bad


def _says_nan(line: PrintedLine) -> bool:
    """Whether a line tells of a NaN that was there; a bar shows one for a validation that has not been yet."""
    return any(
        not _CONDITION.search(line.text, 0, match.start()) and not (line.is_bar and _OF_VALIDATION.match(match["name"]))
        for match in _FREE.finditer(line.text)
    )
