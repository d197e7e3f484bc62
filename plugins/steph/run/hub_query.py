"""One question to the Hub: what is this model, which of its files are needed, and do they fit on this disk?

Every wait has an end, and no token reaches a message. huggingface_hub is imported only when it is needed.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steph.base.messages import Message, Part, say
from steph.base.terms import Cause
from steph.base.units import GIB, size_words
from steph.memory.shapes import BUILT_IN, parameter_count, shape_from_config
from steph.run import model_files
from steph.run.hub_failure import HubFailure, classify, no_answer, offline

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
