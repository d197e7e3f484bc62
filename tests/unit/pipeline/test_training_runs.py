"""Training runs of a few steps: where they end, what they refuse, how they go on."""

import json
from pathlib import Path
from typing import Any

import pytest
from app.core.lawqa import load_questions
from app.finetune.rows import finetune_rows
from small_run import CallScript, TrainRun

SHORT = ("--do-train", "--batch-size", 2, "--gradient-accumulation-steps", 2, "--logging-steps", 1)


@pytest.fixture
def train(tiny_model: Path, rows_file: Path, tmp_path: Path, call_script: CallScript) -> TrainRun:
    """Train on the eight rows (two steps an epoch) into a folder of this test's; gives exit code and metrics."""

    def run(*flags: object, output: str = "adapter", rows: Path = rows_file) -> tuple[int, dict[str, Any]]:
        folder = tmp_path / output
        base = ("--model-name", tiny_model, "--train-file", rows, "--output-dir", folder)
        code = call_script("train_qwen_law_ft", *base, *SHORT, *flags)
        metrics = folder / "train_metrics.json"
        return code, json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}

    return run


@pytest.mark.parametrize(("cap", "steps"), [(1, 1), (50, 4)])
def test_the_step_cap_shortens_but_never_lengthens(train: TrainRun, cap: int, steps: int) -> None:
    """Two epochs are four steps: a cap of one ends earlier, a cap of fifty does not add epochs."""
    code, metrics = train("--num-epochs", 2, "--max-steps-override", cap)
    assert code == 0
    assert metrics["steps"] == steps
    assert metrics["epochs"] == steps / 2


def test_fused_steps_train_the_same_adapter(train: TrainRun) -> None:
    """Through the script, fused micro-batches give each step the loss that separate ones give it."""
    flags = ("--num-epochs", 1, "--lora-dropout", 0, "--bnb-4bit-compute-dtype", "float32")
    _, apart = train(*flags, "--fuse-accumulation", "off", output="apart")
    _, fused = train(*flags, "--fuse-accumulation", "on", output="fused")
    assert (apart["step_plan"]["fused_micro_batches"], fused["step_plan"]["fused_micro_batches"]) == (1, 2)
    assert fused["losses"] == pytest.approx(apart["losses"], rel=1e-4)
    assert fused["step_tokens"] == apart["step_tokens"]


def test_tokens_are_counted_without_padding(train: TrainRun, tiny_model: Path, tmp_path: Path) -> None:
    """Over one epoch the steps' tokens add up to the rows' own lengths, which differ."""
    from app.llm.chat_tokens import load_tokenizer
    from app.training.rows import encode_rows, read_rows

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"input": "質問" * count, "output": "a"}) for count in (1, 9, 4, 30, 7)))
    rows = read_rows(file, "auto")
    encoded = encode_rows(load_tokenizer(str(tiny_model)), rows, max_seq_length=1024, loss_on_output_only=True)
    lengths = [len(row["input_ids"]) for row in encoded.rows]
    _, metrics = train("--num-epochs", 1, rows=file)
    assert len(set(lengths)) > 1
    assert sum(metrics["step_tokens"]) == sum(lengths)


def test_loss_on_output_only_changes_the_loss(train: TrainRun) -> None:
    """The flag works: with the prompt among the labels the first step's loss is another one."""
    _, output_only = train("--max-steps-override", 1, output="output_only")
    _, everything = train("--max-steps-override", 1, "--no-loss-on-output-only", output="everything")
    assert abs(output_only["losses"][0] - everything["losses"][0]) > 0.1


@pytest.mark.parametrize(("asked", "of"), [("none", ()), ("lora", ("q",)), ("all", ("q", "k", "v"))])
def test_lora_bias_trains_the_biases_it_names(train: TrainRun, tmp_path: Path, asked: str, of: tuple[str, ...]) -> None:
    """Those of the layers with an adapter, or all that the model has; each choice of the flag trains."""
    from safetensors import safe_open

    code, _ = train("--max-steps-override", 1, "--target-modules", "q_proj,down_proj", "--lora-bias", asked)
    assert code == 0
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        biased = {name.split("_proj")[0][-1] for name in adapter.keys() if name.endswith("bias")}  # noqa: SIM118
    assert biased == set(of)


def test_recompute_is_as_asked(train: TrainRun) -> None:
    """Gradient checkpointing on gives the same first loss and says that it was asked for."""
    flags = ("--max-steps-override", 1, "--lora-dropout", 0)
    _, kept = train(*flags, output="kept")
    asked = ("--gradient-checkpointing", "on", "--fuse-accumulation", "off", "--host-memory", "off")
    _, recomputed = train(*flags, *asked, output="recomputed")
    assert recomputed["step_plan"]["gradient_checkpointing"] is True
    assert recomputed["step_plan"]["reason"] == "as the flags say"
    assert recomputed["losses"] == pytest.approx(kept["losses"], rel=1e-3)


def test_long_answers_and_host_memory_are_told(
    train: TrainRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A long answer trains alike wherever what waits for the backward is."""
    rows = tmp_path / "long.jsonl"
    rows.write_text("\n".join(json.dumps({"input": f"質問{n}", "output": "答" * (60 + n)}) for n in range(8)))
    flags = ("--max-steps-override", 1, "--lora-dropout", 0, "--gradient-checkpointing", "on")
    _, on_card = train(*flags, rows=rows, output="on_card")
    capfd.readouterr()
    _, on_host = train(*flags, "--host-memory", "all", rows=rows, output="on_host")
    assert "in host memory: embeddings, checkpoints (" in capfd.readouterr().err
    found = [(run["loss_chunk_positions"], run["step_plan"]["host_memory"]) for run in (on_card, on_host)]
    assert found == [(128, "off"), (128, "all")]
    assert on_host["losses"] == on_card["losses"]


def test_a_loss_that_is_not_finite_ends_the_run(
    train: TrainRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that blows the weights up is one error line and exit 1; no adapter, no checkpoint."""
    code, metrics = train("--learning-rate", "1e30", "--weight-decay", "1e9", "--num-epochs", 3)
    assert code == 1
    assert "Error: the training loss is nan at step 3" in capfd.readouterr().err
    assert metrics == {}
    assert list((tmp_path / "adapter").iterdir()) == []


def test_a_run_goes_on_from_its_checkpoint(train: TrainRun, tmp_path: Path) -> None:
    """Two epochs in one go and two epochs resumed after the first end on the same losses."""
    flags = ("--num-epochs", 2, "--lora-dropout", 0)
    _, whole = train(*flags, "--save-steps", 2, output="whole")
    resumed_code, resumed = train(*flags, "--resume-from-checkpoint", tmp_path / "whole/checkpoint-2", output="resumed")
    assert resumed_code == 0
    assert resumed["steps"] == 2
    assert resumed["losses"] == pytest.approx(whole["losses"][2:], rel=1e-3)


def test_reasoned_rows_train_as_well(train: TrainRun, questions_file: Path, tmp_path: Path) -> None:
    """Rows whose answer is a text and a letter run through the same script."""
    rows = tmp_path / "cot.jsonl"
    questions = load_questions(questions_file, "--data")
    made = finetune_rows(questions, "cot", few_shot=False, holdout=0, source=questions_file, source_sha256="0")
    rows.write_text("\n".join(json.dumps(row) for row in made), encoding="utf-8")
    code, metrics = train("--max-steps-override", 1, "--train-mode", "cot", rows=rows)
    assert code == 0
    assert metrics["shortened_rows"] == 0


def test_settings_reach_the_trainer(train: TrainRun, tmp_path: Path) -> None:
    """Seed and optimizer are used as given: another optimizer trains other weights from the same first loss."""
    flags = ("--num-epochs", 1, "--lora-dropout", 0, "--warmup-ratio", 0)
    _, adam = train(*flags, output="adam")
    _, sgd = train(*flags, "--optim", "sgd", output="sgd")
    _, other_seed = train(*flags, "--seed", 7, output="seed")
    assert sgd["losses"][0] == adam["losses"][0]
    assert sgd["losses"][1] != adam["losses"][1]
    assert other_seed["losses"][0] != adam["losses"][0]
