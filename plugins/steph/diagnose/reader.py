"""A child's output as lines: terminal noise and rank prefixes taken off, each line with the rank that printed it.

In: raw text. Out: `PrintedLine` values. Knows what terminals, torchrun, mpirun, srun, Ray and tqdm add to a line; knows
no failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steph.base.text import without_ansi

HEAD_CHARACTERS = 1 << 20
TAIL_CHARACTERS = 4 << 20
TELLING_CHARACTERS = 4  # no prefix, bar, metric, loss or phase is shorter; a log may be millions of such lines

_BREAK = re.compile(r"\r\n|\n|\r")
_BAR_END = re.compile(r"(\[(?:\d+:)?\d+:\d\d<[^\[\]]{1,200}\])[ \t]*(?=\S)")
# a bar's parts are looked for one after the other: joined by `.*`, each start would read the rest of the line anew
_BAR_HEAD, _BAR_COUNT = re.compile(r"\d%\|"), re.compile(r"\|\s*[\d.]+\w?\s*/\s*[\d.?]")
_BAR_CLOCK = re.compile(r"\[(?:\d+:)?\d+:\d\d<[^\[\]]*\]\s*$|^\d+it \[")
_PREFIX = re.compile(
    r"\[(?:rank|default)(?P<torchrun>\d+)\]: ?"
    r"|\[\d+,(?P<mpirun>\d+)\]<std(?:err|out)>: ?"
    r"|(?P<srun>\d{1,4}): (?=\S|  )"
    r"|\((?P<ray>[A-Za-z_]\w*(?:\([^)]*\))? (?:rank=\d+ )?pid=\d+(?:, ip=[\d.]+)?)\) ?"
    r"|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d) (?:std(?:err|out) [FP] )?"
    r"|[\w.-]{1,40}[-_]\d+ {1,4}\| ?"
)
_LEVEL = re.compile(
    r"^(?!.*NCCL WARN)(?:"
    r"[\W\d_TZ]*(?:[\w./]+(?::\d+)?[\s:|\-\]\[,>]+){0,3}?[\[(<|]?(?:DEBUG|TRACE|INFO|NOTICE|WARN|WARNING)\b"
    r"|\[?[WI]\d{3,4} [\d:.]+ )"
)
_LEVEL_WORD = re.compile(r"DEBUG|TRACE|INFO|NOTICE|WARN|[WI]\d{3,4} ")
_WARNING = re.compile(r"\b\w*Warning: |^\s*warnings\.warn\(|^\s*logger\.warning", re.M)


@dataclass(frozen=True)
class PrintedLine:
    """One printed line without prefix or colour; `index` is its place in the whole output."""

    index: int
    text: str
    rank: str | None = None

    @property
    def is_bar(self) -> bool:
        """Whether a progress bar drew this line."""
        if "|" not in self.text or len(self.text) < TELLING_CHARACTERS:
            return False
        head = _BAR_HEAD.search(self.text)
        return bool((head and _BAR_COUNT.search(self.text, head.end())) or _BAR_CLOCK.search(self.text))

    @property
    def is_mild(self) -> bool:
        """Whether the program itself says that this line is below an error: a log level or a Python warning."""
        start = self.text[:200]
        has_level = _LEVEL_WORD.search(start) is not None and _LEVEL.match(start) is not None
        return has_level or _WARNING.search(self.text[:600]) is not None


def clip(text: str, head: int = HEAD_CHARACTERS, tail: int = TAIL_CHARACTERS) -> str:
    """The first `head` and the last `tail` characters of a text that is longer than both."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"


def normalise(log: str) -> str:
    """The log one statement a line: `\\r` and glued progress bars split, ANSI codes, NULs and rank prefixes gone."""
    return "\n".join(line.text for line in lines_of(log))


def lines_of(log: str) -> tuple[PrintedLine, ...]:
    """Every line of the log, in print order, with its rank where a launcher wrote one."""
    found: list[PrintedLine] = []
    for raw in _BREAK.split(without_ansi(clip(log)).replace("\0", "")):
        text, rank = _without_prefix(raw) if len(raw) >= TELLING_CHARACTERS else (raw, None)
        for part in _BAR_END.sub(r"\1\n", text).split("\n") if "<" in text else (text,):
            found.append(PrintedLine(len(found), part.rstrip(), rank))
    return tuple(found)


def streams_of(lines: tuple[PrintedLine, ...]) -> tuple[tuple[PrintedLine, ...], ...]:
    """The lines of each rank for itself, the unprefixed ones as one more stream, in order of appearance."""
    streams: dict[str | None, list[PrintedLine]] = {}
    for line in lines:
        streams.setdefault(line.rank, []).append(line)
    return tuple(tuple(stream) for stream in streams.values())


def _without_prefix(text: str) -> tuple[str, str | None]:
    rank: str | None = None
    for _ in range(3):
        match = _PREFIX.match(text)
        if match is None:
            break
        rank = next((value for value in match.groups() if value is not None), rank)
        text = text[match.end() :]
    return text, rank
