"""The pytest plugin: options, which tests are stages, and what happens around them.

A good guest: hooks act only where a selected test is marked `steph_stage`, and nothing heavy is imported before a stage
is about to run.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from steph import installed
from steph.selection import leave_out_extended

if TYPE_CHECKING:
    from steph.conduct.session import StageSession
    from steph.plan.options import Options
    from steph.record import AnyStage, StageResult

NO_GPU = "no NVIDIA GPU on this machine; rehearse on the CPU with --steph-profile cpu"
EXPLANATION_CHARS = 120  # of a stage in the terminal's summary; the report has it whole
MARGIN_SECONDS = 60.0  # what a stage keeps below its test's time-out: ending the child, waiting for memory, writing


class _Option(NamedTuple):
    name: str
    help: str
    default: str = ""
    is_flag: bool = False


# One line each, for the command line (--steph-x), the ini file (steph_x) and the environment (STEPH_X), in this order.
OPTIONS = (
    _Option("profile", "profile: a name in profiles/ or a path to a .toml file", "rtx3080"),
    _Option("pipeline-root", "folder of the pipeline under test; installed: a copy in steph-pipeline", "pipeline"),
    _Option("pipeline-python", "interpreter of the pipeline's scripts (default: the root's .venv, else this one)"),
    _Option("model", "the one model to use: an id on the Hub or a local folder (default: the profile's candidates)"),
    _Option("twin", "use a random-weight twin of the model, no download; makes the run a rehearsal", is_flag=True),
    _Option("vram-cap", "make this card behave like a smaller one, as in 9.64GiB; makes the run a rehearsal"),
    _Option("deep", "after H-2 passed, up to six short trainings more for traps 5, 9 and 11", is_flag=True),
    _Option("calibrate", "after H-2 passed, five steps more at another length; correct H-4's memory", is_flag=True),
    _Option("no-predict", "try every rung of the ladder, also those that are predicted not to fit", is_flag=True),
    _Option("report", "folder for the report and runs/, or the Markdown file itself", "reports"),
)
SESSION = pytest.StashKey["StageSession"]()
REFUSED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every option is --steph-…, every ini key steph_…, with one help text."""
    group = parser.getgroup("steph", "StepH: hardware acceptance of a fine-tuning pipeline")
    for option in OPTIONS:
        default = f" (default: {option.default})" if option.default else ""
        text = f"{option.help}{default}"
        action: dict[str, Any] = {"action": "store_const", "const": "true"} if option.is_flag else {"metavar": "VALUE"}
        group.addoption(f"--steph-{option.name}", dest=_dest(option), default=None, help=text, **action)
        parser.addini(_dest(option), text, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Markers, so that strict projects accept the acceptance tests."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU, or --steph-profile cpu; runs the pipeline under test")
    config.addinivalue_line("markers", "extended: a stage that runs only where -m or a node id asks for it")
    config.addinivalue_line("markers", "steph_stage(stage): one stage of the acceptance, as in steph_stage('H-1')")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`pytest -m gpu` means the three stages of the acceptance."""
    leave_out_extended(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before anything runs: refuse what can't work in one line, else open the record.

    Not when the collection ends: that comes also where it failed, and a record that nobody runs hides the last one.
    """
    config = session.config
    if session.testsfailed and not config.option.continue_on_collection_errors:
        return
    items = [item for item in session.items if item.get_closest_marker("steph_stage")]
    if not items or config.option.collectonly or config.option.setuponly or config.option.setupplan:
        return
    if hasattr(config, "workerinput"):
        config.stash[REFUSED] = "the stages share one GPU and one record: run them without -n"
        return
    from steph.conduct.session import JoinError
    from steph.plan.options import OptionError
    from steph.plan.settings import ProfileError
    from steph.run.gpulock import GpuLockError
    from steph.run.inputs import InputError
    from steph.run.journal import JournalError
    from steph.run.rootlock import RootBusyError

    try:
        _open(session, items)
    except (OptionError, ProfileError, InputError, JoinError, JournalError, GpuLockError, RootBusyError) as error:
        raise pytest.UsageError(*str(error).splitlines()) from error


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """Close the record and make sure that nothing unmeasured ends with exit status 0."""
    stages = session.config.stash.get(SESSION, None)
    if stages is not None:
        session.exitstatus = stages.finish(int(exitstatus))
        _append_step_summary(stages)
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The stages' verdicts and the report's path."""
    stages = config.stash.get(SESSION, None)
    if stages is None:
        return
    from steph.judge.verdict import overall
    from steph.run.events import fold

    record = fold(stages.journal.events)
    terminalreporter.section("StepH")
    terminalreporter.line(f"{overall(record)}  ({record.context.kind}, profile {record.context.profile})")
    width = max(map(len, record.results), default=0)
    for stage, result in sorted(record.results.items()):
        seconds = f"{result.seconds:.1f} s" if result.seconds is not None else ""
        explanation = " ".join(result.explanation.split())[:EXPLANATION_CHARS]
        terminalreporter.line(f"{stage:{width}}  {result.verdict:14} {seconds:>9}  {explanation}")
    if stages.report is not None:
        terminalreporter.line(f"report: {stages.report}")
    terminalreporter.line(f"record: {stages.journal.folder}")


def _append_step_summary(stages: StageSession) -> None:
    """The job's page on GitHub; a page that can't be written takes nothing with it."""
    from steph.ci import STEP_SUMMARY_ENV, append_step_summary
    from steph.run.events import fold

    path = os.environ.get(STEP_SUMMARY_ENV)
    if not path:
        return
    try:
        append_step_summary(fold(stages.journal.events), stages.report, Path(path))
    except Exception as error:  # the report and the record are written: this is a copy
        stages.console.line(f"{STEP_SUMMARY_ENV} not written: {type(error).__name__}: {error}")


class StageRunner:
    """What a stage's test works with: run the stage, get its result."""

    def __init__(self, session: StageSession, stage: AnyStage, item: pytest.Item) -> None:
        self._session = session
        self._stage = stage
        self._item = item

    def run(self) -> StageResult:
        """Run this test's stage; fails the test where the verdict is not green."""
        from steph.ci import stage_properties
        from steph.run.journal import JournalError

        try:
            result = self._session.run(self._stage, budget_seconds(self._item))
        except JournalError as error:
            said = f"{self._stage}: {error}; make room there and run this stage again"
            raise pytest.fail.Exception(said, pytrace=False) from None
        # what the fixture `record_property` does, which is not there under `-p no:junitxml`
        self._item.user_properties.extend(stage_properties(result, self._session.report))
        if not result.verdict.is_green:
            pytest.fail(f"{self._stage} {result.verdict}: {result.explanation}", pytrace=False)
        return result


@pytest.fixture
def steph(request: pytest.FixtureRequest) -> StageRunner:
    """The stage of this test, named by its `steph_stage` marker."""
    stage = _stage_of(request.node)
    refused = request.config.stash.get(REFUSED, None)
    if refused is not None:
        pytest.fail(refused, pytrace=False)
    session = request.config.stash.get(SESSION, None)
    if session is None:
        pytest.fail("this session opened no record (--setup-only?), so no stage can run in it", pytrace=False)
    return StageRunner(session, stage, request.node)


def _stage_of(item: pytest.Item) -> AnyStage:
    from steph.terms import NEEDS

    marker = item.get_closest_marker("steph_stage")
    named = marker.args[0] if marker and marker.args else None
    stage = next((stage for stage in NEEDS if stage == named), None)
    if stage is None:
        raise pytest.UsageError(f"{item.nodeid}: steph_stage({named!r}): mark it with one of {', '.join(NEEDS)}")
    return stage


def budget_seconds(item: pytest.Item) -> float:
    """What a stage may take in seconds: its test's time-out less the margin, infinite without one."""
    marker = item.get_closest_marker("timeout")
    is_kept = item.config.pluginmanager.hasplugin("timeout")
    configured = (item.config.getoption("timeout", None) or item.config.getini("timeout")) if is_kept else 0
    value = (marker.args[0] if marker.args else marker.kwargs.get("timeout", 0)) if marker else configured
    seconds = float(value or 0)
    return max(seconds - MARGIN_SECONDS, seconds / 2) if seconds > 0 else float("inf")


def _open(session: pytest.Session, items: list[pytest.Item]) -> None:
    from steph.conduct.console import Console
    from steph.conduct.preparation import prepare, read_profile
    from steph.conduct.session import StageSession
    from steph.run import telemetry

    config = session.config
    options = resolve_options(config)
    profile = read_profile(options, installed.defaults_folder(config))
    if profile.machine.device == "gpu" and not telemetry.has_nvidia_nodes():
        others = [item for item in session.items if item not in items]
        if all(item.get_closest_marker("gpu") for item in others):
            raise pytest.UsageError(NO_GPU)
        for item in items:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))
        return
    if profile.machine.device == "gpu":
        held = contextlib.ExitStack()
        held.enter_context(telemetry.kept_loaded())
        config.add_cleanup(held.close)
    stages = tuple(_stage_of(item) for item in items)
    console = Console(_writer(config), sys.stdout.isatty())
    installed.furnish(config, options.pipeline_root, console.line)
    setup = prepare(options, profile, stages)
    config.stash[SESSION] = StageSession(setup, stages, _command(config), console)


def resolve_options(config: pytest.Config) -> Options:
    """Command line before ini file before environment before default; raises OptionError."""
    from steph.plan.options import Options, parse_size

    value = {option.name: _place(config, option) for option in OPTIONS}
    cap = value["vram-cap"]
    return Options(
        profile=value["profile"],
        pipeline_root=Path(value["pipeline-root"]),
        pipeline_python=value["pipeline-python"] or None,
        model=value["model"] or None,
        twin=_is_on(value["twin"]),
        vram_cap_bytes=parse_size(cap, "--steph-vram-cap") if cap else None,
        report=Path(value["report"]),
        deep=_is_on(value["deep"]),
        calibrate=_is_on(value["calibrate"]),
        no_predict=_is_on(value["no-predict"]),
    )


def _found(config: pytest.Config, option: _Option) -> tuple[str, Path]:
    """An option's value, and the folder that a relative path in it starts from."""
    typed_in = config.invocation_params.dir
    environment = os.environ.get(f"STEPH_{option.name.replace('-', '_').upper()}")
    for found, near in (
        (config.getoption(_dest(option)), typed_in),
        (config.getini(_dest(option)), config.rootpath),
        (environment, typed_in),
    ):
        if found:
            return str(found), near
    return installed.default(config, option.name, option.default), installed.defaults_folder(config)


def _place(config: pytest.Config, option: _Option) -> str:
    """An option's value, absolute where it is a path; a name of a profile, a program or a model stays a name."""
    text, near = _found(config, option)
    path = near / Path(text).expanduser()
    is_path = {
        "profile": text.endswith(".toml"),
        "pipeline-root": True,
        "pipeline-python": "/" in text,
        "model": path.is_dir(),
        "report": True,
    }
    if not (text and is_path.get(option.name)):
        return text
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        remedy = "rename it, or set PYTHONUTF8=1 where the locale is not a UTF-8 one"
        raise pytest.UsageError(f"--steph-{option.name}: {text!a} is not spelled in UTF-8; {remedy}") from error
    if option.name == "model":  # what a link leads to, as the record names it: it may lead elsewhere tomorrow
        return str(path.resolve())
    # other links stay: the interpreter of a virtual environment is one, and a person's name for a folder may be
    return os.path.abspath(path)  # noqa: PTH100


def _dest(option: _Option) -> str:
    return f"steph_{option.name.replace('-', '_')}"


def _command(config: pytest.Config) -> tuple[str, ...]:
    """The session's command as it works from pytest's root folder.

    What came from an ini file or the environment, PYTEST_ADDOPTS too, is spelled out, and so is a path that was typed
    in another folder: the last mention counts. `--pyargs` says that the tests are those of an installed suite.
    """
    arguments = tuple(map(str, config.invocation_params.args))
    pyargs = ("--pyargs",) if installed.is_in_use(config) and "--pyargs" not in arguments else ()
    unsaid = (word for option in OPTIONS if (word := _unsaid(config, option, arguments)))
    return ("pytest", *arguments, *pyargs, *unsaid)


def _unsaid(config: pytest.Config, option: _Option, arguments: tuple[str, ...]) -> str:
    """The option as a word for the command line where the arguments do not say it, or not from everywhere."""
    (value, near), name = _found(config, option), f"--steph-{option.name}"
    is_said = any(word == name or word.startswith(f"{name}=") for word in arguments)
    if option.is_flag:
        return name if _is_on(value) and not is_said else ""
    if near != config.rootpath and _place(config, option) != value:
        return f"{name}={_place(config, option)}"
    return "" if is_said or value == installed.default(config, option.name, option.default) else f"{name}={value}"


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true", "yes", "on")


def _writer(config: pytest.Config) -> Callable[[str], None]:
    capture = config.pluginmanager.getplugin("capturemanager")
    terminal = config.pluginmanager.getplugin("terminalreporter")

    def write(text: str) -> None:
        if terminal is None:
            return
        around = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        with contextlib.suppress(OSError), around:  # a reader that left or a full disk must not end a training
            terminal.write(text, flush=True)

    return write
