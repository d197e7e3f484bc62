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

from steph.base.messages import Message, catalog, placeholders, say, verbatim
from steph.base.terms import Cause
from steph.base.text import LINE_CHARS, one_line
from steph.run.processes import set_parent_death_signal

_Row = tuple[Cause, str, bool]  # cause, message, whether asking for another model would fail the same way
_NO_HUB: _Row = (Cause.HUB_UNREACHABLE, "hub.no_hub", True)
# a subclass stands before its base (GatedRepo is a RepositoryNotFound)
_BY_CLASS: dict[str, _Row] = {
    "OfflineModeIsEnabled": (Cause.HUB_UNREACHABLE, "hub.offline", True),
    "GatedRepoError": (Cause.HUB_GATED, "hub.terms", False),
    "DisabledRepoError": (Cause.HUB_NOT_FOUND, "hub.disabled", False),
    "LocalTokenNotFoundError": (Cause.HUB_GATED, "hub.no_token", False),
    "RevisionNotFoundError": (Cause.HUB_NOT_FOUND, "hub.revision_gone", False),
    "RemoteEntryNotFoundError": (Cause.HUB_NOT_FOUND, "hub.file_gone", False),
    "HFValidationError": (Cause.HUB_NOT_FOUND, "hub.no_name", False),
    **dict.fromkeys(("JSONDecodeError", "UnicodeDecodeError", "FileMetadataError", "TooManyRedirects"), _NO_HUB),
    "ProxyError": (Cause.HUB_UNREACHABLE, "hub.proxy", True),
    "TimeoutException": (Cause.HUB_UNREACHABLE, "hub.no_answer", True),
}
_BY_STATUS: dict[int, _Row] = {
    401: (Cause.HUB_GATED, "hub.token_refused", False),
    403: (Cause.HUB_GATED, "hub.forbidden", False),
    404: (Cause.HUB_NOT_FOUND, "hub.no_model", False),
    429: (Cause.HUB_UNREACHABLE, "hub.too_many", True),
}


@dataclass(frozen=True, slots=True)
class HubFailure:
    """Why a model can't be had."""

    cause: Cause
    message: Message  # one line of the Hub's trouble, or what a folder here lacks
    is_endpoint_wide: bool = False  # the Hub itself fails: asking it for another model would end the same way


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
    links = list(_chain(error))
    # what the client says of an answer comes before what the machine says below it
    rows = ((link, row) for look in (_by_client, _by_system) for link in links if (row := look(link)) is not None)
    link, (cause, said, is_wide) = next(rows, (error, (Cause.OTHER, "", False)))
    if not said:
        return HubFailure(cause, verbatim(f"{name}: {type(error).__name__}: {_words(error, LINE_CHARS)}"))
    hub, response = one_line(endpoint), _response_of(link)
    values = {
        "model": repr(name) if said == "hub.no_name" else name,
        "hub": hub,
        "page": f"{hub}/{name}",
        "error": _words(link),
        "seconds": timeout_seconds,
        "status": getattr(response, "status_code", None),
    }
    if said == "hub.too_many":
        # `RateLimit: "api";r=0;t=55` (IETF draft; the Hub's) or `Retry-After: 55`
        limit = re.search(r";\s*t\s*=\s*(\d+)", response.headers.get("ratelimit", ""))
        after = limit.group(1) if limit else response.headers.get("retry-after", "").strip()
        values["when"] = say("hub.in_seconds", seconds=int(after)) if after.isdigit() else say("hub.later")
    return HubFailure(cause, say(said, **{need: values[need] for need in placeholders(catalog("en")[said])}), is_wide)


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


def _response_of(error: BaseException) -> Any:  # noqa: ANN401 - of httpx
    with contextlib.suppress(RuntimeError):  # which httpx raises for a `response` that was never set
        return getattr(error, "response", None)
    return None


def _by_client(error: BaseException) -> _Row | None:
    """The row of the client's error by its class, or else by the status of an answer."""
    kinds, status = {cls.__name__ for cls in type(error).__mro__}, getattr(_response_of(error), "status_code", None)
    for kind, row in _BY_CLASS.items():
        if kind in kinds:
            return row
    if "RepositoryNotFoundError" in kinds:
        return Cause.HUB_NOT_FOUND, "hub.private" if status == 401 else "hub.no_model", False
    if not isinstance(status, int):
        return None
    is_down = status >= 500
    return _BY_STATUS.get(status, (Cause.HUB_UNREACHABLE, "hub.out_of_order" if is_down else "hub.status", is_down))


def _by_system(error: BaseException) -> _Row | None:
    """Errors of the machine below the HTTP client; the client's own class only says that there was one."""
    names, text = {cls.__name__ for cls in type(error).__mro__}, str(error)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return Cause.DISK_FULL, "hub.no_space", False
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return Cause.OTHER, "hub.no_write", False
    said, is_wide = None, True
    if isinstance(error, socket.gaierror) or "name resolution" in text or "Name or service not known" in text:
        said = "hub.no_name_of_host"
    elif isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
        said = "hub.certificate"
    elif isinstance(error, ConnectionRefusedError) or "Connection refused" in text:
        said = "hub.refused"
    elif isinstance(error, TimeoutError):
        said = "hub.timed_out"
    elif names & {"NetworkError", "RemoteProtocolError", "ConnectionError"}:
        said, is_wide = "hub.broke_off", "ConnectError" in names
    elif "Consistency check failed" in text or "XetDownloadError" in names:
        said, is_wide = "hub.cut", False
    return (Cause.HUB_UNREACHABLE, said, is_wide) if said else None


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
