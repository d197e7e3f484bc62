"""Finds the exceptions in a log: type, message, frames, and which one set off which.

In: lines. Out: chains of `Raised`, the root first. Reads Python's, IPython's, pytest's and rich's forms, with or
without the `Traceback` header (pasted logs often lack it). Knows no cause.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steph.diagnose.reader import PrintedLine

TRACEBACK_BYTES = 12_000
_MESSAGE_LINES = 30
_KEPT_CHAINS = 100  # of more, the first and the last; the causes are at the ends

_HEADER = re.compile(r"Traceback \(most recent call last\)")
_LINK = re.compile(
    r"^\s*(?:\|\s*)?(?:During handling of the above exception|The above exception was the "
    r"direct cause)"
)
_FRAME = re.compile(r'^\s*(?:\|\s*)?File "|^\s*[│|]')
_NAMES = (
    r"Error|Exception|Exit|Interrupt|Warning|Timeout|TimeoutExpired|OutOfResources|Enabled|Invalid"
    r"|NotFound|StopIteration|(?<=socket\.)(?:gaierror|timeout|herror)|BadZipFile|BrokenProcessPool|CompilerFailed|"
    r"NVMLError_\w{1,60}|Incomplete\w{0,40}|Disconnected"
)
_RAISED = re.compile(
    rf"^(?:E {{2,7}}|\s*(?:\|\s*)+)?(?P<type>(?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*?)?(?:{_NAMES})(?:Group)?)"
    r"(?:(?:: ?|:$)(?P<message>.*)| \[(?P<note>[^\]]*)\])?$"
)
_WORD = re.compile(
    r"Error|Exception|Exit|Interrupt|Warning|[Tt]imeout|OutOf|Enabled|Invalid|NotFound|StopIteration|gaierror"
    r"|herror|BadZip|BrokenProcess|Incomplete|Disconnected|what\(\)|CompilerFailed|NVMLError"
)
_WHAT = re.compile(r"^\s*(?P<type>what\(\)): +(?P<message>(?P<note>).*)$")
_BARE = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:: .*)?$")
_IGNORED = re.compile(r"^Exception ignored |^--- Logging error ---|^Error in atexit|^Error in sys\.excepthook")
_LONG_MESSAGE = re.compile(
    r"Client Error|Server Error|Request ID|Forbidden|following error|CUDA (?:Setup|error)|MISMATCH|"
    r"would exceed|^\s*$",
    re.I,
)
_STOP = re.compile(
    r"Traceback \(most recent|^\s*File \"|^\s*(?:During handling|The above exception)|^={8,}|^-{8,}|^\{['\"]"
    r"|^\[?[EWIF]\d{3,4} |^Exception ignored |^usage: "
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
    def texts(self) -> tuple[str, ...]:
        """Type and message in growing scope; the last ones undo a terminal's hard and soft wraps."""
        rest = (self.message[1:],) if len(self.message) > 1 else ()
        return (self.line, *(f"{self.line}{glue}{glue.join(more)}" for more in rest for glue in ("\n", "", " ")))


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
            else:
                chains.append([raised])
    ordered = sorted((tuple(chain) for chain in chains), key=lambda chain: chain[0].index)
    return tuple(ordered if len(ordered) <= 2 * _KEPT_CHAINS else ordered[:_KEPT_CHAINS] + ordered[-_KEPT_CHAINS:])


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
    if match["message"] is None and not follows_frame and match["type"] not in ("MemoryError", "KeyboardInterrupt"):
        return None
    return None if match["type"].endswith("Warning") and not follows_frame else match


def _match_of(text: str) -> re.Match[str] | None:
    if not _WORD.search(text):
        return None
    return _RAISED.match(text) or _WHAT.match(text)


def _is_frame(text: str) -> bool:
    return bool(_FRAME.match(text)) or text.startswith(("    ", "╰"))


def _message_end(stream: list[PrintedLine], at: int) -> int:
    takes_blank = bool(_LONG_MESSAGE.search(stream[at].text.partition(":")[2]))
    end = at + 1
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
        frames=own,
        printed=(*own, stream[at].text, *body),
        chained=any(_LINK.match(line.text) for line in above),
        ignored=any(_IGNORED.match(line.text) for line in above[max(0, begin - 2) :]),
        has_header=bool(headers),
        rank=stream[at].rank,
    )
