"""Looks into a folder for a pipeline and drafts its `steph.toml`: what was found, and what a person must still say.

What is found (scripts, rows, tasks, files of settings) may be wrong; `steph init` writes it down as a draft. Files of
settings, those of LLaMA-Factory, axolotl and trl, are read line by line, without a YAML parser: keys at the left
margin, and the paths in axolotl's `datasets`. Sources: LLaMA-Factory's data README (`dataset_info.json`) and axolotl's
config reference.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steph.base.files import TABLES, UnreadableError, json_rows, project_files, read_json
from steph.base.messages import Message, say, text
from steph.base.terms import TrainerName
from steph.contract.commands import MUST_BE_SAID
from steph.contract.description import UNKNOWN, Paths
from steph.contract.programs import NAMES, Script, Source, read_script
from steph.contract.rows import FORMATS, RowFormat, format_of
from steph.record.settings import MAX_SAMPLES

FIRST_ROWS = 20
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
    """A file of training rows: its path from the root, their format (None: no known way), how many, and their keys."""

    path: str
    format: RowFormat | None
    rows: int
    keys: tuple[str, ...] = ()


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
    for path in project_files(root):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".ipynb":
            notebooks.append(name)
        elif path.suffix == ".py":
            texts.append(_text(path))
            with contextlib.suppress(RecursionError):
                script = read_script(name, texts[-1])
                scripts += [script] if script.trains or script.evaluates else []
        elif path.name == "config.json":
            texts.append(_text(path))
        elif path.suffix in (".jsonl", ".json", *TABLES):
            with contextlib.suppress(OSError):
                found = list(json_rows(path))
                row_format = format_of(found[:FIRST_ROWS])
                # others may be anything
                is_kept = found and (path.suffix == ".jsonl" or row_format is not None or "train" in path.name.lower())
                rows += [RowsFile(name, row_format, len(found), tuple(found[0]))] if is_kept else []
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


def said(message_id: str, **values: object) -> str:
    """A message's words, of any length."""
    return text(message_id, values=values)


def findings(found: Survey) -> Iterator[str]:
    """The findings, a line each."""
    for script in found.scripts:
        how = said("init.options", count=len(script.options)) if script.has_command_line else said("init.no_options")
        does = "init.trains" if script.trains else "init.evaluates"
        yield said(does, path=script.path, how=how)
    yield from (said("init.published", section=section) for section in sorted(found.published))
    for file in found.rows:
        of = "init.rows" if file.format else "init.unknown_rows"
        yield said(of, path=file.path, rows=file.rows, format=file.format or "")
    yield from (said("init.task", folder=folder, task=task) for task, folder in found.tasks.items())
    yield from (said("init.settings", path=file.path, program=file.program) for file in found.settings)
    yield from (said("init.notebook", path=path) for path in found.notebooks)
    if found.family:
        yield said("init.family", family=found.family.name)
    yield from (said("init.program", program=name) for name in sorted(found.programs))


def draft(found: Survey) -> str:
    """The text of a `steph.toml`, its comments in the language in use."""
    training = next((script for script in found.scripts if script.trains), None)
    evaluating = next((script for script in found.scripts if script.evaluates), None)
    train = tuple(_train(found, training))
    lines = [*_comment("init.head"), ""]
    for name in (TrainerName.TRL, TrainerName.UNSLOTH):  # whose memory was measured
        if f"preset = {_toml(name)}" in train:
            lines += [_with_note(f"trainer = {_toml(name)}", "init.note.trainer"), ""]
    return "\n".join([*lines, *_model(found, training), *train, "", *_evaluate(found, evaluating)]) + "\n"


def _comment(message_id: str, **values: object) -> list[str]:
    return [f"# {line}" for line in said(message_id, **values).splitlines()]


def _with_note(line: str, message_id: str, **values: object) -> str:
    """A line of TOML with a comment behind it."""
    return f"{line}   # {' '.join(said(message_id, **values).split())}"


def _toml(value: object) -> str:
    """A value as TOML spells it: JSON's texts, numbers and lists are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _inline(table: Mapping[str, object]) -> str:
    return f"{{ {', '.join(f'{name} = {_toml(value)}' for name, value in table.items())} }}"


@dataclass(frozen=True)
class _Taken:
    """How a script is told what: by placeholder, its switches by condition, and its options that nothing stands for."""

    told: Mapping[str, Source] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def _taken(script: Script | None, section: str) -> _Taken:
    """`section`: `training` or `evaluation`. What the text shows counts before what an option's name says."""
    if script is None:
        return _Taken()
    places, conditions = NAMES[f"{section}_options"], NAMES[f"{section}_switches"]
    is_switch = {name: script.options.get(one.word, False) for name, one in script.told.items()}
    told = {name: one for name, one in script.told.items() if name in places and not is_switch[name]}
    switches = {name: str(one.word) for name, one in script.told.items() if name in conditions and is_switch[name]}
    used = {*(one.word for one in told.values()), *switches.values()}  # a row cut with [:n] looks like n samples
    for option, alone in script.options.items():
        plain = option.lstrip("-").replace("-", "_")
        of = next((of for of, names in (conditions if alone else places).items() if plain in names), None)
        if of is not None and option not in used and of not in {*told, *switches}:
            told |= {} if alone else {of: Source("option", option)}
            switches |= {of: option} if alone else {}
    used = {*(one.word for one in told.values()), *switches.values()}
    told = {of: told[of] for of in places if of in told}
    return _Taken(told, switches, tuple(option for option in script.options if option not in used))


def _model(found: Survey, script: Script | None) -> Iterator[str]:
    """The candidates: the one model that is given or inside, else the small ones of the family that is named."""
    settings, family, is_published = found.training_settings, found.family, "train" in found.published
    small = list(family.small) if family else []
    sizes = tuple(f"{parameters / 1e9:.1f}B" for parameters in family.small.values()) if family else ()
    if settings is not None and settings.model and not is_published:
        line = f"candidates = {_toml([settings.model])}"
        yield from ("[model]", _with_note(line, "init.note.settings_model", path=settings.path))
        if small and settings.model not in small:
            yield from _comment("init.note.smaller", models=_toml(small), sizes=sizes)
        yield ""
    elif settings is None and script and not is_published and "model" not in _taken(script, "training").told:
        note = "init.note.inside_model" if script.model else "init.note.no_model"
        line = f"candidates = {_toml([script.model or UNKNOWN])}"
        yield from ("[model]", _with_note(line, note, path=script.path), "")
    elif small and family:
        line = f"candidates = {_toml(small)}"
        yield from ("[model]", _with_note(line, "init.note.small", family=family.name, sizes=sizes), "")


def _train(found: Survey, script: Script | None) -> Iterator[str]:
    yield "[train]"
    settings = found.training_settings
    if "train" in found.published:
        yield 'preset = "lawqa"'
    elif settings is not None:
        yield f"preset = {_toml(settings.program)}"
        yield _with_note(f"config = {_toml(settings.path)}", "init.note.config")
        if settings.rows_file is None:  # they can't be compared
            why = settings.trouble or say("init.rows.unnamed")
            yield _with_note('rows.format = "none"', "init.note.no_rows", why=why)
        else:
            yield _rows_line(found, settings.rows_file)
    elif "trl sft" in found.programs or (script is None and "trl" in found.programs):
        yield 'preset = "trl"'
        yield _rows_line(found)
        yield _with_note('# extra = ["--packing"]', "init.note.extra")
    elif script is None:
        yield f"command = {_toml(['{python}', UNKNOWN, '--model', '{model}', '--data', '{train_file}'])}"
        yield _rows_line(found)
        yield _with_note(f"fixed = {{ batch_size = {UNKNOWN} }}", "init.note.fixed")
    else:
        yield from _training_script(found, script)


def _training_script(found: Survey, script: Script) -> Iterator[str]:
    if script.unsloth:
        yield 'preset = "unsloth"'
    taken = _taken(script, "training")
    yield from _command(script, taken)
    passed = {*taken.told, *taken.switches}
    fixed = {name: value for name, value in sorted(script.settings.items()) if name not in passed}
    lacking = [name for name in MUST_BE_SAID if name not in passed and name not in fixed]
    if "max_steps" in passed or "max_steps" in fixed:
        lacking = [name for name in lacking if name != "num_epochs"]
    if lacking:
        yield from _comment("init.note.lacking", settings=tuple(f"{name} = {UNKNOWN}" for name in lacking))
    if fixed:
        yield f"fixed = {_inline(fixed)}"
    if assumed := sorted(script.assumed & fixed.keys()):
        yield from _comment("init.note.assumed", settings=tuple(assumed))
    yield _rows_line(found, named=script.rows_file)
    output_dir, adapter = script.output_dir, script.adapter
    if "output_dir" not in taken.told:
        yield _with_note(f"output_dir = {_toml(output_dir or adapter or UNKNOWN)}", "init.note.output_dir")
        if output_dir and adapter and adapter != output_dir:
            inside = adapter.removeprefix(f"{output_dir.rstrip('/')}/")
            yield f"artifacts.adapter = {_toml(adapter if inside == adapter else f'{{output_dir}}/{inside}')}"


def _rows_line(found: Survey, wanted: str | None = None, named: str | None = None) -> str:
    """The training file: the wanted one alone, else the likeliest, which a script may have named."""
    files = [file for file in found.rows if wanted in (None, file.path)]
    if not files:
        if wanted is not None:
            return f"rows = {{ file = {_toml(wanted)}, format = {_toml(UNKNOWN)} }}"
        return _with_note(f'rows = {{ file = "{UNKNOWN}", format = "messages" }}', "init.note.elsewhere")

    def likely(file: RowsFile) -> tuple[bool, bool, bool, bool, int]:
        # rows with keys of their own may be an evaluation's
        return file.path == named, "train" in file.path, file.format in FORMATS, bool(file.format), file.rows

    file = max(files, key=likely)
    line = f"rows = {_inline({'file': file.path, 'format': file.format or UNKNOWN})}"
    if file.format is None:
        return _with_note(line, "init.note.own_rows", rows=file.rows, keys=file.keys)
    return _with_note(line, "init.note.rows", rows=file.rows)


def _evaluate(found: Survey, script: Script | None) -> Iterator[str]:
    yield "[evaluate]"
    if "evaluate" in found.published:
        yield 'preset = "lawqa"'
    elif found.tasks or (script is None and {"lm_eval", "lm-eval"} & found.programs):
        task, folder = next(iter(found.tasks.items()), (UNKNOWN, None))
        include = ["--include_path", folder] if folder else []
        yield 'preset = "lm-eval"'
        yield f"extra = {_toml([*include, '--tasks', task])}"
    elif script is None:
        yield _with_note(f'none = "{UNKNOWN}"', "init.note.none")
    else:
        taken = _taken(script, "evaluation")
        yield from _command(script, taken)
        if "samples" not in taken.told:
            yield _with_note(f"fixed = {{ samples = {UNKNOWN} }}", "init.note.samples", most=MAX_SAMPLES)
        if "output" in taken.told and script.rows_ending:
            yield f'output = "steph-evaluation{script.rows_ending}"'
        yield f"results.file = {_toml('{output}' if 'output' in taken.told else script.results_file or UNKNOWN)}"
        yield from (f"results.{name} = {_toml(path)}" for name, path in script.results.items())
        if "score" not in script.results and not script.rows_ending:
            yield _with_note(f'results.score = "{UNKNOWN}"', "init.note.score")
        if script.row:
            if "rows" not in script.results and not script.rows_ending:
                yield _with_note(f'results.rows = "{UNKNOWN}"', "init.note.results_rows")
            if "correct" in script.row or {"expected", "predicted"} <= script.row.keys():
                yield f"results.row = {_inline(script.row)}"
            else:
                row = {**script.row, "correct": UNKNOWN}
                yield _with_note(f"results.row = {_inline(row)}", "init.note.row_correct")


def _command(script: Script, taken: _Taken) -> Iterator[str]:
    told = dict(taken.told)
    adapter = told.pop("adapter", None) if taken.told.get("adapter", Source("argument", 0)).kind != "argument" else None
    arguments = {one.word: f"{{{place}}}" for place, one in told.items() if one.kind == "argument"}
    words = ["{python}", script.path, *(arguments.get(n, UNKNOWN) for n in range(1, script.arguments + 1))]
    for place, one in told.items():
        words += _passing(one, place)
    yield f"command = {_toml(words)}"
    if adapter:
        yield f"when.adapter = {_toml(_passing(adapter, 'adapter'))}"
    if variables := {str(one.word): f"{{{place}}}" for place, one in told.items() if one.kind == "variable"}:
        yield f"env = {_inline(variables)}"
    yield from (f"when.{name} = {_toml([option])}" for name, option in taken.switches.items())
    if script.has_command_line and taken.others:
        yield from _comment("init.note.left", options=taken.others)


def _passing(source: Source, place: str) -> list[str]:
    """The words of a command that pass what a placeholder stands for, by an option or as `key=value`."""
    if source.kind == "option":
        return [str(source.word), f"{{{place}}}"]
    return [f"{source.word}={{{place}}}"] if source.kind == "key" else []
