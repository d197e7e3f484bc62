"""The parts that the report's sections share: command blocks, attempts, findings, files.

Takes values of a record, gives Markdown; a section's order and its own words are in `templates/`.
"""

from __future__ import annotations

from steph.base import units
from steph.base.messages import phrase, text
from steph.base.terms import AnyStage, Cause, Purpose
from steph.base.units import GIB, MISSING
from steph.judge import verdict
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Check, Diagnosis, Probe, Record, StageResult
from steph.tell import commands, summary, wording
from steph.tell.markdown import Markdown, code, details, fence, inline, joined, prose, said, table


def command_block(attempt: Attempt | None) -> Markdown:
    """Give the command of an attempt to paste, from the pipeline root."""
    if attempt is None or not attempt.argv:
        return said("report.command.none")
    return fence(commands.attempt_command(attempt), "bash")


def rerun_block(record: Record, stage: AnyStage) -> Markdown:
    """Give the command that runs this stage again, folded."""
    return details(text("report.command.rerun"), fence(commands.rerun_command(record, stage), "bash"))


def facts(rows: list[tuple[str, str]]) -> Markdown:
    """Give a two-column table of names and values; rows without a value fall away."""
    return table(
        (text("report.item"), text("report.value")), [(Markdown(name), value) for name, value in rows if value]
    )


def stage_state(record: Record, stage: AnyStage) -> Markdown:
    """Say in one paragraph how a stage ended, plainly where it was not run, is stale or still runs."""
    result = record.results.get(stage)
    word = inline(summary.stage_word(record, stage))
    if result is None:
        return said("report.stage_state.none", word=word)
    if verdict.in_flight(record, stage):
        return said("report.stage_state.running", word=word, start=units.moment(result.started_at))
    return said("report.stage_state", word=word, explanation=prose(result.explanation))


def attempts_table(record: Record, stage: AnyStage, *, purpose: Purpose = Purpose.STAGE) -> Markdown:
    """Give every attempt of a stage, of one purpose, with setting, outcome, seconds and peaks.

    A column that no attempt has anything for falls away.
    """
    result = record.results.get(stage)
    attempts = _of_purpose(result, purpose) if result else ()
    if result is None or not attempts:
        return said("report.attempts.none")
    with_model = len({attempt.model_name for attempt in attempts}) > 1
    has_card = record.context.environment.device is not None
    columns: list[tuple[str, str, list[str]]] = [
        ("r", text("report.attempts.number"), [str(attempt.number) for attempt in attempts]),
        (
            "l",
            text("report.attempts.settings"),
            [settings_words(attempt, with_model=with_model) for attempt in attempts],
        ),
        ("l", text("report.attempts.result"), [_result_words(record, result, attempt) for attempt in attempts]),
        (
            "r",
            text("report.attempts.seconds"),
            [_seconds(a.seconds) for a in attempts],
        ),
        (
            "r",
            text("report.attempts.card"),
            [measured(a.peak_device_bytes, record) for a in attempts] if has_card else [],
        ),
        (
            "r",
            text("report.attempts.process"),
            [measured(a.peak_own_bytes, record) for a in attempts] if has_card else [],
        ),
        (
            "r",
            text("report.attempts.predicted"),
            [_predicted(a) for a in attempts] if any(a.predicted for a in attempts) else [],
        ),
        ("r", text("report.attempts.torch"), [torch_peaks(a.probes) for a in attempts] if has_card else []),
    ]
    shown = [column for column in columns if any(cell != MISSING for cell in column[2])]
    rows = zip(*(cells for _, _, cells in shown), strict=True)
    made = table([title for _, title, _ in shown], rows, align="".join(align for align, _, _ in shown))
    return joined((made, said("report.attempts.peaks") if has_card else ""))


def _seconds(seconds: float | None) -> str:
    known = units.plausible_seconds(seconds)
    return MISSING if known is None else f"{known:,.1f}"


def _result_words(record: Record, result: StageResult, attempt: Attempt) -> Markdown:
    if is_running(record, result, attempt):
        return said("report.running")
    phase = attempt.diagnosis.phase if attempt.diagnosis and not attempt.ended_well else None
    return Markdown(f"{inline(wording.outcome_words(attempt))}{f'<br>{wording.phase_name(phase)}' if phase else ''}")


def _predicted(attempt: Attempt) -> Markdown:
    predicted = attempt.predicted
    if predicted is None:
        return said("report.unpredicted")
    low, high = predicted.low_bytes, predicted.high_bytes
    interval = f"<br>{said('report.interval', low=low / GIB, high=high / GIB)}" if low and high else ""
    outside = f"<br>{said('report.outside')}" if missed(attempt) else ""
    return Markdown(f"{units.gib(predicted.peak_bytes)}{interval}{outside}")


def missed(attempt: Attempt) -> bool:
    """Whether the peak that was measured lies outside the interval that was predicted for the attempt."""
    predicted, peak = attempt.predicted, attempt.peak_own_bytes
    if predicted is None or peak is None or not attempt.ended_well:
        return False
    return not predicted.low_bytes <= peak <= predicted.high_bytes


def _of_purpose(result: StageResult, purpose: Purpose) -> tuple[Attempt, ...]:
    match purpose:
        case Purpose.STAGE:
            return result.attempts
        case Purpose.DEEP:
            return result.deep_attempts
        case Purpose.CALIBRATE:
            return result.calibration_attempts


def is_running(record: Record, result: StageResult, attempt: Attempt) -> bool:
    """Whether this attempt is in flight, as far as the record tells."""
    is_last = attempt is result.newest_attempt
    running = [stage for stage in record.stages if verdict.in_flight(record, stage)]
    # a calibration runs after its stage has ended and before the next one begins
    may_run = record.live and not running if attempt.purpose is Purpose.CALIBRATE else result.stage in running
    return may_run and is_last and attempt.ended_by is None


def settings_words(attempt: Attempt, *, with_model: bool = False) -> Markdown:
    """Give an attempt's label, for training the effective batch, and on request the model."""
    settings = attempt.settings
    lines: list[str] = [code(attempt.label) if settings else inline(attempt.label)]
    if isinstance(settings, TrainSettings):
        steps, batch = settings.gradient_accumulation_steps, settings.effective_batch_size
        lines.append(said("report.accumulation", steps=steps, batch=batch))
    if with_model and attempt.model_name:
        lines.append(code(attempt.model_name.rpartition("/")[2]))
    return Markdown("<br>".join(lines))


def cause_words(diagnosis: Diagnosis | None) -> str:
    """Name a cause, how far the script had come and which rank failed; `—` where nothing failed."""
    if diagnosis is None or diagnosis.cause is Cause.NONE:
        return MISSING
    phase = [wording.phase_name(diagnosis.phase)] if diagnosis.phase else []
    rank = [f"rank {diagnosis.rank}"] if diagnosis.rank is not None else []
    return phrase("report.listed", parts=[wording.cause_name(diagnosis.cause), *phase, *rank])


def measured(size_bytes: int | None, record: Record) -> str:
    """Give a peak of the card's memory; say why where there is none."""
    if size_bytes is not None:
        return units.gib(size_bytes)
    return text("report.unmeasured" if record.context.environment.device else "report.no_gpu")


def torch_peaks(probes: tuple[Probe, ...]) -> str:
    """Give the peaks of the process that allocated most, as its torch counted them."""
    known = [probe for probe in probes if probe.peak_allocated_bytes is not None]
    if not known:
        return MISSING
    most = max(known, key=lambda probe: probe.peak_allocated_bytes or 0)
    reserved = most.peak_reserved_bytes
    return f"{(most.peak_allocated_bytes or 0) / GIB:,.2f} / {units.gib(reserved)}"


def rank_peaks(attempt: Attempt | None) -> Markdown:
    """Give each process's peaks where several ran: its card's by NVML, its own by torch; empty where only one did."""
    ranks = [probe for probe in attempt.probes if probe.rank is not None] if attempt else []
    if attempt is None or attempt.settings is None or attempt.settings.num_processes == 1 or not ranks:
        return Markdown()
    cards = {peaks.uuid: peaks for peaks in attempt.device_peaks}
    rows = [
        (
            str(probe.rank),
            code(probe.device_uuid or ""),
            torch_peaks((probe,)),
            units.gib(cards[probe.device_uuid].peak_device_bytes) if probe.device_uuid in cards else MISSING,
            units.gib(probe.peak_rss_bytes),
        )
        for probe in ranks
    ]
    header = (
        text("report.ranks.rank"),
        "GPU",
        text("report.ranks.torch"),
        text("report.ranks.card"),
        text("report.ranks.ram"),
    )
    return joined((said("report.ranks.title"), table(header, rows, align="rlrrr")))


def skipped_rungs(result: StageResult | None) -> Markdown:
    """Give the rungs that were not tried, with the reason; empty where there are none."""
    if result is None or not result.skipped_rungs:
        return Markdown()
    rows = [(code(rung.label), prose(rung.reason)) for rung in result.skipped_rungs]
    return table((text("report.skipped"), text("report.reason")), rows)


def findings_table(result: StageResult | None) -> Markdown:
    """Give the checks that do not hold, hardest first, then those that could not be measured."""
    if result is None or not result.checks:
        return said("report.findings.none")
    unmeasured = [check for check in result.checks if check.holds is None and check.applies]
    ruled_out = [check for check in result.checks if not check.applies]
    rows = [_finding(check, text(f"report.severity.{check.severity}")) for check in result.findings]
    rows += [_finding(check, text(f"report.unmeasured.{check.severity}")) for check in unmeasured]
    counts = {
        "all": len(result.checks),
        "held": len(result.held),
        "broken": len(result.findings),
        "unmeasured": len(unmeasured),
    }
    if ruled_out:
        count = said("report.findings.count_with_ruled_out", ruled_out=len(ruled_out), **counts)
    else:
        count = said("report.findings.count", **counts)
    if not rows:
        return count
    header = (text("report.findings.severity"), text("report.findings.check"), text("report.findings.found"))
    return joined((count, table(header, rows)))


def _finding(check: Check, severity: str) -> tuple[str, Markdown, Markdown]:
    found = prose(check.message)
    if check.trap is not None:
        found = said("report.findings.known_trap", message=found, trap=check.trap)
    return severity, code(check.id), found


def held_checks(result: StageResult | None) -> Markdown:
    """Give the checks that hold, folded; empty where there are none."""
    held = [check for check in result.checks if check.holds] if result else []
    if not held:
        return Markdown()
    rows = [(code(check.id), prose(check.message)) for check in held]
    return details(
        said("report.findings.held", checks=len(held)),
        table((text("report.findings.check"), text("report.findings.found")), rows),
    )


def ruled_out_checks(result: StageResult | None) -> Markdown:
    """Give the checks that the description rules out, folded, with the reasons; empty where there are none."""
    checks = [check for check in result.checks if not check.applies] if result else []
    if not checks:
        return Markdown()
    rows = [(code(check.id), prose(check.message)) for check in checks]
    return details(
        said("report.findings.ruled_out", checks=len(rows)),
        table((text("report.findings.check"), text("report.reason")), rows),
    )


def artifacts(attempt: Attempt | None) -> Markdown:
    """Give the files that an attempt wrote, folded, with size and sha256; empty where there are none."""
    if attempt is None or not attempt.artifacts:
        return Markdown()
    rows = [(code(a.path), units.size_words(a.size_bytes), code(a.sha256)) for a in attempt.artifacts]
    header = (text("report.artifacts.path"), text("report.artifacts.size"), "sha256")
    return details(said("report.artifacts", files=len(rows)), table(header, rows, align="lrl"))
