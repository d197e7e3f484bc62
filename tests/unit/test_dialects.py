"""Defects planted in trainings that a description calls: `trl sft`, LLaMA-Factory, a notebook's export; stand-ins."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from planted import DATASET, TRAIN_FILE, plant, run_script
from planted.defects import DEFECTS
from planted.scenario import MODEL, TRAIN_ROWS
from steph.base.files import sha256_of
from steph.conduct.preparation import read_inputs
from steph.contract.commands import Place, train_call, unsaid_settings
from steph.contract.description import load_description, preset_table
from steph.contract.options import Options
from steph.contract.settings import load_profile, profile_path
from steph.judge.checks_training import judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.verdict import checks_verdict
from steph.judge.witness import read_witness
from steph.record.values import Check

DIALECTS = Path(__file__).parent / "planted" / "dialects"
SECONDS = 5.0
PARSED = "args = parser.parse_args()"
TRL = """
[train]
preset = "trl"
command = ["python", "programs/trl", {words}]
rows = {{ file = "data/train.jsonl", format = "messages" }}
output_dir = "steph-out/adapter"
[evaluate]
none = "not asked here"
"""
FACTORY = """
[train]
preset = "llamafactory"
command = ["python", "programs/llamafactory-cli", {words}]
config = "train_lora.yaml"
rows.file = "data/law.json"
[evaluate]
none = "not asked here"
"""
YAML = """\
### a file of one's own; what the command says wins over it
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
stage: sft
do_train: true
finetuning_type: lora
quantization_bit: 4
dataset: law   # of dataset_info.json
dataset_dir: data
template: qwen
train_on_prompt: false
"""
NOTEBOOK = f"""
[model]
candidates = ["{MODEL}"]
[train]
command = ["python", "programs/notebook.py"]
output_dir = "outputs"
rows = {{ file = "{TRAIN_FILE}", format = "input_output" }}
[train.fixed]
batch_size = 4
gradient_accumulation_steps = 2
learning_rate = 1e-3
num_epochs = 2
lora_r = 8
lora_alpha = 16
max_seq_length = 512
[evaluate]
none = "not asked here"
"""


@dataclass(frozen=True)
class Dialect:
    """A program as a description calls it, and whether its rows are its own file."""

    description: str
    program: str


def words_of(preset: str) -> str:
    """The words of a preset's command behind its program."""
    return json.dumps(preset_table(preset)["train"]["command"][1:])[1:-1]


TRL_SFT = Dialect(TRL.format(words=words_of("trl")), "trl")
LLAMAFACTORY = Dialect(FACTORY.format(words=words_of("llamafactory")), "llamafactory-cli")
EXPORT = Dialect(NOTEBOOK, "notebook.py")


def trained(root: Path, dialect: Dialect, defect: str = "", **changes: str) -> TrainEvidence:
    """Call the stand-in as the description says, and hand over what the suite would know.

    `changes`: texts of the program's or the description's, and what stands there instead.
    """
    plant(root, train=defect, train_seconds=SECONDS)
    (root / "programs").mkdir()
    program = root / "programs" / dialect.program
    shutil.copyfile(DIALECTS / dialect.program, program)
    (root / "train_lora.yaml").write_text(YAML, encoding="utf-8")
    (root / "steph.toml").write_text(dialect.description, encoding="utf-8")
    texts = [program, root / "train_lora.yaml", *([root / "steph.toml"] if dialect is not EXPORT else [])]
    for old, new in (change.split(" -> ") for change in changes.values()):
        assert old in "".join(path.read_text() for path in texts)
        for path in texts:
            path.write_text(path.read_text().replace(old, new))
    rows = [json.loads(line) for line in (root / TRAIN_FILE).read_text(encoding="utf-8").splitlines()]
    pairs = [(("user", row["input"]), ("assistant", row["output"])) for row in rows]
    messages = [{"messages": [{"role": role, "content": text} for role, text in pair]} for pair in pairs]
    for folder in ("data", "given"):
        (root / folder).mkdir()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in messages)
        (root / folder / "train.jsonl").write_text(lines, encoding="utf-8")
    write_factory_rows(root / "data", [(row["input"], row["output"]) for row in rows])
    profile = load_profile(profile_path("rtx3080", root))
    options = Options("rtx3080", root, None, None, False, None, root / "reports")
    settings = read_inputs(options, profile, ()).profile.train
    description = load_description(root)
    train_file = description.train_file
    assert train_file is not None
    call = train_call(
        description,
        Place(root, "python", on_gpu=True, train_file=train_file, train_dir="given", config="train_lora.yaml"),
        MODEL, settings, cap_steps=False,
    )  # fmt: skip
    output_dir = root / description.output_dir
    inputs = tuple((root / name, sha256_of(root / name)) for name in (DATASET, train_file))
    place, began_unix = output_dir.resolve(), time.time()
    ran = run_script(root, call.argv[1], *call.argv[2:], probe_dir=root / "seen")
    arrivals = tuple((0.3 * n, line) for n, line in enumerate(ran.stdout.splitlines()))
    seconds = max(SECONDS, 0.3 * len(arrivals))
    return TrainEvidence(
        output_dir=output_dir, output_dir_name=description.output_dir, settings=settings, model_name=MODEL,
        stdout=ran.stdout, output=ran.output, returncode=ran.returncode, train_rows=TRAIN_ROWS,
        attempt_started_unix=began_unix - seconds, attempt_ended_unix=time.time(), seconds=seconds,
        base_tokenizer=root / "tokenizer.json", base_folder=root / "model", lost_answers=(0, TRAIN_ROWS),
        line_arrivals=arrivals, output_place=place, inputs=inputs, witness=read_witness(root / "seen"),
        train_file=root / train_file, row_format=description.train.rows.format, description=description,
        unsaid=unsaid_settings(description),
    )  # fmt: skip


def write_factory_rows(folder: Path, rows: list[tuple[str, str]]) -> None:
    """LLaMA-Factory's data sets: the rows as alpaca and as sharegpt, and others of a file that nobody asked for."""
    others = [(f"{asked[::-1]}", "z") for asked, _ in rows]
    sets = {"law": rows, "other": others}
    for name, some in sets.items():
        alpaca = [{"instruction": asked, "input": "", "output": answered} for asked, answered in some]
        (folder / f"{name}.json").write_text(json.dumps(alpaca, ensure_ascii=False), encoding="utf-8")
    turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": answered}] for asked, answered in rows]
    chat = [{"conversations": pair} for pair in turns]
    (folder / "law_chat.json").write_text(json.dumps(chat, ensure_ascii=False), encoding="utf-8")
    info = {name: {"file_name": f"{name}.json"} for name in (*sets, "law_chat")}
    info["law_chat"]["formatting"] = "sharegpt"
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def broken(checks: tuple[Check, ...]) -> dict[str, str]:
    """The checks that do not hold, with their messages."""
    return {check.id: str(check.message) for check in checks if check.holds is False}


@pytest.mark.parametrize("dialect", [TRL_SFT, LLAMAFACTORY, EXPORT], ids=lambda dialect: dialect.program)
def test_a_sound_training_is_accused_of_nothing(dialect: Dialect, tmp_path: Path) -> None:
    """Rows that are conversations, values that the profile does not have: every check holds, or does not apply."""
    _, checks, artifacts = judge_training(trained(tmp_path / "root", dialect))
    assert broken(checks) == {}
    assert checks_verdict(checks) is None
    assert artifacts


@pytest.mark.parametrize("dialect", [TRL_SFT, LLAMAFACTORY, EXPORT], ids=lambda dialect: dialect.program)
@pytest.mark.parametrize(
    "defect",
    ["no_adapter", "stale_adapter", "end_masked", "labels_masked", "stopped_early", "other_model", "saved_early",
     "adapter_nan", "b_zero", "replayed", "raised_inside", "old_adapter_trained_on"],
)  # fmt: skip
def test_a_defect_is_found_in_every_dialect(dialect: Dialect, defect: str, tmp_path: Path) -> None:
    """Whatever program was called, and by which command: the checks that find it in the published script find it."""
    known = next(variant for variant in DEFECTS if (variant.plant, variant.stage) == (defect, "H-2"))
    _, checks, _ = judge_training(known.train_change(trained(tmp_path / "root", dialect, defect)))
    found = broken(checks)
    assert known.caught <= found.keys(), found


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ("args.load_in_4bit else -> False else", {"quantised_as_asked"}),
        ("rows.append -> len(rows) % 4 or rows.append", {"rows_seen"}),
        ('"num-epochs" -> "weight-decay"', {"steps_seen"}),
        (f'{PARSED} -> {PARSED}; args.per_device_train_batch_size = "1"', {"batch_seen"}),
        (f'{PARSED} -> {PARSED}; args.learning_rate = "1e-5"', {"setup_seen"}),
        (f'{PARSED} -> {PARSED}; args.lora_r = "4"', {"adapter_as_asked"}),
    ],
)
def test_a_flag_of_trl_that_does_nothing_is_found(change: str, caught: set[str], tmp_path: Path) -> None:
    """4-bit, rows, epochs and rate: what was asked for is held against what was seen."""
    _, checks, _ = judge_training(trained(tmp_path / "root", TRL_SFT, change=change))
    assert caught <= broken(checks).keys(), broken(checks)


CHAT_ROWS = 'rows.file = "data/law.json" -> rows = { file = "data/law_chat.json", format = "sharegpt" }'
BEHIND = "[evaluate] -> extra = [{}]\n[evaluate]"  # a word behind the command, which wins over those before it


@pytest.mark.parametrize(
    "changes",
    [
        (CHAT_ROWS, "dataset: law   # -> dataset: law_chat   #"),
        ("quantization_bit: 4 -> bf16: true",),
        ("template: qwen -> template: qwen\nmax_samples: 400",),
        ("train_on_prompt: false -> train_on_prompt: true", 'law.json" -> law.json"\nrows.labels = "all"'),
    ],
    ids=["conversations", "settings that the command takes back", "no fewer samples", "the prompt on purpose"],
)  # fmt: skip
def test_a_sound_variant_of_llamafactory_is_accused_of_nothing(changes: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever its file of settings says, the command wins; what is done on purpose is said in the description."""
    named = {f"change{n}": change for n, change in enumerate(changes)}
    _, checks, _ = judge_training(trained(tmp_path / "root", LLAMAFACTORY, **named))
    assert broken(checks) == {}


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ("finetuning_type: lora -> finetuning_type: full", {"exit_zero", "adapter_weights"}),
        ("do_train: true -> do_train: false", {"adapter_weights", "checkpoint_trainer_state"}),
        ('"train", "{config}" -> "help", "{config}"', {"adapter_weights", "checkpoint_trainer_state"}),
        ("train_on_prompt: false -> train_on_prompt: true", {"prompt_unlabelled"}),
        ("dataset: law   # -> dataset: other   #", {"rows_seen"}),
        ("train_on_prompt: false -> max_samples: 8", {"rows_seen"}),
        (BEHIND.format('"learning_rate=0.001"'), {"setup_seen", "learning_rate_as_asked"}),
        (BEHIND.format('"lora_rank=4"'), {"adapter_as_asked"}),
        (BEHIND.format('"output_dir=saves/lora"'), {"adapter_weights"}),
        (BEHIND.format('"model_name_or_path=Qwen/Qwen2-0.5B"'), {"model_loaded", "adapter_base"}),
        (BEHIND.format('"num_train_epochs=2"'), {"steps_seen"}),
        (BEHIND.format('"per_device_train_batch_size=1"'), {"batch_seen"}),
        ('[evaluate] -> when.use_4bit = ["quantization_bit=8"]\n[evaluate]', {"quantised_as_asked"}),
        ("settings |= dict( -> dict(", {"exit_zero"}),
    ],
)  # fmt: skip
def test_a_defect_in_llamafactorys_dialect_is_found(change: str, caught: set[str], tmp_path: Path) -> None:
    """A key of its file of settings, a word of the command that is lost, a data set that nobody asked for."""
    _, checks, _ = judge_training(trained(tmp_path / "root", LLAMAFACTORY, change=change))
    assert caught <= broken(checks).keys(), broken(checks)


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ('"batch-size": 4 -> "batch-size": 2', {"batch_seen"}),
        ('"learning-rate": 1e-3 -> "learning-rate": 2e-4', {"setup_seen", "learning_rate_as_asked"}),
        ('"lora-r": 8 -> "lora-r": 4', {"adapter_as_asked"}),
        ('"num-epochs": 2 -> "num-epochs": 1', {"steps_seen", "steps_complete"}),
        ('"lora-dropout": 0.05 -> "lora-dropout": 0.5', set()),
    ],
)
def test_a_setting_inside_that_is_not_what_the_description_says_is_found(
    change: str, caught: set[str], tmp_path: Path
) -> None:
    """What is fixed is checked as what is asked; of what nobody said, nothing is."""
    _, checks, _ = judge_training(trained(tmp_path / "root", EXPORT, change=change))
    found = broken(checks)
    assert caught <= found.keys(), found
    assert bool(caught) == bool(found), found


def test_a_missing_use_peft_leaves_no_adapter(tmp_path: Path) -> None:
    """The program refuses, or trains the whole model: there is no adapter either way."""
    change = TRL_SFT.description.replace('"--use_peft", ', "")
    evidence = trained(tmp_path / "root", replace(TRL_SFT, description=change))
    assert evidence.returncode == 1
    assert {"exit_zero", "adapter_weights"} <= broken(judge_training(evidence)[1]).keys()
