"""The table of planted defects: what is planted, which checks must catch it, and the sound variants none may accuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from steph.base.terms import Severity
from steph.judge.evidence import CardMemory, EvalEvidence, TrainEvidence
from steph.judge.kinds import check_kinds
from steph.judge.witness import AdapterChanged, Batch, Witness, read_witness
from steph.record.settings import EvalSettings, TrainSettings

SEEN = "seen-evaluation"  # the folder of what a witness sees of the evaluation
TRAIN_SETTINGS = TrainSettings(max_seq_length=512)
EVAL_SETTINGS = EvalSettings()
_CAPPED = TRAIN_SETTINGS.model_copy(update={"max_steps": 6})
_CARD_BYTES = 10 * 2**30


@dataclass(frozen=True)
class Variant:
    """One planted pipeline.

    `plant` is the fake script's defect ("" for none), `caught` the ids of exactly those checks that must not hold,
    `unmeasured` the `fail` checks that can then not be measured; `row_change` makes the training file's rows, the other
    changes alter what the suite knows. `hardness` is
    that of the checks where it is not their row's, of all of them or by their ids.
    """

    plant: str
    stage: Literal["H-2", "H-3", "H-3cot", "H-3rag", "H-3base"]
    title: str
    caught: frozenset[str] = frozenset()
    unmeasured: frozenset[str] = frozenset()
    trap: int | None = None
    label: str = ""
    hardness: Severity | Mapping[str, Severity] | None = None
    style: int = 5
    train_settings: TrainSettings = TRAIN_SETTINGS
    eval_settings: EvalSettings = EVAL_SETTINGS
    row_change: Callable[[int, dict[str, Any]], dict[str, str]] | None = None
    train_change: Callable[[TrainEvidence], TrainEvidence] = field(default=lambda evidence: evidence)
    eval_change: Callable[[EvalEvidence], EvalEvidence] = field(default=lambda evidence: evidence)

    @property
    def id(self) -> str:
        """The variant's name in the tests and in the generated table."""
        return f"{self.stage}-{self.label or self.plant}"

    def hardness_of(self, check: str) -> Severity:
        """How hard a check is that this defect breaks."""
        if isinstance(self.hardness, Mapping):
            return self.hardness.get(check, check_kinds()[check].severity)
        return self.hardness or check_kinds()[check].severity


_NO_WEIGHTS = frozenset({"adapter_finite", "adapter_trained", "adapter_loadable"})
_NO_JSON = frozenset({
    "json_fresh", "json_valid", "json_consistent", "no_error_answers", "flags_consistent", "rows_distinct",
    "questions_of_dataset", "responses_bounded", "responses_present",
})  # fmt: skip
_NO_ANSWERS = frozenset({"adapter_active"})
_BAD_JSON = _NO_JSON - {"json_fresh", "json_valid"}


def _train(
    plant: str, title: str, *caught: str, unmeasured: frozenset[str] = frozenset(), trap: int | None = None
) -> Variant:
    return Variant(plant, "H-2", title, frozenset(caught), unmeasured, trap)


def _eval(
    plant: str, title: str, *caught: str, unmeasured: frozenset[str] = frozenset(), trap: int | None = None
) -> Variant:
    return Variant(plant, "H-3", title, frozenset(caught), unmeasured, trap)


def _says_answers_alone(evidence: TrainEvidence) -> TrainEvidence:
    """Of a pipeline whose description says that its answers alone are learnt."""
    rows = evidence.description.train.rows.changed(labels="answer")
    train = evidence.description.train.changed(rows=rows)
    return replace(evidence, description=evidence.description.changed(train=train))


def _written(
    label: str,
    title: str,
    *caught: str,
    asked: Callable[[dict[str, Any]], str] | None = None,
    answer: Callable[[int, dict[str, Any]], str] | None = None,
) -> Variant:
    """A training file whose rows the builder asks or answers so; `asked` is given a row and the right choice's text."""

    def change(n: int, row: dict[str, Any]) -> dict[str, str]:
        right = next(line[2:] for line in row["meta"]["choices"].splitlines() if line[0] == row["output"])
        told = row | {"right": right}
        return {
            "input": asked(told) if asked else row["input"],
            "output": answer(n, told) if answer else row["output"],
        }

    return replace(_train("", f"学習ファイル: {title}", *caught), label=label, row_change=change)


def _lost(lost: int, rows: int) -> Callable[[TrainEvidence], TrainEvidence]:
    return lambda evidence: replace(evidence, lost_answers=(lost, rows))


def _other_golds(evidence: TrainEvidence, share: float = 1.0) -> TrainEvidence:
    """The right letters of the last `share` of the questions are others than those that the rows give."""
    known = evidence.questions or ()
    moved = {"a": "b", "b": "c", "c": "d", "d": "a"}
    kept = len(known) - int(share * len(known))
    others = [replace(one, answer=moved[one.answer]) for one in known[kept:]]
    return replace(evidence, questions=(*known[:kept], *others))


def _on_card(
    step_seconds: float, used_share: float = 0.98, reserved_share: float = 0.8
) -> Callable[[TrainEvidence], TrainEvidence]:
    """Four steps of half a second on a card of 10 GiB, six tenths used; then `used_share` and `step_seconds`."""

    def change(evidence: TrainEvidence) -> TrainEvidence:
        lines = [line for _, line in evidence.line_arrivals]
        arrivals = ((0.5 * min(n, 4) + step_seconds * max(0, n - 4), line) for n, line in enumerate(lines))
        samples = ((0.0, int(0.6 * _CARD_BYTES)), (2.01, int(used_share * _CARD_BYTES)))
        card = CardMemory(_CARD_BYTES, samples, int(reserved_share * _CARD_BYTES))
        started = evidence.attempt_started_unix - step_seconds * len(lines)
        return replace(evidence, line_arrivals=tuple(arrivals), card=card, attempt_started_unix=started)

    return change


TRAINING = (
    _train("exit_one", "すべて書いたあと終了コード 1", "exit_zero"),
    _train("traceback", "トレースバックを表示して終了コード 0", "no_traceback"),
    _train("no_final_line", "最終結果の行がない", "line_train_result"),
    _train("no_adapter", "LoRA 重みがない", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("bin_only", "LoRA 重みが pickle だけ", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("empty_adapter", "LoRA 重みが 0 バイト", "adapter_weights", "no_empty_files", unmeasured=_NO_WEIGHTS),
    _train("no_tensors", "LoRA 重みにテンソルがない", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("truncated_adapter", "LoRA 重みが途中で切れている", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("padded_adapter", "LoRA 重みの後ろに余分なデータ", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("header_too_long", "ヘッダの長さが嘘", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("header_no_json", "ヘッダが JSON でない", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("header_wrong_shape", "ヘッダの形がデータと合わない", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("header_overlap", "二つのテンソルが同じ場所を指す", "adapter_weights", unmeasured=_NO_WEIGHTS),
    _train("adapter_nan", "LoRA 重みに NaN（F32）", "adapter_finite"),
    _train("adapter_nan_f16", "LoRA 重みに NaN（F16、B 行列）", "adapter_finite"),
    _train("adapter_inf_bf16", "LoRA 重みに -Inf（BF16）", "adapter_finite"),
    _train("adapter_inf_f64", "LoRA 重みに Inf（F64）", "adapter_finite"),
    _train("b_zero", "B 行列がすべてゼロ", "adapter_trained", "adapter_moved"),
    _train("b_minus_zero_bf16", "B 行列がすべて -0（BF16）", "adapter_trained", "adapter_moved"),
    _train("b_last_layer_only", "最後の層の B 行列だけが動いた", "adapter_trained", "adapter_moved"),
    replace(_train("b_one_still", "8 個のうち 1 個の B 行列がゼロのまま", "adapter_trained"), hardness=Severity.WARN),
    _train("pair_incomplete", "LoRA の対の B 行列だけがない", "adapter_weights"),
    _train("nan_in_last_layer", "最後の層の B 行列だけに NaN", "adapter_finite"),
    _train("saved_early", "学習の途中のアダプターを保存した", "adapter_is_last", "saved_as_trained"),
    _train("other_tokenizer", "別の語彙のトークナイザを保存した", "tokenizer_kept"),
    _train("empty_optimizer", "optimizer.pt が 0 バイト", "no_empty_files"),
    _train("newly_initialized", "ベースモデルの重みが読み込まれていない", "base_weights_loaded"),
    _train("embedding_untrained", "埋め込みの LoRA で、ゼロから始まる A 行列がゼロのまま", "adapter_trained"),
    _train("no_b", "B 行列がない", "adapter_trained", "adapter_weights"),
    _train("no_config", "LoRA 設定がない", "adapter_config", unmeasured=frozenset({"adapter_base"})),
    _train("config_no_json", "LoRA 設定が途中で切れている", "adapter_config", unmeasured=frozenset({"adapter_base"})),
    _train("config_other_kind", "LoRA でないアダプター", "adapter_config"),
    _train("foreign_base", "別のモデルのアダプター", "adapter_base", trap=14),
    _train("near_base", "名前の一部だけ同じモデルのアダプター", "adapter_base", trap=14),
    _train("nameless_base", "ベースの記録がないアダプター", "adapter_base", trap=14),
    _train("other_rank", "依頼と違う LoRA の階数", "adapter_as_asked"),
    _train("other_alpha", "依頼と違う lora_alpha", "adapter_as_asked"),
    _train("alpha_pattern", "一部の層だけ alpha を変えた", "adapter_as_asked"),
    _train("one_layer_asked", "1 層だけに LoRA をつけた", "adapter_as_asked"),
    replace(_train("other_modules", "設定は依頼どおり、重みは別のモジュール", "adapter_as_asked"),
            train_settings=TRAIN_SETTINGS.model_copy(update={"target_modules": ("q_proj", "v_proj")})),
    replace(_train("other_modules", "設定と重みのモジュールが違う", "adapter_as_asked"), label="modules_astray"),
    _train("no_checkpoint", "チェックポイントがない", "checkpoint_trainer_state"),
    _train("no_state", "trainer_state.json がない", "checkpoint_trainer_state"),
    _train("state_no_json", "trainer_state.json が壊れている", "checkpoint_trainer_state"),
    _train("state_other_step", "フォルダ名と global_step が違う", "checkpoint_trainer_state"),
    _train("state_no_step", "global_step がない", "checkpoint_trainer_state"),
    _train("stale_adapter", "古い LoRA 重みが残っている", "artifacts_fresh", trap=15),
    _train("stale_config", "古い LoRA 設定が残っている", "artifacts_fresh", trap=15),
    _train("stale_checkpoint", "古いチェックポイントだけがある", "artifacts_fresh", "no_leftovers", trap=15),
    _train("linked_adapter", "LoRA 重みが古いファイルへのリンク", "artifacts_fresh", trap=15),
    _train("leftover_checkpoint", "以前の試行のチェックポイントが混ざっている", "no_leftovers", trap=15),
    _train("steps_short", "予定の途中で学習をやめた", "steps_complete", "steps_seen"),
    _train("epochs_ignored", "1 エポックの依頼で 2 エポック回した",
           "steps_complete", "epochs_as_asked", "steps_seen", trap=12),
    replace(
        _train("rows_dropped", "行を半分捨て、余計に回した", "epochs_as_asked", "batch_as_asked", "rows_seen", trap=12),
        train_settings=_CAPPED, hardness=Severity.WARN,
    ),
    replace(_train("batch_shrunk", "OOM のあと黙ってバッチを半分にした",
                  "batch_as_asked", "batch_seen"), train_settings=_CAPPED),
    replace(_train("batch_doubled", "バッチだけを倍にした", "batch_as_asked", "epochs_as_asked", "batch_seen"),
            train_settings=_CAPPED),
    replace(_train("accumulation_ignored", "--gradient-accumulation-steps が効かない", "batch_as_asked", "batch_seen"),
            train_settings=_CAPPED, hardness={"batch_as_asked": Severity.WARN}),
    _train("learning_rate_ignored", "--learning-rate が効かない", "learning_rate_as_asked", "setup_seen"),
    _train("resumed", "以前の学習の途中から再開した", "trained_from_start",
           "learning_rate_as_asked", trap=15),
    _train("state_of_another", "別の学習の trainer_state.json", "state_of_this_run", "loss_logged", trap=15),
    _train("loss_nan", "損失が途中から NaN", "loss_finite"),
    _train("loss_inf", "損失が一度 Inf", "loss_finite"),
    replace(_train("loss_zero", "損失がゼロ、勾配が NaN",
                  "loss_finite", "grad_norm_finite", "updates_seen"), hardness={"updates_seen": Severity.WARN}),
    _train("validated_without_labels", "検証用の行の損失が NaN", "validation_sound"),
    _train("worst_called_best", "検証の損失が最も高いチェックポイントを最良とした", "validation_sound"),
    _train("least_accurate_called_best", "検証の正解率が最も低いチェックポイントを最良とした", "validation_sound"),
    _train("loss_rounded", "損失が小さくゼロと表示され、勾配はある", "loss_rounded"),
    _train("train_loss_zero", "最終行の train_loss がゼロ", "loss_finite", "losses_agree"),
    _train("train_loss_nan", "最終行の train_loss が NaN", "loss_finite"),
    _train("train_loss_flattered", "最終行の train_loss が各行の平均と違う", "losses_agree"),
    _train("history_differs", "表示と log_history の損失が違う", "losses_agree"),
    _train("loss_rising", "損失が上がり続ける", "loss_lower"),
    _train("loss_flat", "損失が変わらない", "loss_lower"),
    _train("no_history", "log_history が空", "loss_logged", trap=13),
    replace(_train("grad_norm_nan", "勾配ノルムが途中で一度 NaN", "grad_norm_finite"), hardness=Severity.INFO),
    # what lies open beside the results: libraries' words, all steps, the adapter's own shape, times
    _train("response_key_missing", "40 行のうち 30 行が損失の計算から外された（TRL の警告）", "library_warnings"),
    _train("tokens_too_long", "モデルの最大長を超える行がある（transformers の警告）", "library_warnings"),
    _train("batches_skipped", "OOM のバッチを黙って飛ばした", "library_warnings"),
    _train("offloaded", "モデルの一部が CPU に置かれた（transformers の警告）", "library_warnings"),
    _train("updates_skipped", "NaN のステップを飛ばしたと 6 回表示した", "library_warnings"),
    _train("saved_by_a_thread", "保存するスレッドが例外で止まった", "no_traceback"),
    _train("nothing_trained", "勾配ノルムが最後までゼロ", "gradient_flows", "updates_seen"),
    replace(_train("grad_norms_nan", "勾配ノルムが 2 ステップ目から最後まで NaN", "grad_norm_finite", "updates_seen"),
            hardness=Severity.WARN),
    replace(_train("grad_norms_all_nan", "勾配ノルムがすべて NaN",
                   "gradient_flows", "grad_norm_finite", "updates_seen"),
            hardness={"updates_seen": Severity.WARN}),
    _train("grad_norm_explodes", "勾配ノルムが 1e2 から 1e11 へ", "grad_norm_bounded"),
    _train("warmup_endless", "ウォームアップが終わらず、学習率が上がり続けた", "learning_rate_runs"),
    replace(_train("rate_zero_at_once", "学習率が 2 ステップ目からゼロ", "learning_rate_runs", "updates_seen"),
            hardness=Severity.FAIL),
    replace(_train("rate_zero_early", "学習率が 3 ステップ目からゼロ", "learning_rate_runs", "updates_seen"),
            hardness=Severity.WARN),
    _train("loss_tiny", "損失が最初から 1e-5", "loss_plausible"),
    _train("loss_negative", "損失が負になった", "loss_plausible"),
    _train("loss_exploded", "損失が 2 → 40 → 1.9", "loss_plausible"),
    _train("loss_summed", "損失が平均でなく累積の合計", "loss_plausible", "loss_below_chance"),
    _train("loss_of_chance", "ベースが乱数のまま（損失が ln(語彙数)）", "loss_below_chance"),
    _train("retried", "5 ステップで失敗し、スクリプトが自分でやり直した", "trained_once"),
    _train("retried_at_the_end", "保存に失敗し、同じ学習をもう一度した", "trained_once"),
    _train("final_line_first", "最終行が以前の学習のもので、損失より先にある", "line_train_result"),
    _train("upper_layers_only", "4 層のうち上の 2 層にだけ LoRA の重みがある", "adapter_layers"),
    _train("one_module_lacks_a_layer", "最初の層の v_proj にだけ LoRA の重みがない", "adapter_layers"),
    _train("layers_of_a_bigger_model", "ベースより 2 層多いアダプター", "adapter_loadable"),
    _train("a_zero", "A 行列がすべてゼロ", "adapter_trained"),
    _train("b_tiny", "B 行列がどれも 1e-12", "adapter_values"),
    _train("b_huge", "B 行列が 1e38", "adapter_finite", "adapter_values"),
    _train("b_same", "どの層の B 行列も同じ", "adapter_values"),
    _train("whole_numbers", "LoRA 重みが整数の型", "adapter_finite", unmeasured=frozenset({"adapter_trained"})),
    _train("orig_mod_prefix", "キーが torch.compile の _orig_mod. で始まる", "adapter_loadable"),
    _train("orig_mod_inside", "キーの途中に _orig_mod. がある", "adapter_loadable"),
    _train("names_in_memory", "キーに PEFT のメモリの中の名前（default）が残った", "adapter_loadable"),
    _train("ddp_prefix", "キーに DDP の module. がある", "adapter_loadable"),
    _train("no_prefix", "キーに base_model.model. がない", "adapter_loadable"),
    _train("a_empty", "A 行列の一つが空（ZeRO-3）", "adapter_weights", "adapter_as_asked", "adapter_trained"),
    _train("ranks_differ", "対の A と B の階数が違う", "adapter_weights"),
    _train("task_type_other", "task_type が SEQ_CLS", "adapter_as_asked"),
    _train("dora_without_magnitudes", "DoRA の設定で、magnitude が保存されていない", "adapter_as_asked"),
    _train("saved_modules_missing", "modules_to_save の重みが保存されていない", "adapter_as_asked"),
    _train("b_tiny_in_one_layer", "B 行列の一つだけが 1e-10", "adapter_values"),
    _train("dropout_off", "依頼した lora_dropout が効いていない", "adapter_as_asked"),
    _train("saved_before_the_end", "最後の損失より前に保存したアダプター", "adapter_is_last"),
    _train("written_tomorrow", "成果物の時刻が明日", "artifacts_fresh", trap=15),
    _train("output_linked_to_old", "出力先が古いフォルダへのリンク",
           "output_in_place", "artifacts_fresh", "no_leftovers", trap=15),
    _train("output_linked_and_touched", "出力先が古いフォルダへのリンクで、時刻は新しい", "output_in_place", trap=15),
    _train("runtime_of_another", "train_runtime がプロセスの動いていた時間より長い", "runtime_lived"),
    replace(_train("runtime_far_too_short", "train_runtime が損失の間隔の千分の一", "runtime_lived"),
            hardness=Severity.WARN),
    _train("speed_of_another", "1 秒あたりの行数が 10 倍", "speed_agrees"),
    _train("metrics_of_another", "別の学習の train_metrics.json", "own_figures_agree"),
    _train("seconds_of_another", "train_metrics.json のステップ時間の合計が長すぎる", "own_figures_agree"),
    _train("losses_of_another", "train_metrics.json の損失が違う", "own_figures_agree"),
    _train("train_file_rewritten", "学習ファイルを書き換えた", "inputs_unchanged"),
    _train("dataset_rewritten", "データセットを書き換えた", "inputs_unchanged"),
    replace(_train("rows_lost", "40 行のうち 8 行だけを 1 エポック", "steps_complete", "batch_as_asked",
                   "rows_seen"),
            hardness=Severity.WARN),
    replace(_train("", "140 行のうち 30 行の答えが切れる長さ", "answers_kept", trap=1), label="answers_cut",
            train_change=_lost(30, 140)),
    replace(_train("", "140 行のうち 127 行の答えが切れる長さ", "answers_kept", trap=1), label="answers_gone",
            hardness=Severity.FAIL, train_change=_lost(127, 140)),
    replace(_train("", "学習ファイルの答えの記号がすべて違う", "answers_of_dataset", trap=22),
            label="letters_of_builder", train_change=_other_golds),
    replace(_train("", "学習ファイルの答えの記号が一部の行で違う", "answers_of_dataset", trap=22),
            label="some_letters_of_builder", hardness=Severity.WARN,
            train_change=lambda evidence: _other_golds(evidence, 0.25)),
    *(_written(label, title, "rows_plausible", asked=asked) for label, title, asked in (
        ("one_question", "どの行も同じ問い", lambda row: "次の問いに答えてください。\n契約の期間はどれですか。"),
        ("fields_unfilled", "選択肢の枠が埋まっていない",
         lambda row: row["input"].replace(row["meta"]["choices"], "{choices}")),
        ("jinja_unfilled", "問題文の枠が埋まっていない",
         lambda row: row["input"].replace(row["meta"]["question"], "{{ question }}")),
        ("read_as_latin_1", "文字化け", lambda row: row["input"].encode().decode("latin-1")),
        ("read_as_cp932", "一行だけ別の文字コードで読んだ文字化け",
         lambda row: "前提は条文に従うこと。\n".encode().decode("cp932", "ignore") + "\n" + row["input"]),
        ("letters_lost", "文字が � に置き換わった", lambda row: row["input"].replace("期間", "\ufffd\ufffd")),
        ("escaped_twice", "JSON の文字列のまま", lambda row: json.dumps(row["input"])),
        ("answer_as_hint", "問いの前に正解", lambda row: f"ヒント: 正解は {row['output']} です。\n{row['input']}"),
        ("answer_marked", "正解の選択肢にだけ印",
         lambda row: row["input"].replace(row["right"], row["right"] + "（正解）")),
    )),
    _written("some_answers_nan", "三行に一行の答えが nan", "rows_plausible",
             answer=lambda n, row: "nan" if n % 3 == 0 else row["output"]),
    _written("answers_none", "どの答えも None", "rows_plausible", answer=lambda n, row: "None"),
    replace(_train("", "カードが埋まってからステップが 10 倍遅い", "no_memory_spill"), label="slow_spill",
            train_change=_on_card(step_seconds=5.0)),
    replace(_train("", "torch の予約がカードの容量を超えた", "no_memory_spill"), label="reserved_over_card",
            train_change=_on_card(step_seconds=0.5, reserved_share=1.1)),
)  # fmt: skip

_EIGHT = EVAL_SETTINGS.model_copy(update={"samples": 8})
_COT = EVAL_SETTINGS.model_copy(update={"use_cot": True})

EVALUATION = (
    _eval("exit_one", "すべて書いたあと終了コード 1", "exit_zero"),
    _eval("traceback", "トレースバックを表示して終了コード 0", "no_traceback"),
    _eval("crash_after_setup", "設定の表示だけで終わる", "line_results", "total_samples", "line_accuracy"),
    _eval("no_initializing", "初期化の行がない", "line_initializing"),
    _eval("no_rag_line", "RAG の行がない", "line_rag_disabled"),
    _eval("rag_enabled", "RAG が有効のまま", "line_rag_disabled"),
    _eval("model_unnamed", "対象モデルがどこにも表示されない", "model_named", "model_names_agree", trap=4),
    _eval("model_near", "名前の一部だけ同じモデル", "model_named", "model_names_agree", "model_loaded", trap=4),
    _eval("published_names", "LLM Model と JSON が別のモデルを名乗る", "model_names_agree", trap=4),
    _eval("json_names_other", "JSON だけが別のモデルを名乗る", "model_names_agree", trap=4),
    _eval("backend_ollama", "バックエンドが ollama のまま", "line_backend"),
    _eval("lora_none", "LoRA が読み込まれていない", "lora_path_named", "adapter_active"),
    _eval("lora_other", "別の LoRA で評価した", "lora_path_named", "adapter_active"),
    _eval("lora_other_root", "同じ名前の、別のルートの LoRA で評価した", "lora_path_named", "adapter_active"),
    _eval("json_lora_none", "JSON の lora_path が空", "lora_path_named"),
    _eval("no_lora_line", "LoRA がどこにも表示されない", unmeasured=frozenset({"lora_path_named"})),
    _eval("missing_keys", "PEFT がキーの不足を警告した", "adapter_loaded", "adapter_active"),
    _eval("adapter_fallback", "LoRA を読み込めずベースで評価した", "adapter_loaded", "adapter_active"),
    _eval("newly_initialized", "ベースモデルの重みが読み込まれていない", "base_weights_loaded", "model_loaded"),
    _eval("adapter_skipped", "LoRA を見つけられずベースで評価した", "adapter_loaded", "adapter_active"),
    replace(_eval("", "評価の前に LoRA 重みが変わった", "adapter_unchanged"), label="adapter_changed",
            eval_change=lambda evidence: replace(evidence, adapter_sha256_actual="0" * 64)),
    replace(_eval("", "別のモデルの LoRA を読み込んだ", "adapter_base", trap=14), label="adapter_foreign",
            eval_change=lambda evidence: _asked_for(evidence, "Qwen/Qwen2.5-1.5B-Instruct")),
    _eval("no_results_line", "EVALUATION RESULTS がない", "line_results"),
    _eval("no_total_line", "Total Samples の行がない", "total_samples"),
    _eval("no_accuracy_line", "Accuracy の行がない", "line_accuracy"),
    _eval("accuracy_nan", "正解率が nan%", "line_accuracy", "json_consistent"),
    _eval("results_first", "結果が設定より先に表示される", "lines_in_order"),
    _eval("swallowed_errors", "例外を飲み込み、error の回答にした",
           "no_invocation_error", "no_error_answers", "answers_generated", trap=2, unmeasured=_NO_ANSWERS),
    _eval("silent_errors", "黙って 1 問を error の回答にした", "no_error_answers", "answers_generated", trap=2),
    _eval("counted_errors", "Other Errors が 1 件", "no_error_answers", trap=2),
    _eval("exception_as_answer", "例外の文から記号を拾った",
           "no_error_answers", "strict_parse_agrees", "answers_generated", trap=2, unmeasured=_NO_ANSWERS),
    _eval("two_of_three", "3 問の依頼で 2 問だけ評価した", "total_samples"),
    _eval("all_rows", "3 問の依頼で全問を評価した", "total_samples", "train_overlap"),
    _eval("no_rows", "1 問も評価していない", "total_samples", "answers_generated",
          unmeasured=frozenset({"adapter_active", "responses_bounded", "responses_present"})),
    _eval("total_flattered", "表示の問題数だけが違う", "total_samples", "json_consistent"),
    _eval("no_json", "JSON がない", "json_written", unmeasured=_NO_JSON),
    _eval("saved_elsewhere", "JSON を別の名前で書いた", "json_written", unmeasured=_NO_JSON),
    _eval("stale_json", "古い JSON が残っている", "json_fresh", trap=15),
    _eval("cut_json", "JSON が途中で切れている", "json_valid", unmeasured=_BAD_JSON),
    _eval("json_no_utf8", "JSON が UTF-8 でない", "json_valid", unmeasured=_BAD_JSON),
    _eval("json_deep", "JSON が深すぎる入れ子", "json_valid", unmeasured=_BAD_JSON),
    _eval("json_huge", "JSON が大きすぎる", "json_valid", unmeasured=_BAD_JSON),
    _eval("json_nan", "JSON の正解率が NaN", "json_valid", unmeasured=_BAD_JSON),
    _eval("json_is_list", "JSON が配列", "json_valid", unmeasured=_BAD_JSON),
    _eval("no_summary", "summary がない", "json_valid", unmeasured=_BAD_JSON),
    _eval("summary_percent", "正解率が 1 を超える", "json_valid", unmeasured=_BAD_JSON),
    _eval("flag_is_text", "is_correct が文字列", "json_valid", unmeasured=_BAD_JSON),
    _eval("letter_unheard_of", "predicted_answer が e", "json_valid", unmeasured=_BAD_JSON),
    _eval("response_is_list", "response が配列", "json_valid", unmeasured=_BAD_JSON),
    _eval("accuracy_flattered", "表示の正解率だけが高い", "json_consistent"),
    _eval("correct_flattered", "表示の正解数だけが多い", "json_consistent"),
    _eval("summary_flattered", "JSON の summary だけが高い", "json_consistent"),
    _eval("flags_flattered", "誤答にも正解の印", "flags_consistent"),
    _eval("unknown_is_correct", "読み取れない回答を正解と数えた", "flags_consistent", "answers_parsed"),
    _eval("total_count_other", "JSON の total_count だけが違う", "total_samples", "json_consistent"),
    _eval("merged_rows", "別の実行の結果が混ざった", "total_samples", "first_rows"),
    _eval("shuffled_questions", "問題と回答の組がずれている", "questions_of_dataset", "first_rows"),
    _eval("shuffled_rows", "問題の順序が違う", "first_rows"),
    _eval("key_rewritten", "正解を回答に合わせて書き換えた", "questions_of_dataset"),
    _eval("repeated_rows", "同じ問題を 3 回数えた", "rows_distinct", "first_rows"),
    _eval("foreign_questions", "データセットにない問題", "questions_of_dataset", "first_rows"),
    _eval("other_rows", "先頭でない行を評価した", "first_rows"),
    _eval("train_rows", "学習データの問題を評価した", "first_rows", "train_overlap", trap=7),
    _eval("config_rag", "JSON では RAG が有効", "config_as_asked"),
    _eval("config_total", "JSON の config の問題数が違う", "config_as_asked"),
    _eval("docs_without_rag", "RAG なしなのに文書を検索した", "config_as_asked"),
    _eval("config_16bit", "JSON では 4bit でない", "config_as_asked", trap=5),
    _eval("other_prompt", "学習時と違うプロンプト", "prompts_agree", "frame_as_trained", trap=6),
    _eval("answer_in_prompt", "プロンプトの末尾に正解がある", "prompts_hide_answers"),
    _eval("predicted_from_key", "回答を正解から写した", "answers_as_responded", "strict_parse_agrees", trap=8),
    _eval("prompt_echoed", "応答にプロンプトが丸ごと入っている", "prompt_not_echoed", trap=8),
    _eval("same_response", "どの問題にも同じ長い応答", "responses_differ"),
    _eval("nan_logits", "NaN になったモデルの「!!!!!」", "responses_bounded", "answers_parsed", trap=3),
    _eval("all_empty", "すべての応答が空", "responses_present", "answers_parsed"),
    replace(_eval("no_new_tokens", "何も生成していないのに応答がある",
                  "responses_present", "responses_generated"), hardness={"responses_generated": Severity.WARN}),
    _eval("runaway", "数千文字の応答", "responses_bounded", "strict_parse_agrees", "answers_stopped", trap=3),
    _eval("looping_lines", "同じ行を繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_tail", "末尾で同じ文を繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_counted", "番号だけ変えて繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_one_of_three", "1 問だけ繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("cut_off", "上限で打ち切られた応答", "responses_ended", "answers_stopped", trap=3),
    replace(_eval("slow", "1 問に 97 秒", "answers_fast", trap=3),
            eval_change=lambda evidence: replace(evidence, seconds=300.0)),
    replace(_eval("", "全体で 3 問に 290 秒", "answers_fast", trap=3), label="slow_run",
            eval_change=lambda evidence: replace(evidence, seconds=290.0)),
    _eval("empty_responses", "応答が空なのに回答がある", "responses_present", "strict_parse_agrees"),
    _eval("unreadable", "回答を読み取れない", "answers_parsed"),
    _eval("rambling", "すべての記号に触れる応答から拾った", "strict_parse_agrees", "responses_differ", trap=8),
    _eval("parser_artefact", "英語の文から記号を拾った", "strict_parse_agrees", "responses_differ",
          "answers_grounded", trap=8),
    replace(_eval("one_letter", "8 問すべて同じ記号", "letters_vary", trap=17), eval_settings=_EIGHT),
)  # fmt: skip


_RAG = EVAL_SETTINGS.model_copy(update={"use_rag": True})

EXTENDED = (
    Variant("cot_bare", "H-3cot", "理由のない CoT の応答", frozenset({"cot_reasoned"}), eval_settings=_COT),
    Variant("no_cot_line", "H-3cot", "CoT の行がない", frozenset({"line_cot_enabled"}), eval_settings=_COT),
    Variant("cot_off", "H-3cot", "CoT が無効のまま", frozenset({"line_cot_enabled"}), eval_settings=_COT),
    Variant("rag_off", "H-3rag", "RAG が無効のまま", frozenset({"line_rag_enabled"}), eval_settings=_RAG),
    Variant("rag_unused", "H-3rag", "検索結果がない", frozenset({"rag_retrieved"}), eval_settings=_RAG),
    Variant("rag_uncounted", "H-3rag", "検索件数の記録がない", unmeasured=frozenset({"rag_retrieved"}),
            eval_settings=_RAG),
    Variant("same_prompt", "H-3rag", "検索した文がプロンプトに入っていない", frozenset({"rag_in_prompt"}),
            eval_settings=_RAG),
    Variant("adapter_ignored", "H-3base", "アダプタの有無で応答が変わらない", frozenset({"adapter_changes_responses"})),
    Variant("lora_other", "H-3base", "アダプタなしの依頼でアダプタつきで評価した",
           frozenset({"lora_path_named", "adapter_active"})),
    Variant("other_rows", "H-3base", "H-3 と違う問題を解いた", frozenset({"base_same_questions", "first_rows"})),
)  # fmt: skip


# what only the witness sees

_NOT_SEEN = frozenset({"steps_seen", "tokens_supervised", "model_loaded", "quantised_as_asked", "adapter_moved"})
_UNSEEN_ANSWERS = frozenset({"answers_generated", "adapter_active", "model_loaded", "quantised_as_asked"})
_CARD = _on_card(step_seconds=0.5)


def _warn(variant: Variant, *checks: str) -> Variant:
    return replace(variant, hardness=dict.fromkeys(checks, Severity.WARN))


WITNESSED = (
    _train("replayed", "以前の学習のログと成果物を写しただけで、学習していない", "training_seen",
           unmeasured=_NOT_SEEN, trap=23),
    replace(_train("", "観測できない学習（python -I など）", unmeasured=_NOT_SEEN | {"training_seen"}),
            label="unseen", train_change=lambda evidence: replace(evidence, witness=None)),
    _train("raised_inside", "学習が例外で終わり、それを飲み込んだ", "training_seen", trap=23),
    _train("stopped_early", "Trainer の予定の途中で学習が終わった", "steps_seen"),
    _train("labels_masked", "ラベルがすべて隠されている", "tokens_supervised", trap=21),
    _train("labels_shifted", "ラベルが二重にずれている", "tokens_supervised", trap=21),
    _warn(_train("labels_astray", "ラベルが別の位置のトークン", "tokens_supervised", trap=21), "tokens_supervised"),
    _warn(_train("half_unlabelled", "半分の行にラベルがない", "tokens_supervised", trap=21), "tokens_supervised"),
    _train("prompt_supervised", "プロンプトだけを学習する", "answer_supervised", "end_supervised"),
    _train("answer_left_out", "プロンプトにラベルがあり、答えにはない", "answer_supervised", "end_supervised",
           "answers_of_file", trap=21),
    _train("thoughts_alone", "思考だけを学習し、その後ろの答えを学ばない", "answer_supervised", trap=21),
    _train("rslora_unsaid", "rsLoRA で学習し、保存した設定は rsLoRA でない", "adapter_as_asked"),
    _train("end_masked", "終わりのトークンのラベルが隠されている", "end_supervised", trap=20),
    replace(_train("", "答えだけを学習するはずが、質問にもラベルがある", "prompt_unlabelled"),
            label="prompt_learnt", train_change=_says_answers_alone),
    _train("old_adapter_trained_on", "新しい LoRA ではなく、以前の LoRA の続きを学習する", "begins_new"),
    _train("two_bos", "BOS が二つ続く", "one_bos"),
    _train("padded_to_max", "どの行も最大長までパディング", "padding_bounded", trap=11),
    _train("built_from_config", "ベースモデルを設定だけから作った", "model_loaded"),
    _train("settings_changed", "層の数を変えてベースモデルを読み込んだ", "model_loaded"),
    replace(_train("rope_changed", "位置の設定を変えてベースモデルを読み込んだ", "model_loaded"),
            hardness=Severity.WARN),
    _train("rebuilt", "ベースモデルの一部の重みの形が合わない", "model_loaded"),
    _train("other_model", "別のモデルを学習した", "model_loaded"),
    _train("eight_bit", "4bit の依頼で 8bit", "quantised_as_asked", trap=5),
    _train("not_quantised", "4bit の依頼で量子化されていない", "quantised_as_asked", trap=5),
    replace(_warn(_train("", "4bit なしの依頼で 4bit", "quantised_as_asked", trap=5), "quantised_as_asked"),
            label="quantised_unasked", train_settings=TRAIN_SETTINGS.model_copy(update={"use_4bit": False})),
    _train("other_quantisation", "依頼と違う量子化の型と計算の型", "setup_seen", trap=26),
    _train("dropout_off_inside", "設定は依頼どおり、学習中は dropout なし", "setup_seen", trap=26),
    _train("gradients_dropped", "マイクロバッチごとに勾配を消し、累積しない", "updates_seen", trap=25),
    _warn(_train("gradients_kept", "ステップのあとで勾配を消さず、積もらせた", "updates_seen", trap=25),
          "updates_seen"),
    _train("warmed_up_long", "10 ステップのうち 5 ステップがウォームアップ", "setup_seen", trap=26),
    _warn(_train("half_without_gradient", "マイクロバッチの半分を勾配なしで流した", "updates_seen", trap=25),
          "updates_seen"),
    _warn(_train("optimizer_forgets", "ステップごとに Adam の状態を捨てた", "updates_seen", trap=25), "updates_seen"),
    _train("loss_quartered", "計算した損失の 1/4 を記録した", "loss_as_computed", "losses_agree"),
    _train("evaluation_mode", "評価モードのまま学習し、dropout が切れている", "setup_seen", trap=26),
    replace(_train("on_the_cpu", "GPU があるのに CPU で学習した", "parameters_on_gpu", trap=26), train_change=_CARD),
    replace(_warn(_train("partly_on_cpu", "重みの一部が CPU にある", "parameters_on_gpu", trap=26),
                  "parameters_on_gpu"),
            train_change=_CARD),
    _train("answers_rotated", "答えが一行ずつずれている", "answers_of_file", trap=22),
    _train("answers_all_alike", "どの行の答えも a として学習した", "answers_of_file", trap=22),
    _train("questions_taught", "ラベルが質問にあり、答えにはない", "answers_of_file", trap=22),
    _train("only_the_end_taught", "終わりのトークンだけにラベルがある", "answers_of_file", trap=22),
    _warn(_train("blank_line", "答えの前に、ファイルにない空行を学習した", "answers_of_file", trap=22),
          "answers_of_file"),
    _warn(_train("a_frozen", "A 行列を凍結して学習した", "adapter_moved"), "adapter_moved"),
    _warn(_train("a_shrunk", "重み減衰で A 行列が 1/10 に縮んだ", "adapter_moved"), "adapter_moved"),
    _train("decayed", "誰も依頼していない重み減衰 0.5", "setup_seen"),
    _warn(_train("hardly_moved", "B が学習率の合計の 2 % も動いていない", "adapter_moved"), "adapter_moved"),
    _warn(_train("norms_tiny", "勾配ノルムが最後まで 1e-9", "gradient_flows"), "gradient_flows"),
    _train("frozen", "以前のアダプターを凍結したまま学習した", "adapter_moved", "updates_seen"),
    _train("never_stepped", "最適化が一度も実行されていない", "adapter_moved"),
    _train("rate_zero", "どのステップも学習率が 0", "updates_seen", trap=25),
    _train("few_updates", "10 ステップのうち 6 回の更新が飛ばされた", "updates_seen", trap=25),
    _warn(_train("some_updates_lost", "10 ステップのうち 3 回の更新が飛ばされた", "updates_seen", trap=25),
          "updates_seen"),
    _train("saved_halfway", "アダプターを学習の途中に保存した", "saved_at_end", trap=23),
    replace(_train("rewritten_after", "保存のあとでアダプターを書き換えた", "saved_at_end", trap=23),
            hardness=Severity.FAIL),
    _train("copied_in", "別のアダプターを写してきた", "saved_at_end", trap=23),
    _train("other_file", "渡したのと違うファイルを学習した", "rows_seen", trap=22),
    _train("first_rows_twice", "前半の行を 2 度ずつ学習した", "rows_seen", trap=22),
    _train("rows_cut_short", "依頼した長さより短く行を切った", "rows_whole", trap=1),
    _eval("adapter_only_said", "LoRA のパスを表示しただけで読み込まない", "adapter_active", trap=19),
    _eval("adapter_loaded_aside", "LoRA を読み込み、使わずに答えた", "adapter_active", trap=19),
    _eval("adapter_disabled", "LoRA を無効にして答えた", "adapter_active", trap=19),
    _eval("scaled_to_zero", "LoRA の倍率が 0", "adapter_active", trap=19),
    _eval("other_scaling", "LoRA の倍率が学習時と違う", "scaling_as_trained", trap=19),
    _eval("merged_scaled", "LoRA の倍率を 4 倍にして重みにマージした", "scaling_as_trained", trap=19),
    _eval("answers_of_base", "ベースモデルの応答を LoRA の結果に書いた", "adapter_active", trap=19),
    _eval("all_raised", "generate がすべて例外になり、a と答えた", "answers_generated",
          unmeasured=_NO_ANSWERS, trap=2),
    _warn(_eval("asked_again", "例外のあとでやり直した", "answers_generated", trap=2), "answers_generated"),
    _eval("answers_of_cache", "以前の応答を読み出し、何も生成していない", "answers_generated",
          unmeasured=_NO_ANSWERS, trap=23),
    replace(_eval("", "観測できない評価（python -I など）", unmeasured=_UNSEEN_ANSWERS), label="unseen",
            eval_change=lambda evidence: replace(evidence, witness=None)),
    _eval("responses_of_cache", "生成したのとは別の、長い応答を書いた", "responses_generated", trap=23),
    _warn(_eval("letters_of_key", "生成したのとは別の記号を書いた", "responses_generated", trap=23),
          "responses_generated"),
    _warn(_eval("last_copied", "最後の問題だけ、生成したのとは別の記号を書いた", "responses_generated", trap=23),
          "responses_generated"),
    _warn(_eval("next_question", "次の問題を聞いて、この問題の答えにした", "prompts_hold_questions",
                "responses_generated", trap=27), "responses_generated"),
    _eval("end_of_prompt", "プロンプトの末尾だけを渡した", "prompts_hold_questions", "frame_as_trained", trap=27),
    _eval("two_choices", "選択肢を二つだけ渡した", "prompts_hold_questions", trap=27),
    _eval("question_edited_inside", "問題文の語を落として渡した", "prompts_hold_questions", trap=27),
    _eval("law_in_prompt", "RAG なしなのに条文を渡した", "prompts_bare"),
    _eval("passages_in_prompt", "RAG なしなのに検索した文を渡した", "prompts_bare"),
    _eval("no_generation_prompt", "プロンプトの終わりに、答えの番の見出しがない", "frame_as_trained", trap=6),
    _eval("template_twice", "チャットテンプレートを二重に適用した", "template_once", trap=6),
    _eval("four_beams", "ビームサーチで答えた", "answers_greedy"),
    _eval("no_template", "評価のプロンプトにチャットテンプレートがない", "frame_as_trained", trap=6),
    _eval("limit_unheeded", "config の max_new_tokens より短い上限で生成した", "config_as_asked", "answers_stopped",
          "responses_ended", trap=28),
    _eval("answers_swapped", "次の問題への生成を、この問題の応答に書いた", "responses_generated", trap=23),
    replace(_eval("asked_until_right", "正解が出るまで聞き直した", "answers_greedy"), hardness=Severity.FAIL),
    replace(_eval("answer_unrecorded", "8 問のプロンプトの初めに、結果には書かない正解", "frame_as_trained"),
            eval_settings=_EIGHT, hardness=Severity.FAIL),
    _eval("asked_again_where_wrong", "間違えた問いだけを、別のプロンプトで聞き直した", "answers_greedy"),
    _eval("asked_until_read", "読めない応答だけを聞き直した", "answers_greedy"),
    _eval("hedged_credited", "どの記号も挙げた応答を正解と数えた", "answers_grounded", "strict_parse_agrees",
          "answers_parsed", trap=8),
    replace(_eval("garbage_credited", "正解と関係のない応答を正解と数えた", "answers_grounded", "strict_parse_agrees",
                  "answers_parsed", trap=8), hardness={"answers_grounded": Severity.FAIL}),
    _eval("examples_untrained", "評価のプロンプトにだけ例題がある", "frame_as_trained", trap=6),
    replace(_eval("", "チャットテンプレートなしで学習し、ありで評価した", "frame_as_trained", trap=6),
            label="template_untrained", eval_change=lambda evidence: _trained_without_template(evidence)),
    replace(_eval("", "別のアダプターをマージしたベースで学習し、ただのベースで評価した", "base_as_trained"),
            label="merged_before_training", eval_change=lambda evidence: _trained_on_merged(evidence)),
    _eval("dropout_on", "学習モードのまま答えた", "answers_greedy"),
    _eval("best_of_three", "一つの質問に三つの応答を作り、一つを選んだ", "answers_greedy"),
    _train("prompts_hidden", "マスクがプロンプトを隠す", "mask_and_positions"),
    _warn(_train("some_hidden", "マスクが一部の行のトークンを隠す", "mask_and_positions"), "mask_and_positions"),
    _train("padding_read", "左のパディングがマスクに隠されていない", "mask_and_positions"),
    _train("positions_alike", "どのトークンの位置も同じ", "mask_and_positions"),
    _train("saved_scaled", "メモリの半分の値のアダプターを保存した", "saved_as_trained", trap=23),
    _train("saved_otherwise_named", "メモリと違う名前で保存した", "saved_as_trained", trap=23),
    _train("one_matrix_lost", "一つの行列を保存していない", "saved_as_trained", trap=23),
    _train("base_zeroed", "読み込んだあとでベースの重みを書き換えた", "base_unchanged"),
    _warn(_train("base_touched", "ベースの一つのテンソルだけを書き換えた", "base_unchanged"), "base_unchanged"),
    _train("layer_replaced", "層の forward を置き換えた", "no_own_code"),
    _train("tokens_hooked", "埋め込みの入力を変えるフック", "no_own_code"),
    _train("gradients_hooked", "勾配を置き換えるフック", "no_own_code"),
    _train("losses_told", "Trainer の計算と違う損失を表示し、記録した",
           "losses_agree", "loss_as_computed"),
    _train("loss_zigzag", "損失が毎回上下する", "loss_plausible"),
    _warn(_train("gradients_alike", "どの B 行列も、中の数値がすべて同じ", "adapter_moved"), "adapter_moved"),
    _eval("prompts_hidden", "マスクがプロンプトの一部を隠す", "mask_and_positions"),
    _eval("padding_read", "左のパディングを読ませて生成した", "mask_and_positions"),
    _eval("padding_behind", "プロンプトの右にパディングがある", "mask_and_positions"),
    _eval("positions_alike", "どのトークンの位置も同じ", "mask_and_positions"),
    replace(_eval("words_forced", "許した語だけを生成させた", "answers_free"), hardness=Severity.FAIL),
    _eval("words_forbidden", "語を禁じて生成した", "answers_free"),
    _eval("own_processor", "自前の LogitsProcessor", "answers_free"),
    _eval("harsh_penalty", "repetition_penalty が 5", "answers_free"),
    _eval("length_forced", "64 トークンまで終わらせない", "answers_free"),
    _eval("adapter_zeroed", "読み込んだあとでアダプターをゼロにした", "adapter_as_saved", trap=19),
    _eval("adapter_halved", "読み込んだあとでアダプターを半分にした", "adapter_as_saved", trap=19),
    _eval("adapter_negated", "読み込んだあとでアダプターの符号を変えた", "adapter_as_saved", trap=19),
    _eval("base_zeroed", "読み込んだあとでベースの重みを書き換えて答えた", "base_unchanged"),
    _eval("tokens_hooked", "埋め込みの入力を変えるフックを付けて答えた", "no_own_code"),
    _eval("prompt_retyped", "プロンプトの一文字を変えて渡した", "prompts_as_recorded", trap=27),
    _eval("prompt_line_lost", "プロンプトの一行を落として渡した", "prompts_as_recorded", trap=27),
    _warn(_eval("first_character", "応答の最初の一文字だけを書いた", "responses_generated", trap=23),
          "responses_generated"),
    _warn(_eval("adapter_below", "別のアダプターをマージした上に H-2 のアダプターを付けた", "adapter_active", trap=19),
          "adapter_active"),
    _eval("other_rounding", "学習は nf4、評価は fp4 のベース", "base_as_trained", trap=26),
    _eval("sampled", "依頼していないサンプリング", "answers_greedy"),
    _eval("one_token_inside", "どの応答も 1 トークンで打ち切られた", "answers_stopped", trap=28),
    _eval("eight_bit", "4bit の依頼で 8bit の評価", "quantised_as_asked", "base_as_trained", trap=5),
    _eval("other_model_answers", "別のモデルが答えた", "model_loaded"),
)  # fmt: skip


def _asked_for(evidence: EvalEvidence, model: str) -> EvalEvidence:
    """The same run, had the model under test been another one that the script names."""
    named = evidence.stdout.replace(evidence.model_name, model)
    content = (evidence.root / evidence.output_path).read_text(encoding="utf-8")
    (evidence.root / evidence.output_path).write_text(content.replace(evidence.model_name, model), encoding="utf-8")
    for path in (evidence.root / SEEN).iterdir():
        path.write_text(path.read_text(encoding="utf-8").replace(evidence.model_name, model), encoding="utf-8")
    return replace(evidence, model_name=model, stdout=named, witness=read_witness(evidence.root / SEEN))


def _trained_on_merged(evidence: EvalEvidence) -> EvalEvidence:
    """The same run, had another adapter been part of the base before the training."""
    merged = AdapterChanged(at=0.0, change="merged", sha256=("f" * 64,))
    processes = (evidence.training_witness or Witness()).processes
    return replace(evidence, training_witness=Witness(tuple(
        replace(process, facts=(merged, *process.facts)) for process in processes
    )))  # fmt: skip


def _trained_without_template(evidence: EvalEvidence) -> EvalEvidence:
    """The same run, had no trained row had a template's tokens."""
    trained = evidence.training_witness or Witness()
    processes = tuple(
        replace(process, facts=tuple(
            fact.model_copy(update={"special_tokens": (0,)}) if isinstance(fact, Batch) else fact
            for fact in process.facts
        ))
        for process in trained.processes
    )  # fmt: skip
    return replace(evidence, training_witness=Witness(processes))


SOUND: tuple[Variant, ...] = (
    _train("", "学習: 欠陥なし（transformers 5 の表示）"),
    replace(_train("", "学習: transformers 4 の表示"), label="style_4", style=4),
    _train("bf16", "学習: BF16 の重み"),
    replace(_train("a_frozen", "学習: LoRA-FA の指定で A 行列を凍結"), label="a_frozen_on_purpose",
            train_change=lambda evidence: replace(evidence, words=("--optim", "lora_fa"))),
    replace(_train("decayed", "学習: 指定した重み減衰 0.5"), label="decayed_on_purpose",
            train_change=lambda evidence: replace(evidence, words=("--weight-decay", "0.5"))),
    _train("drawn_from_weights", "学習: B 行列がゼロから始まらない初期化（PiSSA）"),
    _train("f16", "学習: F16 の重み"),
    _train("micro_batches_fused", "学習: 勾配累積のぶんを一度に流す"),
    _train("f64", "学習: F64 の重み"),
    replace(_train("", "学習: 上限 6 ステップ"), label="capped",
            train_settings=TRAIN_SETTINGS.model_copy(update={"max_steps": 6})),
    replace(_train("", "学習: 端数のあるバッチと累積"), label="uneven",
            train_settings=TRAIN_SETTINGS.model_copy(update={"batch_size": 3, "gradient_accumulation_steps": 4})),
    replace(_train("", "学習: 2 エポック、端数あり"), label="two_epochs",
            train_settings=TRAIN_SETTINGS.model_copy(
                update={"num_epochs": 2, "batch_size": 3, "gradient_accumulation_steps": 4})),
    replace(_train("", "学習: 答えの行数を数えていない"), label="uncounted",
            train_change=lambda evidence: replace(evidence, lost_answers=None)),
    replace(_train("", "学習: カードが埋まっても速さは同じ"), label="full_card",
            train_change=_on_card(step_seconds=0.5)),
    replace(_train("", "学習: 余裕のあるカードで 10 倍遅くなった"), label="slow_with_room",
            train_change=_on_card(step_seconds=5.0, used_share=0.8)),
    _train("fp16_start", "学習: fp16 の最初の 3 ステップの Inf と学習率ゼロ、あとは一定の学習率"),
    _train("cosine", "学習: cosine の学習率"),
    _train("linear_to_zero", "学習: ウォームアップのあとゼロまで下がる学習率"),
    _train("rslora_saved_modules", "学習: rsLoRA、modules_to_save つき"),
    _train("dora", "学習: DoRA"),
    _train("lora_bias", "学習: lora_bias"),
    _train("targets_as_expression", "学習: target_modules が正規表現"),
    _train("only_model_saved", "学習: save_only_model"),
    _train("base_by_snapshot", "学習: ベースの名前が Hub キャッシュのパス"),
    _train("lowest_called_best", "学習: 検証の損失が最も低いチェックポイントを最良とした"),
    _train("best_loaded", "学習: 最良のチェックポイントを読み戻した"),
    _train("bf16_at_the_end", "学習: チェックポイントは F32、最後は BF16"),
    _train("copied_from_checkpoint", "学習: チェックポイントから時刻ごと写したアダプター"),
    _train("saved_after_the_end", "学習: チェックポイントにアダプターの写しがない"),
    _train("side_files", "学習: 空のロックとイベントのファイル"),
    _train("own_metrics", "学習: この学習の train_metrics.json"),
    _train("rows_held_out", "学習: 1 割を検証に取り置いた"),
    _train("quarter_held_out", "学習: 1/4 を検証に取り置いた"),
    _train("rows_packed", "学習: packing で 1 ステップに多くの行"),
    replace(_train("last_rows_dropped", "学習: drop_last"), train_settings=TRAIN_SETTINGS.model_copy(
        update={"batch_size": 3})),
    _train("logged_each_fifth", "学習: 5 ステップごとに平均の損失を表示"),
    _train("epochs_summed_up", "学習: スクリプト自身の loss の行が間にある"),
    _train("rank_prefix", "学習: [default0]: の後の行"),
    _train("torchrun_prefix", "学習: [rank0]: の後の行"),
    _train("logger_prefix", "学習: ロガーの時刻と名前の後の行"),
    _train("level_prefix", "学習: INFO:trainer: の後の行"),
    _train("json_lines", "学習: JSON の行"),
    _train("printed_twice", "学習: どの行も二度表示"),
    _train("printed_twice_in_full", "学習: どの行も、もう一度すべての桁で表示"),
    _train("history_printed_again", "学習: 最後に log_history をもう一度表示"),
    _train("evaluated_between", "学習: eval_loss の行が間にある"),
    _train("coloured", "学習: 色つきの行"),
    _train("crlf", "学習: CRLF の行"),
    _train("bars_between", "学習: 進捗バーが間にある"),
    _train("bar_glued", "学習: 進捗バーと同じ行"),
    _train("debug_between", "学習: UTF-8 でないログが間にある"),
    _train("usual_warnings", "学習: いつもの警告と、OOM・NaN・LoRA に触れるだけの文"),
    _train("no_trainer", "学習: Trainer を使わない自前のループ"),
    _train("answers_taught", "学習: ラベルは答えだけ"),
    _train("answers_rewritten", "学習: 答えを書き直すテンプレート"),
    _train("streamed", "学習: 行を流し読みするデータセット"),
    _train("packed", "学習: 行の詰め合わせ"),
    _train("packed_by_sampler", "学習: データセットは元の行のまま、バッチを作るときに詰め合わせる"),
    _train("packed_positions", "学習: 文ごとに 0 から数える位置"),
    _train("faster_norms", "学習: 正規化層とモデル全体の forward を自前にした"),
    _train("graphed", "学習: CUDA グラフで、モデルは数回しか呼ばれない"),
    _train("averaged", "学習: 終わりのステップの平均（EMA など）を保存した"),
    _train("other_modes", "学習: dropout だけを学習モードにした"),
    *(_written(f"answers_as_{label}", title, answer=answer) for label, title, answer in (
        ("brackets", "(B) のような答え", lambda n, row: f"({row['output'].upper()})"),
        ("number", "番号の答え", lambda n, row: str("abcd".index(row["output"]) + 1)),
        ("text", "選択肢の文の答え", lambda n, row: row["right"]),
        ("sentence", "文の答え", lambda n, row: f"正解は{row['output']}です。"),
        ("json", "JSON の答え", lambda n, row: json.dumps({"answer": row["output"]})),
        ("reasons", "ほかの選択肢に触れる理由つきの答え",
         lambda n, row: f"まずaは条文に反する。bも期間が違う。よって{row['output']}が正しい。"),
    )),
    _written("json_asked", "JSON で答えるようにという指示",
             asked=lambda row: row["input"] + '{{"answer": 1}} でも \\boxed{answer} でもなく a のように'),
    _eval("", "評価: 欠陥なし"),
    _eval("base_asked_first", "評価: 先にアダプタなしでも答えた"),
    _eval("merged_in_memory", "評価: アダプターを重みにマージして答えた"),
    _eval("no_tokenizer", "評価: 観測記録に文がない"),
    _eval("faster_norms", "評価: 正規化層の forward を自前にした"),
    _eval("limit_unreached", "評価: config より短い上限に、どの応答も届かない"),
    _eval("short_reminder", "評価: 学習の行にない短い一言がプロンプトにある"),
    _eval("mild_steering", "評価: repetition_penalty が 1.1"),
    _eval("asked_twice", "評価: 同じ質問に二度、同じ答え"),
    _eval("prompt_recorded", "評価: プロンプトの記録どおりに尋ねた"),
    _eval("extra_keys", "評価: 新しいキーつきの JSON"),
    _eval("no_backend_line", "評価: バックエンドの行がない"),
    _eval("dated", "評価: 日時つきの名前の JSON"),
    _eval("list_choices", "評価: 選択肢が配列の JSON"),
    _eval("chatty", "評価: 説明つきの短い応答"),
    _eval("full_width", "評価: 全角の応答"),
    _eval("same_prompt", "評価: 学習時と同じ枠のプロンプト"),
    replace(_eval("", "評価: CoT"), label="cot", eval_settings=_COT),
    Variant("", "H-3rag", "RAG: プロンプトの記録なし", eval_settings=_RAG),
    Variant("rag_prompt", "H-3rag", "RAG: 検索した文の入ったプロンプト", eval_settings=_RAG),
    Variant("", "H-3base", "アダプタなし: 応答が変わる"),
    replace(_eval("", "評価: 8 問"), label="eight", eval_settings=_EIGHT),
    replace(_eval("", "評価: 学習データを読めない"), label="no_train_file",
            eval_change=lambda evidence: replace(evidence, train_questions=None, train_template=None)),
)  # fmt: skip

_WORDS = (
    "LoRA を無効化してベースモデルを使います", "PEFT unavailable", "LoRA disabled: rank mismatch", "適用をスキップ",
    "重みが空", "not a valid PEFT checkpoint", "Ignoring LoRA adapter", "形が合わない", "Reverting to base model",
    "no LoRA weights were applied",
)  # fmt: skip


def _softer(variant: Variant) -> Variant:
    """The same, where the one check that does not hold is a warning this time."""
    return replace(variant, hardness=Severity.WARN)


# what an evaluation says and writes of its prompts, responses, figures, set-up and files
ANSWERING = (
    _eval("backend_switched", "hf をあきらめ、あとから ollama に切り替えた", "line_backend", "model_names_agree"),
    _eval("remote_api", "外の API に聞いた（表示と JSON の base_url・api_model）", "line_backend", "model_in_use"),
    _eval("http_requests", "ログに ollama への要求がある", "line_backend"),
    _eval("model_in_config", "JSON の config に別のモデルのパス", "model_in_use", trap=4),
    _eval("checkpoint_loaded", "別のチェックポイントを読み込んだと表示", "model_in_use", trap=4),
    _eval("model_loaded", "Loaded model: gpt2 と表示", "model_in_use", trap=4),
    _eval("lora_none_later", "あとから LoRA Path: None と表示", "lora_path_named", trap=19),
    _eval("lora_checkpoint", "途中のチェックポイントの LoRA で評価した", "adapter_active", "lora_path_named"),
    _eval("rag_enabled_later", "あとから RAG Mode: Enabled と表示", "line_rag_disabled"),
    *(_eval(f"adapter_words_{n}", f"アダプターが使われなかったという表示: {words}", "adapter_loaded", trap=19)
      for n, words in enumerate(_WORDS)),
    _eval("offloaded", "モデルの一部が CPU に置かれた（transformers の警告）", "library_warnings", trap=26),
    _eval("right_padding", "右詰めのまま生成した（transformers の警告）", "library_warnings"),
    replace(_eval("unread_as_null", "読めない回答が null", "answers_parsed"), hardness=Severity.INFO),
    _eval("prompt_beyond_limit", "プロンプトが生成の上限より長い（transformers の警告）", "library_warnings"),
    _eval("beyond_model", "モデルの最大長を超える（transformers の警告）", "library_warnings"),
    _eval("cpu_fallback", "CPU に切り替わったという表示", "library_warnings"),
    _eval("thread_raised", "結果のあと、スレッドで例外", "no_traceback"),
    _eval("traceback_each", "どの質問でも例外が表示され、回答は a", "no_traceback", "no_invocation_error", trap=2),
    _softer(_eval("generation_failed", "生成に失敗した問題に既定の回答を使ったという表示", "no_invocation_error",
                  trap=2)),
    _softer(_eval("failed_ja", "推論に失敗した問題に既定の回答を使ったという表示（日本語）", "no_invocation_error",
                  trap=2)),
    _eval("cuda_text_as_answer", "型名のない CUDA の例外文が応答", "no_error_answers", "strict_parse_agrees", trap=2),
    _eval("failed_text_ja", "「推論に失敗しました」が応答", "no_error_answers", "answers_parsed", trap=2),
    _eval("http_error_page", "HTTP のエラーページから記号を拾った", "no_error_answers", "strict_parse_agrees", trap=2),
    _eval("rate_limited", "API の 429 から記号を拾った", "no_error_answers", "strict_parse_agrees", trap=2),
    _eval("attribute_error", "1 問だけ Python の例外文が応答", "no_error_answers", "strict_parse_agrees", trap=2),
    _eval("two_empty", "3 問のうち 2 問の応答が空", "responses_present", "answers_parsed"),
    _eval("none_as_text", "3 問のうち 2 問の応答が None という文字", "responses_present", "answers_parsed"),
    _softer(_eval("one_empty", "3 問のうち 1 問の応答が空", "responses_present", "answers_parsed")),
    _softer(_eval("never_answers", "どの問題にも答えない", "answers_parsed")),
    _eval("default_letter", "読めない応答を a と数えた", "answers_grounded", "strict_parse_agrees", trap=8),
    _eval("digit_off_by_one", "1 から数えた番号を 0 からと読んだ", "answers_grounded", "strict_parse_agrees", trap=8),
    _eval("numbers_misread", "選択肢の番号と違う記号を記録した", "answers_as_responded", "strict_parse_agrees", trap=8),
    _eval("thought_unclosed", "閉じていない思考から記号を拾った", "answers_grounded", "strict_parse_agrees",
          "responses_ended", trap=28),
    _eval("channel_unclosed", "閉じていない思考から記号を拾った（gpt-oss の形）",
                "responses_generated", "answers_grounded", "strict_parse_agrees", "responses_ended", trap=28),
    _eval("one_token", "どの応答も 1 トークンで上限", "answers_stopped", "responses_ended", trap=28),
    _eval("tokens_too_few", "1 トークンで 40 文字の応答", "responses_generated", "row_figures_fit"),
    _eval("cached_seconds", "以前の実行の回答（1 問 29 秒、実行は 20 秒）", "row_figures_fit", trap=23),
    _eval("seconds_add_up", "行の秒数の合計が実行時間を超える", "row_figures_fit", trap=23),
    _warn(_eval("gold_in_response", "正解が応答に写っている（生成トークン 0）",
                "responses_generated", "responses_present"), "responses_generated"),
    _eval("prompts_shifted", "別の問題のプロンプトで尋ねた", "responses_generated", "prompts_ask_questions", trap=27),
    _eval("prompt_repeated", "どの問題も最初のプロンプトで尋ねた", "prompts_hold_questions",
          "prompts_ask_questions", trap=27),
    _eval("chat_of_another", "別の問題のプロンプトで尋ねた（チャットの形）",
          "responses_generated", "prompts_ask_questions", trap=27),
    _eval("prompt_tail_only", "プロンプトが末尾の 24 文字だけ", "prompts_hold_questions", "frame_as_trained",
          "prompts_ask_questions", "prompts_agree", trap=27),
    _eval("choices_cut", "プロンプトの選択肢が二つだけ", "prompts_hold_questions", "prompts_ask_questions", trap=27),
    _eval("choices_reordered", "プロンプトの選択肢の順序が違う", "prompts_ask_questions",
          "prompts_hold_questions", trap=27),
    _softer(_eval("question_edited", "プロンプトの問題文から言葉が消えた", "prompts_ask_questions", trap=27)),
    _eval("example_is_question", "例題がその問題と正解", "prompts_hide_answers", "frame_as_trained"),
    _eval("hint_in_prompt", "選択肢の後ろに正解のヒント", "prompts_hide_answers"),
    _eval("hint_before", "問題の前に正解のヒント（英語）", "prompts_hide_answers"),
    _eval("answer_before", "問題の前に正解（英語の文）", "prompts_hide_answers"),
    _eval("number_behind", "選択肢の後ろに正解の番号", "prompts_hide_answers"),
    _eval("json_lora_null", "JSON の lora_path が null", "lora_path_named", trap=19),
    _eval("json_lora_unused", "JSON の use_lora が false", "lora_path_named", trap=19),
    _eval("gold_text_behind", "選択肢の後ろに正解の文", "prompts_hide_answers"),
    _warn(_eval("gold_marked", "正解の選択肢にだけ印", "prompts_hide_answers", "prompts_hold_questions"),
          "prompts_hold_questions"),
    _eval("context_in_prompt", "RAG なしなのにプロンプトに条文", "prompts_bare", "prompts_without_context"),
    _softer(_eval("refilled", "落ちた問題を 4 問目で埋めた", "first_rows")),
    _softer(_eval("refilled_in_place", "落ちた問題を、その場所で 4 問目で埋めた", "first_rows")),
    _eval("unknown_left_out", "読めない回答を分母から除いた", "json_consistent", "answers_parsed"),
    _eval("second_block", "正解を写した二つ目の結果", "results_agree"),
    _eval("two_files", "違う結果の JSON が二つ", "results_agree"),
    _eval("dataset_repaired", "データセットの正解を回答に合わせて書き換えた", "dataset_unchanged",
          "questions_of_dataset"),
    _eval("dataset_gone", "データセットを消した", "dataset_unchanged"),
    _eval("second_weights", "評価が別の重みファイルを書き足した", "adapter_left_alone"),
    _eval("config_saved", "評価が LoRA 設定を書き換えた", "adapter_left_alone"),
)  # fmt: skip

SOUND_ANSWERING = (
    *(_eval(f"said_{name}", f"評価: 応答の書き方（{title}）") for name, title in (
        ("boxed", "boxed"), ("en_error", "Error で始まる英語の文"), ("en_because", "理由つきの英語の文"),
        ("en_sentence", "英語の文"), ("error_word", "エラーという語を含む文"), ("explain_others", "他の選択肢の説明"),
        ("end_token", "終了トークンつき"), ("ja_ga", "〜が正解です"), ("ja_no_ha", "正しいのは〜です"),
        ("ja_kaitou", "解答："), ("ja_long", "選択肢〜が正しいです。別の選択肢は…"),
        ("letter_text", "記号と選択肢の文"),
        ("bold", "太字"), ("heading", "見出しと太字"), ("bracketed", "括弧つき"), ("quoted", "かぎ括弧"),
        ("thought_closed", "閉じた思考"), ("json", "JSON"), ("answer_tag", "answer タグ"), ("capital", "大文字"),
        ("option", "Option"), ("therefore", "よって〜が正解です"), ("role", "役割の名前つき"), ("number", "番号"),
        ("padded", "詰めもののトークンつき"), ("choice_text", "選択肢の文だけ"), ("latex", "LaTeX"),
        ("thought_long", "長い、閉じた思考"),
    )),
    _eval("upper_case", "評価: 全角と大文字の記号"),
    _eval("choices_mapping", "評価: 選択肢が辞書の JSON"),
    _eval("choices_capital", "評価: 「A.」の選択肢"),
    _eval("choices_numbered", "評価: 「1.」の選択肢"),
    _eval("choices_kana", "評価: 「ア」の選択肢"),
    _eval("choices_one_line", "評価: 一行の選択肢"),
    _eval("choices_records", "評価: 選択肢が辞書の配列"),
    _eval("bom_and_indent", "評価: BOM と字下げのある JSON"),
    _eval("prompts_with_examples", "評価: 問題ごとに別の例題"),
    _eval("prompts_as_chat", "評価: チャットの形のプロンプト"),
    _eval("prompts_restyled", "評価: 選択肢を書き直したプロンプト"),
    _eval("batch_seconds", "評価: どの行もバッチ全体の秒数"),
    _eval("lora_path_forms", "評価: ./ と末尾の / のある LoRA Path"),
    _eval("model_snapshot", "評価: Hub のキャッシュのパスがモデル名"),
    _eval("more_config", "評価: config にほかのモデルと接続先のキー"),
    _eval("bars", "評価: どの行も進捗バーの後ろ"),
    _eval("logger_prefix", "評価: どの行もロガーの後ろ"),
    _eval("root_logger", "評価: どの行も INFO:root: の後ろ"),
    _eval("rank_prefix", "評価: どの行も [rank0]: の後ろ"),
    _eval("table", "評価: 罫線の中の行"),
    _eval("colours", "評価: 色つきの行"),
    _eval("crlf", "評価: CRLF の行"),
    _eval("accuracy_comma", "評価: Accuracy : 33,33 %"),
    _eval("total_with_words", "評価: Total Samples: 3 questions"),
    _eval("total_of_all", "評価: Total Samples: 3/3"),
    _eval("markdown", "評価: 太字の見出し"),
    _eval("wide_colons", "評価: 全角のコロン"),
    _eval("json_logged", "評価: どの行もロガーの JSON の中"),
    _eval("cluster_prefix", "評価: どの行も stdout F の後ろ"),
    _eval("flags_as_numbers", "評価: 正誤が 0 と 1 の JSON"),
    _eval("accuracy_fraction", "評価: Accuracy: 0.3333 (1/3)"),
    _eval("accuracy_rounded", "評価: Accuracy: 33.3%"),
    _eval("rag_lower", "評価: RAG Mode: disabled"),
    _eval("base_first", "評価: 先にベース、次に LoRA つきの結果"),
    _eval("base_last", "評価: 先に LoRA つき、次にベースの結果"),
    _eval("base_first_said_so", "評価: 先にベース（LoRA: disabled と表示）、次に LoRA つき"),
    _eval("backend_transformers", "評価: LLM Backend: transformers (4bit)"),
    _eval("partial_block", "評価: 途中経過の結果"),
    _eval("harmless_words", "評価: アダプターや失敗という語のある、無害な表示"),
    _eval("says_lora_twice", "評価: LoRA Path を二度表示"),
    _eval("copied_file", "評価: 同じ内容の JSON が二つ"),
)  # fmt: skip

SOUND = (*SOUND, *SOUND_ANSWERING)
DEFECTS = (*TRAINING, *EVALUATION, *EXTENDED, *WITNESSED, *ANSWERING)
