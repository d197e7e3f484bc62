"""H-1: choose a model that can be had, say why, and bring it onto this disk.

Comes in: candidates in order of preference. Goes out: a `ModelChoice`. Through huggingface_hub, which is imported only
when it is needed; every wait has an end, and no token reaches a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from steph.base.messages import NOTHING, Message, say, words_of
from steph.base.terms import Cause
from steph.record.values import ModelChoice, RejectedCandidate
from steph.run import model_files
from steph.run.hub_failure import HubFailure
from steph.run.hub_query import SPARE_DISK_BYTES, Hub, HubError, HubModel, Token, ask, check_disk, connect
from steph.run.model_files import IncompleteModelError

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
