"""Parses what programs print: the Trainer's dict lines, an evaluation's key lines, and what tells of trouble. Pure.

Formats: `{'loss': 2.3, 'epoch': 0.1}` (transformers 4) or `{'loss': '2.3', ...}` (transformers 5), and the labelled
lines of `evaluate_multiple_choice.py`. Phrases of any program stand in `printed_words.toml`. Unknown text is skipped;
nothing here raises.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from steph.base.messages import Message, say
from steph.base.text import without_ansi

_PAIR = re.compile(r"['\"]([A-Za-z_][\w/.-]{0,60})['\"]:\s*(?:'([^']{0,60})'|\"([^\"]{0,60})\"|([^,'\"{}]{1,60}))")
# what loggers, launchers and progress bars put before a line ends like a tag or with a level; a bar may follow
_BEFORE_DICT = r"(?:[^{}]{0,200}?(?:[\]:)>|\-–—]|\b(?:DEBUG|INFO|NOTICE|WARN|WARNING|stdout F|stderr F))\s*|\s*)"
_DICT = re.compile(rf"^{_BEFORE_DICT}(\{{\s*['\"][A-Za-z_].*\}})\s*(?:\d{{1,3}}%\|.*|[\w./-]{{1,80}}:\d{{1,6}})?$")
_DICT_BEGINS = re.compile(rf"^{_BEFORE_DICT}\{{\s*['\"][A-Za-z_][^{{}}]{{0,2000}}$")
_SOURCE = re.compile(r"(?<!\s)\s{2,200}[\w./-]{1,80}:\d{1,6}$")  # rich's, at the first of several lines
_MOST_PARTS_OF_A_LINE = 12
_SAID = ("event", "message", "msg")  # what loggers that write JSON call the text
_WRAPPED = re.compile(r"^(?:(?:np|numpy)\.float\d+|tensor)\(([^()]+)\)?$")
_GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_REINITIALISED = re.compile(rf"Some weights of \w{{1,200}}(?:{'|'.join(_GENERATING)}) were not initialized from")
_LOAD_REPORT = re.compile(r"\b(\w{1,200}) LOAD REPORT from:")
_OF_WEIGHTS = re.compile(r"Some weights of |LOAD REPORT")
_MADE_UP = re.compile(r"\|\s*(?:MISSING|MISMATCH)\s*\|")
_RAISED_THERE = re.compile(r"\.generate\(|, in (?:generate|_?generate_\w+|forward|_sample|invoke|ask|answer)\b")
_LINE_CHARS = 2000
_WORDS = tomllib.loads(Path(__file__).with_name("printed_words.toml").read_text(encoding="utf-8"))


def _phrases(name: str, pattern: str = "{}") -> re.Pattern[str]:
    """A pattern with a list of `printed_words.toml` as its alternatives."""
    things, settings = "|".join(_WORDS["thing"]), "|".join(_WORDS["setting"])
    thing = rf"(?:{things})(?!(?:[\s_-]{{0,9}}(?:{settings})))"
    words = "|".join(_WORDS[name]).replace("<thing>", thing)
    return re.compile(pattern.replace("{}", words).replace("<thing>", thing).replace("<any>", f"(?:{things})"), re.I)


_ANSWER_TROUBLE, _NO_ANSWER_TROUBLE = _phrases("answer_trouble"), _phrases("no_answer_trouble")
_LOADED, _ENDPOINT, _OTHER_SERVICE = _phrases("loaded"), _phrases("endpoint"), _phrases("other_service")
_NAMED = re.compile(_phrases("thing", "<thing>").pattern + r"\s{0,9}", re.I)
_UNDONE, _NOT_APPLIED, _SETTING_JA = _phrases("undone"), _phrases("not_applied"), _phrases("setting_ja")
_UNDONE_JA = _phrases("undone_ja", r"<any>(?P<between>[^。\n]{0,60}?)(?:{})")
_BASE_INSTEAD, _LIBRARY, _NONE_OF_IT = _phrases("base_instead"), _phrases("library"), _phrases("none_of_it")
_OTHER_PLACE, _SUPPOSED, _COMPARED = _phrases("other_place"), _phrases("supposed"), _phrases("compared")
_ADAPTER_WORDS = ("lora", "peft", "adapter", "base", "model", "アダプタ", "モデル")  # one is in each line that accuses
_MOST_PARTS = 12  # words between an adapter and what befell it, of which each is one of these
_PART = re.compile(
    r"(?:[:：=(「『)」』-]|(?:weights?|adapters?|lora|peft|modules?|layers?|path|folder|director(?:y|ies)|checkpoint"
    r"|file|model|config(?:uration)?|the|at|from|in|of|was|were|is|are|has|have|been|be|will|could|can|did|does|do"
    r"|loading)(?![A-Za-z])|[\w.~-]{0,100}/[\w./~-]{0,200}|(['\"`])[^'\"`]{0,200}\1|['\"`])\s*",
    re.I,
)


def split_lines(text: str) -> tuple[str, ...]:
    """Split text into lines without ANSI codes: a logger's JSON is its text, a dict that was wrapped one line."""
    plain = without_ansi(text)
    lines = [_unwrapped(line.rstrip()) for line in re.split(r"[\r\n]+", plain) if line.strip()]
    found, at = list[str](), 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if "{" in line and "}" not in line and _DICT_BEGINS.match(line):
            rest = lines[at : at + _MOST_PARTS_OF_A_LINE]
            end = next((n for n, part in enumerate(rest) if "}" in part or "{" in part), len(rest))
            if end < len(rest) and "{" not in rest[end]:
                line, at = " ".join([_SOURCE.sub("", line), *rest[: end + 1]]), at + end + 1
        found.append(line[:_LINE_CHARS])
    return tuple(found)


def _unwrapped(line: str) -> str:
    if not line.startswith("{") or not line.endswith("}") or '"loss"' in line or '"train_loss"' in line:
        return line
    try:
        said = json.loads(line)
    except ValueError:
        return line
    texts = [text for key in _SAID if isinstance(text := said.get(key), str)]
    return texts[0] if texts else line


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


def is_metrics(line: str) -> bool:
    """Whether a line is one of the Trainer's figures, as `parse_metrics` reads them."""
    return parse_metrics(line) is not None


def _number(text: str) -> float | None:
    wrapped = _WRAPPED.match(text.strip())
    try:
        return float(wrapped[1] if wrapped else text)
    except ValueError:
        return None


def result_lines_in(text: str) -> int:
    """How many lines tell that a training or an evaluation came to its results, each once for one process.

    A training's is the line with `train_runtime`; the same figures in JSON are a program's own copy of it.
    """

    def is_one(line: str) -> bool:
        found = None if '"train_runtime"' in line else parse_metrics(line)
        is_final = found is not None and found.get("train_runtime") is not None
        return is_final or _RESULT[KeyLine.RESULTS].search(line) is not None

    return sum(map(is_one, split_lines(text)))


def tracebacks_in(text: str) -> int:
    """How many Python tracebacks begin in the text, also behind a rank prefix or an open progress bar."""
    return text.count("Traceback (most recent call last):")


def raised_while_answering(text: str) -> int:
    """How many of the printed tracebacks pass through a model's generation or forward pass."""
    blocks = re.split(r"Traceback \(most recent call last\):", text)[1:]
    return sum(_RAISED_THERE.search(block[:8000]) is not None for block in blocks)


def adapter_trouble_in(text: str, besides: frozenset[str] = frozenset()) -> str | None:
    """The first line that says that an adapter was not loaded whole, those `besides` left out."""
    return next((line for line in split_lines(text) if line not in besides and says_not_applied(line)), None)


def says_not_applied(line: str) -> bool:
    """Whether a line says that an adapter, or a part of its weights, is not in the model that answers.

    What it says must be said of the adapter itself: not of one of its settings, not of none of them, not of what would
    happen, and not of a place from which another place helped out.
    """
    if not any(word in line.lower() for word in _ADAPTER_WORDS):
        return False
    if _LIBRARY.search(line):
        return True
    if _NONE_OF_IT.search(line) or _COMPARED.search(line):
        return False
    if _BASE_INSTEAD.search(line):
        return True
    said = _SUPPOSED.sub(" ", line)
    in_japanese = any(not _SETTING_JA.search(hit["between"]) for hit in _UNDONE_JA.finditer(said))
    is_told = _NOT_APPLIED.search(said) is not None or in_japanese or any(map(_is_undone, _NAMED.finditer(said)))
    return is_told and not _OTHER_PLACE.search(said)


def _is_undone(named: re.Match[str]) -> bool:
    """Whether an adapter's name leads, over words of its own kind, to what befell it."""
    at = named.end()
    for _ in range(_MOST_PARTS):
        if _UNDONE.match(named.string, at):
            return True
        part = _PART.match(named.string, at)
        if part is None:
            break
        at = part.end()
    return False


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


_LABEL_BEFORE = r"(?:^|[\s\]:|>│┃])"  # a logger's prefix or a table's border may stand before a label
_LABEL_AFTER = r"\s*(?:[|│┃]\s*)?$"
_WHOLE_NUMBER = rf"(-?\d{{1,18}})(?:\s?/\s?\d{{1,18}})?(?:\s?(?:questions?|samples?|items?|rows?|問|件))?{_LABEL_AFTER}"


class KeyLine(Enum):
    """A line of an evaluation that is looked for, by its pattern; the first seven are of its set-up."""

    INITIALIZING = r"Initializing RAG pipeline\.\.\."
    RAG_MODE = rf"{_LABEL_BEFORE}RAG Mode:\s*(.*)$"
    LLM_MODEL = rf"{_LABEL_BEFORE}LLM Model:\s*(.*)$"
    BACKEND = rf"{_LABEL_BEFORE}Backend:\s*(.*)$"
    HF_MODEL = rf"{_LABEL_BEFORE}HF Model:\s*(.*)$"
    LORA_PATH = rf"{_LABEL_BEFORE}LoRA Path:\s*(.*)$"
    COT = rf"{_LABEL_BEFORE}Chain-of-Thought:\s*(.*)$"
    RESULTS = rf"EVALUATION RESULTS{_LABEL_AFTER}"
    TOTAL = rf"{_LABEL_BEFORE}Total Samples:\s*{_WHOLE_NUMBER}"
    CORRECT = rf"{_LABEL_BEFORE}Correct:\s*{_WHOLE_NUMBER}"
    INCORRECT = rf"{_LABEL_BEFORE}Incorrect:\s*{_WHOLE_NUMBER}"
    ACCURACY = rf"{_LABEL_BEFORE}Accuracy:\s*(\S{{1,40}}?)\s*(%?)(?:\s|$)"
    TIMEOUT_ERRORS = rf"{_LABEL_BEFORE}Timeout Errors:\s*(\d{{1,18}}){_LABEL_AFTER}"
    OTHER_ERRORS = rf"{_LABEL_BEFORE}Other Errors:\s*(\d{{1,18}}){_LABEL_AFTER}"
    SAVED_TO = r"Detailed results saved to:\s*(.+)$"


_SETUP = {key: re.compile(key.value) for key in (*KeyLine,)[:7]}
_RESULT = {key: re.compile(key.value) for key in (*KeyLine,)[7:]}


@dataclass(frozen=True)
class EvalLines:
    """The figures that an evaluation printed, those of one block of results; None where a line is missing."""

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
    accuracy_tolerance: float = 0.0  # half of its last printed digit
    timeout_errors: int = 0
    other_errors: int = 0
    invocation_errors: tuple[str, ...] = ()
    saved_to: str | None = None
    contradictions: tuple[Message, ...] = ()  # blocks of as many questions with other figures, under the same set-up
    loaded_models: tuple[str, ...] = ()  # as the lines above the block say
    endpoints: tuple[str, ...] = ()  # the servers that were asked
    of_other_blocks: frozenset[str] = frozenset()  # lines of another block alone: a base model has no adapter
    order: dict[KeyLine, int] = field(default_factory=dict)  # the line number of each
    key_lines: tuple[str, ...] = ()


# in each line that a pattern above finds
_KEY_WORD = re.compile(
    r"Initializing RAG|RAG Mode:|LLM Model:|Backend:|HF Model:|LoRA Path:|Chain-of-Thought:|EVALUATION RESULTS"
    r"|Total Samples:|orrect:|Accuracy:|Timeout Errors:|Other Errors:|Detailed results saved to:"
)
_INVOCATION_ERROR = re.compile(r"Error during LLM invocation:?\s*(.*)$")
_OWN_SETUP = (KeyLine.INITIALIZING, KeyLine.HF_MODEL, KeyLine.LORA_PATH)
_DRESS = re.compile(r"\*\*|`")  # Markdown's
_COLON = re.compile(r"(?<=\w)(?:[ \t]{1,40}:[ \t]|：[ \t]?)")
_BAR = re.compile(r"\d{1,3}%\|?")  # of progress: `Loading weights:  49%|`


def parse_evaluation(stdout: str, counted: tuple[int, int] | None = None) -> EvalLines:
    """Read an evaluation's lines: of several blocks of results the last one with the `counted` (total, correct).

    None of them has these figures, or nothing is counted: the last one. The set-up is what was printed last above it.
    """
    lines = tuple(_DRESS.sub("", _COLON.sub(": ", line)) for line in split_lines(stdout))
    blocks = _result_blocks(lines)
    block = next((one for one in reversed(blocks) if counted and one.figures[:2] == counted), None)
    block = block or (blocks[-1] if blocks else _Block(0, len(lines), {}))
    before = max((other.end for other in blocks if other.end <= block.start), default=0)
    setup: _Found = {
        key: (number, match)
        for number in range(before, block.start)
        for key, pattern in _SETUP.items()
        if (match := pattern.search(lines[number]))
    }
    above = lines[before : block.start] if blocks else lines
    anywhere = {**_SETUP, KeyLine.SAVED_TO: _RESULT[KeyLine.SAVED_TO]}
    found = _first_matches(lines, 0, len(lines), anywhere) | setup | block.found
    places = found | _first_matches(lines, before, block.start, _SETUP)
    text = {key: match[1].strip(" \t|│┃") for key, (_, match) in found.items() if match.re.groups}
    accuracy = _accuracy(found[KeyLine.ACCURACY][1]) if KeyLine.ACCURACY in found else (None, 0.0)
    told: dict[str, Any] = {key.name.lower(): text[key] for key in _TEXTS if key in text}
    told |= {key.name.lower(): int(text[key]) for key in _COUNTS if key in text}
    return EvalLines(
        **told,
        accuracy=accuracy[0],
        accuracy_tolerance=accuracy[1],
        invocation_errors=tuple(m[1] for line in lines if (m := _INVOCATION_ERROR.search(line)))[:1000],
        contradictions=_contradictions(lines, blocks, block),
        loaded_models=_values(_LOADED, above),
        endpoints=tuple(url for url in _values(_ENDPOINT, above) if not _OTHER_SERVICE.search(url)),
        of_other_blocks=frozenset(lines[:before]) - frozenset(lines[before:]),
        order={key: number for key, (number, _) in places.items()},
        key_lines=tuple(lines[n].strip()[:300] for n in sorted({number for number, _ in found.values()})),
    )


_TEXTS = (*(key for key in _SETUP if key is not KeyLine.INITIALIZING), KeyLine.SAVED_TO)
_COUNTS = (KeyLine.TOTAL, KeyLine.CORRECT, KeyLine.INCORRECT, KeyLine.TIMEOUT_ERRORS, KeyLine.OTHER_ERRORS)
_Found = dict[KeyLine, tuple[int, re.Match[str]]]


@dataclass(frozen=True)
class _Block:
    """One block of results: its lines from `start` to before `end`."""

    start: int
    end: int
    found: _Found

    @property
    def figures(self) -> tuple[int | None, int | None, str | None]:
        """Total, correct and accuracy as printed."""
        total, correct, accuracy = (self.found.get(key) for key in (KeyLine.TOTAL, KeyLine.CORRECT, KeyLine.ACCURACY))
        return (
            int(total[1][1]) if total else None, int(correct[1][1]) if correct else None,
            accuracy[1][1] if accuracy else None,
        )  # fmt: skip


def _result_blocks(lines: tuple[str, ...]) -> list[_Block]:
    """The blocks of results; without any header all lines are one, where they have a result at all."""
    starts = [n for n, line in enumerate(lines) if _RESULT[KeyLine.RESULTS].search(line)]
    blocks = []
    for start, limit in pairwise([*starts, len(lines)]):
        found = _first_matches(lines, start, limit, _RESULT)
        blocks.append(_Block(start, max(number for number, _ in found.values()) + 1, found))
    if not starts and (found := _first_matches(lines, 0, len(lines), _RESULT)):
        blocks.append(_Block(min(number for number, _ in found.values()), len(lines), found))
    return blocks


def _contradictions(lines: tuple[str, ...], blocks: list[_Block], counted: _Block) -> tuple[Message, ...]:
    """Blocks of the same run, of as many questions, that tell other figures than the counted one."""
    told = []
    for n, block in enumerate(blocks):
        first, second = (block, counted) if block.start < counted.start else (counted, block)
        between = range(first.end, second.start)
        apart = any(_SETUP[key].search(lines[at]) for at in between for key in _OWN_SETUP)
        total, correct, accuracy = block.figures
        if not apart and total is not None and total == counted.figures[0] and block.figures != counted.figures:
            told.append(say("results.other_block", place=n + 1, total=total, correct=correct, accuracy=accuracy))
    return tuple(told)


def _values(pattern: re.Pattern[str], lines: Iterable[str]) -> tuple[str, ...]:
    hits = (match for line in lines for match in pattern.finditer(line))
    found = (next(group for group in match.groups() if group) for match in hits)
    return tuple(dict.fromkeys(value.rstrip(".…:)]") for value in found if not _BAR.match(value)))[:100]


def answer_troubles_in(text: str) -> tuple[str, ...]:
    """Lines in which a program says that a question could not be asked, or was answered with a default."""
    lines = (line for line in split_lines(text) if _ANSWER_TROUBLE.search(line) and not _NO_ANSWER_TROUBLE.search(line))
    return tuple(line.strip() for line in lines if not _INVOCATION_ERROR.search(line))[:1000]


def _first_matches(lines: tuple[str, ...], start: int, end: int, patterns: dict[KeyLine, re.Pattern[str]]) -> _Found:
    found: _Found = {}
    for number in range(start, end):
        if len(found) == len(patterns):
            break
        if _KEY_WORD.search(lines[number]) is None:
            continue
        for key, pattern in patterns.items():
            if key not in found and (match := pattern.search(lines[number])):
                found[key] = (number, match)
    return found


_OF_ALL = (
    r"(?:(?:final|overall|total|mean|average|strict|exact(?: match)?|test|eval(?:uation)?|result|score|the|info|print|"
    r"root|全体の?|最終|総合|平均|テスト|評価|結果|今回の?)(?![a-z])[^\w\n]{0,9})"
)
# one of a category, of a baseline, of training or under another rule is none that the results must have
_OWN_ACCURACY = re.compile(
    rf"(?im)(?:^|\r)(?:[^\w\n]|[\d_]){{0,40}}{_OF_ALL}{{0,4}}(?<![a-z_-])(?:accuracy|acc|正解率|正答率)"
    rf"(?:\s?\({_OF_ALL}{{1,2}})?[^\S\n]{{0,8}}(?:[:=：は]|is\b)?[^\S\n]{{0,8}}"
    r"(\d{1,9}\s?(?:/|of)\s?\d{1,9}|\d{1,3}(?:[.,]\d{1,17})?)(?![\w.])(?!-\w)\s?(%)?"
)


def printed_accuracies(stdout: str) -> list[tuple[float, float]]:
    """Each accuracy of all answers that is printed in a program's own words, as a share, and half of its last digit."""
    return [_accuracy(match) for match in _OWN_ACCURACY.finditer(stdout)]


def _accuracy(match: re.Match[str]) -> tuple[float, float]:
    """The accuracy and half of its last digit, both as shares; NaN where the text is no number."""
    text = match[1].rstrip("%,;")
    if fraction := re.fullmatch(r"(\d{1,9})\s?(?:/|of)\s?(\d{1,9})", text, re.IGNORECASE):
        whole = int(fraction[2])
        return (int(fraction[1]) / whole if whole else math.nan, 0.0)
    text = re.sub(r"(?<=\d),(?=\d)", ".", text)  # a decimal comma
    value = _number(text)
    if value is None:
        return math.nan, 0.0
    digits = len(text.partition(".")[2]) if re.fullmatch(r"\d+(?:\.\d*)?", text) else 6
    in_percent = match[2] == "%" or match[1].endswith("%") or value > 1
    scale = 100 if in_percent else 1
    return value / scale, 0.5 * 10.0**-digits / scale * 1.01
