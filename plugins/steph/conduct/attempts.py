"""Runs the child processes of a stage: its attempts, and the pipeline's short commands such as a builder.

An attempt's output files are moved out of the way, its child runs, its end is diagnosed and judged. The journal knows
of the attempt before the child starts and after it ended, whatever happens in between.

Nine values lead from what a child is asked to what the record keeps of it: an `Attempt` as it is planned, with its
`Call`, becomes a `ChildSpec`; while that runs there is `Progress`; it leaves an `Exit` of its supervisor, a `Probe` of
each process and a `DevicePeak` of each card, which make the `ChildOutcome`; with what it printed it is `Finished`, and
judged it is the complete `Attempt`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steph.base.files import read_source
from steph.base.messages import say
from steph.base.terms import EndedBy
from steph.base.text import redact_variables
from steph.conduct.preparation import Setup, StageRun, config_template
from steph.contract.commands import Call, build_command, folder_beside, needed_libraries, passed_names, spellings
from steph.contract.placeholders import filled
from steph.contract.programs import answers_help
from steph.diagnose.engine import diagnose, first_traceback
from steph.judge.checks_process import ProcessEvidence
from steph.judge.evidence import CardMemory
from steph.judge.verdict import checks_verdict
from steph.record.events import AttemptEnded, AttemptStarted
from steph.record.settings import DataFile, Device, EvalSettings
from steph.record.values import Attempt, Diagnosis
from steph.run import inputs, output
from steph.run.gpu import capped_alloc_conf, memory_fraction_for_cap
from steph.run.inputs import InputError, kept_safe, put_back, set_aside
from steph.run.journal import now
from steph.run.runner import ChildOutcome, ChildSpec, run_child, write_samples

LAST_LINES = 30
HELPER_SECONDS = 180.0
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1"}
QUIET_ENV = {"WANDB_MODE": "disabled", "HF_HUB_DISABLE_TELEMETRY": "1"}  # a run reports to nobody unless asked


@dataclass(frozen=True)
class Finished:
    """A child that ended: the attempt so far, what the runner saw, what it printed, and what it was called with."""

    attempt: Attempt
    outcome: ChildOutcome
    folder: Path
    started_unix: float  # as `ended_unix`, by the clock that stamps the files that it wrote
    stdout: str
    output: str
    ended_unix: float | None = None
    place: Path | None = None  # where its output really was before it
    written_late: tuple[str, ...] = ()  # outputs written when the program itself had ended
    call: Call | None = None

    def card_memory(self, device: Device | None) -> CardMemory | None:
        """The card's memory over this attempt; None without a GPU."""
        if device is None:
            return None
        reserved = [probe.peak_reserved_bytes for probe in self.outcome.probes if probe.peak_reserved_bytes]
        return CardMemory(device.total_bytes, self.outcome.memory_samples, max(reserved, default=None))

    def processes(self, setup: Setup) -> ProcessEvidence:
        """What its processes left beside their files, and what was asked of them."""
        attempt = self.attempt
        ranks = attempt.settings.num_processes if attempt.settings else 1
        return ProcessEvidence(
            ranks=ranks,
            probes=attempt.probes,
            asked_fraction=asked_fraction(setup, ranks),
            cap_bytes=setup.options.vram_cap_bytes,
            memory_returned=attempt.memory_returned,
            on_gpu=setup.device is not None,
            device_uuids=tuple(device.uuid for device in setup.devices(ranks)),
            peak_own_bytes=attempt.peak_own_bytes,
            libraries=needed_libraries(attempt.argv),
            left_behind=self.outcome.left_behind,
            left_alive=self.outcome.left_alive,
            written_late=self.written_late,
        )


Judge = Callable[[Finished], Attempt]


def run_attempt(run: StageRun, plan: Attempt, call: Call, judge: Judge) -> Attempt:
    """Run the child of a plan, numbered here, and journal its end; `judge` completes it by its artifacts."""
    setup, journal, console = run.setup, run.journal, run.console
    folder = side_folder(run, plan.stage)
    writes = (setup.root / call.writes,) if call.writes is not None else ()
    for path in writes:
        set_aside(path, folder / "before")
    cwd = Path(os.path.normpath(setup.root / call.cwd))
    attempt = plan.changed(
        number=int(folder.name.rpartition("-")[2]),
        argv=call.argv,
        before=call.before,
        after=call.after,
        env=redact_variables(call.env),
        cwd=str(cwd),
        folder=folder.name,
        started_at=now(),
    )
    journal.append(AttemptStarted(at=now(), attempt=attempt))
    title = f"{attempt.stage} {attempt.label}"
    begun_monotonic = time.monotonic()  # before the files' clock is read: on a busy machine the child starts much later
    started_unix, files_unix = time.time(), inputs.file_clock_unix(writes)
    place = next((path.resolve() for path in writes), None)
    try:
        spec = _spec(setup, attempt, call, folder, cwd)
        outcome = run_child(spec, on_poll=lambda progress: console.progress(title, progress))
    except BaseException as error:
        lost = attempt.changed(
            seconds=time.time() - started_unix,
            ended_by=EndedBy.SUITE_ERROR if isinstance(error, Exception) else EndedBy.INTERRUPTED,
            last_lines=tuple(output.tail_lines(folder, LAST_LINES)),
        )
        journal.append(AttemptEnded(at=now(), attempt=lost))
        raise
    ended_unix = inputs.file_clock_unix(writes)
    write_samples(folder, started_unix, outcome.memory_samples)
    complete = attempt.changed(
        seconds=outcome.seconds,
        returncode=outcome.returncode,
        ended_by=outcome.ended_by,
        probes=outcome.probes,
        device_peaks=outcome.device_peaks,
        memory_returned=outcome.memory_returned,
    )
    try:
        files_end_unix = files_unix + outcome.ended_monotonic - begun_monotonic
        late = inputs.written_after(writes, files_end_unix) if outcome.left_behind else ()
        text, stdout = output.read_output(folder), output.stdout_text(folder)
        timed_out = complete.ended_by is EndedBy.DEADLINE
        diagnosis = diagnose(text, complete.returncode, complete.probes, timed_out)
        complete = complete.changed(diagnosis=in_own_words(diagnosis, _said_to(setup, plan)))
        # also where its log has a cause: a loss of 0 is a symptom, and the checks say that no token had a label
        if complete.ended_by is EndedBy.EXIT and complete.returncode == 0:
            left = Finished(complete, outcome, folder, files_unix, stdout, text, ended_unix, place, late, call)
            complete = judge(left)
        # an exception that a program printed, to end with 0 all the same, is read there too
        if not complete.ended_well or (complete.checks and checks_verdict(complete.checks)):
            last = tuple(output.tail_lines(folder, LAST_LINES))
            complete = complete.changed(traceback=first_traceback(text), last_lines=last)
    finally:  # where reading or judging breaks, what was measured stays, unjudged and never green
        journal.append(AttemptEnded(at=now(), attempt=complete))
    return complete


def asked_fraction(setup: Setup, num_processes: int) -> float | None:
    """The share of its card that torch's allocator gets in each process under the cap; None without cap or GPU."""
    devices = setup.devices(num_processes)
    if setup.options.vram_cap_bytes is None or not devices:
        return None
    return memory_fraction_for_cap(setup.options.vram_cap_bytes, devices[0].total_bytes)


def child_environment(
    setup: Setup, existing: Mapping[str, str], *, on_gpu: bool, num_processes: int = 1
) -> dict[str, str | None]:
    """A child's variables beyond our environment: offline, a GPU a process by UUID, the cap; None takes one away."""
    quiet = {name: value for name, value in QUIET_ENV.items() if name not in existing}
    changes: dict[str, str | None] = {**OFFLINE_ENV, **quiet}
    devices = setup.devices(num_processes)
    if devices and on_gpu:
        changes["CUDA_VISIBLE_DEVICES"] = ",".join(device.uuid for device in devices)
        fraction = asked_fraction(setup, num_processes)
        if fraction is not None:
            changes |= capped_alloc_conf(existing, fraction)
    elif setup.profile.machine.device == "cpu":
        changes["CUDA_VISIBLE_DEVICES"] = ""
        if "OMP_NUM_THREADS" not in existing:
            changes["OMP_NUM_THREADS"] = "1"
    return changes


def _spec(setup: Setup, attempt: Attempt, call: Call, folder: Path, cwd: Path) -> ChildSpec:
    limits, ranks = setup.profile.limits, attempt.settings.num_processes if attempt.settings else 1
    if attempt.limit_seconds is None:
        raise ValueError(f"{attempt.stage} {attempt.label}: no time limit")
    return ChildSpec(
        argv=in_a_row(call.commands),
        cwd=cwd,
        folder=folder,
        env={**child_environment(setup, os.environ, on_gpu=True, num_processes=ranks), **call.env},
        limit_seconds=attempt.limit_seconds,
        grace_seconds=limits.terminate_grace_seconds,
        device_uuids=tuple(device.uuid for device in setup.devices(ranks)),
        memory_wait_seconds=limits.memory_return_seconds,
    )


# settings as advice knows them, and as a profile does
_ADVISED = {
    "batch": "batch_size", "accumulation": "gradient_accumulation_steps", "seq": "max_seq_length",
    "lr": "learning_rate", "four_bit": "use_4bit", "eval_four_bit": "use_4bit", "lora_rank": "lora_r",
    "lora_targets": "target_modules",
}  # fmt: skip


def _said_to(setup: Setup, plan: Attempt) -> Mapping[str, str]:
    """How the description says an attempt's settings; nothing of one that has none, as the making of a twin."""
    description = setup.description
    section = description.evaluate if isinstance(plan.settings, EvalSettings) else description.train
    with contextlib.suppress(InputError):  # a template that is gone meanwhile costs its names alone
        return spellings(section, config_template(setup.root, section)) if plan.settings is not None else {}
    return {}


def in_own_words(diagnosis: Diagnosis, said: Mapping[str, str]) -> Diagnosis:
    """The advice with the names that the program itself has for what it is told; others stay as they are."""
    own = {name: said[setting] for name, setting in _ADVISED.items() if said.get(setting)}
    advice = (
        one.changed(values={**one.values, **{k: own[k] for k in one.values if k in own}}) for one in diagnosis.advice
    )
    return diagnosis.changed(advice=tuple(advice))


def in_a_row(commands: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """One command that runs these one after the other until one fails; of one alone that one.

    The end is that of the one that failed, by its signal too, or of the last, which takes the shell's place.
    """
    *first, last = map(shlex.join, commands)
    if not first:
        return commands[0]
    as_it_failed = "status=$?; ulimit -c 0; [ $status -gt 128 ] && kill -$((status - 128)) $$; exit $status"
    return ("sh", "-c", f"{' && '.join(first)} || {{ {as_it_failed}; }}; exec {last}")


def side_folder(run: StageRun, name: str) -> Path:
    """A new folder in the record, numbered behind those of this name: an attempt's, or one of a side command."""
    number = len(list(run.journal.folder.glob(f"{name}-*"))) + 1
    while (folder := run.journal.folder / f"{name}-{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def run_side_command(run: StageRun, argv: tuple[str, ...], folder: Path) -> int | None:
    """Run a command from the pipeline root without the GPU; its exit status, None where it had none.

    Whatever the command does, the outputs of the stages are what they were: what it writes there goes to `folder`.
    """
    root, output_dir = run.setup.root, run.setup.description.output_dir
    spec = ChildSpec(
        argv=argv,
        cwd=root,
        folder=folder,
        env={**child_environment(run.setup, {}, on_gpu=False), "CUDA_VISIBLE_DEVICES": ""},
        limit_seconds=run.left_seconds(HELPER_SECONDS),
    )
    outputs = (root / output_dir, root / folder_beside(output_dir, "cot"), root / run.setup.description.output)
    with kept_safe(outputs, folder):
        return run_child(spec).returncode


def script_flags(run: StageRun) -> frozenset[str] | None:
    """The flags that a training script of the preset `lawqa` takes beyond the spec's; None for every other program.

    The description says so, else its `--help`. A script whose text shows no command line is not asked: it would not
    print its flags, it would train.
    """
    if "train_script" not in passed_names(run.setup.description.train):
        return None
    known, script = run.setup.description.optional_flags, run.setup.description.paths.train_script
    if known is not None:
        return frozenset(known)
    if not answers_help(read_source(run.setup.root / script)):
        return frozenset()
    folder = side_folder(run, "help")
    run_side_command(run, (run.setup.python, script, "--help"), folder)
    return frozenset(re.findall(r"--[\w-]+", output.stdout_text(folder)))


def require_built(run: StageRun, argv: tuple[str, ...], folder: Path, what: str) -> None:
    """Run a builder; raises InputError with its last lines where it fails."""
    status = run_side_command(run, argv, folder)
    if status != 0:
        last = " / ".join(output.tail_lines(folder, 3)) or say("input.no_output", seconds=HELPER_SECONDS)
        raise InputError(say("input.not_built", what=what, command=" ".join(argv[1:]), status=status, last=last))


def training_rows(run: StageRun, relative: str, mode: Literal["direct", "cot"]) -> DataFile:
    """The training file, built first where it is missing or of other data and the description says how."""
    setup, description, root = run.setup, run.setup.description, run.setup.root
    samples, row_format = setup.profile.evaluate.samples, description.train.rows.format
    if not (root / relative).is_file():
        python, dataset = setup.python, setup.dataset.path if setup.dataset else ""
        values = {"python": python, "bin": str(Path(python).parent), "root": str(root), "launch": python}
        values |= {"train_file": description.train_file or "", "dataset": dataset}
        for command in description.train.before:
            words = tuple(filled(word, values) for word in command)
            require_built(run, words, side_folder(run, "build"), f"train.before of {root}")
    if description.build and setup.dataset and inputs.needs_build(root, relative, setup.dataset, samples):
        values = {"dataset": setup.dataset.path, "train_file": relative, "mode": mode, "samples": str(samples)}
        argv = build_command(setup.python, description.build.command, values)
        run.console.line(str(say("console.building", file=relative, dataset=str(setup.dataset.path))))
        folder = side_folder(run, "build")
        before = set_aside(root / relative, folder / "before")
        try:
            require_built(run, argv, folder, str(root / relative))
            return inputs.read_train_file(root, relative, mode, row_format)
        except BaseException:  # half a file must not pass for a whole one in the next run
            set_aside(root / relative, folder / "failed")
            put_back(root / relative, before)
            raise
    return inputs.read_train_file(root, relative, mode, row_format)


def build_index(run: StageRun) -> None:
    """Have the pipeline build its retrieval index anew, where its description says how; raises InputError."""
    setup, index = run.setup, run.setup.description.index
    if index is None or setup.dataset is None:
        return
    argv = build_command(setup.python, index.command, {"dataset": setup.dataset.path})
    run.console.line(str(say("console.building_index", dataset=str(setup.dataset.path))))
    require_built(run, argv, side_folder(run, "index"), f"retrieval index of {setup.root}")
