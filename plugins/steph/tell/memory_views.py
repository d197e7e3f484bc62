"""How predicted memory is shown: H-1's candidates, the calibration, and H-4's cards.

Takes values of a record and of an `Outlook`, gives Markdown; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from steph.base import units
from steph.base.units import GIB
from steph.plan.vram_readings import Reading
from steph.record.values import Candidate, StageResult
from steph.tell import wording
from steph.tell.advice import Advice
from steph.tell.markdown import Markdown, code, inline, joined, prose, table
from steph.tell.outlook_values import CardOutlook, Outlook, Prediction
from steph.tell.production import PRODUCTION_CARD, PRODUCTION_MODEL

CAVEAT = (
    "予測式は H100 での 47 点で検証してあります: 予約ピークの誤差は中央値 0.8 %、最大 6.7 %(docs/memory-model.md)。"
    "ほかのカードでは測っていません。余裕の小さい設定は実機で確かめてください。"
)
Point = tuple[int, int]  # batch size, max_seq_length


def candidates_table(result: StageResult | None) -> Markdown:
    """Give every candidate with its predicted peak, or why there is none; empty where the record has none."""
    if result is None or not result.candidates:
        return Markdown()
    rows = [
        (
            code(candidate.name),
            wording.CANDIDATES[candidate.outcome],
            wording.parameters(candidate.parameters),
            _candidate_peak(candidate),
            wording.FITS[candidate.verdict] if candidate.verdict else units.MISSING,
        )
        for candidate in result.candidates
    ]
    settings = result.candidates[0].settings
    return table(("候補", "扱い", "パラメータ", f"予測 VRAM ピーク({settings})", "このカードに"), rows)


def _candidate_peak(candidate: Candidate) -> str:
    predicted = candidate.predicted
    if predicted is None:
        return f"–({candidate.unpredicted_reason})"
    return f"{units.gib(predicted.peak_bytes)}({units.gib(predicted.low_bytes)} 〜 {units.gib(predicted.high_bytes)})"


def calibration_words(outlook: Outlook | None) -> Markdown:
    """Say what the second length gave: slope and intercept, or why none."""
    if outlook is None or outlook.line is None:
        reason = (outlook.shortfall if outlook else "") or "予測がない"
        return prose(f"傾きと切片は求められませんでした: {reason}。H-4 の予測はこの試行では変わりません。")
    per_token, fixed = outlook.line.bytes_per_token / 2**20, outlook.line.fixed_bytes / GIB
    return prose(
        f"二つの長さの実測から: torch の確保ピーク = {fixed:.2f} GiB + {per_token:.3f} MiB × トークン数"
        "(1 回の forward、パディング込み)。H-4 の予測はこの傾きと切片に合わせてあります。"
    )


def prediction_words(advice: Advice) -> Markdown:
    """Say the predicted peak of the production run, its headroom and the grid, or that there is no prediction."""
    outlook, target, here = advice.outlook, advice.target, advice.here
    if outlook is None or outlook.there is None or target is None or here is None:
        why = prose(f"{outlook.unpredicted}。") if outlook and outlook.unpredicted else ""
        return Markdown(
            f"{inline(PRODUCTION_MODEL)} のピークは**未予測**です。載るかどうかはこの記録からは言えません。{why}"
        )
    there, wanted = outlook.there, (target.batch_size, target.max_seq_length)
    proven = (here.batch_size, here.max_seq_length)
    rows = [_row("モデルだけ変える", there, proven)] if proven != wanted else []
    rows.append(_row("変更後の設定", there, wanted))
    if there.likely:
        rows.append(_row("同じ設定で、空きを速さに使う場合", there, wanted, there.likely))
    if there.largest:
        rows.append(_row("確実に載る最大(下の表の中で)", there, there.largest))
    header = (f"{PRODUCTION_MODEL} の設定", "seq/batch", "予測ピーク(幅)", "判定", "余り")
    return joined(
        (
            Markdown(f"{_card_sentence(advice, there)}{prose(_basis(outlook))}"),
            table(header, rows, align="llllr"),
            _grid(there),
            inline("" if there.largest else "表の設定には確実に載るものがありません。"),
            inline(CAVEAT),
        )
    )


def _card_sentence(advice: Advice, there: CardOutlook) -> Markdown:
    size = inline(units.gib(there.usable_bytes))
    if not there.is_assumed:
        return inline(f"このカード {advice.card} の使える VRAM は実測で {size} です。")
    how = prose("実物では `--steph-profile a100-20gb` の実行がその場で読みます。")
    return Markdown(
        f"{inline(PRODUCTION_CARD)} の使える VRAM は {size} と**仮定**しています(MIG の 20GB スライスの通常の値)。{how}"
    )


def _basis(outlook: Outlook) -> str:
    kind = f"学習の型 `{outlook.trainer}`"
    if outlook.line is not None:
        kinds = kind if outlook.is_described else f"二つの長さの実測に合う型 {_kinds(outlook.readings)}"
        narrow = "幅はそのすべてを含みます。steph.toml に `trainer` を書けば一つに決まります。"
        return f"計算: {kinds}、傾きと切片は実測に合わせています。{narrow if len(outlook.readings) > 1 else ''}"
    if not outlook.is_described:
        kind += "(steph.toml に `trainer` がないための仮定)"
    if outlook.unexplained_error is not None:
        off = f"{outlook.unexplained_error:.0%}"
        return (
            f"計算: {kind}。ただしこの記録の実測はどれもこの式から {off} まで外れているため、幅をその分広げています。"
        )
    points = (
        f"この記録の実測 {outlook.point_count} 点で補正した定数"
        if outlook.point_count
        else "組み込みの定数(使える実測なし)"
    )
    return f"計算: {kind}、{points}。"


def _kinds(readings: Sequence[Reading]) -> str:
    """The kinds of trainer that the measurements allow, when nobody described it."""
    return "、".join(
        f"`{reading.trainer}`(再計算{'あり' if reading.recompute else 'なし'}"
        f"{'' if reading.use_4bit is None else '、4bit の指定は効いていない'})"
        for reading in readings
    )


def _grid(card: CardOutlook) -> Markdown:
    batches = sorted({batch for batch, _ in card.grid})
    lengths = sorted({length for _, length in card.grid})
    rows = [(f"{length}", *(_peak(card.grid.get((batch, length))) for batch in batches)) for length in lengths]
    return table(("seq \\ batch", *map(str, batches)), rows)


def _row(name: str, card: CardOutlook, point: Point, prediction: Prediction | None = None) -> tuple[str, ...]:
    found = prediction or card.grid[point]
    return name, code(_short(point)), _peak_words(found), wording.FITS[found.verdict], _headroom(card, found)


def _headroom(card: CardOutlook, prediction: Prediction) -> str:
    left = card.headroom_bytes(prediction)
    return units.gib(left) if left >= 0 else f"{units.gib(-left)} 不足"


def _peak_words(prediction: Prediction) -> str:
    span = f"{units.gib(prediction.low_bytes)} 〜 {units.gib(prediction.high_bytes)}"
    return f"{units.gib(prediction.peak_bytes)}({span})"


def _peak(prediction: Prediction | None) -> str:
    if prediction is None:
        return "未予測"
    return f"{wording.FITS[prediction.verdict]} {_peak_words(prediction)}"


def _short(point: Point) -> str:
    return f"{point[1]}/b{point[0]}"


def here_words(advice: Advice) -> Markdown:
    """Say plainly whether the production model trains on this record's own card, and how; empty without one."""
    outlook, target = advice.outlook, advice.target
    any_trainer = (outlook.here or outlook.lean) if outlook else None
    if outlook is None or any_trainer is None or target is None:
        return Markdown()
    wanted = (target.batch_size, target.max_seq_length)
    card = f"このカード({advice.card}、使える VRAM {units.gib(any_trainer.usable_bytes)})"
    own = _fit_words(outlook.here, wanted, recompute=_recomputes(outlook))
    trained = _trained_words(advice, card)
    if own:
        headline = trained or _bold(f"{PRODUCTION_MODEL} の学習は、{card}にも載る予測です。")
        return Markdown("\n".join([headline, "", *own, *_how(outlook)]))
    peak = f"変更後の設定で {_peak_words(outlook.here.grid[wanted])}" if outlook.here else "未予測"
    if trained:
        return Markdown(f"{trained}{inline(f'変更後の設定が載るとは言えません({peak})。')}")
    refused = f"このパイプラインの学習のしかたで {PRODUCTION_MODEL} が{card}に載るとは言えません({peak})。"
    lean = _fit_words(outlook.lean, wanted)
    if not lean:
        return inline(refused)
    better = _bold('無駄を省いた学習(付属の参照パイプライン、`trainer = "answer"`)なら、ここにも載る予測です。')
    why = _item("埋め込みと出力層を fp32 に変えず、logits は答えの位置だけ計算し、行は必要な長さだけにします。")
    return Markdown("\n".join([f"{inline(refused)}{better}", "", *lean, why]))


def _recomputes(outlook: Outlook) -> bool:
    return not outlook.readings or outlook.readings[0].recompute is not False


def _trained_words(advice: Advice, card: str) -> Markdown:
    trained = advice.trained_here
    if trained is None:
        return Markdown()
    peak = f"、VRAM ピーク {units.gib(trained.peak_own_bytes)}" if trained.peak_own_bytes else ""
    return _bold(f"{PRODUCTION_MODEL} の形の学習が、{card}で実際に完走しました(`{trained.label}`{peak})。")


def _bold(text: str) -> Markdown:
    return Markdown(f"**{prose(text)}**")


def _item(text: str) -> Markdown:
    return Markdown(f"- {prose(text)}")


def _how(outlook: Outlook) -> list[Markdown]:
    lines = [_item("学習コマンドは下のものと同じです。")]
    if outlook.trainer == "answer":
        lines.append(_item("学習スクリプトは、余りが許すなら速い動かし方(再計算なし、行をまとめる)を自分で選びます。"))
    return lines


def _fit_words(card: CardOutlook | None, wanted: Point, *, recompute: bool = True) -> list[Markdown]:
    """The wanted setting where it surely fits, and the largest that does; empty where none does."""
    if card is None or card.largest is None:
        return []
    fits = card.grid[wanted].verdict == "fits"
    lines = [_setting_line("変更後の設定", card, wanted, recompute)] if fits else []
    if not fits or card.largest != wanted:
        lines.append(_setting_line("確実に載る最大", card, card.largest, recompute))
    return lines


def _setting_line(name: str, card: CardOutlook, point: Point, recompute: bool) -> Markdown:
    prediction, way = card.grid[point], "再計算あり" if recompute else "再計算なし"
    left = _headroom(card, prediction)
    return _item(f"{name} `{_short(point)}/4bit`({way}): {_peak_words(prediction)}、余り {left}。")
