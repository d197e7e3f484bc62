"""Unsloth as it is, from its example folder: whole rehearsals, sound and with defects that an engineer could make.

Needs `STEPH_TEST_PROGRAMS`, the folder of an environment's programs with Unsloth, which trains on the CPU too:
`make test-unsloth`. With `STEPH_TEST_GPU=1` the same runs on a card.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rehearsals import H1_H2, PROGRAMS, Edit, Rehearsed, copied, edit, rehearse
from steph.base.terms import StageId, Verdict

IS_THERE = PROGRAMS is not None and any(Path(PROGRAMS).parent.glob("lib/python*/site-packages/unsloth"))
pytestmark = [
    pytest.mark.skipif(not IS_THERE, reason="STEPH_TEST_PROGRAMS names no folder of an environment with Unsloth"),
    pytest.mark.timeout(1800),  # the suite's own limits end what hangs
]
MASKS = "train_on_responses_only(trainer, instruction_part=ASKED, response_part=ANSWERED)\n"
SAVES = "trainer.train()\nmodel.save_pretrained(args.output_dir)\n"
# an evaluation by Unsloth's own loader, which takes the folder of the adapter for the model
BY_TRANSFORMERS = (
    "model = AutoModelForCausalLM.from_pretrained(\n"
    '    args.model, dtype=torch.bfloat16, device_map={"": place}, '
    "quantization_config=how if args.load_in_4bit else None\n"
    ")\n"
    "if args.adapter:\n"
    "    model = PeftModel.from_pretrained(model, args.adapter)\n"
    "model.eval()\n"
)


def by_unsloth(folder: str) -> tuple[Edit, ...]:
    """`evaluate.py` with Unsloth's loader, which is given this folder."""
    loads = f"""\
model, _ = FastLanguageModel.from_pretrained(
    model_name={folder}, max_seq_length=2048, load_in_4bit=args.load_in_4bit, use_exact_model_name=True
)
FastLanguageModel.for_inference(model)
"""
    return (
        evaluation("import argparse\n", "import unsloth\nfrom unsloth import FastLanguageModel\nimport argparse\n"),
        evaluation(BY_TRANSFORMERS, loads),
    )


def training(old: str, new: str) -> Edit:
    """A text of the training script."""
    return "train.py", old, new


def evaluation(old: str, new: str) -> Edit:
    """A text of the evaluation script."""
    return "evaluate.py", old, new


def is_sound(done: Rehearsed, *stages: StageId) -> None:
    """All of these stages are green, and no check of them is broken but for what random weights can't do."""
    assert done.status == 0, done.output
    for stage in stages:
        assert done.record.stages[stage].verdict.is_green, (stage, done.record.stages[stage].explanation)
        at_random = {"letters_vary", "responses_present", "responses_differ", "responses_bounded"}
        assert done.broken(stage) <= at_random, done.record.stages[stage].findings


TRAININGS: dict[str, tuple[Edit, str | None]] = {
    "markers the wrong way round": (
        training(MASKS, MASKS.replace("ASKED", "X").replace("ANSWERED", "ASKED").replace("X", "ANSWERED")),
        "answers_of_file",
    ),
    "markers of another family": (training('"<|im_start|>assistant\\n"', '"<|start_header_id|>assistant"'), None),
    "the prompt learnt": (training(MASKS, "trainer\n"), "prompt_unlabelled"),
    "4-bit off": (training('load_in_4bit=args.load_in_4bit == "true"', "load_in_4bit=False"), "quantised_as_asked"),
    "saved before it learnt": (training(SAVES, "".join(reversed(SAVES.splitlines(True)))), "adapter_trained"),
    "rate 0": (training("learning_rate=args.learning_rate", "learning_rate=0.0"), "updates_seen"),
    "rows dropped": (training('split="train")', 'split="train[:8]")'), "rows_seen"),
    "rows cut": (training("length: args.max_seq_length", "length: 40"), None),
    "another rank": (training("r=args.lora_r", "r=8"), "adapter_as_asked"),
    "two steps": (training("max_steps=args.max_steps", "max_steps=2"), "steps_complete"),
    "merged instead of saved": (
        training(
            "save_pretrained(args.output_dir)\ntok",
            'save_pretrained_merged(args.output_dir, tokenizer, save_method="merged_16bit")\ntok',
        ),
        None,
    ),
}
EVALUATIONS: dict[str, tuple[tuple[Edit, ...], str]] = {
    "the base model answers": ((evaluation("if args.adapter:", "if args.adapter is True:"),), "adapter_active"),
    "the adapter switched off": (
        (evaluation("model.eval()", "model.disable_adapter_layers() if args.adapter else None\nmodel.eval()"),),
        "adapter_active",
    ),
    "the base model answers through Unsloth": (by_unsloth("args.model"), "adapter_active"),
    "4-bit off": ((evaluation("how if args.load_in_4bit else None", "None"),), "quantised_as_asked"),
    "no generation prompt": (
        (evaluation("add_generation_prompt=True", "add_generation_prompt=False"),),
        "frame_as_trained",
    ),
    "no chat template": ((evaluation("tokenizer(prompt,", 'tokenizer(row["question"],'),), "frame_as_trained"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAININGS)
def test_a_defect_in_an_unsloth_training_is_found(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """What the real program did is held against what was asked. None: Unsloth itself refuses."""
    planted, caught = TRAININGS[name]
    root = copied("unsloth", tmp_path)
    edit(root, (planted,))
    done = rehearse(root, tiny_model, only=H1_H2)
    assert done.record.stages[StageId.H2].verdict is Verdict.FAIL or caught in done.broken(StageId.H2), done.output
    assert caught is None or caught in done.broken(StageId.H2), done.output


@pytest.fixture(scope="module")
def trained_root(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, whose three stages are green: later runs of H-3 join their record."""
    root = copied("unsloth", tmp_path_factory.mktemp("trained"))
    is_sound(rehearse(root, tiny_model), *StageId)
    return root


def test_an_evaluation_by_unsloth_itself_is_accused_of_nothing(trained_root: Path, tiny_model: Path) -> None:
    """Its loader takes the adapter's folder for the model, and its own forward passes generate."""
    is_sound(evaluated(trained_root, tiny_model, by_unsloth("args.adapter or args.model")), StageId.H3)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_defect_in_an_evaluation_of_its_adapter_is_found(name: str, trained_root: Path, tiny_model: Path) -> None:
    """The same adapter, asked by a script that does something else than it should."""
    planted, caught = EVALUATIONS[name]
    done = evaluated(trained_root, tiny_model, planted)
    assert caught in done.broken(StageId.H3), done.output


def evaluated(root: Path, tiny_model: Path, edits: tuple[Edit, ...]) -> Rehearsed:
    """H-3 alone with the changed script, which is as it was afterwards."""
    path = root / "evaluate.py"
    sound = path.read_text(encoding="utf-8")
    edit(root, edits)
    try:
        return rehearse(root, tiny_model, only="test_h3_hf_evaluation_runs")
    finally:
        path.write_text(sound, encoding="utf-8")


@pytest.mark.parametrize(
    "edits",
    [
        (training('report_to="none",', 'report_to="none",\n        packing=True,'),),
        (training('use_gradient_checkpointing="unsloth"', "use_gradient_checkpointing=False, use_rslora=True"),),
        (
            training("import train_on_responses_only", "import get_chat_template, train_on_responses_only"),
            training("rows = load", 'tokenizer = get_chat_template(tokenizer, chat_template="chatml")\nrows = load'),
        ),
        (training("tokenize=False)}", 'tokenize=False).rpartition("<|im_end|>")[0]}'),),
    ],
    ids=["packing", "no recomputation, rsLoRA", "Unsloth's own chat template", "an end token that TRL adds"],
)  # fmt: skip
def test_a_sound_variant_of_unsloth_is_accused_of_nothing(
    edits: tuple[Edit, ...], tiny_model: Path, tmp_path: Path
) -> None:
    """Several rows in one, another LoRA, a template of Unsloth's: nothing of it is a finding."""
    root = copied("unsloth", tmp_path)
    edit(root, edits)
    is_sound(rehearse(root, tiny_model, only=H1_H2), StageId.H1, StageId.H2)
