"""Runs the acceptance tests as a person does, in a process of their own, on a planted pipeline root without torch."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from planted import ROOT, TRAIN_FILE, TRAIN_SCRIPT, plant, run_script
from steph.base.terms import AnyStage
from steph.record.values import Record
from steph.run.journal import read_record, record_folders
from steph.tell.attempts import TEST_IDS

CLONE = Path(__file__).parents[2]
PAGE = CLONE / "tests" / "acceptance" / "test_steph.py"
PROFILE = """
[machine]
title = "planted"
device = "cpu"
[model]
candidates = ["{model}"]
preferred = 1
min_parameters = 0
[train]
max_steps = 10
[[ladder]]
max_seq_length = 384
[[ladder]]
max_seq_length = 256
[[ladder]]
use_4bit = false
[limits]
train_attempt_seconds = {train_seconds}
evaluate_attempt_seconds = 250
terminate_grace_seconds = 1
"""


@dataclass(frozen=True)
class Bench:
    """A planted pipeline root with a model folder, a profile and a place for reports."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "pipeline"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def profile(self) -> Path:
        return self.folder / "planted.toml"

    def plant(self, **knobs: object) -> None:
        """Change what is planted in the root."""
        (self.root / "defect.json").write_text(json.dumps(knobs), encoding="utf-8")

    def arguments(self, *stages: AnyStage) -> list[str]:
        """The pytest arguments that run these stages here; none named: all three."""
        tests = [str(CLONE / TEST_IDS[stage]) for stage in stages] or [str(PAGE)]
        places = {"profile": self.profile, "pipeline-root": self.root, "report": self.reports}
        options = [f"--steph-{name}={value}" for name, value in places.items()]
        return ["-m", "gpu", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options, *tests]

    def start(self, *stages: AnyStage, options: tuple[str, ...] = ()) -> Started:
        """Start pytest on these stages and return at once."""
        return start_pytest(self.arguments(*stages), options)

    def run(self, *stages: AnyStage, options: tuple[str, ...] = ()) -> tuple[int, str]:
        """Run pytest on these stages to its end: exit status and output."""
        return run_pytest(self.arguments(*stages), *options)

    def record(self) -> Record:
        """The newest record."""
        return read_record(record_folders(self.reports / "runs")[-1])

    def report(self) -> str:
        """The report's Markdown."""
        (path,) = self.reports.glob("*.md")
        return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Started:
    """A pytest that runs in a process of its own, to be signalled or killed."""

    pid: int
    output: Path

    def send_signal(self, number: signal.Signals) -> None:
        """To this process alone."""
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Wait for it, once: its exit status, -9 after a SIGKILL, and what it printed."""
        status = int(_asked({"wait": self.pid}))
        printed = self.output.read_text(encoding="utf-8", errors="replace")
        self.output.unlink()
        return status, printed


@cache
def _host() -> subprocess.Popen[str]:
    """The process that forks for each run; it ends with this one, which holds its stdin."""
    command = [sys.executable, str(Path(__file__).with_name("pytest_host.py"))]
    path = f"{CLONE / 'plugins'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = clean_environment() | {"PYTHONPATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=CLONE, env=environment, stdin=pipe, stdout=pipe, text=True, preexec_fn=unignore_signals
    )


def _asked(job: dict[str, object]) -> str:
    host = _host()
    assert host.stdin is not None
    assert host.stdout is not None
    print(json.dumps(job), file=host.stdin, flush=True)
    return host.stdout.readline()


def start_pytest(*words: str | Iterable[str], **environment: str) -> Started:
    """Start pytest here in a process of its own, with this environment besides."""
    argv = [part for word in words for part in ([word] if isinstance(word, str) else word)]
    handle, output = tempfile.mkstemp()
    os.close(handle)
    umask = os.umask(0)
    os.umask(umask)
    job = {"argv": argv, "folder": str(CLONE), "umask": umask, "output": output}
    return Started(int(_asked(job | {"environment": clean_environment() | environment})), Path(output))


def run_pytest(*words: str | Iterable[str], **environment: str) -> tuple[int, str]:
    """Run pytest here in a process of its own, with this environment besides, to its end: exit status and output."""
    return start_pytest(*words, **environment).end()


def make_bench(folder: Path, *, train_seconds: float = 250, described: bool = True, **knobs: object) -> Bench:
    """A bench in `folder`, with the given defects planted.

    `described`: a steph.toml says which flags the training script takes. A run asks its `--help` else, which takes a
    fifth of it.
    """
    bench = Bench(folder)
    plant(bench.root, **knobs)
    if described:
        (bench.root / "steph.toml").write_text(f"optional_flags = {json.dumps(_flags())}\n", encoding="utf-8")
    model = make_model(folder / "model")
    bench.profile.write_text(PROFILE.format(model=model, train_seconds=train_seconds), encoding="utf-8")
    return bench


@cache
def _flags() -> list[str]:
    """Those that the planted training script takes, as it says itself."""
    return re.findall(r"--[\w-]+", run_script(ROOT, TRAIN_SCRIPT, "--help").stdout)


def make_model(folder: Path) -> Path:
    """The smallest folder that counts as a whole model: config, tokenizer and one safetensors file."""
    folder.mkdir()
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "BF16", "shape": [8, 4], "data_offsets": [0, 64]}})
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(64))
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def lengthen_rows(root: Path, tokens: int, *, longer: int = 0) -> None:
    """Pad every training row to `tokens` tokens with its answer at the end, `longer` rows of them to 600."""
    path = root / TRAIN_FILE
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        wanted = 600 if number < longer else tokens
        row["input"] = " ".join(["語"] * (wanted - 2))  # a line break and the answer's one letter follow
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def unignore_signals() -> None:
    """What `nohup` and a shell's background jobs ignore must reach a pytest that is to be signalled."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def clean_environment() -> dict[str, str]:
    """This environment without what a surrounding run may have set; bytecode is kept, as on a person's machine."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("STEPH_", "PYTEST_")) and key != "PYTHONDONTWRITEBYTECODE"
    }
