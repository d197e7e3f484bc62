"""Splits a log into lines, without what terminals and launchers put before each, and finds the exceptions among them.

In: bytes or text, also of a notebook, of an error cell's JSON, of JSON log lines. Out: `PrintedLine` values, each with
the process that printed it where the log shows one, and chains of `Raised`: type, message, frames, and which one set
off which, the root first. A logger's prefix is found by what all lines of a traceback share, not by a list of loggers.
Reads Python's, IPython's, pytest's and rich's tracebacks, with or without their header, which pasted logs often lack.
Knows no cause.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steph.base.text import without_ansi

HEAD_CHARACTERS = 1 << 20
TAIL_CHARACTERS = 4 << 20
TELLING_CHARACTERS = 4  # no prefix, bar, metric, loss or phase is shorter; a log may be millions of such lines
_PREFIX_CHARACTERS = 300
_LEARNED_SHAPES = 8
_TRACED_LINES = 1000  # of more, the first and the last are enough to learn from

_BREAK = re.compile(r"\r\n|\n|\r|\^M(?=[ \n]|$)")
_BAR_END = re.compile(r"(\[(?:\d+:)?\d+:\d\d<[^\[\]]{1,200}\])[ \t]*(?=\S)")
# a bar's parts are looked for one after the other: joined by `.*`, each start would read the rest of the line anew
_BAR_HEAD, _BAR_COUNT = re.compile(r"\d%\|"), re.compile(r"\|\s*[\d.]+\w?\s*/\s*[\d.?]")
_BAR_CLOCK = re.compile(r"\[(?:\d+:)?\d+:\d\d<[^\[\]]*\]\s*$")
# what launchers write, known also where no traceback shows it
_PREFIX = re.compile(
    r"\[(?:rank|default)(?P<torchrun>\d+)\]: ?"
    r"|\[\d+,(?P<mpirun>\d+)\]<std(?:err|out)>: ?"
    r"|(?P<srun>\d{1,4}): (?=\S|  )"
    r"|\((?P<ray>[A-Za-z_]\w*(?:\([^)]*\))?,? (?:rank=\d+,? )?pid=\d+(?:, ip=[\d.]+)?)\) ?"
    r"|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d) (?:std(?:err|out) [FP] )?"
    r"|[\w.-]{1,40}[-_]\d+ {1,4}\| ?"
)
_LEVELS = "DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL|SUCCESS"
_LEVEL_NAME = re.compile(rf"\b(?:{_LEVELS})\b")
_LOW = frozenset({"DEBUG", "INFO", "WARN", "WARNING", "SUCCESS"})
_LEVEL = re.compile(
    r"^(?!.*NCCL WARN)(?:"
    r"[\W\d_TZ]*(?:[\w./]+(?::\d+)?[\s:|\-\]\[,>]+){0,3}?[\[(<|]?(?:DEBUG|INFO|WARN|WARNING)\b"
    r"|\[?[WI]\d{3,4} [\d:.]+ )"
)
_LEVEL_WORD = re.compile(r"DEBUG|INFO|WARN|[WI]\d{3,4} ")
_WARNING = re.compile(r"\b\w*Warning: |^\s*warnings\.warn\(", re.M)
_OF_TRACEBACK = re.compile(r'Traceback \(most recent call last\)|  File "(?=[^"\n]{1,200}", line \d)')
# a date, time, level or bracket, then anything of that kind, a logger's name with its separator, and separators
_TOKEN = (
    r"(?:[\[(<]?\d{1,4}[-/:.]\d\d(?:[-/:.,T\d+Z]|(?<=\d) (?=\d\d:))*[\])>]?"
    rf"|[\[(<|]?\s{{0,3}}(?:{_LEVELS})\s{{0,8}}[\])>|:]?|\[[^\[\]]{{1,60}}\]"
    r"|[A-Za-z_][\w.<>]{0,60}(?::[\w<>]{1,60}){0,2}(?= (?:-|\||>>) )|[-|:>]{1,2})"
)
_LEAD = re.compile(rf"(?=[\[(<]?\d{{1,4}}[-/:.]\d\d|[\[(<|]?(?:{_LEVELS})\b)(?:{_TOKEN}[ \t]{{0,8}}){{1,12}}(?=\S|$)")
_PIECE = re.compile(rf"\b(?:{_LEVELS})\b|\d+|\s+|[^\s\d]", re.A)
_WRITER = re.compile(
    r"(?:rank|worker|node|proc(?:ess)?|task|pid|gpu|trainer|default|local_rank)[\s:=_#-]{0,3}\d+", re.I
)
_ERROR_NAME = re.compile(r'^\s*"name": "(?P<name>\w*Error\w*)",?\s*$')
_ERROR_VALUE = re.compile(r'^\s*"message": "(?P<text>.*?)(?:",?\s*)?$')
_ERROR_STACK = re.compile(r'^\s*"stack": "(?P<text>.*?)(?:",?\s*)?$')
_MESSAGE_KEYS = ("log", "message", "msg", "text", "textPayload", "@message", "event", "body", "line")
_TRACE_KEYS = ("exc_info", "exception", "traceback", "stack_trace", "stack", "error")


@dataclass(frozen=True)
class PrintedLine:
    """One printed line without prefix or colour; `index` is its place in the whole output."""

    index: int
    text: str
    rank: str | None = None  # who printed it: the number or the words of the launcher's prefix
    below_error: bool = False  # its prefix, which is off, had a low level that tracebacks of this log do not have

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
        return self.below_error or has_level or _WARNING.search(self.text[:600]) is not None


@dataclass(frozen=True)
class _Shape:
    """A prefix with its digits left open; tracebacks were printed behind it at these levels."""

    pattern: re.Pattern[str]
    levels: frozenset[str]
    is_numbered: bool = False  # its first number is another one in each line: no rank, but the line's number


def clip(text: str, head: int = HEAD_CHARACTERS, tail: int = TAIL_CHARACTERS) -> str:
    """The first `head` and the last `tail` characters of a text that is longer than both."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"


def lines_of(log: str) -> tuple[PrintedLine, ...]:
    """Every line of the log, in print order, with its rank where a launcher wrote one."""
    raw = _BREAK.split(without_ansi(clip(_unpacked(log))).replace("\0", "").removeprefix("\ufeff"))
    shapes = _shapes_of(raw)
    found: list[PrintedLine] = []
    for line in raw:
        text, rank, is_low = _without_prefix(line, shapes) if len(line) >= TELLING_CHARACTERS else (line, None, False)
        for part in _BAR_END.sub(r"\1\n", text).split("\n") if "<" in text else (text,):
            found.append(PrintedLine(len(found), part.rstrip(), rank, is_low))
    return tuple(found)


def lead_of(text: str) -> str:
    """The prefix that a logger put before a message (date, time, level, name), as far as that can be told; maybe ''."""
    match = _LEAD.match(text[:_PREFIX_CHARACTERS])
    return match[0] if match else ""


def _unpacked(log: str) -> str:
    """The text of a notebook, of an error cell, of HTML output or of JSON log lines; anything else as it is."""
    start = log[:400].lstrip()
    if (start.startswith("{") and '"cells"' in log[:20_000]) or (start.startswith("{") and '"nbformat"' in log[-2000:]):
        try:
            return "\n".join(_cell_texts(json.loads(log)))
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
            pass
    if start.startswith("{"):
        log = _from_json_lines(log)
    if "</span>" in log:
        log = html.unescape(re.sub(r"</?(?:span|pre|div|code|br)\b[^<>]{0,300}>", "", log))
    return _from_error_cell(log) if re.search(r'"name": "', log) else log


def _cell_texts(notebook: dict[str, Any]) -> Iterator[str]:
    """The output of each cell, in the order of the notebook: printed text, and errors as the notebook shows them."""
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", ())):
        yield "".join(output.get("text", ()))
        if output.get("output_type") == "error":
            trace = list(output.get("traceback", ()))
            yield from trace
            if not trace or output["ename"] not in trace[-1]:
                yield f"{output['ename']}: {output.get('evalue', '')}"


def _from_json_lines(log: str) -> str:
    """Log lines that are JSON objects with a message, as the messages with their levels; other lines stay."""
    lines = log.split("\n")
    read = [_message_of(line) for line in lines]
    if sum(text is not None for text in read) * 2 < sum(bool(line.strip()) for line in lines):
        return log
    return "\n".join(line if text is None else text for line, text in zip(lines, read, strict=True))


def _message_of(line: str) -> str | None:
    if not line.lstrip().startswith('{"') or len(line) > 1_000_000:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    message = next((value[key] for key in _MESSAGE_KEYS if isinstance(value.get(key), str)), None)
    if message is None:
        return None
    level = next((str(value[key]) for key in ("level", "levelname", "severity") if value.get(key)), "")
    traces = [value[key] for key in _TRACE_KEYS if isinstance(value.get(key), str) and "\n" in value[key]]
    shown = message.rstrip("\n")
    is_bare = "Traceback (most" in shown or not re.fullmatch(_LEVELS, level.upper())
    return "\n".join([shown if is_bare else f"{level.upper()}: {shown}", *traces])


def _from_error_cell(log: str) -> str:
    """The log with an error cell's `"name"`, `"message"` and `"stack"` as the lines that a notebook shows."""
    found: list[str] = []
    name = None
    for line in log.split("\n"):
        if match := _ERROR_NAME.match(line):
            name = match["name"]
        elif name and (match := _ERROR_VALUE.match(line)):
            found += f"{name}: {_unescaped(match['text'])}".split("\n")
            name = None
        elif match := _ERROR_STACK.match(line):
            found += _unescaped(match["text"]).split("\n")
        else:
            found.append(line)
    return "\n".join(found)


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace('\\"', '"').replace("\\t", "\t").replace("\\u001b", "\x1b")


def _shapes_of(raw: list[str]) -> tuple[_Shape, ...]:
    """The prefixes that the lines of this log's tracebacks share, and a logger's one that nearly every line has.

    Shared ones differ in digits, levels and inner spaces only.
    """

    def opened(piece: str) -> str:
        if re.fullmatch(_LEVELS, piece):
            return rf"(?:{_LEVELS})"
        return r"\d+" if piece.isdigit() else r"\s{1,8}" if piece.isspace() else re.escape(piece)

    counts: Counter[str] = Counter()
    levels: dict[str, set[str]] = {}
    numbers: dict[str, set[str]] = {}
    traced = [line for line in raw if 'File "' in line or "Traceback (most" in line]
    for line in traced if len(traced) <= 2 * _TRACED_LINES else traced[:_TRACED_LINES] + traced[-_TRACED_LINES:]:
        match = _OF_TRACEBACK.search(line[: _PREFIX_CHARACTERS + 40])
        prefix = line[: match.start()] if match else ""
        if prefix.strip(" \t|+"):
            body = prefix.rstrip()
            shape = "".join(opened(piece) for piece in _PIECE.findall(body)) + re.escape(prefix[len(body) :][:8])
            counts[shape] += 1
            levels.setdefault(shape, set()).update(_LEVEL_NAME.findall(prefix))
            numbers.setdefault(shape, set()).update(re.findall(r"\d+", prefix)[:1])
    found = [
        _Shape(re.compile(shape), frozenset(levels[shape]), len(numbers[shape]) == count)
        for shape, count in counts.most_common(_LEARNED_SHAPES)
        if count > 1
    ]
    filled = [line for line in raw if line.strip()][:2000]
    stamped = [lead for line in filled if (lead := lead_of(line))]
    if len(filled) >= 3 and len(stamped) * 5 >= len(filled) * 4:
        every = {level for lead in stamped for level in _LEVEL_NAME.findall(lead)}
        found.append(_Shape(_LEAD, frozenset(every & {"INFO"} if len(every) == 1 else ())))
    return tuple(found)


def _without_prefix(line: str, shapes: tuple[_Shape, ...]) -> tuple[str, str | None, bool]:
    """The line, who wrote it, and whether its level is low."""
    writer, is_low = None, False
    for shape in shapes:
        match = shape.pattern.match(line[:_PREFIX_CHARACTERS])
        if match is None:
            continue
        seen = set(_LEVEL_NAME.findall(match[0]))
        is_low = is_low or bool(seen & _LOW and not seen & shape.levels)
        if shape.pattern is _LEAD and is_low:
            break  # the level stays where the line says it
        line = line[match.end() :]
        if not shape.is_numbered:
            told = _PREFIX.match(match[0])
            named = next((value for value in told.groups() if value), None) if told else None
            writer = named or " ".join(_WRITER.findall(match[0])).lower() or None
        break
    for _ in range(3):
        match = _PREFIX.match(line)
        if match is None:
            break
        writer = next((value for value in match.groups() if value is not None), writer)
        line = line[match.end() :]
    return line, writer, is_low


TRACEBACK_BYTES = 12_000
_MESSAGE_LINES = 30
_KEPT_CHAINS = 100  # of more, the first and the last; the causes are at the ends

_HEADER = re.compile(r"Traceback \(most recent call last\)")
_LINK = re.compile(
    r"^\s*(?:\|\s*)?(?:During handling of the above exception|The above exception was the "
    r"direct cause)"
)
_FRAME = re.compile(r'^\s*(?:\|\s*)?File "|^\s*[│|]')
# a notebook's frame (`File x.py:3, in f(a)`, `[x.py](link) in f(a)`, `x.py in f(a)`), rich's, and the line it marks
_DRAWN_FRAME = re.compile(
    r"^(?:[│|]\s{0,3})?(?:File )?\[?(?P<file>(?:[~/]|[A-Za-z]:[/\\])[^\n\"\]]{1,300}?\.py)\]?(?:\(\S{0,300}\))?"
    r"(?::(?P<line>\d{1,7}))?,? in(?: (?P<function>[\w.<>]{1,100})|\s{0,100}[│|]?$)"  # rich may wrap before the name
)
_DRAWN_LINE = re.compile(r"^(?:-{1,6}>|[│|]\s{0,3}❱) {0,8}\d{1,7} ?(?P<code>.*)$")
_DRAWN_CONTEXT = re.compile(r"^(?:[│|]\s{0,3})?\s{0,8}\d{1,7}(?: |$)")  # a line around the one that it marks
_NAMES = (
    r"Error|Exception|Exit|Interrupt|Warning|Timeout|TimeoutExpired|OutOfResources|Enabled|Invalid"
    r"|NotFound|StopIteration|(?<=socket\.)(?:gaierror|timeout|herror)|BadZipFile|BrokenProcessPool|CompilerFailed|"
    r"NVMLError_\w{1,60}|Incomplete\w{0,40}|Disconnected"
)
_RAISED = re.compile(
    rf"^(?:E {{2,7}}|\s*(?:\|\s*)+)?(?P<type>(?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*?)?(?:{_NAMES})"
    r"(?:Group|\(\w{1,60}\))?)(?:(?:: ?|:$)(?P<message>.*)| \[(?P<note>[^\]]*)\])?$"
)
_WORD = re.compile(
    r"Error|Exception|Exit|Interrupt|Warning|[Tt]imeout|OutOf|Enabled|Invalid|NotFound|StopIteration|gaierror"
    r"|herror|BadZip|BrokenProcess|Incomplete|Disconnected|what\(\)|CompilerFailed|NVMLError"
)
_WHAT = re.compile(r"^\s*(?P<type>what\(\)): +(?P<message>(?P<note>).*)$")
# an exception that carries another process's: its own traceback is printed below it
_CARRIES = re.compile(
    r"^[\w.]*RayTaskError\(|^[\w.]+: Caught \w+ in |^[\w.]+: ?\n{0,2}-- Process \d+ terminated with the following error"
)
_FIGURE = re.compile(r"-?\d{1,9}\.\d")
_BARE = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:: .*)?$")
_IGNORED = re.compile(r"^Exception ignored |^--- Logging error ---|^Error in atexit|^Error in sys\.excepthook")
_LONG_MESSAGE = re.compile(
    r"Client Error|Server Error|Request ID|Forbidden|following error|CUDA (?:Setup|error)|MISMATCH|"
    r"would exceed|generating the dataset|^\s*$",
    re.I,
)
_STOP = re.compile(
    r"Traceback \(most recent|^\s*File \"|^\s*(?:During handling|The above exception)|^={8,}|^-{8,}|^\{['\"]"
    r"|^\[?[EWIF]\d{3,4} |^Exception ignored |^usage: |^\"{3}$"
)


@dataclass(frozen=True)
class Raised:
    """One exception: `type` as printed (dotted or not), its message, the lines above it that belong to it."""

    index: int
    type: str
    message: tuple[str, ...]
    frames: tuple[str, ...]
    printed: tuple[str, ...]
    chained: bool = False  # follows the one before it in the same chain
    ignored: bool = False  # Python itself says that nobody was hurt
    has_header: bool = False
    rank: str | None = None

    @property
    def line(self) -> str:
        """`type: first line of the message`, as printed."""
        return f"{self.type}: {self.message[0]}".rstrip(": ") if self.message else self.type

    @property
    def last_frame(self) -> str:
        """The innermost frame's line with its file; empty where there is none."""
        return next((frame.strip() for frame in reversed(self.frames) if frame.strip().startswith('File "')), "")

    @property
    def is_deliberate(self) -> bool:
        """Whether the innermost line is a `raise` or `assert` statement, as far as the log shows it."""
        return self.last_code.startswith(("raise ", "assert "))

    @property
    def last_code(self) -> str:
        """The line of code that raised it; empty where the log does not show it."""
        last = max((at for at, frame in enumerate(self.frames) if 'File "' in frame), default=len(self.frames))
        return next((line.strip() for line in self.frames[last + 1 :] if line.strip()), "")

    @property
    def carries_another(self) -> bool:
        """Whether it hands on what another process raised, whose traceback follows."""
        return _CARRIES.match("\n".join((f"{self.type}: {self.message[0]}", *self.message[1:3]))) is not None

    @property
    def texts(self) -> tuple[str, ...]:
        """What it wraps, then type and message in growing scope; the last undo a terminal's hard and soft wraps."""
        rest = (self.message[1:],) if len(self.message) > 1 else ()
        inner = self.message[1:2] if self.message and _names_another(self.message[0]) else ()
        glued = (f"{self.line}{glue}{glue.join(more)}" for more in rest for glue in ("\n", "", " "))
        return (*inner, self.line, *glued)


Chain = tuple[Raised, ...]


def chains_of(lines: tuple[PrintedLine, ...]) -> tuple[Chain, ...]:
    """All chains of all ranks, ordered by where their root was printed."""
    streams: dict[str | None, list[PrintedLine]] = {}
    for line in lines:
        streams.setdefault(line.rank, []).append(line)
    chains: list[list[Raised]] = []
    for stream in streams.values():
        start = at = 0  # `start`: first line that may belong to the next exception
        while at < len(stream):
            match = _match(stream, at)
            if match is None:
                at += 1
                continue
            end = _message_end(stream, at)
            raised = _build(stream, start, at, end, match)
            start = at = end
            if raised.chained and chains and chains[-1][-1].rank == raised.rank:
                chains[-1].append(raised)
            elif chains and raised.frames and _is_carried_by(chains[-1], raised):
                chains[-1].insert(-1, raised)
            else:
                chains.append([raised])
    ordered = sorted((tuple(chain) for chain in chains), key=lambda chain: chain[0].index)
    return tuple(ordered if len(ordered) <= 2 * _KEPT_CHAINS else ordered[:_KEPT_CHAINS] + ordered[-_KEPT_CHAINS:])


def _is_carried_by(chain: list[Raised], raised: Raised) -> bool:
    """Whether the chain's last exception hands on this one, the first that was printed below it."""
    last = chain[-1]
    return last.carries_another and last.rank == raised.rank and max(one.index for one in chain) == last.index


def shortened(text: str, limit_bytes: int = TRACEBACK_BYTES) -> str:
    """The text, its middle left out where it is longer than the limit; whole lines at the cuts where there are any."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit_bytes:
        return text
    head = data[: limit_bytes // 3].decode("utf-8", "ignore").rpartition("\n")
    tail = data[-(limit_bytes - limit_bytes // 3 - 40) :].decode("utf-8", "ignore")
    return f"{head[0] or head[2]}\n  ...\n{tail.partition(chr(10))[2] or tail}"


def _match(stream: list[PrintedLine], at: int) -> re.Match[str] | None:
    text = stream[at].text
    if not text or text[0] in "{[(<$#-+'\"" or len(text) > 20_000:
        return None
    match = _match_of(text)
    follows_frame = at > 0 and _is_frame(stream[at - 1].text)
    if match is None:
        return _BARE.match(text) if follows_frame and not text[0].isspace() else None
    if match["type"] == "Error" and _FIGURE.match(match["message"] or ""):
        return None  # a rate of errors, as an evaluation prints it
    if match["message"] is None and not follows_frame and match["type"] not in ("MemoryError", "KeyboardInterrupt"):
        return None
    return None if match["type"].endswith("Warning") and not follows_frame else match


def _match_of(text: str) -> re.Match[str] | None:
    if not _WORD.search(text):
        return None
    return _RAISED.match(text) or _WHAT.match(text)


def _is_frame(text: str) -> bool:
    return bool(_FRAME.match(text)) or text.startswith(("    ", "╰"))


def _names_another(text: str) -> bool:
    """Whether a message only says that another exception was raised, which its next line names (torch.compile)."""
    return text.endswith("raised:")


def _message_end(stream: list[PrintedLine], at: int) -> int:
    takes_blank = bool(_LONG_MESSAGE.search(stream[at].text.partition(":")[2]))
    end = at + 1
    if _names_another(stream[at].text) and end < len(stream) and _match_of(stream[end].text):
        end += 1
    while end < min(len(stream), at + _MESSAGE_LINES):
        line = stream[end]
        if (not line.text and not takes_blank) or _STOP.search(line.text) or line.is_bar or line.is_mild:
            break
        if _match_of(line.text) and not line.text[0].isspace():
            break
        end += 1
    return end


def _build(stream: list[PrintedLine], start: int, at: int, end: int, match: re.Match[str]) -> Raised:
    above = stream[start:at]
    headers = [n for n, line in enumerate(above) if _HEADER.search(line.text)]
    begin = len(above)
    while begin > 0 and above[begin - 1].text and _is_frame(above[begin - 1].text):
        begin -= 1
    begin = headers[-1] if headers else begin
    own = tuple(line.text for line in above[begin:])
    kind, _, message = stream[at].text.strip().partition(":")
    if "type" in match.groupdict():
        kind, message = match["type"], match["message"] or match["note"] or ""
    body = [line.text for line in stream[at + 1 : end]]
    while body and not body[-1].strip():
        body.pop()
    return Raised(
        index=stream[at].index,
        type=kind,
        message=(message.strip(), *body),
        frames=_as_python_prints(own),
        printed=(*own, stream[at].text, *body),
        chained=any(_LINK.match(line.text) for line in above),
        ignored=any(_IGNORED.match(line.text) for line in above[max(0, begin - 2) :]),
        has_header=bool(headers),
        rank=stream[at].rank,
    )


def _as_python_prints(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Frames, and the lines that they stopped at, that a notebook or rich drew, as Python itself prints them."""
    found: list[str] = []
    is_drawn = False
    for line in lines:
        frame, code = _DRAWN_FRAME.match(line), _DRAWN_LINE.match(line)
        is_drawn = is_drawn or frame is not None
        if found and found[-1].endswith(", in "):
            found[-1] += line.strip(" │|")
        elif frame:
            found.append(f'  File "{frame["file"]}", line {frame["line"] or 0}, in {frame["function"] or ""}')
        elif code:
            found.append(f"    {code['code'].strip(' │')}")
        elif not (is_drawn and _DRAWN_CONTEXT.match(line)):
            found.append(line)
    return tuple(found)
