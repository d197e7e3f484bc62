"""Single lines that tell a cause without any exception: C aborts, the kernel, launchers, drivers, the shell.

In: lines. Out: a clue for a line, and whether a line shows that the run went on in good health. Lines of help
texts, of a log level below error, and of messages that say "skipped" or "retried" never count.
"""

from __future__ import annotations

import functools
import re

from steph.diagnose.reader import TELLING_CHARACTERS, PrintedLine
from steph.diagnose.table import Clue, Weight, first_match, triggers

_OF_MILD = frozenset({Weight.HINT, Weight.SYMPTOM})
_HANDLED = re.compile(
    r"retry|retried|try(?:ing)? again|skipp(?:ing|ed)|falling back|fall(?:s)? back|reduc(?:e|ed|ing) (?:the "
    r")?batch|batch size (?:to|was)"
    r"|recover(?:ed|ing)|ignor(?:ed|ing)|\bhandled|(?<!watchdog )\bcaught|再試行|スキップ",
    re.I,
)
_HELP = re.compile(r"^\s*(?:usage:|-{1,2}[A-Za-z][\w-]*[ ,=])|^\s*(?:tip|hint|note)\s*:|^\s*#|^\s*>>> ", re.I)
_METRICS = re.compile(
    r"'train_runtime'|^\*+ (?:train|eval) metrics|^EVALUATION RESULTS|^Detailed results saved|\"train_runtime\""
    r"|^(?:.*\b)?(?:Training|Fine-?tuning|Evaluation)(?: is| has)? (?:been )?(?:completed?|finished|done)\b|"
    r"^Accuracy: [\d.]+"
    r"|^\{(?![^\n]{0,400}\"(?:epoch|step|loss|learning_rate)\")(?:[^{}\n]{0,300}, ?)?"
    r"\"(?:accuracy|acc|exact_match|f1|bleu|rouge\w{0,9}|perplexity)\": ?[\d.]{1,20}[,}]",
    re.I,
)
_METRIC_WORD = re.compile('train_runtime|metrics|results|complete|finished|done|accuracy:|^\\{"')
_GOES_ON = re.compile(r"^\{.*['\"](?:\w+_)?loss['\"]: ['\"]?[\d.]|^train_loss|^  ?epoch +=", re.I)
_STEP_WORD, _LOSS_IS = re.compile(r"(?:iter|step|epoch|batch)\w*", re.I), re.compile(r"\bloss\s*[:=]\s*[\d.]", re.I)


def line_clue(line: PrintedLine, following: tuple[PrintedLine, ...] = ()) -> Clue | None:
    """What a single line says; None where it is a help text, a mild message or one that was dealt with."""
    text = line.text
    if len(text) < TELLING_CHARACTERS or len(text) > 20_000 or _is_code(text):
        return None
    found = _row_of(text, line.is_mild) if _trigger().search(text.lower()) else None
    if found is None or _HELP.match(text):
        return None
    if found.weight is Weight.CERTAIN and any(_HANDLED.search(near.text) for near in (line, *following[:2])):
        return None
    return found


@functools.cache
def _trigger() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, triggers())))


@functools.lru_cache(maxsize=1024)
def _row_of(text: str, is_mild: bool) -> Clue | None:
    """The clue of a line; one that calls itself mild can only hint, or leave what one cause alone leaves."""
    return first_match("printed", text, weights=_OF_MILD if is_mild else None)


def is_final_metric(line: PrintedLine) -> bool:
    """Whether the line reports the end of a training or an evaluation that ran through."""
    return bool(_METRIC_WORD.search(line.text.lower()) and _METRICS.search(line.text))


def shows_progress(line: PrintedLine) -> bool:
    """Whether the line proves that work went on here; progress bars don't, they are drawn again at a crash."""
    goes_on = ("loss" in line.text or "epoch" in line.text) and _tells_loss(line.text)
    return (goes_on or is_final_metric(line)) and not line.is_bar


def _tells_loss(text: str) -> bool:
    word = _STEP_WORD.search(text)
    return bool((word and _LOSS_IS.search(text, word.end())) or _GOES_ON.search(text))


def _is_code(text: str) -> bool:
    return text.startswith(("    ", "\t", "│", "->", "--->")) and "exitcode" not in text and "OOMKilled" not in text
