"""How H-4 is shown: its tables and sentences.

Takes an `Advice`, gives Markdown; computes nothing.
"""

from __future__ import annotations

from steph.tell import wording
from steph.tell.advice import Advice, Prediction
from steph.tell.markdown import Markdown, code, inline, joined, table
from steph.tell.production import PRODUCTION_CARD, PRODUCTION_MODEL

VERDICTS = {"fits": "✅ 載る", "does_not_fit": "❌ 載らない", "too_close": "⚠️ きわどい"}


def go_sentence(advice: Advice) -> str:
    """Say in one sentence whether to go on to the rented card."""
    if advice.is_rehearsal:
        return f"予行なので、{PRODUCTION_CARD} を借りる根拠にはなりません。"
    if advice.blockers:
        return f"{PRODUCTION_CARD} へはまだ進めません。H-2 と H-3 が通ってからです。"
    if advice.mend_first:
        return f"{PRODUCTION_CARD} へ進む前に、所見 {len(advice.mend_first)} 件を見直してください(StepHまとめ)。"
    memory = "" if advice.prediction else "。ただし VRAM は未予測"
    return f"{PRODUCTION_CARD} へ持っていける設定とコマンドは「StepHまとめ」にあります{memory}。"


def carry_over_table(advice: Advice) -> Markdown:
    """Give the settings that carry over unchanged."""
    return table(("設定", "値", "根拠"), [(code(s.name), code(s.value), s.why) for s in advice.carry_over])


def change_table(advice: Advice) -> Markdown:
    """Give the settings to change, from here to there."""
    rows = [(code(c.name), inline(c.here), Markdown(f"**{inline(c.there)}**"), c.why) for c in advice.change]
    return table(("設定", "この記録", PRODUCTION_CARD, "理由"), rows)


def prediction_words(advice: Advice) -> Markdown:
    """Say the predicted peak of the production run and its grid, or that there is no prediction."""
    if advice.target is None or not advice.predictions:
        return Markdown(
            f"{inline(PRODUCTION_MODEL)} のピークは**未予測**です。載るかどうかはこの記録からは言えません。"
        )
    sentence = Markdown(f"変更後の設定({code(advice.target.short())}): {_peak(advice.prediction)}")
    batches = sorted({batch for batch, _ in advice.predictions})
    lengths = sorted({length for _, length in advice.predictions})
    rows = [(f"{length}", *(_peak(advice.predictions.get((batch, length))) for batch in batches)) for length in lengths]
    caveat = Markdown(
        "予測式は GPU での格子測定による検証がまだです(docs/memory-model.md)。"
        "余裕の小さい設定は実機で確かめてください。"
    )
    return joined((sentence, table(("seq \\ batch", *map(str, batches)), rows), caveat))


def _peak(prediction: Prediction | None) -> str:
    if prediction is None:
        return "未予測"
    span = f"{wording.gib(prediction.low_bytes)} 〜 {wording.gib(prediction.high_bytes)}"
    return f"{VERDICTS[prediction.verdict]} {wording.gib(prediction.peak_bytes)}({span})"


def time_words(advice: Advice) -> Markdown:
    """Say the extrapolated durations with their caveat, or why there are none."""
    time = advice.time
    if time is None or (time.training_seconds is None and time.evaluation_seconds is None):
        return Markdown("速さが GPU で測れていないので、目安は出せません。")
    lines = []
    if time.training_seconds is not None:
        rate = time.tokens_per_second_here
        speed = f"{rate:,.0f} tokens/s" if rate is not None else "1 行あたりの時間"
        lines.append(
            f"- 学習: {wording.about_duration(time.training_seconds)}"
            f"(このカードで測った {speed}と、パラメータ数の比 {time.parameter_ratio:.1f} 倍から)"
        )
    if time.evaluation_seconds is not None:
        seconds = wording.about_duration(time.evaluation_seconds)
        lines.append(f"- 全問の評価: {seconds}(読み込みも含む 1 問の時間から。多めに出ます)")
    lines.append(
        f"\n**注意**: {PRODUCTION_CARD} の速さは測っていません。このカードのままの速さとみなした目安で、"
        "行の長さ、答えの長さ、カードの差で数倍ずれ得ます。"
    )
    return Markdown("\n".join(lines))
