"""Reads Python programs as syntax trees: whether one answers `--help`, and what a training or an evaluation has inside.

Nothing is run. A program without a command line must not be asked for `--help`: it would start its work instead.
"""

from __future__ import annotations

import ast
import contextlib
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

NAMES: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("known_names.toml").read_text(encoding="utf-8"))
_HELP = NAMES["help"]
_TRAINERS = ("SFTTrainer", "Trainer", "Seq2SeqTrainer")
_ARGUMENTS = {"SFTConfig": "trl", "TrainingArguments": "transformers", "Seq2SeqTrainingArguments": "transformers"}
_UNSLOTH = ("FastLanguageModel", "FastModel", "FastVisionModel")
_WRITERS = {"dump", "to_csv", "to_json", "write_text", "DictWriter", "writer", "write"}
_CASTS = ("int", "float", "str", "bool", "Path", "expanduser", "fspath", "abspath")
_OF_TRAINER = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "gradient_accumulation_steps",
    "logging_steps",
)  # fmt: skip
_STARTERS = ("run", "Fire", "cli", "auto_cli", "CLI")  # are given a function that the command line calls
_OF_CLASSES = ("HfArgumentParser", "TrlParser", "add_arguments", "parse", "cli", "CLI")  # or a class
_OPTIMIZERS = re.compile("adam|sgd|lion|adafactor|muon|rmsprop|optim", re.IGNORECASE)
_READERS = ("read_csv", "read_json", "load_dataset", "load_from_disk")


@dataclass(frozen=True)
class Source:
    """Where a program has a value from: the value itself, or how whoever starts the program says it.

    `word`: the value; the `option`; the place of an `argument`, from 1 on; the `variable` of the environment; or the
    `key` of a file of settings that its command line overrides, as hydra's.
    """

    kind: Literal["value", "option", "argument", "variable", "key"]
    word: Any


@dataclass(frozen=True)
class Script:
    """A Python program: what it does, what its command line takes, and what stands in it.

    `unsloth`: whether Unsloth loads its model. `options`: option strings, each with whether it takes no value.
    `arguments`: how many more it takes by their place. `settings`: the profile's names with the values in the text;
    `assumed` are those that a library's default gives. `told`: settings and places that whoever starts it says, and
    how. `rows_ending`: of the file, where its results are rows alone, a table or a line each.
    """

    path: str
    trains: bool = False
    evaluates: bool = False
    has_command_line: bool = False
    unsloth: bool = False
    options: Mapping[str, bool] = field(default_factory=dict)
    arguments: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    assumed: frozenset[str] = frozenset()
    told: Mapping[str, Source] = field(default_factory=dict)
    model: str | None = None
    output_dir: str | None = None
    adapter: str | None = None
    rows_file: str | None = None
    results_file: str | None = None
    results: Mapping[str, str] = field(default_factory=dict)
    row: Mapping[str, str] = field(default_factory=dict)
    rows_ending: str = ""


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
    found = _Program(nodes)
    trains = bool(found.names & {*_TRAINERS, "get_peft_model"}) or {"backward", "step"} <= found.names
    is_named = bool(re.search(r"(?:^|[/_])(?:eval|evaluat|bench|predict|infer)", path.lower()))
    answers, writes = "generate" in found.names, bool(found.names & _WRITERS)
    settings, told, assumed = _settings(found)
    places = _places(found)
    adapter, output_dir = places.pop("saved", None), found.given(_ARGUMENTS, "output_dir", place=0)
    if trains and (saved := output_dir or adapter):
        places["output_dir"] = saved
    told |= {name: one for name, one in places.items() if one.kind != "value" and name not in told}
    results, row, rows_ending = _results(found)
    return Script(
        path=path,
        trains=trains,
        evaluates=not trains
        and bool(nodes)
        and ((answers and writes) or (is_named and (answers or "PeftModel" in text))),
        has_command_line=answers_help(text),
        unsloth=any(map(_is_unsloths, found.calls)),
        options=found.options,
        arguments=max(
            (one.word for one in (*found.told.values(), *told.values()) if one.kind == "argument"), default=0
        ),
        settings=settings,
        assumed=assumed,
        told=told,
        model=_text_of(places.get("model")),
        output_dir=_text_of(output_dir),
        adapter=_text_of(adapter),
        rows_file=next((one for one in found.texts if one.endswith(".jsonl") and not {"\n", "{"} & {*one}), None),
        results_file=_text_of(places.get("output")),
        results=results,
        row=row,
        rows_ending=rows_ending,
    )


def _text_of(source: Source | None) -> str | None:
    return source.word if source is not None and source.kind == "value" and isinstance(source.word, str) else None


def _name(node: ast.AST | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _named(call: ast.AST) -> str:
    """The last word of what a call calls, or a decorator is."""
    return _name(call.func if isinstance(call, ast.Call) else call)


def _literal(node: ast.AST | None) -> Any:  # noqa: ANN401 - whatever it is
    """The value that an expression spells, as a product too; None for everything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        one, other = _literal(node.left), _literal(node.right)
        return one * other if {type(one), type(other)} <= {int, float} else None
    if isinstance(node, ast.expr):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(node)
    return None


def _key(node: ast.expr | None) -> str | None:
    found = _literal(node)
    return found if isinstance(found, str) else None


def _texts(nodes: Iterable[ast.AST]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


class _Program:
    """One program's text: what it calls, what its command line takes, and where its values are from.

    Names are followed without their scopes; what may be from two places is from none.
    """

    def __init__(self, nodes: Sequence[ast.AST]) -> None:
        self.nodes = nodes
        self.calls = [node for node in nodes if isinstance(node, ast.Call)]
        self.texts = _texts(nodes)
        self.names = {_named(call) for call in self.calls}
        self.options: dict[str, bool] = {}
        self.told: dict[str, Source] = {}  # by the name that the program has for it
        self._variables: dict[str, list[ast.expr | None]] = {}  # what is assigned; None: what can't be read
        self._fields: dict[str, list[ast.expr | None]] = {}  # of classes, objects and tables
        self._parameters: dict[str, list[tuple[ast.FunctionDef, int, ast.expr | None]]] = {}  # function, place, default
        self._overridden: set[str] = set()  # objects whose fields are keys that a command line overrides
        self._written: set[str] = set()  # keys of tables that are set one by one
        self._known: dict[str, Source | None] = {}
        self._started = {_name(one) for call in self.calls if _named(call) in _STARTERS for one in call.args[:1]}
        parsers = [call for call in self.calls if _named(call) in _OF_CLASSES]
        self._parsed = {_name(one) for call in parsers for one in ast.walk(call)}
        for node in nodes:
            self._note(node)
        for node in sorted(nodes, key=lambda node: not isinstance(node, ast.Call)):  # click's stand above its function
            self._note_options(node)

    def _note(self, node: ast.AST) -> None:
        """Note what a statement binds to names."""
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    for one in ast.walk(target):
                        self._bind(one, value if one is target else None)
            case ast.AnnAssign(target=target, value=value):
                self._bind(target, value)
            case ast.AugAssign(target=target) | ast.For(target=target) | ast.NamedExpr(target=target):
                self._bind(target, None)
            case ast.Subscript(slice=ast.Constant(value=key), ctx=ast.Store()):
                self._written.add(str(key))
            case ast.ClassDef(body=body):
                for part in body:
                    if isinstance(part, ast.AnnAssign):
                        is_made = isinstance(part.value, ast.Call) and _named(part.value) == "field"  # of a dataclass
                        value = self.words(part.value).get("default") if is_made else part.value  # type: ignore[arg-type]
                        self._fields.setdefault(_name(part.target), []).append(value)
                    elif isinstance(part, ast.Assign):
                        self._fields.setdefault(_name(part.targets[0]), []).append(part.value)
            case ast.Call() if _named(node) in ("SimpleNamespace", "Namespace", "dict", "update"):
                for name, value in self.words(node).items():
                    self._fields.setdefault(name or "", []).append(value)
            case ast.Dict():
                for name, value in zip(map(_key, node.keys), node.values, strict=True):
                    self._fields.setdefault(name or "", []).append(value)
            case ast.FunctionDef(args=args):
                for place, (one, default) in enumerate(_parameters(args)):
                    self._parameters.setdefault(one.arg, []).append((node, place, default))

    def _bind(self, target: ast.AST, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name | ast.Attribute) and isinstance(target.ctx, ast.Store):
            names = self._variables if isinstance(target, ast.Name) else self._fields
            names.setdefault(_name(target), []).append(value)

    def _note_options(self, node: ast.AST) -> None:
        """Note what the command line takes: by a parser's calls, a function's parameters or a class's fields."""
        match node:
            case ast.Call() if _named(node) in ("add_argument", "option", "argument") and (said := _texts(node.args)):
                words = self.words(node)
                option = next((one for one in sorted(said, key=len, reverse=True) if one.startswith("-")), "")
                plain = next((one for one in said if not one.startswith("-")), option.lstrip("-").replace("-", "_"))
                name = str(_literal(words.get("dest")) or plain).partition("/")[0]
                is_switch = "action" in words and bool(re.search("store_|Boolean", ast.unparse(words["action"])))
                self._take(name, option, is_switch=is_switch or bool(_literal(words.get("is_flag"))))
            case ast.FunctionDef(decorator_list=marks, args=args) if self._is_started(node):
                if "main" in map(_named, marks):  # hydra's
                    self._overridden |= {one.arg for one in args.args[:1]}
                elif not {"option", "argument"} & {*map(_named, marks)}:
                    for one, default in _parameters(args):
                        self._take_parameter(one, default)
            case ast.Name(id=name, ctx=ast.Load()) if name in _ARGUMENTS and name in self._parsed:
                for plain in ("output_dir", *_OF_TRAINER, *(["max_length"] if name == "SFTConfig" else [])):
                    self._take(plain, f"--{plain}")
            case ast.ClassDef(name=name, body=body) if name in self._parsed:
                for part in body:
                    if isinstance(part, ast.AnnAssign):
                        name, is_tyro = _name(part.target), "cli" in self.names
                        option = f"--{name.replace('_', '-') if is_tyro else name}"
                        self._take(name, option, is_switch=_name(part.annotation) == "bool")

    def _take(self, name: str, option: str, *, is_switch: bool = False) -> None:
        """One option, or without a name one more argument by its place."""
        places = 1 + sum(one.kind == "argument" for one in self.told.values())
        self.told[name] = Source("option", option.partition("/")[0]) if option else Source("argument", places)
        if option:
            self.options[option.partition("/")[0]] = is_switch or "/" in option

    def _take_parameter(self, one: ast.arg, default: ast.expr | None) -> None:
        """A parameter of a function that typer, fire or tyro calls."""
        parts = [part for part in (one.annotation, default) if part is not None]
        marks = [call for part in parts for call in ast.walk(part) if isinstance(call, ast.Call)]
        made = next((call for call in marks if _named(call) in ("Option", "Argument")), None)
        own = next((text for text in _texts(made.args) if text.startswith("--")), "") if made else ""
        is_fire = "Fire" in self.names
        is_argument = _named(made) == "Argument" if made else default is None and not is_fire
        option = own or f"--{one.arg if is_fire else one.arg.replace('_', '-')}"
        is_switch = isinstance(_literal(default), bool) and not is_fire
        self._take(one.arg, "" if is_argument else option, is_switch=is_switch)

    def _is_started(self, function: ast.FunctionDef) -> bool:
        """Whether a library calls this function with what the command line says."""
        return function.name in self._started or bool({*map(_named, function.decorator_list)} & {"command", "main"})

    def words(self, call: ast.Call) -> dict[str | None, ast.expr]:
        """A call's keyword arguments, also of a table that is spelled for it; under None what can't be read."""
        found: dict[str | None, ast.expr] = {}
        for word in call.keywords:
            value, tables = word.value, self._variables.get(_name(word.value), ())
            if word.arg is None and isinstance(value, ast.Name) and len(tables) == 1 and tables[0] is not None:
                value = tables[0]
            told: dict[str | None, ast.expr] = {word.arg: value}
            if word.arg is None and isinstance(value, ast.Dict):
                told = {_key(key): one for key, one in zip(value.keys, value.values, strict=True)}
            elif word.arg is None and isinstance(value, ast.Call) and _named(value) == "dict":
                told = self.words(value)
            found |= {None if word.arg is None and name in self._written else name: one for name, one in told.items()}
        return found

    def source(self, node: ast.AST | None) -> Source | None:
        """Where an expression's value is from; None where it is computed or may be from several places."""
        if (value := _literal(node)) is not None:
            return Source("value", value)
        match node:
            case ast.Name(id=name):
                return self._once(f"name {name}", partial(self._of_variable, name))
            case ast.Attribute(attr=word, value=ast.Name(id="torch")):
                return Source("value", word)
            case ast.Attribute(attr=name):
                first, *path = ast.unparse(node).split(".")
                return Source("key", ".".join(path)) if first in self._overridden else self._of_field(name)
            case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
                if _name(owner) == "environ" and isinstance(key, str):
                    return Source("variable", key)
                if _name(owner) == "argv" and isinstance(key, int):
                    return Source("argument", key) if key else None
                read = [one for one in self._variables.get(_name(owner), ()) if isinstance(one, ast.Call)]
                is_read = any("load" in _named(one) for one in read)  # of a file's keys nothing is known
                return None if is_read or isinstance(owner, ast.Subscript) else self._of_field(str(key))
            case ast.Call(args=[first, *_]) if re.search(r"getenv$|environ\.get$", ast.unparse(node.func)):
                return Source("variable", key) if isinstance(key := _literal(first), str) else None
            case ast.Call(args=[first]) if _named(node) in _CASTS:
                return self.source(first)
            case ast.BoolOp(op=ast.Or(), values=[first, *_]):
                return self.source(first)
        return None

    def _once(self, key: str, look: Callable[[], Source | None]) -> Source | None:
        """What was found for a name; what refers to itself is from nowhere."""
        if key not in self._known:
            self._known[key] = None
            self._known[key] = look()
        return self._known[key]

    def _of_variable(self, name: str) -> Source | None:
        found = [self.source(one) for one in self._variables.get(name, ())]
        for function, place, default in self._parameters.get(name, ()):
            calls = [call for call in self.calls if _named(call) == function.name]
            given = [self.words(one).get(name, (*one.args, *[default] * 99)[place]) for one in calls] or [default]
            found += [self.told.get(name)] if self._is_started(function) else map(self.source, given)
        return _one_of(found)

    def _of_field(self, name: str) -> Source | None:
        if name in self.told:
            return self.told[name]
        return self._once(f"field {name}", lambda: _one_of([*map(self.source, self._fields.get(name, ()))]))

    def given(self, functions: Collection[str], *words: str, place: int = 99, owner: str = "") -> Source | None:
        """Where that is from which the first of these functions is given by one of these names, or at this place."""
        for call in self.calls:
            whose = _named(call.func.value) if isinstance(call.func, ast.Attribute) else ""
            if _named(call) in functions and re.search(owner, whose):
                named = self.words(call)
                for node in (*(named[word] for word in words if word in named), *call.args[place : place + 1]):
                    found = self.source(node)
                    if found is not None and (found.kind != "value" or isinstance(found.word, str)):
                        return found
        return None


def _parameters(args: ast.arguments) -> list[tuple[ast.arg, ast.expr | None]]:
    """A function's parameters with their defaults."""
    every = [*args.posonlyargs, *args.args]
    missing: list[ast.expr | None] = [None] * (len(every) - len(args.defaults))
    defaults = [*missing, *args.defaults, *args.kw_defaults]
    return [*zip([*every, *args.kwonlyargs], defaults, strict=True)]


def _one_of(sources: Sequence[Source | None]) -> Source | None:
    """What is said from outside, where that is one thing; else the value that all of them are."""
    told = {one for one in sources if one is not None and one.kind != "value"}
    if told:
        return told.pop() if len(told) == 1 else None
    return sources[0] if sources and all(one == sources[0] for one in sources) else None


def _is_unsloths(call: ast.Call) -> bool:
    """Whether this is `FastLanguageModel.from_pretrained(…)` or its like, which loads a model, or makes its LoRA."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return owner is not None and _name(owner) in _UNSLOTH and _name(call.func) in ("from_pretrained", "get_peft_model")


def _settings(found: _Program) -> tuple[dict[str, object], dict[str, Source], frozenset[str]]:
    """Settings that the text has inside, those that it is told, and which of the first are the libraries' defaults."""
    inside: dict[str, object] = {}
    told: dict[str, Source] = {}
    defaults: dict[str, object] = {}
    unclear = _conditional(found, told)  # what no default stands for

    def note(name: str, source: Source | None) -> None:
        if source is None:
            unclear.add(name)
        elif source.kind != "value":
            told.setdefault(name, source)
        elif isinstance(source.word, list | tuple) is (name == "target_modules") and source.word not in (None, -1):
            inside[name] = list(source.word) if name == "target_modules" else source.word

    for call in found.calls:
        name = _named(call)
        library = "peft" if name == "LoraConfig" else "unsloth" if _is_unsloths(call) else _ARGUMENTS.get(name)
        words, own = found.words(call), NAMES["defaults"].get(library, {})
        if library is None and name not in ("BitsAndBytesConfig", *_TRAINERS, "from_pretrained"):
            continue
        defaults |= own
        if None in words:  # a table from elsewhere may set any of them
            unclear |= own.keys() - {NAMES["arguments"].get(word) for word in words}
        for word, node in words.items():
            source = found.source(node)
            if word in ("bf16", "fp16") and source is not None:
                inside |= {"mixed_precision": word} if source == Source("value", True) else {}
                told |= {word: source} if source.kind != "value" else {}
            elif word == "target_modules" or word in NAMES["arguments"]:
                note(NAMES["arguments"].get(word, word), source)
    of_loops = [*_of_loops(found)]
    for name in dict.fromkeys(name for name, _ in of_loops if name not in inside and name not in told):
        source = _one_of([found.source(node) for other, node in of_loops if other == name])
        if source is not None or name not in defaults:
            note(name, source)
    if "max_steps" in {*inside, *told}:
        defaults.pop("num_epochs", None)
    settings = {name: one for name, one in {**defaults, **inside}.items() if name not in unclear and name not in told}
    return settings, told, frozenset(settings.keys() - inside.keys())


def _conditional(found: _Program, told: dict[str, Source]) -> set[str]:
    """The settings of 4-bit where they hold under a condition only; an option that is the condition is `told`."""
    made = {"BitsAndBytesConfig"}
    for node in found.nodes:
        if isinstance(node, ast.Assign) and _named(node.value) in made:
            made |= {_name(target) for target in node.targets}
    for node in found.nodes:
        if isinstance(node, ast.If | ast.IfExp):
            parts = [part if isinstance(part, list) else [part] for part in (node.body, node.orelse)]
            then, other = ({_name(one) for step in part for one in ast.walk(step)} for part in parts)
            # a condition that holds for the training as a whole says nothing of 4-bit
            if made & (then | other) and not (then | other) & {*_TRAINERS, *_ARGUMENTS, "get_peft_model"}:
                source = found.source(node.test)
                if source is not None and source.kind != "value" and not made & other:
                    told["use_4bit"] = source
                return {"use_4bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype"}
    return set()


def _of_loops(found: _Program) -> Iterator[tuple[str, ast.expr]]:
    """What a loop of one's own has in the place of a library's arguments; a weak sign counts for what has a name."""
    for node in found.nodes:
        weak: tuple[str, ast.expr] | None = None
        match node:
            case ast.Call():
                words, name = found.words(node), _named(node)
                places = {"max_length": "max_seq_length"} if name != "generate" else {}
                places |= {"batch_size": "batch_size"} if name == "DataLoader" else {}
                places |= {"lr": "learning_rate"} if _OPTIMIZERS.search(name) else {}
                yield from ((of, words[word]) for word, of in places.items() if word in words)
                if name == "range" and len(node.args) == 3:
                    weak = "batch_size", node.args[2]
            case ast.For(target=target, iter=ast.Call(args=[*_, last])) if re.search("epoch|^ep?$", _name(target)):
                yield "num_epochs", last
            case ast.BinOp(op=ast.Div(), left=left, right=right) if "loss" in ast.unparse(left):
                weak = "gradient_accumulation_steps", right
            case ast.Slice(lower=ast.UnaryOp(op=ast.USub(), operand=most), upper=None):
                weak = "max_seq_length", most
        if weak is not None and isinstance(weak[1], ast.Name | ast.Attribute | ast.Subscript) and found.source(weak[1]):
            yield weak


_ONLY_SETTINGS = re.compile("config|cfg|settings|yaml|yml|toml|template|prompt", re.IGNORECASE)
_LIKELY = {
    "train_file": "data|train|corpus|rows|file|path|jsonl", "output": "out|result|report|pred|save|score",
    "samples": "",
}  # fmt: skip


def _places(found: _Program) -> dict[str, Source]:
    """Model, files and number of questions, as far as the text shows where they are from."""
    loads = partial(found.given, ("from_pretrained",), "pretrained_model_name_or_path", "model_name", place=0)
    places: dict[str, Source | None] = {
        "model": loads(owner="Model(?<!PeftModel)") or loads(owner="^(?!.*Peft)") or found.given(_TRAINERS, "model"),
        "adapter": found.given(("from_pretrained",), "model_id", place=1, owner="PeftModel")
        or found.given(("load_adapter",), "peft_model_id", place=0),
        "saved": found.given(("save_pretrained", "save_model"), "save_directory", "output_dir", place=0),
        "train_file": found.given(("load_dataset",), "data_files"),
    }
    seen: dict[str, set[Source]] = {"train_file": set(), "output": set(), "samples": set()}
    for node in found.nodes:
        match node:
            case ast.Call(args=[first, *rest]) if _named(node) == "open":
                mode = str(_literal(rest[0] if rest else found.words(node).get("mode")) or "r")
                place, file = "output" if {*"wax"} & {*mode} else "train_file", first
            case ast.Call(func=ast.Attribute(value=owner, attr="write_text" | "open" | "read_text" as verb)):
                mode = str(_literal(node.args[0])) if node.args and verb == "open" else verb
                place, file = "output" if "w" in mode else "train_file", owner
            case ast.Call(args=[first, *_]) if _named(node) in ("to_csv", "to_json"):
                place, file = "output", first
            case ast.Call(args=[first, *_]) if _named(node) in _READERS:
                place, file = "train_file", first
            case ast.Subscript(slice=ast.Slice(lower=None, upper=ast.expr() as upper)):
                place, file = "samples", upper
            case ast.Call(args=[ast.Call(args=[upper])]) if _named(node) == "select":
                place, file = "samples", upper
            case _:
                continue
        source = found.source(file)
        if source is not None and (source.kind != "value" or (place == "output" and isinstance(source.word, str))):
            seen[place] |= set() if _ONLY_SETTINGS.search(str(source.word)) else {source}
    for place, sources in seen.items():
        told = {one for one in sources if one.kind != "value"} or sources
        if len(told) > 1:
            told = {one for one in told if _LIKELY[place] and re.search(_LIKELY[place], str(one.word))}
        if len(told) == 1 and places.get(place) is None:
            places[place] = told.pop()
    return {name: one for name, one in places.items() if one is not None}


def _results(found: _Program) -> tuple[dict[str, str], dict[str, str], str]:
    """Where score, count and rows are in a table that the text spells, what rows have, how a file of rows ends."""
    tables = [
        {
            key: value
            for node_key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key := _literal(node_key), str)
        }
        for node in found.nodes
        if isinstance(node, ast.Dict)
    ]

    def named(keys: Collection[str], places: Mapping[str, Sequence[str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for place, names in places.items():
            free = [name for name in names if name in keys and name not in found.values()]
            found |= {place: free[0]} if free else {}
        return found

    row = max((named(keys, NAMES["results_row"]) for keys in tables), key=len, default={})
    table, results = next(
        ((keys, one) for keys in tables if "score" in (one := named(keys, NAMES["results"]))), ({}, {})
    )
    lists = {
        _name(call.func.value)
        for call in found.calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "append"
    }
    lists |= {
        _name(node.targets[0])
        for node in found.nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.ListComp)
    }
    for key, value in table.items():
        if isinstance(value, ast.Call) and _named(value) == "len":
            results.setdefault("count", key)
        elif _name(value) in lists or isinstance(value, ast.ListComp):
            results.setdefault("rows", key)
    ending = ".csv" if found.names & {"to_csv", "DictWriter"} else ""
    for node in found.nodes:  # a row, and the end of its line
        if isinstance(node, ast.BinOp) and _named(node.left) == "dumps" and _literal(node.right) == "\n":
            ending = ".jsonl"
    return results, row if len(row) > 1 else {}, "" if "score" in results else ending
