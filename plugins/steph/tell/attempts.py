"""Renders a stage's attempts as a Markdown table, says why one failed, and how a person repeats it.

Takes values of a record, gives words, Markdown and shell text; what stands around them is in `templates/`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from steph.base import units
from steph.base.messages import phrase, text
from steph.base.terms import AnyStage, ExtendedId, Purpose, StageId
from steph.base.units import GIB, MISSING
from steph.contract.options import OPTIONS, REPLACED
from steph.judge import verdict
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Diagnosis, OomNumbers, Probe, ProductionCall, Record, StageResult
from steph.tell import wording
from steph.tell.markdown import Markdown, code, inline, joined, said, table

# most functions here are called in templates/*.j2 alone
MOST_EVIDENCE_LINES = 8
_COLUMNS = {  # and how each is aligned
    "number": "r",
    "settings": "l",
    "result": "l",
    "seconds": "r",
    "card": "r",
    "process": "r",
    "predicted": "r",
    "torch": "r",
}
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+(?:, in .*)?')
_LIBRARY = re.compile(r"(?:^|[/\\])(?:site-packages|dist-packages|lib[/\\]python\d)[^\"]*")


def table_of(record: Record, stage: AnyStage, *, purpose: Purpose = Purpose.STAGE) -> Markdown:
    """The table of a stage's attempts of one purpose: setting, outcome, seconds, peaks; without empty columns."""
    result = record.results.get(stage)
    if result is None:
        return said("report.attempts.none")
    by_purpose = {Purpose.CALIBRATE: result.calibration_attempts, Purpose.DEEP: result.deep_attempts}
    attempts = by_purpose.get(purpose, result.attempts)
    if not attempts:
        return said("report.attempts.none")
    with_model = len({attempt.model_name for attempt in attempts}) > 1
    with_predicted = any(attempt.predicted for attempt in attempts)
    has_card = record.context.environment.device is not None
    rows = []
    for attempt in attempts:
        seconds = units.plausible_seconds(attempt.seconds)
        rows.append(
            {
                "number": str(attempt.number),
                "settings": settings_words(attempt, with_model=with_model),
                "result": _result_words(record, result, attempt),
                "seconds": MISSING if seconds is None else f"{seconds:,.1f}",
                "card": measured(attempt.peak_device_bytes, record) if has_card else MISSING,
                "process": measured(attempt.peak_own_bytes, record) if has_card else MISSING,
                "predicted": _predicted_words(attempt) if with_predicted else MISSING,
                "torch": torch_peaks(attempt.probes) if has_card else MISSING,
            }
        )
    shown = [name for name in _COLUMNS if any(row[name] != MISSING for row in rows)]
    header = [text(f"report.attempts.{name}") for name in shown]
    cells = [[row[name] for name in shown] for row in rows]
    made = table(header, cells, align="".join(_COLUMNS[name] for name in shown))
    return joined((made, said("report.attempts.peaks") if has_card else ""))


def settings_words(attempt: Attempt, *, with_model: bool = False) -> Markdown:
    """An attempt's label, for training the effective batch, and on request the model."""
    settings = attempt.settings
    lines: list[str] = [code(attempt.label) if settings else inline(attempt.label)]
    if isinstance(settings, TrainSettings):
        steps, batch = settings.gradient_accumulation_steps, settings.effective_batch_size
        lines.append(said("report.accumulation", steps=steps, batch=batch))
    if with_model and attempt.model_name:
        lines.append(code(attempt.model_name.rpartition("/")[2]))
    return Markdown("<br>".join(lines))


def _result_words(record: Record, result: StageResult, attempt: Attempt) -> Markdown:
    if is_running(record, result, attempt):
        return said("report.running")
    phase = attempt.diagnosis.phase if attempt.diagnosis and not attempt.ended_well else None
    told = [inline(wording.outcome_words(attempt)), *([text(f"diagnose.phase.{phase}")] if phase else [])]
    return Markdown("<br>".join(told))


def _predicted_words(attempt: Attempt) -> Markdown:
    predicted = attempt.predicted
    if predicted is None:
        return said("report.unpredicted")
    low, high = predicted.low_bytes, predicted.high_bytes
    interval = f"<br>{said('report.interval', low=low / GIB, high=high / GIB)}" if low and high else ""
    outside = f"<br>{said('report.outside')}" if outside_prediction(attempt) else ""
    return Markdown(f"{units.gib(predicted.peak_bytes)}{interval}{outside}")


def outside_prediction(attempt: Attempt) -> bool:
    """Whether the peak that was measured lies outside the interval that was predicted for the attempt."""
    predicted, peak = attempt.predicted, attempt.peak_own_bytes
    if predicted is None or peak is None or not attempt.ended_well:
        return False
    return not predicted.low_bytes <= peak <= predicted.high_bytes


def is_running(record: Record, result: StageResult, attempt: Attempt) -> bool:
    """Whether this attempt is in flight, as far as the record tells."""
    is_last = attempt is result.newest_attempt
    running = [stage for stage in record.stages if verdict.in_flight(record, stage)]
    # a calibration runs after its stage has ended and before the next one begins
    may_run = record.live and not running if attempt.purpose is Purpose.CALIBRATE else result.stage in running
    return may_run and is_last and attempt.ended_by is None


def is_training(attempt: Attempt) -> bool:
    """Whether the attempt was of a training; else it was of an evaluation."""
    return isinstance(attempt.settings, TrainSettings)


def completion(record: Record, attempt: Attempt) -> str:
    """Say whether the attempt that counts came to its end, and whether it was believed."""
    if verdict.in_flight(record, attempt.stage):
        return text("report.running")
    outcome = record.verdict_of(attempt.stage)
    if attempt.ended_well and not outcome.is_green:
        return phrase("report.completion.but_verdict", verdict=outcome.value)
    return wording.outcome_words(attempt)


def time_words(result: StageResult, attempt: Attempt) -> str:
    """Say how long the attempt took, and the stage with all its attempts."""
    last = units.duration(attempt.seconds)
    if result.seconds is None:
        return phrase("report.time.last", attempt=last)
    return phrase("report.time.last_and_stage", attempt=last, stage=units.duration(result.seconds))


def log_folder(record: Record, attempt: Attempt) -> Markdown:
    """An attempt's folder, below the folder of runs where the record has its name alone."""
    return code(path_in(f"runs/{record.id}", attempt.folder or None))


def path_in(folder: str, name: str | None) -> str:
    """The path of a name in a folder; one that is a path already stays, none is empty."""
    if name is None:
        return ""
    return name if "/" in name else f"{folder.rstrip('/')}/{name}"


def measured(size_bytes: int | None, record: Record) -> str:
    """A peak of the card's memory in words, or why there is none."""
    if size_bytes is not None:
        return units.gib(size_bytes)
    return text("report.unmeasured" if record.context.environment.device else "report.no_gpu")


def torch_peaks(probes: tuple[Probe, ...]) -> str:
    """The peaks of the process that allocated most, as its torch counted them."""
    known = [probe for probe in probes if probe.peak_allocated_bytes is not None]
    if not known:
        return MISSING
    most = max(known, key=lambda probe: probe.peak_allocated_bytes or 0)
    return f"{(most.peak_allocated_bytes or 0) / GIB:,.2f} / {units.gib(most.peak_reserved_bytes)}"


def cause_words(diagnosis: Diagnosis) -> str:
    """Name a cause, how far the script had come and which rank failed."""
    phase = [text(f"diagnose.phase.{diagnosis.phase}")] if diagnosis.phase else []
    rank = [f"rank {diagnosis.rank}"] if diagnosis.rank is not None else []
    return phrase("report.listed", parts=[wording.cause_name(diagnosis.cause), *phase, *rank])


def error_words(record: Record, attempt: Attempt) -> str:
    """The error's own words: the uncaught exception, else the evidence; empty where there is neither.

    A launcher's own exception only says that a process of it failed: there the failed rank's counts.
    """
    raised = [probe for probe in attempt.probes if probe.exception_type]
    if attempt.settings is not None and attempt.settings.launcher != "none":
        rank = attempt.diagnosis.rank if attempt.diagnosis else None
        raised = [probe for probe in raised if probe.rank is not None and probe.rank == rank]
    if raised:
        return f"{raised[0].exception_type}: {raised[0].exception_message or ''}"
    return "\n".join(evidence(record, attempt))


def evidence(record: Record, attempt: Attempt) -> list[str]:
    """The lines that tell the cause, with the pipeline's own frame in the place of its libraries' frames."""
    found = attempt.diagnosis.evidence if attempt.diagnosis else ()
    own = own_frame(attempt.traceback or "", record.context.pipeline_root)
    told = [line for line in found[:MOST_EVIDENCE_LINES] if own is None or not _FRAME.match(line.strip())]
    return told if own is None else [*told, own]


def own_frame(traceback: str, root: str) -> str | None:
    """The last frame of a traceback that is in the pipeline's own files; None where there is none."""
    frames = [match for line in traceback.splitlines() if (match := _FRAME.match(line.strip()))]
    inside = f"{root.rstrip('/')}/"
    own = [f for f in frames if f["file"].startswith(inside) or not f["file"].startswith(("/", "<"))]
    own = [frame for frame in own if not _LIBRARY.search(frame["file"])]
    return own[-1][0] if own else None


def oom_words(record: Record, oom: OomNumbers) -> Markdown:
    """The figures of torch's message; under a limit, what it says of the whole card is not what the run had."""
    cap = record.context.vram_cap_bytes
    sizes = {
        "requested": units.size_words(oom.requested_bytes) if oom.requested_bytes is not None else MISSING,
        "allocated": units.gib(oom.allocated_bytes),
        "reserved": units.gib(oom.reserved_bytes),
    }
    if cap is not None:
        return said("report.failure.memory_capped", cap=units.gib(cap), **sizes)
    return said("report.failure.memory", free=units.gib(oom.free_bytes), total=units.gib(oom.total_bytes), **sizes)


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
_SETTING = re.compile(r"[+~]{0,2}[A-Za-z_][\w.]*=")  # as LLaMA-Factory and hydra take them
_SUITE_FLAGS = frozenset(option.flag for option in OPTIONS if option.is_flag)
_REPLACED = frozenset(option.flag for option in REPLACED)  # which commands of old records may have
_PYTEST_OPTIONS_WITH_VALUE = frozenset({"-c", "--config-file", "-o", "--override-ini", "-p", "--rootdir"})


def pasteable(argv: Sequence[str]) -> str:
    """A command for a POSIX shell, quoted, one option or `key=value` a line."""
    lines: list[list[str]] = [[]]
    for word in argv:
        line = lines[-1]
        is_setting = bool(_SETTING.match(word)) and not (line and line[-1].startswith("-"))
        if line and (word.startswith("--") or is_setting):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


def attempt_command(attempt: Attempt) -> str:
    """The lines that repeat an attempt by hand, from the pipeline root."""
    change_folder = f"cd {shlex.quote(attempt.cwd)}\n" if attempt.cwd else ""
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in attempt.env.items())
    commands = (*attempt.before, attempt.argv, *attempt.after)
    return change_folder + variables + " && \\\n".join(map(pasteable, commands))


def production_command(call: ProductionCall) -> str:
    """The lines of the production run, from the pipeline root: its file of settings first, where it has one."""
    lines = []
    if call.config is not None and call.config_file is not None:
        end = next(word for word in ("EOF", "END_OF_SETTINGS") if word not in call.config.splitlines())
        lines.append(f"cat > {shlex.quote(call.config_file)} <<'{end}'\n{call.config.rstrip()}\n{end}")
    if call.cwd != ".":
        lines.append(f"cd {shlex.quote(call.cwd)}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in call.env.items()]
    return "\n".join([*lines, " && \\\n".join(map(pasteable, call.commands))])


def rerun_command(record: Record, stage: AnyStage) -> str:
    """The command that runs one stage again into this record, with the options of its latest session."""
    return _suite_command(record, "gpu", TEST_IDS[stage])


def extended_command(record: Record) -> str:
    """The command that runs the extended stages into this record, with the options of its latest session."""
    return _suite_command(record, "extended", EXTENDED_TESTS)


def _suite_command(record: Record, mark: str, tests: str) -> str:
    """The session's own command with other tests: what starts pytest, and the options that are not selections."""
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
