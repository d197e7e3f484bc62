"""The rows of the table of checks for H-3: the printed lines, the adapter, the JSON, the responses. Values only."""

from __future__ import annotations

from steph.judge.kinds import FAIL, INFO, WARN, CheckKind

LINES = (
    CheckKind("line_initializing", "H-3", FAIL, "初期化の行がある", "Initializing RAG pipeline..."),
    CheckKind(
        "line_rag_disabled",
        "H-3",
        FAIL,
        "RAG が無効と表示された",
        "RAG Mode: Disabled (LLM only)",
        note="--no-rag のとき",
    ),
    CheckKind("line_rag_enabled", "H-3", FAIL, "RAG が有効と表示された", "RAG Mode: Enabled", note="RAG を使うとき"),
    CheckKind("model_named", "H-3", FAIL, "対象モデルの名前が表示された", "HF Model: または LLM Model:", trap=4),
    CheckKind(
        "model_names_agree",
        "H-3",
        WARN,
        "別のモデル名が表示・記録されていない",
        "HF Model:、LLM Model:、JSON の llm_model・hf_model_name",
        trap=4,
    ),
    CheckKind(
        "line_backend",
        "H-3",
        FAIL,
        "バックエンドが hf",
        "LLM Backend: または Backend:（表示されていれば）",
        optional=True,
    ),
    CheckKind("lora_path_named", "H-3", FAIL, "評価に使った LoRA が H-2 のもの", "LoRA Path: と JSON の lora_path"),
    CheckKind("line_results", "H-3", FAIL, "評価結果が表示された", "EVALUATION RESULTS"),
    CheckKind("total_samples", "H-3", FAIL, "依頼した問題数を評価した", "Total Samples: と JSON の件数"),
    CheckKind("line_accuracy", "H-3", FAIL, "正解率が表示された", "Accuracy:"),
    CheckKind("lines_in_order", "H-3", FAIL, "必要な行が決まった順に並ぶ", "上の各行の位置", optional=True),
    CheckKind(
        "no_invocation_error", "H-3", FAIL, "推論の例外が表示されていない", "Error during LLM invocation", trap=2
    ),
)
ADAPTER = (
    CheckKind("adapter_unchanged", "H-3", FAIL, "H-2 の記録と同じアダプター", "adapter_model.safetensors の sha256"),
    CheckKind(
        "adapter_loaded", "H-3", FAIL, "アダプターの読み込みに失敗の表示がない", "stdout と stderr の PEFT の警告"
    ),
)
RESULTS = (
    CheckKind(
        "json_written", "H-3", FAIL, "結果の JSON がある", "依頼したパス、Detailed results saved to:、日時つきの名前"
    ),
    CheckKind("json_fresh", "H-3", FAIL, "結果の JSON がこの試行で書かれた", "更新時刻と試行の開始時刻", trap=15),
    CheckKind("json_valid", "H-3", FAIL, "結果の JSON が決まった形", "config・summary・results の型と値"),
    CheckKind("json_consistent", "H-3", FAIL, "表示・JSON・数え直しの正解率が一致する", "表示行、summary、results"),
    CheckKind(
        "config_as_asked",
        "H-3",
        WARN,
        "評価の設定が依頼どおり",
        "JSON の config（rag_enabled・cot_enabled・ensemble_runs・top_k・load_in_4bit）",
        optional=True,
    ),
    CheckKind(
        "no_error_answers",
        "H-3",
        FAIL,
        "例外が回答として数えられていない",
        "predicted_answer、response、Error Analysis",
        trap=2,
    ),
    CheckKind(
        "flags_consistent", "H-3", FAIL, "正誤の印が回答と一致する", "is_correct と predicted_answer・correct_answer"
    ),
    CheckKind("rows_distinct", "H-3", FAIL, "同じ問題を二度数えていない", "results の問題文と選択肢"),
    CheckKind("questions_of_dataset", "H-3", FAIL, "評価した問題と正解がデータセットのもの", "results とデータセット"),
    CheckKind("first_rows", "H-3", INFO, "データセットの先頭から順に評価した", "results とデータセット", optional=True),
    CheckKind(
        "train_overlap", "H-3", WARN, "評価した問題が学習データにない", "学習データの問題文", trap=7, optional=True
    ),
    CheckKind(
        "prompts_agree",
        "H-3",
        INFO,
        "学習と評価のプロンプトの枠が同じ",
        "学習データの input と JSON の prompt",
        trap=6,
        optional=True,
    ),
)
TEXT = (
    CheckKind(
        "responses_bounded",
        "H-3",
        FAIL,
        "応答が暴走・反復していない",
        "response の長さ、行と文字列の反復",
        trap=3,
        quality=True,
    ),
    CheckKind(
        "responses_ended",
        "H-3",
        WARN,
        "応答が上限で打ち切られていない",
        "finish_reason",
        trap=3,
        quality=True,
        optional=True,
    ),
    CheckKind("responses_present", "H-3", FAIL, "答えの元になる応答がある", "response が空の行"),
    CheckKind(
        "answers_parsed",
        "H-3",
        INFO,
        "回答を読み取れた",
        "predicted_answer = unknown の数",
        quality=True,
        note="全問なら warn",
    ),
    CheckKind(
        "strict_parse_agrees",
        "H-3",
        WARN,
        "厳密に読み直した回答と一致する",
        "response と predicted_answer",
        trap=8,
        quality=True,
    ),
    CheckKind(
        "letters_vary",
        "H-3",
        WARN,
        "回答が一つの記号に偏っていない",
        "predicted_answer（8 問から）",
        trap=17,
        quality=True,
        optional=True,
    ),
    CheckKind(
        "answers_fast",
        "H-3",
        WARN,
        "1 問あたりの時間が長すぎない",
        "JSON の seconds、なければ実行時間を問題数で割った値",
        trap=3,
        quality=True,
        optional=True,
    ),
)
