"""The files of settings of LLaMA-Factory, axolotl and trl: whose one is, and which training rows it names.

They are read line by line, without a YAML parser: keys at the left margin, and the paths in axolotl's list `datasets`.
Sources: LLaMA-Factory's data README (`dataset_info.json`) and axolotl's config reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steph.base.files import UnreadableError, read_json
from steph.base.messages import Message, say

Program = Literal["llamafactory", "axolotl", "trl"]
DATASET_INFO = "dataset_info.json"
# the names under which LLaMA-Factory itself finds the columns of alpaca and sharegpt rows
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_OTHERS = {"messages": ("messages", "conversation"), "system": ("system",), "history": ("history",)}
_TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content"), "assistant_tag": ("gpt", "assistant")}


@dataclass(frozen=True)
class SettingsFile:
    """A file of settings: whose it is, its model, the file of rows that it names, or why none can be compared.

    Both paths are from the root. `rows_file` and `trouble` are None where it names no data set at all.
    """

    path: str
    program: Program
    model: str | None
    rows_file: str | None = None
    trouble: Message | None = None


def read_settings_file(root: Path, path: str, text: str) -> SettingsFile | None:
    """What a YAML file says; None where it belongs to none of these programs."""
    if re.search(r"^stage:\s*['\"]?sft\b", text, re.M):
        return SettingsFile(path, "llamafactory", _value(text, "model_name_or_path"), *_llamafactory_rows(root, text))
    if re.search(r"^base_model:", text, re.M):
        return SettingsFile(path, "axolotl", _value(text, "base_model"), *_axolotl_rows(root, text))
    model = _value(text, "model_name_or_path")
    return SettingsFile(path, "trl", model) if model else None


def _value(text: str, key: str) -> str | None:
    """The value of a key at the left margin, without its quotes and a comment behind it."""
    found = re.search(rf"^{key}:[ \t]*(.*?)[ \t]*(?:[ \t]#.*)?$", text, re.M)
    value = found[1].strip("\"'") if found else ""
    return value or None


def _llamafactory_rows(root: Path, text: str) -> tuple[str | None, Message | None]:
    named = _value(text, "dataset")
    names = [name.strip() for name in (named or "").strip("[]").split(",") if name.strip()]
    if len(names) != 1:
        return None, say("init.rows.several", count=len(names), names=names) if names else None
    folder = (_value(text, "dataset_dir") or "data").rstrip("/")
    try:
        table = read_json(root / folder / DATASET_INFO)
    except UnreadableError:
        return None, say("init.rows.unreadable", path=f"{folder}/{DATASET_INFO}")
    about = table.get(names[0]) if isinstance(table, Mapping) else None
    if not isinstance(about, Mapping):
        return None, say("init.rows.unlisted", path=f"{folder}/{DATASET_INFO}", name=names[0])
    file = about.get("file_name")
    if not isinstance(file, str) or not (root / folder / file).is_file():
        return None, say("init.rows.no_file", name=names[0], folder=folder)
    if renamed := _renamed(about):
        return None, say("init.rows.renamed", name=names[0], keys=renamed)
    return os.path.normpath(f"{folder}/{file}"), None


def _renamed(about: Mapping[str, object]) -> list[str]:
    """The columns and tags of a data set that no row format knows by that name."""
    columns, tags = (about.get(key) for key in ("columns", "tags"))
    found = []
    for table, known in ((columns, {name: (own,) for name, own in _COLUMNS.items()}), (tags, _TAGS)):
        for key, value in table.items() if isinstance(table, Mapping) else ():
            allowed = (*known.get(key, ()), *_OTHERS.get(key, ()))
            found += [f"{key} ({value})"] if allowed and value not in allowed else []
    return found


def _axolotl_rows(root: Path, text: str) -> tuple[str | None, Message | None]:
    block = re.search(r"^datasets:[ \t]*\n((?:[ \t-].*\n?|[ \t]*\n|#.*\n)*)", text, re.M)
    named = re.findall(
        r"^[ \t]*(?:-[ \t]+)?(path|data_files):[ \t]*['\"]?([^'\"\s#]+)", block[1] if block else "", re.M
    )
    paths = [
        value for key, value in named if (key, value) != ("path", "json")
    ]  # a loader's name; data_files has the file
    if len(paths) != 1:
        return None, say("init.rows.several", count=len(paths), names=paths) if paths else None
    return (paths[0], None) if (root / paths[0]).is_file() else (None, say("init.rows.not_here", name=paths[0]))
