"""Whether a program answers `--help`, by its text: one without a command line would start its work instead."""

from __future__ import annotations

import ast

# What reads the command line by being called or used as a decorator, as `module.name`.
ENTRY_POINTS = frozenset(
    {
        "absl.app.run",
        "clize.run",
        "cyclopts.App",
        "cyclopts.run",
        "defopt.run",
        "docopt.docopt",
        "draccus.wrap",
        "fire.Fire",
        "fire.core.Fire",
        "jsonargparse.CLI",
        "jsonargparse.auto_cli",
        "hydra.main",
        "plac.call",
        "pyrallis.wrap",
        "simple_parsing.parse",
        "typer.Typer",
        "typer.run",
        "tyro.cli",
        "tyro.extras.overridable_config_cli",
        "tyro.extras.subcommand_cli_from_dict",
    }
)
CLICK_MODULES = ("click", "rich_click", "asyncclick")
CLICK_ENTRY_POINTS = frozenset({"command", "group", "Command", "Group", "MultiCommand"})
# Parsers that read the command line only when they are told to parse; of any module, as many derive from argparse's.
PARSERS = frozenset({"ArgumentParser", "HfArgumentParser", "TrlParser", "OptionParser", "ArgParser", "Tap"})
PARSE_METHODS = (
    "parse_args",
    "parse_known_args",
    "parse_intermixed_args",
    "parse_args_and_config",
    "parse_args_into_dataclasses",
)


def answers_help(source: str) -> bool:
    """Whether this Python program prints its options when it is asked for `--help`, as far as its own text shows it.

    False where in doubt: text that is no Python here, a parser in another file, arguments that stand in the text.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    origins = _imported_names(nodes)
    used = {name for name in (_dotted(node, origins) for node in nodes) if name is not None}
    if used & ENTRY_POINTS or any(_is_click(name) for name in used):
        return True
    has_parser = any(name.rpartition(".")[2] in PARSERS for name in used)
    return has_parser and not _is_without_help(nodes, origins) and any(map(_parses_command_line, nodes))


def _imported_names(nodes: list[ast.AST]) -> dict[str, str]:
    """What each imported name stands for: `import x as y` and `from x import y as z`."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.AST, origins: dict[str, str]) -> str | None:
    """The whole name of an imported thing where it is used, such as `argparse.ArgumentParser`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in origins:
        return None
    return ".".join([origins[node.id], *reversed(parts)])


def _is_click(name: str) -> bool:
    module, _, used = name.rpartition(".")
    return used in CLICK_ENTRY_POINTS and module.partition(".")[0] in CLICK_MODULES


def _parses_command_line(node: ast.AST) -> bool:
    """Whether this is a call that parses, and not arguments that are written out there, as a notebook's export does."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr not in PARSE_METHODS:
        return False
    given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "args")]
    return not any(isinstance(value, ast.List | ast.Tuple) or _is_text(value) for value in given)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is not None


def _is_without_help(nodes: list[ast.AST], origins: dict[str, str]) -> bool:
    """Whether each parser that the text makes is told to know no `--help`."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    made = [call for call in calls if (_dotted(call.func, origins) or "").rpartition(".")[2] in PARSERS]
    return bool(made) and all(any(map(_refuses_help, call.keywords)) for call in made)


def _refuses_help(word: ast.keyword) -> bool:
    return word.arg == "add_help" and isinstance(word.value, ast.Constant) and not word.value.value
