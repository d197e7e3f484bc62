"""One clear line and a cause for everything that can go wrong between here and the Hub.

Comes in: an exception of huggingface_hub or of the HTTP client below it. Goes out: a `HubFailure` without any token.
Classes are told by name: huggingface_hub 1 stands on httpx, 2 on httpx2, and a name is what the two have in common.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from steph.base.messages import Message
from steph.base.terms import Cause
from steph.base.text import one_line

_WAIT = re.compile(r";\s*t\s*=\s*(\d+)")


@dataclass(frozen=True, slots=True)
class HubFailure:
    """Why a model can't be had: `message` is one English line of the Hub's trouble, or what a folder here lacks.

    `is_endpoint_wide`: the Hub itself can't be reached, so that asking it for another model would fail the same way.
    """

    cause: Cause
    message: str | Message
    is_endpoint_wide: bool = False


def no_answer(endpoint: str, seconds: float) -> HubFailure:
    """The failure of a Hub that accepted a request and never answered it."""
    return _unreachable(f"{one_line(endpoint)} did not answer within {seconds:g} s", wide=True)


def offline(endpoint: str) -> HubFailure:
    """The failure of a Hub that is not asked at all."""
    return _unreachable(
        f"HF_HUB_OFFLINE is set, so {one_line(endpoint)} was not asked; unset it to go online", wide=True
    )


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
    return HubFailure(Cause.OTHER, f"{name}: {type(error).__name__}: {one_line(error)}")


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
        page = f"{endpoint}/{name}"
        return HubFailure(
            Cause.HUB_GATED, f"{name} is gated: accept its terms at {page}, then log in (`hf auth login` or HF_TOKEN)"
        )
    if "DisabledRepoError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, f"{name} was disabled on {endpoint} (403)")
    if "LocalTokenNotFoundError" in names:
        return HubFailure(Cause.HUB_GATED, f"{name}: a token was asked for but none is stored: run `hf auth login`")
    if "RevisionNotFoundError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, f"{name}: the revision is no longer on {endpoint}")
    if "RemoteEntryNotFoundError" in names:
        return HubFailure(Cause.HUB_NOT_FOUND, f"{name}: a file of the model is no longer on {endpoint}")
    if "RepositoryNotFoundError" in names:
        return _not_found(error, name, endpoint)
    if "HFValidationError" in names:
        return HubFailure(
            Cause.HUB_NOT_FOUND, f"{name!r} is no model name (organisation/model): {one_line(error, 160)}"
        )
    if names & {"JSONDecodeError", "UnicodeDecodeError", "FileMetadataError", "TooManyRedirects"}:
        return _unreachable(
            f"{endpoint} did not answer as the Hub does (a web page instead of model data?):"
            " a captive portal, a proxy's login page or a wrong HF_ENDPOINT",
            wide=True,
        )
    if "ProxyError" in names:
        return _unreachable(f"the proxy refused the way to {endpoint}: {one_line(error, 160)}", wide=True)
    if "TimeoutException" in names:
        return no_answer(endpoint, timeout_seconds)
    return None


def _not_found(error: BaseException, name: str, endpoint: str) -> HubFailure:
    if _status(error) == HTTPStatus.UNAUTHORIZED:
        return HubFailure(
            Cause.HUB_NOT_FOUND,
            f"{name} is not on {endpoint}, or is private and needs a token (401): check the name, or `hf auth login`",
        )
    return HubFailure(Cause.HUB_NOT_FOUND, f"{name} is not on {endpoint} (404): check the name")


def _by_status(error: BaseException, name: str, endpoint: str) -> HubFailure | None:
    status = _status(error)
    if status is None:
        return None
    if status == HTTPStatus.UNAUTHORIZED:
        return HubFailure(
            Cause.HUB_GATED, f"{endpoint} refused the token (401): log in again (`hf auth login`) or unset HF_TOKEN"
        )
    if status == HTTPStatus.FORBIDDEN:
        return HubFailure(
            Cause.HUB_GATED, f"{endpoint} forbids access to {name} (403): the token lacks the right to it"
        )
    if status == HTTPStatus.NOT_FOUND:
        return _not_found(error, name, endpoint)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = _wait_seconds(error)
        when = f"try again in {wait} s" if wait is not None else "try again later"
        return _unreachable(f"{endpoint} allows no more requests for now (429): {when}", wide=True)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _unreachable(f"{endpoint} is out of order ({status}): try again later", wide=True)
    return _unreachable(f"{endpoint} answered {status} for {name}: {one_line(error, 160)}")


def _by_system(error: BaseException, endpoint: str) -> HubFailure | None:
    """Errors of the machine below the HTTP client; the client's own class only says that there was one."""
    names = _class_names(error)
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return HubFailure(Cause.DISK_FULL, f"the disk is full: {one_line(text)}")
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return HubFailure(Cause.OTHER, f"the model cache can't be written: {one_line(text)}")
    if isinstance(error, socket.gaierror) or "name resolution" in text or "Name or service not known" in text:
        return _unreachable(
            f"the name of {endpoint} can't be resolved (DNS): no network, or a wrong address", wide=True
        )
    if isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
        return _unreachable(
            f"the certificate of {endpoint} is not trusted (a proxy or captive portal?): {one_line(text, 120)}",
            wide=True,
        )
    if isinstance(error, ConnectionRefusedError) or "Connection refused" in text:
        return _unreachable(f"{endpoint} refused the connection: nothing listens there", wide=True)
    if isinstance(error, TimeoutError):
        return _unreachable(f"the way to {endpoint} timed out", wide=True)
    if names & {"NetworkError", "RemoteProtocolError", "ConnectionError"}:
        return _unreachable(
            f"the connection to {endpoint} broke off: {one_line(text, 160)}", wide="ConnectError" in names
        )
    if "Consistency check failed" in text or "XetDownloadError" in names:
        return _unreachable(f"a file arrived cut from {endpoint}: {one_line(text, 160)}")
    return None


def _unreachable(message: str, *, wide: bool = False) -> HubFailure:
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
