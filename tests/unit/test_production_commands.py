"""The production run's commands are those of the description, for another machine and without the limits of a check."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from steph.contract.commands import Files, production_evaluation, production_training
from steph.contract.description import Description, load_description
from steph.record.settings import EvalSettings, TrainSettings
from steph.record.values import ProductionCall
from steph.tell.attempts import pasteable, production_command

SETTINGS = TrainSettings(
    num_epochs=3, max_seq_length=1024, gradient_accumulation_steps=4, logging_steps=10, max_steps=0
)
MODEL = "meta-llama/Llama-3.1-8B"
NO_EVALUATION = '[evaluate]\nnone = "asked by hand"\n'


def described(folder: Path, text: str) -> Description:
    """A root's description of this text."""
    (folder / "steph.toml").write_text(text, encoding="utf-8")
    return load_description(folder)


def training(folder: Path, text: str, **files: object) -> ProductionCall:
    """The production training of a root with this description."""
    return production_training(described(folder, text), Files(folder, **files), MODEL, SETTINGS)  # type: ignore[arg-type]


def test_the_published_script_is_called_for_the_whole_run(tmp_path: Path) -> None:
    """Epochs and length of the target, no step limit, another folder, the other machine's python; both agree."""
    call = production_training(Description(), Files(tmp_path, train_file="rows.jsonl"), MODEL, SETTINGS)
    (words,) = call.commands
    assert words[:2] == ("python", "scripts/train_qwen_law_ft.py")
    flags = dict(pairwise(words))
    assert (flags["--model-name"], flags["--train-file"]) == (MODEL, "rows.jsonl")
    assert (flags["--num-epochs"], flags["--max-seq-length"]) == ("3", "1024")
    assert "--max-steps-override" not in words
    assert flags["--output-dir"] != Description().output_dir
    (asked,) = production_evaluation(
        Description(), Files(tmp_path, dataset="q.json"), MODEL, EvalSettings(), 140
    ).commands
    evaluated = dict(pairwise(asked))
    assert (evaluated["--samples"], evaluated["--data"], evaluated["--hf-model-name"]) == ("140", "q.json", MODEL)
    assert evaluated["--hf-lora-path"] == flags["--output-dir"]
    assert evaluated["--output"] != Description().output


@pytest.mark.parametrize(("is_alone", "folder"), [(True, "data"), (False, "<a folder with only data/train.jsonl>")])
def test_a_program_of_the_environment_goes_by_its_name(tmp_path: Path, is_alone: bool, folder: str) -> None:
    """`{bin}/trl` is `trl` there; the folder of the rows is their own where nothing else is in it, else to be made."""
    text = f'[train]\npreset = "trl"\nrows.file = "data/train.jsonl"\n{NO_EVALUATION}'
    call = training(tmp_path, text, train_file="data/train.jsonl", is_alone=is_alone)
    (words,) = call.commands
    assert words[:2] == ("trl", "sft")
    assert words[words.index("--dataset_name") + 1] == folder
    assert words[words.index("--model_name_or_path") + 1] == MODEL
    assert not {"--max_steps", "--use_cpu"} & {*words}
    assert "export WANDB_MODE=disabled\n" in production_command(call)


@pytest.mark.parametrize(("preset", "program"), [("llamafactory", "llamafactory-cli"), ("axolotl", "axolotl")])
def test_a_file_of_settings_of_ones_own_is_named(tmp_path: Path, preset: str, program: str) -> None:
    """It lies in the pipeline's folder and is not written out; the words behind it say what the whole run asks."""
    text = f'[train]\npreset = "{preset}"\nconfig = "c.yaml"\nrows.file = "rows.json"\n{NO_EVALUATION}'
    call = training(tmp_path, text, train_file="rows.json")
    (words,) = call.commands
    assert words[:3] == (program, "train", "c.yaml")
    assert any(MODEL in word for word in words)
    assert not any("max" in word and "steps" in word for word in words)
    assert "cat >" not in production_command(call)


def test_each_setting_of_a_command_has_a_line_of_its_own() -> None:
    """`key=value` as an option, but where it is an option's value."""
    assert pasteable(["t.py", "optim.lr=1", "+x.y=2"]).splitlines() == ["t.py \\", "  optim.lr=1 \\", "  +x.y=2"]
    shown = pasteable(["cli", "train", "c.yaml", "a=1", "b=x y", "--model_args", "pretrained=m", "--flag"])
    assert shown.splitlines() == [
        "cli train c.yaml \\", "  a=1 \\", "  'b=x y' \\", "  --model_args pretrained=m \\", "  --flag",
    ]  # fmt: skip


@pytest.mark.parametrize(("rows", "steps"), [(140, 54), (None, -1)])
def test_a_file_of_settings_is_written_out(tmp_path: Path, rows: int | None, steps: int) -> None:
    """Its text stands before the command that reads it; the steps are those of all epochs, or the epochs' own."""
    (tmp_path / "lora.yaml").write_text("model: {model}\nmax_steps: {max_steps}\ncutoff_len: {max_seq_length}\n")
    text = (
        '[train]\ncommand = ["{bin}/llamafactory-cli", "train", "{config}"]\n'
        'config = { file = "lora.yaml", template = "lora.yaml" }\nrows = { file = "rows.json", format = "alpaca" }\n'
        f"{NO_EVALUATION}"
    )
    template = (tmp_path / "lora.yaml").read_text()
    shown = production_command(training(tmp_path, text, train_file="rows.json", template=template, rows=rows))
    assert shown == (
        f"cat > production-lora.yaml <<'EOF'\nmodel: {MODEL}\nmax_steps: {steps}\ncutoff_len: 1024\nEOF\n"
        "llamafactory-cli train production-lora.yaml"
    )


def test_what_a_program_has_inside_is_named_for_editing(tmp_path: Path) -> None:
    """Fixed values that the target changes, and they alone; a step limit inside is one of those values' ends."""
    text = (
        '[train]\ncommand = ["{python}", "train.py", "--model", "{model}"]\nrows = { file = "r.jsonl" }\n'
        "fixed = { num_epochs = 3, max_seq_length = 512, batch_size = 2, learning_rate = 2e-4, lora_r = 16, "
        f"lora_alpha = 32, gradient_accumulation_steps = 1 }}\n{NO_EVALUATION}"
    )
    call = training(tmp_path, text, train_file="r.jsonl")
    assert call.to_edit == ("gradient_accumulation_steps = 4", "max_seq_length = 1024")
    assert call.commands == (("python", "train.py", "--model", MODEL),)


@pytest.mark.parametrize(
    ("command", "adapter"),
    [('["bash", "run.sh"]', "out/adapter"), ('["bash", "run.sh", "{output_dir}"]', "out/adapter-production")],
)
def test_the_adapter_is_asked_for_where_the_training_writes_it(tmp_path: Path, command: str, adapter: str) -> None:
    """A program that is told no folder writes its own, in the production run as well."""
    text = (
        f'[train]\ncommand = {command}\nrows.format = "none"\noutput_dir = "out/adapter"\n'
        "fixed = { num_epochs = 3, max_seq_length = 512, batch_size = 2, learning_rate = 2e-4, lora_r = 16, "
        "lora_alpha = 32, gradient_accumulation_steps = 1 }\n"
        '[evaluate]\ncommand = ["{python}", "ask.py", "{adapter}"]\nfixed.samples = 3\n'
    )
    asked = production_evaluation(described(tmp_path, text), Files(tmp_path), MODEL, EvalSettings(), None)
    assert asked.commands == (("python", "ask.py", adapter),)


@pytest.mark.parametrize(
    ("cwd", "up", "rows"),
    [("", "", "r.jsonl"), ('cwd = "src"', "../", "../r.jsonl"), ('cwd = "{root}/src"', "../", "../r.jsonl")],
)
def test_no_folder_of_this_machine_is_in_what_is_pasted_elsewhere(tmp_path: Path, cwd: str, up: str, rows: str) -> None:
    """In words, variables and settings: programs go by their names, paths start at the folder that they are read in."""
    (tmp_path / "s.yaml").write_text("cache: {root}/cache\nrun: {python}\ntool: {bin}/tool\nrows: {train_file}\n")
    text = (
        f'[train]\ncommand = ["{{bin}}/tool", "{{config}}", "--at", "{{root}}"]\n{cwd}\n'
        'config = { file = "s.yaml", template = "s.yaml" }\nrows = { file = "r.jsonl" }\n'
        'env = { TOOL = "{bin}/tool", HERE = "{root}/x", RUNS = "{python}", PATH = "{bin}:/usr/bin", '
        f'PLAIN = "{tmp_path}/y" }}\n{NO_EVALUATION}'
    )
    call = training(tmp_path, text, train_file="r.jsonl", template=(tmp_path / "s.yaml").read_text())
    shown = production_command(call)
    assert str(tmp_path) not in shown
    assert "-of-the-other-machine" not in shown
    assert call.commands == (("tool", f"{up}production-s.yaml", "--at", up.rstrip("/") or "."),)
    assert call.config == f"cache: {up}cache\nrun: python\ntool: tool\nrows: {rows}\n"
    assert call.env == {
        "TOOL": "tool", "HERE": f"{up}x", "RUNS": "python", "PATH": "<the folder of python>:/usr/bin",
        "PLAIN": f"{up}y",
    }  # fmt: skip


def test_each_setting_goes_by_the_programs_own_word(tmp_path: Path) -> None:
    """Options with a blank or `=`, keys, variables, conditions and lines of a file; what is inside has no word."""
    (tmp_path / "own.yaml").write_text('optim:\n  peak_lr: {learning_rate}\n"rank": "{lora_r}"\n')
    text = (
        '[train]\ncommand = ["{python}", "train.py", "{model}", "--mb", "{batch_size}", "--accum={'
        'gradient_accumulation_steps}", "lora.alpha={lora_alpha}", "--config", "{config}"]\n'
        'config = { file = "own.yaml", template = "own.yaml" }\n'
        'env = { CTX = "{max_seq_length}" }\nrows = { file = "r.jsonl" }\nfixed.num_epochs = 3\n'
        'when.use_4bit = ["--quantise", "--kind", "{bnb_4bit_quant_type}"]\n'
        'when.bf16 = ["--half"]\nwhen.fp16 = ["--old-half"]\n'
        '[evaluate]\ncommand = ["{python}", "ask.py", "--first", "{samples}", "--args", "m={model}{when.adapter}"]\n'
        'when.adapter = [",lora={adapter}"]\nresults.score = "em"\n'
    )
    found = described(tmp_path, text)
    template = (tmp_path / "own.yaml").read_text()
    call = production_training(found, Files(tmp_path, train_file="r.jsonl", template=template), MODEL, SETTINGS)
    assert call.said == {
        "model": "model", "batch_size": "--mb", "gradient_accumulation_steps": "--accum", "lora_alpha": "lora.alpha",
        "max_seq_length": "CTX", "learning_rate": "peak_lr", "lora_r": "rank", "use_4bit": "--quantise",
        "bnb_4bit_quant_type": "--kind", "mixed_precision": "--half / --old-half", "num_epochs": "",
    }  # fmt: skip
    assert production_evaluation(found, Files(tmp_path), MODEL, EvalSettings(), 6).said == {
        "samples": "--first",
        "model": "m",
    }


def test_a_secret_of_the_description_is_in_no_production_command(tmp_path: Path) -> None:
    """A token under `env` is masked in both commands, which the record and the report hold."""
    env = 'env = { HF_TOKEN = "hunter2hunter2", PLAIN = "1" }\n'
    text = (
        f'[train]\npreset = "trl"\nrows.file = "r.jsonl"\n{env}'
        f'[evaluate]\npreset = "lm-eval"\nextra = ["--tasks", "t"]\n{env}'
    )
    found = described(tmp_path, text)
    train = production_training(found, Files(tmp_path, train_file="r.jsonl"), MODEL, SETTINGS)
    evaluate = production_evaluation(found, Files(tmp_path), MODEL, EvalSettings(), 6)
    assert [(call.env["HF_TOKEN"], call.env["PLAIN"]) for call in (train, evaluate)] == [("***", "1")] * 2


def test_all_questions_of_an_unknown_number_are_left_to_the_reader(tmp_path: Path) -> None:
    """No figure is made up: the command has a place to fill in, and so has what is to be edited inside."""
    text = (
        '[train]\npreset = "trl"\nrows.file = "r.jsonl"\n'
        '[evaluate]\ncommand = ["{python}", "ask.py", "{model}", "--first", "{samples}"]\nresults.score = "em"\n'
    )
    found = described(tmp_path, text)
    (words,) = production_evaluation(found, Files(tmp_path), MODEL, EvalSettings(), None).commands
    assert words[-1] == "<number of all questions>"
    fixed = described(tmp_path, text.replace(', "--first", "{samples}"]', "]\nfixed.samples = 3"))
    call = production_evaluation(fixed, Files(tmp_path), MODEL, EvalSettings(), None)
    assert call.to_edit == ("samples = <number of all questions>",)
    assert production_evaluation(fixed, Files(tmp_path), MODEL, EvalSettings(), 3).to_edit == ()
