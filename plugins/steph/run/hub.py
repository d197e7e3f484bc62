"""H-1: asks the Hub for models, chooses the first that can be had, says why, and brings it onto this disk.

huggingface_hub is imported only when it is needed. Every wait has an end, and no token reaches a message. The bytes of
a download come in a process of their own (`fetch`); here are its deadline, its progress and the proof that all arrived.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import steph
from steph.base.files import parse_json, parse_json_object
from steph.base.messages import NOTHING, Message, Part, say, words_of
from steph.base.terms import Cause
from steph.base.text import one_line
from steph.base.units import GIB, size_words
from steph.memory.shapes import BUILT_IN, parameter_count, shape_from_config
from steph.record.values import ModelChoice, RejectedCandidate
from steph.run import model_files
from steph.run.fetch import FetchRequest, HubFailure, classify, no_answer, offline
from steph.run.model_files import CountingError, IncompleteModelError
from steph.run.tree import Child

Token = str | bool | None
SPARE_DISK_BYTES = 2 * GIB  # what stays free beside a download

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SIDE_FILES = ("config.json", "generation_config.json", "README.md", *model_files.TOKENIZER_FILES)


class HubError(Exception):
    """One request or download failed; `failure` holds its cause."""

    def __init__(self, failure: HubFailure) -> None:
        self.failure = failure
        super().__init__(failure.message)


@dataclass(frozen=True, slots=True)
class Hub:
    """Which Hub is asked, as whom, and where its files go; `timeout_seconds` bounds each question as a whole."""

    endpoint: str
    token: Token
    cache_dir: Path
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class HubModel:
    """What the Hub says of one model: the commit of its default branch and the files of it that are needed.

    `missing_bytes`: what of these files the cache doesn't hold yet.
    """

    name: str
    revision: str
    files: tuple[str, ...]
    missing_bytes: int
    parameters: int | None
    licence: str | None


def connect(*, endpoint: str | None, token: Token, cache_dir: Path | None, timeout_seconds: float) -> Hub:
    """The Hub to ask: endpoint and cache from the environment (HF_ENDPOINT, HF_HUB_CACHE, HF_HOME) where not given."""
    from huggingface_hub import constants

    return Hub(
        endpoint=(endpoint or constants.ENDPOINT).rstrip("/"),
        token=token,
        cache_dir=cache_dir or model_files.default_cache_dir(),
        timeout_seconds=timeout_seconds,
    )


def ask(hub: Hub, name: str) -> HubModel:
    """Ask the Hub for one model; raises HubError, within `timeout_seconds` whatever the network does."""
    if is_offline():
        raise HubError(offline(hub.endpoint))
    from huggingface_hub import HfApi

    answers: list[HubModel | HubFailure] = []

    def request() -> None:
        # the client's time-out runs anew with each received byte and knows nothing of DNS; the thread's end does
        client_timeout = 0.9 * hub.timeout_seconds
        try:
            api = HfApi(endpoint=hub.endpoint, token=hub.token)
            info = api.model_info(name, files_metadata=True, timeout=client_timeout)
            if info.gated:  # its description is public all the same; only its files are refused
                api.auth_check(name)
            answers.append(_read_info(info, hub, name))
        except HubError as error:
            answers.append(error.failure)
        except Exception as error:
            answers.append(classify(error, name=name, endpoint=hub.endpoint, timeout_seconds=hub.timeout_seconds))

    thread = threading.Thread(target=request, name="steph-hub", daemon=True)
    thread.start()
    thread.join(hub.timeout_seconds)
    answer = answers[0] if answers else no_answer(hub.endpoint, hub.timeout_seconds)
    if isinstance(answer, HubFailure):
        raise HubError(without_token(answer, hub.token))
    return answer


def check_disk(hub: Hub, model: HubModel, spare_disk_bytes: int) -> int:
    """Free bytes where the model would go; raises HubError where it doesn't fit."""
    free_bytes = model_files.free_disk_bytes(hub.cache_dir)
    if model.missing_bytes and free_bytes < model.missing_bytes + spare_disk_bytes:
        sizes = {"needed": size_words(model.missing_bytes), "spare": size_words(spare_disk_bytes)}
        said = say("hub.needs_disk", **sizes, free=size_words(free_bytes), folder=hub.cache_dir)
        raise HubError(HubFailure(Cause.DISK_FULL, said))
    return free_bytes


def _read_info(info: Any, hub: Hub, name: str) -> HubModel:  # noqa: ANN401 - huggingface_hub's ModelInfo
    sizes = {str(file.rfilename): int(file.size or 0) for file in info.siblings or ()}
    files = _needed_files(sizes, name)
    if not info.sha:
        raise HubError(HubFailure(Cause.HUB_UNREACHABLE, say("hub.no_revision", hub=hub.endpoint, model=name)))
    snapshot = model_files.repo_folder(hub.cache_dir, name) / "snapshots" / info.sha
    return HubModel(
        name=name,
        revision=info.sha,
        files=files,
        missing_bytes=sum(sizes[file] for file in files if not (snapshot / file).exists()),
        parameters=_parameters(info, name),
        licence=_licence(info),
    )


def _needed_files(sizes: dict[str, int], name: str) -> tuple[str, ...]:
    """Config, tokenizer and the safetensors that transformers loads: never a second format of the same weights."""
    if model_files.WEIGHTS in sizes:
        weights = [model_files.WEIGHTS]
    elif model_files.WEIGHTS_INDEX in sizes:
        weights = [model_files.WEIGHTS_INDEX, *sorted(file for file in sizes if _SHARD.fullmatch(file))]
    else:
        raise HubError(HubFailure(Cause.HUB_NOT_FOUND, say("hub.no_weights", model=name)))
    side = [file for file in _SIDE_FILES if file in sizes]
    if "config.json" not in side:
        raise HubError(HubFailure(Cause.HUB_NOT_FOUND, say("hub.lacks_config", model=name)))
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(side):
        raise HubError(HubFailure(Cause.HUB_NOT_FOUND, say("hub.lacks_tokenizer", model=name)))
    return (*side, *weights)


def _parameters(info: Any, name: str) -> int | None:  # noqa: ANN401
    total = getattr(info.safetensors, "total", None)
    if total:
        return int(total)
    if name in BUILT_IN:
        return parameter_count(BUILT_IN[name])
    try:
        return parameter_count(shape_from_config(info.config or {}))
    except ValueError:
        return None


def _licence(info: Any) -> str | None:  # noqa: ANN401
    licence = getattr(info.card_data, "license", None)
    if licence:
        return str(licence)
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return next(tags, None)


def is_offline() -> bool:
    """Whether the environment forbids to ask any Hub."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any((value or "").upper() in ("1", "ON", "YES", "TRUE") for value in values)


def without_token(failure: HubFailure, token: Token) -> HubFailure:
    """The failure with the token that was used blotted out, whatever a server echoed."""
    if not isinstance(token, str) or not token:
        return failure
    values = {name: _blotted(value, token) for name, value in failure.message.values.items()}
    return replace(failure, message=Message(id=failure.message.id, values=values))


def _blotted(value: Part, token: str) -> Part:
    """A message's value without the token; of a message within, the suite's own words need no look."""
    return value.replace(token, "***") if isinstance(value, str) else value


_REASONS = {
    Cause.HUB_UNREACHABLE: "hub.unreachable",
    Cause.HUB_GATED: "hub.gated",
    Cause.HUB_NOT_FOUND: "hub.not_found",
    Cause.DISK_FULL: "hub.disk_full",
}


class NoModelError(Exception):
    """No candidate can be had; `rejected` says why for each."""

    def __init__(self, rejected: Sequence[RejectedCandidate]) -> None:
        self.rejected = tuple(rejected)
        reasons = "; ".join(_named(candidate.name, str(candidate.message)) for candidate in self.rejected)
        super().__init__(f"no model can be had: {reasons or 'no candidate is named'}")


def choose(
    candidates: Sequence[str],
    *,
    endpoint: str | None = None,
    token: Token = None,
    cache_dir: Path | None = None,
    primary_count: int = 2,
    is_explicit: bool = False,
    timeout_seconds: float = 30.0,
    spare_disk_bytes: int = SPARE_DISK_BYTES,
    log: Callable[[str], None] = lambda line: None,
) -> ModelChoice:
    """Choose the first candidate that can be had.

    For each: a folder of that path, else the Hub, else a whole copy in the Hub's cache.
    The first `primary_count` candidates, and any where `is_explicit` (the user named it), are no substitutes.
    `spare_disk_bytes` must stay free after the download. One candidate takes at most `timeout_seconds` on the network.
    Raises NoModelError with every candidate's cause and message.
    """
    hub = connect(endpoint=endpoint, token=token, cache_dir=cache_dir, timeout_seconds=timeout_seconds)
    rejected: list[RejectedCandidate] = []
    silence: HubFailure | None = None
    for index, name in enumerate(candidates):
        found, failure = _find(name, hub, silence, spare_disk_bytes)
        if failure is not None and failure.is_endpoint_wide:
            silence = failure
        if found is not None:
            reason = f" ({failure.message})" if failure else ""
            log(f"H-1: {say('console.found', model=found.name, source=found.source)}{reason}")
            return _placed(found, index, primary_count, is_explicit, rejected)
        if failure is not None:
            log(f"H-1: {_named(name, str(failure.message))}")
            rejected.append(RejectedCandidate(name=name, cause=failure.cause, message=failure.message))
    raise NoModelError(rejected)


def _placed(
    found: ModelChoice, index: int, primary_count: int, is_explicit: bool, rejected: Sequence[RejectedCandidate]
) -> ModelChoice:
    """The choice with its place among the candidates, and with what was passed over before it."""
    is_substitute = index >= primary_count and not is_explicit
    return found.model_copy(
        update={
            "reason": say(
                "model.reason",
                place=_place(index, is_substitute, is_explicit),
                passed=_passed_over(rejected),
                found=found.reason,
            ),
            "automatic_substitute": is_substitute,
            "rejected": tuple(rejected),
        }
    )


def _find(
    name: str, hub: Hub, silence: HubFailure | None, spare_disk_bytes: int
) -> tuple[ModelChoice | None, HubFailure | None]:
    """A candidate's choice, or why there is none; both where only a copy on this disk could be had."""
    path = Path(name).expanduser()
    if (name and path.is_dir()) or name.startswith(("/", "./", "../", "~")):
        try:
            return _local(path), None
        except IncompleteModelError as error:
            return None, HubFailure(Cause.HUB_NOT_FOUND, words_of(error))
    try:
        if silence is not None:
            raise HubError(silence)
        model = ask(hub, name)
        free_bytes = check_disk(hub, model, spare_disk_bytes)
    except HubError as error:
        return _on_disk(name, hub, error.failure), error.failure
    return _from_hub(model, free_bytes), None


def _from_hub(model: HubModel, free_bytes: int) -> ModelChoice:
    return ModelChoice(
        name=model.name,
        source="hub",
        reason=say("model.on_hub"),
        parameters=model.parameters,
        revision=model.revision,
        licence=model.licence,
        download_bytes=model.missing_bytes,
        free_disk_bytes=free_bytes,
    )


def _on_disk(name: str, hub: Hub, failure: HubFailure) -> ModelChoice | None:
    """A whole copy in the Hub's cache, else None."""
    try:
        cached = model_files.cached_model(hub.cache_dir, name)
    except IncompleteModelError:
        return None
    reason = say("model.cached", why=_why(failure.cause), said=failure.message)
    return _copy_on_disk(cached.folder, name, "cache", reason, cached.revision)


def _local(path: Path) -> ModelChoice:
    model_files.check_whole(path)
    return _copy_on_disk(path.resolve(), str(path.resolve()), "local", say("model.local"), None)


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


def _place(index: int, is_substitute: bool, is_explicit: bool) -> Message:
    if is_explicit:
        return say("model.explicit")
    return say("model.substitute" if is_substitute else "model.candidate", place=index + 1)


def _passed_over(rejected: Sequence[RejectedCandidate]) -> Message:
    if not rejected:
        return NOTHING
    names = [say("model.passed", model=candidate.name, why=_why(candidate.cause)) for candidate in rejected]
    return say("model.passed_over", models=names)


def _named(name: str, message: str) -> str:
    return message if name in message else f"{name}: {message}"


def _why(cause: Cause) -> Message:
    return say(_REASONS.get(cause, "hub.other"))


_CONFIG_SECONDS = 10.0  # for one small file
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


def hub_config(name: str, cache: Path, endpoint: str | None = None) -> Path:
    """The config.json of a model on the Hub, asked for once and kept; raises CountingError, also while offline."""
    kept = cache / "configs" / f"{name.replace('/', '--')}.json"
    if kept.is_file():
        return kept
    if is_offline():
        raise CountingError(say("fit.no_config", model=name, error="HF_HUB_OFFLINE"))
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    try:
        url = hf_hub_url(name, "config.json", endpoint=endpoint)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=_CONFIG_SECONDS, follow_redirects=True)
        answer.raise_for_status()
        found = parse_json_object(answer.content, finite=False)
    except Exception as error:  # whatever the network, the Hub or the file does
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CountingError(say("fit.no_config", model=name, error=lines[0])) from error
    model_files.keep_answer(kept, found)
    return kept
