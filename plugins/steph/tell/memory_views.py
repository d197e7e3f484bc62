"""How predicted memory is shown: H-1's candidates, the calibration, H-4's cards, and `steph fit`.

Takes values of a record, of an `Outlook` or of a `Fit`, gives Markdown or the terminal's text; computes nothing.
"""

from __future__ import annotations

import json
from typing import Any

from steph.base import units
from steph.base.terms import FitVerdict
from steph.base.units import GIB
from steph.memory.calibration import Calibration
from steph.memory.fit import Fit
from steph.memory.forecast import Forecast
from steph.memory.shapes import ModelShape
from steph.memory.trainers import TRAINERS
from steph.plan.cards import Card
from steph.record.values import Candidate, PredictedPeak, StageResult
from steph.tell import wording
from steph.tell.advice import Advice
from steph.tell.markdown import Markdown, code, inline, joined, prose, table
from steph.tell.outlook import CardOutlook, Outlook

CAVEAT = (
    "予測式は H100 での 47 点で検証してあります: 予約ピークの誤差は中央値 1.9 %、最大 6.4 %(docs/memory-model.md)。"
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
            wording.FITS[candidate.predicted.verdict if candidate.predicted else None],
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
    line = outlook.calibration.line if outlook else None
    if outlook is None or line is None:
        reason = (outlook.calibration.shortfall if outlook else "") or "予測がない"
        return prose(f"傾きと切片は求められませんでした: {reason}。H-4 の予測はこの試行では変わりません。")
    per_token, fixed = line[0] / 2**20, line[1] / GIB
    use = "H-4 の予測はこの傾きと切片に合わせてあります。"
    if not outlook.calibration.is_described:
        use = "steph.toml に `trainer` がないので、別のモデル(H-4)には当てはめません。"
    return prose(
        f"二つの長さの実測から: torch の確保ピーク = {fixed:.2f} GiB + {per_token:.3f} MiB × トークン数"
        f"(1 回の forward、パディング込み)。{use}"
    )


def prediction_words(advice: Advice) -> Markdown:
    """Say the predicted peak of the production run, its headroom and the grid, or that there is no prediction."""
    outlook, target, here = advice.outlook, advice.target, advice.here
    if outlook is None or outlook.there is None or target is None or here is None:
        why = prose(f"{outlook.unpredicted}。") if outlook and outlook.unpredicted else ""
        unknown = "のピークは**未予測**です。載るかどうかはこの記録からは言えません。"
        return Markdown(f"{inline(advice.destination.model)} {unknown}{why}")
    there, wanted = outlook.there, (target.batch_size, target.max_seq_length)
    proven = (here.batch_size, here.max_seq_length)
    rows = [_row("モデルだけ変える", there, proven)] if proven != wanted else []
    rows.append(_row("変更後の設定", there, wanted))
    if there.likely:
        rows.append(_row("同じ設定で、空きを速さに使う場合", there, wanted, there.likely))
    if there.largest:
        rows.append(_row("確実に載る最大(下の表の中で)", there, there.largest))
    header = (f"{advice.destination.model} の設定", "seq/batch", "予測ピーク(幅)", "判定", "余り")
    return joined(
        (
            Markdown(f"{_card_sentence(advice, there)}{prose(_basis(outlook.calibration))}"),
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
    source = "プロファイルの値" if advice.destination.card_memory_gib is not None else "名前ごとの通常の値"
    how = prose("そのカードの上で実行すれば、その場で読みます。")
    return Markdown(f"{inline(advice.destination.card)} の使える VRAM は {size} と**仮定**しています({source})。{how}")


def _basis(found: Calibration) -> str:
    kind = f"学習の型 `{found.trainer}`"
    if not found.is_described:
        return (
            f"計算: {kind} を仮定(steph.toml に `trainer` がない)。幅は知っている型すべて({'、'.join(TRAINERS)})を、"
            "再計算のありなしとも含みます。steph.toml に `trainer` を書けば一つに決まります。"
        )
    if found.line is not None:
        return f"計算: {kind}、傾きと切片は実測に合わせています。"
    if not found.is_explained:
        off = f"{found.constants.relative_error:.0%}"
        return (
            f"計算: {kind}。ただしこの記録の実測はどれもこの式から {off} まで外れているため、幅をその分広げています。"
        )
    points = (
        f"この記録の実測 {found.point_count} 点で補正した定数"
        if found.point_count
        else "組み込みの定数(使える実測なし)"
    )
    return f"計算: {kind}、{points}。"


def _grid(card: CardOutlook) -> Markdown:
    batches = sorted({batch for batch, _ in card.grid})
    lengths = sorted({length for _, length in card.grid})
    rows = [(f"{length}", *(_peak(card.grid.get((batch, length))) for batch in batches)) for length in lengths]
    return table(("seq \\ batch", *map(str, batches)), rows)


def _row(name: str, card: CardOutlook, point: Point, prediction: PredictedPeak | None = None) -> tuple[str, ...]:
    found = prediction or card.grid[point]
    return name, code(_short(point)), _peak_words(found), wording.FITS[found.verdict], _headroom(card, found)


def _headroom(card: CardOutlook, prediction: PredictedPeak) -> str:
    left = card.headroom_bytes(prediction)
    return units.gib(left) if left >= 0 else f"{units.gib(-left)} 不足"


def _peak_words(prediction: PredictedPeak) -> str:
    span = f"{units.gib(prediction.low_bytes)} 〜 {units.gib(prediction.high_bytes)}"
    return f"{units.gib(prediction.peak_bytes)}({span})"


def _peak(prediction: PredictedPeak | None) -> str:
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
    own = _fit_words(outlook.here, wanted)
    trained = _trained_words(advice, card)
    if own:
        headline = trained or _bold(f"{advice.destination.model} の学習は、{card}にも載る予測です。")
        return Markdown("\n".join([headline, "", *own, *_how(outlook)]))
    peak = f"変更後の設定で {_peak_words(outlook.here.grid[wanted])}" if outlook.here else "未予測"
    if trained:
        return Markdown(f"{trained}{inline(f'変更後の設定が載るとは言えません({peak})。')}")
    refused = f"このパイプラインの学習のしかたで {advice.destination.model} が{card}に載るとは言えません({peak})。"
    lean = _fit_words(outlook.lean, wanted)
    if not lean:
        return inline(refused)
    better = _bold('無駄を省いた学習(付属の参照パイプライン、`trainer = "answer"`)なら、ここにも載る予測です。')
    why = _item("埋め込みと出力層を fp32 に変えず、logits は答えの位置だけ計算し、行は必要な長さだけにします。")
    return Markdown("\n".join([f"{inline(refused)}{better}", "", *lean, why]))


def _trained_words(advice: Advice, card: str) -> Markdown:
    trained = advice.trained_here
    if trained is None:
        return Markdown()
    peak = f"、VRAM ピーク {units.gib(trained.peak_own_bytes)}" if trained.peak_own_bytes else ""
    return _bold(f"{advice.destination.model} の形の学習が、{card}で実際に完走しました(`{trained.label}`{peak})。")


def _bold(text: str) -> Markdown:
    return Markdown(f"**{prose(text)}**")


def _item(text: str) -> Markdown:
    return Markdown(f"- {prose(text)}")


def _how(outlook: Outlook) -> list[Markdown]:
    lines = [_item("学習コマンドは下のものと同じです。")]
    if TRAINERS[outlook.calibration.trainer].picks_its_way:
        lines.append(_item("学習スクリプトは、余りが許すなら速い動かし方(再計算なし、行をまとめる)を自分で選びます。"))
    return lines


def _fit_words(card: CardOutlook | None, wanted: Point) -> list[Markdown]:
    """The wanted setting where it surely fits, and the largest that does; empty where none does."""
    if card is None or card.largest is None:
        return []
    fits = card.grid[wanted].verdict is FitVerdict.FITS
    lines = [_setting_line("変更後の設定", card, wanted)] if fits else []
    if not fits or card.largest != wanted:
        lines.append(_setting_line("確実に載る最大", card, card.largest))
    return lines


def _setting_line(name: str, card: CardOutlook, point: Point) -> Markdown:
    prediction = card.grid[point]
    left = _headroom(card, prediction)
    return _item(f"{name} `{_short(point)}/4bit`(再計算あり): {_peak_words(prediction)}、余り {left}。")


def fit_json(result: Fit, card: Card | None = None) -> str:
    """One object for one setting; for several `grid` with one object each, named by its setting, and `largest`.

    With a card that was looked up by its name, `card` says what is usable of it, and how that is known.
    """
    looked_up = {"card": card.words()} if card else {}
    if len(result.forecasts) == 1:
        (only,) = result.forecasts.values()
        return json.dumps({**_fit_values(result, only), **looked_up}, ensure_ascii=False, indent=1)
    rows = {
        (batch, length): {"batch_size": batch, "max_seq_length": length, **_fit_values(result, forecast)}
        for (batch, length), forecast in result.forecasts.items()
    }
    largest = rows[result.largest] if result.largest else None
    return json.dumps({"grid": list(rows.values()), "largest": largest, **looked_up}, ensure_ascii=False, indent=1)


def _fit_values(result: Fit, forecast: Forecast) -> dict[str, Any]:
    sizes = ("peak_allocated", "peak_reserved", "total", "low", "high")
    return {
        **{f"{name}_gib": _gib(getattr(forecast, f"{name}_bytes")) for name in sizes},
        "verdict": forecast.verdict(result.vram_bytes),
        "terms": {term.name: _gib(term.size_bytes) for term in forecast.terms if term.at_peak},
    }


def _gib(size_bytes: float) -> float:
    return round(size_bytes / GIB, 4)


def fit_text(result: Fit, card: Card | None = None, basis: str = "") -> str:
    """The breakdown of one setting, or the grid and the largest that fits; `basis`: where constants come from."""
    some = next(iter(result.forecasts.values()))
    work = some.workload
    lines = [
        f"{result.model}, trainer {work.trainer}, {'4-bit' if work.use_4bit else '16-bit'}, LoRA r {work.lora_r} on "
        f"{','.join(work.target_modules)}; card {result.vram_bytes / GIB:.2f} GiB; figures in GiB, the whole process"
    ]
    lines += [line for line in (card.words() if card else "", basis) if line]
    lines += _breakdown(result, some) if len(result.forecasts) == 1 else _fit_grid(result)
    return "\n".join([*lines, ""])


def _fit_grid(result: Fit) -> list[str]:
    batches = sorted({batch for batch, _ in result.forecasts})
    lines = ["", "max-seq-length  " + "".join(f"{f'batch {batch}':>22}" for batch in batches)]
    for length in sorted({length for _, length in result.forecasts}):
        row = [result.forecasts[batch, length] for batch in batches]
        cells = [f"{forecast.total_bytes / GIB:.2f} {forecast.verdict(result.vram_bytes)}" for forecast in row]
        lines.append(f"{length:>14}  " + "".join(f"{cell:>22}" for cell in cells))
    largest = "none"
    if result.largest is not None:
        largest = f"--batch-size {result.largest[0]} --max-seq-length {result.largest[1]}"
    return [*lines, "", f"largest that fits: {largest}"]


def _breakdown(result: Fit, forecast: Forecast) -> list[str]:
    work = forecast.workload
    lines = [f"recompute {'on' if work.recompute else 'off'}, {work.rows} rows of {work.width} tokens a forward", ""]
    for term in forecast.terms:
        note = "" if term.at_peak else "  (not at the peak)"
        lines.append(f"{term.name:<44}{term.size_bytes / GIB:>8.3f}{note}")
    span = f"({forecast.low_bytes / GIB:.2f} to {forecast.high_bytes / GIB:.2f})"
    return [
        *lines,
        "",
        f"{'peak allocated':<44}{forecast.peak_allocated_bytes / GIB:>8.2f}",
        f"{'peak reserved':<44}{forecast.peak_reserved_bytes / GIB:>8.2f}",
        f"{'whole process':<44}{forecast.total_bytes / GIB:>8.2f}  {span}",
        "",
        forecast.verdict(result.vram_bytes),
    ]


def fit_basis(found: Calibration, trainer: str, shape: ModelShape) -> str:
    """What a record gave to a prediction for a trainer and a model, in English."""
    if not found.point_count:
        return "the record has no measured peaks that can be used: built-in constants"
    if trainer != found.trainer:
        return f"the record's trainer is {found.trainer}: only what the card holds beside the allocator is its own"
    if not found.is_explained and found.line is None:
        error = found.constants.relative_error
        return f"the record's measured peaks are off by {error:.0%}, which the interval therefore allows for"
    if not found.is_described and (found.line is None or shape != found.shape):
        return "steph.toml names no trainer: the interval holds all that are known, with and without recompute"
    if found.line is not None:
        return "slope and intercept by two measured lengths of the record"
    attempts = f"{found.point_count} measured attempt{'s' if found.point_count > 1 else ''}"
    return f"constants corrected by {attempts} of the record"
