"""The table of planted defects: what is planted, which checks must catch it, and the sound variants none may accuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from steph.judge.evidence import CardMemory, EvalEvidence, TrainEvidence
from steph.record import EvalSettings, Severity, TrainSettings

TRAIN_SETTINGS = TrainSettings(max_seq_length=512)
EVAL_SETTINGS = EvalSettings()
_CAPPED = TRAIN_SETTINGS.model_copy(update={"max_steps": 6})
_CARD_BYTES = 10 * 2**30


@dataclass(frozen=True)
class Variant:
    """One planted pipeline.

    `plant` is the fake script's defect ("" for none), `caught` the ids of exactly those checks that must not hold,
    `unmeasured` the `fail` checks that can then not be measured; the changes alter what the suite knows. `hardness` is
    that of the checks where it is not their row's.
    """

    plant: str
    stage: Literal["H-2", "H-3", "H-3cot", "H-3rag", "H-3base"]
    title: str
    caught: frozenset[str] = frozenset()
    unmeasured: frozenset[str] = frozenset()
    trap: int | None = None
    label: str = ""
    hardness: Severity | None = None
    style: int = 5
    train_settings: TrainSettings = TRAIN_SETTINGS
    eval_settings: EvalSettings = EVAL_SETTINGS
    train_change: Callable[[TrainEvidence], TrainEvidence] = field(default=lambda evidence: evidence)
    eval_change: Callable[[EvalEvidence], EvalEvidence] = field(default=lambda evidence: evidence)

    @property
    def id(self) -> str:
        """The variant's name in the tests and in the generated table."""
        return f"{self.stage}-{self.label or self.plant}"


_NO_WEIGHTS = frozenset({"adapter_finite", "adapter_trained"})
_NO_JSON = frozenset({
    "json_fresh", "json_valid", "json_consistent", "no_error_answers", "flags_consistent", "rows_distinct",
    "questions_of_dataset", "responses_bounded", "responses_present",
})  # fmt: skip
_BAD_JSON = _NO_JSON - {"json_fresh", "json_valid"}


def _train(
    plant: str, title: str, *caught: str, unmeasured: frozenset[str] = frozenset(), trap: int | None = None
) -> Variant:
    return Variant(plant, "H-2", title, frozenset(caught), unmeasured, trap)


def _eval(
    plant: str, title: str, *caught: str, unmeasured: frozenset[str] = frozenset(), trap: int | None = None
) -> Variant:
    return Variant(plant, "H-3", title, frozenset(caught), unmeasured, trap)


def _lost(lost: int, rows: int) -> Callable[[TrainEvidence], TrainEvidence]:
    return lambda evidence: replace(evidence, lost_answers=(lost, rows))


def _on_card(
    step_seconds: float, used_share: float = 0.98, reserved_share: float = 0.8
) -> Callable[[TrainEvidence], TrainEvidence]:
    """Four steps of half a second on a card of 10 GiB, six tenths used; then `used_share` and `step_seconds`."""

    def change(evidence: TrainEvidence) -> TrainEvidence:
        lines = [line for _, line in evidence.line_arrivals]
        arrivals = ((0.5 * min(n, 4) + step_seconds * max(0, n - 4), line) for n, line in enumerate(lines))
        samples = ((0.0, int(0.6 * _CARD_BYTES)), (2.01, int(used_share * _CARD_BYTES)))
        card = CardMemory(_CARD_BYTES, samples, int(reserved_share * _CARD_BYTES))
        return replace(evidence, line_arrivals=tuple(arrivals), card=card)

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
    _train("b_zero", "B 行列がすべてゼロ", "adapter_trained"),
    _train("b_minus_zero_bf16", "B 行列がすべて -0（BF16）", "adapter_trained"),
    _train("b_last_layer_only", "最後の層の B 行列だけが動いた", "adapter_trained"),
    replace(_train("b_one_still", "8 個のうち 1 個の B 行列がゼロのまま", "adapter_trained"), hardness=Severity.WARN),
    _train("pair_incomplete", "LoRA の対の B 行列だけがない", "adapter_weights"),
    _train("nan_in_last_layer", "最後の層の B 行列だけに NaN", "adapter_finite"),
    _train("saved_early", "学習の途中のアダプターを保存した", "adapter_is_last"),
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
    _train("steps_short", "予定の途中で学習をやめた", "steps_complete"),
    _train("epochs_ignored", "1 エポックの依頼で 2 エポック回した", "steps_complete", "epochs_as_asked", trap=12),
    replace(
        _train("rows_dropped", "行を半分捨て、余計に回した", "epochs_as_asked", "batch_as_asked", trap=12),
        train_settings=_CAPPED, hardness=Severity.WARN,
    ),
    replace(_train("batch_shrunk", "OOM のあと黙ってバッチを半分にした", "batch_as_asked"), train_settings=_CAPPED),
    replace(_train("batch_doubled", "バッチだけを倍にした", "batch_as_asked", "epochs_as_asked"),
            train_settings=_CAPPED),
    replace(_train("accumulation_ignored", "--gradient-accumulation-steps が効かない", "batch_as_asked"),
            train_settings=_CAPPED, hardness=Severity.WARN),
    _train("learning_rate_ignored", "--learning-rate が効かない", "learning_rate_as_asked"),
    _train("resumed", "以前の学習の途中から再開した", "trained_from_start", "losses_agree",
           "learning_rate_as_asked", trap=15),
    _train("state_of_another", "別の学習の trainer_state.json", "state_of_this_run", "loss_logged", trap=15),
    _train("loss_nan", "損失が途中から NaN", "loss_finite"),
    _train("loss_inf", "損失が一度 Inf", "loss_finite"),
    _train("loss_zero", "損失がゼロ、勾配が NaN", "loss_finite", "grad_norm_finite"),
    _train("loss_rounded", "損失が小さくゼロと表示され、勾配はある", "loss_rounded"),
    _train("train_loss_zero", "最終行の train_loss がゼロ", "loss_finite", "losses_agree"),
    _train("train_loss_nan", "最終行の train_loss が NaN", "loss_finite"),
    _train("train_loss_flattered", "最終行の train_loss が各行の平均と違う", "losses_agree"),
    _train("history_differs", "表示と log_history の損失が違う", "losses_agree"),
    _train("loss_rising", "損失が上がり続ける", "loss_lower"),
    _train("loss_flat", "損失が変わらない", "loss_lower"),
    _train("no_history", "log_history が空", "loss_logged", trap=13),
    _train("grad_norm_nan", "勾配ノルムが一度 NaN", "grad_norm_finite"),
    # what lies open beside the results: libraries' words, all steps, the adapter's own shape, times
    _train("response_key_missing", "40 行のうち 30 行が損失の計算から外された（TRL の警告）", "library_warnings"),
    _train("tokens_too_long", "モデルの最大長を超える行がある（transformers の警告）", "library_warnings"),
    _train("batches_skipped", "OOM のバッチを黙って飛ばした", "library_warnings"),
    _train("offloaded", "モデルの一部が CPU に置かれた（transformers の警告）", "library_warnings"),
    replace(_train("", "140 行のうち 30 行の答えが切れる長さ", "answers_kept", trap=1), label="answers_cut",
            train_change=_lost(30, 140)),
    replace(_train("", "140 行のうち 127 行の答えが切れる長さ", "answers_kept", trap=1), label="answers_gone",
            hardness=Severity.FAIL, train_change=_lost(127, 140)),
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
    _eval("model_near", "名前の一部だけ同じモデル", "model_named", "model_names_agree", trap=4),
    _eval("published_names", "LLM Model と JSON が別のモデルを名乗る", "model_names_agree", trap=4),
    _eval("json_names_other", "JSON だけが別のモデルを名乗る", "model_names_agree", trap=4),
    _eval("backend_ollama", "バックエンドが ollama のまま", "line_backend"),
    _eval("lora_none", "LoRA が読み込まれていない", "lora_path_named"),
    _eval("lora_other", "別の LoRA で評価した", "lora_path_named"),
    _eval("lora_other_root", "同じ名前の、別のルートの LoRA で評価した", "lora_path_named"),
    _eval("json_lora_none", "JSON の lora_path が空", "lora_path_named"),
    _eval("no_lora_line", "LoRA がどこにも表示されない", unmeasured=frozenset({"lora_path_named"})),
    _eval("missing_keys", "PEFT がキーの不足を警告した", "adapter_loaded"),
    _eval("adapter_fallback", "LoRA を読み込めずベースで評価した", "adapter_loaded"),
    _eval("newly_initialized", "ベースモデルの重みが読み込まれていない", "base_weights_loaded"),
    _eval("adapter_skipped", "LoRA を見つけられずベースで評価した", "adapter_loaded"),
    replace(_eval("", "評価の前に LoRA 重みが変わった", "adapter_unchanged"), label="adapter_changed",
            eval_change=lambda evidence: replace(evidence, adapter_sha256_actual="0" * 64)),
    replace(_eval("", "別のモデルの LoRA を読み込んだ", "adapter_base", trap=14), label="adapter_foreign",
            eval_change=lambda evidence: _asked_for(evidence, "Qwen/Qwen2.5-1.5B-Instruct")),
    _eval("no_results_line", "EVALUATION RESULTS がない", "line_results"),
    _eval("no_total_line", "Total Samples の行がない", "total_samples"),
    _eval("no_accuracy_line", "Accuracy の行がない", "line_accuracy"),
    _eval("accuracy_nan", "正解率が nan%", "line_accuracy", "json_consistent"),
    _eval("results_first", "結果が設定より先に表示される", "lines_in_order"),
    _eval("swallowed_errors", "例外を飲み込み、error の回答にした", "no_invocation_error", "no_error_answers", trap=2),
    _eval("silent_errors", "黙って 1 問を error の回答にした", "no_error_answers", trap=2),
    _eval("counted_errors", "Other Errors が 1 件", "no_error_answers", trap=2),
    _eval("exception_as_answer", "例外の文から記号を拾った", "no_error_answers", "strict_parse_agrees", trap=2),
    _eval("two_of_three", "3 問の依頼で 2 問だけ評価した", "total_samples"),
    _eval("all_rows", "3 問の依頼で全問を評価した", "total_samples", "train_overlap"),
    _eval("no_rows", "1 問も評価していない", "total_samples",
          unmeasured=frozenset({"responses_bounded", "responses_present"})),
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
    _eval("other_prompt", "学習時と違うプロンプト", "prompts_agree", trap=6),
    _eval("answer_in_prompt", "プロンプトの末尾に正解がある", "prompts_hide_answers"),
    _eval("predicted_from_key", "回答を正解から写した", "answers_as_responded", "strict_parse_agrees", trap=8),
    _eval("prompt_echoed", "応答にプロンプトが丸ごと入っている", "prompt_not_echoed", trap=8),
    _eval("same_response", "どの問題にも同じ長い応答", "responses_differ"),
    _eval("nan_logits", "NaN になったモデルの「!!!!!」", "responses_bounded", "answers_parsed", trap=3),
    _eval("all_empty", "すべての応答が空", "responses_present", "answers_parsed"),
    _eval("no_new_tokens", "何も生成していないのに応答がある", "responses_present"),
    _eval("runaway", "数千文字の応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_lines", "同じ行を繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_tail", "末尾で同じ文を繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_counted", "番号だけ変えて繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("looping_one_of_three", "1 問だけ繰り返す応答", "responses_bounded", "strict_parse_agrees", trap=3),
    _eval("cut_off", "上限で打ち切られた応答", "responses_ended", trap=3),
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
    Variant("lora_other", "H-3base", "アダプタなしの依頼でアダプタつきで評価した", frozenset({"lora_path_named"})),
    Variant("other_rows", "H-3base", "H-3 と違う問題を解いた", frozenset({"base_same_questions", "first_rows"})),
)  # fmt: skip


def _asked_for(evidence: EvalEvidence, model: str) -> EvalEvidence:
    """The same run, had the model under test been another one that the script names."""
    named = evidence.stdout.replace(evidence.model_name, model)
    content = (evidence.root / evidence.output_path).read_text(encoding="utf-8")
    (evidence.root / evidence.output_path).write_text(content.replace(evidence.model_name, model), encoding="utf-8")
    return replace(evidence, model_name=model, stdout=named)


SOUND: tuple[Variant, ...] = (
    _train("", "学習: 欠陥なし（transformers 5 の表示）"),
    replace(_train("", "学習: transformers 4 の表示"), label="style_4", style=4),
    _train("bf16", "学習: BF16 の重み"),
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
    _train("usual_warnings", "学習: いつもの警告と、OOM・NaN・LoRA に触れるだけの文"),
    _eval("", "評価: 欠陥なし"),
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
            eval_change=lambda evidence: replace(evidence, train_questions=None, train_frame=None)),
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
    _eval("lora_checkpoint", "途中のチェックポイントの LoRA で評価した", "lora_path_named"),
    _eval("rag_enabled_later", "あとから RAG Mode: Enabled と表示", "line_rag_disabled"),
    *(_eval(f"adapter_words_{n}", f"アダプターが使われなかったという表示: {words}", "adapter_loaded", trap=19)
      for n, words in enumerate(_WORDS)),
    _eval("offloaded", "モデルの一部が CPU に置かれた（transformers の警告）", "library_warnings", trap=26),
    _eval("right_padding", "右詰めのまま生成した（transformers の警告）", "library_warnings"),
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
    _eval("channel_unclosed", "閉じていない思考から記号を拾った（gpt-oss の形）", "answers_grounded",
          "strict_parse_agrees", "responses_ended", trap=28),
    _eval("one_token", "どの応答も 1 トークンで上限", "responses_ended", trap=28),
    _eval("tokens_too_few", "1 トークンで 40 文字の応答", "row_figures_fit"),
    _eval("cached_seconds", "以前の実行の回答（1 問 29 秒、実行は 20 秒）", "row_figures_fit", trap=23),
    _eval("seconds_add_up", "行の秒数の合計が実行時間を超える", "row_figures_fit", trap=23),
    _eval("gold_in_response", "正解が応答に写っている（生成トークン 0）", "responses_present"),
    _eval("prompts_shifted", "別の問題のプロンプトで尋ねた", "prompts_ask_questions", trap=27),
    _eval("prompt_repeated", "どの問題も最初のプロンプトで尋ねた", "prompts_ask_questions", trap=27),
    _eval("chat_of_another", "別の問題のプロンプトで尋ねた（チャットの形）", "prompts_ask_questions", trap=27),
    _eval("prompt_tail_only", "プロンプトが末尾の 24 文字だけ", "prompts_ask_questions", "prompts_agree", trap=27),
    _eval("choices_cut", "プロンプトの選択肢が二つだけ", "prompts_ask_questions", trap=27),
    _eval("choices_reordered", "プロンプトの選択肢の順序が違う", "prompts_ask_questions", trap=27),
    _softer(_eval("question_edited", "プロンプトの問題文から言葉が消えた", "prompts_ask_questions", trap=27)),
    _eval("example_is_question", "例題がその問題と正解", "prompts_hide_answers"),
    _eval("hint_in_prompt", "選択肢の後ろに正解のヒント", "prompts_hide_answers"),
    _eval("hint_before", "問題の前に正解のヒント（英語）", "prompts_hide_answers"),
    _eval("answer_before", "問題の前に正解（英語の文）", "prompts_hide_answers"),
    _eval("number_behind", "選択肢の後ろに正解の番号", "prompts_hide_answers"),
    _eval("json_lora_null", "JSON の lora_path が null", "lora_path_named", trap=19),
    _eval("json_lora_unused", "JSON の use_lora が false", "lora_path_named", trap=19),
    _eval("gold_text_behind", "選択肢の後ろに正解の文", "prompts_hide_answers"),
    _eval("gold_marked", "正解の選択肢にだけ印", "prompts_hide_answers"),
    _eval("context_in_prompt", "RAG なしなのにプロンプトに条文", "prompts_without_context"),
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
DEFECTS = (*TRAINING, *EVALUATION, *EXTENDED, *ANSWERING)
