"""What an error on the way to the Hub means: its cause and one line for a person."""

from __future__ import annotations

import errno
import ssl

import pytest
from japanese import is_told_in_japanese
from steph.base.terms import Cause
from steph.run.fetch import classify


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/c/blobs/x"), Cause.DISK_FULL, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/c"), Cause.OTHER, "can't be written"),
        (OSError("Consistency check failed: file should be of size 9"), Cause.HUB_UNREACHABLE, "arrived incomplete"),
        (TimeoutError("timed out"), Cause.HUB_UNREACHABLE, "the connection to http://hub timed out"),
        (ssl.SSLError("self-signed certificate"), Cause.HUB_UNREACHABLE, "certificate of http://hub is not trusted"),
        (RuntimeError("odd\nhf_abcdefgh12"), Cause.OTHER, "a/b: RuntimeError: odd hf_***"),
    ],
)
def test_errors_of_the_machine_have_their_lines(error: Exception, cause: Cause, words: str) -> None:
    """A full disk, a cache without write access, a cut file and the unforeseen each have a line."""
    failure = classify(error, name="a/b", endpoint="http://hub", timeout_seconds=1)
    assert failure.cause is cause
    assert words in failure.message.text("en")
    assert is_told_in_japanese(failure.message) is (type(error) is not RuntimeError)


@pytest.mark.parametrize(
    ("kinds", "cause", "words", "is_wide"),
    [
        (("OfflineModeIsEnabled", "ConnectionError"), Cause.HUB_UNREACHABLE, "HF_HUB_OFFLINE is set", True),
        (("DisabledRepoError",), Cause.HUB_NOT_FOUND, "was disabled on http://hub", False),
        (("LocalTokenNotFoundError",), Cause.HUB_GATED, "none is stored: run `hf auth login`", False),
        (("RevisionNotFoundError",), Cause.HUB_NOT_FOUND, "the revision is no longer on http://hub", False),
        (("RemoteEntryNotFoundError",), Cause.HUB_NOT_FOUND, "a file of the model is no longer on http://hub", False),
        (
            ("ProxyError", "ConnectError", "NetworkError"),
            Cause.HUB_UNREACHABLE,
            "the proxy refused the connection",
            True,
        ),
        (("ConnectError", "NetworkError"), Cause.HUB_UNREACHABLE, "broke off", True),
        (("RemoteProtocolError",), Cause.HUB_UNREACHABLE, "broke off", False),
    ],
)
def test_errors_of_the_hubs_client_are_told_by_their_class(
    kinds: tuple[str, ...], cause: Cause, words: str, is_wide: bool
) -> None:
    """The class's name is enough, its base classes' too; what concerns the whole endpoint spares the next candidate."""
    kind: type[Exception] = Exception
    for name in reversed(kinds):
        kind = type(name, (kind,), {})
    failure = classify(kind("planted"), name="a/b", endpoint="http://hub", timeout_seconds=1)
    assert (failure.cause, failure.is_endpoint_wide) == (cause, is_wide)
    assert words in failure.message.text("en")
    assert is_told_in_japanese(failure.message)


def test_an_answer_that_was_never_set_is_no_answer() -> None:
    """httpx raises for a response that an error does not have: the error is told without one."""

    class BrokenError(Exception):
        @property
        def response(self) -> object:
            raise RuntimeError("no response")

    assert classify(BrokenError("odd"), name="a/b", endpoint="http://hub", timeout_seconds=1).cause is Cause.OTHER


def test_a_wrapped_error_is_told_by_its_root() -> None:
    """What huggingface_hub wraps into "cannot find the requested files" is told as the full disk that it was."""
    wrapped = FileNotFoundError("cannot find the requested files")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert classify(wrapped, name="a/b", endpoint="http://hub", timeout_seconds=1).cause is Cause.DISK_FULL
