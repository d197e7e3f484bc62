"""The parts that the report's sections share: command blocks, attempts, findings, files.

Takes values of a record, gives Markdown; a section's order and its own words are in `templates/`.
"""

from __future__ import annotations

from steph.base import units
from steph.base.terms import AnyStage, Cause, Purpose
from steph.base.units import GIB, MISSING
from steph.judge import verdict
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Check, Diagnosis, Probe, Record, StageResult
from steph.tell import commands, summary, wording
from steph.tell.markdown import Markdown, code, details, fence, inline, joined, prose, table

MOST_EVIDENCE_LINES = 8
MESSAGE_WIDTH = 110


def command_block(attempt: Attempt | None) -> Markdown:
    """Give the command of an attempt to paste, from the pipeline root."""
    if attempt is None or not attempt.argv:
        return Markdown("(コマンドの記録なし)")
    return fence(commands.attempt_command(attempt), "bash")


def rerun_block(record: Record, stage: AnyStage) -> Markdown:
    """Give the command that runs this stage again, folded."""
    return details("このステージだけのやり直し", fence(commands.rerun_command(record, stage), "bash"))


def facts(rows: list[tuple[str, str]]) -> Markdown:
    """Give a two-column table of names and values; rows without a value fall away."""
    return table(("項目", "値"), [(Markdown(name), value) for name, value in rows if value])


def stage_state(record: Record, stage: AnyStage) -> Markdown:
    """Say in one paragraph how a stage ended, plainly where it was not run, is stale or still runs."""
    result = record.results.get(stage)
    word = inline(summary.stage_word(record, stage))
    if result is None:
        return Markdown(f"**判定: {word}** — この記録では一度も実行していません。")
    if verdict.in_flight(record, stage):
        return Markdown(f"**判定: {word}** — {inline(units.moment(result.started_at))} UTC に開始。")
    return Markdown(f"**判定: {word}** — {prose(str(result.explanation))}")


def attempts_table(record: Record, stage: AnyStage, *, purpose: Purpose = Purpose.STAGE) -> Markdown:
    """Give every attempt of a stage, of one purpose, with setting, outcome, seconds and peaks.

    A column that no attempt has anything for falls away.
    """
    result = record.results.get(stage)
    attempts = _of_purpose(result, purpose) if result else ()
    if result is None or not attempts:
        return Markdown("試行はありません。")
    with_model = len({attempt.model_name for attempt in attempts}) > 1
    has_card = record.context.environment.device is not None
    columns: list[tuple[str, str, list[str]]] = [
        ("r", "試行", [str(attempt.number) for attempt in attempts]),
        ("l", "設定", [settings_words(attempt, with_model=with_model) for attempt in attempts]),
        ("l", "結果", [_result_words(record, result, attempt) for attempt in attempts]),
        ("r", "秒", [MISSING if a.seconds is None else f"{a.seconds:,.1f}" for a in attempts]),
        ("r", "カード", [measured(a.peak_device_bytes, record) for a in attempts] if has_card else []),
        ("r", "プロセス", [measured(a.peak_own_bytes, record) for a in attempts] if has_card else []),
        ("r", "予測", [_predicted(a) for a in attempts] if any(a.predicted for a in attempts) else []),
        ("r", "torch 確保/予約", [torch_peaks(a.probes) for a in attempts] if has_card else []),
    ]
    shown = [column for column in columns if any(cell != MISSING for cell in column[2])]
    rows = zip(*(cells for _, _, cells in shown), strict=True)
    made = table([title for _, title, _ in shown], rows, align="".join(align for align, _, _ in shown))
    return joined((made, Markdown("秒より右は VRAM のピークです。") if has_card else ""))


def _result_words(record: Record, result: StageResult, attempt: Attempt) -> Markdown:
    if is_running(record, result, attempt):
        return Markdown("実行中")
    phase = attempt.diagnosis.phase if attempt.diagnosis and not attempt.ended_well else None
    return Markdown(f"{inline(wording.outcome_words(attempt))}{f'<br>{wording.phase_name(phase)}' if phase else ''}")


def _predicted(attempt: Attempt) -> Markdown:
    predicted = attempt.predicted
    if predicted is None:
        return Markdown("未予測")
    low, high = predicted.low_bytes, predicted.high_bytes
    interval = f"<br>{low / GIB:,.2f} 〜 {high / GIB:,.2f}" if low and high else ""
    return Markdown(f"{units.gib(predicted.peak_bytes)}{interval}")


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
        lines.append(f"累積 {settings.gradient_accumulation_steps}(実効 {settings.effective_batch_size})")
    if with_model and attempt.model_name:
        lines.append(code(attempt.model_name.rpartition("/")[2]))
    return Markdown("<br>".join(lines))


def cause_words(diagnosis: Diagnosis | None) -> str:
    """Name a cause, how far the script had come and which rank failed; `—` where nothing failed."""
    if diagnosis is None or diagnosis.cause is Cause.NONE:
        return MISSING
    phase = f"、{wording.phase_name(diagnosis.phase)}" if diagnosis.phase else ""
    rank = f"、rank {diagnosis.rank}" if diagnosis.rank is not None else ""
    return f"{wording.cause_name(diagnosis.cause)}{phase}{rank}"


def measured(size_bytes: int | None, record: Record) -> str:
    """Give a peak of the card's memory; say why where there is none."""
    if size_bytes is not None:
        return units.gib(size_bytes)
    return "GPU なし" if record.context.environment.device is None else "未測定"


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
    header = ("rank", "GPU", "torch の確保 / 予約", "カード全体(NVML)", "プロセスの RAM")
    return joined((Markdown("プロセスごとのピーク:"), table(header, rows, align="rlrrr")))


def skipped_rungs(result: StageResult | None) -> Markdown:
    """Give the rungs that were not tried, with the reason; empty where there are none."""
    if result is None or not result.skipped_rungs:
        return Markdown()
    rows = [(code(rung.label), prose(str(rung.reason))) for rung in result.skipped_rungs]
    return table(("試さなかった設定", "理由"), rows)


def findings_table(result: StageResult | None) -> Markdown:
    """Give the checks that do not hold, hardest first, then those that could not be measured."""
    if result is None or not result.checks:
        return Markdown("検査は行っていません。")
    unmeasured = [check for check in result.checks if check.holds is None and check.applies]
    ruled_out = [check for check in result.checks if not check.applies]
    rows = [_finding(check, wording.SEVERITIES[check.severity]) for check in result.findings]
    rows += [_finding(check, f"❔ 未測定({wording.SEVERITIES[check.severity].split()[-1]})") for check in unmeasured]
    held = len(result.held)
    count = Markdown(
        f"検査 {len(result.checks)} 件: 成立 {held}、不成立 {len(result.findings)}、未測定 {len(unmeasured)}"
        f"{f'、対象外 {len(ruled_out)}' if ruled_out else ''}。"
    )
    if not rows:
        return count
    return joined((count, table(("重さ", "検査", "内容"), rows)))


def _finding(check: Check, severity: str) -> tuple[str, Markdown, Markdown]:
    trap = Markdown(f"(既知の罠 {check.trap})") if check.trap is not None else Markdown()
    return severity, code(check.id), Markdown(f"{prose(str(check.message))}{trap}")


def held_checks(result: StageResult | None) -> Markdown:
    """Give the checks that hold, folded; empty where there are none."""
    held = [check for check in result.checks if check.holds] if result else []
    if not held:
        return Markdown()
    rows = [(code(check.id), prose(str(check.message))) for check in held]
    return details(f"成立した検査 {len(held)} 件", table(("検査", "内容"), rows))


def ruled_out_checks(result: StageResult | None) -> Markdown:
    """Give the checks that the description rules out, folded, with the reasons; empty where there are none."""
    checks = [check for check in result.checks if not check.applies] if result else []
    if not checks:
        return Markdown()
    rows = [(code(check.id), prose(str(check.message))) for check in checks]
    return details(f"対象外の検査 {len(rows)} 件", table(("検査", "理由"), rows))


def artifacts(attempt: Attempt | None) -> Markdown:
    """Give the files that an attempt wrote, folded, with size and sha256; empty where there are none."""
    if attempt is None or not attempt.artifacts:
        return Markdown()
    rows = [(code(a.path), units.size_words(a.size_bytes), code(a.sha256)) for a in attempt.artifacts]
    return details(f"生成されたファイル {len(rows)} 件(sha256)", table(("パス", "サイズ", "sha256"), rows, align="lrl"))
