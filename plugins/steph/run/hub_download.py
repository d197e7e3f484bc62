"""Brings a chosen model onto this disk, so that no later deadline pays for it and later stages need no network.

The bytes come in a process of their own (`fetch`); here are its deadline, its progress and the proof that all arrived.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import steph
from steph.base.files import parse_json
from steph.base.messages import Message, say
from steph.base.terms import Cause
from steph.base.text import one_line
from steph.base.units import size_words
from steph.record.values import ModelChoice
from steph.run import model_files
from steph.run.fetch import FetchRequest
from steph.run.hub_failure import HubFailure
from steph.run.hub_query import (
    SPARE_DISK_BYTES,
    Hub,
    HubError,
    HubModel,
    Token,
    ask,
    check_disk,
    connect,
    without_token,
)
from steph.run.model_files import IncompleteModelError
from steph.run.tree import Child

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0


def download(
    choice: ModelChoice,
    *,
    endpoint: str | None = None,
    token: Token = None,
    cache_dir: Path | None = None,
    deadline_seconds: float = 3600.0,
    request_timeout_seconds: float = 30.0,
    stall_seconds: float = 180.0,
    spare_disk_bytes: int = SPARE_DISK_BYTES,
    progress: Callable[[int, int], None] = lambda done_bytes, due_bytes: None,
    log: Callable[[str], None] = lambda line: None,
) -> ModelChoice:
    """Download a choice that came from the Hub; any other is returned as it is.

    The commit is pinned, and `refs/main` in the cache names it afterwards, so that `from_pretrained(name)` finds it
    with HF_HUB_OFFLINE=1. If the branch has moved since the choice, the new commit is taken and `reason` says so.
    The Hub is not asked again where the choice says that nothing is left to download. `request_timeout_seconds` bounds
    one question, `deadline_seconds` the whole; `stall_seconds` without a new byte end it sooner. `progress` gets (bytes
    so far, bytes due). Raises HubError; files that are whole stay in the cache for the next try.
    """
    if choice.source != "hub":
        return choice
    hub = connect(endpoint=endpoint, token=token, cache_dir=cache_dir, timeout_seconds=request_timeout_seconds)
    ends_at = time.monotonic() + deadline_seconds
    if (here := _already_here(hub, choice)) is not None:
        return here
    model = ask(hub, choice.name)
    reason = choice.reason
    if model.revision != choice.revision:
        moved = f"{(choice.revision or '')[:12]} → {model.revision[:12]}"
        log(f"H-1: {say('console.moved', model=choice.name, moved=moved)}")
        reason = say("model.moved", reason=reason, moved=moved)
    free_bytes = check_disk(hub, model, spare_disk_bytes)
    snapshot = _whole_snapshot(hub, model) or _fetch(hub, model, ends_at, stall_seconds, progress)
    _verify(snapshot)
    _point_main_at(model_files.repo_folder(hub.cache_dir, model.name), model.revision)
    return choice.model_copy(
        update={
            "reason": reason,
            "revision": model.revision,
            "parameters": model_files.folder_parameters(snapshot),
            "licence": model.licence,
            "download_bytes": model.missing_bytes,
            "free_disk_bytes": free_bytes,
            "snapshot_path": str(snapshot),
        }
    )


def _already_here(hub: Hub, choice: ModelChoice) -> ModelChoice | None:
    """The choice with its folder in the cache where that was whole when the Hub was asked, and still is."""
    if choice.revision is None or choice.download_bytes != 0:
        return None
    repo_folder = model_files.repo_folder(hub.cache_dir, choice.name)
    snapshot = _if_whole(repo_folder / "snapshots" / choice.revision)
    if snapshot is None:
        return None
    _point_main_at(repo_folder, choice.revision)
    found = {"parameters": model_files.folder_parameters(snapshot), "snapshot_path": str(snapshot)}
    return choice.model_copy(update=found)


def _whole_snapshot(hub: Hub, model: HubModel) -> Path | None:
    """The commit's folder in the cache where nothing is left to download, else None."""
    snapshot = model_files.repo_folder(hub.cache_dir, model.name) / "snapshots" / model.revision
    return _if_whole(snapshot) if all((snapshot / file).is_file() for file in model.files) else None


def _if_whole(snapshot: Path) -> Path | None:
    try:
        model_files.check_whole(snapshot)
    except IncompleteModelError:
        return None
    return snapshot


def _fetch(
    hub: Hub, model: HubModel, ends_at: float, stall_seconds: float, progress: Callable[[int, int], None]
) -> Path:
    """Run the downloading process to its end or to the deadline."""
    request = FetchRequest(
        name=model.name,
        revision=model.revision,
        files=model.files,
        endpoint=hub.endpoint,
        cache_dir=str(hub.cache_dir),
        token=hub.token,
        request_timeout_seconds=hub.timeout_seconds,
    )
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = _start(request, output, errors)
        try:
            _watch(process, hub, model, ends_at, stall_seconds, progress)
        finally:
            _end(process)
        return _answer(process, output, errors, hub)


def _start(request: FetchRequest, output: IO[bytes], errors: IO[bytes]) -> Child[bytes]:
    package_root = str(Path(steph.__file__).resolve().parent.parent)
    whole_seconds = str(max(1, round(request.request_timeout_seconds)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH")))),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": whole_seconds,
        "HF_HUB_ETAG_TIMEOUT": whole_seconds,
    }
    process = Child[bytes](
        [sys.executable, "-P", "-m", "steph.run.fetch"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=errors,
        env=environment,
    )
    stdin = cast(IO[bytes], process.stdin)
    with suppress(BrokenPipeError):  # a child that died at once is told by its exit
        stdin.write((request.to_json() + "\n").encode())
        stdin.flush()
    return process


def _watch(
    process: Child[bytes],
    hub: Hub,
    model: HubModel,
    ends_at: float,
    stall_seconds: float,
    progress: Callable[[int, int], None],
) -> None:
    """Report progress until the process ends; raise HubError at the deadline or when nothing arrives any more."""
    blobs = model_files.repo_folder(hub.cache_dir, model.name) / "blobs"
    before_bytes, _ = _arrived(blobs)
    last, last_change = (-1, -1), time.monotonic()
    while process.poll() is None:
        now, arrived = time.monotonic(), _arrived(blobs)
        if arrived != last:
            last, last_change = arrived, now
            progress(min(max(arrived[0] - before_bytes, 0), model.missing_bytes), model.missing_bytes)
        sizes = {"came": size_words(max(arrived[0] - before_bytes, 0)), "due": size_words(model.missing_bytes)}
        if now > ends_at:
            raise HubError(HubFailure(Cause.TIMEOUT, say("hub.past_limit", model=model.name, **sizes)))
        if now - last_change > stall_seconds:
            silent = {"model": model.name, "hub": hub.endpoint, "seconds": stall_seconds}
            raise HubError(HubFailure(Cause.HUB_UNREACHABLE, say("hub.stalled", **silent, **sizes)))
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
    if process.returncode == 0:
        progress(model.missing_bytes, model.missing_bytes)


def _arrived(blobs: Path) -> tuple[int, int]:
    """Bytes in the cache's blobs, and blocks written: a file may have its full length before it is filled."""
    size_bytes = blocks = 0
    with suppress(OSError):
        for path in blobs.iterdir():
            with suppress(OSError):  # renamed under our eyes
                status = path.stat()
                size_bytes += status.st_size
                blocks += status.st_blocks
    return size_bytes, blocks


def _end(process: Child[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with suppress(BrokenPipeError):
        cast(IO[bytes], process.stdin).close()


def _answer(process: Child[bytes], output: IO[bytes], errors: IO[bytes], hub: Hub) -> Path:
    output.seek(0)
    errors.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    try:
        answer = parse_json(lines[-1].encode())
    except (IndexError, ValueError):
        last = " ".join(errors.read().decode(errors="replace").strip().splitlines()[-1:])
        said = say("hub.download_ended", code=process.returncode, error=one_line(last))
        raise HubError(without_token(HubFailure(Cause.OTHER, said), hub.token)) from None
    if "path" in answer:
        return Path(answer["path"])
    failure = HubFailure(Cause(answer["cause"]), Message.model_validate(answer["message"]), answer["is_endpoint_wide"])
    raise HubError(without_token(failure, hub.token))


def _verify(snapshot: Path) -> None:
    # huggingface_hub returns a half-filled snapshot where the Hub breaks down between two files
    try:
        model_files.check_whole(snapshot)
    except IncompleteModelError as error:
        raise HubError(HubFailure(Cause.HUB_UNREACHABLE, say("hub.not_whole", error=error))) from error


def _point_main_at(repo_folder: Path, revision: str) -> None:
    """Name the commit in refs/main, which huggingface_hub writes only for downloads by branch name."""
    ref = repo_folder / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f"main.{os.getpid()}.tmp")
    temporary.write_text(revision, encoding="utf-8")
    temporary.replace(ref)
