"""Reads Python programs as syntax trees: whether one answers `--help`, and what a training or an evaluation has inside.

Nothing is run. A program without a command line must not be asked for `--help`: it would start its work instead.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("known_names.toml").read_text(encoding="utf-8"))
_HELP = NAMES["help"]
_TRAINERS = ("SFTTrainer", "Trainer", "Seq2SeqTrainer")
_ARGUMENTS = {"SFTConfig": "trl", "TrainingArguments": "transformers", "Seq2SeqTrainingArguments": "transformers"}
_UNSLOTH = ("FastLanguageModel", "FastModel", "FastVisionModel")


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


def _nodes(source: str) -> list[ast.AST]:
    """Every node of a program; none where the text is no Python here."""
    try:
        return list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def answers_help(source: str) -> bool:
    """Whether this program prints its options when it is asked for `--help`, as far as its own text shows it.

    False where in doubt: text that is no Python here, a parser in another file, arguments that stand in the text.
    """
    nodes = _nodes(source)
    origins: dict[str, str] = {}  # what each imported name stands for
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                origins[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            origins |= {alias.asname or alias.name: f"{node.module or ''}.{alias.name}" for alias in node.names}

    used = {_dotted(node, origins) for node in nodes}
    if used & {*_HELP["entry_points"]}:
        return True
    for name in used:
        module, _, last = name.rpartition(".")
        if last in _HELP["click_entry_points"] and module.partition(".")[0] in _HELP["click_modules"]:
            return True
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    parsers = [call for call in calls if _dotted(call.func, origins).rpartition(".")[2] in _HELP["parsers"]]
    given = [{word.arg: word.value for word in call.keywords}.get("add_help") for call in parsers]
    if given and all(isinstance(value, ast.Constant) and not value.value for value in given):
        return False
    has_parser = any(name.rpartition(".")[2] in _HELP["parsers"] for name in used)
    return has_parser and any(map(_parses_command_line, calls))


def _dotted(node: ast.AST, origins: Mapping[str, str]) -> str:
    """The whole name of an imported thing where it is used, such as `argparse.ArgumentParser`; else nothing."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in origins:
        return ""
    return ".".join([origins[node.id], *reversed(parts)])


def _parses_command_line(call: ast.Call) -> bool:
    """Whether a call parses, and not arguments that are written out there, as a notebook's export does."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _HELP["parse_methods"]:
        return False
    given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "args")]
    return not any(
        isinstance(value, ast.List | ast.Tuple) or (isinstance(value, ast.Constant) and value.value is not None)
        for value in given
    )


def read_script(path: str, text: str) -> Script:
    """What one program's text says of it; nothing but its path where the text is no Python here."""
    nodes = _nodes(text)
    constants: dict[str, object] = {}  # what a name is first set to, where that is a plain value
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _plain(node.value, constants)
            if value is not None:
                constants.setdefault(node.targets[0].id, value)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    names = {_name(call.func) for call in calls}

    def given(functions: Sequence[str], *words: str) -> str | None:
        """The text that one of these functions is given first, or by one of these names."""
        for call in calls:
            if _name(call.func) in functions:
                places = [*(word.value for word in call.keywords if word.arg in words), *call.args[:1]]
                found = (_plain(node, constants) for node in places)
                if said := next((one for one in found if isinstance(one, str) and one), None):
                    return said
        return None

    def file_name(ending: str) -> str | None:
        return next((one for one in texts if one.endswith(ending) and not {"\n", "{"} & {*one}), None)

    trains = bool(names & {*_TRAINERS, "get_peft_model"}) or {"backward", "step"} <= names
    is_named = bool(re.search(r"(?:^|[/_])(?:eval|evaluat|bench|predict|infer)", path.lower()))
    settings, assumed = _settings(calls, constants)
    results, row = _results(nodes)
    return Script(
        path=path,
        trains=trains,
        evaluates=not trains and is_named and ("generate" in names or "PeftModel" in text) and bool(nodes),
        has_command_line=answers_help(text),
        unsloth=any(map(_is_unsloths, calls)),
        options=_options(calls),
        settings=settings,
        assumed=assumed,
        model=given(("from_pretrained",), "pretrained_model_name_or_path", "model_name"),
        output_dir=given(tuple(_ARGUMENTS), "output_dir"),
        adapter=given(("save_pretrained", "save_model"), "save_directory", "output_dir"),
        rows_file=file_name(".jsonl"),
        results_file=file_name(".json"),
        results=results,
        row=row,
    )


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


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


def _is_unsloths(call: ast.Call) -> bool:
    """Whether this is `FastLanguageModel.from_pretrained(…)` or its like, which loads a model, or makes its LoRA."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return owner is not None and _name(owner) in _UNSLOTH and _name(call.func) in ("from_pretrained", "get_peft_model")


def _settings(calls: list[ast.Call], constants: Mapping[str, object]) -> tuple[dict[str, object], frozenset[str]]:
    """Settings in the keyword arguments of the libraries' classes, and which of them are the libraries' defaults."""
    found: dict[str, object] = {}
    defaults: dict[str, object] = {}
    for call in calls:
        name = _name(call.func)
        library = "peft" if name == "LoraConfig" else "unsloth" if _is_unsloths(call) else _ARGUMENTS.get(name)
        if library is None and name not in ("BitsAndBytesConfig", *_TRAINERS, "from_pretrained"):
            continue
        defaults |= NAMES["defaults"].get(library, {})
        for word in call.keywords:
            value = _plain(word.value, constants)
            if word.arg in ("bf16", "fp16") and value is True:
                found["mixed_precision"] = word.arg
            elif word.arg == "target_modules" and isinstance(value, list | tuple):
                found["target_modules"] = list(value)
            elif word.arg in NAMES["arguments"] and isinstance(value, int | float | str):
                found[NAMES["arguments"][word.arg]] = value
    if "max_steps" in found:
        defaults.pop("num_epochs", None)
    return {**defaults, **found}, frozenset(defaults.keys() - found.keys())


def _options(calls: list[ast.Call]) -> dict[str, bool]:
    """The option strings of argparse and click, each with whether it is a switch."""
    found: dict[str, bool] = {}
    for call in calls:
        if _name(call.func) not in ("add_argument", "option", "Option"):
            continue
        texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        long = next((text for text in texts if text.startswith("--")), None)
        words = {word.arg: _plain(word.value, {}) for word in call.keywords}
        if long:
            found[long] = str(words.get("action", "")).startswith("store_") or bool(words.get("is_flag"))
    return found


def _results(nodes: list[ast.AST]) -> tuple[dict[str, str], dict[str, str]]:
    """Where the score, the count and the rows are in a table that the text spells, and what its rows have."""
    tables = [
        {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
        for node in nodes
        if isinstance(node, ast.Dict)
    ]

    def named(keys: set[str], places: Mapping[str, Sequence[str]]) -> dict[str, str]:
        found = {place: next((name for name in names if name in keys), None) for place, names in places.items()}
        return {place: name for place, name in found.items() if name is not None}

    results = next((found for keys in tables if "score" in (found := named(keys, NAMES["results"]))), {})
    row = max((named(keys, NAMES["results_row"]) for keys in tables), key=len, default={})
    return results, row if len(row) > 1 else {}
