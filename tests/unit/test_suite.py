"""The whole suite on planted pipelines: what a person sees, what the record holds, how pytest exits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_tree import wait_until
from steph.base.terms import Severity, StageId, Verdict
from steph.cli import app
from steph.run.journal import record_folders
from suite_runs import CLONE, PAGE, Bench, clean_environment, make_bench, run_pytest, unignore_signals
from typer.testing import CliRunner

H1, H2, H3 = StageId


def _verdicts(bench: Bench) -> list[Verdict]:
    record = bench.record()
    return [record.verdict_of(stage) for stage in StageId]


def test_a_sound_pipeline_is_green_and_reported(tmp_path: Path) -> None:
    """All three stages pass, pytest exits 0, and the report names the rehearsal, the commands and the history."""
    bench = make_bench(tmp_path, described=False)  # as the published pipeline: its script is asked for its flags
    status, output = bench.run()
    assert status == 0, output
    assert _verdicts(bench) == [Verdict.PASS] * 3
    assert [*bench.reports.glob("runs/*/help-1/stdout.log")]
    report = bench.report()
    for expected in ("予行・受入ではない", "タスクH-1", "タスクH-2", "タスクH-3", "StepH", "実行履歴", "--do-train"):
        assert expected in report
    assert "StepH_予行.md" in output


@pytest.mark.parametrize(
    ("knobs", "verdicts"),
    [
        ({"train": "adapter_nan"}, [Verdict.PASS, Verdict.FAIL, Verdict.BLOCKED]),
        ({"evaluate": "swallowed_errors"}, [Verdict.PASS, Verdict.PASS, Verdict.FAIL]),
        ({"evaluate": "dataset_repaired"}, [Verdict.PASS, Verdict.PASS, Verdict.FAIL]),
        ({"evaluate": "prompts_shifted"}, [Verdict.PASS, Verdict.PASS, Verdict.FAIL]),
        ({"evaluate": "daemonised"}, [Verdict.PASS, Verdict.PASS, Verdict.FAIL]),
    ],
)
def test_a_planted_defect_is_never_green(tmp_path: Path, knobs: dict[str, Any], verdicts: list[Verdict]) -> None:
    """A broken artifact behind an exit 0 fails its stage and blocks what is built on it."""
    bench = make_bench(tmp_path, **knobs)
    status, output = bench.run()
    assert status == 1, output
    assert _verdicts(bench) == verdicts


def test_an_evaluation_that_rewrites_the_adapters_configuration_is_named(tmp_path: Path) -> None:
    """The files are hashed before it starts: what it left changed is a finding, in a rehearsal too."""
    bench = make_bench(tmp_path, evaluate="config_saved")
    assert bench.run()[0] == 0
    assert [check.id for check in bench.record().stages[H3].findings if check.severity is Severity.WARN] == [
        "adapter_left_alone"
    ]


def test_an_oom_walks_down_the_ladder_and_passes_with_conditions(tmp_path: Path) -> None:
    """An OOM at 512 tokens goes to 384; the report keeps the failed attempt's traceback and what was given up."""
    bench = make_bench(tmp_path, train="cuda_oom", until_seq=384)
    status, output = bench.run()
    assert status == 0, output
    assert _verdicts(bench) == [Verdict.PASS, Verdict.PASS_DEGRADED, Verdict.PASS]
    h2 = bench.record().stages[H2]
    assert [str(attempt.label) for attempt in h2.attempts] == ["512/b2/4bit", "384/b2/4bit"]
    assert tuple(map(str, h2.given_up)) == ("max-seq-length 512 → 384",)
    assert h2.attempts[0].traceback is not None
    assert "OutOfMemoryError" in h2.attempts[0].traceback
    assert "max-seq-length 512 → 384" in bench.report()


def test_an_oom_on_every_rung_fails_with_every_attempt_kept(tmp_path: Path) -> None:
    """At the bottom of the ladder H-2 fails, H-3 is blocked, and all four attempts are on record."""
    bench = make_bench(tmp_path, train="cuda_oom")
    status, _ = bench.run()
    assert status == 1
    assert _verdicts(bench) == [Verdict.PASS, Verdict.FAIL, Verdict.BLOCKED]
    assert len(bench.record().stages[H2].attempts) == 4


def test_a_rerun_by_test_id_joins_the_record_and_marks_what_was_built_on_it(tmp_path: Path) -> None:
    """After a fix, H-2 alone joins the newest record; H-3's blocked result is stale until it runs again, then green."""
    bench = make_bench(tmp_path, train="adapter_nan")
    assert bench.run()[0] == 1
    bench.plant()
    assert bench.run(H2)[0] == 0
    record = bench.record()
    assert record.verdict_of(H2) is Verdict.PASS
    assert record.stages[H3].stale
    assert bench.run(H3)[0] == 0
    assert len(record_folders(bench.reports / "runs")) == 1
    assert _verdicts(bench) == [Verdict.PASS] * 3
    assert len(bench.record().sessions) == 3


def test_a_single_stage_without_what_it_needs_is_blocked_and_red(tmp_path: Path) -> None:
    """H-3 alone on an empty record does not run and does not pass."""
    bench = make_bench(tmp_path)
    status, _ = bench.run(H3)
    assert status == 1
    assert bench.record().verdict_of(H3) is Verdict.BLOCKED


def test_a_rerun_under_other_facts_stops_and_names_the_difference(tmp_path: Path) -> None:
    """With another profile content H-2 can't join: exit 4, the difference named, no attempt started."""
    bench = make_bench(tmp_path)
    assert bench.run(H1)[0] == 0
    bench.profile.write_text(bench.profile.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    status, output = bench.run(H2)
    assert status == 4
    assert "プロファイルの内容が" in output
    assert "can't join" not in output
    assert H2 not in bench.record().stages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench whose H-1 and H-2 have passed."""
    bench = make_bench(tmp_path_factory.mktemp("trained"))
    assert bench.run(H1, H2)[0] == 0
    return bench


def _weights_changed(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")


def _weights_deleted(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def _scale_changed(adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 4096}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_weights_changed, ("sha256",)),
        (_weights_deleted, ("adapter_model.safetensors", "H-2を再実行")),
        (_scale_changed, ("adapter_config.json",)),
    ],
)
def test_an_adapter_that_is_not_what_h2_wrote_is_not_evaluated(
    trained: Bench, tmp_path: Path, spoil: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    """Other weights, none, or a configuration that scales them otherwise: H-3 is BLOCKED and names file and remedy."""
    adapter = trained.root / "runs/debug_small_model/direct_norag_small_4bit"
    shutil.copytree(adapter, tmp_path / "kept")
    spoil(adapter)
    assert trained.run(H3)[0] == 1
    shutil.copytree(tmp_path / "kept", adapter, dirs_exist_ok=True)
    result = trained.record().stages[H3]
    assert result.verdict is Verdict.BLOCKED
    assert all(words in str(result.explanation) for words in said)


def _waiting_root(bench: Bench, first: str = "pass") -> None:
    """Make the planted training hang after its first line; `first` is a statement that it begins with."""
    script = bench.root / "scripts" / "train_qwen_law_ft.py"
    text = script.read_text(encoding="utf-8")
    lines = ("import signal", first, "print('{\\'loss\\': 2.0}', flush=True)", "time.sleep(600)", "run.train()")
    hang = "".join(f"    {line}\n" for line in lines)
    assert "    run.train()\n" in text
    script.write_text(text.replace("    run.train()\n", hang), encoding="utf-8")


def _training_runs(bench: Bench) -> bool:
    return any(path.stat().st_size for path in bench.reports.glob("runs/*/H-2-1/stdout.log"))


def _alive(bench: Bench) -> bool:
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return any("train_qwen_law_ft.py" in line and str(bench.folder) in line for line in shown.splitlines())


def test_kill_9_of_pytest_leaves_no_process_and_a_record_that_says_what_ran(tmp_path: Path) -> None:
    """After SIGKILL of pytest in H-2 the tree dies, `steph report` shows H-2 CRASHED with its last lines."""
    bench = make_bench(tmp_path)
    _waiting_root(bench)
    process = bench.start()
    wait_until(lambda: _training_runs(bench))
    process.send_signal(signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    wait_until(lambda: not _alive(bench))
    done = CliRunner().invoke(app, ["report", "--reports", str(bench.reports)])
    assert done.exit_code == 0, done.output
    assert _verdicts(bench) == [Verdict.PASS, Verdict.CRASHED, Verdict.NOT_RUN]
    assert "'loss': 2.0" in bench.report()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_pytest_ends_the_child_and_closes_record_and_report(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, kill and a closed terminal end the training's whole tree; record and report say CRASHED, nothing runs."""
    bench = make_bench(tmp_path)
    _waiting_root(bench)
    process = bench.start()
    wait_until(lambda: _training_runs(bench))
    process.send_signal(number)
    status, output = process.end()
    assert status == 2, output
    wait_until(lambda: not _alive(bench))
    assert _verdicts(bench) == [Verdict.PASS, Verdict.CRASHED, Verdict.NOT_RUN]
    assert bench.record().sessions[-1].exit_status == 2
    assert number.name in str(bench.record().stages[H2].explanation)
    assert "実行中" not in bench.report()


def test_a_second_signal_does_not_cut_the_ending_short(tmp_path: Path) -> None:
    """SIGINT and then SIGTERM, as a CI cancels: while a stubborn child is stopped the second one changes nothing."""
    bench = make_bench(tmp_path)
    asked = tmp_path / "asked"
    _waiting_root(bench, f"signal.signal(signal.SIGTERM, lambda *_: open({str(asked)!r}, 'w').close())")
    process = bench.start()
    wait_until(lambda: _training_runs(bench))
    process.send_signal(signal.SIGINT)
    wait_until(asked.exists)
    process.send_signal(signal.SIGTERM)
    status, output = process.end()
    assert status == 2, output
    wait_until(lambda: not _alive(bench))
    assert bench.record().sessions[-1].exit_status == 2
    assert "SIGINT" in str(bench.record().stages[H2].explanation)


def test_a_hanging_training_ends_at_its_deadline(tmp_path: Path) -> None:
    """The attempt's limit ends a hanging child, the verdict is TIMEOUT, H-3 is blocked."""
    bench = make_bench(tmp_path, train_seconds=2)
    _waiting_root(bench)
    assert bench.run()[0] == 1
    assert _verdicts(bench) == [Verdict.PASS, Verdict.TIMEOUT, Verdict.BLOCKED]
    assert not _alive(bench)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("profile", "train.max_steps: 501 は使えない。500 以下にする"),
        ("train_file", "ft_direct_full_norag.jsonl (paths.train_file) がない"),
        ("train_script", "スクリプトがない"),
        ("dataset", "キー samples がない"),
        ("root", "パイプラインのフォルダ"),
        ("description", "steph.toml: paths.train_scrpt: このようなキーはない"),
    ],
)
def test_unusable_inputs_are_one_line_and_nothing_is_written(tmp_path: Path, spoil: str, said: str) -> None:
    """A bad profile, file, script, data set, root or description: exit 4 with one clear line, no record, no report."""
    bench = make_bench(tmp_path)
    options: tuple[str, ...] = ()
    match spoil:
        case "profile":
            text = bench.profile.read_text(encoding="utf-8").replace("max_steps = 10", "max_steps = 501")
            bench.profile.write_text(text, encoding="utf-8")
        case "train_file":
            (bench.root / "results/finetune/ft_direct_full_norag.jsonl").unlink()
        case "train_script":
            (bench.root / "scripts/train_qwen_law_ft.py").unlink()
        case "dataset":
            (bench.root / "datasets/lawqa_jp/data/selection.json").write_text('{"rows": []}')
        case "root":
            options = ("--steph-pipeline-root=/nowhere",)
        case "description":
            (bench.root / "steph.toml").write_text('[paths]\ntrain_scrpt = "x"\n')
    status, output = bench.run(options=options)
    assert status == 4, output
    assert said in output
    assert not bench.reports.exists()


def _pytest(*arguments: str, **environment: str) -> tuple[int, str]:
    return run_pytest("-p", "no:cacheprovider", arguments, **environment)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has an NVIDIA card")  # noqa: PTH110
def test_without_a_gpu_the_stages_alone_end_with_one_line_and_status_4(tmp_path: Path) -> None:
    """On a machine without a card `pytest -m gpu` starts nothing and says how to rehearse."""
    status, output = _pytest("-m", "gpu", str(PAGE), f"--steph-report={tmp_path}")
    assert status == 4
    assert "このマシンに NVIDIA GPU がない" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has an NVIDIA card")  # noqa: PTH110
def test_without_a_gpu_a_mixed_selection_skips_the_stages(tmp_path: Path) -> None:
    """Beside other tests the stages are skipped with the reason."""
    other = tmp_path / "test_other.py"
    other.write_text("def test_other() -> None:\n    pass\n")
    status, output = _pytest(str(PAGE), str(other), "-rs")
    assert status == 0
    assert "1 passed, 3 skipped" in output
    assert "NVIDIA GPU がない" in output


def test_collecting_imports_nothing_heavy() -> None:
    """`--collect-only` of the acceptance tests loads no torch, huggingface_hub, jinja2 or matplotlib."""
    heavy = ["torch", "transformers", "huggingface_hub", "jinja2", "matplotlib", "pynvml", "tokenizers"]
    code = (
        "import sys, json, pytest\n"
        f"status = pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', {str(PAGE)!r}])\n"
        f"print(json.dumps([int(status), [name for name in {heavy!r} if name in sys.modules]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


INTERRUPTS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("module", "records"),
    [
        ("steph.pytest_options", 0),
        ("steph.contract.options", 0),
        ("steph.contract.settings", 0),
        ("pydantic", 0),
        ("steph.conduct.session", 0),
        ("steph.diagnose.engine", 0),
        ("jinja2", 1),
    ],
)
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(tmp_path: Path, module: str, records: int) -> None:
    """From the plugin's first import to the report's: exit status 2, nothing left behind but what had begun."""
    bench = make_bench(tmp_path)
    (tmp_path / "interrupts.py").write_text(INTERRUPTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "interrupts", *bench.arguments()],
        cwd=CLONE,
        env=clean_environment() | {"PYTHONPATH": str(tmp_path), "INTERRUPTED_AT": module},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=unignore_signals,
    )
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert len(record_folders(bench.reports / "runs")) == records


def test_a_stage_that_passes_with_a_warning_has_a_green_test(tmp_path: Path) -> None:
    """An evaluation that asked again after an exception: `answers_generated` warns, and pytest ends with 0."""
    bench = make_bench(tmp_path, evaluate="asked_again")
    status, output = bench.run()
    assert status == 0, output
    h3 = bench.record().stages[H3]
    assert h3.verdict is Verdict.PASS
    assert "answers_generated" in h3.unbroken - h3.held
