"""What several test modules of the pipeline share: questions to learn by heart, command lines, types."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steph.child import supervisor

PIPELINE = Path(__file__).parents[3] / "pipeline"
INJECT = Path(supervisor.__file__).parent / "inject"
LETTERS = "abcd"
TOPICS = ("河川", "森林", "鉱業", "漁業", "道路", "航空", "電波", "温泉")
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]
CallScript = Callable[..., int]
TrainRun = Callable[..., tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Ended:
    """A script that ended: its exit status, what it printed, and when it began."""

    returncode: int
    stdout: str
    stderr: str
    began_unix: float


@dataclass(frozen=True)
class Trained:
    """What the builder, the training and the evaluation of one 4-bit run printed and wrote."""

    rows_file: Path
    adapter: Path
    evaluation: Path
    train_process: Ended
    evaluate_process: Ended


class ScriptHost:
    """The process that forks for each script (fork_host.py), with the witness's hooks or without.

    With them, what a fork saw is moved to the folder that its caller names; `hooks` is what the host itself noted while
    it loaded the libraries.
    """

    def __init__(self, folder: Path, *, watched: bool) -> None:
        self.folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        hooks = {"PYTHONPATH": str(INJECT), "STEPH_PROBE_DIR": str(folder)} if watched else {}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_host.py")],
            env={**own, **quiet, **hooks}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.hooks = folder / f"witness-none-{self.process.pid}.jsonl"

    def run(
        self,
        root: Path,
        script: str,
        *argv: object,
        output: Path,
        errors: Path | None = None,
        facts: Path | None = None,
    ) -> Ended:
        """Run a script of this pipeline and wait for it; without `errors` stderr goes where stdout does."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        began_unix = time.time()
        job = {"root": str(root), "script": script, "argv": list(map(str, argv)), "output": str(output)}
        print(json.dumps(job | {"errors": str(errors or output)}), file=self.process.stdin, flush=True)
        done = json.loads(self.process.stdout.readline())
        if facts is not None:
            facts.mkdir(exist_ok=True)
            name = f"witness-none-{done['pid']}.jsonl"
            (self.folder / name).rename(facts / name)
        printed, said = (path.read_text("utf-8", "replace") if path else "" for path in (output, errors))
        return Ended(done["returncode"], printed, said, began_unix)

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


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
