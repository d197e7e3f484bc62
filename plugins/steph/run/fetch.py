"""Downloads one pinned snapshot in a process of its own: `python -P -m steph.run.fetch`, the request on stdin.

A process, because neither huggingface_hub's threads nor its Rust transport can be stopped at a deadline, and because
their time-outs are read from the environment at import. It ends, and takes its half-written files with it, on SIGTERM
and when stdin closes, so it never outlives whoever asked. One JSON line comes back on stdout: a path or a failure.

`classify` gives one clear line and a cause, without any token, for everything that can go wrong between here and the
Hub. Classes are told by name: huggingface_hub 1 stands on httpx, 2 on httpx2, and a name is what both have in common.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

from steph.base.messages import Message, say, verbatim
from steph.base.terms import Cause
from steph.base.text import one_line

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


_WAIT = re.compile(r";\s*t\s*=\s*(\d+)")


@dataclass(frozen=True, slots=True)
class HubFailure:
    """Why a model can't be had: `message` is one line of the Hub's trouble, or what a folder here lacks.

    `is_endpoint_wide`: the Hub itself can't be reached, so that asking it for another model would fail the same way.
    """

    cause: Cause
    message: Message
    is_endpoint_wide: bool = False


def no_answer(endpoint: str, seconds: float) -> HubFailure:
    """The failure of a Hub that accepted a request and never answered it."""
    return _unreachable(say("hub.no_answer", hub=endpoint, seconds=seconds), wide=True)


def offline(endpoint: str) -> HubFailure:
    """The failure of a Hub that is not asked at all."""
    return _unreachable(say("hub.offline", hub=endpoint), wide=True)


def classify(error: BaseException, *, name: str, endpoint: str, timeout_seconds: float) -> HubFailure:
    """Say what an exception means for model `name` at `endpoint`; `timeout_seconds` is what a request was given."""
    endpoint = one_line(endpoint)
    for link in _chain(error):
        failure = _by_class(link, name, endpoint, timeout_seconds) or _by_status(link, name, endpoint)
        if failure:
            return failure
    for link in _chain(error):
        failure = _by_system(link, endpoint)
        if failure:
            return failure
    return HubFailure(Cause.OTHER, verbatim(f"{name}: {type(error).__name__}: {one_line(error)}"))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from: huggingface_hub wraps its own errors in LocalEntryNotFoundError."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _class_names(error: BaseException) -> frozenset[str]:
    return frozenset(cls.__name__ for cls in type(error).__mro__)


def _by_class(error: BaseException, name: str, endpoint: str, timeout_seconds: float) -> HubFailure | None:
    """Errors whose class says it all; a subclass stands before its base (GatedRepo is a RepositoryNotFound)."""
    names = _class_names(error)
    if "OfflineModeIsEnabled" in names:
        return offline(endpoint)
    if "GatedRepoError" in names:
        return HubFailure(Cause.HUB_GATED, say("hub.terms", model=name, page=f"{endpoint}/{name}"))
    if "DisabledRepoError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, say("hub.disabled", model=name, hub=endpoint))
    if "LocalTokenNotFoundError" in names:
        return HubFailure(Cause.HUB_GATED, say("hub.no_token", model=name))
    if "RevisionNotFoundError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, say("hub.revision_gone", model=name, hub=endpoint))
    if "RemoteEntryNotFoundError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, say("hub.file_gone", model=name, hub=endpoint))
    if "RepositoryNotFoundError" in names:
        return _not_found(error, name, endpoint)
    if "HFValidationError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, say("hub.no_name", model=repr(name), error=one_line(error, 160)))
    if names & {"JSONDecodeError", "UnicodeDecodeError", "FileMetadataError", "TooManyRedirects"}:
        return _unreachable(say("hub.no_hub", hub=endpoint), wide=True)
    if "ProxyError" in names:
        return _unreachable(say("hub.proxy", hub=endpoint, error=one_line(error, 160)), wide=True)
    if "TimeoutException" in names:
        return no_answer(endpoint, timeout_seconds)
    return None


def _not_found(error: BaseException, name: str, endpoint: str) -> HubFailure:
    said = "hub.private" if _status(error) == HTTPStatus.UNAUTHORIZED else "hub.no_model"
    return HubFailure(Cause.HUB_NOT_FOUND, say(said, model=name, hub=endpoint))


def _by_status(error: BaseException, name: str, endpoint: str) -> HubFailure | None:
    status = _status(error)
    if status is None:
        return None
    if status == HTTPStatus.UNAUTHORIZED:
        return HubFailure(Cause.HUB_GATED, say("hub.token_refused", hub=endpoint))
    if status == HTTPStatus.FORBIDDEN:
        return HubFailure(Cause.HUB_GATED, say("hub.forbidden", model=name, hub=endpoint))
    if status == HTTPStatus.NOT_FOUND:
        return _not_found(error, name, endpoint)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = _wait_seconds(error)
        when = say("hub.later") if seconds is None else say("hub.in_seconds", seconds=seconds)
        return _unreachable(say("hub.too_many", hub=endpoint, when=when), wide=True)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _unreachable(say("hub.out_of_order", hub=endpoint, status=status), wide=True)
    return _unreachable(say("hub.status", hub=endpoint, status=status, model=name, error=one_line(error, 160)))


def _by_system(error: BaseException, endpoint: str) -> HubFailure | None:
    """Errors of the machine below the HTTP client; the client's own class only says that there was one."""
    names = _class_names(error)
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return HubFailure(Cause.DISK_FULL, say("hub.no_space", error=text))
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return HubFailure(Cause.OTHER, say("hub.no_write", error=text))
    if isinstance(error, socket.gaierror) or "name resolution" in text or "Name or service not known" in text:
        return _unreachable(say("hub.no_name_of_host", hub=endpoint), wide=True)
    if isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
        return _unreachable(say("hub.certificate", hub=endpoint, error=one_line(text, 120)), wide=True)
    if isinstance(error, ConnectionRefusedError) or "Connection refused" in text:
        return _unreachable(say("hub.refused", hub=endpoint), wide=True)
    if isinstance(error, TimeoutError):
        return _unreachable(say("hub.timed_out", hub=endpoint), wide=True)
    if names & {"NetworkError", "RemoteProtocolError", "ConnectionError"}:
        said = say("hub.broke_off", hub=endpoint, error=one_line(text, 160))
        return _unreachable(said, wide="ConnectError" in names)
    if "Consistency check failed" in text or "XetDownloadError" in names:
        return _unreachable(say("hub.cut", hub=endpoint, error=one_line(text, 160)))
    return None


def _unreachable(message: Message, *, wide: bool = False) -> HubFailure:
    return HubFailure(Cause.HUB_UNREACHABLE, message, wide)


def _response(error: BaseException) -> Any:  # noqa: ANN401 - httpx.Response or httpx2.Response
    # httpx raises RuntimeError for a `response` that was never set
    try:
        return getattr(error, "response", None)
    except RuntimeError:
        return None


def _status(error: BaseException) -> int | None:
    status = getattr(_response(error), "status_code", None)
    return status if isinstance(status, int) else None


def _wait_seconds(error: BaseException) -> int | None:
    """Seconds that a 429 asks for: `RateLimit: "api";r=0;t=55` (IETF draft; the Hub's) or `Retry-After: 55`."""
    headers = _response(error).headers
    match = _WAIT.search(headers.get("ratelimit", ""))
    if match:
        return int(match.group(1))
    after = headers.get("retry-after", "").strip()
    return int(after) if after.isdigit() else None


if __name__ == "__main__":
    sys.exit(main())
