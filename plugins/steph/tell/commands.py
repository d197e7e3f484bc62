"""Gives commands as a person pastes them: an attempt's own, and the one that runs a stage again.

Takes argv tuples, gives shell text; runs nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from steph.base.terms import AnyStage, ExtendedId, StageId
from steph.plan.options import OPTIONS, REPLACED
from steph.record.values import Attempt, ProductionCall, Record

ACCEPTANCE_TESTS = "tests/acceptance/test_steph.py"
EXTENDED_TESTS = "tests/acceptance/test_steph_extended.py"
INSTALLED_TESTS = "steph.acceptance"
TEST_IDS: dict[AnyStage, str] = {
    StageId.H1: f"{ACCEPTANCE_TESTS}::test_h1_model_is_reachable",
    StageId.H2: f"{ACCEPTANCE_TESTS}::test_h2_lora_training_completes",
    StageId.H3: f"{ACCEPTANCE_TESTS}::test_h3_hf_evaluation_runs",
    ExtendedId.COT_TRAINING: f"{EXTENDED_TESTS}::test_h2_trains_on_cot_rows",
    ExtendedId.COT: f"{EXTENDED_TESTS}::test_h3_evaluates_with_cot",
    ExtendedId.RAG: f"{EXTENDED_TESTS}::test_h3_evaluates_with_rag",
    ExtendedId.BASE: f"{EXTENDED_TESTS}::test_h3_evaluates_the_base_model",
    ExtendedId.ONE_STEP: f"{EXTENDED_TESTS}::test_h2_takes_one_step_as_asked",
    ExtendedId.HEART: f"{EXTENDED_TESTS}::test_h3_adapter_remembers_what_it_learned",
}
_SETTING = re.compile(r"[A-Za-z_]\w*=")  # as LLaMA-Factory and hydra take them
_SUITE_FLAGS = frozenset(option.flag for option in OPTIONS if option.is_flag)
_REPLACED = frozenset(option.flag for option in REPLACED)  # which commands of old records may have
_PYTEST_OPTIONS_WITH_VALUE = frozenset({"-c", "--config-file", "-o", "--override-ini", "-p", "--rootdir"})


def pasteable(argv: Sequence[str]) -> str:
    """Give a command for a POSIX shell, quoted, one option or `key=value` a line."""
    lines: list[list[str]] = [[]]
    for word in argv:
        line = lines[-1]
        is_setting = bool(_SETTING.match(word)) and not (line and line[-1].startswith("-"))
        if line and (word.startswith("--") or is_setting):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


def attempt_command(attempt: Attempt) -> str:
    """Give the lines that repeat an attempt by hand, from the pipeline root."""
    change_folder = f"cd {shlex.quote(attempt.cwd)}\n" if attempt.cwd else ""
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in attempt.env.items())
    commands = (*attempt.before, attempt.argv, *attempt.after)
    return change_folder + variables + " && \\\n".join(map(pasteable, commands))


def production_command(call: ProductionCall) -> str:
    """Give the lines of the production run, from the pipeline root: its file of settings first, where it has one."""
    lines = []
    if call.config is not None and call.config_file is not None:
        end = next(word for word in ("EOF", "END_OF_SETTINGS") if word not in call.config.splitlines())
        lines.append(f"cat > {shlex.quote(call.config_file)} <<'{end}'\n{call.config.rstrip()}\n{end}")
    if call.cwd != ".":
        lines.append(f"cd {shlex.quote(call.cwd)}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in call.env.items()]
    return "\n".join([*lines, " && \\\n".join(map(pasteable, call.commands))])


def rerun_command(record: Record, stage: AnyStage) -> str:
    """Give the command that runs one stage again into this record, with the options of its latest session."""
    return _suite_command(record, "gpu", TEST_IDS[stage])


def extended_command(record: Record) -> str:
    """Give the command that runs the extended stages into this record, with the options of its latest session."""
    return _suite_command(record, "extended", EXTENDED_TESTS)


def _suite_command(record: Record, mark: str, tests: str) -> str:
    """Give the session's own command with other tests: what starts pytest, and the options that are not selections."""
    words = record.sessions[-1].command if record.sessions else ()
    launcher: tuple[str, ...] = ("pytest",)
    rest = tuple(words[1:])
    for at, word in enumerate(words):
        if PurePath(word).name in ("pytest", "py.test", "pytest.exe"):
            is_module = at >= 2 and words[at - 1] == "-m"
            launcher, rest = tuple(words[: at + 1]) if is_module else (word,), tuple(words[at + 1 :])
            break
    selected: tuple[str, ...] = (tests,)
    if "--pyargs" in rest:  # of an installed suite
        file, separator, test = tests.partition("::")
        selected = ("--pyargs", f"{INSTALLED_TESTS}.{PurePath(file).stem}{separator}{test}")
    kept: list[str] = []
    takes_value = False
    for word in rest:
        name, is_whole, _ = word.partition("=")
        if takes_value:
            kept.append(word)
            takes_value = False
        elif name not in _REPLACED and (word.startswith("--steph-") or name in _PYTEST_OPTIONS_WITH_VALUE):
            kept.append(word)
            takes_value = not is_whole and word not in _SUITE_FLAGS
    return pasteable([*launcher, "-m", mark, *selected, *kept])
