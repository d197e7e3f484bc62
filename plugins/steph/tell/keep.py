"""Writes a generated file at once or not at all, and renews its generated parts; what a person wrote in it stays.

`renew` takes a path and a function from the file's old bytes to its new ones. A writer that is killed leaves the old
file whole and at most a hidden `.part` beside it, which the next one clears away.

`merge` is such a function. A generated part stands between two lines of its own,

    <!-- steph:begin ID COPY sha256=DIGEST -->
    <!-- steph:end ID COPY -->

and the digest tells whether a person edited it since. Where the marks leave doubt (typed by hand, doubled, without an
end) everything there is kept as it is and the part is written anew at the end, under a copy number of its own, which
from then on is the one that is renewed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

from steph.base.messages import say
from steph.base.messages import text as words_of

_MARK = re.compile(
    r"^\ufeff?<!-- steph:(?P<kind>begin|end) (?P<id>[a-z0-9_]+) (?P<copy>\d{1,6})"
    r"(?: sha256=(?P<digest>[0-9a-f]{64}))? -->[ \t]*$"
)


@dataclass(frozen=True)
class Part:
    """One generated part; `notes` goes below it once, when it is first written, and is a person's from then on."""

    id: str
    text: str
    notes: str = ""
    translations: tuple[str, ...] = ()  # of the notes: where one stands as it was written, it becomes `notes`


@dataclass(frozen=True)
class Block:
    """A generated part as found in a file: the line numbers of its marks, and what stands between them."""

    id: str
    copy: int
    begin: int
    end: int
    digest: str
    text: str

    @property
    def is_edited(self) -> bool:
        """Whether the text is no longer the one that was generated, line ends and trailing blanks aside."""
        return digest_of(self.text) != self.digest


class _Mark(NamedTuple):
    line: int
    kind: str
    id: str
    copy: int
    digest: str | None


def digest_of(text: str) -> str:
    """The sha256 of a generated text, blind to line ends, trailing blanks and outer blank lines."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").strip().split("\n")]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def blocks_in(existing: bytes) -> tuple[Block, ...]:
    """Find every generated part with both its marks, copies included, in the file's order."""
    return _blocks(_lines(existing.decode("utf-8", "surrogateescape")))


def merge(existing: bytes | None, parts: Sequence[Part]) -> bytes:
    """The file with every part renewed in its place and all else as it was.

    A part that a person edited is moved out below itself first. A part that has no place of its own, or several, is
    written at the end.
    """
    text = (existing or b"").decode("utf-8", "surrogateescape")
    lines = _lines(text)
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    marks = _marks(lines)
    times = Counter((mark.id, mark.copy) for mark in marks)
    # of each id, the last block whose marks stand in the file exactly once
    live = {block.id: block for block in _blocks(lines) if times[block.id, block.copy] == 2}
    missing = []
    for part in parts:
        if part.id not in live:
            copy = next(number for number in count(1) if (part.id, number) not in times)
            missing.append(_rendered(part, copy, newline) + _lines_as(part.notes, newline))
    for block in sorted(live.values(), key=lambda block: block.begin, reverse=True):
        part_here = next((part for part in parts if part.id == block.id), None)
        if part_here is not None:
            following = min((mark.line for mark in marks if mark.line > block.end), default=len(lines))
            own = _translated("".join(lines[block.end + 1 : following]), part_here, newline)
            lines[block.begin : following] = [_renewed(lines, block, part_here, newline), own]
    whole = "".join(lines)
    for added in missing:  # below, after a blank line, without touching what is there
        if whole.strip("\ufeff"):
            whole += newline if whole.endswith("\n") else newline * 2
        whole += added
    return whole.encode("utf-8", "surrogateescape")


def _lines(text: str) -> list[str]:
    """Split at line feeds alone, each line with its end."""
    *whole, rest = text.split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])


def _marks(lines: Sequence[str]) -> list[_Mark]:
    found = []
    for number, line in enumerate(lines):
        if "<!-- steph:" in line and (match := _MARK.match(line.rstrip("\r\n"))):
            found.append(_Mark(number, match["kind"], match["id"], int(match["copy"]), match["digest"]))
    return found


def _blocks(lines: Sequence[str]) -> tuple[Block, ...]:
    marks = _marks(lines)
    return tuple(
        Block(begin.id, begin.copy, begin.line, end.line, begin.digest, "".join(lines[begin.line + 1 : end.line]))
        for begin, end in pairwise(marks)
        if begin.kind == "begin" and end.kind == "end" and (begin.id, begin.copy) == (end.id, end.copy) and begin.digest
    )


def _rendered(part: Part, copy: int, newline: str) -> str:
    body = "\n".join(line if not _MARK.match(line) else f" {line}" for line in part.text.strip().split("\n"))
    begin = f"<!-- steph:begin {part.id} {copy} sha256={digest_of(body)} -->"
    return _lines_as(f"{begin}\n{body}\n<!-- steph:end {part.id} {copy} -->\n", newline)


def _renewed(lines: Sequence[str], block: Block, part: Part, newline: str) -> str:
    rendered = _rendered(part, block.copy, newline)
    bom = "\ufeff" if lines[block.begin].startswith("\ufeff") else ""
    if not block.is_edited:
        last = lines[block.end]
        ending = last[len(last.rstrip("\r\n")) :]
        return bom + rendered.rstrip("\r\n") + ending
    own = block.text if block.text.endswith("\n") else block.text + newline
    return f"{bom}{rendered}{newline}#### {words_of('report.evacuated')}{newline}{newline}{own}"


def _translated(own: str, part: Part, newline: str) -> str:
    """What a person has below a part, with the suite's own invitation in the part's language."""
    for notes in part.translations:
        given = _lines_as(notes.strip("\n"), newline)
        if given in own:
            return own.replace(given, _lines_as(part.notes.strip("\n"), newline), 1)
    return own


def _lines_as(text: str, newline: str) -> str:
    return text if newline == "\n" else text.replace("\n", newline)


LOCK_SECONDS = 10.0  # a writer needs milliseconds
_MOST_WRITES = 5
_PART = ".part"


def renew(path: Path, renewed: Callable[[bytes | None], bytes]) -> Path:
    """Replace the file by what `renewed` makes of its bytes (None: there is none); give the file's real path.

    A file that changes meanwhile is read again, so that what an editor saved is not lost. A link stays one, and the
    file behind it keeps mode and owner. Raises OSError where the file can't be read or replaced.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_writer(target):
        for _ in range(_MOST_WRITES):
            before = _state_of(target)
            existing = target.read_bytes() if before else None
            content = renewed(existing)
            if content == existing or _replace(target, content, before):
                return target
    raise OSError(say("report.keeps_changing", path=target))


@contextlib.contextmanager
def _one_writer(target: Path) -> Iterator[None]:
    """Hold the folder's lock, and clear away what a killed writer left; without the lock nothing is cleared."""
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        if _locked(folder):
            with contextlib.suppress(OSError):  # another user's in a shared folder stays
                for path in target.parent.iterdir():
                    if path.name.startswith(f".{target.name}.") and path.name.endswith(_PART):
                        path.unlink()
        yield
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    """Whether the lock was had: not on a file system without locks, nor where a stopped writer keeps it too long."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        except OSError:
            return False


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _replace(target: Path, content: bytes, before: tuple[int, int, int] | None) -> bool:
    """Replace the file at once, unless it changed since."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{_PART}")
    # a new report is for whom the umask says; what replaces a closed one must not be open for a moment
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if before else 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before:
            state = target.stat()
            with contextlib.suppress(OSError):  # root in a container writes people's files, others can't give them away
                os.chown(temporary, state.st_uid, state.st_gid)
            temporary.chmod(stat.S_IMODE(state.st_mode))
        if _state_of(target) != before:
            return False
        temporary.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return True
