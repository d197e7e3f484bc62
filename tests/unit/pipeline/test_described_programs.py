"""Programs as they are, called by a few lines of `steph.toml`: whole rehearsals, sound and with a planted defect.

Needs `STEPH_TEST_PROGRAMS`, the folder of an environment's programs with trl and lm_eval; `make test-programs`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rehearsals import H1_H2, PROGRAMS, rehearse
from steph.base.terms import StageId
from steph.cli import app
from typer.testing import CliRunner

pytestmark = [
    pytest.mark.skipif(PROGRAMS is None, reason="STEPH_TEST_PROGRAMS is unset: make test-programs"),
    pytest.mark.timeout(1800),  # the suite's own limits end what hangs
]
DESCRIBED = Path(__file__).parent / "described"
MOST_LINES = 15  # that a person writes or changes
TASK = """\
task: law_choice
dataset_path: json
dataset_kwargs: {data_files: {test: data/test.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\n回答:"
doc_to_choice: [a, b, c, d]
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def make_root(place: Path, tiny_model: Path, *, trains: str, evaluates: str) -> Path:
    """A person's folder: rows and questions, and a notebook's export, a script or a task as the case has it."""
    (place / "data").mkdir(parents=True)
    rows = []
    for number in range(1, 31):
        asked = f"第{number}条の届出は、事由が生じた日から何日以内にしなければならないか。"
        asked += f"届出番号は{number * 37}、所管は第{number * 11}課とする。"
        rows.append((asked, "abcd"[number % 4]))
    for name, part in (("train", rows[:24]), ("test", rows[24:])):
        lines = (as_row(asked, answer, trains if name == "train" else "questions") for asked, answer in part)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (place / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    if trains == "notebook":
        shutil.copyfile(DESCRIBED / "train.py", place / "train.py")
        shutil.copytree(tiny_model, place / "models" / "tiny")
    else:
        (place / "requirements.txt").write_text("trl\n")
    if evaluates == "script":
        shutil.copyfile(DESCRIBED / "evaluate.py", place / "evaluate.py")
    else:
        (place / "tasks").mkdir()
        (place / "tasks" / "law.yaml").write_text(TASK, encoding="utf-8")
    return place


def as_row(asked: str, answer: str, form: str) -> dict[str, object]:
    """A row as these programs want it."""
    if form == "questions":
        return {"question": asked, "answer": answer}
    if form == "notebook":
        return {"prompt": asked, "completion": answer}
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


# what the draft says is missing, in either language
LENGTH = (r"^# fixed .*max_seq_length = ….*\nfixed = \{ ", "fixed = { max_seq_length = 384, ")


@pytest.mark.parametrize("trains", ["trl", "notebook"])
@pytest.mark.parametrize("evaluates", ["script", "lm_eval"])
def test_programs_as_they_are_go_from_init_to_a_green_report(
    trains: str, evaluates: str, tiny_model: Path, tmp_path: Path
) -> None:
    """No wrapper, and at most fifteen lines of a person's; no core check is unmeasured."""
    root = make_root(tmp_path / "root", tiny_model, trains=trains, evaluates=evaluates)
    done = rehearse(root, tiny_model, by_hand=(LENGTH,) if trains == "notebook" else ())
    assert done.status == 0, done.output
    assert done.written <= MOST_LINES
    for stage in StageId:
        result = done.record.stages[stage]
        assert result.verdict.is_green, (stage, result.explanation)
    assert not done.broken(StageId.H2), done.record.stages[StageId.H2].findings
    trained = done.record.stages[StageId.H2].last_attempt
    assert trained is not None
    assert trained.training is not None
    assert trained.training.steps_done == trained.training.steps_due


@pytest.mark.parametrize(
    "settings",
    [
        "packing: true\n",
        "use_rslora: true\nlora_target_modules: [q_proj, v_proj]\n",
        "use_dora: true\nneftune_noise_alpha: 5\n",
    ],
    ids=["packing", "targets and rsLoRA", "DoRA and noise"],
)
def test_a_sound_variant_of_trl_is_accused_of_nothing(settings: str, tiny_model: Path, tmp_path: Path) -> None:
    """`trl sft --config` with a file of one's own: several rows in one, another LoRA."""
    root = make_root(tmp_path / "root", tiny_model, trains="trl", evaluates="lm_eval")
    (root / "sft.yaml").write_text(settings, encoding="utf-8")
    done = rehearse(root, tiny_model, only=H1_H2, by_hand=(("# extra = .*", 'extra = ["--config", "sft.yaml"]'),))
    assert done.status == 0, done.output
    assert not done.broken(StageId.H2), done.record.stages[StageId.H2].findings


@pytest.mark.parametrize(
    ("by_hand", "caught"),
    [
        ((('preset = "trl"', 'preset = "trl"\nwhen.use_4bit = ["--seed", "1"]'),), "quantised_as_asked"),
        ((("# extra = .*", 'extra = ["--completion_only_loss", "false", "--dataset_name", "other"]'),), "rows_seen"),
        ((("# extra = .*", 'extra = ["--learning_rate", "1e-6"]'),), "setup_seen"),
        (
            (
                ('preset = "trl"', 'preset = "trl"\nwhen.use_4bit = []'),
                ("# extra = .*", 'extra = ["--use_peft", "false"]'),
            ),
            "adapter_weights",
        ),
    ],
    ids=["a 4-bit flag that does nothing", "another file", "another rate", "peft lost"],
)  # fmt: skip
def test_a_defect_in_a_trl_training_is_found(
    by_hand: tuple[tuple[str, str], ...], caught: str, tiny_model: Path, tmp_path: Path
) -> None:
    """What the real program did is held against what was asked."""
    root = make_root(tmp_path / "root", tiny_model, trains="trl", evaluates="lm_eval")
    (root / "other").mkdir()
    other = [
        as_row(f"これは別のファイルの{n}番目の行で、元の学習データのどこにもない文である。", "z", "messages")
        for n in range(24)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in other)
    (root / "other" / "train.jsonl").write_text(lines, encoding="utf-8")
    done = rehearse(root, tiny_model, only=H1_H2, by_hand=by_hand)
    assert caught in done.broken(StageId.H2), done.output


@pytest.mark.parametrize(
    ("old", "new", "caught"),
    [
        (' + tokenizer.eos_token, add_special', ", add_special", "end_supervised"),
        ("remove_columns=data.column_names)", "remove_columns=data.column_names).select(range(6))", "rows_seen"),
        ("per_device_train_batch_size=4", "per_device_train_batch_size=2 * 1", "batch_seen"),
        ('model.save_pretrained("outputs/lora")', 'model  # .save_pretrained("outputs/lora")', "adapter_weights"),
        ("[-100] * len(ids) + answer", "[-100] * (len(ids) + len(answer))", "tokens_supervised"),
        ("num_train_epochs=1", "num_train_epochs=0.5 * 1", "steps_complete"),
    ],
    ids=["EOS masked", "rows dropped", "another batch", "not saved", "labels masked", "half an epoch"],
)  # fmt: skip
def test_a_defect_in_a_notebooks_export_is_found(
    old: str, new: str, caught: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Settings that its text has inside are fixed by the draft of the sound one; yesterday's adapter does not pass."""
    root = make_root(tmp_path / "root", tiny_model, trains="notebook", evaluates="lm_eval")
    sound = (root / "train.py").read_text(encoding="utf-8")
    drafted = CliRunner().invoke(app, ["init", str(root)])
    assert drafted.exit_code == 0
    draft, completed = re.subn(*LENGTH, (root / "steph.toml").read_text(encoding="utf-8"), flags=re.M)
    assert completed
    (root / "steph.toml").unlink()
    assert old in sound
    (root / "train.py").write_text(sound.replace(old, new), encoding="utf-8")
    (root / "outputs" / "lora").mkdir(parents=True)
    (root / "outputs" / "lora" / "adapter_config.json").write_text("{}")
    done = rehearse(root, tiny_model, only=H1_H2, by_hand=((r"\A(?s:.*)\Z", draft),))
    assert caught in done.broken(StageId.H2), done.output
