"""`steph init` drafts a description from what lies in a folder, and `steph check` shows what it stands for."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from japanese import JAPANESE
from steph.base.messages import LANGUAGES, Language, speaking
from steph.cli import app
from steph.contract.draft import draft, findings, survey
from steph.contract.programs import read_script
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("english")
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NOTEBOOK = """
# In[1]:
MODEL = "models/tiny"
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16))
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
data = load_dataset("json", data_files="data/chat.jsonl")
args = TrainingArguments(output_dir="outputs", per_device_train_batch_size=4, max_steps=30, bf16=True)
Trainer(model=model, args=args).train()
model.save_pretrained("outputs/lora")
"""
TRAIN = """
import argparse
parser = argparse.ArgumentParser()
for name in ("--weird",): pass
parser.add_argument("--base-model"); parser.add_argument("--data-path"); parser.add_argument("--out")
parser.add_argument("--epochs", type=int); parser.add_argument("--lr", type=float)
parser.add_argument("--qlora", action="store_true"); parser.add_argument("--seed", type=int)
args = parser.parse_args()
trainer = SFTTrainer(model=args.base_model, args=SFTConfig(per_device_train_batch_size=2, max_length=256),
                     peft_config=LoraConfig(r=16, lora_alpha=32))
trainer.train()
"""
EVALUATE = """
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--model"); parser.add_argument("--lora"); parser.add_argument("-n", "--limit", type=int)
args = parser.parse_args()
model.generate()
rows = [{"question": q, "answer": a, "prediction": p, "correct": p == a}]
json.dump({"accuracy": 0.5, "total": 2, "results": rows}, open("scores.json", "w"))
"""
FACTORY = """
### model
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
stage: sft
do_train: true
dataset: law   # of dataset_info.json
template: qwen
"""
AXOLOTL = """
base_model: Qwen/Qwen2.5-1.5B-Instruct
datasets:
  - path: data/law.jsonl
    type: chat_template
sequence_len: 512
"""
ALPACA = {"instruction": "q", "input": "", "output": "a"}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def folder(place: Path, **files: str) -> Path:
    """A folder with these files; `__` in a name is a slash."""
    for name, text in files.items():
        path = place / name.replace("__", "/").replace("_py", ".py").replace("_jsonl", ".jsonl").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return place


def drafted(place: Path) -> dict[str, dict[str, object]]:
    """What the draft for a folder says; it is TOML."""
    found: dict[str, dict[str, object]] = tomllib.loads(draft(survey(place)))
    return found


def test_a_notebooks_export_has_its_settings_inside(tmp_path: Path) -> None:
    """Its model, folders and settings are read off its text; what it leaves to the libraries is their default."""
    place = folder(tmp_path, train_py=NOTEBOOK, data__chat_jsonl=json.dumps(CHAT) + "\n", data__more_jsonl='{"x": 1}\n')
    found = drafted(place)
    train = found["train"]
    assert train["command"] == ["{python}", "train.py"]
    assert train["fixed"] == {
        "batch_size": 4, "bnb_4bit_compute_dtype": "bfloat16", "gradient_accumulation_steps": 1,
        "learning_rate": 5e-5, "logging_steps": 500, "lora_alpha": 8, "lora_dropout": 0.0, "lora_r": 4,
        "max_steps": 30, "mixed_precision": "bf16", "target_modules": ["q_proj"], "use_4bit": True,
    }  # fmt: skip
    assert train["rows"] == {"file": "data/chat.jsonl", "format": "messages"}
    assert (train["output_dir"], train["artifacts"]) == ("outputs", {"adapter": "{output_dir}/lora"})
    assert found["model"] == {"candidates": ["models/tiny"]}
    assert "# fixed must also say max_seq_length = …\n" in draft(survey(place))
    assert "the script does not set gradient_accumulation_steps, learning_rate" in draft(survey(place))


def test_a_script_with_a_command_line_is_called_by_its_own_options(tmp_path: Path) -> None:
    """Known options get their placeholders, switches their condition, and those left over are named."""
    place = folder(tmp_path, scripts__finetune_py=TRAIN, evaluate_py=EVALUATE)
    found = drafted(place)
    assert found["train"]["command"] == [
        "{python}", "scripts/finetune.py", "--base-model", "{model}", "--data-path", "{train_file}",
        "--out", "{output_dir}", "--epochs", "{num_epochs}", "--lr", "{learning_rate}",
    ]  # fmt: skip
    assert found["train"]["when"] == {"use_4bit": ["--qlora"]}
    assert found["train"]["fixed"]["max_seq_length"] == 256  # type: ignore[index]
    assert "# it also takes --seed\n" in draft(survey(place))
    evaluate = found["evaluate"]
    assert evaluate["command"] == ["{python}", "evaluate.py", "--model", "{model}", "--limit", "{samples}"]
    assert evaluate["when"] == {"adapter": ["--lora", "{adapter}"]}
    assert evaluate["results"] == {
        "file": "scores.json", "score": "accuracy", "count": "total", "rows": "results",
        "row": {"question": "question", "expected": "answer", "predicted": "prediction", "correct": "correct"},
    }  # fmt: skip


def test_a_base_model_may_be_called_base(tmp_path: Path) -> None:
    """A script's `--base` gets the model, in training and evaluation: else both would use its own default."""
    renamed = TRAIN.replace("--base-model", "--base"), EVALUATE.replace('"--model"', '"--base"')
    found = drafted(folder(tmp_path, finetune_py=renamed[0], evaluate_py=renamed[1]))
    for section in ("train", "evaluate"):
        assert found[section]["command"][2:4] == ["--base", "{model}"]  # type: ignore[index]


def test_trl_and_lm_eval_are_presets(tmp_path: Path) -> None:
    """`trl` among the requirements and no training script; a task of lm_eval's with its folder."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "law.yaml").write_text("task: law\ndataset_path: json\n")
    found = drafted(folder(tmp_path, requirements_txt="trl>=1.0\n", train_jsonl=json.dumps(CHAT) + "\n"))
    assert found["train"] == {"preset": "trl", "rows": {"file": "train.jsonl", "format": "messages"}}
    assert found["evaluate"] == {"preset": "lm-eval", "extra": ["--include_path", "tasks", "--tasks", "law"]}


def factory(place: Path, info: object, settings: str = FACTORY) -> dict[str, object]:
    """The `[train]` of a folder with LLaMA-Factory's files: rows, `dataset_info.json` and a file of settings."""
    (place / "data").mkdir()
    (place / "data" / "law.json").write_text(json.dumps([ALPACA, ALPACA]))
    (place / "data" / "dataset_info.json").write_text(json.dumps(info))
    (place / "train_lora.yaml").write_text(settings)
    return drafted(place)["train"]


def test_llamafactory_is_known_by_its_file_of_settings(tmp_path: Path) -> None:
    """Its rows are found through dataset_info.json; the model that its template fits is the candidate."""
    found = factory(tmp_path, {"other": {"file_name": "x.json"}, "law": {"file_name": "law.json"}})
    assert found == {
        "preset": "llamafactory",
        "config": "train_lora.yaml",
        "rows": {"file": "data/law.json", "format": "alpaca"},
    }
    assert drafted(tmp_path)["model"] == {"candidates": ["Qwen/Qwen2.5-1.5B-Instruct"]}
    assert "train_lora.yaml: settings for llamafactory" in list(findings(survey(tmp_path)))


@pytest.mark.parametrize(
    ("info", "settings", "why"),
    [
        ({"law": {"hf_hub_url": "someone/law"}}, FACTORY, "law is no file of data"),
        ({}, FACTORY, "data/dataset_info.json has no law"),
        ({}, FACTORY.replace("law ", "law,identity "), "it trains on 2 data sets, law, identity"),
        ({}, f"{FACTORY}dataset_dir: sets\n", "sets/dataset_info.json can't be read"),
        (
            {"law": {"file_name": "law.json", "columns": {"prompt": "instruction", "response": "completion"}}},
            FACTORY,
            r"law has names of its own for response \(completion\)",
        ),
    ],
)  # fmt: skip
def test_rows_of_llamafactory_that_cant_be_compared_are_left_out_with_the_reason(
    info: object, settings: str, why: str, tmp_path: Path
) -> None:
    """No row format stands for them, so none is claimed: the draft says why nothing of them is compared."""
    assert factory(tmp_path, info, settings)["rows"] == {"format": "none"}
    assert re.search(f'^rows.format = "none"   # {why}: none of its rows is compared$', draft(survey(tmp_path)), re.M)


def test_conversations_with_roles_of_openais_are_known(tmp_path: Path) -> None:
    """`sharegpt` with the tags role and content, in a column called messages."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"law": {"file_name": "../chat.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}}
    (tmp_path / "chat.json").write_text(json.dumps([CHAT]))
    found = factory(tmp_path, {"law": {**info["law"], "tags": tags}})
    assert found["rows"] == {"file": "chat.json", "format": "messages"}


def test_axolotl_is_known_by_its_file_of_settings(tmp_path: Path) -> None:
    """Its one data set is a file of the folder; a script beside it that trains does not hide it."""
    place = folder(tmp_path, data__law_jsonl=json.dumps(CHAT) + "\n", src__train_py=TRAIN)
    (place / "qlora.yml").write_text(AXOLOTL)
    found = drafted(place)["train"]
    assert found == {
        "preset": "axolotl", "config": "qlora.yml", "rows": {"file": "data/law.jsonl", "format": "messages"},
    }  # fmt: skip
    by_loader = AXOLOTL.replace("path: data/law.jsonl", "path: json\n    data_files: data/law.jsonl")
    (place / "qlora.yml").write_text(by_loader)
    assert drafted(place)["train"] == found
    (place / "qlora.yml").write_text(AXOLOTL.replace("data/law.jsonl", "tatsu-lab/alpaca"))
    assert drafted(place)["train"]["rows"] == {"format": "none"}
    assert "tatsu-lab/alpaca is no file of this folder" in draft(survey(place))


UNSLOTH = """
from unsloth import FastLanguageModel
model, tokenizer = FastLanguageModel.from_pretrained(model_name="unsloth/tinyllama", max_seq_length=1024)
model = FastLanguageModel.get_peft_model(model, r=64, lora_alpha=128)
trainer = SFTTrainer(model=model, args=SFTConfig(output_dir="outputs", max_steps=60, learning_rate=1e-4,
                     per_device_train_batch_size=2, gradient_accumulation_steps=4))
model.save_pretrained("lora_model")
"""


def test_a_script_with_unsloth_has_its_settings_in_its_own_calls(tmp_path: Path) -> None:
    """Its class loads in 4 bits and makes the LoRA, each by defaults of its own."""
    train = drafted(folder(tmp_path, train_py=UNSLOTH))["train"]
    assert (train["preset"], train["command"]) == ("unsloth", ["{python}", "train.py"])
    assert train["fixed"] == {
        "batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-4, "logging_steps": 10,
        "lora_alpha": 128, "lora_dropout": 0.0, "lora_r": 64, "max_seq_length": 1024, "max_steps": 60, "use_4bit": True,
    }  # fmt: skip
    assert drafted(tmp_path)["model"] == {"candidates": ["unsloth/tinyllama"]}
    assert not read_script("t.py", UNSLOTH.replace("FastLanguageModel", "AutoModelForCausalLM")).unsloth


def test_nothing_of_another_programs_environment_is_looked_at(tmp_path: Path) -> None:
    """Virtual environments and hidden folders are passed over; a script that does not parse, too."""
    place = folder(tmp_path, **{".venv__lib__train_py": NOTEBOOK, "venv__train_py": NOTEBOOK, "broken_py": "def ("})
    assert list(findings(survey(place))) == []
    assert not read_script("broken.py", "def (").trains


def test_a_notebook_is_told_to_be_exported(tmp_path: Path) -> None:
    """A notebook can't be run as it is."""
    (tmp_path / "a.ipynb").write_text("{}")
    assert any("jupyter nbconvert --to script a.ipynb" in line for line in findings(survey(tmp_path)))


def test_init_writes_once_and_overwrites_nothing(tmp_path: Path) -> None:
    """A description that is there stays byte for byte, and the status says so."""
    runner = CliRunner()
    folder(tmp_path, train_py=NOTEBOOK)
    assert runner.invoke(app, ["init", str(tmp_path)]).exit_code == 0
    written = (tmp_path / "steph.toml").read_bytes()
    again = runner.invoke(app, ["init", str(tmp_path)])
    assert (again.exit_code, (tmp_path / "steph.toml").read_bytes()) == (2, written)
    assert runner.invoke(app, ["init", str(tmp_path / "nowhere")]).exit_code == 2


def without_notes(description: str) -> list[str]:
    """A description's lines without its comments."""
    return [line.partition("   # ")[0] for line in description.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("chosen", LANGUAGES)
@pytest.mark.parametrize("makes", ["script", "trl", "llamafactory", "nothing"])
def test_init_prints_and_writes_in_one_language(tmp_path: Path, chosen: Language, makes: str) -> None:
    """What is printed and what is written are in the language of `--language`; the keys are the same in each."""
    root = tmp_path / "p"
    match makes:
        case "script":
            root.mkdir()
            folder(root, train_py=NOTEBOOK, evaluate_py=EVALUATE, data__chat_jsonl=json.dumps(CHAT) + "\n")
            (root / "a.ipynb").write_text("{}")
        case "trl":
            shutil.copytree(EXAMPLES / "trl", root)
        case "llamafactory":
            shutil.copytree(EXAMPLES / "llamafactory", root)
        case "nothing":
            root.mkdir()
    (root / "steph.toml").unlink(missing_ok=True)
    other: Language = "en" if chosen == "ja" else "ja"
    with speaking(other):
        keys = without_notes(draft(survey(root)))
    told = CliRunner().invoke(app, ["init", str(root), "--language", chosen]).output
    written = (root / "steph.toml").read_text(encoding="utf-8")
    assert written in told
    assert without_notes(written) == keys
    notes = [line.partition("# ")[2] for line in written.splitlines() if "# " in line]
    notes = [note for note in notes if not re.fullmatch(r"extra = .*", note)]
    printed = [line for line in told.replace(written, "").splitlines() if line]
    assert all(bool(JAPANESE.search(line)) is (chosen == "ja") for line in printed)
    assert notes
    assert all(bool(JAPANESE.search(note)) is (chosen == "ja") for note in notes)


@pytest.mark.parametrize("is_whole", [True, False])
def test_init_asks_only_for_what_is_missing(tmp_path: Path, is_whole: bool) -> None:
    """The next step names the places to fill in where the draft has some, and else the command alone."""
    root = tmp_path / "my pipeline"
    if is_whole:
        shutil.copytree(EXAMPLES / "llamafactory", root)
        (root / "steph.toml").unlink()
    else:
        root.mkdir()
        folder(root, train_py="import torch\n")
    said = CliRunner().invoke(app, ["init", str(root), "--language", "en"]).output
    assert ("…" in (root / "steph.toml").read_text(encoding="utf-8")) is not is_whole
    assert f"steph check '{root}'" in said
    assert ("fill in every" in said) is not is_whole


@pytest.mark.parametrize(("program", "said"), [("docker", "nothing is seen inside docker"), ("{python}", "")])
def test_check_shows_commands_and_what_can_be_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    """It starts nothing: the programs leave no trace, and no record is opened."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\ntouch started\n")
    (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steph.toml").write_text(
        f"""[train]
command = ["{program}", "train.py", "{{model}}", "{{train_file}}", "{{learning_rate}}"]
rows = {{ file = "t.jsonl", format = "messages" }}
fixed.lora_r = 8
fixed.lora_alpha = 8
fixed.batch_size = 1
fixed.max_seq_length = 64
fixed.gradient_accumulation_steps = 1
fixed.num_epochs = 1
[evaluate]
none = "later"
""",
        encoding="utf-8",
    )
    (tmp_path / "t.jsonl").write_text(json.dumps(CHAT) + "\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--profile", "cpu", "--language", "en"])
    shown = result.output + capfd.readouterr().out
    assert result.exit_code == 0, shown
    assert "train.py steph/tiny-qwen2 t.jsonl 0.0002" in shown
    assert "H-3: NOT_RUN, later; the run exits with 1" in shown
    assert (f"training_seen: can't be measured: {said}" if said else "training_seen: can be measured") in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "steph.toml", "t.jsonl"]


@pytest.mark.parametrize(
    ("evaluate", "is_named"),
    [
        ('command = ["{python}", "e.py", "{model}", "{adapter}"]', False),
        ('command = ["{python}", "e.py", "{model}", "{adapter}"]\nresults.format = "lm_eval"', False),
        ('command = ["{python}", "e.py", "{model}", "{adapter}"]\nresults.file = "scores.json"', True),
        ('command = ["{python}", "e.py", "{model}", "{adapter}"]\noutput = "scores.json"', True),
        ('command = ["{python}", "e.py", "{model}", "{adapter}", "--out={output}"]', True),
    ],
)
def test_check_says_where_no_results_can_be_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], evaluate: str, is_named: bool
) -> None:
    """Of any format: neither a key names their file, nor is the evaluation told where to write."""
    train = '[train]\ncommand = ["{python}", "train.py", "{model}", "{train_file}"]\n'
    train += 'rows = { file = "t.jsonl", format = "messages" }\n'
    fixed: dict[str, float] = {"lora_r": 8, "lora_alpha": 8, "batch_size": 1, "max_seq_length": 64, "num_epochs": 1}
    fixed |= {"gradient_accumulation_steps": 1, "learning_rate": 2e-4}
    train += "".join(f"fixed.{name} = {value}\n" for name, value in fixed.items())
    (tmp_path / "steph.toml").write_text(f"{train}[evaluate]\nfixed.samples = 2\n{evaluate}\n")
    (tmp_path / "t.jsonl").write_text(json.dumps(CHAT) + "\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--profile", "cpu", "--language", "en"])
    shown = result.output + capfd.readouterr().out
    assert result.exit_code == 0, shown
    assert ("evaluate.results.file is missing" not in shown) is is_named


@pytest.mark.parametrize("chosen", LANGUAGES)
def test_check_speaks_one_language(tmp_path: Path, capfd: pytest.CaptureFixture[str], chosen: Language) -> None:
    """Each line but those of commands and of the file's own words."""
    train = '[train]\ncommand = ["{python}", "train.py", "{model}", "{train_file}"]\n'
    train += 'rows = { file = "t.jsonl", format = "messages" }\n'
    train += "fixed = { lora_r = 8, lora_alpha = 8, batch_size = 1, max_seq_length = 64, num_epochs = 1, "
    train += "gradient_accumulation_steps = 1, learning_rate = 2e-4 }\n"
    (tmp_path / "steph.toml").write_text(f'{train}[evaluate]\nnone = "x"\n')
    (tmp_path / "t.jsonl").write_text(json.dumps(CHAT) + "\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--profile", "cpu", "--language", chosen])
    shown = [line for line in (result.output + capfd.readouterr().out).splitlines() if line]
    assert result.exit_code == 0, shown
    told = [line for line in shown if not line.startswith(("  cd ", "  export ", "  /", "      ", "    "))]
    assert [line for line in told if bool(JAPANESE.search(line)) is not (chosen == "ja")] == []


def test_check_refuses_what_a_run_would_refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The line is the run's own, and the status is 2."""
    (tmp_path / "steph.toml").write_text('[train]\npreset = "tlr"')
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--profile", "cpu", "--language", "en"])
    assert result.exit_code == 2
    assert "unknown preset 'tlr'" in result.output + "".join(capfd.readouterr())


HEAD = """
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model
"""
STYLES = {
    "click": """
@click.command()
@click.option("--ckpt", "model_id")
@click.option("-d", "--rows-path", type=click.Path())
@click.option("--half/--no-half")
@click.argument("dest")
def main(model_id, rows_path, half, dest):
    base = AutoModelForCausalLM.from_pretrained(model_id)
    rows = [json.loads(line) for line in open(rows_path)]
    Trainer(model=base, args=TrainingArguments(output_dir=dest, bf16=half)).train()
""",
    "typer": """
@app.command()
def train(base: str, corpus: Path, mb: int = 4, rate: Annotated[float, typer.Option("--step-size")] = 1e-4,
          out: Path = Path("o")):
    rows = load_dataset("json", data_files=str(corpus))
    SFTTrainer(model=base, args=SFTConfig(output_dir=str(out), per_device_train_batch_size=mb, learning_rate=rate))
""",
    "fire": """
def train(base="m", keep="out", micro=4, low_rank=8):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=low_rank, lora_alpha=low_rank * 2))
    Trainer(model=model, args=TrainingArguments(output_dir=keep, per_device_train_batch_size=micro)).train()
fire.Fire(train)
""",
    "hydra": """
@hydra.main(config_path="conf")
def main(cfg):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(cfg.model.name), LoraConfig(r=cfg.lora.r))
    Trainer(model=model, args=TrainingArguments(output_dir=cfg.out, learning_rate=cfg.optim.lr)).train()
""",
    "dataclasses": """
@dataclass
class Own:
    base: str = field(default="m")
    low_rank: int = 8
own, args = HfArgumentParser((Own, TrainingArguments)).parse_args_into_dataclasses()
model = get_peft_model(AutoModelForCausalLM.from_pretrained(own.base), LoraConfig(r=own.low_rank))
Trainer(model=model, args=args).train()
""",
    "constants": """
class Config:
    model = "org/model"
    batch: int = 4
    ctx = 2 * 128
class Lora:
    rank = 8
cfg = Config()
model = get_peft_model(AutoModelForCausalLM.from_pretrained(cfg.model), LoraConfig(r=Lora.rank, lora_alpha=16))
rows = [tokenizer(x, max_length=cfg.ctx) for x in open("train.jsonl")]
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
ACCUMULATE = 8
for epoch in range(2):
    for batch in DataLoader(rows, batch_size=cfg.batch):
        loss = model(**batch).loss / ACCUMULATE
        loss.backward(); optimizer.step()
model.save_pretrained("lora-out")
""",
    "variables": """
BATCH = int(os.getenv("BATCH", "4"))
model = get_peft_model(AutoModelForCausalLM.from_pretrained(os.environ["BASE"]), LoraConfig(r=16, lora_alpha=16))
Trainer(model=model, args=TrainingArguments(output_dir=os.environ.get("OUT", "out"), learning_rate=1e-4,
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=int(os.environ["ACC"]) * 2)).train()
""",
    "a file of its own": """
cfg = yaml.safe_load(open(args.config))
model = get_peft_model(AutoModelForCausalLM.from_pretrained(cfg["model"]), LoraConfig(**cfg["lora"]))
Trainer(model=model, args=TrainingArguments(output_dir="out", per_device_train_batch_size=cfg["bs"], **cfg["more"]))
""",
    "places": """
model = get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1]), LoraConfig(r=8))
rows = open(sys.argv[2]).readlines()
Trainer(model=model, args=TrainingArguments(output_dir=sys.argv[3], max_steps=5)).train()
""",
    "handed on": """
parser.add_argument("model"); parser.add_argument("--rows-at-once", type=int); parser.add_argument("--seed")
a = parser.parse_args()
words = dict(per_device_train_batch_size=a.rows_at_once, learning_rate=1e-4, num_train_epochs=2)
words["num_train_epochs"] = 1
def build(name, rank=16):
    return get_peft_model(AutoModelForCausalLM.from_pretrained(name), LoraConfig(r=rank, lora_alpha=32))
Trainer(model=build(a.model, rank=4), args=TrainingArguments("out", **words)).train()
""",
    "under a condition": """
parser.add_argument("--model"); parser.add_argument("--squeeze", action="store_true")
a = parser.parse_args()
how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(a.model, quantization_config=how if a.squeeze else None)
Trainer(model=get_peft_model(model, LoraConfig(r=2)), args=TrainingArguments(output_dir="out")).train()
""",
}  # fmt: skip
LEFT = {"gradient_accumulation_steps": 1, "logging_steps": 500, "num_epochs": 3}
PEFT = {"lora_alpha": 8, "lora_dropout": 0.0}


@pytest.mark.parametrize(
    ("style", "words", "more", "lacking"),
    [
        ("click", "{output_dir} --ckpt {model} --rows-path {train_file}",
         {"when": {"bf16": ["--half"]}, "fixed": LEFT | {"batch_size": 8, "learning_rate": 5e-5}},
         "lora_r lora_alpha max_seq_length"),
        ("typer", "{model} {train_file} --out {output_dir} --mb {batch_size} --step-size {learning_rate}",
         {"fixed": LEFT | {"logging_steps": 10, "max_seq_length": 1024}}, "lora_r lora_alpha"),
        ("fire", "--base {model} --keep {output_dir} --micro {batch_size} --low_rank {lora_r}",
         {"fixed": LEFT | {"learning_rate": 5e-5, "lora_dropout": 0.0}}, "lora_alpha max_seq_length"),
        ("hydra", "model.name={model} out={output_dir} optim.lr={learning_rate} lora.r={lora_r}",
         {"fixed": LEFT | PEFT | {"batch_size": 8}}, "max_seq_length"),
        ("dataclasses",
         "--base {model} --output_dir {output_dir} --num_train_epochs {num_epochs} --max_steps {max_steps} "
         "--per_device_train_batch_size {batch_size} --learning_rate {learning_rate} "
         "--gradient_accumulation_steps {gradient_accumulation_steps} --low_rank {lora_r} "
         "--logging_steps {logging_steps}", {"fixed": PEFT}, "max_seq_length"),
        ("constants", "", {"output_dir": "lora-out", "fixed": {
            "batch_size": 4, "gradient_accumulation_steps": 8, "learning_rate": 3e-4, "lora_alpha": 16,
            "lora_dropout": 0.0, "lora_r": 8, "max_seq_length": 256, "num_epochs": 2}}, ""),
        ("variables", "", {
            "env": {"BASE": "{model}", "OUT": "{output_dir}", "BATCH": "{batch_size}"},
            "fixed": {"learning_rate": 1e-4, "logging_steps": 500, "lora_alpha": 16, "lora_dropout": 0.0, "lora_r": 16,
                      "num_epochs": 3}}, "gradient_accumulation_steps max_seq_length"),
        ("a file of its own", "", {"output_dir": "out"}, "batch_size gradient_accumulation_steps learning_rate lora_r "
         "lora_alpha max_seq_length num_epochs"),
        ("places", "{model} {train_file} {output_dir}", {"fixed": PEFT | {
            "batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 5e-5, "logging_steps": 500, "lora_r": 8,
            "max_steps": 5}}, "max_seq_length"),
        ("handed on", "{model} --rows-at-once {batch_size}", {"output_dir": "out", "fixed": {
            "learning_rate": 1e-4, "lora_alpha": 32, "lora_dropout": 0.0, "lora_r": 4}},
         "gradient_accumulation_steps max_seq_length num_epochs"),
        ("under a condition", "--model {model}", {"output_dir": "out", "when": {"use_4bit": ["--squeeze"]},
         "fixed": LEFT | PEFT | {"batch_size": 8, "learning_rate": 5e-5, "lora_r": 2}}, "max_seq_length"),
    ],
)  # fmt: skip
def test_a_draft_has_what_the_program_does_or_a_place_to_fill_in(
    style: str, words: str, more: dict[str, object], lacking: str, tmp_path: Path
) -> None:
    """Whatever reads the command line, its own names are passed; a library's default stands for nothing that is set."""
    place = folder(tmp_path, train_py=HEAD + STYLES[style])
    train = drafted(place)["train"]
    assert train.pop("command") == ["{python}", "train.py", *words.split()]
    del train["rows"]
    assert train == more
    said = re.search(r"# fixed must also say (.*)", draft(survey(place)))
    assert {one.partition(" ")[0] for one in said[1].split(", ")} == {*lacking.split()} if said else not lacking


def test_no_program_however_odd_stops_the_survey(tmp_path: Path) -> None:
    """What no program would do is passed over; names that stand for themselves or for each other are from nowhere."""
    text = (
        HEAD
        + """
os.getenv([1]); os.environ[{}]; sys.argv["x"]; sys.argv[0]; open([1], "w"); open()
dict(**{[1]: 2, **a}); TrainingArguments(**{})
a = b
b = a
x = x
def f(a=f(), *, b=f): f(b, a, *a, **b)
class C: y: int; z = y = C
TrainingArguments(learning_rate=a, output_dir=x, per_device_train_batch_size=f(f)(f), warmup_ratio=None, max_steps=-1)
add_argument(); parser.add_argument(""); parser.add_argument("-", dest=[]); parser.add_argument(*names, action=[])
HfArgumentParser(C); Trainer(); typer.Option(); LoraConfig(r=b, lora_alpha=lora_alpha)
"""
    )
    train = drafted(folder(tmp_path, train_py=text))["train"]
    assert train["command"] == ["{python}", "train.py"]
    assert {"learning_rate", "lora_r", "lora_alpha", "batch_size", "max_steps"}.isdisjoint(train["fixed"])  # type: ignore[arg-type]


def test_settings_that_differ_from_place_to_place_are_left_open(tmp_path: Path) -> None:
    """Two values under one name, or an option that is worked on first: the draft claims neither."""
    text = (
        HEAD
        + """
batch = 4
batch = batch * torch.cuda.device_count()
rate = 1e-4 if big else 2e-4
Trainer(model=get_peft_model(model, LoraConfig(r=8)), args=TrainingArguments(output_dir="out", learning_rate=rate,
        per_device_train_batch_size=batch)).train()
"""
    )
    train = drafted(folder(tmp_path, train_py=text))["train"]
    assert {"batch_size", "learning_rate"}.isdisjoint(train["fixed"])  # type: ignore[arg-type]
    assert "# fixed must also say batch_size = …, learning_rate = …" in draft(survey(tmp_path))


@pytest.mark.parametrize(
    ("loads", "when", "fixed"),
    [
        ("if a.squeeze:\n    more['quantization_config'] = how", {"use_4bit": ["--squeeze"]}, None),
        ("AutoModel.from_pretrained(m, quantization_config=None if a.squeeze else how)", {}, None),
        ("if torch.cuda.is_available():\n    more['quantization_config'] = how", {}, None),
        ("AutoModel.from_pretrained(m, quantization_config=how)", {}, True),
        ("if __name__ == '__main__':\n    get_peft_model(AutoModel.load(quantization_config=how))", {}, True),
    ],
)  # fmt: skip
def test_4bit_under_a_condition_is_no_setting_inside(
    loads: str, when: dict[str, list[str]], fixed: bool | None, tmp_path: Path
) -> None:
    """An option that is the condition switches it on; its opposite and a condition of the machine say nothing."""
    text = (
        HEAD
        + """
parser.add_argument("--squeeze", action="store_true")
a = parser.parse_args()
how = BitsAndBytesConfig(load_in_4bit=True)
Trainer(model=m, args=TrainingArguments(output_dir="out"))
"""
    )
    train = drafted(folder(tmp_path, train_py=text + loads))["train"]
    assert train.get("when", {}) == when
    assert train["fixed"].get("use_4bit") is fixed  # type: ignore[attr-defined]


OWN_LOOP = """
parser.add_argument("--checkpoint"); parser.add_argument("--lora"); parser.add_argument("--first", type=int)
parser.add_argument("--report"); parser.add_argument("--config"); parser.add_argument("--quiz")
a = parser.parse_args()
base = AutoModelForCausalLM.from_pretrained(a.checkpoint)
model = PeftModel.from_pretrained(base, a.lora)
settings = yaml.safe_load(open(a.config))
found = []
for row in read(a.quiz)[: a.first]:
    text = model.generate()
    found.append({"question": row["q"], "gold": row["a"], "pred": text[:1], "raw": text, "hit": True})
"""


@pytest.mark.parametrize(
    ("writes", "results"),
    [
        ('json.dump({"em": 0.5, "n": len(found), "items": found}, open(a.report, "w"))',
         {"file": "{output}", "score": "em", "count": "n", "rows": "items"}),
        ('Path(a.report).write_text(json.dumps({"accuracy": 0.5, "everything": found}))',
         {"file": "{output}", "score": "accuracy", "rows": "everything"}),
        ('pd.DataFrame(found).to_csv(a.report)', {"file": "{output}"}),
        ('file = open(a.report, "w")\nfor one in found: file.write(json.dumps(one) + "\\n")', {"file": "{output}"}),
        ('json.dump({"quality": 0.5, "rest": other(found)}, open(a.report, "w"))',
         {"file": "{output}", "score": "…", "rows": "…"}),
    ],
)  # fmt: skip
def test_an_evaluation_of_any_name_is_found_with_where_its_rows_are(
    writes: str, results: dict[str, str], tmp_path: Path
) -> None:
    """It answers and writes; a file of settings is not taken for its results, and rows are where they are put."""
    evaluate = drafted(folder(tmp_path, quiz_py=HEAD + OWN_LOOP + writes, train_py=NOTEBOOK))["evaluate"]
    assert evaluate["command"] == [
        "{python}", "quiz.py", "--checkpoint", "{model}", "--first", "{samples}", "--report", "{output}",
    ]  # fmt: skip
    assert evaluate["when"] == {"adapter": ["--lora", "{adapter}"]}
    row = {"question": "question", "expected": "gold", "predicted": "pred", "response": "raw", "correct": "hit"}
    assert evaluate["results"] == results | {"row": row}
    ending = ".csv" if "csv" in writes else ".jsonl" if "\\n" in writes else None
    assert evaluate.get("output") == (ending and f"steph-evaluation{ending}")


OWN_PROGRAMS = """
[train]
command = ["{python}", "t.py", "{model}"]
rows = { file = "t.jsonl", format = "messages" }
[train.fixed]
lora_r = 8
lora_alpha = 8
batch_size = 1
max_seq_length = 64
num_epochs = 1
gradient_accumulation_steps = 1
learning_rate = 2e-4
[evaluate]
fixed.samples = 2
command = ["{python}", "e.py", "{model}", "{adapter}"]
results.file = "out.json"
results.score = "bleu"
"""


@pytest.mark.parametrize(
    ("row", "is_refused"),
    [
        ('rows = "items"\nrow = { question = "q", expected = "gold", response = "said" }', True),
        ('rows = "items"\nrow = { question = "q", predicted = "said" }', True),
        ('rows = "items"', True),
        ('rows = "items"\nrow = { question = "q", correct = "ok" }', False),
        ('rows = "items"\nrow = { question = "q", expected = "gold", predicted = "said" }', False),
        ("", False),  # a figure over all, such as BLEU
    ],
)
def test_rows_that_nobody_can_call_right_are_refused_before_anything_runs(
    row: str, is_refused: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else the evaluation would fail for it after a whole training."""
    told = row.replace("rows =", "results.rows =").replace("row =", "results.row =")
    (tmp_path / "steph.toml").write_text(OWN_PROGRAMS + told)
    (tmp_path / "t.jsonl").write_text(json.dumps(CHAT) + "\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--profile", "cpu", "--language", "en"])
    said = result.output + "".join(capfd.readouterr())
    assert ("name the key that says so as correct" in said, result.exit_code) == (is_refused, 2 * is_refused), said


def test_the_length_that_rows_are_cut_to_is_no_number_of_samples(tmp_path: Path) -> None:
    """`ids[:args.most]` looks as `rows[:args.limit]` does; a training has no samples, so the option's name says it."""
    (tmp_path / "train.py").write_text("""
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--model_max_length", type=int, default=512)
args = parser.parse_args()
rows = [tokenizer(line)["input_ids"][: args.model_max_length] for line in open("train.jsonl")]
model = get_peft_model(model, LoraConfig(r=8))
Trainer(model=model, args=TrainingArguments(output_dir="out"), train_dataset=rows).train()
""")
    assert '"--model_max_length", "{max_seq_length}"' in draft(survey(tmp_path))


def test_a_draft_asks_for_what_says_that_a_row_is_right(tmp_path: Path) -> None:
    """A question, its reference and a text: nothing in them says which texts are right."""
    (tmp_path / "evaluate.py").write_text("""
rows = []
for row in json.load(open("test.json")):
    out = model.generate(**tokenizer(row["q"], return_tensors="pt"))
    rows.append({"question": row["q"], "reference": row["a"], "generated": tokenizer.decode(out[0])})
json.dump({"accuracy": bleu(rows), "answers": rows}, open("out.json", "w"))
""")
    assert 'response = "generated", correct = "…" }' in draft(survey(tmp_path))


def test_rows_without_a_place_are_refused_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A table of figures has its rows under a key; a list of rows alone needs none."""
    train = '[train]\ncommand = ["{python}", "t.py", "{model}"]\nrows = { file = "t.jsonl", format = "messages" }\n'
    train += "fixed = { lora_r = 8, lora_alpha = 8, batch_size = 1, max_seq_length = 64, num_epochs = 1, "
    train += "gradient_accumulation_steps = 1, learning_rate = 2e-4 }\n[evaluate]\nfixed.samples = 2\n"
    train += 'command = ["{python}", "e.py", "{model}", "{adapter}"]\n'
    train += 'results.file = "out.json"\nresults.row = { question = "q", correct = "ok" }\n'
    for more, status in (('results.score = "em"\n', 2), ('results.count = "n"\n', 2), ("", 0),
                         ('results.score = "em"\nresults.rows = "items"\n', 0)):  # fmt: skip
        (tmp_path / "steph.toml").write_text(train + more)
        (tmp_path / "t.jsonl").write_text(json.dumps(CHAT) + "\n")
        result = CliRunner().invoke(app, ["check", str(tmp_path), "--profile", "cpu", "--language", "en"])
        said = result.output + "".join(capfd.readouterr())
        assert ("results.rows" in said, result.exit_code) == (status == 2, status), said
