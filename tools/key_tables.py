"""The tables of the documentation: keys of `steph.toml` and of profiles, read off their models; the doctor's checks.

`PYTHONPATH=plugins python tools/key_tables.py` rewrites what stands between the marks of PAGES, and nothing around it.
A key's meaning is the string below it in its model. In a Japanese page it is what docs/ja.po says for that string; the
doctor's words stand in the catalogs.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from babel.messages.pofile import read_po
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from steph.base.messages import Language, text
from steph.contract.description import Description, preset_names, preset_text
from steph.contract.placeholders import EVALUATE_NAMES, TRAIN_NAMES
from steph.contract.settings import Profile, Within
from steph.doctor.checks import CATALOG
from steph.doctor.facts import CERTAIN
from steph.record.settings import EvalSettings, TrainSettings

TABLES: Mapping[str, type[BaseModel]] = {"steph.toml": Description, "profile": Profile}
PAGES = tuple(f"docs/{name}{end}" for name in ("steph-toml", "profiles", "doctor") for end in (".md", ".en.md"))
Translate = Callable[[str], str]  # of an English phrase, the words of the page's language
_BLOCK = re.compile(r"(<!-- keys: (?P<name>[\w.]+) -->\n).*?(<!-- keys end -->)", re.S)
_HIDDEN = {("path",), ("sha256",)}  # of a profile: which file it was


class MeaningError(ValueError):
    """A key has no string below it that says what it means; the message names it."""


def language_of(page: Path) -> Language:
    """The language of a page, by its name."""
    return "en" if page.name.endswith(".en.md") else "ja"


def translation_of(page: Path) -> Translate:
    """What turns a phrase into the page's language; it raises MeaningError for one that docs/ja.po does not have."""
    if language_of(page) == "en":
        return str
    with (page.parent / "ja.po").open("rb") as file:
        words = {str(message.id): str(message.string) for message in read_po(file, locale="ja") if message.id}

    def translated(phrase: str) -> str:
        if not words.get(phrase):
            raise MeaningError(f"docs/ja.po: no Japanese for {phrase!r}")
        return words[phrase]

    return translated


def page(text: str, language: Language, translate: Translate = str) -> str:
    """A page with all its tables as the models have them now; KeyError for a table that nobody knows."""

    def block(match: re.Match[str]) -> str:
        match match["name"]:
            case "presets":
                content = preset_blocks()
            case "doctor":
                content = doctor_sections(language)
            case "placeholders":
                content = placeholder_table(translate)
            case name:
                content = table(TABLES[name], translate)
        return f"{match[1]}\n{content}\n{match[3]}"

    return _BLOCK.sub(block, text)


def placeholder_table(translate: Translate = str) -> str:
    """One row a placeholder: its name, in which sections it may stand, its meaning."""
    train, evaluate = (
        {**TRAIN_NAMES, **_strings_below(TrainSettings)},
        {**EVALUATE_NAMES, **_strings_below(EvalSettings)},
    )
    rows = []
    for name in dict.fromkeys((*train, *evaluate)):
        where = [section for section, known in (("train", train), ("evaluate", evaluate)) if name in known]
        said = translate(train.get(name) or evaluate[name]).rstrip(".。")
        rows.append(f"| `{{{name}}}` | {', '.join(f'`[{section}]`' for section in where)} | {said} |\n")
    return _head(translate, "placeholder", "in", "stands for") + "".join(rows)


def preset_blocks() -> str:
    """Each preset, word for word."""
    return "\n".join(f"### `{name}`\n\n```toml\n{preset_text(name)}```\n" for name in preset_names())


def doctor_sections(language: Language) -> str:
    """A section for each of the doctor's checks, with a table of the ways in which it may not hold."""
    when, remedy, certain = (text(f"doctor.page.{name}", language) for name in ("when", "remedy", "certain"))
    sections = []
    for kind in CATALOG:
        looks_at = text("doctor.page.looks_at", language, {"what": kind.words("looks_at", language)})
        only = f" {text('doctor.page.gpu_only', language)}" if kind.gpu_only else ""
        rows = ""
        for key, weight in kind.troubles.items():
            level = f"{weight[0]}, **{certain}**" if weight is CERTAIN else weight[0]
            rows += f"| {level} | {kind.words(f'{key}.when', language)} | {kind.words(f'{key}.remedy', language)} |\n"
        sections.append(f"## {kind.id}\n\n{looks_at}{only}\n\n| | {when} | {remedy} |\n|---|---|---|\n{rows}")
    return "\n".join(sections)


def table(model: type[BaseModel], translate: Translate = str) -> str:
    """One row a key, dotted from the file's top, with what is allowed, the default and the meaning."""
    ways = (way for way in _ways(model) if tuple(step.name for step in way) not in _HIDDEN)
    return _head(translate, "key", "allowed", "default", "meaning") + "".join(_row(way, translate) for way in ways)


def _head(translate: Translate, *names: str) -> str:
    return f"| {' | '.join(map(translate, names))} |\n|{'---|' * len(names)}\n"


@dataclass(frozen=True)
class Part:
    """One name on the way from a file's top to a key, and the model that has it."""

    model: type[BaseModel]
    name: str

    @property
    def field(self) -> FieldInfo:
        """What the model says of it."""
        return self.model.model_fields[self.name]

    @property
    def shown(self) -> str:
        """As in a dotted key; the name of an array of tables in brackets."""
        return f"[{self.name}]" if _inner_model(self.field) and "tuple" in str(self.field.annotation) else self.name


Way = tuple[Part, ...]


def _ways(model: type[BaseModel], before: Way = ()) -> Iterator[Way]:
    for name in model.model_fields:
        step = Part(model, name)
        inner = _inner_model(step.field)
        if inner is None:
            yield (*before, step)
        else:
            yield from _ways(inner, (*before, step))


def _inner_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model that validates a table or an array of tables; None where the key has a plain value."""
    bounds = [item.bounds for item in field.metadata if isinstance(item, Within)]
    candidates = [*bounds, field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((c for c in candidates if inspect.isclass(c) and issubclass(c, BaseModel)), None)


def _row(way: Way, translate: Translate) -> str:
    step = way[-1]
    default = (
        translate("required") if step.field.is_required() else _value(step.field.get_default(call_default_factory=True))
    )
    whole = _schema(step.model)
    schema = whole["properties"][step.name]
    cells = (
        f"`{'.'.join(step.shown for step in way)}`",
        _allowed(schema, whole.get("$defs", {}), translate),
        default,
        translate(meaning(way)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


@cache  # a model is looked up for each of its keys, and its source parsed anew took a hundred times as long
def _schema(model: type[BaseModel]) -> Mapping[str, Any]:
    return model.model_json_schema()


def _value(default: object) -> str:
    if default is None:
        return "—"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any], translate: Translate) -> str:
    if "anyOf" in schema:
        given = next(option for option in schema["anyOf"] if option.get("type") != "null")
        return _allowed(given, definitions, translate)
    if "$ref" in schema:
        return _allowed(definitions[schema["$ref"].rpartition("/")[2]], definitions, translate)
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema["type"] == "boolean":
        return "`true`, `false`"
    words = {"string": "text", "integer": "whole number", "number": "number", "object": "table of texts"}
    if schema["type"] == "array":
        inner = schema["items"]["type"]
        return translate("list of lists of texts" if inner == "array" else f"list of {words[inner]}s")
    kind = words[schema["type"]] + (", not empty" if "minLength" in schema else "")
    return translate(kind) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) and bound < 10**9 else f"{bound:g}"


def meaning(way: Way) -> str:
    """The string below a key, else below its table, in a model or in the one that it refines; raises MeaningError."""
    for step in reversed(way):
        models = step.model.__mro__[: step.model.__mro__.index(BaseModel)]
        texts = (_strings_below(model).get(step.name) for model in models)
        if text := next(filter(None, texts), None):
            return text
    raise MeaningError(f"{way[-1].model.__name__}.{way[-1].name}: no string below this key says what it means")


@cache
def _strings_below(model: type) -> Mapping[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    found = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        path = Path(name)
        made = page(path.read_text(encoding="utf-8"), language_of(path), translation_of(path))
        path.write_text(made, encoding="utf-8")
