"""Command lines are the spec's, word for word, and a description's templates are filled."""

from __future__ import annotations

import shlex
from pathlib import Path

from steph.contract.commands import Place, build_command, evaluate_call, train_call
from steph.contract.description import Description
from steph.record.settings import EvalSettings, TrainSettings

TRAIN = """python scripts/train_qwen_law_ft.py --model-name Qwen/Qwen1.5-1.8B-Chat
 --train-file results/finetune/ft_direct_full_norag.jsonl
 --output-dir runs/debug_small_model/direct_norag_small_4bit --num-epochs 1 --batch-size 2 --learning-rate 0.0002
 --max-seq-length 512 --gradient-accumulation-steps 2 --warmup-ratio 0.03 --lora-r 16 --lora-alpha 32
 --lora-dropout 0.05 --use-4bit --bnb-4bit-compute-dtype bfloat16 --bnb-4bit-quant-type nf4
 --logging-steps 1 --do-train"""
EVALUATE = """python scripts/evaluate_multiple_choice.py --data datasets/lawqa_jp/data/selection.json
 --output results/evaluations/small_model_debug_direct.json --samples 3 --top-k 1 --no-rag --llm-backend hf
 --hf-model-name Qwen/Qwen1.5-1.8B-Chat --hf-lora-path runs/debug_small_model/direct_norag_small_4bit
 --hf-load-in-4bit --ensemble 1"""
MODEL = "Qwen/Qwen1.5-1.8B-Chat"


def _train(settings: TrainSettings, *, cap_steps: bool = False) -> tuple[str, ...]:
    description = Description()
    place = Place(Path(), "python", on_gpu=True, train_file=description.train_file)
    return train_call(description, place, MODEL, settings, cap_steps=cap_steps).argv


def test_the_training_command_is_the_specs() -> None:
    """At the spec's settings the command is the spec's, with a short logging interval added."""
    assert list(_train(TrainSettings())) == shlex.split(TRAIN.replace("\n", " "))


def test_the_evaluation_command_is_the_specs() -> None:
    """At the spec's settings the evaluation command is the spec's."""
    description = Description()
    lora = description.paths.output_dir
    place = Place(Path(), "python", on_gpu=True, dataset=description.dataset)
    argv = evaluate_call(description, place, MODEL, EvalSettings(), adapter=lora).argv
    assert list(argv) == shlex.split(EVALUATE.replace("\n", " "))


def test_settings_beyond_the_spec_show_in_the_command() -> None:
    """A step cap, half precision without 4-bit and LoRA targets each have their flag."""
    settings = TrainSettings(use_4bit=False, mixed_precision="bf16", target_modules=("q_proj", "v_proj"), max_steps=7)
    argv = _train(settings, cap_steps=True)
    assert "--use-4bit" not in argv
    assert "--bf16" in argv
    assert argv[argv.index("--target-modules") + 1] == "q_proj,v_proj"
    assert argv[argv.index("--max-steps-override") + 1] == "7"


def test_the_base_model_alone_can_be_evaluated_with_rag_and_cot() -> None:
    """Without a LoRA path, with RAG and with CoT the flags follow."""
    settings = EvalSettings(use_rag=True, use_cot=True, load_in_4bit=False)
    place = Place(Path(), "python", on_gpu=True, dataset="d.json")
    argv = evaluate_call(Description(), place, MODEL, settings, adapter=None).argv
    assert "--use-cot" in argv
    assert not {"--no-rag", "--hf-lora-path", "--hf-load-in-4bit"} & set(argv)


def test_build_templates_are_filled() -> None:
    """Every placeholder of a build command gets its value; unknown ones stay visible."""
    template = ("build.py", "--in", "{dataset}", "{unknown}")
    assert build_command("py", template, {"dataset": "d.json"}) == ("py", "build.py", "--in", "d.json", "{unknown}")
