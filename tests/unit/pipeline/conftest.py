"""A tiny Qwen2 with a tokenizer of its own, questions to learn by heart, and one run of the three scripts over them."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_folders import made_once
from small_run import (
    PIPELINE,
    TOPICS,
    CallScript,
    Ended,
    RunScript,
    ScriptHost,
    Trained,
    evaluation_flags,
    question,
    training_flags,
)
from steph.child.twin import CHATML

sys.path.append(str(PIPELINE))
# the pipeline's folder datasets/ would pass for the package of that name
sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run on the CPU, unless whole rehearsals are wanted on a card; large imports come after this."""
    if not os.environ.get("STEPH_TEST_GPU"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question set of eight questions."""

    def write(folder: Path) -> None:
        samples = [question(number) for number in range(len(TOPICS))]
        text = json.dumps({"samples": samples}, ensure_ascii=False)
        (folder / "selection.json").write_text(text, encoding="utf-8")

    return made_once(tmp_path_factory, "questions", write) / "selection.json"


@pytest.fixture(scope="session")
def tiny_model(questions_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 (64 hidden, 2 layers), its head wide enough to be certain of a token, and its BPE tokenizer."""
    import torch

    torch.set_num_threads(1)
    return made_once(tmp_path_factory, "tiny_model", lambda folder: save_tiny_model(folder, questions_file))


def save_tiny_model(folder: Path, questions_file: Path) -> None:
    """Write model and tokenizer, which is trained on the questions' prompts."""
    import torch
    from app.core.lawqa import load_questions
    from app.core.prompts import build_prompt
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

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

    def build(folder: Path) -> None:
        places = ("--lawqa-path", questions_file, "--output-path", folder / "ft_direct.jsonl")
        done = run_script("build_finetune_dataset", *places, "--mode", "direct", "--no-rag")
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "rows", build) / "ft_direct.jsonl"


@pytest.fixture(scope="session")
def watched_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptHost]:
    """A host with the witness's hooks, one for all of this worker."""
    host = ScriptHost(tmp_path_factory.mktemp("host"), watched=True)
    yield host
    host.close()


@pytest.fixture(scope="session")
def trained(
    tiny_model: Path, questions_file: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """The scripts' whole way in 4 bits: train on eight rows, ask the same eight questions."""
    adapter, evaluation = "adapter", "evaluation.json"

    def run(folder: Path) -> None:
        train = training_flags(tiny_model, rows_file, folder / adapter)
        evaluate = evaluation_flags(tiny_model, folder / adapter, questions_file, folder / evaluation)
        host = ScriptHost(folder, watched=False)
        ended = [
            vars(host.run(PIPELINE, script, *flags, output=folder / f"{name}.out", errors=folder / f"{name}.err"))
            for name, script, flags in (
                ("train", "scripts/train_qwen_law_ft.py", (*train, "--use-4bit")),
                ("evaluate", "scripts/evaluate_multiple_choice.py", (*evaluate, "--hf-load-in-4bit")),
            )
        ]
        host.close()
        (folder / "ended.json").write_text(json.dumps(ended), encoding="utf-8")

    folder = made_once(tmp_path_factory, "trained", run)
    training, answering = (Ended(**one) for one in json.loads((folder / "ended.json").read_text(encoding="utf-8")))
    return Trained(rows_file, folder / adapter, folder / evaluation, training, answering)
