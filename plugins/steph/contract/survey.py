"""What a folder says of its pipeline, for the first draft of a description: scripts, rows, tasks, requirements.

Python is read as a syntax tree and never run. What is found may be wrong; `steph init` writes it down as a draft.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from steph.base.files import json_rows
from steph.contract.command_line import answers_help
from steph.contract.description import Paths
from steph.contract.families import Family, family_in
from steph.contract.rows import RowFormat, format_of
from steph.contract.settings_files import SettingsFile, read_settings_file

MOST_FILES, MOST_BYTES, MOST_DEPTH, FIRST_ROWS = 2000, 4 << 20, 4, 20
_PASSED_OVER = {".git", ".venv", "venv", "env", "node_modules", "__pycache__", "site-packages", "steph-out", "reports"}
_PROGRAMS = ("trl", "trl sft", "lm_eval", "lm-eval", "llamafactory", "axolotl", "unsloth")
_TRAINERS = ("SFTTrainer", "Trainer", "Seq2SeqTrainer")
_ARGUMENTS = {"SFTConfig": "trl", "TrainingArguments": "transformers", "Seq2SeqTrainingArguments": "transformers"}
_UNSLOTH = ("FastLanguageModel", "FastModel", "FastVisionModel")
_SCORES = ("accuracy", "acc", "score", "exact_match", "f1", "em", "pass_rate")
_COUNTS = ("total", "count", "n", "num_samples", "total_count", "samples", "n_samples", "num_examples")
_ROWS = ("results", "rows", "predictions", "samples", "details", "examples", "records", "outputs")
_ROW_KEYS = {
    "question": ("question", "prompt", "input", "query", "instruction"),
    "choices": ("choices", "options"),
    "expected": ("expected", "answer", "target", "label", "gold", "reference", "correct_answer"),
    "predicted": ("predicted", "prediction", "pred", "predicted_answer", "parsed"),
    "response": ("response", "output", "generation", "completion", "raw", "text"),
    "correct": ("correct", "is_correct", "hit", "match"),
}
# keyword arguments of transformers', trl's and peft's classes, by the profile's names
_SETTINGS = {
    "num_train_epochs": "num_epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "max_length": "max_seq_length",
    "max_seq_length": "max_seq_length",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "warmup_ratio": "warmup_ratio",
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "load_in_4bit": "use_4bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_compute_dtype": "bnb_4bit_compute_dtype",
    "logging_steps": "logging_steps",
}
# what these classes take where nothing is said (transformers 5.23, trl 1.16, peft 0.21; unsloth by its documentation)
_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "transformers": {
        "num_epochs": 3, "batch_size": 8, "learning_rate": 5e-5, "gradient_accumulation_steps": 1,
        "logging_steps": 500,
    },
    "trl": {
        "num_epochs": 3, "batch_size": 8, "learning_rate": 2e-5, "gradient_accumulation_steps": 1,
        "logging_steps": 10, "max_seq_length": 1024,
    },
    "peft": {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "unsloth": {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "max_seq_length": 2048, "use_4bit": True},
}  # fmt: skip


@dataclass(frozen=True)
class RowsFile:
    """A file of training rows: its path from the root, how its rows are written (None: no known way), how many."""

    path: str
    format: RowFormat | None
    rows: int


@dataclass(frozen=True)
class Script:
    """A Python program: what it does, what its command line takes, and what stands in it.

    `unsloth`: whether Unsloth loads its model. `options`: option strings, each with whether it takes no value.
    `settings`: the profile's names with the values in the text; `assumed` are those that a library's default gives.
    """

    path: str
    trains: bool = False
    evaluates: bool = False
    has_command_line: bool = False
    unsloth: bool = False
    options: Mapping[str, bool] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    assumed: frozenset[str] = frozenset()
    model: str | None = None
    output_dir: str | None = None
    adapter: str | None = None
    rows_file: str | None = None
    results_file: str | None = None
    results: Mapping[str, str] = field(default_factory=dict)
    row: Mapping[str, str] = field(default_factory=dict)


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


def survey(root: Path) -> Survey:
    """Look through a folder; what can't be read is passed over."""
    scripts, rows, tasks, settings, notebooks, wanted = [], [], {}, [], [], ""
    texts: list[str] = []
    for path in _files(root):
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
            found = _rows_file(path, name)
            is_kept = found is not None and (path.suffix == ".jsonl" or found.format is not None)
            rows += [found] if found is not None and is_kept else []
        elif path.suffix in (".yaml", ".yml"):
            text = _text(path)
            texts.append(text)
            if task := re.search(r"^task:\s*['\"]?([\w.-]+)", text, re.M):
                tasks[task[1]] = Path(name).parent.as_posix()
            else:
                settings += [one] if (one := read_settings_file(root, name, text)) else []
        if path.name in ("pyproject.toml", "setup.cfg", "Makefile", "README.md") or path.suffix in (".txt", ".sh"):
            wanted += _text(path)
    programs = frozenset(one for one in _PROGRAMS if re.search(rf"(?<![\w-]){re.escape(one)}(?![\w-])", wanted))
    paths = {"train": Paths().train_script, "evaluate": Paths().evaluate_script}
    published = frozenset(section for section, path in paths.items() if (root / path).is_file())
    family = family_in([*texts, wanted])
    return Survey(programs, tuple(scripts), tuple(rows), tasks, tuple(settings), tuple(notebooks), published, family)


def read_script(path: str, text: str) -> Script:
    """What one program's text says of it."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Script(path)
    constants = _constants(nodes)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    names = {_name(call.func) for call in calls}
    trains = bool(names & {*_TRAINERS, "get_peft_model"}) or ("backward" in names and "step" in names)
    is_named = bool(re.search(r"(?:^|[/_])(?:eval|evaluat|bench|predict|infer)", path.lower()))
    evaluates = not trains and ("generate" in names or "PeftModel" in text) and is_named
    settings, assumed = _settings(calls, constants)
    results, row = _results(nodes)
    return Script(
        path=path,
        trains=trains,
        evaluates=evaluates,
        has_command_line=answers_help(text),
        unsloth=any(map(_is_unsloths, calls)),
        options=_options(calls),
        settings=settings,
        assumed=frozenset(assumed),
        model=_argument(calls, ("from_pretrained",), ("pretrained_model_name_or_path", "model_name"), constants),
        output_dir=_argument(calls, tuple(_ARGUMENTS), ("output_dir",), constants),
        adapter=_argument(calls, ("save_pretrained", "save_model"), ("save_directory", "output_dir"), constants),
        rows_file=_file_in(nodes, (".jsonl",)),
        results_file=_file_in(nodes, (".json",)),
        results=results,
        row=row,
    )


def _files(root: Path) -> Iterator[Path]:
    def walk(folder: Path, depth: int) -> Iterator[Path]:
        try:
            children = sorted(folder.iterdir())
        except OSError:
            return
        for path in children:
            if path.is_dir() and not path.is_symlink():
                if depth < MOST_DEPTH and path.name not in _PASSED_OVER and not path.name.startswith("."):
                    yield from walk(path, depth + 1)
            elif path.is_file() and path.stat().st_size <= MOST_BYTES:
                yield path

    yield from islice(walk(root, 0), MOST_FILES)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def _rows_file(path: Path, name: str) -> RowsFile | None:
    try:
        rows = list(json_rows(path))
    except OSError:
        return None
    return RowsFile(name, format_of(rows[:FIRST_ROWS]), len(rows)) if rows else None


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _constants(nodes: list[ast.AST]) -> dict[str, object]:
    """What a name is set to, where that is a plain value."""
    found: dict[str, object] = {}
    for node in nodes:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and (value := _plain(node.value, found)) is not None:
            found.setdefault(target.id, value)
    return found


def _plain(node: ast.expr, constants: Mapping[str, object]) -> object:
    """A value that the text spells: a literal, a name that stands for one, or `torch.bfloat16` as its last word."""
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.Attribute):
        return node.attr if _name(node.value) == "torch" else None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _settings(calls: list[ast.Call], constants: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Settings in the keyword arguments of the libraries' classes, and which of them are the libraries' defaults."""
    found: dict[str, object] = {}
    defaults: dict[str, object] = {}
    for call in calls:
        name = _name(call.func)
        library = "peft" if name == "LoraConfig" else "unsloth" if _is_unsloths(call) else _ARGUMENTS.get(name)
        if library is None and name not in ("BitsAndBytesConfig", *_TRAINERS, "from_pretrained"):
            continue
        defaults |= _DEFAULTS.get(library or "", {})
        for word in call.keywords:
            value = _plain(word.value, constants)
            if word.arg in ("bf16", "fp16") and value is True:
                found["mixed_precision"] = word.arg
            elif word.arg == "target_modules" and isinstance(value, list | tuple):
                found["target_modules"] = list(value)
            elif word.arg in _SETTINGS and isinstance(value, int | float | str):
                found[_SETTINGS[word.arg]] = value
    if "max_steps" in found:
        defaults.pop("num_epochs", None)
    assumed = [name for name in defaults if name not in found]
    return {**defaults, **found}, assumed


def _is_unsloths(call: ast.Call) -> bool:
    """Whether this is `FastLanguageModel.from_pretrained(…)` or its like, which loads a model, or makes its LoRA."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return owner is not None and _name(owner) in _UNSLOTH and _name(call.func) in ("from_pretrained", "get_peft_model")


def _argument(
    calls: list[ast.Call], functions: tuple[str, ...], words: tuple[str, ...], constants: Mapping[str, object]
) -> str | None:
    """The text that one of these functions is given first, or by one of these names."""
    for call in calls:
        if _name(call.func) not in functions:
            continue
        given = [*(word.value for word in call.keywords if word.arg in words), *call.args[:1]]
        values = (_plain(node, constants) for node in given)
        if text := next((value for value in values if isinstance(value, str) and value), None):
            return text
    return None


def _options(calls: list[ast.Call]) -> dict[str, bool]:
    """The option strings of argparse and click, each with whether it is a switch."""
    found: dict[str, bool] = {}
    for call in calls:
        if _name(call.func) not in ("add_argument", "option", "Option"):
            continue
        texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        long = next((text for text in texts if text.startswith("--")), None)
        words: dict[str, Any] = {word.arg or "": _plain(word.value, {}) for word in call.keywords}
        if long:
            found[long] = str(words.get("action", "")).startswith("store_") or bool(words.get("is_flag"))
    return found


def _file_in(nodes: list[ast.AST], endings: tuple[str, ...]) -> str | None:
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return next((text for text in texts if text.endswith(endings) and "\n" not in text and "{" not in text), None)


def _results(nodes: list[ast.AST]) -> tuple[dict[str, str], dict[str, str]]:
    """Where the score, the count and the rows are in a table that the text spells, and what its rows have."""
    tables = [_keys(node) for node in nodes if isinstance(node, ast.Dict)]
    results: dict[str, str] = {}
    for keys in tables:
        score = next((name for name in _SCORES if name in keys), None)
        if score:
            results["score"] = score
            for place, names in (("count", _COUNTS), ("rows", _ROWS)):
                if known := next((name for name in names if name in keys), None):
                    results[place] = known
            break
    rows = [
        {place: known for place, names in _ROW_KEYS.items() if (known := next((n for n in names if n in keys), None))}
        for keys in tables
    ]
    row = max(rows, key=len, default={})
    return results, row if len(row) > 1 else {}


def _keys(node: ast.Dict) -> set[str]:
    return {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
