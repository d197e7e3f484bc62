"""What the scripts say and return when an input is missing or broken; none of these reaches a large import."""

import json
from pathlib import Path

import pytest
from small_run import RunScript, question

ROW = json.dumps({"input": "q", "output": "a"})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, rows, questions and an adapter that are whole as far as the checks before loading look."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text(ROW)
    (tmp_path / "questions.json").write_text(json.dumps({"samples": [question(0)]}))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Other"}')
    return tmp_path


def train_flags(place: Path, **changes: object) -> list[object]:
    """A training command on `place`'s files, some values replaced."""
    flags = {
        "--model-name": place / "model",
        "--train-file": place / "rows.jsonl",
        "--output-dir": place / "out" / "adapter",
        **changes,
    }
    return [item for flag, value in flags.items() for item in (flag, value)]


def evaluate_flags(place: Path, **changes: object) -> list[object]:
    """An evaluation command on `place`'s files, some values replaced."""
    flags = {
        "--data": place / "questions.json",
        "--output": place / "out" / "evaluation.json",
        "--llm-backend": "hf",
        "--hf-model-name": place / "model",
        **changes,
    }
    return ["--no-rag", *(item for flag, value in flags.items() for item in (flag, value))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--train-file": "missing.jsonl"}, ["--train-file missing.jsonl", "build_finetune_dataset.py"]),
        ({"--model-name": "./missing"}, ["--model-name ./missing", "Hub id"]),
        ({"--model-name": "scripts"}, ["--model-name scripts", "config.json"]),
        ({"--output-dir": "steph.toml"}, ["--output-dir steph.toml", "name another path"]),
        ({"--resume-from-checkpoint": "app"}, ["--resume-from-checkpoint: app", "trainer_state.json"]),
        ({"--train-mode": "cot", "--train-file": "cot"}, ["meta.mode 'direct'", "--train-mode is cot"]),
    ],
)
def test_training_names_a_bad_input(
    run_script: RunScript, place: Path, changes: dict[str, str], words: list[str]
) -> None:
    """One error line, exit 1, no traceback, no output folder."""
    if changes.get("--train-file") == "cot":
        (place / "rows.jsonl").write_text(json.dumps({"input": "q", "output": "a", "meta": {"mode": "direct"}}))
        changes = {"--train-mode": "cot"}
    done = run_script("train_qwen_law_ft", "--do-train", *train_flags(place, **changes))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--data": "missing.json"}, ["--data missing.json", "datasets/lawqa_jp"]),
        ({"--data": "steph.toml"}, ["steph.toml is not valid JSON"]),
        ({"--hf-lora-path": "missing"}, ["--hf-lora-path missing", "train_qwen_law_ft.py"]),
        ({"--hf-lora-path": "app"}, ["has no adapter_config.json", "train_qwen_law_ft.py"]),
        (
            {"--hf-lora-path": "ADAPTER"},
            ["'base_model_name_or_path' is 'Qwen/Other'", "an adapter only works on the base"],
        ),
        ({"--output": "app"}, ["--output app is a folder"]),
        ({"--llm-backend": "ollama"}, ["--llm-backend ollama is not part of this pipeline"]),
    ],
)
def test_evaluation_names_a_bad_input(
    run_script: RunScript, place: Path, changes: dict[str, str], words: list[str]
) -> None:
    """One error line, exit 1, no traceback, no output file."""
    changes = {flag: str(place / "adapter") if value == "ADAPTER" else value for flag, value in changes.items()}
    done = run_script("evaluate_multiple_choice", *evaluate_flags(place, **changes))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
    assert not (place / "out").exists()


def test_a_question_set_without_samples_is_named(run_script: RunScript, place: Path) -> None:
    """The key that is missing stands in the error line, for evaluation and builder alike."""
    (place / "questions.json").write_text('{"rows": []}')
    evaluated = run_script("evaluate_multiple_choice", *evaluate_flags(place))
    built = run_script(
        *("build_finetune_dataset", "--lawqa-path", place / "questions.json", "--output-path", place / "rows"),
        "--no-rag",
    )
    for done in (evaluated, built):
        assert done.returncode == 1
        assert "no list under the key 'samples'" in done.stderr
    assert not (place / "rows").exists()


def test_retrieval_without_an_index_is_refused(run_script: RunScript, place: Path) -> None:
    """Without --no-rag evaluation and builder name the index that is missing and the command that builds it."""
    index = ("--index-dir", place / "index")
    evaluated = run_script("evaluate_multiple_choice", *evaluate_flags(place)[1:], *index)
    rows = ("--lawqa-path", place / "questions.json", "--output-path", place / "rows")
    built = run_script("build_finetune_dataset", *rows, *index)
    for done in (evaluated, built):
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: --index-dir {place / 'index'} holds no index")
        assert "scripts/build_index.py --data" in line


@pytest.mark.parametrize("flags", [["--samples", 0], ["--samples", -1], ["--batch-size", 0], ["--ensemble", 0]])
def test_counts_below_one_are_bad_arguments(run_script: RunScript, place: Path, flags: list[object]) -> None:
    """`--samples 0` must not mean all of them: exit 2."""
    done = run_script("evaluate_multiple_choice", *evaluate_flags(place), *flags)
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr


def test_contradicting_and_missing_flags_are_bad_arguments(run_script: RunScript, place: Path) -> None:
    """Both half precisions at once, no model name, no steps: exit 2."""
    both = run_script("train_qwen_law_ft", *train_flags(place), "--fp16", "--bf16")
    no_steps = run_script("train_qwen_law_ft", *train_flags(place), "--max-steps-override", 0)
    nameless = run_script("evaluate_multiple_choice", "--llm-backend", "hf", "--no-rag")
    assert [both.returncode, no_steps.returncode, nameless.returncode] == [2, 2, 2]


def test_holding_everything_out_is_refused(run_script: RunScript, place: Path) -> None:
    """A holdout as long as the question set leaves nothing to train on."""
    done = run_script(
        *("build_finetune_dataset", "--lawqa-path", place / "questions.json", "--output-path", place / "rows"),
        *("--no-rag", "--holdout", 1),
    )
    assert done.returncode == 1
    assert "--holdout 1 leaves no row" in done.stderr


def test_without_do_train_the_inputs_are_checked_without_the_large_imports(
    run_script: RunScript, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks and help need neither torch nor transformers, and write nothing."""
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    checked = run_script("train_qwen_law_ft", *train_flags(place))
    helped = run_script("train_qwen_law_ft", "--help")
    assert (checked.returncode, helped.returncode) == (0, 0)
    assert checked.stdout == "1 行の入力を確認しました。--do-train がないため、学習は行いません。\n"
    assert "--max-steps-override" in helped.stdout
    assert not (place / "out").exists()
