"""Gives pytest StepH's options, reads their values, and keeps them out of pytest's search for its root folder.

Command line counts before ini file before environment before default.

pytest looks for its root folder and its ini file before it loads any plugin. Until then it knows no option of StepH,
and takes the `out` of `--steph-report out` for a path to collect tests from. Where `out` exists, pytest reads the
configuration of that folder, and not that of the folder it was started in. `--steph-report=out` is one word and can't
be misread. So where a value has led pytest elsewhere, pytest is started once more, with `=` in place of the space.

In an installed wheel it finds the acceptance tests and the reference pipeline, and copies the pipeline to work in; a
clone has both as folders of its own. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steph.contract import options as rows
from steph.contract.options import OPTIONS, REPLACED, Option, OptionError, Options, parse_language, parse_size

if TYPE_CHECKING:
    from steph.contract.settings import Profile

import filecmp
import shutil
import tempfile
from collections.abc import Callable

from steph import __version__

_SHOWN_CHARS = 60  # of a value that is too long for any disk
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def add_options(parser: pytest.Parser) -> None:
    """Each row of the table as an option and as an ini key."""
    group = parser.getgroup("steph", "StepH: hardware acceptance of a fine-tuning pipeline")
    for option in (*OPTIONS, *REPLACED):
        text = f"{option.help} (default: {option.default})" if option.default else option.help
        action: dict[str, Any] = {"action": "store_const", "const": "true"} if option.is_flag else {"metavar": "VALUE"}
        group.addoption(option.flag, dest=option.key, default=None, help=text or argparse.SUPPRESS, **action)
        parser.addini(option.key, text or "(gone)", default="")


def options_and_profile(config: pytest.Config) -> tuple[Options, Profile]:
    """The options and the profile that they name, with as few imports as that takes.

    Raises UsageError, one line for each thing wrong, in the language that option or profile name.
    """
    from steph.base.messages import speaking
    from steph.contract.settings import ProfileError, language_in, load_profile, profile_path

    language = None
    with contextlib.suppress(OptionError):
        word, _, where = _given(config, rows.LANGUAGE)
        language = parse_language(word, where)
    try:
        options = resolve_options(config)
        path = profile_path(options.profile, defaults_folder(config))
        language = language or language_in(path)
        return options, load_profile(path)
    except OSError as error:
        raise refused(error) from error
    except (OptionError, ProfileError) as error:
        with speaking(language or "ja"):
            raise pytest.UsageError(*str(error).splitlines()) from error


def refused(error: OSError) -> Exception:
    """A path that an option names and the system does not take; any other error as it is."""
    return pytest.UsageError(f"{error.filename}: {error.strerror}") if error.filename else error


def resolve_options(config: pytest.Config) -> Options:
    """Command line before ini file before environment before default; raises OptionError."""
    from steph.base.messages import say

    for option, instead in REPLACED.items():
        value, _, name = _given(config, option)
        if value.lower() not in _OFF:
            raise OptionError(say(instead, option=name))

    def is_given(option: Option) -> bool:
        word, _, where = _given(config, option)
        if word.lower() not in (*_ON, *_OFF):
            known = [*_ON, *filter(None, _OFF)]
            raise OptionError(say("option.no_switch", option=where, value=repr(word), known=known))
        return word.lower() in _ON

    text = partial(_place, config)
    (cap, _, cap_place), (language, _, language_place) = (_given(config, one) for one in (rows.VRAM_CAP, rows.LANGUAGE))
    return Options(
        profile=text(rows.PROFILE),
        pipeline_root=Path(text(rows.PIPELINE_ROOT)),
        pipeline_python=text(rows.PIPELINE_PYTHON) or None,
        model=text(rows.MODEL) or None,
        twin=is_given(rows.TWIN),
        vram_cap_bytes=parse_size(cap, cap_place) if cap else None,
        report=Path(text(rows.REPORT)),
        calibrate=is_given(rows.CALIBRATE),
        no_predict=is_given(rows.NO_PREDICT),
        language=parse_language(language, language_place) if language else None,
    )


def _given(config: pytest.Config, option: Option) -> tuple[str, Path, str]:
    """An option's value, the folder that a relative path in it starts from, and the flag, ini key or variable."""
    typed_in, variable = config.invocation_params.dir, option.key.upper()
    for found, near, where in (
        (config.getoption(option.key), typed_in, option.flag),
        (config.getini(option.key), config.rootpath, f"ini key {option.key}"),
        (os.environ.get(variable), typed_in, variable),
    ):
        if found:
            return str(found), near, where
    return default(config, option.name, option.default), defaults_folder(config), variable


def _place(config: pytest.Config, option: Option) -> str:
    """An option's value, absolute where it is a path; a name of a profile, a program or a model stays a name."""
    from steph.base.messages import say

    text, near, _ = _given(config, option)
    try:
        path = near / Path(text).expanduser()
        path.is_file()  # a name that no disk can hold can't be asked for
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
        raise OptionError(say("option.no_path", option=option.flag, value=ascii(shown), reason=reason)) from error
    if not text or not option.is_path(text, path):
        return text
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OptionError(say("option.not_utf8", option=option.flag, value=ascii(text))) from error
    if option is rows.MODEL:  # what a link leads to, as the record names it: it may lead elsewhere tomorrow
        return str(path.resolve())
    # other links stay: the interpreter of a virtual environment is one, and a person's name for a folder may be
    return os.path.abspath(path)  # noqa: PTH100


def session_command(config: pytest.Config) -> tuple[str, ...]:
    """The session's command as it works from pytest's root folder.

    What came from an ini file or the environment, PYTEST_ADDOPTS too, is spelled out, and so is a path that was typed
    in another folder: the last mention counts. `--pyargs` says that the tests are those of an installed suite.
    """
    arguments = tuple(map(str, config.invocation_params.args))
    pyargs = ("--pyargs",) if is_in_use(config) and "--pyargs" not in arguments else ()
    unsaid = []
    for option in OPTIONS:
        (value, near, _), name = _given(config, option), option.flag
        is_said = any(word == name or word.startswith(f"{name}=") for word in arguments)
        if option.is_flag:
            unsaid += [name] if value.lower() in _ON and not is_said else []
        elif near != config.rootpath and _place(config, option) != value:
            unsaid.append(f"{name}={_place(config, option)}")
        elif not is_said and value != default(config, option.name, option.default):
            unsaid.append(f"{name}={value}")
    return ("pytest", *arguments, *pyargs, *unsaid)


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


CARRIED_PIPELINE = Path(__file__).parent / "pipeline"
COPY_NAME = "steph-pipeline"


def is_installed() -> bool:
    """Whether this is the package of a wheel."""
    return CARRIED_PIPELINE.is_dir()


def is_in_use(config: pytest.Config) -> bool:
    """Whether the wheel's tests and pipeline are meant: not where pytest's root folder is a clone with its own."""
    return is_installed() and not (config.rootpath / "pipeline" / "steph.toml").is_file()


def suite_command() -> str:
    """The command that runs the three stages."""
    return "pytest --pyargs steph.acceptance -m gpu" if is_installed() else "pytest -m gpu"


def defaults_folder(config: pytest.Config) -> Path:
    """Where defaults start, and names of profiles: pytest's root folder, or the current one of an installed suite."""
    return config.invocation_params.dir if is_in_use(config) else config.rootpath


def default(config: pytest.Config, option: str, in_a_clone: str) -> str:
    """An option's default: what it is in a clone, but for the pipeline of an installed suite."""
    return COPY_NAME if option == "pipeline-root" and is_in_use(config) else in_a_clone


def furnish(config: pytest.Config, root: Path, tell: Callable[[str], None]) -> None:
    """Where `root` is an installed suite's default, have the reference pipeline there; raises InputError."""
    if is_in_use(config) and root == config.invocation_params.dir / COPY_NAME:
        copy_once(root, tell)


def copy_once(root: Path, tell: Callable[[str], None]) -> None:
    """Copy the reference pipeline to `root` where there is nothing, and say so in one line.

    A copy that a person changed, or of another version, is used as it is, which is said. Raises InputError.
    """
    from steph.base.messages import phrase, say
    from steph.run.inputs import InputError

    files = (path for path in CARRIED_PIPELINE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    carried = sorted(path.relative_to(CARRIED_PIPELINE).as_posix() for path in files)
    if not root.exists():
        try:  # aside and renamed, so that half a pipeline is never taken for one; no modes, a package may be read-only
            with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as aside:
                made = Path(aside) / root.name
                for name in carried:
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(CARRIED_PIPELINE / name, made / name)
                made.rename(root)
        except OSError as error:
            raise InputError(say("input.not_copied", root=root, error=error.strerror)) from error
        tell(phrase("input.copied", version=__version__, root=root))
        return
    _, different, missing = filecmp.cmpfiles(CARRIED_PIPELINE, root, carried, shallow=False)
    if changed := sorted([*different, *missing]):
        named = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        tell(phrase("input.other_copy", version=__version__, root=root, files=named))
