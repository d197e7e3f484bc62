"""What a folder says of its pipeline, for the first draft of a description: scripts, rows, tasks, files of settings.

What is found may be wrong; `steph init` writes it down as a draft. Files of settings, those of LLaMA-Factory, axolotl
and trl, are read line by line, without a YAML parser: keys at the left margin, and the paths in axolotl's `datasets`.
Sources: LLaMA-Factory's data README (`dataset_info.json`) and axolotl's config reference.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from steph.base.files import UnreadableError, json_rows, read_json
from steph.base.messages import Message, say
from steph.contract.description import Paths
from steph.contract.programs import NAMES, Script, read_script
from steph.contract.rows import RowFormat, format_of

MOST_FILES, MOST_BYTES, MOST_DEPTH, FIRST_ROWS = 2000, 4 << 20, 4, 20
_PASSED_OVER = {".git", ".venv", "venv", "env", "node_modules", "__pycache__", "site-packages", "steph-out", "reports"}
_PROGRAMS = ("trl", "trl sft", "lm_eval", "lm-eval", "llamafactory", "axolotl", "unsloth")
_MODEL_ID = re.compile(
    r"\b(?:meta-llama|NousResearch|TinyLlama|unsloth|google|mistralai|microsoft|openai|Qwen)/[\w.-]*\w|"
    r"\"model_type\":\s*\"\w+\""
)
Program = Literal["llamafactory", "axolotl", "trl"]
DATASET_INFO = "dataset_info.json"
# the names under which LLaMA-Factory itself finds the columns of alpaca and sharegpt rows
_COLUMNS = {
    "prompt": ("instruction",), "query": ("input",), "response": ("output",),
    "messages": ("conversations", "messages", "conversation"), "system": ("system",), "history": ("history",),
}  # fmt: skip
_TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content"), "assistant_tag": ("gpt", "assistant")}


@dataclass(frozen=True)
class Family:
    """Models that share an architecture and a chat template; `small`: ids on the Hub with parameters, in order."""

    name: str
    pattern: str
    small: Mapping[str, int] = field(default_factory=dict)


FAMILIES = tuple(Family(**row) for row in NAMES["family"])


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


@dataclass(frozen=True)
class RowsFile:
    """A file of training rows: its path from the root, how its rows are written (None: no known way), how many."""

    path: str
    format: RowFormat | None
    rows: int


@dataclass(frozen=True)
class Survey:
    """All that was found in a folder; paths are from it.

    `published`: those of `train` and `evaluate` whose script is where the preset `lawqa` has it. `family`: of
    the models that its texts name.
    """

    programs: frozenset[str]
    scripts: tuple[Script, ...]
    rows: tuple[RowsFile, ...]
    tasks: Mapping[str, str]
    settings: tuple[SettingsFile, ...]
    notebooks: tuple[str, ...]
    published: frozenset[str] = frozenset()
    family: Family | None = None

    @property
    def training_settings(self) -> SettingsFile | None:
        """The file of settings that a training goes by: one whose rows are here, else one that names any."""
        files = [file for file in self.settings if file.program != "trl"]
        return min(files, key=lambda file: (file.rows_file is None, file.trouble is None), default=None)


def survey(root: Path) -> Survey:
    """Look through a folder; what can't be read is passed over."""
    scripts, rows, settings, notebooks = list[Script](), list[RowsFile](), list[SettingsFile](), list[str]()
    tasks: dict[str, str] = {}
    texts, wanted = list[str](), ""
    for path in islice(_files(root, 0), MOST_FILES):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".ipynb":
            notebooks.append(name)
        elif path.suffix == ".py":
            texts.append(_text(path))
            script = read_script(name, texts[-1])
            scripts += [script] if script.trains or script.evaluates else []
        elif path.name == "config.json":
            texts.append(_text(path))
        elif path.suffix in (".jsonl", ".json"):
            with contextlib.suppress(OSError):
                found = list(json_rows(path))
                row_format = format_of(found[:FIRST_ROWS])
                is_kept = found and (path.suffix == ".jsonl" or row_format is not None)
                rows += [RowsFile(name, row_format, len(found))] if is_kept else []
        elif path.suffix in (".yaml", ".yml"):
            text = _text(path)
            texts.append(text)
            if task := re.search(r"^task:\s*['\"]?([\w.-]+)", text, re.M):
                tasks[task[1]] = Path(name).parent.as_posix()
            elif file := read_settings_file(root, name, text):
                settings.append(file)
        if path.name in ("pyproject.toml", "setup.cfg", "Makefile", "README.md") or path.suffix in (".txt", ".sh"):
            wanted += _text(path)
    models = (found[0] for text in (*texts, wanted) for found in _MODEL_ID.finditer(text))
    families = Counter(family.name for model in models if (family := family_of(model)))
    paths = {"train": Paths().train_script, "evaluate": Paths().evaluate_script}
    return Survey(
        programs=frozenset(one for one in _PROGRAMS if re.search(rf"(?<![\w-]){re.escape(one)}(?![\w-])", wanted)),
        scripts=tuple(scripts),
        rows=tuple(rows),
        tasks=tasks,
        settings=tuple(settings),
        notebooks=tuple(notebooks),
        published=frozenset(section for section, path in paths.items() if (root / path).is_file()),
        family=next((one for name, _ in families.most_common(1) for one in FAMILIES if one.name == name), None),
    )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError:
        return
    for path in children:
        if path.is_dir() and not path.is_symlink():
            if depth < MOST_DEPTH and path.name not in _PASSED_OVER and not path.name.startswith("."):
                yield from _files(path, depth + 1)
        elif path.is_file() and path.stat().st_size <= MOST_BYTES:
            yield path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def family_of(model: str) -> Family | None:
    """The family of a model by its id, or of a `model_type`; None for one that is in no row."""
    name = model.rpartition("/")[2]
    return next((family for family in FAMILIES if re.search(family.pattern, name, re.I)), None)


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
    renamed = []  # columns and tags that no row format knows by that name
    for table, known in ((about.get("columns"), _COLUMNS), (about.get("tags"), _TAGS)):
        for key, value in table.items() if isinstance(table, Mapping) else ():
            renamed += [f"{key} ({value})"] if key in known and value not in known[key] else []
    if renamed:
        return None, say("init.rows.renamed", name=names[0], keys=renamed)
    return os.path.normpath(f"{folder}/{file}"), None


def _axolotl_rows(root: Path, text: str) -> tuple[str | None, Message | None]:
    block = re.search(r"^datasets:[ \t]*\n((?:[ \t-].*\n?|[ \t]*\n|#.*\n)*)", text, re.M)
    named = re.findall(
        r"^[ \t]*(?:-[ \t]+)?(path|data_files):[ \t]*['\"]?([^'\"\s#]+)", block[1] if block else "", re.M
    )
    paths = [value for pair, value in ((one, one[1]) for one in named) if pair != ("path", "json")]  # a loader's name
    if len(paths) != 1:
        return None, say("init.rows.several", count=len(paths), names=paths) if paths else None
    return (paths[0], None) if (root / paths[0]).is_file() else (None, say("init.rows.not_here", name=paths[0]))
