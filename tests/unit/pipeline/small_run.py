"""What several test modules of the pipeline share: questions to learn by heart, command lines, types."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIPELINE = Path(__file__).parents[3] / "pipeline"
LETTERS = "abcd"
TOPICS = ("河川", "森林", "鉱業", "漁業", "道路", "航空", "電波", "温泉")
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]
CallScript = Callable[..., int]
TrainRun = Callable[..., tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Trained:
    """What the builder, the training and the evaluation of one 4-bit run printed and wrote."""

    rows_file: Path
    adapter: Path
    evaluation: Path
    train_process: subprocess.CompletedProcess[str]
    evaluate_process: subprocess.CompletedProcess[str]


def question(number: int) -> dict[str, object]:
    """One made-up question in the question set's schema; its answer has to be learned by heart from its topic."""
    topic = TOPICS[number]
    return {
        "ファイル名": f"架空法_問題番号{number}",
        "コンテキスト": f"## 架空法\n### 第{number}条\n#### 第1項\n{topic}は、別に定めるところによる。",
        "指示": "<following_context>以下の問題文に対する回答を、選択肢ａ、ｂ、ｃ、ｄの中から１つ選んでください。",
        "問題文": f"{topic}と{topic}について",
        "選択肢": f"a {topic}届出\nb {topic}許可\nc {topic}認可\nd {topic}登録",
        "output": LETTERS[(number * 3) % 4],
        "references": ["https://example.com/law"],
    }


def training_flags(model: Path, rows: Path, output: Path) -> list[object]:
    """Enough steps to know eight answers by heart."""
    return [
        *("--model-name", model, "--train-file", rows, "--output-dir", output, "--do-train"),
        *("--num-epochs", 20, "--batch-size", 4, "--gradient-accumulation-steps", 1, "--learning-rate", "1e-2"),
        *("--target-modules", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "--lora-dropout", "0.0"),
        *("--logging-steps", 5, "--max-seq-length", 512),
    ]


def evaluation_flags(model: Path, adapter: Path, questions: Path, output: Path) -> list[object]:
    """Ask the base model with its adapter."""
    return [
        *("--data", questions, "--output", output, "--no-rag", "--top-k", 1, "--no-few-shot"),
        *("--llm-backend", "hf", "--hf-model-name", model, "--hf-lora-path", adapter),
    ]
