"""H-1: asks the Hub for models, chooses the first that can be had, says why, and brings it onto this disk.

huggingface_hub is imported only when it is needed. Every wait has an end, and no token reaches a message. The bytes of
a download come in a process of their own (`fetch`); here are its deadline, its progress and the proof that all arrived.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import steph
from steph.base.files import UnreadableError, parse_json_object, write_whole
from steph.base.messages import NOTHING, Message, say, words_of
from steph.base.terms import Cause
from steph.base.text import one_line
from steph.base.units import GIB, size_words
from steph.memory.shapes import BUILT_IN, parameter_count, shape_from_config
from steph.record.values import ModelChoice, RejectedCandidate
from steph.run import model_files
from steph.run.fetch import HubError, HubFailure, classify
from steph.run.model_files import IncompleteModelError
from steph.run.processes import Child

SPARE_DISK_BYTES = 2 * GIB  # what stays free beside a download

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SIDE_FILES = ("config.json", "generation_config.json", "README.md", *model_files.TOKENIZER_FILES)
_REASONS = {
    Cause.HUB_UNREACHABLE: "hub.unreachable",
    Cause.HUB_GATED: "hub.gated",
    Cause.HUB_NOT_FOUND: "hub.not_found",
    Cause.DISK_FULL: "hub.disk_full",
}
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0


class NoModelError(Exception):
    """No candidate can be had; `rejected` says why for each."""

    def __init__(self, rejected: Sequence[RejectedCandidate]) -> None:
        self.rejected = tuple(rejected)
        super().__init__("; ".join(_named(candidate.name, candidate.message) for candidate in self.rejected))


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


@dataclass(frozen=True, slots=True)
class Hub:
    """Which Hub is asked and where its files go, both from the environment; a question ends after `timeout_seconds`."""

    timeout_seconds: float = 30.0
    endpoint: str = field(default_factory=_endpoint)
    cache_dir: Path = field(default_factory=model_files.default_cache_dir)


def is_offline() -> bool:
    """Whether the environment forbids to ask any Hub."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any((value or "").upper() in ("1", "ON", "YES", "TRUE") for value in values)


def choose(
    candidates: Sequence[str],
    hub: Hub,
    *,
    primary_count: int = 2,
    is_explicit: bool = False,
    spare_disk_bytes: int = SPARE_DISK_BYTES,
    log: Callable[[str], None] = lambda line: None,
) -> ModelChoice:
    """Choose the first candidate that can be had.

    For each: a folder of that path, else the Hub, else a whole copy in the Hub's cache.
    The first `primary_count` candidates, and any where `is_explicit` (the user named it), are no substitutes.
    `spare_disk_bytes` must stay free after the download.
    Raises NoModelError with every candidate's cause and message.
    """
    rejected: list[RejectedCandidate] = []
    silence: HubFailure | None = None  # of a Hub that is not asked again
    for index, name in enumerate(candidates):
        why = ""
        try:
            found = _find(name, hub, silence, spare_disk_bytes)
        except HubError as error:
            failure = error.failure
            silence = failure if failure.is_endpoint_wide else silence
            cached = None
            if not _is_path(name):  # a pipeline loads the folder, whatever the cache holds under that name
                with suppress(IncompleteModelError):
                    cached = model_files.cached_model(hub.cache_dir, name)
            if cached is None:
                log(f"H-1: {_named(name, failure.message)}")
                rejected.append(RejectedCandidate(name=name, cause=failure.cause, message=failure.message))
                continue
            why = f" ({failure.message})"
            reason = say("model.cached", why=_reason(failure.cause), said=failure.message)
            found = _copy_on_disk(cached, name, "cache", reason, cached.name)
        log(f"H-1: {say('console.found', model=found.name, source=found.source)}{why}")
        is_substitute = index >= primary_count and not is_explicit
        kind = "model.substitute" if is_substitute else "model.candidate"
        place = say("model.explicit") if is_explicit else say(kind, place=index + 1)
        names = [say("model.passed", model=candidate.name, why=_reason(candidate.cause)) for candidate in rejected]
        passed = say("model.passed_over", models=names) if names else NOTHING
        reason = say("model.reason", place=place, passed=passed, found=found.reason)
        return found.changed(reason=reason, automatic_substitute=is_substitute, rejected=tuple(rejected))
    raise NoModelError(rejected)


def _is_path(name: str) -> bool:
    return bool(name) and (Path(name).expanduser().is_dir() or name.startswith(("/", "./", "../", "~")))


def _find(name: str, hub: Hub, silence: HubFailure | None, spare_disk_bytes: int) -> ModelChoice:
    """A candidate in a folder of that path, else on the Hub; raises HubError."""
    if _is_path(name):
        path = Path(name).expanduser().resolve()
        try:
            return _copy_on_disk(path, str(path), "local", say("model.local"), None)
        except IncompleteModelError as error:
            raise HubError(HubFailure(Cause.HUB_NOT_FOUND, words_of(error))) from error
    if silence is not None:
        raise HubError(silence)
    choice, _ = ask(hub, name)
    due_bytes, free_bytes = choice.download_bytes or 0, choice.free_disk_bytes or 0
    if due_bytes and free_bytes < due_bytes + spare_disk_bytes:
        sizes = {"needed": size_words(due_bytes), "spare": size_words(spare_disk_bytes)}
        said = say("hub.needs_disk", **sizes, free=size_words(free_bytes), folder=hub.cache_dir)
        raise HubError(HubFailure(Cause.DISK_FULL, said))
    return choice


def _copy_on_disk(
    folder: Path, name: str, source: Literal["cache", "local"], reason: Message, revision: str | None
) -> ModelChoice:
    return ModelChoice(
        name=name,
        source=source,
        reason=reason,
        parameters=model_files.folder_parameters(folder),
        revision=revision,
        licence=model_files.folder_licence(folder),
        download_bytes=0,
        free_disk_bytes=model_files.free_disk_bytes(folder),
        snapshot_path=str(folder),
    )


def _named(name: str, message: Message) -> str:
    return str(message) if name in str(message) else f"{name}: {message}"


def _reason(cause: Cause) -> Message:
    return say(_REASONS.get(cause, "hub.other"))


def ask(hub: Hub, name: str, revision: str | None = None) -> tuple[ModelChoice, tuple[str, ...]]:
    """Ask for a model's commit, by default its branch's, and its needed files; raises HubError in time."""
    if is_offline():
        said = say("hub.offline", hub=hub.endpoint)
        raise HubError(HubFailure(Cause.HUB_UNREACHABLE, said, is_endpoint_wide=True))
    from huggingface_hub import HfApi

    answers: list[tuple[ModelChoice, tuple[str, ...]] | HubFailure] = []

    def request() -> None:
        # the client's time-out runs anew with each received byte and knows nothing of DNS; the thread's end does
        client_timeout = 0.9 * hub.timeout_seconds
        try:
            api = HfApi(endpoint=hub.endpoint)
            info = api.model_info(name, revision=revision, files_metadata=True, timeout=client_timeout)
            if info.gated:  # its description is public all the same; only its files are refused
                api.auth_check(name)
            answers.append(_described(info, hub, name))
        except Exception as error:
            answers.append(classify(error, name=name, endpoint=hub.endpoint, timeout_seconds=hub.timeout_seconds))

    thread = threading.Thread(target=request, name="steph-hub", daemon=True)
    thread.start()
    thread.join(hub.timeout_seconds)
    if not answers:
        said = say("hub.no_answer", hub=hub.endpoint, seconds=hub.timeout_seconds)
        raise HubError(HubFailure(Cause.HUB_UNREACHABLE, said, is_endpoint_wide=True))
    if isinstance(answers[0], HubFailure):
        raise HubError(answers[0])
    return answers[0]


def _described(info: Any, hub: Hub, name: str) -> tuple[ModelChoice, tuple[str, ...]]:  # noqa: ANN401
    """What huggingface_hub's ModelInfo says of a model, and its needed files: config, tokenizer, safetensors."""
    sizes = {str(file.rfilename): int(file.size or 0) for file in info.siblings or ()}
    side = [file for file in _SIDE_FILES if file in sizes]
    weights: list[str] = []
    if model_files.WEIGHTS in sizes:
        weights = [model_files.WEIGHTS]
    elif model_files.WEIGHTS_INDEX in sizes:
        weights = [model_files.WEIGHTS_INDEX, *sorted(file for file in sizes if _SHARD.fullmatch(file))]
    lacks = None
    if not info.sha:
        raise HubError(HubFailure(Cause.HUB_UNREACHABLE, say("hub.no_revision", hub=hub.endpoint, model=name)))
    if not weights:
        lacks = say("hub.no_weights", model=name)
    elif "config.json" not in side:
        lacks = say("hub.lacks_config", model=name)
    elif not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(side):
        lacks = say("hub.lacks_tokenizer", model=name)
    if lacks is not None:
        raise HubError(HubFailure(Cause.HUB_NOT_FOUND, lacks))
    parameters = getattr(info.safetensors, "total", None)
    if not parameters:
        with suppress(ValueError):
            parameters = parameter_count(BUILT_IN[name] if name in BUILT_IN else shape_from_config(info.config or {}))
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    licence = getattr(info.card_data, "license", None) or next(iter(tags), None)
    snapshot = model_files.repo_folder(hub.cache_dir, name) / "snapshots" / info.sha
    files = (*side, *weights)
    choice = ModelChoice(
        name=name,
        source="hub",
        reason=say("model.on_hub"),
        parameters=int(parameters) if parameters else None,
        revision=info.sha,
        licence=str(licence) if licence else None,
        download_bytes=sum(sizes[file] for file in files if not (snapshot / file).exists()),
        free_disk_bytes=model_files.free_disk_bytes(hub.cache_dir),
    )
    return choice, files


def download(
    choice: ModelChoice,
    hub: Hub,
    *,
    deadline_seconds: float,
    stall_seconds: float = 180.0,
    progress: Callable[[int, int], None] = lambda done_bytes, due_bytes: None,
) -> ModelChoice:
    """Download a choice that came from the Hub; any other is returned as it is.

    The chosen commit is what comes, also where the branch moved since, and `refs/main` in the cache names it
    afterwards, so that `from_pretrained(name)` finds it with HF_HUB_OFFLINE=1. The Hub is not asked again where the
    choice says that nothing is left to download. `deadline_seconds` bounds the whole; `stall_seconds` without a new
    byte end it sooner. `progress` gets (bytes so far, bytes due). Raises HubError; files that are whole stay in the
    cache for the next try.
    """
    if choice.source != "hub" or choice.revision is None:
        return choice
    ends_at = time.monotonic() + deadline_seconds
    repository = model_files.repo_folder(hub.cache_dir, choice.name)
    snapshot, due_bytes = repository / "snapshots" / choice.revision, choice.download_bytes
    parameters = None
    if due_bytes == 0:
        with suppress(IncompleteModelError):
            parameters = model_files.folder_parameters(snapshot)
    if parameters is None:
        asked, files = ask(hub, choice.name, choice.revision)
        due_bytes = asked.download_bytes
        snapshot = _fetch(hub, asked, files, ends_at, stall_seconds, progress)
        try:  # huggingface_hub returns a half-filled snapshot where the Hub breaks down between two files
            parameters = model_files.folder_parameters(snapshot)
        except IncompleteModelError as error:
            raise HubError(HubFailure(Cause.HUB_UNREACHABLE, say("hub.not_whole", error=error))) from error
    # which huggingface_hub writes only for downloads by branch name
    write_whole(repository / "refs" / "main", choice.revision)
    return choice.changed(parameters=parameters, download_bytes=due_bytes, snapshot_path=str(snapshot))


def _fetch(
    hub: Hub,
    choice: ModelChoice,
    files: Sequence[str],
    ends_at: float,
    stall_seconds: float,
    progress: Callable[[int, int], None],
) -> Path:
    """Run the downloading process to its end, or to the deadline; the snapshot's folder. Raises HubError."""
    request = {
        "name": choice.name,
        "revision": choice.revision,
        "files": files,
        "endpoint": hub.endpoint,
        "cache_dir": str(hub.cache_dir),
        "timeout_seconds": hub.timeout_seconds,
    }
    package_root = str(Path(steph.__file__).resolve().parent.parent)
    whole_seconds = str(max(1, round(hub.timeout_seconds)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH")))),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": whole_seconds,
        "HF_HUB_ETAG_TIMEOUT": whole_seconds,
    }
    command = [sys.executable, "-P", "-m", "steph.run.fetch", str(os.getpid()), json.dumps(request)]
    pipe = subprocess.PIPE
    with Child[str](command, stdout=pipe, stderr=pipe, env=environment, encoding="utf-8", errors="replace") as process:
        try:
            output, errors = _watch(process, hub, choice, ends_at, stall_seconds, progress)
        finally:
            process.end(_GRACE_SECONDS)
    try:
        answer = parse_json_object(output.splitlines()[-1].encode())
    except (IndexError, UnreadableError):
        last = one_line(" ".join(errors.strip().splitlines()[-1:]))
        said = say("hub.download_ended", code=process.returncode, error=last)
        raise HubError(HubFailure(Cause.OTHER, said)) from None
    if "path" in answer:
        return Path(answer["path"])
    message = Message.model_validate(answer["message"])
    raise HubError(HubFailure(Cause(answer["cause"]), message, answer["is_endpoint_wide"]))


def _watch(
    process: Child[str],
    hub: Hub,
    choice: ModelChoice,
    ends_at: float,
    stall_seconds: float,
    progress: Callable[[int, int], None],
) -> tuple[str, str]:
    """Report progress until the process ends; what it printed. Raises HubError at the deadline or after a silence."""
    blobs = model_files.repo_folder(hub.cache_dir, choice.name) / "blobs"
    due_bytes = choice.download_bytes or 0

    def arrived() -> tuple[int, int]:
        """Bytes in the cache's blobs, and blocks written: a file may have its full length before it is filled."""
        size_bytes = blocks = 0
        for path in blobs.glob("*"):
            with suppress(OSError):  # renamed under our eyes
                status = path.stat()
                size_bytes, blocks = size_bytes + status.st_size, blocks + status.st_blocks
        return size_bytes, blocks

    last, last_change = arrived(), time.monotonic()
    before_bytes, _ = last
    while True:
        with suppress(subprocess.TimeoutExpired):
            printed = process.communicate(timeout=_POLL_SECONDS)
            if process.returncode == 0:
                progress(due_bytes, due_bytes)
            return printed
        now, state = time.monotonic(), arrived()
        came_bytes = max(state[0] - before_bytes, 0)
        if state != last:
            last, last_change = state, now
            progress(min(came_bytes, due_bytes), due_bytes)
        sizes = {"came": size_words(came_bytes), "due": size_words(due_bytes)}
        if now > ends_at:
            raise HubError(HubFailure(Cause.TIMEOUT, say("hub.past_limit", model=choice.name, **sizes)))
        if now - last_change > stall_seconds:
            silent = {"model": choice.name, "hub": hub.endpoint, "seconds": stall_seconds}
            raise HubError(HubFailure(Cause.HUB_UNREACHABLE, say("hub.stalled", **silent, **sizes)))
