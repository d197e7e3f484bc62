"""The scripts' whole way: what they train they know, what they print and write is what others read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_run import TOPICS, CallScript, Trained, evaluation_flags, training_flags


def metrics(adapter: Path) -> dict[str, Any]:
    """The training's own account."""
    content: dict[str, Any] = json.loads((adapter / "train_metrics.json").read_text(encoding="utf-8"))
    return content


def evaluation(path: Path) -> dict[str, Any]:
    """The evaluation's file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_eight_rows_are_learned_by_heart_in_4_bits(trained: Trained) -> None:
    """The loss goes to nearly zero and every trained question is answered right, through two processes and a file."""
    assert trained.train_process.returncode == 0, trained.train_process.stderr
    assert trained.evaluate_process.returncode == 0, trained.evaluate_process.stderr
    losses = metrics(trained.adapter)["losses"]
    assert losses[0] > 3
    assert max(losses[-4:]) < 0.2
    assert evaluation(trained.evaluation)["summary"] == {"accuracy": 1.0, "correct_count": 8, "total_count": 8}


def test_the_model_learned_to_stop(trained: Trained) -> None:
    """Every answer is its letter and the end of the turn, long before the limit."""
    rows = evaluation(trained.evaluation)["results"]
    assert {(row["finish_reason"], row["new_tokens"]) for row in rows} == {("stop", 1)}


def test_what_is_asked_is_what_was_trained(trained: Trained) -> None:
    """The evaluation's prompts are the training rows' inputs to the letter."""
    trained_inputs = [json.loads(line)["input"] for line in trained.rows_file.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in evaluation(trained.evaluation)["results"]] == trained_inputs


def test_training_prints_the_trainers_lines_only(trained: Trained) -> None:
    """stdout is one dict a line, the last with the final metrics; the plan and the progress bar are on stderr."""
    lines = trained.train_process.stdout.splitlines()
    assert all(re.fullmatch(r"\{'.*\}", line) for line in lines)
    assert "'loss'" in lines[0]
    assert "'train_loss'" in lines[-1]
    assert "Gradient checkpointing: off" in trained.train_process.stderr


def test_training_writes_every_file(trained: Trained) -> None:
    """Adapter, tokenizer, arguments, card and metrics stand in the folder, the checkpoint has its state; no scraps."""
    names = {path.name for path in trained.adapter.iterdir()}
    steps = metrics(trained.adapter)["steps"]
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "training_args.bin", "README.md"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "train_metrics.json", f"checkpoint-{steps}"}
    assert not any(name.startswith(".") for name in names)
    checkpoint = trained.adapter / f"checkpoint-{steps}"
    files = {path.name for path in checkpoint.iterdir()}
    assert files >= {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry][-1] == steps


def test_the_metrics_tell_what_the_run_cost(trained: Trained) -> None:
    """Losses, seconds and tokens of each step, without padding; the decision with its reason; settings and versions."""
    told = metrics(trained.adapter)
    assert told["steps"] == len(told["losses"]) == len(told["step_seconds"]) == len(told["step_tokens"]) == 40
    assert told["epochs"] == 20
    assert told["rows"] == len(TOPICS)
    assert told["tokens_per_second"] == pytest.approx(sum(told["step_tokens"][1:]) / sum(told["step_seconds"][1:]))
    assert told["step_plan"]["gradient_checkpointing"] is False
    assert "no GPU memory" in told["step_plan"]["reason"]
    assert told["settings"]["use_4bit"] is True
    assert {"torch", "transformers", "peft"} <= set(told["versions"])


def test_the_evaluation_prints_its_lines_in_order(trained: Trained, tiny_model: Path) -> None:
    """Every line of the interface, the true model on both model lines."""
    folder = trained.evaluation
    assert trained.evaluate_process.stdout.splitlines()[1:] == [
        "Total samples to evaluate: 8",
        "",
        "Initializing RAG pipeline...",
        "RAG Mode: Disabled (LLM only)",
        "Retriever Type: bm25",
        f"LLM Model: {tiny_model}",
        "LLM Backend: hf",
        f"  HF Model: {tiny_model}",
        f"  LoRA Path: {trained.adapter}",
        "Few-shot Prompt: Disabled",
        "Chain-of-Thought: Disabled",
        "Reranker: Disabled",
        "Ensemble: Disabled",
        "Top-K: 1",
        "",
        "=" * 50,
        "EVALUATION RESULTS",
        "=" * 50,
        "Total Samples: 8",
        "Correct: 8",
        "Incorrect: 0",
        "Accuracy: 100.00%",
        "",
        "Error Analysis:",
        "  Timeout Errors: 0",
        "  Parse Errors (unknown): 0",
        "  Other Errors: 0",
        "=" * 50,
        "",
        f"Detailed results saved to: {folder}",
    ]


def test_the_evaluations_file_has_every_key(trained: Trained, tiny_model: Path) -> None:
    """No key of the interface is missing, and the model, backend and adapter are named truthfully."""
    content = evaluation(trained.evaluation)
    config, row = content["config"], content["results"][0]
    assert config.keys() >= {"rag_enabled", "retriever_type", "llm_model", "few_shot_enabled", "cot_enabled"}
    assert config.keys() >= {"reranker_enabled", "reranker_model", "rerank_top_n", "ensemble_runs", "top_k"}
    assert config["total_samples"] == 8
    assert (config["llm_model"], config["hf_model_name"], config["backend"]) == (str(tiny_model), str(tiny_model), "hf")
    assert (config["lora_path"], config["load_in_4bit"]) == (str(trained.adapter), True)
    assert row.keys() >= {"question", "choices", "correct_answer", "predicted_answer", "is_correct", "response"}
    assert row.keys() >= {"retrieved_docs_count", "file_name", "references", "seconds", "new_tokens", "finish_reason"}


def test_eight_rows_are_learned_in_16_bits_too(
    tiny_model: Path, rows_file: Path, questions_file: Path, tmp_path: Path, call_script: CallScript
) -> None:
    """Without 4 bits the same scripts reach the same: nearly zero loss, every trained question right."""
    adapter, output = tmp_path / "adapter", tmp_path / "evaluation.json"
    assert call_script("train_qwen_law_ft", *training_flags(tiny_model, rows_file, adapter)) == 0
    flags = evaluation_flags(tiny_model, adapter, questions_file, output)
    assert call_script("evaluate_multiple_choice", *flags) == 0
    assert metrics(adapter)["losses"][-1] < 0.05
    assert evaluation(output)["summary"]["accuracy"] == 1.0
    assert evaluation(output)["config"]["load_in_4bit"] is False
