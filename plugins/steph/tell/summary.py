"""The first screen: one verdict for the whole record and the few sentences of what matters.

Takes a record, gives words; decides no stage's verdict, and never calls a record better than its worst stage.
"""

from __future__ import annotations

from collections.abc import Iterator

from steph.base import units
from steph.base.terms import AnyStage, RecordKind, Severity, StageId, Verdict
from steph.judge.verdict import Overall, contradiction, in_flight, overall
from steph.record.environment import GitState
from steph.record.values import Attempt, Record, StageResult
from steph.tell import wording

MOST_SENTENCES = 4  # the fifth says whether to go on to the rented card
BRANCH_COMMAND = "git switch -c feature/steph-small-model-debug"


_ACCEPTANCE_WORDS = {
    Overall.PASSED: "✅ 受入: 合格",
    Overall.DEGRADED: "🟡 受入: 条件付き合格",
    Overall.FAILED: "❌ 受入: 不合格",
    Overall.INCOMPLETE: "⬜ 受入: 未完了(合格ではない)",
    Overall.RUNNING: "⏳ 受入: 実行中(まだ合格ではない)",
}
_REHEARSAL_WORDS = {
    Overall.PASSED: "予行・受入ではない: ✅ 3 ステージとも通過",
    Overall.DEGRADED: "予行・受入ではない: 🟡 設定を下げて通過",
    Overall.FAILED: "予行・受入ではない: ❌ 失敗",
    Overall.INCOMPLETE: "予行・受入ではない: ⬜ 未完了",
    Overall.RUNNING: "予行・受入ではない: ⏳ 実行中",
}


def headline(record: Record) -> str:
    """Give the verdict line; a rehearsal's says first that it is none."""
    words = _REHEARSAL_WORDS if record.context.kind is RecordKind.REHEARSAL else _ACCEPTANCE_WORDS
    return words[overall(record)]


def stage_word(record: Record, stage: AnyStage) -> str:
    """Name a stage's state: running, its verdict, and whether it is stale."""
    if in_flight(record, stage):
        return "⏳ 実行中"
    result = record.results.get(stage)
    word = wording.verdict_word(record.verdict_of(stage), record.context.kind)
    if result and contradiction(result):
        return f"❌ 不合格(判定 {result.verdict.value} だが重大な検査が不成立)"
    return f"{word}・古い結果(stale)" if result and result.stale else word


def capacity_bytes(record: Record) -> int | None:
    """Give the memory that the run could use: the cap where there is one, else the card's."""
    card = record.context.environment.device
    return record.context.vram_cap_bytes or (card.total_bytes if card else None)


def ceiling_bytes(record: Record) -> int | None:
    """Give where the whole card's used memory ends: under a cap, the cap above what was in use before the run."""
    card = record.context.environment.device
    cap = record.context.vram_cap_bytes
    return card.used_bytes + cap if card and cap is not None else capacity_bytes(record)


def card_words(record: Record) -> str:
    """Name the card with its memory, and the cap where there is one."""
    card = record.context.environment.device
    if card is None:
        return "GPU なし(CPU)"
    cap = record.context.vram_cap_bytes
    return f"{card.name} {units.gib(card.total_bytes)}{f'({units.gib(cap)} に制限)' if cap else ''}"


def peak_bytes(result: StageResult | None) -> int | None:
    """Give the whole card's peak of the attempt that counts, used memory by NVML."""
    attempt = result.last_attempt if result else None
    return attempt.peak_device_bytes if attempt else None


def ran_out_of_memory(result: StageResult | None) -> tuple[Attempt, ...]:
    """Give the attempts of a stage that ended in a CUDA OOM."""
    attempts = result.attempts if result else ()
    return tuple(a for a in attempts if a.ran_out_of_memory)


def is_dirty_on_main(state: GitState) -> bool:
    """Whether uncommitted changes lie on the main branch itself."""
    return bool(state.dirty) and state.branch in ("main", "master")


def sentences(record: Record) -> tuple[str, ...]:
    """Give what matters most, hardest first, at most four sentences; backticked words are code."""
    return tuple(sentence for _, sentence in zip(range(MOST_SENTENCES), _all_sentences(record), strict=False))


def _all_sentences(record: Record) -> Iterator[str]:
    yield from _of_broken_stages(record)
    yield from _of_next_step(record)
    yield from _of_findings(record, Severity.FAIL)
    yield from _of_extended(record)
    yield from _of_memory(record)
    yield from _of_model(record)
    yield from _of_findings(record, Severity.WARN)
    yield from _of_branch(record)
    yield from _of_data(record)
    yield from _of_result(record)


def _of_broken_stages(record: Record) -> Iterator[str]:
    for stage in StageId:
        result = record.stages.get(stage)
        if in_flight(record, stage):
            yield f"{stage} は実行中です。"
        elif result is None:
            yield f"{stage}({wording.STAGE_TITLES[stage]})は実行していません。"
        elif not result.verdict.is_green:
            yield f"{stage} は {result.verdict}: {result.explanation}"
        elif result.stale:
            yield f"{stage} は、もとになった結果があとで入れ替わったので古く、やり直しが必要です。"


def _of_next_step(record: Record) -> Iterator[str]:
    """Give the first piece of advice for the attempt that a red stage stands on."""
    for stage in StageId:
        result = record.stages.get(stage)
        attempt = result.last_attempt if result and not result.verdict.is_green else None
        if attempt and attempt.diagnosis and attempt.diagnosis.advice and not in_flight(record, stage):
            cause = wording.cause_name(attempt.diagnosis.cause)
            yield f"{stage} の原因は「{cause}」、次の一手: {attempt.diagnosis.advice[0]}"
            return


def _of_findings(record: Record, severity: Severity) -> Iterator[str]:
    asked = record.results if severity is Severity.WARN else record.stages  # red extended stages have their own words
    found = [
        (stage, check) for stage, result in asked.items() for check in result.findings if check.severity is severity
    ]
    if not found:
        return
    stage, first = found[0]
    more = f"(ほか {len(found) - 1} 件は各節の所見)" if len(found) > 1 else ""
    word = "重大な所見" if severity is Severity.FAIL else "警告"
    yield f"{stage} に{word}があります: {first.message}{more}"


def _of_extended(record: Record) -> Iterator[str]:
    for result in record.extended.values():
        if not result.verdict.is_green and not in_flight(record, result.stage):
            name = f"{result.stage} {wording.STAGE_TITLES[result.stage]}"
            yield f"追加の {name}は {result.verdict}: {result.explanation}"


def _of_memory(record: Record) -> Iterator[str]:
    h2 = record.stages.get(StageId.H2)
    ooms = ran_out_of_memory(h2)
    if h2 and ooms and h2.verdict.is_green and h2.last_attempt:
        yield (
            f"H-2 は CUDA OOM を {len(ooms)} 回起こし、設定を `{ooms[0].label}` から "
            f"`{h2.last_attempt.label}` へ下げて通りました。"
        )
    elif h2 and h2.verdict is Verdict.PASS_DEGRADED and h2.given_up:
        yield f"H-2 であきらめた設定: {'、'.join(map(str, h2.given_up))}。"
    is_capped = record.context.vram_cap_bytes is not None
    last = h2.last_attempt if h2 else None
    # a capped card is fuller than the cap: what other processes and the driver hold is not the pipeline's
    peak = (last.peak_own_bytes if is_capped else last.peak_device_bytes) if last else None
    capacity = capacity_bytes(record)
    if h2 and h2.verdict.is_green and peak is not None and capacity:
        whose = "このプロセスで" if is_capped else "カード全体で"
        left = max(capacity - peak, 0)
        card = record.context.environment.device
        before = f"、表はカード全体で開始前の {units.gib(card.used_bytes)} を含む" if card and is_capped else ""
        share = f"{units.gib(peak)} / {units.gib(capacity)}(余り {units.gib(left)}{before})"
        yield f"学習の VRAM ピークは{whose} {share}でした。"


def _of_model(record: Record) -> Iterator[str]:
    choice = record.model
    if choice and choice.automatic_substitute:
        yield f"仕様の候補ではなく `{choice.name}` を代わりに使いました: {choice.reason}"
    elif choice and choice.source == "cache":
        yield f"`{choice.name}` は手元のキャッシュのもので、Hub では確認していません(Hub 未確認)。"


def _of_branch(record: Record) -> Iterator[str]:
    if is_dirty_on_main(record.context.pipeline_git):
        yield (
            f"パイプラインの {record.context.pipeline_git.branch} ブランチに未コミットの変更があります: "
            f"コードを変えるなら先に `{BRANCH_COMMAND}` で枝を切ってください。"
        )


def _of_data(record: Record) -> Iterator[str]:
    if any(file.is_sample for file in record.data):
        yield "データは付属の見本で、lawqa_jp の本番データではありません。"


def _of_result(record: Record) -> Iterator[str]:
    h3 = record.stages.get(StageId.H3)
    attempt = h3.last_attempt if h3 else None
    if h3 and h3.verdict.is_green and not h3.stale and attempt and attempt.evaluation:
        outcome = attempt.evaluation
        words = wording.score_words(outcome)
        meaning = (
            "乱数の重みなので、この数に意味はありません" if record.context.twin else "この問題数では精度は言えません"
        )
        yield f"評価は {words}で完走しました({meaning})。"
