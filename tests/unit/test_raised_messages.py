"""What the suite raises and a report tells is a message, so that no English sentence stands in a Japanese report."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import steph

SUITE = Path(steph.__file__).parent
TELLS = {"say", "words_of", "check"}  # what makes a message of an exception
AT_THE_TERMINAL = {"OptionError", "ProfileError", "DescriptionError", "PresetError"}  # what a person typed is wrong
# modules whose ValueError a reader of rows or of models puts into a report
OF_VALUES = (
    "contract/description.py",
    "contract/rows.py",
    "run/gpu.py",
    "memory/shapes.py",
    "memory/terms.py",
    "contract/settings.py",
)


@cache
def _trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(SUITE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SUITE.rglob("*.py")
    }


def _name(node: ast.expr | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _own_errors() -> dict[str, set[str]]:
    """Each exception class of the suite with its bases' names."""
    classes = (node for tree in _trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {one.name: {_name(base) for base in one.bases} for one in classes if one.name.endswith("Error")}


def _told(tree: ast.Module) -> Iterator[str]:
    """The classes that this module catches and says in a message."""
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
        uses = [
            call
            for statement in handler.body
            for call in ast.walk(statement)
            if isinstance(call, ast.Call) and _name(call.func) in TELLS
            for value in [*call.args, *(word.value for word in call.keywords)]
            if isinstance(value, ast.Name) and value.id == handler.name
        ]
        if uses:
            yield from map(_name, handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type])


def _raised(tree: ast.Module) -> Iterator[tuple[str, ast.Raise, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield _name(node.exc.func), node, node.exc.args[0]


def _is_text(given: ast.expr) -> bool:
    """A text of the suite's own: a literal one, one put together, or a message that has lost its id."""
    is_literal = isinstance(given, ast.JoinedStr) or (isinstance(given, ast.Constant) and isinstance(given.value, str))
    return is_literal or (isinstance(given, ast.Call) and _name(given.func) in {"str", "phrase", "text", "one_line"})


def told_errors() -> set[str]:
    """The suite's exceptions that some handler says in a message, their subclasses too."""
    own = _own_errors()
    told = {name for tree in _trees().values() for name in _told(tree)} & set(own)
    while more := {name for name, bases in own.items() if bases & told} - told:
        told |= more
    return told


def test_the_exceptions_that_a_report_tells_are_raised_with_messages() -> None:
    """A text would be shown as it stands, in English, inside a Japanese sentence."""
    told = told_errors() | AT_THE_TERMINAL
    assert {"InputError", "RunnerError", "IncompleteModelError", "UnreadableError", "DeviceError"} <= told
    found = [
        f"{module}:{node.lineno}: {name}"
        for module, tree in _trees().items()
        for name, node, given in _raised(tree)
        if (name in told or (name == "ValueError" and module in OF_VALUES)) and _is_text(given)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "is_text"),
    [
        ("raise E('has no text')", True),
        ("raise E(f'{path}: broken')", True),
        ("raise E(str(error))", True),
        ("raise E(say('row.no_text', key=key))", False),
        ("raise E(words_of(error))", False),
    ],
)
def test_a_text_is_told_from_a_message(code: str, is_text: bool) -> None:
    """What the test above looks for."""
    ((_, _, given),) = _raised(ast.parse(code))
    assert _is_text(given) is is_text
