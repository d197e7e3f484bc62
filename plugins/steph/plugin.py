"""Makes pytest run the stages: registers options and markers, opens the record, runs each stage, closes the record.

A good guest: hooks act only where a selected test is marked `steph_stage`, and nothing heavy is imported before a stage
is about to run.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steph import quiet_start

if any("steph" in word for word in sys.argv[1:]):  # somebody else's sessions are left as they are
    quiet_start.begin()

from steph import pytest_options
from steph.base.text import make_printable
from steph.pytest_options import add_options, keep_values_out, options_and_profile, refused, session_command

if TYPE_CHECKING:
    from steph.base.terms import AnyStage
    from steph.conduct.session import StageSession
    from steph.contract.options import Options
    from steph.contract.settings import Profile
    from steph.record.values import StageResult

EXPLANATION_CHARS = 120  # of a stage in the terminal's summary; the report has it whole
EXTENDED = "extended"
MARGIN_SECONDS = 60.0  # what a stage keeps below its test's time-out: ending the child, waiting for memory, writing


SESSION = pytest.StashKey["StageSession"]()
REFUSED = pytest.StashKey[str]()  # the message of why no stage can run here
IS_ASKED = pytest.StashKey[bool]()  # whether a stage was selected


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Every option is --steph-…, every ini key steph_…, with one help text."""
    add_options(parser)
    config = pluginmanager.getplugin("pytestconfig")
    if config is not None:
        keep_values_out(config, parser)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """From here on pytest handles Ctrl-C itself."""
    quiet_start.end()


def pytest_unconfigure(config: pytest.Config) -> None:
    """`--help` and `--version` begin no session."""
    quiet_start.end()
    if config.stash.get(IS_ASKED, False):
        gc.freeze()  # pytest looks for garbage twice, a fifth of a short run's time; Python once more when it ends


@pytest.hookimpl(trylast=True)  # after the plugins that register the last two themselves
def pytest_configure(config: pytest.Config) -> None:
    """Markers, so that strict projects accept the acceptance tests."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU, or --steph-profile cpu; runs the pipeline under test")
    config.addinivalue_line("markers", f"{EXTENDED}: a stage that runs only where -m or a node id asks for it")
    config.addinivalue_line("markers", "steph_stage(stage): one stage of the acceptance, as in steph_stage('H-1')")
    # the stages are marked for these plugins too, and strict projects may go without them (-p no:timeout)
    known = {re.split(r"\W", line, maxsplit=1)[0] for line in config.getini("markers")}
    for marker in sorted({"order", "timeout"} - known):
        config.addinivalue_line("markers", f"{marker}: for pytest-{marker}, which is not loaded")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`pytest -m gpu` means the three stages; the extended ones run only where `-m` or an argument names them."""
    if re.search(rf"\b{EXTENDED}\b", config.option.markexpr or ""):
        return
    named = {argument.partition("::")[0] for argument in config.args}
    asked = {(config.invocation_params.dir / name).resolve() for name in named}
    left_out = []
    for item in items:
        is_extended = item.get_closest_marker("steph_stage") and item.get_closest_marker(EXTENDED)
        module = item.module.__name__ if config.option.pyargs and isinstance(item, pytest.Function) else None
        if is_extended and item.path.resolve() not in asked and module not in named:
            left_out.append(item)
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before anything runs: refuse what can't work in one line, else open the record.

    Not when the collection ends: that comes also where it failed, and a record that nobody runs hides the last one.
    """
    config = session.config
    items = [item for item in session.items if item.get_closest_marker("steph_stage")]
    if items:
        make_printable(sys.stdout, sys.stderr)
    if not items or (session.testsfailed and not config.option.continue_on_collection_errors):
        return
    if hasattr(config, "workerinput"):
        config.stash[REFUSED] = "session.workers"
        return
    from steph.base.messages import phrase
    from steph.run.gpu import has_nvidia_nodes

    options, profile = _asked(config)
    if config.option.collectonly or config.option.setuponly or config.option.setupplan:
        return
    if profile.machine.device == "gpu" and not has_nvidia_nodes():
        others = [item for item in session.items if item not in items]
        if all(item.get_closest_marker("gpu") for item in others):
            raise pytest.UsageError(phrase("session.no_gpu"))
        for item in items:
            item.add_marker(pytest.mark.skip(reason=phrase("session.no_gpu")))
        return
    from steph.conduct.session import JoinError
    from steph.contract.settings import ProfileError
    from steph.run.gpu import GpuLockError
    from steph.run.inputs import InputError, RootBusyError
    from steph.run.journal import JournalError

    try:
        _open(config, options, profile, tuple(_stage_of(item) for item in items))
    except OSError as error:
        raise refused(error) from error
    except (ProfileError, InputError, JoinError, JournalError, GpuLockError, RootBusyError) as error:
        raise pytest.UsageError(*str(error).splitlines()) from error


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """Close the record and make sure that nothing unmeasured ends with exit status 0."""
    stages = session.config.stash.get(SESSION, None)
    if stages is not None:
        try:
            session.exitstatus = stages.finish(int(exitstatus))
            _append_step_summary(stages)
        except KeyboardInterrupt:  # pytest would end with a traceback and status 1
            from steph.base.messages import say

            session.exitstatus = pytest.ExitCode.INTERRUPTED
            stages.console.line(str(say("console.interrupted", command=f"steph report {stages.journal.folder}")))
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The stages' verdicts and the report's path."""
    stages = config.stash.get(SESSION, None)
    if stages is None:
        return
    try:
        _summarize(terminalreporter, stages)
    except KeyboardInterrupt:
        from steph.base.messages import say

        terminalreporter.line(str(say("console.interrupted_summary", folder=str(stages.journal.folder))))


def _summarize(terminalreporter: pytest.TerminalReporter, stages: StageSession) -> None:
    from steph.base.messages import phrase
    from steph.base.units import duration
    from steph.judge.verdict import overall
    from steph.record.events import fold

    record = fold(stages.journal.events)
    terminalreporter.section("StepH")
    profile = phrase("session.profile", profile=record.context.profile)
    kind = phrase(f"report.list.{record.context.kind}")
    terminalreporter.line(f"{overall(record)}  ({kind}, {profile})")
    width = max(map(len, record.results), default=0)
    for stage, result in sorted(record.results.items()):
        seconds = duration(result.seconds) if result.seconds is not None else ""
        explanation = str(result.explanation)[:EXPLANATION_CHARS]
        stale = f"{phrase('session.stale')} " if result.stale else ""
        terminalreporter.line(f"{stage:{width}}  {result.verdict:14} {seconds:>9}  {stale}{explanation}")
    if stages.report is not None:
        terminalreporter.line(phrase("session.report", path=stages.report))
    is_there = stages.journal.folder.is_dir()
    terminalreporter.line(phrase("session.record" if is_there else "session.record_gone", path=stages.journal.folder))


def _append_step_summary(stages: StageSession) -> None:
    """The job's page on GitHub; a page that can't be written takes nothing with it."""
    from steph.base.messages import say
    from steph.conduct.session import STEP_SUMMARY_ENV, append_step_summary
    from steph.record.events import fold

    path = os.environ.get(STEP_SUMMARY_ENV)
    if not path:
        return
    try:
        append_step_summary(fold(stages.journal.events), Path(path))
    except Exception as error:  # the report and the record are written: this is a copy
        what = f"{type(error).__name__}: {error}"
        stages.console.line(str(say("console.no_step_summary", name=STEP_SUMMARY_ENV, error=what)))


@dataclass
class StageRunner:
    """What a stage's test works with: run the stage, get its result."""

    _session: StageSession
    _stage: AnyStage
    _item: pytest.Item

    def run(self) -> StageResult:
        """Run this test's stage; fails the test where the verdict is not green."""
        from steph.conduct.session import stage_properties
        from steph.run.journal import JournalError

        try:
            result = self._session.run(self._stage, budget_seconds(self._item))
        except JournalError as error:
            raise pytest.fail.Exception(f"{self._stage}: {error}", pytrace=False) from None
        # what the fixture `record_property` does, which is not there under `-p no:junitxml`
        self._item.user_properties.extend(stage_properties(result, self._session.report))
        if not result.verdict.is_green:
            pytest.fail(f"{self._stage} {result.verdict}: {result.explanation}", pytrace=False)
        return result


@pytest.fixture
def steph(request: pytest.FixtureRequest) -> StageRunner:
    """The stage of this test, named by its `steph_stage` marker."""
    stage = _stage_of(request.node)
    session = request.config.stash.get(SESSION, None)
    if session is None:
        _asked(request.config)  # workers of pytest-xdist have not been told the language yet
        from steph.base.messages import phrase

        pytest.fail(phrase(request.config.stash.get(REFUSED, "session.no_record")), pytrace=False)
    return StageRunner(session, stage, request.node)


def _stage_of(item: pytest.Item) -> AnyStage:
    from steph.base.terms import NEEDS

    marker = item.get_closest_marker("steph_stage")
    named = marker.args[0] if marker and marker.args else None
    stage = next((stage for stage in NEEDS if stage == named), None)
    if stage is None:
        raise pytest.UsageError(f"{item.nodeid}: steph_stage({named!r}): mark it with one of {', '.join(NEEDS)}")
    return stage


def budget_seconds(item: pytest.Item) -> float:
    """Seconds that a stage may take: its test's time-out less the margin, infinite without one."""
    marker = item.get_closest_marker("timeout")
    is_kept = item.config.pluginmanager.hasplugin("timeout")
    configured = (item.config.getoption("timeout", None) or item.config.getini("timeout")) if is_kept else 0
    value = (marker.args[0] if marker.args else marker.kwargs.get("timeout", 0)) if marker else configured
    seconds = float(value or 0)
    return max(seconds - MARGIN_SECONDS, seconds / 2) if seconds > 0 else float("inf")


def _asked(config: pytest.Config) -> tuple[Options, Profile]:
    """The options and their profile, in whose language all is said from here on; raises UsageError."""
    from steph.base.messages import speaking

    config.stash[IS_ASKED] = True
    options, profile = options_and_profile(config)
    told = contextlib.ExitStack()
    told.enter_context(speaking(profile.language(options)))
    config.add_cleanup(told.close)
    return options, profile


def _open(config: pytest.Config, options: Options, profile: Profile, stages: tuple[AnyStage, ...]) -> None:
    from steph.conduct.preparation import Console, prepare
    from steph.conduct.session import StageSession
    from steph.run import gpu

    if profile.machine.device == "gpu":
        held = contextlib.ExitStack()
        held.enter_context(gpu.kept_open())
        config.add_cleanup(held.close)
    console = Console(_writer(config), sys.stdout.isatty())
    pytest_options.furnish(config, options.pipeline_root, console.line)
    setup = prepare(options, profile, stages)
    config.stash[SESSION] = StageSession(setup, stages, session_command(config), console)


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
