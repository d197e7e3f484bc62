"""Defects planted in trainings that a description calls: `trl sft` and a notebook's export, as stand-ins."""

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
from steph.contract.asked import unsaid_settings
from steph.contract.commands import Place, train_call
from steph.contract.description import load_description
from steph.judge.checks_training import judge_training
from steph.judge.evidence import TrainEvidence
from steph.judge.verdict import checks_verdict
from steph.judge.witness import read_witness
from steph.plan.options import Options
from steph.plan.settings import load_profile, profile_path
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


def trl_words() -> str:
    """The words of the preset's command behind its program."""
    from steph.contract.presets import preset_table

    return json.dumps(preset_table("trl")["train"]["command"][1:])[1:-1]


TRL_SFT = Dialect(TRL.format(words=trl_words()), "trl")
EXPORT = Dialect(NOTEBOOK, "notebook.py")


def trained(root: Path, dialect: Dialect, defect: str = "", **changes: str) -> TrainEvidence:
    """Call the stand-in as the description says, and hand over what the suite would know.

    `changes`: texts of the program's or the description's, and what stands there instead.
    """
    plant(root, train=defect, train_seconds=SECONDS)
    (root / "programs").mkdir()
    program = root / "programs" / dialect.program
    shutil.copyfile(DIALECTS / dialect.program, program)
    description_text = dialect.description
    for old, new in (change.split(" -> ") for change in changes.values()):
        assert old in program.read_text() + description_text
        program.write_text(program.read_text().replace(old, new))
        description_text = description_text.replace(old, new) if dialect is TRL_SFT else description_text
    rows = [json.loads(line) for line in (root / TRAIN_FILE).read_text(encoding="utf-8").splitlines()]
    pairs = [(("user", row["input"]), ("assistant", row["output"])) for row in rows]
    messages = [{"messages": [{"role": role, "content": text} for role, text in pair]} for pair in pairs]
    for folder in ("data", "given"):
        (root / folder).mkdir()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in messages)
        (root / folder / "train.jsonl").write_text(lines, encoding="utf-8")
    (root / "steph.toml").write_text(description_text, encoding="utf-8")
    profile = load_profile(profile_path("rtx3080", root))
    options = Options("rtx3080", root, None, None, False, None, root / "reports")
    settings = read_inputs(options, profile, ()).profile.train
    description = load_description(root)
    train_file = description.train_file
    assert train_file is not None
    call = train_call(
        description,
        Place(root, "python", on_gpu=True, train_file=train_file, train_dir="given"),
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


def broken(checks: tuple[Check, ...]) -> dict[str, str]:
    """The checks that do not hold, with their messages."""
    return {check.id: str(check.message) for check in checks if check.holds is False}


@pytest.mark.parametrize("dialect", [TRL_SFT, EXPORT], ids=lambda dialect: dialect.program)
def test_a_sound_training_is_accused_of_nothing(dialect: Dialect, tmp_path: Path) -> None:
    """Rows that are conversations, values that the profile does not have: every check holds, or does not apply."""
    _, checks, artifacts = judge_training(trained(tmp_path / "root", dialect))
    assert broken(checks) == {}
    assert checks_verdict(checks) is None
    assert artifacts


@pytest.mark.parametrize("dialect", [TRL_SFT, EXPORT], ids=lambda dialect: dialect.program)
@pytest.mark.parametrize(
    "defect",
    ["no_adapter", "stale_adapter", "end_masked", "labels_masked", "stopped_early", "other_model", "saved_early",
     "adapter_nan", "b_zero", "replayed", "raised_inside"],
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
