"""How H-4 is shown: its tables and sentences.

Takes an `Advice`, gives Markdown; computes nothing.
"""

from __future__ import annotations

from steph.base import units
from steph.base.terms import FitVerdict
from steph.record.settings import ProductionTarget
from steph.tell.advice import Advice
from steph.tell.markdown import Markdown, code, inline, prose, table
from steph.tell.production import ProductionTime


def go_sentence(advice: Advice) -> str:
    """Say in one sentence whether to go on to the rented card."""
    if advice.is_rehearsal:
        return f"予行なので、{advice.destination.card} を借りる根拠にはなりません。"
    if advice.blockers:
        return f"{advice.destination.card} へはまだ進めません。H-2 と H-3 が通ってからです。"
    if advice.mend_first:
        return (
            f"{advice.destination.card} へ進む前に、所見 {len(advice.mend_first)} 件を見直してください(StepHまとめ)。"
        )
    return f"{_ready_sentence(advice)}{_memory_sentence(advice)}"


def _ready_sentence(advice: Advice) -> str:
    if advice.is_production_card:
        return f"この {advice.destination.card} での本番の設定とコマンドは「StepHまとめ」にあります。"
    return f"{advice.destination.card} へ持っていける設定とコマンドは「StepHまとめ」にあります。"


def _memory_sentence(advice: Advice) -> str:
    """What of memory belongs on the first screen: a run that does not surely fit, or that fits here already."""
    if advice.prediction is None or advice.outlook is None or advice.target is None:
        return "ただし VRAM は未予測です。"
    if advice.prediction.verdict is not FitVerdict.FITS:
        word = "載らない" if advice.prediction.verdict is FitVerdict.DOES_NOT_FIT else "載るかどうかきわどい"
        return f"ただし変更後の設定は{word}予測です。"
    here, wanted = advice.outlook.here, (advice.target.batch_size, advice.target.max_seq_length)
    fits_here = here is not None and here.grid[wanted].verdict is FitVerdict.FITS
    if advice.trained_here:
        return f"{advice.destination.model} の形の学習が、このカードで完走しました。"
    return f"{advice.destination.model} の学習は、このカードにも載る予測です。" if fits_here else ""


def carry_over_table(advice: Advice) -> Markdown:
    """Give the settings that carry over unchanged."""
    return table(("設定", "値", "根拠"), [(code(s.name), code(s.value), s.why) for s in advice.carry_over])


def change_table(advice: Advice) -> Markdown:
    """Give the settings to change, from here to there."""
    rows = [(code(c.name), inline(c.here), Markdown(f"**{inline(c.there)}**"), c.why) for c in advice.change]
    return table(("設定", "この記録", advice.destination.card, "理由"), rows)


def time_words(advice: Advice) -> Markdown:
    """Say how long the production run takes at this card's speed, or that nothing was measured."""
    time = advice.time
    if time is None or (time.training_seconds is None and time.evaluation_seconds is None):
        return Markdown("速さが GPU で測れていない(またはパラメータ数がわからない)ので、目安は出せません。")
    how = f"読み込みと 1 件あたりの秒数の実測から、パラメータ数の比 {time.parameter_ratio:.1f} 倍"
    lines = [f"**このカードの速さなら**({how}):", ""]
    if time.training_seconds is not None:
        lines.append(f"- 学習: {units.about_duration(time.training_seconds)}")
    if time.evaluation_seconds is not None:
        lines.append(f"- 全問の評価: {units.about_duration(time.evaluation_seconds)}")
    if advice.destination.price_per_hour is not None:
        lines.append(f"- {prose(_cost_words(advice.destination, time))}")
    there = "" if advice.is_production_card else f"{inline(advice.destination.card)} の速さは測っていません。"
    lines.append(f"\n**注意**: {there}行の長さ、答えの長さ、カードの差で数倍ずれ得ます。")
    return Markdown("\n".join(lines))


def _cost_words(target: ProductionTarget, time: ProductionTime) -> str:
    """The cost of the whole run, and what it is computed from."""
    price = f"1 時間 {target.price_per_hour:,g} {target.currency}(プロファイルの `production.price_per_hour`)"
    if time.cost is None:
        return f"費用: 学習と評価の両方が測れていないので、出せません。{price}"
    return f"費用: 約 {time.cost:,.2f} {target.currency} = 上の時間の合計 × {price}"
