"""A tiny Qwen2 with a tokenizer of its own, questions to learn by heart, and one run of the three scripts over them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import (
    CHATML,
    PIPELINE,
    TOPICS,
    CallScript,
    RunScript,
    Trained,
    evaluation_flags,
    question,
    training_flags,
)

sys.path.append(str(PIPELINE))
# the pipeline's folder datasets/ would pass for the package of that name
sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run on the CPU everywhere; large imports come after this."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question set of eight questions."""
    path = tmp_path_factory.mktemp("questions") / "selection.json"
    samples = [question(number) for number in range(len(TOPICS))]
    path.write_text(json.dumps({"samples": samples}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(questions_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 (64 hidden, 2 layers), its head wide enough to be certain of a token, and its BPE tokenizer."""
    import torch
    from app.core.lawqa import load_questions
    from app.core.prompts import build_prompt
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny_model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [
        build_prompt(question, "direct", few_shot=False) for question in load_questions(questions_file, "--data")
    ]
    bpe.train_from_iterator(prompts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.2,
        )
    )
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_script() -> RunScript:
    """Run a script as a user would: from the pipeline's folder, as its own process, one thread."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"scripts/{name}.py", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, cwd=PIPELINE, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def call_script(monkeypatch: pytest.MonkeyPatch) -> CallScript:
    """Run a script's `main` inside this process, which has the large imports behind it; gives its exit code."""

    from app.core.errors import exit_code_of

    def call(name: str, *arguments: object) -> int:
        path = PIPELINE / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        return exit_code_of(script.main)

    return call


@pytest.fixture(scope="session")
def rows_file(questions_file: Path, tmp_path_factory: pytest.TempPathFactory, run_script: RunScript) -> Path:
    """Direct training rows of all eight questions, made by the builder script."""
    path = tmp_path_factory.mktemp("rows") / "ft_direct.jsonl"
    done = run_script(
        "build_finetune_dataset", "--lawqa-path", questions_file, "--output-path", path, "--mode", "direct", "--no-rag"
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def trained(
    tiny_model: Path,
    questions_file: Path,
    rows_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_script: RunScript,
) -> Trained:
    """The scripts' whole way in 4 bits: train on eight rows, ask the same eight questions."""
    folder = tmp_path_factory.mktemp("trained")
    adapter, evaluation = folder / "adapter", folder / "evaluation.json"
    trained = run_script("train_qwen_law_ft", *training_flags(tiny_model, rows_file, adapter), "--use-4bit")
    evaluated = run_script(
        "evaluate_multiple_choice",
        *evaluation_flags(tiny_model, adapter, questions_file, evaluation),
        "--hf-load-in-4bit",
    )
    return Trained(rows_file, adapter, evaluation, trained, evaluated)
