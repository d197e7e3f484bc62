"""Parses what the two pipeline scripts print: the Trainer's dict lines and the evaluation's key lines. Pure.

Formats: `{'loss': 2.3, 'epoch': 0.1}` (transformers 4) or `{'loss': '2.3', ...}` (transformers 5), and the labelled
lines of `evaluate_multiple_choice.py`. Unknown text is skipped; nothing here raises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PAIR = re.compile(r"['\"]([A-Za-z_][\w/.-]{0,60})['\"]:\s*(?:'([^']{0,60})'|\"([^\"]{0,60})\"|([^,'\"{}]{1,60}))")
# what loggers, launchers and progress bars put before a line ends like a tag or with a level; a bar may follow
_BEFORE = r"(?:[^{}]{0,200}?(?:[\]:)>|\-–—]|\b(?:DEBUG|INFO|NOTICE|WARN|WARNING))\s*|\s*)"
_DICT = re.compile(rf"^{_BEFORE}(\{{\s*['\"][A-Za-z_].*\}})\s*(?:\d{{1,3}}%\|.*)?$")
_WRAPPED = re.compile(r"^(?:(?:np|numpy)\.float\d+|tensor)\(([^()]+)\)?$")
_ADAPTER_TROUBLE = re.compile(
    r"(?i)missing adapter keys|loading adapter weights from .{0,300} led to (?:unexpected|missing) keys"
    r"|\b(?:lora|adapter)\b.{0,200}(?:failed to load|could not be loaded|not found|does not exist)"
    r"|(?:failed to load|could not load|can't load|unable to load).{0,80}\b(?:lora|adapter)\b"
    r"|can't find '?adapter_config\.json"
    r"|\b(?:falling|fell) back to (?:the )?base model|\busing (?:the )?base model (?:only|instead|without)"
    r"|\b(?:continuing|running|evaluating) without (?:the |a |any )?(?:lora|adapter)"
    r"|\bskipp(?:ed|ing) (?:the )?(?:lora|adapter)|\bno (?:lora )?adapter (?:was )?(?:found|loaded|applied)"
    r"|(?:lora|アダプタ).{0,60}(?:読み込め|読込め|読めな|ロードでき|見つから|見つかりま|存在しな|存在しま|適用でき|適用せず|失敗|使わず)"
)
_OF_ADAPTER = re.compile(r"lora|adapter|base model|アダプタ", re.I)  # in each line that the pattern above finds
_GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_REINITIALISED = re.compile(rf"Some weights of \w{{1,200}}(?:{'|'.join(_GENERATING)}) were not initialized from")
_LOAD_REPORT = re.compile(r"\b(\w{1,200}) LOAD REPORT from:")
_OF_WEIGHTS = re.compile(r"Some weights of |LOAD REPORT")
_MADE_UP = re.compile(r"\|\s*(?:MISSING|MISMATCH)\s*\|")
_LINE_CHARS = 2000


def split_lines(text: str) -> tuple[str, ...]:
    """Split text at newlines and carriage returns, without ANSI codes and without empty lines."""
    plain = _ANSI.sub("", text) if "\x1b" in text else text
    lines = (line.rstrip() for line in re.split(r"[\r\n]+", plain))
    return tuple(line[:_LINE_CHARS] for line in lines if line.strip())


@dataclass(frozen=True)
class Metrics:
    """One of the Trainer's dict lines; values that are no numbers are left out."""

    values: tuple[tuple[str, float], ...]

    def get(self, key: str) -> float | None:
        """The value of `key`, None where the line has none; it may be NaN or infinite."""
        return dict(self.values).get(key)


def parse_metrics(line: str) -> Metrics | None:
    """Read one dict line, also behind the prefix of a logger or launcher; None for any other text."""
    found = _DICT.match(line) if "{" in line else None
    if found is None:
        return None
    pairs = ((m[1], _number(next(v for v in m.groups()[1:] if v is not None))) for m in _PAIR.finditer(found[1]))
    values = tuple((key, value) for key, value in pairs if value is not None)
    return Metrics(values) if values else None


def metrics_in(lines: Iterable[str]) -> tuple[Metrics, ...]:
    """All dict lines in their order."""
    return tuple(found for line in lines if (found := parse_metrics(line)))


def _number(text: str) -> float | None:
    wrapped = _WRAPPED.match(text.strip())
    try:
        return float(wrapped[1] if wrapped else text)
    except ValueError:
        return None


def tracebacks_in(text: str) -> int:
    """How many Python tracebacks begin in the text, also behind a rank prefix or an open progress bar."""
    return text.count("Traceback (most recent call last):")


def adapter_trouble_in(text: str) -> str | None:
    """The first line in which PEFT, transformers or the script says that an adapter was not loaded whole."""
    lines = split_lines(text) if _OF_ADAPTER.search(text) else ()
    return next((line for line in lines if _OF_ADAPTER.search(line) and _ADAPTER_TROUBLE.search(line)), None)


def missing_weights_in(text: str) -> str | None:
    """The line in which transformers says that it made up weights of a generating model; None where there is none.

    Formats: `Some weights of Qwen2ForCausalLM were not initialized from …` (transformers 4), and below
    `Qwen2ForCausalLM LOAD REPORT from: …` the rows `name | MISSING |` and `name | MISMATCH |` (transformers 5).
    """
    is_generating = False
    for line in split_lines(text) if _OF_WEIGHTS.search(text) else ():
        if "Some weights of" in line and _REINITIALISED.search(line):
            return line
        if "LOAD REPORT" in line and (found := _LOAD_REPORT.search(line)):
            is_generating = found[1].endswith(_GENERATING)
        elif is_generating and _MADE_UP.search(line):
            return line
    return None


class KeyLine(Enum):
    """A line of an evaluation that is looked for."""

    INITIALIZING = auto()
    RAG_MODE = auto()
    LLM_MODEL = auto()
    BACKEND = auto()
    HF_MODEL = auto()
    LORA_PATH = auto()
    COT = auto()
    RESULTS = auto()
    TOTAL = auto()
    CORRECT = auto()
    INCORRECT = auto()
    ACCURACY = auto()
    TIMEOUT_ERRORS = auto()
    OTHER_ERRORS = auto()
    SAVED_TO = auto()


@dataclass(frozen=True)
class EvalLines:
    """What an evaluation printed; None where a line is missing, `order` gives the line number of each one found."""

    rag_mode: str | None = None
    llm_model: str | None = None
    backend: str | None = None
    hf_model: str | None = None
    lora_path: str | None = None
    cot: str | None = None
    total: int | None = None
    correct: int | None = None
    incorrect: int | None = None
    accuracy: float | None = None  # 0 to 1, as printed; NaN where the text is no number
    timeout_errors: int = 0
    other_errors: int = 0
    invocation_errors: tuple[str, ...] = ()
    saved_to: str | None = None
    order: dict[KeyLine, int] = field(default_factory=dict)
    key_lines: tuple[str, ...] = ()


_SETUP = {
    KeyLine.INITIALIZING: re.compile(r"Initializing RAG pipeline\.\.\."),
    KeyLine.RAG_MODE: re.compile(r"(?:^|\s)RAG Mode:\s*(.*)$"),
    KeyLine.LLM_MODEL: re.compile(r"(?:^|\s)LLM Model:\s*(.*)$"),
    KeyLine.BACKEND: re.compile(r"(?:^|\s)Backend:\s*(.*)$"),
    KeyLine.HF_MODEL: re.compile(r"(?:^|\s)HF Model:\s*(.*)$"),
    KeyLine.LORA_PATH: re.compile(r"(?:^|\s)LoRA Path:\s*(.*)$"),
    KeyLine.COT: re.compile(r"(?:^|\s)Chain-of-Thought:\s*(.*)$"),
}
_RESULT = {
    KeyLine.RESULTS: re.compile(r"EVALUATION RESULTS\s*$"),
    KeyLine.TOTAL: re.compile(r"(?:^|\s)Total Samples:\s*(-?\d{1,18})\s*$"),
    KeyLine.CORRECT: re.compile(r"(?:^|\s)Correct:\s*(-?\d{1,18})\s*$"),
    KeyLine.INCORRECT: re.compile(r"(?:^|\s)Incorrect:\s*(-?\d{1,18})\s*$"),
    KeyLine.ACCURACY: re.compile(r"(?:^|\s)Accuracy:\s*(\S{1,40}?)\s*(%?)(?:\s|$)"),
    KeyLine.TIMEOUT_ERRORS: re.compile(r"(?:^|\s)Timeout Errors:\s*(\d{1,18})\s*$"),
    KeyLine.OTHER_ERRORS: re.compile(r"(?:^|\s)Other Errors:\s*(\d{1,18})\s*$"),
    KeyLine.SAVED_TO: re.compile(r"Detailed results saved to:\s*(.+)$"),
}
# in each line that a pattern above finds
_KEY_WORD = re.compile(
    r"Initializing RAG|RAG Mode:|LLM Model:|Backend:|HF Model:|LoRA Path:|Chain-of-Thought:|EVALUATION RESULTS"
    r"|Total Samples:|orrect:|Accuracy:|Timeout Errors:|Other Errors:|Detailed results saved to:"
)
_INVOCATION_ERROR = re.compile(r"Error during LLM invocation:?\s*(.*)$")


def parse_evaluation(stdout: str) -> EvalLines:
    """Read an evaluation's lines: the first of each set-up line, and the last block of results."""
    lines = split_lines(stdout)
    last_block = max((n for n, line in enumerate(lines) if _RESULT[KeyLine.RESULTS].search(line)), default=0)
    found = _first_matches(lines, 0, _SETUP) | _first_matches(lines, last_block, _RESULT)
    text = {key: match[1].strip() for key, (_, match) in found.items() if match.re.groups}
    count = {key: int(text[key]) for key in _COUNTS if key in text}
    return EvalLines(
        rag_mode=text.get(KeyLine.RAG_MODE), llm_model=text.get(KeyLine.LLM_MODEL), backend=text.get(KeyLine.BACKEND),
        hf_model=text.get(KeyLine.HF_MODEL), lora_path=text.get(KeyLine.LORA_PATH), cot=text.get(KeyLine.COT),
        total=count.get(KeyLine.TOTAL), correct=count.get(KeyLine.CORRECT), incorrect=count.get(KeyLine.INCORRECT),
        accuracy=_accuracy(found[KeyLine.ACCURACY][1]) if KeyLine.ACCURACY in found else None,
        timeout_errors=count.get(KeyLine.TIMEOUT_ERRORS, 0), other_errors=count.get(KeyLine.OTHER_ERRORS, 0),
        invocation_errors=tuple(m[1] for line in lines if (m := _INVOCATION_ERROR.search(line)))[:1000],
        saved_to=text.get(KeyLine.SAVED_TO),
        order={key: number for key, (number, _) in found.items()},
        key_lines=tuple(lines[n].strip()[:300] for n in sorted({number for number, _ in found.values()})),
    )  # fmt: skip


_COUNTS = (KeyLine.TOTAL, KeyLine.CORRECT, KeyLine.INCORRECT, KeyLine.TIMEOUT_ERRORS, KeyLine.OTHER_ERRORS)


def _first_matches(
    lines: tuple[str, ...], start: int, patterns: dict[KeyLine, re.Pattern[str]]
) -> dict[KeyLine, tuple[int, re.Match[str]]]:
    found: dict[KeyLine, tuple[int, re.Match[str]]] = {}
    for number in range(start, len(lines)):
        if len(found) == len(patterns):
            break
        if _KEY_WORD.search(lines[number]) is None:
            continue
        for key, pattern in patterns.items():
            if key not in found and (match := pattern.search(lines[number])):
                found[key] = (number, match)
    return found


def _accuracy(match: re.Match[str]) -> float:
    value = _number(match[1].rstrip("%"))
    if value is None:
        return math.nan
    in_percent = match[2] == "%" or match[1].endswith("%") or value > 1
    return value / 100 if in_percent else value
