"""LLaMA-Factory and axolotl as they are, from the example folders: whole rehearsals, sound and with a planted defect.

Needs `STEPH_TEST_PROGRAMS`, the folder of an environment's programs with llamafactory-cli or axolotl, and lm_eval:
`make test-llamafactory`, `make test-axolotl`. The two want other versions of transformers than this clone's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rehearsals import H1_H2, PROGRAMS, Edit, Rehearsed, copied, edit, rehearse
from steph.base.terms import StageId, Verdict
from steph.record.values import Attempt

MOST_LINES = 15  # that a person writes or changes
pytestmark = pytest.mark.timeout(1800)  # the suite's own limits end what hangs
IN_CHAT = (r'"law_choice"\]', '"law_choice", "--apply_chat_template"]')  # as the training's rows are
STALE = """
import shutil, sys
from safetensors.numpy import load_file, save_file
shutil.copytree(sys.argv[1], "yesterday", dirs_exist_ok=True)
tensors = load_file("yesterday/adapter_model.safetensors")
save_file({name: 2 * values for name, values in tensors.items()}, "yesterday/adapter_model.safetensors")
"""


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where the environment lacks this program."""
    is_there = PROGRAMS is not None and (Path(PROGRAMS) / program).is_file()
    return pytest.mark.skipif(not is_there, reason=f"STEPH_TEST_PROGRAMS names no folder with {program}")


def edited(name: str, place: Path, edits: tuple[Edit, ...]) -> Path:
    """A copy of an example with some of its texts changed; another file of rows and an old adapter lie in it."""
    root = copied(name, place)
    if name == "llamafactory":
        _add_data_sets(root / "data")
    edit(root, edits)
    return root


def _add_data_sets(folder: Path) -> None:
    rows = json.loads((folder / "law.json").read_text(encoding="utf-8"))
    texts = [f"これは別のファイルの{n}番目の行で、元の学習データのどこにもない文である。" for n in range(24)]
    other = [{"instruction": text, "input": "", "output": "z"} for text in texts]
    chat = [
        {"conversations": [{"from": "human", "value": row["instruction"]}, {"from": "gpt", "value": row["output"]}]}
        for row in rows
    ]
    for name, data in (("other", other), ("law_chat", chat)):
        (folder / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    info = {name: {"file_name": f"{name}.json"} for name in ("law", "other", "law_chat")}
    info["law_chat"]["formatting"] = "sharegpt"
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def settings(old: str, new: str) -> Edit:
    """A line of LLaMA-Factory's file of settings."""
    return "train_lora.yaml", old, new


def more(line: str) -> Edit:
    """A line more in it."""
    return settings("cutoff_len: 1024\n", f"cutoff_len: 1024\n{line}\n")


def behind(*words: str) -> Edit:
    """Words behind the command, which win over those of the preset: what a program would do that took no heed."""
    return "steph.toml", 'config = "train_lora.yaml"\n', f'config = "train_lora.yaml"\nextra = {json.dumps(words)}\n'


def in_qlora(old: str, new: str) -> Edit:
    """A text of axolotl's file of settings."""
    return "qlora.yml", old, new


def described(old: str, new: str) -> Edit:
    """A text of the description."""
    return "steph.toml", old, new


def has_all_core_checks(done: Rehearsed) -> None:
    """All stages are green, and H-2 has nothing to tell."""
    assert done.status == 0, done.output
    for stage in StageId:
        assert done.record.stages[stage].verdict.is_green, (stage, done.record.stages[stage].explanation)
    assert not done.broken(StageId.H2), done.record.stages[StageId.H2].findings


def green_from_init(example: str, folder: Path, tiny_model: Path) -> tuple[Rehearsed, Attempt]:
    """An example's folder without its description, from `steph init` to a green report; the rehearsal and H-2."""
    root = edited(example, folder, ())
    (root / "steph.toml").unlink()
    done = rehearse(root, tiny_model, by_hand=(IN_CHAT,))
    assert done.written <= MOST_LINES
    has_all_core_checks(done)
    trained = done.record.stages[StageId.H2].last_attempt
    assert trained is not None
    return done, trained


@needs("llamafactory-cli")
def test_llamafactory_goes_from_its_example_to_a_green_report(tiny_model: Path, tmp_path: Path) -> None:
    """From `steph init` on, with one line of a person's: every step that was due, in 4 bits."""
    done, trained = green_from_init("llamafactory", tmp_path, tiny_model)
    assert trained.training is not None
    assert (trained.training.steps_done, trained.training.steps_due) == (6, 6)
    # its template `qwen` puts a system text before each row, which the chat template of the tiny model does not
    assert done.broken(StageId.H3) <= {"frame_as_trained", "letters_vary"}, done.record.stages[StageId.H3].findings


@needs("axolotl")
def test_axolotl_goes_from_its_example_to_a_green_report(tiny_model: Path, tmp_path: Path) -> None:
    """From `steph init` on, with one line of a person's; it reports to nobody."""
    _, trained = green_from_init("axolotl", tmp_path, tiny_model)
    assert trained.env["AXOLOTL_DO_NOT_TRACK"] == "1"


@needs("llamafactory-cli")
@pytest.mark.parametrize(
    "edits",
    [
        (
            settings("dataset: law\n", "dataset: law_chat\n"),
            described('"data/law.json", format = "alpaca"', '"data/law_chat.json", format = "sharegpt"'),
        ),
        (more("packing: true"),),
        (more("neat_packing: true"),),
        (more("val_size: 0.1\neval_strategy: epoch\nper_device_eval_batch_size: 2"),),
        (settings("lora_target: all", "lora_target: q_proj,v_proj"), more("use_rslora: true")),
        (more("mask_history: true\nenable_thinking: false"),),
        (more("neftune_noise_alpha: 5\nlength_column_name: length\ntrain_sampling_strategy: group_by_length"),),
        (more("loraplus_lr_ratio: 16.0"),),
    ],
    ids=["conversations", "packing", "packing without contamination", "rows held out", "targets and rsLoRA",
         "history masked", "rows by length and noise", "LoRA+"],
)  # fmt: skip
def test_a_sound_variant_of_llamafactory_is_accused_of_nothing(
    edits: tuple[Edit, ...], tiny_model: Path, tmp_path: Path
) -> None:
    """Rows in another format, several in one, some held out, another LoRA: nothing of it is a finding.

    Those held out are asked at the end: on a CPU with AVX512-BF16 bitsandbytes 0.50 can't train on after an evaluation.
    """
    done = rehearse(edited("llamafactory", tmp_path, edits), tiny_model, only=H1_H2)
    assert done.status == 0, done.output
    assert not done.broken(StageId.H2), done.record.stages[StageId.H2].findings


@needs("axolotl")
@pytest.mark.parametrize(
    "edits",
    [
        (in_qlora("sample_packing: false", "sample_packing: true\nsample_packing_bin_size: 2"),),
        (in_qlora("val_set_size: 0\n", "val_set_size: 0.1\n"),),
        (in_qlora("lora_target_linear: true", "lora_target_modules: [q_proj, v_proj]\npeft_use_rslora: true"),),
        (in_qlora("field_messages: messages", "field_messages: messages\n    roles_to_train: [assistant]"),),
    ],
    ids=["packing", "rows held out", "targets and rsLoRA", "roles to train"],
)  # fmt: skip
def test_a_sound_variant_of_axolotl_is_accused_of_nothing(
    edits: tuple[Edit, ...], tiny_model: Path, tmp_path: Path
) -> None:
    """Several rows in one, some held out, another LoRA, answers alone by another word: nothing of it is a finding."""
    done = rehearse(edited("axolotl", tmp_path, edits), tiny_model, only=H1_H2)
    assert done.status == 0, done.output
    assert not done.broken(StageId.H2), done.record.stages[StageId.H2].findings


@needs("llamafactory-cli")
@pytest.mark.parametrize(
    ("edits", "caught"),
    [
        ((more("train_on_prompt: true"),), "prompt_unlabelled"),
        ((settings("finetuning_type: lora", "finetuning_type: full"),), None),
        ((settings("do_train: true", "do_train: false"),), "adapter_weights"),
        ((behind("learning_rate=0"),), "updates_seen"),
        ((more("max_samples: 8"),), "rows_seen"),
        ((settings("dataset: law\n", "dataset: other\n"),), "rows_seen"),
        ((settings("dataset: law\n", "dataset: law,other\n"),), "rows_seen"),
        ((settings("template: qwen", "template: empty"),), "end_supervised"),
        ((settings("template: qwen", "template: llama3"),), None),
        ((behind("cutoff_len=48"),), "rows_seen"),
        ((described('preset = "llamafactory"', 'preset = "llamafactory"\nwhen.use_4bit = ["seed=1"]'),
          settings("quantization_bit: 4\n", "")), "quantised_as_asked"),
        ((behind("lora_rank=4"),), "adapter_as_asked"),
        ((behind("output_dir=saves/elsewhere"),), "adapter_weights"),
        ((behind("gradient_accumulation_steps=1"),), "batch_seen"),
        ((behind("max_steps=2"),), "steps_seen"),
        ((behind("model_name_or_path=other"),), "model_loaded"),
    ],
    ids=["the prompt learnt", "no LoRA", "nothing trained", "rate 0", "rows dropped", "another file", "a file more",
         "no end token", "another family's template", "rows cut", "4-bit lost", "another rank", "written elsewhere",
         "another batch", "two steps", "another base model"],
)  # fmt: skip
def test_a_defect_in_a_llamafactory_training_is_found(
    edits: tuple[Edit, ...], caught: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    """What the real program did is held against what was asked, whatever its file of settings says.

    None: the program itself refuses, or crashes on tokens that the model does not have, and the stage is not green.
    """
    root = edited("llamafactory", tmp_path, edits)
    shutil.copytree(tiny_model, root / "other")
    done = rehearse(root, tiny_model, only=H1_H2)
    assert done.record.stages[StageId.H2].verdict is Verdict.FAIL or caught in done.broken(StageId.H2), done.output
    assert caught is None or caught in done.broken(StageId.H2), done.output


@pytest.fixture(scope="module")
def trained_root(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An example whose H-1 and H-2 are green: later runs of H-3 join their record."""
    root = edited("llamafactory", tmp_path_factory.mktemp("trained"), ())
    shutil.copytree(tiny_model, root / "other")
    (root / "stale.py").write_text(STALE, encoding="utf-8")
    done = rehearse(root, tiny_model, only=H1_H2)
    assert done.status == 0, done.output
    return root


@needs("llamafactory-cli")
@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("when.adapter = []", "adapter_active"),
        ('when.adapter = [",peft=yesterday"]\nbefore = [["{python}", "stale.py", "{adapter}"]]', "adapter_active"),
        ('when.adapter = [",peft={adapter},pretrained=other"]', "model_loaded"),
        ('when.cpu = ["--device", "cpu", "--output_path", "elsewhere"]', "json_written"),
    ],
    ids=["the base model answers", "yesterday's adapter", "another base model", "written elsewhere"],
)  # fmt: skip
def test_a_defect_in_an_evaluation_of_its_adapter_is_found(
    line: str, caught: str, trained_root: Path, tiny_model: Path
) -> None:
    """lm_eval with LLaMA-Factory's adapter: the same command, but for one word."""
    path = trained_root / "steph.toml"
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace('preset = "lm-eval"\n', f'preset = "lm-eval"\n{line}\n'), encoding="utf-8")
    done = rehearse(trained_root, tiny_model, only="test_h3_hf_evaluation_runs")
    path.write_text(sound, encoding="utf-8")
    assert caught in done.broken(StageId.H3), done.output
