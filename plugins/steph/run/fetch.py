"""Downloads one pinned snapshot in a process of its own: `python -P -m steph.run.fetch PARENT REQUEST`.

A process, because neither huggingface_hub's threads nor its Rust transport can be stopped at a deadline, and because
their time-outs are read from the environment at import. It ends, and takes its half-written files with it, on SIGTERM
and when the process PARENT ends. One JSON line comes back on stdout: a path or a failure.

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from steph.base.messages import Message, say, verbatim
from steph.base.terms import Cause
from steph.base.text import LINE_CHARS, one_line
from steph.run.processes import set_parent_death_signal

# class, cause, message, the message's values, whether asking for another model would fail the same way; a subclass
# stands before its base (GatedRepo is a RepositoryNotFound)
_BY_CLASS = (
    ("OfflineModeIsEnabled", Cause.HUB_UNREACHABLE, "hub.offline", "hub", True),
    ("GatedRepoError", Cause.HUB_GATED, "hub.terms", "model page", False),
    ("DisabledRepoError", Cause.HUB_NOT_FOUND, "hub.disabled", "model hub", False),
    ("LocalTokenNotFoundError", Cause.HUB_GATED, "hub.no_token", "model", False),
    ("RevisionNotFoundError", Cause.HUB_NOT_FOUND, "hub.revision_gone", "model hub", False),
    ("RemoteEntryNotFoundError", Cause.HUB_NOT_FOUND, "hub.file_gone", "model hub", False),
    ("HFValidationError", Cause.HUB_NOT_FOUND, "hub.no_name", "model error", False),
    ("JSONDecodeError", Cause.HUB_UNREACHABLE, "hub.no_hub", "hub", True),
    ("UnicodeDecodeError", Cause.HUB_UNREACHABLE, "hub.no_hub", "hub", True),
    ("FileMetadataError", Cause.HUB_UNREACHABLE, "hub.no_hub", "hub", True),
    ("TooManyRedirects", Cause.HUB_UNREACHABLE, "hub.no_hub", "hub", True),
    ("ProxyError", Cause.HUB_UNREACHABLE, "hub.proxy", "hub error", True),
    ("TimeoutException", Cause.HUB_UNREACHABLE, "hub.no_answer", "hub seconds", True),
)


@dataclass(frozen=True, slots=True)
class HubFailure:
    """Why a model can't be had: `message` is one line of the Hub's trouble, or what a folder here lacks.

    `is_endpoint_wide`: the Hub itself can't be reached, so that asking it for another model would fail the same way.
    """

    cause: Cause
    message: Message
    is_endpoint_wide: bool = False


class HubError(Exception):
    """One request or download failed; `failure` holds its cause."""

    def __init__(self, failure: HubFailure) -> None:
        self.failure = failure
        super().__init__(failure.message)


def main(parent: int, asked: dict[str, Any]) -> int:
    """Download what is asked for; 0 with a path, 1 with a failure on stdout.

    `asked`: `name`, `revision` (a commit), `files` (by their names in the repository), `endpoint`, `cache_dir` and
    `timeout_seconds` (what the client gives a request).
    """
    name, files, seconds = asked.pop("name"), asked.pop("files"), asked.pop("timeout_seconds")
    signal.signal(signal.SIGTERM, _stop)
    set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        _stop()
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(name, allow_patterns=files, max_workers=4, **asked)
        print(json.dumps({"path": str(path)}), flush=True)
        return 0
    except Exception as error:
        failure = classify(error, name=name, endpoint=asked["endpoint"], timeout_seconds=seconds)
    print(json.dumps({**asdict(failure), "message": failure.message.model_dump(mode="json")}), flush=True)
    return 1


def _stop(*_signal: object) -> NoReturn:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = link.readlink()
            if target.name.endswith(".incomplete"):
                target.unlink()
    os._exit(128 + signal.SIGTERM)


def classify(error: BaseException, *, name: str, endpoint: str, timeout_seconds: float) -> HubFailure:
    """Say what an exception means for model `name` at `endpoint`; `timeout_seconds` is what a request was given."""
    if isinstance(error, HubError):
        return error.failure
    endpoint = one_line(endpoint)
    for link in _chain(error):
        for kind, cause, said, needs, is_wide in _BY_CLASS:
            if kind in {cls.__name__ for cls in type(link).__mro__}:
                values = {
                    "model": repr(name) if kind == "HFValidationError" else name,
                    "hub": endpoint,
                    "page": f"{endpoint}/{name}",
                    "error": _words(link),
                    "seconds": timeout_seconds,
                }
                return HubFailure(cause, say(said, **{need: values[need] for need in needs.split()}), is_wide)
        if failure := _by_status(link, name, endpoint):
            return failure
    for link in _chain(error):
        if failure := _by_system(link, endpoint):
            return failure
    return HubFailure(Cause.OTHER, verbatim(f"{name}: {type(error).__name__}: {_words(error, LINE_CHARS)}"))


def _words(error: BaseException, width: int = 160) -> str:
    """The error's text in one line, without the token that was sent."""
    from huggingface_hub import get_token

    token = get_token()
    return one_line(str(error).replace(token, "***") if token else error, width)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from: huggingface_hub wraps its own errors in LocalEntryNotFoundError."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _by_status(error: BaseException, name: str, endpoint: str) -> HubFailure | None:
    """What an answer's status means, where the error has an answer."""
    response: Any = None
    with contextlib.suppress(RuntimeError):  # which httpx raises for a `response` that was never set
        response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    no_repository = any(cls.__name__ == "RepositoryNotFoundError" for cls in type(error).__mro__)
    if no_repository or status == 404:
        gone = say("hub.private" if status == 401 else "hub.no_model", model=name, hub=endpoint)
        return HubFailure(Cause.HUB_NOT_FOUND, gone)
    if not isinstance(status, int):
        return None
    if status == 401:
        return HubFailure(Cause.HUB_GATED, say("hub.token_refused", hub=endpoint))
    if status == 403:
        return HubFailure(Cause.HUB_GATED, say("hub.forbidden", model=name, hub=endpoint))
    if status == 429:
        # `RateLimit: "api";r=0;t=55` (IETF draft; the Hub's) or `Retry-After: 55`
        limit = re.search(r";\s*t\s*=\s*(\d+)", response.headers.get("ratelimit", ""))
        after = limit.group(1) if limit else response.headers.get("retry-after", "").strip()
        when = say("hub.in_seconds", seconds=int(after)) if after.isdigit() else say("hub.later")
        return HubFailure(Cause.HUB_UNREACHABLE, say("hub.too_many", hub=endpoint, when=when), is_endpoint_wide=True)
    if status >= 500:
        out_of_order = say("hub.out_of_order", hub=endpoint, status=status)
        return HubFailure(Cause.HUB_UNREACHABLE, out_of_order, is_endpoint_wide=True)
    said = say("hub.status", hub=endpoint, status=status, model=name, error=_words(error))
    return HubFailure(Cause.HUB_UNREACHABLE, said)


def _by_system(error: BaseException, endpoint: str) -> HubFailure | None:
    """Errors of the machine below the HTTP client; the client's own class only says that there was one."""
    names = {cls.__name__ for cls in type(error).__mro__}
    text, line, number = str(error), _words(error), getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return HubFailure(Cause.DISK_FULL, say("hub.no_space", error=text))
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return HubFailure(Cause.OTHER, say("hub.no_write", error=text))
    is_wide = True
    if isinstance(error, socket.gaierror) or "name resolution" in text or "Name or service not known" in text:
        said = say("hub.no_name_of_host", hub=endpoint)
    elif isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
        said = say("hub.certificate", hub=endpoint, error=line)
    elif isinstance(error, ConnectionRefusedError) or "Connection refused" in text:
        said = say("hub.refused", hub=endpoint)
    elif isinstance(error, TimeoutError):
        said = say("hub.timed_out", hub=endpoint)
    elif names & {"NetworkError", "RemoteProtocolError", "ConnectionError"}:
        said, is_wide = say("hub.broke_off", hub=endpoint, error=line), "ConnectError" in names
    elif "Consistency check failed" in text or "XetDownloadError" in names:
        said, is_wide = say("hub.cut", hub=endpoint, error=line), False
    else:
        return None
    return HubFailure(Cause.HUB_UNREACHABLE, said, is_wide)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
