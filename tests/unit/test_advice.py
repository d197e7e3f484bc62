"""H-4 is computed from the record: what was measured here decides what is said about the production run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import record_factory as factory
from record_factory import render
from steph.base import units
from steph.base.messages import phrase, text
from steph.base.terms import Cause, EndedBy, FitVerdict, StageId, TrainerName, Verdict
from steph.contract.commands import target_settings
from steph.memory.calibration import Calibration
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings
from steph.record.values import Diagnosis, PredictedPeak, ProductionCall, Record
from steph.tell.advice import Reach, Rent, advise, answers, decide
from steph.tell.outlook import CardOutlook, Outlook
from steph.tell.report import parts

GIB = 1024**3
EIGHT_B = 8_190_735_360  # safetensors metadata of Qwen/Qwen3-8B


def with_stage(record: Record, stage: StageId, **changes: object) -> Record:
    """Give the record with one stage changed."""
    return record.model_copy(
        update={"stages": record.stages | {stage: record.stages[stage].model_copy(update=changes)}}
    )


def decision(record: Record, outlook: Outlook | None = None) -> dict[str, str]:
    """The first screen's answers, by what they are asked for."""
    made = answers(record, advise(record, outlook))
    labels = {text(f"advice.ask.{name}"): name for name in ("rent", "card", "time", "first")}
    labels[text("advice.ask.cost")] = "time"
    return {labels[label]: words for label, _, words in (line.removeprefix("**").partition("** ") for line in made)}


def value_after(argv: tuple[str, ...], flag: str) -> str:
    """Give the value of a flag."""
    return argv[argv.index(flag) + 1]


def argv(call: ProductionCall | None) -> tuple[str, ...]:
    """Give the words of a production run's one command."""
    assert call is not None
    (words,) = call.commands
    return words


@pytest.mark.parametrize(
    ("sample", "reach", "words"),
    [
        (factory.green_acceptance, Reach.NO_OOM, "OOM なし"),
        (factory.walked_down, Reach.AVOIDED, "設定調整で回避可能"),
        (factory.out_of_memory_everywhere, Reach.ALWAYS_OOM, "どうしても OOM"),
        (factory.blocked, Reach.OTHER_FAILURE, "OOM 以外で失敗"),
    ],
)
def test_how_far_training_went_comes_from_the_attempts(sample: Callable[[], Record], reach: Reach, words: str) -> None:
    """No OOM, avoided by settings, always OOM, another failure: each in the spec's words."""
    found = advise(sample())
    assert found.reach is reach
    assert words in found.reach_sentence
    assert len(found.attempts) == len(sample().stages[StageId.H2].attempts)


def test_a_training_that_ended_and_was_not_believed_is_no_success() -> None:
    """The process ended well and a check did not hold: neither 「成功」 nor an OOM is the word for it."""
    record = with_stage(factory.green_acceptance(), StageId.H2, verdict=Verdict.FAIL)
    found = advise(record)
    assert found.reach is Reach.OTHER_FAILURE
    assert found.reach_sentence.startswith("検査で不合格: ")


def test_training_without_4bit_is_not_called_qlora() -> None:
    """Where 4-bit could not be set up and training passed without it, H-4 says that 4-bit did not go through."""
    first = factory.out_of_memory(1, TrainSettings()).model_copy(update={"diagnosis": Diagnosis(cause=Cause.BNB_SETUP)})
    last = factory.trained(2, TrainSettings(use_4bit=False, mixed_precision="bf16"))
    record = with_stage(factory.green_acceptance(), StageId.H2, attempts=(first, last), verdict=Verdict.PASS_DEGRADED)
    found = advise(record)
    assert found.reach is Reach.WITHOUT_4BIT
    assert "--use-4bit" in argv(found.train_call)
    assert "--use-4bit" in {change.name for change in found.change}
    assert not any(setting.name.startswith("--use-4bit") for setting in found.carry_over)
    assert "4bit では通らず" in found.reach_sentence
    never = advise(with_stage(record, StageId.H2, attempts=(last,)))
    assert "4bit では試していません" in never.reach_sentence


OWN_SAID = {
    "model": "--checkpoint", "batch_size": "--mb", "gradient_accumulation_steps": "--accum", "num_epochs": "passes",
    "max_seq_length": "", "lora_r": "--rank", "learning_rate": "LR", "max_steps": "--stop",
}  # fmt: skip


def _own_program(bits: Literal[4, 8, 16] = 16, questions: int | None = 6, **said: str) -> Record:
    """A program with options of its own that can't be told of 4-bit, warmup, retrieval or passages."""
    settings = TrainSettings(use_4bit=False)
    last, asked = factory.trained(1, settings), factory.evaluated(EvalSettings(load_in_4bit=False))
    assert last.training is not None
    assert asked.evaluation is not None
    train = ProductionCall(commands=(("python", "t.py"),), said={**OWN_SAID, **said})
    evaluate = ProductionCall(commands=(("python", "e.py"),), said={"model": "--checkpoint", "samples": "--first"})
    outcome = asked.evaluation.changed(backend=None, questions=questions, key_lines=())
    argv, seen = ("python", "t.py", "--stop", "50"), last.training.changed(weight_bits=bits)
    last = last.changed(argv=argv, production=train, training=seen)
    asked = asked.changed(argv=("python", "e.py"), production=evaluate, evaluation=outcome)
    record = _without_findings(factory.green_acceptance()).changed(data=())
    return with_stage(with_stage(record, StageId.H2, attempts=(last,)), StageId.H3, attempts=(asked,))


def test_a_program_is_advised_on_by_its_own_words_and_on_what_it_has() -> None:
    """No option of the published script, no 4-bit, warmup, passages or retrieval: this program knows none of them."""
    found = advise(_own_program())
    assert {change.name: (change.here, change.there) for change in found.change} == {
        "--checkpoint": (factory.MODEL, "Qwen/Qwen3-8B"),
        "max_seq_length": ("512", "1024"),
        "--accum": ("2", "4"),
        "passes": ("1", "3"),
        "--stop": ("50", text("production.drop")),
        "--first": ("3", "6"),
    }
    assert {one.name: one.value for one in found.carry_over} == {"--rank": "16", "LR": "0.0002", "--mb": "2"}
    assert found.target is not None
    assert not found.target.use_4bit
    page = _advice_of(_own_program(), _outlook(_card("fits", 19)))
    for word in ("4bit", "QLoRA", "top-k", "rag", "warmup", "140", "CoT", "dropout", "ensemble"):
        assert word.casefold() not in page.casefold(), word
    assert "OOM なし" in page


def test_a_step_limit_that_is_the_whole_runs_own_is_not_dropped() -> None:
    """A command that always has the limit has that of all epochs in the production run: nothing is to be left out."""
    record = _own_program()
    last = record.stages[StageId.H2].attempts[-1]
    assert last.production is not None
    kept = last.production.changed(commands=(("python", "t.py", "--stop", "105"),))
    found = advise(with_stage(record, StageId.H2, attempts=(last.changed(production=kept),)))
    assert "--stop" not in {change.name for change in found.change}


def test_what_was_seen_of_the_weights_is_what_is_said_of_them() -> None:
    """4 bits that the program has by itself carry over; one that can be told is told, and an option is its own."""
    found = advise(_own_program(bits=4))
    assert found.target is not None
    assert found.target.use_4bit
    assert [one.value for one in found.carry_over if one.name == text("production.weights")] == [text("production.on")]
    assert "4bit QLoRA" in found.reach_sentence
    told = advise(_own_program(use_4bit="--quantise"))
    assert told.target is not None
    assert told.target.use_4bit
    assert "--quantise" in {change.name for change in told.change}


@pytest.mark.parametrize(("questions", "seconds"), [(6, 6 / 3 * 38.9), (None, None)])
def test_the_questions_are_those_of_the_programs_own_data_set(questions: int | None, seconds: float | None) -> None:
    """Six questions take twice the time of three; of an unknown number the page says what is unknown and how to say."""
    record = with_stage(_own_program(questions=questions), StageId.H1, model=factory.model_choice(parameters=EIGHT_B))
    found = advise(record)
    assert found.time is not None
    assert found.time.training_seconds is not None
    assert found.time.evaluation_seconds == pytest.approx(seconds)
    page = _advice_of(record, _outlook(_card("fits", 19)))
    assert ("paths.dataset" in page) is (questions is None)
    assert ("paths.dataset" in decision(record, _outlook(_card("fits", 19)))["time"]) is (questions is None)
    assert {one.there for one in found.change if one.name == "--first"} == {str(questions or text("production.all"))}


@pytest.mark.parametrize("bits", [4, 16])
def test_where_no_card_holds_unquantised_weights_4bit_is_the_first_step(bits: Literal[4, 16]) -> None:
    """Lower lengths take nothing off the weights; a program that has 4 bits already is not told of them."""
    first = decision(_own_program(bits=bits), _outlook(_card("does_not_fit", 100)))["first"]
    assert ("4bit で読み込む" in first) is (bits == 16)


def test_rows_from_elsewhere_are_counted_as_they_were_seen() -> None:
    """Where the description names no training file, an epoch has the rows that the training was seen to have."""
    whole = advise(with_stage(_own_program(), StageId.H1, model=factory.model_choice(parameters=EIGHT_B))).time
    assert whole is not None
    assert whole.training_seconds == pytest.approx(188.4 - 151.2 + 3 * 151.2)  # 140 rows, three epochs


@pytest.mark.parametrize("sample", [factory.out_of_memory_everywhere, factory.blocked, factory.crashed, factory.live])
def test_without_green_stages_it_says_so_instead_of_advising(sample: Callable[[], Record]) -> None:
    """With H-2 or H-3 not green there are reasons and neither settings nor commands."""
    found = advise(sample())
    assert not found.is_ready
    assert (found.train_call, found.eval_call, found.change) == (None, None, ())
    text = render(sample()).split("## StepHまとめ")[1]
    assert "まだ助言できません" in text
    assert "で貼り付けるコマンド" not in text


@pytest.mark.parametrize("stage", [StageId.H2, StageId.H3])
def test_a_stale_stage_is_no_ground_for_advice(stage: StageId) -> None:
    """A result that stands on a replaced one is named as the reason."""
    found = advise(with_stage(factory.green_acceptance(), stage, stale=True))
    assert found.blockers == (f"{stage} は古い結果です。もとの結果が入れ替わったので、やり直してください。",)


@pytest.mark.parametrize("changes", [{"verdict": Verdict.FAIL}, {"stale": True}, None])
def test_without_a_model_that_passed_nothing_is_advised(changes: dict[str, object] | None) -> None:
    """H-1 counts as the others do, whatever H-2 and H-3 came to in a record that someone put together."""
    record = _without_findings(factory.green_acceptance())
    if changes is None:
        record = record.changed(stages={stage: r for stage, r in record.stages.items() if stage is not StageId.H1})
    else:
        record = with_stage(record, StageId.H1, **changes)
    (why,) = advise(record).blockers
    assert why.startswith("H-1 ")
    assert decision(record, _outlook(_card("fits", 19)))["rent"].startswith("まだです")


def test_the_changes_are_those_of_the_spec() -> None:
    """From the first rung: length, accumulation, epochs and questions change; batch, LoRA and 4-bit carry over."""
    found = advise(factory.green_acceptance())
    changed = {change.name: (change.here, change.there) for change in found.change}
    assert changed == {
        "--model-name": (factory.MODEL, "Qwen/Qwen3-8B"),
        "--max-seq-length": ("512", "1024"),
        "--gradient-accumulation-steps": ("2", "4"),
        "--num-epochs": ("1", "3"),
        "--samples": ("3", "140"),
    }
    kept = {setting.name: setting.value for setting in found.carry_over}
    assert kept["--batch-size"] == "2"
    assert kept["--lora-r / --lora-alpha / --lora-dropout"] == "16 / 32 / 0.05"
    assert "nf4 + bfloat16" in kept.values()


def test_settings_given_up_here_are_taken_back_there() -> None:
    """From a record that went down to 256 tokens and batch 1, the production run goes up to 1024 and 2."""
    changed = {change.name: (change.here, change.there) for change in advise(factory.walked_down()).change}
    assert changed["--max-seq-length"] == ("256", "1024")
    assert changed["--batch-size"] == ("1", "2")


def test_an_older_record_s_commands_are_the_published_scripts_with_production_values() -> None:
    """Model, output, lengths and counts are the production run's; every other word is as it was run here."""
    found = advise(factory.green_acceptance())
    train, evaluate = argv(found.train_call), argv(found.eval_call)
    assert train[:2] == ("python", "scripts/train_qwen_law_ft.py")
    assert value_after(train, "--model-name") == value_after(evaluate, "--hf-model-name") == "Qwen/Qwen3-8B"
    assert value_after(train, "--output-dir") == value_after(evaluate, "--hf-lora-path") != factory.ADAPTER
    assert [value_after(train, flag) for flag in ("--max-seq-length", "--num-epochs", "--batch-size")] == [
        "1024",
        "3",
        "2",
    ]
    assert value_after(train, "--learning-rate") == "0.0002"
    assert value_after(evaluate, "--samples") == "140"
    assert value_after(evaluate, "--output") != factory.EVALUATION_JSON
    assert {"--no-rag", "--hf-load-in-4bit"} <= set(evaluate)


def test_a_record_s_own_production_commands_are_given_as_they_are() -> None:
    """They were made of its pipeline's description when it ran; a stranger's older record has none."""
    record = factory.green_acceptance()
    for stage, name in ((StageId.H2, "train_call"), (StageId.H3, "eval_call")):
        last = record.stages[stage].attempts[-1]
        own = ProductionCall(commands=(("trl", "sft"),))
        with_own = with_stage(record, stage, attempts=(last.changed(production=own),))
        assert getattr(advise(with_own), name) == own
        foreign = with_stage(record, stage, attempts=(last.changed(argv=("trl", "sft")),))
        assert getattr(advise(foreign), name) is None


def test_the_step_limit_is_dropped_and_named() -> None:
    """A run that was cut at 50 steps tells to drop the limit, and the command has it no longer."""
    last = factory.trained(1, TrainSettings())
    limited = last.model_copy(update={"argv": (*last.argv, "--max-steps-override", "50")})
    found = advise(with_stage(factory.green_acceptance(), StageId.H2, attempts=(limited,)))
    assert ("--max-steps-override", "50", "外す") in {(c.name, c.here, c.there) for c in found.change}
    assert "--max-steps-override" not in argv(found.train_call)
    assert "50" not in argv(found.train_call)


def test_sample_data_is_replaced_by_the_real_one() -> None:
    """A record made with the bundled questions sends nobody to the rented card with them."""
    record = factory.green_acceptance().model_copy(update={"data": factory.data(is_sample=True)})
    assert any(change.here == "付属の見本" for change in advise(record).change)


def test_findings_are_to_be_mended_first() -> None:
    """A warning of the record stands before the settings and in the first screen."""
    found = advise(factory.green_acceptance())
    assert len(found.mend_first) == 1
    assert "140 行中 30 行" in found.mend_first[0]
    outlook = _outlook(_card("fits", 19))
    assert "所見 1 件" in decision(factory.green_acceptance(), outlook)["rent"]
    assert decision(factory.green_acceptance(), outlook)["first"] == (f"所見を見直してください。{found.mend_first[0]}")


def test_nothing_is_predicted_without_a_prediction() -> None:
    """Without a memory model the page says 未予測 and not that the model fits."""
    text = render(factory.green_acceptance()).split("## StepHまとめ")[1]
    assert "**未予測**" in text
    assert "載る" not in text.replace("載るかどうか", "")


def _outlook(there: CardOutlook | None, trainer: TrainerName = TrainerName.ANSWER, **changes: Any) -> Outlook:  # noqa: ANN401 - any field
    return replace(Outlook(Calibration(trainer, is_described=True), there, point=(2, 1024)), **changes)


def _prediction(peak: int, verdict: str) -> PredictedPeak:
    return PredictedPeak(peak_bytes=peak, low_bytes=peak - GIB, high_bytes=peak + GIB, verdict=FitVerdict(verdict))


def _card(verdict: str, card_gib: int, *, is_assumed: bool = True) -> CardOutlook:
    """A card with the same verdict everywhere."""
    sizes = {"fits": 8, "too_close": card_gib, "does_not_fit": card_gib + 5}
    peak = sizes[verdict] * GIB
    found = _prediction(peak, verdict)
    points = ((2, 512), (2, 1024), (1, 256))
    return CardOutlook(
        card_gib * GIB, is_assumed, dict.fromkeys(points, found), (2, 1024) if verdict == "fits" else None
    )


def _advice_of(record: Record, outlook: Outlook) -> str:
    return {part.id: part.text for part in parts(record, outlook=outlook)}["advice"]


def _at_production_length() -> Record:
    record = factory.green_acceptance()
    last = record.stages[StageId.H2].attempts[-1]
    assert last.settings is not None
    longer = last.model_copy(update={"settings": last.settings.model_copy(update={"max_seq_length": 1024})})
    return with_stage(record, StageId.H2, attempts=(longer,))


def test_a_prediction_is_shown_with_interval_and_grid() -> None:
    """Given predictions, the target's peak, its headroom, the largest that fits and the whole grid are in the page."""
    grid = {
        (2, 512): _prediction(11 * GIB, "fits"),
        (2, 1024): _prediction(14 * GIB, "fits"),
        (4, 1024): _prediction(21 * GIB, "does_not_fit"),
    }
    there = CardOutlook(19 * GIB, True, grid, (2, 1024))
    made = _advice_of(factory.green_acceptance(), _outlook(there))
    assert "✅ 14.00<br>13.00〜15.00" in made
    assert "| 変更後の設定 | `1024/b2` | 14.00 GiB(13.00 GiB 〜 15.00 GiB) | ✅ 載る | 5.00 GiB |" in made
    assert "| モデルだけ変える | `512/b2` |" in made
    assert "| 確実に載る最大(下の表の中で) | `1024/b2` |" in made
    assert "❌ 21.00<br>" in made
    same = _advice_of(_at_production_length(), _outlook(there))
    assert "変更後の設定" in same
    assert "モデルだけ変える" not in same


def test_the_rented_card_is_an_assumption_until_it_is_measured() -> None:
    """From another card its size is assumed and said to be; on the card itself the measured one is used."""
    record = factory.green_acceptance()
    assumed = _advice_of(record, _outlook(_card("fits", 19)))
    assert "19.00 GiB と**仮定**しています" in assumed
    measured = _advice_of(record, _outlook(_card("fits", 18, is_assumed=False)))
    assert "実測で 18.00 GiB です" in measured
    assert "仮定" not in measured
    told = decision(_without_findings(record), _outlook(_card("fits", 18, is_assumed=False)))
    assert told["rent"].startswith("いま使っているカードが本番用の A100 20GB です。")
    assert "貼り付けて" in told["first"]


def _without_findings(record: Record) -> Record:
    return with_stage(record, StageId.H2, checks=record.stages[StageId.H2].checks[:1])


def test_it_is_said_plainly_that_the_production_model_fits_here_too() -> None:
    """Bold in H-4 and on the first screen, with setting, peak and headroom; not a word of it where it does not fit."""
    record, there = _without_findings(factory.green_acceptance()), _card("fits", 19)
    fits = _outlook(there, here=_card("fits", 9, is_assumed=False))
    text = _advice_of(record, fits)
    assert "**Qwen/Qwen3-8B の学習は、このカード(NVIDIA GeForce RTX 3080(10.11 GiB)、使える VRAM 9.00 GiB)に" in text
    assert "変更後の設定 `1024/b2/4bit`(再計算あり): 8.00 GiB(7.00 GiB 〜 9.00 GiB)、余り 1.00 GiB。" in text
    tight = _outlook(there, here=_card("too_close", 9, is_assumed=False))
    assert "載るとは言えません" in _advice_of(record, tight)


def test_what_was_trained_here_is_said_to_have_been_trained() -> None:
    """A record of the production model, or of a twin in its shape, is proof and no prediction."""
    record = _without_findings(factory.green_acceptance())
    model = record.stages[StageId.H1].model
    assert model is not None
    eight = model.model_copy(update={"parameters": EIGHT_B})
    fits = _outlook(_card("fits", 19), here=_card("fits", 9, is_assumed=False))
    record = with_stage(record, StageId.H1, model=eight)
    text = _advice_of(record, fits)
    peak = units.gib(record.stages[StageId.H2].attempts[-1].peak_own_bytes)
    assert f"で実際に完走しました(`512/b2/4bit`、VRAM ピーク {peak})。**" in text
    assert "にも載る予測です" not in text
    tight = _advice_of(record, _outlook(_card("fits", 19), here=_card("too_close", 9, is_assumed=False)))
    assert f"で実際に完走しました(`512/b2/4bit`、VRAM ピーク {peak})。** 変更後の設定が載るとは言えません" in tight


def test_a_wasteful_trainer_is_told_what_a_lean_one_would_need() -> None:
    """Where the pipeline's own way does not fit this card and the reference pipeline's does, both are said."""
    outlook = _outlook(
        _card("fits", 19), trainer=TrainerName.FULL, here=_card("does_not_fit", 9), lean=_card("fits", 9)
    )
    text = _advice_of(factory.green_acceptance(), outlook)
    assert "載るとは言えません(変更後の設定で 14.00 GiB" in text
    assert '無駄を省いた学習(付属の参照パイプライン、`trainer = "reference"`)なら、ここにも載る予測です' in text


@pytest.mark.parametrize("verdict", ["too_close", "does_not_fit"])
def test_a_run_that_fits_no_card_is_not_called_ready(verdict: str) -> None:
    """Of a line of one size; and what to do about it comes first."""
    record = _going_to(_without_findings(factory.green_acceptance()), card="RTX 4090")
    told = decision(record, _outlook(_card(verdict, 23)))
    assert told["rent"] == "いいえ。Qwen/Qwen3-8B が 1 割の余裕を残して載る RTX 4090 はありません。"
    assert "足りるものがありません" in told["card"]
    assert "`max_seq_length`" in told["first"]


def test_a_pipeline_that_no_formula_explains_has_no_prediction() -> None:
    """The reason stands where the prediction would."""
    text = _advice_of(factory.green_acceptance(), _outlook(None, unpredicted="式に合わない"))
    assert "**未予測**" in text
    assert "式に合わない。" in text


RATIO = EIGHT_B / 1_836_828_672


def test_training_takes_a_rows_time_here_for_each_row_there() -> None:
    """140 rows in 151.2 s, 3 epochs of 140 rows at 4.46 times the parameters, and what loading took beside."""
    record = factory.green_acceptance()
    last = record.stages[StageId.H2].attempts[-1].model_copy(update={"seconds": 151.2 + 20})
    record = with_stage(record, StageId.H2, attempts=(last,))
    time = advise(record).time
    assert time is not None
    assert time.training_seconds == pytest.approx((20 + 151.2 * 3) * RATIO)
    assert "このカードの速さなら" in render(record)


@pytest.mark.parametrize(("trainer", "growth"), [("answer", 1.0), ("full", 2.0), ("undescribed", 1.0)])
def test_rows_that_are_padded_to_the_maximum_take_as_much_longer_as_it_grows(trainer: str, growth: float) -> None:
    """From 512 to 1024 tokens: twice the time where every row is padded to that, else the rows are the same."""
    record = factory.green_acceptance()
    last = record.stages[StageId.H2].attempts[-1].model_copy(update={"seconds": 151.2})
    record = with_stage(record, StageId.H2, attempts=(last,))
    record = record.model_copy(update={"context": record.context.model_copy(update={"trainer": trainer})})
    time = advise(record).time
    assert time is not None
    assert time.training_seconds == pytest.approx(growth * 151.2 * 3 * RATIO)


@pytest.mark.parametrize(
    ("answering", "processes", "seconds"),
    [(None, 1, 140 * 40 / 3), (None, 2, 140 * 2 * 40 / 3), (4.5, 1, 35.5 + 140 * 1.5), (4.5, 2, 37.75 + 140 * 1.5)],
)
def test_loading_is_counted_once_where_the_questions_have_times_of_their_own(
    answering: float | None, processes: int, seconds: float
) -> None:
    """Three questions in 40 s: 140 times a third of it, or the loading once and 140 times a question's own time."""
    record = factory.green_acceptance()
    last = record.stages[StageId.H3].attempts[-1]
    assert last.evaluation is not None
    assert last.settings is not None
    changes = {
        "seconds": 40.0,
        "evaluation": last.evaluation.changed(answering_seconds=answering),
        "settings": last.settings.changed(num_processes=processes),
    }
    record = with_stage(record, StageId.H3, attempts=(last.model_copy(update=changes),))
    time = advise(record).time
    assert time is not None
    assert time.evaluation_seconds == pytest.approx(seconds * RATIO)
    assert ("全問の評価: 長くても" in render(record)) == (answering is None)


def test_a_cpu_rehearsal_gives_no_time_and_no_go() -> None:
    """Nothing of a run without a card is extrapolated to one."""
    found = advise(factory.rehearsal())
    assert found.time is None
    told = decision(factory.rehearsal())
    assert told["rent"] == "予行の記録では決められません(理由: GPU がない(CPU で実行)、乱数の重みのモデル)。"
    assert told["time"] == "出せません。GPU での速さを測っていません。"
    assert "card" not in told
    assert "受入(`pytest -m gpu`)" in decision(_without_findings(factory.rehearsal()))["first"]
    assert "VRAM は測っていない" in found.reach_sentence


def _going_to(record: Record, **changes: Any) -> Record:  # noqa: ANN401 - any field
    """Give the record under a profile whose [production] says this."""
    context = record.context.changed(production=ProductionTarget(**changes))
    return record.model_copy(update={"context": context})


def test_the_run_that_is_advised_on_is_the_profiles() -> None:
    """Model, card, questions and settings of [production] stand in changes, commands, headings and the first screen."""
    asked = {"model": "meta-llama/Llama-3.1-8B", "card": "RTX 4090", "questions": 50, "max_seq_length": 384}
    record = _going_to(factory.green_acceptance(), **asked, batch_size=8, gradient_accumulation_steps=1, num_epochs=2)
    found = advise(record)
    assert {(c.name, c.there) for c in found.change} == {
        ("--model-name", "meta-llama/Llama-3.1-8B"),
        ("--max-seq-length", "384"),
        ("--batch-size", "8"),
        ("--gradient-accumulation-steps", "1"),
        ("--num-epochs", "2"),
        ("--samples", "50"),
    }
    assert value_after(argv(found.train_call), "--model-name") == "meta-llama/Llama-3.1-8B"
    assert value_after(argv(found.eval_call), "--samples") == "50"
    text = render(record)
    assert "RTX 4090 で貼り付けるコマンド" in text
    assert "A100" not in text
    assert "Qwen3" not in text


def test_a_price_an_hour_gives_the_cost_and_its_source() -> None:
    """Training and evaluation together, in hours, times the price; where one was not measured there is no sum."""
    record = factory.green_acceptance()
    measured = record.stages[StageId.H2].attempts[-1].changed(seconds=151.2)
    record = _going_to(with_stage(record, StageId.H2, attempts=(measured,)), price_per_hour=2.5, currency="EUR")
    time = advise(record).time
    assert time is not None
    assert time.training_seconds is not None
    assert time.evaluation_seconds is not None
    hours = (time.training_seconds + time.evaluation_seconds + (time.download_seconds or 0)) / 3600
    assert time.cost == pytest.approx(2.5 * hours)
    line = next(line for line in render(record).splitlines() if line.startswith("- 費用: "))
    assert f"約 {2.5 * hours:.2f} EUR" in line
    assert "1 時間 2.5 EUR(プロファイルの `production.price_per_hour`)" in line
    assert "費用" not in render(factory.green_acceptance())
    unmeasured = measured.changed(training=measured.training and measured.training.changed(train_runtime_seconds=None))
    partly = with_stage(record, StageId.H2, attempts=(unmeasured,))
    assert "費用: 学習と評価の両方が測れていない" in render(partly)


def test_a_production_model_of_unknown_size_gives_no_time_until_the_profile_says_it() -> None:
    """No shape is known by that name: no ratio, so no time; with `parameters` there is one."""
    record = _going_to(factory.green_acceptance(), model="someone/unheard-of-13b")
    assert advise(record).time is None
    assert "目安は出せません" in render(record)
    known = advise(_going_to(factory.green_acceptance(), model="someone/unheard-of-13b", parameters=EIGHT_B)).time
    assert known is not None
    assert known.parameter_ratio == pytest.approx(RATIO)


def _of_peak(peak_gib: float, high_gib: float) -> Outlook:
    """A prediction of this peak with this upper end, everywhere on a card of 19 GiB."""
    card, high = _card("fits", 19), round(high_gib * GIB)
    peak = PredictedPeak(peak_bytes=round(peak_gib * GIB), low_bytes=0, high_bytes=high, verdict=FitVerdict.FITS)
    return _outlook(replace(card, grid=dict.fromkeys(card.grid, peak)))


def test_the_decision_names_the_card_the_hours_the_cost_and_what_comes_first() -> None:
    """On the first screen: the smallest slice that leaves a tenth, time times price, and the first blocker."""
    record = _going_to(_without_findings(factory.green_acceptance()), price_per_hour=1.5)
    told = decision(record, _of_peak(17, 17))
    assert told["rent"].startswith("はい。H-1〜H-3 が通り、Qwen/Qwen3-8B は A100 20GB に")
    assert told["card"].startswith("A100 20GB(使える VRAM 19.00 GiB)")
    assert "予測 17.00 GiB、多くて 17.00 GiB" in told["card"]
    assert "USD です。" in told["time"]
    assert "A100 20GB の速さは測っていません" in told["time"]
    assert "直すことはありません" in told["first"]
    blocked = decision(factory.blocked())
    assert blocked["first"].startswith("H-2 の失敗(import エラー)を直してください。")
    assert "`pip install peft`" in blocked["first"]
    assert blocked["rent"].startswith("まだです")
    lost = decision(factory.crashed())["first"]
    assert lost.startswith(
        "止まった原因を直してから、節の「このステージだけのやり直し」のコマンドで実行し直してください。"
        "H-2 が通っていません(CRASHED)"
    )
    assert decision(factory.live())["first"] == "H-2 は実行中です。"


@pytest.mark.parametrize(
    ("peak_gib", "high_gib", "card"),
    [(17, 17.1, "A100 20GB"), (15, 17.6, "A100 40GB"), (15, 35.6, "A100 80GB"), (15, 71.4, None)],
)
def test_the_upper_end_of_the_interval_chooses_the_card(peak_gib: float, high_gib: float, card: str | None) -> None:
    """A tenth is to spare where the run takes as much as it may, and not only as much as is likely."""
    record = _without_findings(factory.green_acceptance())
    decided = decide(advise(record, _of_peak(peak_gib, high_gib)))
    assert (decided.size.name if decided.size else None) == card
    assert decided.rent is (Rent.YES if card else Rent.NO_CARD)


@pytest.mark.parametrize(("high_gib", "is_said"), [(15.0, False), (35.0, True)])
def test_a_wide_range_that_asks_for_a_larger_card_is_explained(high_gib: float, is_said: bool) -> None:
    """Who reads that 14 GiB need 80 is told where the reason stands; the time is said of the card that is named."""
    told = decision(_without_findings(factory.green_acceptance()), _of_peak(14, high_gib))
    assert ("この幅が広い理由は「StepHまとめ」にあります。" in told["card"]) is is_said
    assert ("A100 40GB の速さは測っていません" in told["time"]) is is_said
    assert ("プロファイルの A100 20GB には 1 割の余裕を残して載りません" in told["card"]) is is_said


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -math.inf, 1e300, -5.0])
def test_what_is_no_time_was_not_measured(absurd: float) -> None:
    """Of a log that says NaN, or of a clock that was set: no figure, no cost, and the report is whole."""
    record = _going_to(factory.green_acceptance(), price_per_hour=2.0)
    h2, h3 = record.stages[StageId.H2].attempts[-1], record.stages[StageId.H3].attempts[-1]
    assert h2.training is not None
    assert h3.evaluation is not None
    spoilt = {
        StageId.H2: [
            h2.model_copy(update={"training": h2.training.model_copy(update={"train_runtime_seconds": absurd})})
        ],
        StageId.H3: [h3.model_copy(update={"seconds": absurd})],
    }
    for stage, attempts in spoilt.items():
        broken = with_stage(record, stage, attempts=tuple(attempts))
        time = advise(broken).time
        assert time is not None
        assert (time.total_seconds, time.cost) == (None, None)
        assert decision(broken)["time"] == "出せません。GPU での速さを測っていません。"
        text = render(broken)
        assert "計算できませんでした" not in text
        assert not re.search(r"\bnan\b|\binf\b|\d{20}", text.replace("b2" * 32, ""))


@pytest.mark.parametrize("absurd", [math.nan, math.inf, 1e300, -1.0])
def test_what_is_no_price_gives_no_cost(absurd: float) -> None:
    """A record may hold what no profile takes any more."""
    record = _without_findings(factory.green_acceptance())
    target = ProductionTarget.model_construct(
        price_per_hour=absurd, **ProductionTarget().model_dump(exclude={"price_per_hour"})
    )
    record = record.model_copy(update={"context": record.context.model_copy(update={"production": target})})
    time = advise(record).time
    assert time is not None
    assert time.cost is None
    assert "USD" not in decision(record)["time"]
    assert not re.search(r"\bnan\b|\binf\b|\d{20}", render(record))


def test_a_download_is_as_fast_as_the_one_here_was() -> None:
    """3.68 GB in 131 s; 16 GB of weights take that much longer, and are part of the time that is paid for."""
    record = factory.green_acceptance()
    time = advise(record).time
    assert time is not None
    assert time.download_bytes == 2 * EIGHT_B
    assert time.download_seconds == pytest.approx(2 * EIGHT_B / (3_680_000_000 / 131.0))
    assert time.total_seconds is not None
    assert time.training_seconds is not None
    assert time.evaluation_seconds is not None
    assert time.total_seconds == pytest.approx(
        time.training_seconds + time.evaluation_seconds + (time.download_seconds or 0)
    )
    assert "ダウンロード約" in decision(record, _outlook(_card("fits", 19)))["time"]
    cached = with_stage(record, StageId.H1, model=factory.model_choice(source="cache"))
    without = advise(cached).time
    assert without is not None
    assert without.download_seconds is None
    assert "ダウンロード: 測っていません(15.26 GiB)" in render(cached)


@pytest.mark.parametrize(
    ("card", "dtype", "half"), [("T4", "float16", "fp16"), ("A30", "bfloat16", "bf16"), ("X1", "bfloat16", "bf16")]
)
def test_a_card_without_bf16_is_not_asked_for_it(card: str, dtype: str, half: str) -> None:
    """A T4 would emulate it, slowly: float16 in the settings and the command, with the reason."""
    record = _going_to(factory.green_acceptance(), card=card, card_memory_gib=14.0)
    found = advise(record)
    assert found.target is not None
    assert found.target.bnb_4bit_compute_dtype == dtype
    assert value_after(argv(found.train_call), "--bnb-4bit-compute-dtype") == dtype
    changed = {change.name: (change.there, change.why) for change in found.change}
    kept = {setting.name: setting.value for setting in found.carry_over}
    if card == "T4":
        assert changed["--bnb-4bit-compute-dtype"] == ("float16", "T4 は bf16 で計算できない")
        assert kept["--bnb-4bit-quant-type"] == "nf4"
    else:
        assert "--bnb-4bit-compute-dtype" not in changed
        assert "nf4 + bfloat16" in kept.values()
    lengths = {change.why for change in found.change if change.name in ("--max-seq-length", "--batch-size")}
    assert lengths <= {
        text("production.asked")
    }  # not for rows that are cut or a rung that was left: maybe there were none
    plain = target_settings(TrainSettings(use_4bit=False, mixed_precision="bf16"), record.context.production)
    assert plain.mixed_precision == half


@pytest.mark.parametrize("ended_by", [EndedBy.INTERRUPTED, None])
def test_nothing_is_to_be_mended_after_ctrl_c(ended_by: EndedBy | None) -> None:
    """Nobody's program failed: run it again. An attempt whose end is not known may have had a cause."""
    record = factory.crashed()
    h2 = record.stages[StageId.H2]
    attempt = h2.attempts[0].model_copy(update={"ended_by": ended_by})
    stages = record.stages | {StageId.H2: h2.model_copy(update={"attempts": (attempt,)})}
    record = record.model_copy(update={"stages": stages})
    is_interrupted = ended_by is not None
    assert (decision(record)["first"] == phrase("advice.first.interrupted", stage=StageId.H2)) is is_interrupted
    page = render(record)
    assert (text("report.failure.interrupted") in page, text("report.failure.unknown") in page) == (
        is_interrupted,
        not is_interrupted,
    )
