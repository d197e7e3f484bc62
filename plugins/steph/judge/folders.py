"""Says what lies in a model's folder and in an attempt's, and whether two names mean one model or one folder."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from steph.base.files import UnreadableError, read_header, read_json_object, sha256_of
from steph.record.values import Artifact

MAX_CONFIG_BYTES = 4 << 20
MOST_SHARDS = 400
TWIN_MARKER = "twin.json"
LEAST_WIDTH = 64  # of the narrowest language models that ever learned something
MAX_ARTIFACTS = 200
MAX_HASHED_BYTES = 8 << 30  # hashing more would hold up the run for minutes
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,4})\.")


def same_path(one: str, other: str) -> bool:
    """Whether two paths agree, where one may be absolute and the other relative to an unknown folder."""
    first, second = _parts(one), _parts(other)
    if not first or not second:
        return False
    if one.strip().startswith("/") == other.strip().startswith("/"):
        return first == second
    relative, absolute = sorted((first, second), key=len)
    return absolute[-len(relative) :] == relative


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(path.strip()).parts if part not in ("/", "."))


def same_model(asked: str, named: str) -> bool:
    """Whether `named` is the model `asked`: the same id or folder, or the id's snapshot in the Hub's cache."""
    cached = "models--" + asked.strip().strip("/").replace("/", "--")
    return same_path(asked, named) or cached in _parts(named)


def names_model(text: str, asked: str) -> bool:
    """Whether a printed value names the model `asked`, alone or with a remark beside it."""
    if same_model(asked, text):
        return True
    whole_name = rf"(?<![\w./-]){re.escape(asked.strip().rstrip('/'))}/?(?![\w./-])"
    return re.search(whole_name, text) is not None


@dataclass(frozen=True)
class BaseModel:
    """`layers` and `vocabulary` from `config.json`; `matrices` are the shapes of its weights by module name.

    `is_mixed`: its layers are not all of one kind. Empty or None where the folder does not say.
    """

    layers: int | None = None
    vocabulary: int | None = None
    is_mixed: bool = False
    matrices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def layer_of(name: str) -> tuple[int, str] | None:
    """The number of the layer that a module stands in, and its name within the layer; None outside of layers."""
    found = _LAYER.search(name)
    return (int(found[1]), name[found.end() :]) if found else None


def has_random_weights(name: str, folder: Path) -> bool:
    """Whether nothing was ever learned: a twin, a model that is named so, or one too narrow for anything but tests."""
    width = read_config(folder, "hidden_size", "n_embd")
    is_toy = width is not None and width < LEAST_WIDTH
    return is_toy or (folder / TWIN_MARKER).is_file() or bool(re.search(r"(?i)(?<![a-z])random(?![a-z])", name))


def read_config(folder: Path, *keys: str) -> int | None:
    """The first of these counts that the folder's `config.json` has; None where it has none or can't be read."""
    return _count(_configs(folder), *keys)


def read_base(folder: Path | None) -> BaseModel:
    """Read a model's folder; what is not there or not readable is left empty."""
    if folder is None:
        return BaseModel()
    parts = _configs(folder)
    kinds = next((found for part in parts if isinstance(found := part.get("layer_types"), list)), [])
    try:
        files = sorted(folder.glob("*.safetensors"))[:MOST_SHARDS]
        weights = [t for path in files for t in read_header(path) if t.name.endswith(".weight") and len(t.shape) == 2]
    except (OSError, UnreadableError):
        weights = []
    return BaseModel(
        layers=_count(parts, "num_hidden_layers", "n_layer"),
        vocabulary=_count(parts, "vocab_size"),
        is_mixed=len({str(kind) for kind in kinds}) > 1,
        matrices={one.name.removesuffix(".weight"): one.shape for one in weights if math.prod(one.shape) > 0},
    )


def _configs(folder: Path) -> tuple[Mapping[str, object], ...]:
    """The configuration of the text model, which stands one level down beside other towers, and the whole."""
    try:
        raw = read_json_object(folder / "config.json", MAX_CONFIG_BYTES, finite=False)
    except UnreadableError:
        return ()
    text = raw.get("text_config")
    return (text, raw) if isinstance(text, Mapping) else (raw,)


def _count(parts: tuple[Mapping[str, object], ...], *keys: str) -> int | None:
    values = (part.get(key) for part in parts for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 10**9), None)


def artifact(path: Path, name: str) -> Artifact:
    """Describe one file under the name by which the pipeline knows it."""
    printable = name.encode("utf-8", "replace").decode()
    return Artifact(path=printable, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def artifacts_under(folder: Path, name: str) -> tuple[Artifact, ...]:
    """Describe the regular files under a folder in name order, at most `MAX_ARTIFACTS`, without links and giants."""
    regular = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, one) for one in names):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_HASHED_BYTES:
                regular.append(path)

    def described(path: Path) -> Artifact | None:
        try:
            return artifact(path, f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}")
        except OSError:
            return None  # a file that vanishes or can't be read is no artifact

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return tuple(one for one in pool.map(described, sorted(regular)[:MAX_ARTIFACTS]) if one is not None)
