"""Puts calls of ours into a library's function: at its start, at each return, and where it raises.

A wrapper would stand in tracebacks, shift `warnings.warn(stacklevel=...)`, hide the source from `inspect`, and miss who
imported the function before. So the function object stays and gets new code: compiled from its own source under its own
file name and lines, with the calls in the same frame. Code that is not what its source says is left alone.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from .facts import guarded

_FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_counter = [0]


class CannotSpliceError(Exception):
    """The function's source can't be found, or is not what runs."""


class _Around:
    """The functions that a spliced function calls; each call's `before` result is given to its `after` or `failed`."""

    def __init__(
        self,
        where: str,
        before: Callable[[dict[str, Any]], Any],
        after: Callable[[Any, Any], None] | None,
        failed: Callable[[Any, BaseException], None] | None,
    ) -> None:
        self.before = guarded(where)(before)
        self.after = guarded(f"{where}, after")(after) if after else None
        self.failed = guarded(f"{where}, failed")(failed) if failed else None
        self._open = threading.local()

    def enter(self, given: dict[str, Any]) -> None:
        """A call began, with these arguments."""
        self._calls().append(self.before(given))

    def leave(self, result: object) -> object:
        """A call is about to return this."""
        token = self._calls().pop()
        if self.after:
            self.after(token, result)
        return result

    def fail(self) -> None:
        """A call is about to raise what is being handled."""
        token, error = self._calls().pop(), sys.exc_info()[1]
        if self.failed and error is not None:
            self.failed(token, error)

    def _calls(self) -> list[Any]:
        if not hasattr(self._open, "calls"):
            self._open.calls = []
        calls: list[Any] = self._open.calls
        return calls


# what library functions call directly
CALLED = (_Around.enter, _Around.leave, _Around.fail)


def around(
    function: object,
    before: Callable[[dict[str, Any]], Any],
    after: Callable[[Any, Any], None] | None = None,
    failed: Callable[[Any, BaseException], None] | None = None,
) -> None:
    """Have `before` called with the function's own arguments by name, `after` with what that gave and its result."""
    target = innermost(function)
    name = _free_name()
    target.__globals__[name] = _Around(target.__qualname__, before, after, failed)
    target.__code__ = _spliced(target, lambda body, given: _around(name, body, given))


def first(function: object, before: Callable[[dict[str, Any]], Any]) -> None:
    """Have `before` called with the function's own arguments by name; nothing else changes."""
    target = innermost(function)
    name = _named(target, guarded(target.__qualname__)(before))
    target.__code__ = _spliced(target, lambda body, given: [ast.Expr(_call(name, [given])), *body])


def copy_between(
    function: types.FunctionType,
    before: Callable[[dict[str, Any]], Any],
    leave: Callable[[Any], Any],
    unless: Callable[[], bool],
) -> Any:
    """Another function object of the same code but for a first call of `before` and `leave`, which returns the result.

    Both are left out where `unless`; `leave` must not raise.
    """
    code = _between(function, guarded(function.__qualname__)(before), leave, unless)
    copy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__dict__.update(function.__dict__)
    copy.__module__, copy.__doc__ = function.__module__, function.__doc__
    return copy


def innermost(function: Any) -> types.FunctionType:
    """The function itself, behind class methods, bound methods and decorators."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    inner = getattr(inner, "__func__", inner)
    if not isinstance(inner, types.FunctionType):
        raise CannotSpliceError(f"{function!r} is no function")
    return inner


def _between(
    target: types.FunctionType,
    before: Callable[[dict[str, Any]], Any],
    leave: Callable[[Any], Any],
    unless: Callable[[], bool],
) -> types.CodeType:
    enter_name, leave_name, unless_name = (_named(target, one) for one in (before, leave, unless))

    def rewritten(body: list[ast.stmt], given: ast.expr) -> list[ast.stmt]:
        is_left_out = _call(unless_name, [])
        call = ast.If(ast.UnaryOp(ast.Not(), is_left_out), [ast.Expr(_call(enter_name, [given]))], [])
        returns = _Returns(leave_name, is_left_out)
        return [call, *(returns.visit(statement) for statement in body)]

    return _spliced(target, rewritten)


def _named(target: types.FunctionType, value: object) -> ast.Name:
    """A name by which the function finds this value."""
    name = _free_name()
    target.__globals__[name] = value
    return ast.Name(name, ast.Load())


def _free_name() -> str:
    _counter[0] += 1
    return f"__steph_{_counter[0]}__"


def _around(name: str, body: list[ast.stmt], given: ast.expr) -> list[ast.stmt]:
    hook = ast.Name(name, ast.Load())
    enter = ast.Expr(_call(ast.Attribute(hook, "enter", ast.Load()), [given]))
    returns = _Returns(ast.Attribute(hook, "leave", ast.Load()))
    inside = [returns.visit(statement) for statement in body]
    inside.append(ast.Expr(_call(returns.leave, [ast.Constant(None)])))
    # a bare `raise` in the frame that the exception passes anyway adds nothing to the traceback
    failed = [ast.Expr(_call(ast.Attribute(hook, "fail", ast.Load()), [])), ast.Raise()]
    return [enter, ast.Try(inside, [ast.ExceptHandler(None, None, failed)], [], [])]


class _Returns(ast.NodeTransformer):
    """Hands each returned value to `leave` on its way, but where `unless`; functions inside keep theirs."""

    def __init__(self, leave: ast.expr, unless: ast.expr | None = None) -> None:
        self.leave, self.unless = leave, unless

    def visit_Return(self, node: ast.Return) -> ast.Return:
        value = node.value or ast.copy_location(ast.Constant(None), node)
        handed: ast.expr = _call(self.leave, [value])
        if self.unless is not None:
            handed = ast.IfExp(self.unless, value, handed)
        return ast.copy_location(ast.Return(handed), node)

    def _as_it_is(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _as_it_is  # noqa: N815 - ast's own names


def _call(function: ast.expr, arguments: list[ast.expr]) -> ast.Call:
    return ast.Call(function, arguments, [])


def _spliced(
    target: types.FunctionType, rewrite: Callable[[list[ast.stmt], ast.expr], list[ast.stmt]]
) -> types.CodeType:
    """The function's code with its body rewritten."""
    if target.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        raise CannotSpliceError(f"{target.__qualname__} is a generator")
    # the function's syntax tree, its places those in the file
    code = target.__code__
    try:
        with open(code.co_filename, encoding="utf-8") as file:
            lines = file.readlines()
        tree = _block(lines[code.co_firstlineno - 1 :])
    except (OSError, SyntaxError, IndexError, ValueError) as error:
        raise CannotSpliceError(f"{target.__qualname__}: no source ({error})") from error
    is_indented = isinstance(tree.body[0], ast.If)
    definition = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    if not isinstance(definition, ast.FunctionDef) or definition.name != code.co_name:
        raise CannotSpliceError(f"{target.__qualname__}: other source")
    ast.increment_lineno(tree, code.co_firstlineno - (2 if is_indented else 1))
    if not _is_alike(_compiled(target, definition), target.__code__):
        raise CannotSpliceError(f"{target.__qualname__} is not what its source says")
    has_docstring = ast.get_docstring(definition, clean=False) is not None
    kept, body = definition.body[:has_docstring], definition.body[has_docstring:]
    start = body[0] if body else kept[0]
    named = definition.args
    every = [*named.posonlyargs, *named.args, *named.kwonlyargs, *filter(None, (named.vararg, named.kwarg))]
    # by name: the order of parameters differs between versions of a library
    given = ast.Dict([ast.Constant(one.arg) for one in every], [ast.Name(one.arg, ast.Load()) for one in every])
    definition.body = [*kept, *rewrite(body, given)]
    for statement in definition.body[has_docstring:]:
        # nodes of ours get a place; those of the source keep theirs
        for child in ast.walk(statement):
            if isinstance(child, (ast.expr, ast.stmt, ast.excepthandler)) and not hasattr(child, "lineno"):
                ast.copy_location(child, start)
    return _compiled(target, definition)


def _block(lines: list[str]) -> ast.Module:
    """The block that begins at the first line; `inspect` would take every token apart for it."""
    depth = len(lines[0]) - len(lines[0].lstrip())
    # not dedented: columns and texts over several lines must stay what they are
    opened = "if 1:\n" if depth else ""
    for end in range(1, len(lines) + 1):
        # a block ends before a line that is indented as little; where that cuts a text or a bracket, further down
        if end < len(lines) and not _begins_elsewhere(lines[end], depth):
            continue
        try:
            return ast.parse(opened + "".join(lines[:end]))
        except SyntaxError:
            continue
    raise SyntaxError("no end of the block")


def _begins_elsewhere(line: str, depth: int) -> bool:
    text = line.lstrip()
    return bool(text) and len(line) - len(text) <= depth and text[0] not in ")]}#"


def _compiled(target: types.FunctionType, definition: ast.FunctionDef) -> types.CodeType:
    """Compile the definition where it stands: in its class, for private names, within what it closes over."""
    code = target.__code__
    statements: list[ast.stmt] = [definition]
    owner = code.co_qualname.split(".")[-2:-1] if sys.version_info >= (3, 11) else target.__qualname__.split(".")[-2:-1]
    if owner and owner != ["<locals>"]:
        # a global name, as the class is: the function may speak of it
        statements = [ast.Global(owner), ast.ClassDef(owner[0], [], [], [definition], [], **_type_parameters())]
    names = [ast.arg(name) for name in code.co_freevars if name != "__class__"]
    arguments = ast.arguments(posonlyargs=[], args=names, kwonlyargs=[], kw_defaults=[], defaults=[])
    outer = ast.FunctionDef("outer", arguments, statements, [], **_type_parameters())
    module = ast.Module([outer], [])
    for node in (outer, *names, *statements):
        if not hasattr(node, "lineno"):
            ast.copy_location(node, definition)
    flags = code.co_flags & _FUTURE_FLAGS
    whole = compile(module, code.co_filename, "exec", flags=flags, dont_inherit=True)
    found = _code_named(whole, code.co_name, code.co_firstlineno)
    if (
        found is None
        or found.co_freevars != code.co_freevars
        or found.co_varnames[: code.co_argcount] != code.co_varnames[: code.co_argcount]
    ):
        raise CannotSpliceError(f"{target.__qualname__} does not compile to the like of it")
    return found.replace(co_qualname=code.co_qualname) if sys.version_info >= (3, 11) else found


def _is_alike(code: types.CodeType, other: types.CodeType) -> bool:
    """Whether both come from the same source; for imported names the compiler may choose other instructions."""
    names = ("co_name", "co_varnames", "co_names", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")
    if any(getattr(code, name) != getattr(other, name) for name in names) or len(code.co_consts) != len(
        other.co_consts
    ):
        return False
    return all(
        _is_alike(one, two) if isinstance(one, types.CodeType) and isinstance(two, types.CodeType) else one == two
        for one, two in zip(code.co_consts, other.co_consts)
    )


def _type_parameters() -> dict[str, Any]:
    return {"type_params": []} if sys.version_info >= (3, 12) else {}


def _code_named(code: types.CodeType, name: str, line: int) -> types.CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_name == name and constant.co_firstlineno == line:
                return constant
            inner = _code_named(constant, name, line)
            if inner is not None:
                return inner
    return None
