"""The losses and gradient norms that a trainer printed, and whether they stopped being numbers.

transformers 4 prints floats, transformers 5 quoted strings; with `logging_nan_inf_filter` (the default) a NaN loss is
printed as 0.0 and only `grad_norm` shows it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from steph.diagnose.reader import PrintedLine

_PAIR = re.compile(
    r"['\"](\w+)['\"]:\s*(?:np\.float\d+\()?['\"]?(-?(?:nan|inf(?:inity)?|\d[\d.]{0,40}(?:e[-+]?\d{1,9})?))\b", re.I
)
# a value beside a name is shown; a sentence must end or go on as one that tells of an event, not of a setting
_FREE = re.compile(
    r"(?<!best )(?<!best_)\b(?P<name>\w{0,60}loss)(?:"
    r"['\"]?\s{0,9}[:=]\s{0,9}['\"]?(?:tensor\()?-?nan\b"
    r"|\s{1,9}-?nan(?=\s{0,3}(?:[,|]|$))"
    r"|\s{1,9}(?:is|was|became|turned)\s{1,9}(?:now\s{1,9}|a\s{1,9})?(?:tensor\()?-?nan\b(?:\s{0,9}(?:or|/)\s{0,9}inf\w*)?"
    r"(?=\s{0,9}(?:$|[.,;:!?)\]}(]|(?:at|in|on|for|after|since|from|again|now|here|skipp|stopp|abort|detect|and|-)))"
    r")(?![-_ ]?(?:guard|check|filter|safe|handl|monitor|policy|watch|protect|tolera)\w*)",
    re.I,
)
_NORM = re.compile(r"\bgrad(?:ient)?[_ ]?norm\b\W{0,9}[:=]", re.I)
_NAN_NORM = re.compile(
    r"\b(?P<name>grad(?:ient)?[_ ]?norm)['\"]?\s{0,9}[:=]\s{0,9}['\"]?(?:tensor\()?(?:nan|inf)\b", re.I
)
_CONDITION = re.compile(r"\b(?:if|when|whenever|whether|unless|until|in case|should|stops? on)\b[^.;:!?]{0,80}$", re.I)
_OF_VALIDATION = re.compile(r"(?:val|valid\w*|eval|test|dev)_", re.I)
_FINITE = re.compile(r"\bloss\s*[:=]\s*\d")
_TABLE_HEAD, _TABLE_ROW = (
    re.compile(r"\s{0,9}(?:Step|Epoch)\s{1,9}Training Loss"),
    re.compile(r"\s{0,9}\d{1,9}\s{1,9}(nan|inf|\d{1,9}\.\d{1,9})\b"),
)
_LOSSES = ("loss", "train_loss", "eval_loss")
_DROP_FROM = 0.05  # a loss above this that is exactly 0.0 in the next two lines did not get there by learning
_ZERO_STEPS = 3  # this many first losses of exactly 0.0 were never computed from a label
_ROSE_BY = 1.5


@dataclass(frozen=True)
class Losses:
    """What the printed steps say, in order; `bad` are the lines that show a loss or gradient that is no number."""

    values: tuple[float, ...]
    bad: tuple[PrintedLine, ...]
    gradient_broke_at: int | None  # the first step whose gradient norm is no number

    @property
    def is_zero_from_start(self) -> bool:
        """Whether the first losses are exactly 0.0."""
        return len(self.values) >= _ZERO_STEPS and not any(self.values[:_ZERO_STEPS])

    @property
    def diverged(self) -> bool:
        """Whether a loss rose well above an earlier one, then was 0.0 or no number."""
        good = [value for value in self.values if math.isfinite(value) and value > 0]
        return bool(self.bad) and len(good) > 1 and good[-1] > _ROSE_BY * min(good[:-1])


def losses_of(lines: tuple[PrintedLine, ...]) -> Losses:
    """Read every printed loss; a run in good health has no `bad` line."""
    rows = [
        (line, _pairs(line.text))
        for line in lines
        if len(line.text) < 4000 and ("loss" in (low := line.text.lower()) or "grad" in low)
    ]
    printed = [(line, pairs) for line, pairs in rows if pairs] or _of_table(lines)
    steps = [(line, pairs) for line, pairs in printed if "loss" in pairs]
    bad = [line for line, pairs in printed if _is_bad(pairs)]
    broken = (n for n, (_, pairs) in enumerate(steps) if not math.isfinite(pairs.get("grad_norm", 0.0)))
    found = tuple(bad or _became_zero(steps) or _in_words([line for line, pairs in rows if not pairs]))
    return Losses(
        values=tuple(pairs["loss"] for _, pairs in steps),
        bad=found,
        gradient_broke_at=next(broken, None),
    )


def _of_table(lines: tuple[PrintedLine, ...]) -> list[tuple[PrintedLine, dict[str, float]]]:
    """The rows of the table that the Trainer draws in a notebook: step (or epoch), training loss, more."""
    start = next((n for n, line in enumerate(lines) if _TABLE_HEAD.match(line.text)), len(lines))
    rows = ((line, _TABLE_ROW.match(line.text)) for line in lines[start + 1 :])
    return [(line, {"loss": float(match[1])}) for line, match in rows if match]


def _pairs(text: str) -> dict[str, float]:
    if "{" not in text:
        return {}
    return {key: float(value) for key, value in _PAIR.findall(text)}


def _is_bad(pairs: dict[str, float]) -> bool:
    losses = [pairs[key] for key in _LOSSES if key in pairs]
    return any(not math.isfinite(loss) for loss in losses) or (0.0 in losses and not _gradient_is_finite(pairs))


def _gradient_is_finite(pairs: dict[str, float]) -> bool:
    return math.isfinite(pairs.get("grad_norm", 0.0))


def _became_zero(steps: list[tuple[PrintedLine, dict[str, float]]]) -> list[PrintedLine]:
    """The lines where the loss is 0.0 and can't be: from the start, after a NaN gradient, or right after a high one."""
    if len(steps) >= _ZERO_STEPS and not any(pairs["loss"] for _, pairs in steps[:_ZERO_STEPS]):
        return [line for line, _ in steps[:_ZERO_STEPS]]
    norms = [pairs for _, pairs in steps if "grad_norm" in pairs]
    if len(norms) >= 2 and not any(map(_gradient_is_finite, norms[-2:])):  # a scaler skips one such step, not the last
        return [line for line, pairs in steps if not _gradient_is_finite(pairs)]
    plain = [(line, pairs["loss"]) for line, pairs in steps if "grad_norm" not in pairs]
    for (_, before), (line, loss), (_, after) in zip(plain, plain[1:], plain[2:], strict=False):
        if before > _DROP_FROM and loss == 0.0 and after == 0.0:
            return [line]
    return []


def _in_words(lines: list[PrintedLine]) -> list[PrintedLine]:
    bad = [line for line in lines if "loss" in line.text.lower() and _says_nan(line, _FREE)]
    if bad and not any(line.index > bad[-1].index and _FINITE.search(line.text) for line in lines):
        return bad
    norms = [line for line in lines if _NORM.search(line.text)]
    if len(norms) >= 2 and all(_says_nan(line, _NAN_NORM) for line in norms[-2:]):  # a scaler skips one such step
        return norms[-2:]
    return []


def _says_nan(line: PrintedLine, pattern: re.Pattern[str]) -> bool:
    """Whether a line tells of a NaN that was there; a bar shows one for a validation that has not been yet."""
    return any(
        not _CONDITION.search(line.text, 0, match.start()) and not (line.is_bar and _OF_VALIDATION.match(match["name"]))
        for match in pattern.finditer(line.text)
    )
