"""`steph doctor` as a command: lines or JSON on stdout, and the exit status."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import NoReturn

import pytest

from steph import installed, quiet_start
from steph.base.messages import phrase, speaking, text
from steph.doctor.examination import examine
from steph.doctor.lines import Level, Line
from steph.plan.options import Options
from steph.plan.settings import Profile, ProfileError
from steph.pytest_options import join_environment, join_values, options_and_profile
from steph.run.inputs import InputError

UNUSABLE = 2  # exit status for options or a profile that can't be used
CERTAIN_TO_FAIL = 3  # exit status with --gate
LEAVE_SECONDS = 5


Act = Callable[[pytest.Config, Options, Profile], int]


class WithRunOptions:
    """A pytest plugin that acts instead of running: so the options are those of a run, whatever they come from.

    `status` is the exit status, None where the options could not be used.
    """

    def __init__(self, act: Act) -> None:
        self._act = act
        self.status: int | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        """In place of a session."""
        quiet_start.end()  # from here on Ctrl-C must end what was started, too
        options, profile = options_and_profile(config)
        with speaking(profile.language(options)):
            try:
                self.status = self._act(config, options, profile)
            except (ProfileError, InputError) as error:
                raise pytest.UsageError(*str(error).splitlines()) from error
        return self.status


def with_run_options(words: Sequence[str], act: Act) -> int:
    """Act on the options and the profile of pytest's command line `words`; gives the exit status, 2 where they can't
    be used.
    """
    plugin = WithRunOptions(act)
    # no conftest: those of the folder may load torch, and what they would add is of no use here
    join_environment()
    pytest.main(["-p", "steph.plugin", "--noconftest", *join_values(words)], plugins=[plugin])
    return UNUSABLE if plugin.status is None else plugin.status


def doctor_status(
    words: Sequence[str],
    write: Callable[[str], None],
    *,
    is_quick: bool = False,
    as_json: bool = False,
    is_gate: bool = False,
) -> int:
    """Examine under pytest's command line `words`, as `steph doctor` with `--quick`, `--json` and `--gate` does.

    Gives the exit status, 2 where the options can't be used.
    """

    def leave(number: int, _: object) -> NoReturn:  # in order, so that no process stays behind; after seconds at most
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LEAVE_SECONDS)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)

    def examine_run(config: pytest.Config, options: Options, profile: Profile) -> int:
        tell = (lambda _: None) if as_json else write
        installed.furnish(config, options.pipeline_root, lambda line: tell(f"doctor: {line}"))
        tell(phrase("doctor.line.examined", profile=profile.name, root=options.pipeline_root))
        lines = []
        for line in examine(options, profile, is_quick=is_quick, waits_for=lambda what: tell(f"doctor: {what}")):
            tell(as_text(line))
            lines.append(line)
        tell(conclusion(lines))
        if as_json:
            examined = {"profile": profile.name, "pipeline_root": str(options.pipeline_root)}
            write(json.dumps({**examined, "lines": [asdict(x) for x in lines]}, ensure_ascii=False, indent=1))
        return exit_status(lines, is_gate=is_gate)

    return with_run_options(words, examine_run)


def exit_status(lines: Iterable[Line], *, is_gate: bool) -> int:
    """0 where nothing fails, 1 where something does; at the gate 3 where a run is certain to fail, else 0."""
    failed = [line for line in lines if line.level is Level.FAIL]
    if is_gate:
        return CERTAIN_TO_FAIL if any(line.is_certain for line in failed) else 0
    return 1 if failed else 0


def as_text(line: Line) -> str:
    """A check's line, and its remedy below it where there is one."""
    told = text("doctor.line.remedy", values={"remedy": line.remedy}) if line.remedy else ""
    remedy = f"\n{'':19}{told}" if told else ""
    return f"{line.level:4}  {line.check:11}  {line.message}{remedy}"


def conclusion(lines: Iterable[Line]) -> str:
    """How many lines of which level, and what makes a run certain to fail."""
    every = list(lines)
    counts = ", ".join(f"{sum(line.level is level for line in every)} {level}" for level in Level)
    certain = ", ".join(line.check for line in every if line.level is Level.FAIL and line.is_certain)
    return f"doctor: {counts}" + (f"; {phrase('doctor.line.certain', checks=certain)}" if certain else "")
