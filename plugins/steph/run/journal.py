"""The record's folder on disk: append events, replace `record.json`, read records again, clear up after earlier runs.

`events.jsonl` is the source: every event is one line, written and flushed to the disk as it happens. Everything else in
the folder is computed from it. A spare file is given up when the disk is full, so that the end of the story still fits.

Clearing up is twofold. A killed run's supervisor may still be ending its child, or there are orphans where that was
killed too: they are found by the environment entry that every process of an attempt carries, below one folder of
records. And of all attempts the newest LOGS_KEPT keep their logs. Of an older one the child's output goes; what the
report is made from stays (`events.jsonl`, memory samples, probes), and so does what was set aside (`before/`), which
may be a person's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from steph.base.files import write_whole
from steph.base.messages import NOTHING, Message, say
from steph.base.terms import AnyStage
from steph.base.text import redact_tree
from steph.record.events import EVENT, CrashFound, Event, RecordOpened, fold, newer_version
from steph.record.values import RECORD_VERSION, Record
from steph.run import output, processes

EVENTS = "events.jsonl"
RECORD = "record.json"
SPARE_BYTES = 1 << 20
LOGS_KEPT = 60
LOG_PATTERNS = ("output*.log", "stdout*.log", "*.times", "supervisor.log")
_RECORD_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")  # as `new_record_id` makes it
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEFTOVERS_POLL_SECONDS = 0.05
_LEFTOVERS_KILL_SECONDS = 5.0


class JournalError(RuntimeError):
    """A record can't be read or written; the message names the file."""


def now() -> str:
    """The time in UTC as every event states it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_record_id() -> str:
    """An id that sorts by time, two runs of one second too: its last four digits are 65,536ths of a second."""
    moment = datetime.now(UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{moment.microsecond * 65_536 // 1_000_000:04x}"


class Journal:
    """One record's folder, held for writing by one conductor at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, made where there is none; raises JournalError, also where another run writes into it."""
        self.folder = folder
        self._spare = folder / "spare"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = os.open(folder / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except BlockingIOError as error:
            raise JournalError(say("record.is_written", folder=folder)) from error
        except OSError as error:
            refused = "record.no_room" if error.errno in _FULL else "record.not_writable"
            raise JournalError(say(refused, folder=folder, error=error.strerror)) from error
        with contextlib.suppress(OSError):
            self._spare.write_bytes(b"\0" * SPARE_BYTES)
        with contextlib.suppress(OSError):
            self._write(b"")
        self.events = list(read_events(folder))

    def append(self, event: Event) -> None:
        """Write one event to the disk; raises JournalError, also where the record was deleted meanwhile."""
        try:
            is_there = os.path.samestat((self.folder / EVENTS).stat(), os.fstat(self._file))
        except OSError:
            is_there = False
        if not is_there:
            raise JournalError(say("record.gone", folder=self.folder))
        plain = redact_tree(event.model_dump(mode="json"))
        line, told = json.dumps(plain, ensure_ascii=False).encode() + b"\n", EVENT.validate_python(plain)
        try:
            try:
                self._write(line)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._spare.unlink(missing_ok=True)
                self._write(line)
        except OSError as error:
            if error.errno in _FULL:
                raise JournalError(say("record.full", path=self.folder / EVENTS, error=error.strerror)) from error
            raise JournalError(f"{self.folder / EVENTS}: {error.strerror}") from error
        self.events.append(told)

    def _write(self, data: bytes) -> None:
        """Bring `data` to the disk, behind the end of a line that a full disk or a crash tore."""
        size = os.fstat(self._file).st_size
        is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        view = memoryview(b"\n" + data if is_torn else data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def record(self) -> Record:
        """The record as the events so far tell it."""
        return fold(self.events, live=True)

    def close(self) -> None:
        """Write `record.json`, give the spare room and the lock back."""
        with contextlib.suppress(OSError):
            self._spare.unlink(missing_ok=True)
            write_record(self.folder, fold(self.events))
        os.close(self._file)
        self._lock.close()


def read_events(folder: Path) -> Iterator[Event]:
    """The journal's events; a line that a crash or a full disk cut is passed over."""
    try:
        data = (folder / EVENTS).read_bytes()
    except OSError as error:
        raise JournalError(f"{folder / EVENTS}: {error.strerror}") from error
    for number, line in enumerate(data.split(b"\n")):
        try:
            yield EVENT.validate_json(line)
        except ValidationError as error:
            if number == 0 and (reason := _foreign_beginning(line, error)):
                raise JournalError(say("record.unreadable", path=folder / EVENTS, reason=reason)) from error


def _foreign_beginning(line: bytes, error: ValidationError) -> Message:
    """Why another version's first line is not understood; nothing where it is no first line at all."""
    with contextlib.suppress(ValueError, RecursionError):
        told = json.loads(line)
        if isinstance(told, dict) and told.get("event") == "record_opened":
            version, first = told.get("version"), error.errors()[0]
            if isinstance(version, int) and version > RECORD_VERSION:
                return newer_version(version)
            return say("record.foreign", key=".".join(map(str, first["loc"][1:])), reason=first["msg"])
    return NOTHING


def read_record(folder: Path) -> Record:
    """The record of a folder, from its events alone; raises JournalError where they do not tell one."""
    try:
        state = (folder / EVENTS).stat()
        return _record_of(folder, state.st_size, state.st_mtime_ns, is_live(folder))
    except OSError as error:
        raise JournalError(say("record.damaged", path=folder / EVENTS, reason=error.strerror)) from error
    except ValueError as error:
        if state.st_size == 0:
            raise JournalError(say("record.empty", path=folder / EVENTS)) from error
        raise JournalError(say("record.unreadable", path=folder / EVENTS, reason=error)) from error


@lru_cache(maxsize=1024)
def _record_of(folder: Path, _size_bytes: int, _mtime_ns: int, live: bool) -> Record:
    """The record at this state of its journal: a session reads the history of old records at each of its reports."""
    return fold(read_events(folder), live=live)


def is_live(folder: Path) -> bool:
    """Whether a conductor holds this record now."""
    try:
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def write_record(folder: Path, record: Record) -> None:
    """Replace `record.json` atomically."""
    write_whole(folder / RECORD, json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n")


def record_folders(runs: Path) -> list[Path]:
    """All folders of records, oldest first; one that is called like a record is one, however damaged."""
    folders = (path for path in runs.glob("*") if path.is_dir())
    return sorted(path for path in folders if _RECORD_NAME.fullmatch(path.name) or (path / EVENTS).is_file())


def readable_records(runs: Path) -> list[tuple[Path, Record]]:
    """Every record that can be read, oldest first."""
    found = []
    for folder in record_folders(runs):
        with contextlib.suppress(JournalError):
            found.append((folder, read_record(folder)))
    return found


def stages_in_flight(record: Record) -> list[AnyStage]:
    """Stages that were begun and never ended."""
    return [stage for stage, result in record.results.items() if result.ended_at is None]


def settle_crash(journal: Journal, last_lines: dict[AnyStage, tuple[str, ...]]) -> None:
    """State in the journal which stages a killed run left in flight, with what they printed last."""
    for stage in stages_in_flight(fold(journal.events)):
        journal.append(CrashFound(at=now(), stage=stage, last_lines=last_lines.get(stage, ())))


def opened_event(record_id: str, context: object) -> RecordOpened:
    """The first event of a new record."""
    return RecordOpened.model_validate({"at": now(), "id": record_id, "context": context})


def end_leftovers(runs: Path, patience_seconds: float) -> tuple[int, ...]:
    """Leave no process of a dead record below `runs`; the pids of those that can't be ended.

    A supervisor among them gets `patience_seconds` to do it; whatever is left then or has none is killed. A record
    whose conductor lives is left alone.
    """
    prefix = b"STEPH_PROBE_DIR=" + os.fsencode(runs.resolve()) + b"/"
    kill_at = time.monotonic() + patience_seconds
    while True:
        found = []
        for stat in processes.all_processes().values():
            marks = [entry for entry in processes.environment_of(stat.pid) if entry.startswith(prefix)]
            if stat.alive and stat.pid != os.getpid() and marks:
                folder = Path(os.fsdecode(marks[0].partition(b"=")[2]))
                found += [] if is_live(folder.parent) else [stat]
        moment, words = time.monotonic(), (word for stat in found for word in processes.command_line(stat.pid))
        if not any(word.endswith("supervisor.py") for word in words):
            kill_at = min(kill_at, moment)
        if not found or moment > kill_at + _LEFTOVERS_KILL_SECONDS:
            return tuple(stat.pid for stat in found)
        for stat in found if moment >= kill_at else ():
            processes.send_signal(stat, signal.SIGKILL)
        time.sleep(_LEFTOVERS_POLL_SECONDS)


def prune_logs(runs: Path, kept: int = LOGS_KEPT) -> None:
    """Delete the logs of all but the newest attempts; a record that is being written, or can't be, is left alone."""
    written = []
    for record in record_folders(runs):
        for path in record.glob(f"*/{output.head_path(Path(), 'output')}") if not is_live(record) else ():
            with contextlib.suppress(OSError):
                written.append((path.stat().st_mtime, path.parent))
    for _, folder in sorted(written, reverse=True)[kept:]:
        for path in (path for pattern in LOG_PATTERNS for path in folder.glob(pattern)):
            with contextlib.suppress(OSError):
                path.unlink()


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total
