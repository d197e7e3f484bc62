"""Reads what single lines show: a cause without an exception, that the run went on, how far it had come.

Lines of help texts, of a log level below error, and of messages that say "skipped" or "retried" never count. Nothing is
the first step before a step began: a function that is called `train` shows none, a bar or a Trainer's own frame does.
"""

from __future__ import annotations

import functools
import re

from steph.base.terms import Phase
from steph.diagnose.exceptions import Chain
from steph.diagnose.reader import TELLING_CHARACTERS, PrintedLine
from steph.diagnose.table import Clue, Weight, first_match, signs, triggers

_OF_MILD = frozenset({Weight.HINT, Weight.SYMPTOM})
_HANDLED = re.compile(
    r"retry|retried|try(?:ing)? again|skipp(?:ing|ed)|falling back|fall(?:s)? back|reduc(?:e|ed|ing) (?:the "
    r")?batch|batch size (?:to|was)"
    r"|recover(?:ed|ing)|ignor(?:ed|ing)|\bhandled|(?<!watchdog )\bcaught|再試行|スキップ",
    re.I,
)
_HELP = re.compile(r"^\s*(?:usage:|-{1,2}[A-Za-z][\w-]*[ ,=])|^\s*(?:tip|hint|note)\s*:|^\s*#", re.I)
_METRICS = re.compile(
    r"['\"]train_runtime['\"]|^\*+ (?:train|eval) metrics|^EVALUATION RESULTS|^Detailed results saved"
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
    is_code = text.startswith(("    ", "\t", "│", "->", "--->")) and "exitcode" not in text and "OOMKilled" not in text
    if len(text) < TELLING_CHARACTERS or len(text) > 20_000 or is_code or _HELP.match(text):
        return None
    found = _row_of(text, line.is_mild) if _trigger().search(text.lower()) else None
    if found is None:
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
    text, goes_on = line.text, False
    if "loss" in text or "epoch" in text:
        word = _STEP_WORD.search(text)
        goes_on = bool((word and _LOSS_IS.search(text, word.end())) or _GOES_ON.search(text))
    return (goes_on or is_final_metric(line)) and not line.is_bar


_FRAMES, _CALLS, _PRINTED = signs("frames"), signs("calls"), signs("printed", re.I)
_LAST_MODULE = re.compile(r"(?:site|dist)-packages.{0,300}in <module>")
_AFTER_TRAINING = re.compile(r"apply_chat_template")
_COUNT = re.compile(r"^(?P<label>[^|]*?)(?<!\d)\d+%\|.*\|\s*(?P<done>\d+)/(?P<due>\d+) \[")
_OF_DATA = re.compile(r"map|token|generat\w{1,20} \w{1,40} split|filter|pack|process|format", re.I)
_OTHER_BAR = re.compile(r"saving|upload|\.json", re.I)
_NEARBY_LINES = 8


def phase_of(lines: tuple[PrintedLine, ...], index: int, chain: Chain = ()) -> Phase | None:
    """The phase at line `index`, None where the log has no sign of it.

    `chain` is the exception's; its frames speak first, since they name the call that failed.
    """
    before = [line for line in lines if line.index < index]
    frames = "\n".join(frame for raised in chain for frame in raised.frames)
    if frames:
        found = _phase_of_frames(chain, frames, before)
        if found is not None:
            return found
    return _last(before) or _last([line for line in lines if index <= line.index <= index + _NEARBY_LINES])


def _phase_of_frames(chain: Chain, frames: str, before: list[PrintedLine]) -> Phase | None:
    trains = _CALLS["trains"].search(frames) is not None
    if chain[0].frames and _LAST_MODULE.search(chain[0].last_frame):
        return Phase.LOAD  # an import failed
    evaluates = _CALLS["evaluates"].search(frames) is not None
    named = next((Phase(phase) for phase, pattern in _FRAMES.items() if pattern.search(frames)), None)
    if named is Phase.PREPARE and "_trainer.py" in frames:
        return named
    if not trains and (evaluates or (named is Phase.LOAD and _CALLS["loads_adapter"].search(frames))):
        return Phase.SAVE if named is Phase.SAVE else Phase.EVAL
    if trains and evaluates and named in (None, Phase.EVAL):
        return Phase.EVAL
    if named is not None:
        return named
    has_stepped = any(_printed_phase(line) is Phase.STEP for line in before)
    if trains:
        return Phase.STEP if has_stepped else Phase.FIRST_STEP
    return Phase.EVAL if has_stepped and _AFTER_TRAINING.search(frames) else None


def _last(lines: list[PrintedLine]) -> Phase | None:
    """The last phase that the lines show; after a training's summary its bar is only drawn again."""
    over = next((line.index for line in lines if "train_runtime" in line.text), None)
    for line in reversed(lines):
        phase = _printed_phase(line)
        is_drawn_again = over is not None and line.index > over and phase in (Phase.STEP, Phase.FIRST_STEP)
        if phase is not None and not is_drawn_again:
            return phase
    return None


def _printed_phase(line: PrintedLine) -> Phase | None:
    if len(line.text) < TELLING_CHARACTERS:
        return None
    if not line.is_bar:
        return next((Phase(phase) for phase, pattern in _PRINTED.items() if pattern.search(line.text[:2000])), None)
    match = _COUNT.match(line.text)
    label = match["label"] if match else line.text[:80]
    if re.search(r"load|download|fetch|shard|weight|\.safetensors|\.bin", label, re.I):
        return Phase.LOAD
    if re.search(r"eval|predict|generat\w+ answers|question", label, re.I):
        return Phase.EVAL
    if _OF_DATA.search(label):
        return Phase.PREPARE
    if match is None or _OTHER_BAR.search(label):
        return None
    return Phase.STEP if int(match["done"]) else Phase.FIRST_STEP
