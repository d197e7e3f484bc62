"""The rows of the table of checks for H-2. Values only."""

from __future__ import annotations

from steph.judge.kinds import FAIL, INFO, WARN, CheckKind

TRAINING = (
    CheckKind(
        "line_train_result", "H-2", FAIL, "学習の最終結果が表示された", "stdout の train_runtime・train_loss の行"
    ),
    CheckKind(
        "adapter_weights", "H-2", FAIL, "LoRA 重みが読める形で書かれた", "adapter_model.safetensors のヘッダと長さ"
    ),
    CheckKind("adapter_config", "H-2", FAIL, "LoRA 設定が読める形で書かれた", "adapter_config.json"),
    CheckKind("adapter_finite", "H-2", FAIL, "LoRA 重みに NaN・Inf がない", "adapter_model.safetensors の全要素"),
    CheckKind("adapter_trained", "H-2", FAIL, "LoRA の B 行列がゼロのままでない", "lora_B テンソルの全要素"),
    CheckKind(
        "adapter_as_asked",
        "H-2",
        WARN,
        "LoRA の設定が依頼どおり",
        "adapter_config.json の r・alpha・dropout・target_modules、lora_A の形",
    ),
    CheckKind(
        "checkpoint_trainer_state",
        "H-2",
        FAIL,
        "チェックポイントに Trainer の状態がある",
        "checkpoint-N/trainer_state.json の global_step",
    ),
    CheckKind(
        "artifacts_fresh", "H-2", FAIL, "成果物がこの試行で書かれた", "ファイルの更新時刻と試行の開始時刻", trap=15
    ),
    CheckKind(
        "no_leftovers", "H-2", INFO, "以前の試行のチェックポイントが混ざっていない", "checkpoint-* の更新時刻", trap=15
    ),
    CheckKind(
        "steps_complete",
        "H-2",
        FAIL,
        "予定のステップ数だけ学習した",
        "global_step（なければ最終行の epoch）と、行数・バッチ・累積・上限から求めた予定",
    ),
    CheckKind(
        "epochs_as_asked", "H-2", WARN, "依頼より多くのエポックを回していない", "最終行の epoch", trap=12, optional=True
    ),
    CheckKind(
        "loss_finite",
        "H-2",
        FAIL,
        "損失が有限でゼロでない",
        "stdout の loss・train_loss と log_history",
        note="勾配のあるゼロは `loss_rounded` が警告する",
    ),
    CheckKind(
        "loss_rounded",
        "H-2",
        WARN,
        "損失が小さすぎてゼロと表示されていない",
        "stdout の loss と、同じ行の有限でゼロでない grad_norm",
        optional=True,
    ),
    CheckKind(
        "loss_lower",
        "H-2",
        WARN,
        "損失が下がった",
        "最後の 1/3 と最初の 1/3 の中央値（6 件から）",
        quality=True,
        optional=True,
    ),
    CheckKind(
        "loss_logged",
        "H-2",
        INFO,
        "損失がディスクに残った",
        "trainer_state.json の log_history",
        trap=13,
        optional=True,
    ),
    CheckKind(
        "losses_agree",
        "H-2",
        WARN,
        "表示された損失と記録された損失が一致する",
        "stdout の行、log_history、train_loss",
        optional=True,
    ),
    CheckKind("grad_norm_finite", "H-2", INFO, "勾配ノルムが有限", "stdout の grad_norm", optional=True),
    CheckKind(
        "no_memory_spill",
        "H-2",
        WARN,
        "カードのメモリからあふれて遅くなっていない",
        "NVML のメモリの推移と、ステップ時間（train_metrics.json、なければ損失の行の時刻）、torch の予約ピーク",
        optional=True,
        note="GPU のみ。埋まる前より 8 倍（トークン数が分かれば 5 倍）以上遅いまま、または予約がカード超え",
    ),
    CheckKind(
        "answers_kept",
        "H-2",
        WARN,
        "学習データの答えが切り捨てられていない",
        "モデルのトークナイザで数えた、答えを失う行数",
        trap=1,
        optional=True,
        note="半数を超えると fail",
    ),
)

DEEP = (
    CheckKind(
        "loss_flag_works",
        "H-2",
        WARN,
        "--loss-on-output-only が損失を変える",
        "1 ステップの試行 2 回の損失",
        trap=9,
        optional=True,
        note="--steph-deep のみ",
    ),
    CheckKind(
        "four_bit_as_asked",
        "H-2",
        WARN,
        "--use-4bit がメモリを減らす",
        "1 ステップの試行 2 回のピーク（torch の確保、なければ NVML）",
        trap=5,
        optional=True,
        note="--steph-deep のみ",
    ),
    CheckKind(
        "no_max_padding",
        "H-2",
        INFO,
        "行を最大長までパディングしていない",
        "長さ S と 2S の 5 ステップの試行のステップ時間と、行のトークン数",
        trap=11,
        optional=True,
        note="--steph-deep のみ",
    ),
    CheckKind(
        "deep_runs_complete",
        "H-2",
        WARN,
        "詳しい検査の試行がすべて終わった",
        "--steph-deep の試行の終了コードと原因",
        optional=True,
        note="--steph-deep のみ",
    ),
)
