"""Opens or joins the record of one pytest session, runs its stages into it, and writes its reports.

What a CI server shows of it comes from here too: properties in the JUnit file, and the job's summary page on GitHub.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import FrameType

from steph.base.messages import Message, say
from steph.base.terms import NEEDS, AnyStage, StageId, Verdict
from steph.base.units import gib
from steph.conduct.preparation import Console, Setup
from steph.conduct.stages import Conductor
from steph.judge.verdict import exit_status
from steph.record.events import SessionEnded, SessionStarted, fold
from steph.record.settings import Context, DataFile
from steph.record.values import ModelChoice, Record, StageResult
from steph.run import model_files, output
from steph.run.gpu import gpu_lock
from steph.run.inputs import root_lock
from steph.run.journal import (
    Journal,
    JournalError,
    end_leftovers,
    is_live,
    new_record_id,
    now,
    opened_event,
    prune_logs,
    readable_records,
    settle_crash,
    stages_in_flight,
)
from steph.run.model_files import IncompleteModelError
from steph.run.runner import read_samples
from steph.tell import wording
from steph.tell.drawings import VramSample
from steph.tell.machine_summary import summary_of, write_summary
from steph.tell.outlook import production_outlook
from steph.tell.report import parts, report_path, write_page, write_report

SHA_CHARS = 12


def differences(record: Record, setup: Setup) -> list[Message]:
    """The differences between a record and the run that wants to join it, one phrase each."""
    chosen = record.stages[StageId.H1].model if StageId.H1 in record.stages else None
    dataset = next((data for data in record.data if data.role == "dataset"), None)
    then = _facts(record.context, dataset, _named(chosen.name, chosen.revision) if chosen else None)
    current = _facts(setup.context, setup.dataset, _present_model(chosen, setup) if chosen else None)
    return [
        say("join.different", fact=say(f"join.fact.{name}"), before=before, now=current[name])
        for name, before in then.items()
        if before is not None and current[name] not in (None, before)
    ]


def _facts(context: Context, dataset: DataFile | None, model: str | None) -> dict[str, Message | str | None]:
    """The facts that both must share, as a person is told them; None where one is not known, which agrees with all."""
    cap_bytes = context.vram_cap_bytes
    return {
        "profile": context.profile_sha256[:SHA_CHARS],
        "pipeline_root": context.pipeline_root,
        "pipeline_python": context.pipeline_python,
        "pipeline_commit": context.pipeline_git.commit or say("join.none"),
        "device": ", ".join(device.uuid for device in context.environment.devices) or say("join.none"),
        "vram_cap": say("join.none") if cap_bytes is None else gib(cap_bytes),
        "twin": say("join.yes" if context.twin else "join.no"),
        "trainer": context.trainer,
        "described": context.described_sha256[:SHA_CHARS] if context.described_sha256 else None,
        "dataset": dataset.sha256[:SHA_CHARS] if dataset else None,
        "model": None if context.twin else model,
    }


def _present_model(recorded: ModelChoice, setup: Setup) -> str:
    """The model that this run would use: what it was asked for, else the record's, as it lies in the cache now."""
    asked = setup.options.model
    if asked is not None:
        folder = Path(asked).expanduser()
        place = str(folder.resolve()) if folder.is_dir() else asked  # as H-1 records it
        if place != recorded.name:
            return place
    revision = recorded.revision
    if revision is not None:
        with contextlib.suppress(IncompleteModelError):  # no whole copy is in the cache
            revision = model_files.cached_model(model_files.default_cache_dir(), recorded.name).name
    return _named(recorded.name, revision)


def _named(name: str, revision: str | None) -> str:
    return f"{name}@{revision[:SHA_CHARS]}" if revision else name


LAST_LINES = 30
SUPERVISOR_SECONDS = 5.0  # beyond the grace of its child: until it has seen, killed and reaped everything
REPORT_SECONDS = 20.0  # at the end, for a report that was begun before it; most take one


class JoinError(RuntimeError):
    """A single stage can't be rerun into an existing record; the message names every difference."""


class StageSession:
    """The stages of one pytest run and the record that they write into."""

    def __init__(self, setup: Setup, stages: Sequence[AnyStage], command: Sequence[str], console: Console) -> None:
        self.stages = tuple(stages)
        self.console = console
        self.runs = setup.options.reports_dir / "runs"
        self._held = contextlib.ExitStack()
        for device in setup.devices(setup.profile.num_processes):
            self._held.enter_context(gpu_lock(device.uuid))
        self._held.enter_context(root_lock(setup.root))
        patience_seconds = setup.profile.limits.terminate_grace_seconds + SUPERVISOR_SECONDS
        if survivors := end_leftovers(self.runs, patience_seconds):
            raise JoinError(say("join.survivors", runs=self.runs, pids=[str(pid) for pid in survivors]))
        settle_lost_runs(self.runs)
        prune_logs(self.runs)
        self.journal = open_journal(setup, self.stages, self.runs)
        report_file = setup.options.report_file
        started = SessionStarted(
            at=now(),
            command=tuple(command),
            stages=self.stages,
            pipeline_dirty=setup.context.pipeline_git.dirty,
            report_name=report_file.name if report_file else None,
        )
        self.journal.append(started)
        self._conductor = Conductor(setup, self.journal, console, self._tell)
        self.report: Path | None = None
        self._writing: Future[Path] | None = None
        self._interruption = Interruption()

    def run(self, stage: AnyStage, budget_seconds: float) -> StageResult:
        """Run one stage; its result is in the journal when this returns, and in the report a moment later."""
        return self._conductor.run(stage, budget_seconds)

    def finish(self, pytest_status: int) -> int:
        """End the session's part of the record; the exit status is never 0 where a selected stage is not green."""
        self._interruption.begin_ending()
        status = exit_status(self.stages, self.journal.record(), pytest_status)
        try:
            self.journal.append(SessionEnded(at=now(), exit_status=status))
        except JournalError as error:  # what was written before holds; a record without its end is never green
            self.console.line(str(say("console.no_end", error=str(error))))
            status = status or 1
        self.journal.close()
        self._held.close()
        self._written(REPORT_SECONDS)
        self._tell(fold(self.journal.events), beside=False)
        self._written()
        self._interruption.restore()
        return status if self.report else status or 1  # the report is what a run is for

    def _tell(self, record: Record, *, beside: bool = True) -> None:
        """Write the report, beside the next stage: most of a stage is waiting for its program.

        Pictures take a second or two. After the last stage the end of the session draws them, which comes at once.
        """
        self._written()
        with contextlib.suppress(OSError):  # told by the writing itself
            self.report = report_path(record, self.runs.parent)
        with_figures = not record.live or record.verdict_of(self.stages[-1]) is Verdict.NOT_RUN
        writing = self._writing = Future[Path]()

        def write() -> None:
            try:
                writing.set_result(tell(self.runs, record, with_figures=with_figures))
            except BaseException as error:
                writing.set_exception(error)

        if beside:
            threading.Thread(target=write, name="report", daemon=True).start()
        else:
            write()

    def _written(self, limit_seconds: float | None = None) -> None:
        """Wait for the report; a failing one never takes a stage's result with it.

        One that takes longer is left behind: Ctrl-C in the middle of an import may have left its module locked for all
        threads but the main one, which then writes the last report.
        """
        writing, self._writing = self._writing, None
        if writing is None or wait([writing], limit_seconds).not_done:
            return
        try:
            self.report = writing.result()
        except Exception as error:  # the record holds the result; the report can be made again
            folder, self.report = self.journal.folder, None
            what = f"{type(error).__name__}: {error}"
            self.console.line(str(say("console.no_report", error=what, command=f"steph report {folder}")))


def tell(runs: Path, record: Record, *, with_figures: bool = True) -> Path:
    """Write a record's Markdown, its history included, and its summary for programs.

    The summary is written also where the Markdown can't be, and not where another record of its kind was run since:
    programs read the verdict of the newest run.
    """
    outlook, path = production_outlook(record), report_path(record, runs.parent)
    history, samples = _told(runs, record)
    try:
        path = write_report(record, history, path, samples=samples, with_figures=with_figures, outlook=outlook)
    finally:
        alike = [other for other in history if other.context.kind is record.context.kind]
        began = [one.sessions[-1].started_at if one.sessions else "" for one in (record, *alike)]
        if began[0] >= max(began):
            write_summary(summary_of(record, outlook, report=path, folder=runs / record.id), runs.parent)
    return path


def tell_apart(runs: Path, record: Record, path: Path | None, *, as_html: bool) -> Path:
    """Write a record's report to a file of its own: Markdown, or a page of HTML, by default beside the Markdown.

    The Markdown of the record's own run and its summary stay as they are. Raises OSError where the file can't be
    written.
    """
    (history, samples), outlook = _told(runs, record), production_outlook(record)
    markdown = report_path(record, runs.parent)
    if not as_html:
        return write_report(record, history, path or markdown, samples=samples, outlook=outlook)
    page = path or markdown.with_suffix(".html")
    return write_page(record, history, page, markdown=markdown, samples=samples, outlook=outlook)


def _told(runs: Path, record: Record) -> tuple[list[Record], list[VramSample]]:
    """What a report tells beside its record: the other records, and the card's memory over time."""
    history = [known for _, known in readable_records(runs) if known.id != record.id]
    return history, [VramSample(moment, used) for moment, used in read_samples(runs / record.id)]


def open_journal(setup: Setup, stages: Sequence[AnyStage], runs: Path) -> Journal:
    """Join the newest record of this kind and profile, or open one where all three stages run; raises JoinError."""
    found = [
        (folder, record)
        for folder, record in readable_records(runs)
        if record.context.kind is setup.context.kind and record.context.profile == setup.context.profile
    ]
    if found and not set(StageId) <= set(stages):
        folder, record = found[-1]
        different = differences(record, setup)
        if not different:
            return Journal(folder)
        if any(needed not in stages for stage in stages for needed in NEEDS[stage]):
            raise JoinError(say("join.refused", stages=stages, record=record.id, different=different))
    record_id = new_record_id()
    journal = Journal(runs / record_id)
    journal.append(opened_event(record_id, setup.context))
    return journal


def settle_lost_runs(runs: Path) -> None:
    """State in every journal that a killed run left open which stage was in flight, with its child's last lines."""
    for folder, record in readable_records(runs):
        if record.live or not stages_in_flight(record) or is_live(folder):
            continue
        lines = {}
        for stage in stages_in_flight(record):
            last = record.results[stage].newest_attempt
            if last is not None and last.ended_by is None:
                lines[stage] = tuple(output.tail_lines(folder / last.folder, LAST_LINES))
        with contextlib.suppress(JournalError):  # another run's affair, or a disk that can't take it now
            journal = Journal(folder)
            settle_crash(journal, lines)
            journal.close()


ENDING_SECONDS = 60.0  # longer than stopping a child, closing the record and writing the report take


class Interruption:
    """Turns the first signal into a KeyboardInterrupt; what follows while the run is ending is passed over.

    A CI's cancel sends SIGINT, then SIGTERM while the child is being stopped: the second must not cut the ending short.
    Ctrl-C still may, as often as it is pressed.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._ending_since = float("-inf")
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets nobody else set handlers
        defaults = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }
        for number, default in defaults.items():
            if signal.getsignal(number) == default:  # not where nohup ignores it or somebody else handles it
                self._previous[number] = signal.signal(number, self._received)

    def begin_ending(self) -> None:
        """From here on the run ends by itself, and a signal that asks for it has nothing to add."""
        self._ending_since = time.monotonic()

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _received(self, number: int, frame: FrameType | None) -> None:
        is_ending = time.monotonic() - self._ending_since < ENDING_SECONDS
        if is_ending and number != signal.SIGINT:
            return
        self.begin_ending()
        raise KeyboardInterrupt(signal.Signals(number).name)


STEP_SUMMARY_ENV = "GITHUB_STEP_SUMMARY"


def stage_properties(result: StageResult, report: Path | None) -> tuple[tuple[str, str], ...]:
    """Name and value of what is known of a stage, seconds and bytes as plain numbers."""
    attempt = result.last_attempt
    known = {
        "steph_stage": result.stage,
        "steph_verdict": result.verdict,
        "steph_cause": attempt.diagnosis.cause if attempt and attempt.diagnosis else None,
        "steph_seconds": result.seconds,
        "steph_peak_vram_bytes": wording.peak_bytes(result),
        "steph_attempts": len(result.attempts),
        "steph_report": report,
    }
    return tuple((name, str(value)) for name, value in known.items() if value is not None)


def append_step_summary(record: Record, path: Path) -> None:
    """Add the report's sections to a job's summary; raises OSError."""
    from steph.tell.page import mask_for  # with what renders HTML, which a run without a CI server does not need

    told = "\n".join(part.text for part in parts(record, outlook=production_outlook(record)))
    mask = mask_for(told)  # the page is read by others than the machine's own people
    with path.open("a", encoding="utf-8") as page:
        page.write(mask(told))
