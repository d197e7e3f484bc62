"""Keeps the values of StepH's options out of pytest's search for its root folder.

pytest looks for its root folder and its ini file before it loads any plugin. Until then it knows no option of StepH,
and takes the `out` of `--steph-report out` for a path to collect tests from. Where `out` exists, pytest reads the
configuration of that folder, and not that of the folder it was started in. `--steph-report=out` is one word and can't
be misread. So where a value has led pytest elsewhere, pytest is started once more, with `=` in place of the space.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from steph.plan.options import OPTIONS

ADDOPTS_ENV = "PYTEST_ADDOPTS"
_TAKES_VALUE = {option.flag for option in OPTIONS if not option.is_flag}


def join_values(words: Iterable[str]) -> list[str]:
    """Return `words` with each `--steph-x VALUE` as `--steph-x=VALUE`.

    Words behind `--` are paths, and a word that begins with a dash is the next option, not a value: both stay.
    """
    left, joined = list(words), list[str]()
    while left:
        word = left.pop(0)
        if word == "--":
            return [*joined, word, *left]
        if word in _TAKES_VALUE and left and not left[0].startswith("-"):
            word = f"{word}={left.pop(0)}"
        joined.append(word)
    return joined


def join_environment() -> bool:
    """Rewrite PYTEST_ADDOPTS in the same way; returns whether that changed it."""
    words = shlex.split(os.environ.get(ADDOPTS_ENV, ""))
    joined = join_values(words)
    if joined != words:
        os.environ[ADDOPTS_ENV] = shlex.join(joined)
    return joined != words


def keep_values_out(config: pytest.Config, parser: pytest.Parser) -> None:
    """Start pytest again where the value of one of StepH's options decided its root folder or its ini file.

    Call it as soon as the options are added. Does not return if it starts pytest again; raises UsageError where a
    program called pytest, which can't be started again.
    """
    given = list(config.invocation_params.args)
    spread = list(_spread(given))
    joined = join_values(spread)
    added = shlex.split(os.environ.get(ADDOPTS_ENV, ""))
    if joined == spread and join_values(added) == added:
        return
    values = [word for word in [*join_values(added), *joined] if word not in [*added, *spread]]
    if not _loads_conftest_of(config, values) and not _is_misled(config, parser, [*added, *given]):
        return
    if sys.orig_argv[-len(given) :] != given:
        raise pytest.UsageError(
            f"pytest took the folder of an option's value for its own ({config.rootpath}); write {shlex.join(values)}"
        )
    join_environment()
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:  # it runs where a conftest loaded this plugin, and has the terminal's file descriptors
        capture.stop_global_capturing()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1 : -len(given)], *joined])  # noqa: S606 - no shell wanted


def _loads_conftest_of(config: pytest.Config, values: Iterable[str]) -> bool:
    """Whether pytest is about to load a conftest from where one of these values leads.

    So it is where this plugin comes by a conftest, without an entry point: the first may be the clone's, the next one
    somebody else's. `confcutdir` is set just before pytest looks for them.
    """
    here, is_late = config.invocation_params.dir, config.known_args_namespace.confcutdir is not None
    return is_late and any((here / value.partition("=")[2]).exists() for value in values)


def _is_misled(config: pytest.Config, parser: pytest.Parser, words: Sequence[str]) -> bool:
    """Whether pytest would have found another root folder or ini file, had it known which words are values.

    Asks pytest's own search, which has no public name; if it has moved, the answer is yes, which only costs a start.
    """
    known = parser.parse_known_args(words)
    try:
        from _pytest.config.findpaths import determine_setup

        found = determine_setup(
            inifile=known.inifilename,
            override_ini=known.override_ini,
            args=known.file_or_dir,
            rootdir_cmd_arg=known.rootdir or None,
            invocation_dir=config.invocation_params.dir,
        )
    except (ImportError, TypeError, AttributeError):
        return True
    return (found[0], found[1]) != (config.rootpath, config.inipath)


def _spread(words: Iterable[str]) -> Iterator[str]:
    """The words with each `@file` as the lines of that file, as pytest reads them; one it can't read stays."""
    for word in words:
        try:
            lines = Path(word[1:]).read_text(encoding="utf-8").splitlines() if word.startswith("@") else None
        except (OSError, ValueError):
            lines = None
        yield from [word] if lines is None else _spread(lines)
