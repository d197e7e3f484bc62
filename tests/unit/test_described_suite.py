"""Whole runs of a described pipeline, with stand-ins: conditions, commands in a row, and no evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import TRAIN_FILE
from steph.base.terms import StageId, Verdict
from suite_runs import Bench, make_bench

TRAIN = f"""
[train]
preset = "lawqa"
rows.file = "{TRAIN_FILE}"
env = {{ MARK = "{{max_steps}}", MY_TOKEN = "not-to-be-seen" }}
before = [["{{python}}", "note.py", "before"]]
after = [["{{python}}", "note.py", "after", "{{output_dir}}"]]
"""
NOTE = """
import os, sys
from pathlib import Path
there = [str(Path(word).is_dir()) for word in sys.argv[2:]]
with open("notes.txt", "a") as file:
    print(sys.argv[1], os.environ["MARK"], os.environ["MY_TOKEN"], *there, file=file)
"""


CONFIGURED = f"""
[train]
command = ["{{python}}", "run.py", "{{config}}"]
config = {{ file = "run.json", template = "run.json.in" }}
output_dir = "out"
rows = {{ file = "{TRAIN_FILE}", format = "input_output" }}
[train.fixed]
batch_size = 2
gradient_accumulation_steps = 2
num_epochs = 1
lora_r = 8
lora_alpha = 32
[evaluate]
none = "later"
"""
RUN = """
import json, runpy, sys
settings = json.load(open(sys.argv[1]))
more = ["--batch-size", "2", "--gradient-accumulation-steps", "2", "--num-epochs", "1", "--logging-steps", "1"]
sys.argv = ["scripts/train_qwen_law_ft.py", *(word for pair in settings.items() for word in pair), *more, "--do-train"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, int, str]:
    """A run whose training has a command before and one after it, and that has no evaluation."""
    made = make_bench(tmp_path_factory.mktemp("described"))
    (made.root / "note.py").write_text(NOTE)
    (made.root / "steph.toml").write_text(f'{TRAIN}\n[evaluate]\nnone = "nobody has written one"\n')
    status, output = made.run()
    return made, status, output


def test_without_an_evaluation_the_run_is_not_green_and_the_others_keep_their_verdicts(
    bench: tuple[Bench, int, str],
) -> None:
    """H-3 is NOT_RUN with the reason, the exit status is 1, and the headline says that it is not complete."""
    made, status, output = bench
    record = made.record()
    assert status == 1, output
    verdicts = [record.verdict_of(stage) for stage in StageId]
    assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.NOT_RUN], output
    assert "nobody has written one" in str(record.stages[StageId.H3].explanation)
    assert "incomplete" in output
    assert "nobody has written one" in made.report()
    assert not record.stages[StageId.H3].attempts


def test_commands_run_in_a_row_around_the_training(bench: tuple[Bench, int, str]) -> None:
    """Each attempt has them, with its variables; the record and the report have all three, and no secret."""
    made, _, output = bench
    notes = (made.root / "notes.txt").read_text().splitlines()
    assert [note.split()[::2] for note in notes] == [["before", "not-to-be-seen"], ["after", "not-to-be-seen"]], output
    assert notes[1].endswith("True")
    attempt = made.record().stages[StageId.H2].last_attempt
    assert attempt is not None
    assert [command[2] for command in (*attempt.before, *attempt.after)] == ["before", "after"]
    assert attempt.argv[1] == "scripts/train_qwen_law_ft.py"
    assert attempt.env["MY_TOKEN"] == "***"
    kept = json.dumps([path.read_text(errors="replace") for path in made.reports.rglob("*.json*")])
    assert "not-to-be-seen" not in kept + made.report()
    assert " && \\\n" in made.report()


def test_a_command_that_fails_before_the_training_fails_the_attempt(tmp_path: Path) -> None:
    """Nothing is trained, and its own status is the attempt's."""
    made = make_bench(tmp_path)
    (made.root / "steph.toml").write_text(
        '[train]\npreset = "lawqa"\nbefore = [["{python}", "-c", "raise SystemExit(9)"]]\n[evaluate]\nnone = "x"\n'
    )
    status, output = made.run(StageId.H1, StageId.H2)
    attempt = made.record().stages[StageId.H2].last_attempt
    assert (status, attempt and attempt.returncode) == (1, 9), output


def test_a_stage_is_not_run_into_a_record_of_another_training(bench: tuple[Bench, int, str]) -> None:
    """What steph.toml says of the training is a fact of the record; what it says of the evaluation may change."""
    made, _, _ = bench
    path = made.root / "steph.toml"
    sound = path.read_text()
    path.write_text(sound.replace("[evaluate]", "extra = []\n[evaluate]").replace('"{max_steps}"', '"7"'))
    refused = made.run(StageId.H3)
    path.write_text(sound.replace("nobody", "still nobody"))
    joined = made.run(StageId.H3)
    path.write_text(sound)
    assert refused[0] == 4, refused[1]
    assert "学習の書き方(steph.toml)が" in refused[1]
    assert "still nobody" in joined[1]


def test_a_program_that_takes_a_file_of_settings_gets_one_in_the_record(tmp_path: Path) -> None:
    """Made of the root's template for each attempt; the root itself gets none, and fixed settings are held against."""
    made = make_bench(tmp_path)
    (made.root / "run.py").write_text(RUN)
    template = {"--model-name": "{model}", "--train-file": "{train_file}", "--output-dir": "{output_dir}"}
    template |= {"--learning-rate": "{learning_rate}", "--max-seq-length": "{max_seq_length}", "--lora-r": "8"}
    (made.root / "run.json.in").write_text(json.dumps(template))
    (made.root / "steph.toml").write_text(CONFIGURED)
    before = {path.name for path in made.root.iterdir()}
    status, output = made.run(StageId.H1, StageId.H2)
    attempt = made.record().stages[StageId.H2].last_attempt
    assert attempt is not None
    assert status == 0, output
    config = Path(attempt.argv[2])
    assert config.is_relative_to(made.reports)
    assert json.loads(config.read_text())["--learning-rate"] == "0.0002"
    production = attempt.production
    assert production is not None
    assert production.commands == (("python", "run.py", "production-run.json"),), production
    assert json.loads(production.config or "")["--model-name"] == "Qwen/Qwen3-8B"
    assert json.loads(production.config or "")["--max-seq-length"] == "1024"
    assert {path.name for path in made.root.iterdir()} - before <= {"out", "__pycache__"}
    (made.root / "steph.toml").write_text(CONFIGURED.replace("lora_r = 8", "lora_r = 16"))
    status, output = made.run(StageId.H1, StageId.H2, StageId.H3)
    assert "adapter_as_asked" in {check.id for check in made.record().stages[StageId.H2].findings}, output


def test_an_error_that_ends_with_0_is_shown_by_its_last_lines(tmp_path: Path) -> None:
    """The stage is red because nothing was written; what the program printed last says why."""
    made = make_bench(tmp_path)
    (made.root / "run.py").write_text('print("start")\nprint("error: no rows of split train")\n')
    template = {name: f"{{{name}}}" for name in ("model", "learning_rate", "max_seq_length")}
    (made.root / "run.json.in").write_text(json.dumps(template))
    (made.root / "steph.toml").write_text(CONFIGURED)
    _, output = made.run(StageId.H1, StageId.H2)
    assert (made.reports / "runs").is_dir(), output
    attempt = made.record().stages[StageId.H2].last_attempt
    assert attempt is not None
    assert attempt.ended_well
    assert attempt.last_lines == ("start", "error: no rows of split train")
    assert "start\nerror: no rows of split train" in made.report()
