"""Several processes of one script: how they are started, what is checked of them, and how a dead one is named."""

from __future__ import annotations

import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest
import record_factory as factory
from process_tree import alive_with
from record_factory import render
from steph.base.terms import Cause, EndedBy, Severity, StageId, Verdict
from steph.contract.commands import Place, evaluate_call, launched, train_call
from steph.contract.description import Description
from steph.judge.checks_process import ProcessEvidence, machine_checks
from steph.record.settings import EvalSettings, Launcher, TrainSettings, steps_per_epoch
from steph.record.values import Attempt, Probe
from suite_runs import make_bench

# stands in front of the planted script: rank 1 dies as a process does that the kernel's OOM killer chose
KILLED = """
import os, pathlib, signal, time
print("rank", os.environ["RANK"], flush=True)
begun = pathlib.Path(os.environ["STEPH_PROBE_DIR"])
(begun / os.environ["RANK"]).touch()
while not (begun / "0").exists():
    time.sleep(0.01)
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def ranks(*, cards: int, gib: float = 2.0) -> tuple[Probe, ...]:
    """The launcher's probe and those of two ranks on so many cards."""
    of_ranks = [
        Probe(
            pid=100 + rank,
            rank=rank,
            device_uuid=f"GPU-{rank % cards}",
            peak_allocated_bytes=int((gib + rank) * 2**30),
            peak_reserved_bytes=int((gib + rank + 0.5) * 2**30),
            peak_rss_bytes=2**30,
        )
        for rank in range(2)
    ]
    return (Probe(pid=99), *of_ranks)


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ("none", "python scripts/train_qwen_law_ft.py --model-name"),
        (
            "torchrun",
            "python -m torch.distributed.run --standalone --nproc_per_node 2 scripts/train_qwen_law_ft.py --mod",
        ),
        (
            "accelerate",
            "python -m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes 2 --num_",
        ),
    ],
)
def test_the_launcher_is_the_pipelines_own(launcher: Launcher, said: str) -> None:
    """torchrun and accelerate run as modules of its interpreter, before the plain command."""
    settings = TrainSettings(launcher=launcher, num_processes=1 if launcher == "none" else 2)
    place = Place(Path(), "python", on_gpu=True, train_file="rows.jsonl")
    argv = train_call(Description(), place, "m", settings, cap_steps=False).argv
    assert " ".join(argv).startswith(said)
    plain = train_call(Description(), place, "m", TrainSettings(), cap_steps=False).argv
    assert argv[-len(plain) + 1 :] == plain[1:]


def test_one_process_under_accelerate_is_no_multi_gpu_run() -> None:
    """accelerate refuses --multi_gpu for fewer than two processes."""
    assert "--multi_gpu" not in launched("python", "accelerate", 1)
    place = Place(Path(), "python", on_gpu=True, dataset="d.json")
    argv = evaluate_call(Description(), place, "m", EvalSettings(launcher="accelerate"), adapter=None).argv
    assert argv[:3] == ("python", "-m", "accelerate.commands.launch")


def test_ranks_share_an_epochs_steps() -> None:
    """Two ranks of batch 2 take 140 rows in half the steps, and a step has the rows of both."""
    asked = TrainSettings(batch_size=2, gradient_accumulation_steps=2, num_processes=2, launcher="torchrun")
    assert (steps_per_epoch(140, asked), asked.effective_batch_size) == (18, 8)


def test_every_rank_must_have_run_on_a_gpu_of_its_own() -> None:
    """A rank that is missing, or two on one card, fail the check; without any probe nothing was measured.

    One process without a card is asked only whether it left another behind.
    """
    printed = "{'train_runtime': '1', 'train_loss': '2'}\n"

    def holds(probes: tuple[Probe, ...], *, on_gpu: bool = True) -> bool | None:
        return machine_checks(ProcessEvidence(2, probes, on_gpu=on_gpu), printed)[0].holds

    assert holds(ranks(cards=2)) is True
    assert holds(ranks(cards=1)) is False
    assert holds(ranks(cards=1), on_gpu=False) is True
    assert holds(ranks(cards=2)[:2]) is False
    assert holds(ranks(cards=2)[:1]) is None
    (left,) = machine_checks(ProcessEvidence(1, (), on_gpu=False), "")
    assert (left.id, left.holds) == ("no_process_left", True)


def test_results_of_every_rank_are_a_finding() -> None:
    """A script whose ranks each print the results is told from one where the first alone does.

    A log of another format has no such line, and nothing is said against it; a copy in JSON is no second process.
    """
    for text in ("{'train_runtime': '1'}\n", "EVALUATION RESULTS\n"):
        asked = ProcessEvidence(2, ranks(cards=2))
        once, twice = (machine_checks(asked, text * count)[1].holds for count in (1, 2))
        assert (once, twice) == (True, False)
    for text, holds in (
        ("step 5 | loss: 1.25\ndone in 3 s\n", None),
        ("{'train_runtime': '1'}\n{\"train_runtime\": 1}\n", True),
    ):
        found = machine_checks(ProcessEvidence(2, ranks(cards=2)), text)[1]
        assert (found.holds, found.severity is Severity.WARN) == (holds, holds is not None)


def two_rank_attempt(**changes: object) -> Attempt:
    """H-2's attempt of a green acceptance, in two processes."""
    attempt = factory.green_acceptance().stages[StageId.H2].attempts[-1]
    settings = TrainSettings(launcher="accelerate", num_processes=2)
    return attempt.model_copy(update={"settings": settings, "probes": ranks(cards=2), **changes})


def test_the_report_shows_every_ranks_peak() -> None:
    """One row a rank: its card, torch's peaks, the card's peak; no table for one process."""
    record = factory.green_acceptance()
    two_ranks = record.stages[StageId.H2].changed(attempts=(two_rank_attempt(),))
    text = render(record.changed(stages=record.stages | {StageId.H2: two_ranks}))
    assert "| 0 | `GPU-0` | 2.00 / 2.50 GiB |" in text
    assert "| 1 | `GPU-1` | 3.00 / 3.50 GiB |" in text
    assert "| torch の確保 / 予約 |" in text
    assert "| torch の確保 / 予約 |" not in render(record)


@pytest.mark.skipif(find_spec("torch") is None, reason="torchrun comes with torch")
def test_a_killed_rank_ends_the_stage_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the real torchrun: H-2 fails before its limit with rank 1 and its signal, and no process is left."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("STEPH_TEST_MARK", mark)
    bench = make_bench(tmp_path, train_seconds=250)
    profile = bench.profile.read_text(encoding="utf-8")
    two = '[train]\nlauncher = "torchrun"\nnum_processes = 2\n'
    bench.profile.write_text(profile.replace("[train]\n", two), encoding="utf-8")
    (bench.root / "scripts/train_qwen_law_ft.py").write_text(KILLED, encoding="utf-8")
    (bench.root / "steph.toml").write_text('optional_flags = ["--max-steps-override"]\n', encoding="utf-8")
    status, output = bench.run(StageId.H1, StageId.H2)
    assert status == 1, output
    record = bench.record()
    attempt = record.stages[StageId.H2].attempts[-1]
    assert record.verdict_of(StageId.H2) is Verdict.FAIL
    assert "rank 1" in str(record.stages[StageId.H2].explanation)
    assert attempt.diagnosis is not None
    assert (attempt.diagnosis.cause, attempt.diagnosis.rank) == (Cause.HOST_OOM, 1)
    assert attempt.diagnosis.evidence[0].endswith("ended by signal 9")
    assert attempt.ended_by is EndedBy.EXIT
    assert alive_with(mark) == []
    assert "rank 1 (pid" in render(record)
