"""Downloads one pinned snapshot in a process of its own: `python -P -m steph.run.fetch`, the request on stdin.

A process, because neither huggingface_hub's threads nor its Rust transport can be stopped at a deadline, and because
their time-outs are read from the environment at import. It ends, and takes its half-written files with it, on SIGTERM
and when stdin closes, so it never outlives whoever asked. One JSON line comes back on stdout: a path or a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from steph.run.hub_failure import HubFailure, classify

_TRIES = 3
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What to download: `files` by their names in the repository, `revision` a commit."""

    name: str
    revision: str
    files: tuple[str, ...]
    endpoint: str
    cache_dir: str
    token: str | bool | None
    request_timeout_seconds: float

    def to_json(self) -> str:
        """One line for the child's stdin, token included: never to be logged."""
        return json.dumps(asdict(self))


def main() -> int:
    """Download what stdin asks for; 0 with a path, 1 with a failure on stdout."""
    fields = json.loads(sys.stdin.readline())
    request = FetchRequest(**{**fields, "files": tuple(fields["files"])})
    signal.signal(signal.SIGTERM, lambda _signal, _frame: _stop())
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    try:
        answer: dict[str, object] = {"path": fetch(request)}
    except Exception as error:
        failure = classify(
            error,
            name=request.name,
            endpoint=request.endpoint,
            timeout_seconds=request.request_timeout_seconds,
        )
        answer = {**asdict(failure), "message": failure.message.model_dump(mode="json")}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0 if "path" in answer else 1


def fetch(request: FetchRequest) -> str:
    """Download and return the snapshot's folder; a broken connection is tried again, and whole files are kept."""
    from huggingface_hub import snapshot_download

    for left in reversed(range(_TRIES)):
        try:
            return str(
                snapshot_download(
                    request.name,
                    revision=request.revision,
                    allow_patterns=list(request.files),
                    endpoint=request.endpoint,
                    cache_dir=request.cache_dir,
                    token=request.token,
                    max_workers=4,
                )
            )
        except Exception as error:
            if left == 0 or not _is_broken_connection(error, request):
                raise
            sys.stderr.write(f"{type(error).__name__}: trying again\n")
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _is_broken_connection(error: Exception, request: FetchRequest) -> bool:
    failure: HubFailure = classify(
        error, name=request.name, endpoint=request.endpoint, timeout_seconds=request.request_timeout_seconds
    )
    return failure.cause == "hub_unreachable" and not failure.is_endpoint_wide


def _stop_when_orphaned() -> None:
    while sys.stdin.readline():
        pass
    _stop()


def _stop() -> NoReturn:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = link.readlink()
            if target.name.endswith(".incomplete"):
                target.unlink()
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
