"""How many small changes of a module its tests notice: `python tools/mutants.py MODULE TEST_FILE …`.

As in `python tools/mutants.py steph.judge.verdict tests/unit/test_verdict.py`. A mutant is the module with one thing
changed: another comparison or operator, a condition turned round or dropped, another constant, a keyword left out, None
for a call or a returned value. Each runs the test files in a forked process, which ends at the first failure. Prints
the mutants that no test noticed, then how many were noticed.
"""

import ast
import copy
import gc
import importlib
import importlib.abc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120  # of a mutant that never ends
_OTHER: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr},
}


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """Each mutant of a module's tree, and its line and text."""
    unspoken = _unspoken(tree)
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in unspoken:
            continue
        for change in _changes(node):
            mutant = copy.deepcopy(tree)
            place = list(ast.walk(mutant))[index]
            change(mutant, place)
            what = f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)[:80]} -> {ast.unparse(place)[:80]}"
            yield what, ast.fix_missing_locations(mutant)


def _unspoken(tree: ast.Module) -> set[int]:
    """Docstrings, annotations, imports and decorators: what they say is no behaviour that a mutant could break."""
    left: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left.append(node)
        left += [part for name in ("annotation", "returns") if isinstance(part := getattr(node, name, None), ast.AST)]
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            left += node.decorator_list
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left.append(node)
    return {id(part) for node in left for part in ast.walk(node)}


Change = Callable[[ast.Module, Any], None]


def _changes(node: ast.AST) -> list[Change]:
    """What can be changed in this node."""
    match node:
        case ast.Compare():
            return [_other_comparison(at) for at in range(len(node.ops))]
        case ast.BoolOp():
            return [_other_operator, *(_dropped(at) for at in range(len(node.values)))]
        case ast.BinOp() if type(node.op) in _OTHER:
            return [_other_operator]
        case ast.UnaryOp(op=ast.Not()):
            return [lambda tree, place: _replace(tree, place, place.operand)]
        case ast.Constant() if not isinstance(node.value, bytes | type(...)):
            return [_other_constant]
        case ast.IfExp():
            return [_always(True), _always(False)]
        case ast.Return(value=ast.expr()) | ast.Assign() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            return [lambda _, place: setattr(place, "value", ast.Constant(None))]
        case ast.Call():
            return [_without_keyword(at) for at, keyword in enumerate(node.keywords) if keyword.arg]
        case ast.Continue() | ast.Break():
            return [lambda tree, place: _replace(tree, place, ast.Pass())]
    return []


def _always(holds: bool) -> Change:
    return lambda _, place: setattr(place, "test", ast.Constant(holds))


def _other_comparison(at: int) -> Change:
    return lambda _, place: place.ops.__setitem__(at, _OTHER[type(place.ops[at])]())


def _other_operator(_: ast.Module, place: Any) -> None:  # noqa: ANN401 - two kinds of node
    place.op = _OTHER[type(place.op)]()


def _dropped(at: int) -> Change:
    def drop(tree: ast.Module, place: ast.BoolOp) -> None:
        del place.values[at]
        if len(place.values) == 1:
            _replace(tree, place, place.values[0])

    return drop


def _without_keyword(at: int) -> Change:
    return lambda _, place: place.keywords.pop(at)


def _other_constant(_: ast.Module, place: ast.Constant) -> None:
    value = place.value
    if isinstance(value, bool):
        place.value = not value
    elif isinstance(value, int | float):
        place.value = value + 1
    else:
        place.value = f"XX{value or ''}"


def _replace(tree: ast.Module, place: ast.AST, by: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is place:
                setattr(parent, name, by)
            elif isinstance(value, list):
                value[:] = [by if one is place else one for one in value]


class _Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the module its mutant's code."""

    def __init__(self, module: str, path: Path, code: CodeType) -> None:
        self._module, self._path, self._code = module, path, code

    def find_spec(self, fullname: str, _path: object, _target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._path)
        exec(self._code, module.__dict__)  # noqa: S102 - the module's own code


def _passes(mutant: _Mutant, module: str, tests: Sequence[str]) -> bool:
    """Whether all tests pass with this code, in a process that is forked from this one."""
    process = os.fork()
    if process == 0:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(quiet, stream)
        signal.alarm(SECONDS)
        sys.meta_path.insert(0, mutant)
        try:
            importlib.import_module(module)
            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])))
        finally:
            os._exit(99)
    return os.waitpid(process, 0)[1] == 0


def main(module: str, *tests: str) -> int:
    """Run every mutant; 0 where the tests notice each."""
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / folder) for folder in ("plugins", "tests/unit", "tools")]
    path = ROOT / "plugins" / f"{module.replace('.', '/')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in ("hypothesis", "pydantic", "babel.messages.pofile", "jinja2", "numpy"):
        importlib.import_module(name)
    gc.freeze()
    if not _passes(_Mutant(module, path, compile(tree, str(path), "exec")), module, tests):
        print(f"{module}: its tests fail as it is")
        return 2
    noticed = total = 0
    for what, mutant in mutants(tree):
        total += 1
        if _passes(_Mutant(module, path, compile(mutant, str(path), "exec")), module, tests):
            print(f"not noticed: {what}", flush=True)
        else:
            noticed += 1
    print(f"{module}: {noticed} of {total} mutants noticed")
    return int(noticed < total)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
