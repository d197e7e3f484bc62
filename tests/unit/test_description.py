"""A description builds on presets, says what is wrong in one line, and keeps what 0.1.0's files said."""

from __future__ import annotations

from pathlib import Path

import pytest
from steph.conduct.preparation import config_template, read_inputs
from steph.contract.commands import (
    Place,
    applied,
    evaluate_call,
    evaluated_in_4bit,
    own_models,
    passed_names,
    train_call,
    unsaid_settings,
)
from steph.contract.description import Description, DescriptionError, load_description, preset_names, preset_table
from steph.contract.options import Options
from steph.contract.placeholders import filled, filled_words, spelled
from steph.contract.settings import Profile, load_profile, profile_path
from steph.record.settings import EvalSettings, TrainSettings
from steph.run.inputs import InputError

pytestmark = pytest.mark.usefixtures("english")
PLACE = Place(
    Path("/root"), "/env/bin/python", on_gpu=True, train_file="d/t.jsonl", train_dir="/rec/rows", config="/rec/c.yaml"
)
BARE = """
[train]
command = ["{bin}/x", "{model}", "{train_file}", "{learning_rate}", "{max_seq_length}"]
rows = { file = "d/t.jsonl", format = "text" }
fixed = { batch_size = 4, gradient_accumulation_steps = 1, lora_r = 8, lora_alpha = 8, num_epochs = 1 }
[evaluate]
command = ["{python}", "e.py", "{adapter}", "{samples}", "{output}"]
"""

CONFIGS = {name: {"config": "c.yaml"} for name in ("axolotl", "llamafactory")}  # a file of a person's own
HAVE_NO_WORD_FOR = {
    "llamafactory": {"bnb_4bit_compute_dtype"},  # 4-bit layers compute as the training does
    "axolotl": {"bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "target_modules"},
    "unsloth": {"bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "mixed_precision"},  # its own, by the card
}


def described(folder: Path, text: str) -> Description:
    """The description that a `steph.toml` with this text is."""
    (folder / "steph.toml").write_text(text, encoding="utf-8")
    return load_description(folder)


def profile() -> Profile:
    """The profile that a run without options takes."""
    return load_profile(profile_path("rtx3080", Path()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[train]\npreset = "tlr"',
            "train.preset: unknown preset 'tlr'; known: axolotl, lawqa, llamafactory, lm-eval, trl, unsloth",
        ),
        ("[train]\nfixed = { batch_size = … }", "line 2: … stands for what `steph init` did not find"),
        ('[train]\ncommand = ["{python}", "…"]  # …', "line 2: … stands for"),
        ('preset = "trl"', "evaluate: the preset 'trl' has none"),
        ('[train]\npreset = "trl"', r"\[evaluate\]: missing; give it a preset or a command"),
        ('[evaluate]\npreset = "lm-eval"', r"\[train\]: missing"),
        (BARE.replace("{model}", "{modle}"), r"train.command: unknown placeholder {modle}; did you mean {model}\?"),
        (BARE.replace("{samples}", "{zzz}"), "evaluate.command: unknown placeholder {zzz}; allowed: adapter, "),
        (BARE.replace("fixed =", 'when.cup = ["x"]\nfixed ='), "train.when.cup: unknown key"),
        (BARE.replace("batch_size = 4", "max_steps = 900"), "train.fixed.max_steps: 900 is not allowed.*no heavy"),
        (BARE.replace('file = "d/t.jsonl", ', ""), "train.rows.file: missing"),
        (BARE.replace('"text"', '"parquet"'), "train.rows.format: 'parquet' is not allowed"),
        ('[evaluate]\nnone = ""\n[train]\npreset = "trl"', "evaluate.none: '' is not allowed: it must not be empty"),
        (
            '[train]\npreset = "llamafactory"\nrows.file = "d/t.jsonl"\n[evaluate]\nnone = "x"',
            'train.config: missing; name the file of settings of this pipeline: config = "train.yaml"',
        ),
        (BARE.replace("[evaluate]", "config = 3\n[evaluate]"), "train.config: 3 is not allowed"),
        ('[train]\ncommand = []\n[evaluate]\nnone = "x"', "train.command: .* it must not be empty"),
        ('[train]\ncommand = "trl sft"\n[evaluate]\nnone = "x"', "train.command: 'trl sft' is not allowed"),
        ("train = 3", "train: 3 is not allowed"),
        (
            'trainer = "undescribed"',
            "trainer: 'undescribed' is not allowed: allowed: 'full', 'answer', 'reference', 'trl', 'liger', 'unsloth'$",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_file_key_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    """A misspelt placeholder, key or preset is named, and so is what is missing."""
    with pytest.raises(DescriptionError, match=f"steph.toml: {said}"):
        described(tmp_path, text)


def test_a_file_of_0_1_0_calls_the_published_scripts(tmp_path: Path) -> None:
    """Its keys mean what they did, and its commands are those of a root without a description."""
    description = described(
        tmp_path, 'trainer = "answer"\noptional_flags = []\n[paths]\ntrain_script = "t.py"\ntrain_file = "r.jsonl"'
    )
    assert (description.train_file, description.output_dir) == ("r.jsonl", Description().output_dir)
    argv = train_call(description, PLACE, "m", TrainSettings(), cap_steps=False).argv
    assert argv[:2] == ("/env/bin/python", "t.py")
    assert description.train == Description().train
    assert description.evaluate == Description().evaluate


def test_only_differences_are_written_and_tables_are_laid_over_key_by_key(tmp_path: Path) -> None:
    """A condition of one's own leaves the preset's others; words behind its command are `extra`."""
    text = '[train]\npreset = "trl"\nrows.file = "d/t.jsonl"\nwhen.bf16 = ["--half"]\nextra = ["--packing"]'
    train = described(tmp_path, f'{text}\n[evaluate]\npreset = "lm-eval"\nextra = ["--tasks", "x"]').train
    assert (train.when.bf16, train.when.cpu, train.rows.format) == (("--half",), ("--use_cpu",), "messages")
    argv = train_call(load_description(tmp_path), PLACE, "m", TrainSettings(), cap_steps=False).argv
    assert "--packing" in argv


def test_a_command_of_ones_own_takes_nothing_from_a_preset(tmp_path: Path) -> None:
    """Without a preset of its own name: no lawqa lines, formats, data set or output."""
    description = described(tmp_path, BARE)
    assert description.evaluate.results.format == "json"
    assert (description.dataset, description.output_dir, description.output) == (
        None, "steph-adapter", "steph-evaluation.json"
    )  # fmt: skip


def test_a_top_level_preset_goes_for_both_sections(tmp_path: Path) -> None:
    """`preset = "lawqa"` is what holds without a file."""
    assert described(tmp_path, 'preset = "lawqa"').train == Description().train


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_a_sound_description(name: str, tmp_path: Path) -> None:
    """Its keys and placeholders are known, and it passes or fixes all that must be said."""
    sections = preset_table(name)
    text = "".join(f'[{section}]\npreset = "{name}"\n' for section in sections)
    own = "".join(f'{key} = "{value}"\n' for key, value in {"rows.file": "d/t.jsonl", **CONFIGS.get(name, {})}.items())
    text = text.replace("[train]\n", f"[train]\n{own}")
    text += '[evaluate]\nnone = "x"\n' if "evaluate" not in sections else ""
    text += '[train]\npreset = "trl"\nrows.file = "d/t.jsonl"\n' if "train" not in sections else ""
    description = described(tmp_path, text)
    assert unsaid_settings(description) <= {"num_epochs", *HAVE_NO_WORD_FOR.get(name, ())}
    assert applied(profile(), description).train == profile().train


def test_the_trl_command_is_the_one_that_a_person_would_type(tmp_path: Path) -> None:
    """At a profile's settings, with 4-bit, on a GPU; a cap on the steps only where an epoch is longer."""
    description = described(tmp_path, '[train]\npreset = "trl"\nrows.file = "d/t.jsonl"\n[evaluate]\nnone = "x"')
    argv = train_call(description, PLACE, "m", TrainSettings(), cap_steps=True, steps=7).argv
    said = " ".join(argv)
    assert said.startswith("/env/bin/trl sft --model_name_or_path m --dataset_name /rec/rows --output_dir steph-out/")
    for words in (
        "--max_length 512", "--use_peft --lora_r 16", "--load_in_4bit --bnb_4bit_quant_type nf4 --dtype bfloat16",
        "--bf16 false", "--max_steps 7", "--report_to none",
    ):  # fmt: skip
        assert words in said
    assert "--use_cpu" not in said
    plain = train_call(description, PLACE, "m", TrainSettings(use_4bit=False, mixed_precision="bf16"), cap_steps=False)
    assert not {"--load_in_4bit", "--max_steps"} & {*plain.argv}
    assert " ".join(plain.argv).endswith("--bf16 true --dtype bfloat16")
    assert plain.env["WANDB_MODE"] == "disabled"


def test_the_lm_eval_command_has_its_adapter_within_a_word(tmp_path: Path) -> None:
    """`peft=` is joined to `pretrained=`, and is not there where the base model alone is evaluated."""
    text = '[train]\npreset = "trl"\nrows.file = "d/t.jsonl"\n[evaluate]\npreset = "lm-eval"\nextra = ["--tasks", "x"]'
    description = described(tmp_path, text)
    argv = evaluate_call(description, PLACE, "m", EvalSettings(), adapter="runs/a").argv
    assert argv[:5] == ("/env/bin/lm_eval", "--model", "hf", "--model_args", "pretrained=m,peft=runs/a")
    assert argv[-4:] == ("--tasks", "x", "--device", "cuda:0")
    assert "pretrained=m" in evaluate_call(description, PLACE, "m", EvalSettings(), adapter=None).argv


def test_a_fixed_setting_takes_the_place_of_the_profiles_and_has_no_rung(tmp_path: Path) -> None:
    """Rungs keep what the command passes; what is nowhere said is not asked for."""
    description = described(tmp_path, BARE)
    found = applied(profile(), description)
    assert (found.train.batch_size, found.train.lora_r, found.train.use_4bit) == (4, 8, False)
    assert [rung.model_dump(exclude_none=True) for rung in found.ladder] == [
        {"max_seq_length": 384}, {"max_seq_length": 256}
    ]  # fmt: skip
    assert "lora_dropout" in unsaid_settings(description)
    assert found.evaluate.load_in_4bit is False
    fixed = described(tmp_path, BARE + "\nfixed = { load_in_4bit = true, ensemble = 5 }")
    asked = applied(profile(), fixed).evaluate
    assert (asked.load_in_4bit, asked.ensemble) == (True, 5)
    # its program loads 4-bit weights whatever the training did; others only as the training did
    assert evaluated_in_4bit(fixed, asked, trained_in_4bit=False)
    assert not evaluated_in_4bit(description, asked, trained_in_4bit=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size = 4, ", "", "the command passes no {batch_size}; put them there, or say what"),
        ("num_epochs = 1", "learning_rate = 1e-4, num_epochs = 1", "train.fixed.learning_rate: the command passes"),
        ('"{samples}", ', "", r"evaluate: the command passes no {samples}.*fixed = { samples = … }, at most 10"),
    ],
)
def test_a_setting_is_passed_or_fixed_and_never_both(tmp_path: Path, old: str, new: str, said: str) -> None:
    """What decides on steps, memory and the adapter's shape must be said once."""
    with pytest.raises(DescriptionError, match=said):
        applied(profile(), described(tmp_path, BARE.replace(old, new)))


def test_a_projects_own_models_take_the_place_of_the_profiles(tmp_path: Path) -> None:
    """Of any size, in their order, and no foreign substitute; a template within the rows allows none at all."""
    models = profile().model
    own = own_models(models, described(tmp_path, f'{BARE}\n[model]\ncandidates = ["a/b-0.1B", "a/c"]'))
    assert (own.candidates, own.preferred, own.min_parameters) == (("a/b-0.1B", "a/c"), 2, 0)
    assert own_models(models, described(tmp_path, BARE)).candidates == models.candidates[:1]
    messages = BARE.replace('"text"', '"messages"')
    assert own_models(models, described(tmp_path, messages)) == models


def test_commands_run_in_a_row_in_their_folder_with_their_variables(tmp_path: Path) -> None:
    """Each with its placeholders; paths are absolute where the folder is another than the root."""
    more = 'before = [["{python}", "build.py", "{train_file}"]]\nafter = [["{bin}/merge", "{output_dir}"]]\n'
    more += 'cwd = "src"\nenv = { MODEL = "{model}" }\n'
    call = train_call(
        described(tmp_path, BARE.replace("[evaluate]", f"{more}[evaluate]")),
        PLACE,
        "m",
        TrainSettings(),
        cap_steps=False,
    )
    assert call.commands == (
        ("/env/bin/python", "build.py", "/root/d/t.jsonl"),
        ("/env/bin/x", "m", "/root/d/t.jsonl", "0.0002", "512"),
        ("/env/bin/merge", "/root/steph-adapter"),
    )
    assert (call.cwd, call.env) == ("src", {"MODEL": "m"})


def test_a_file_of_settings_is_made_of_its_template(tmp_path: Path) -> None:
    """Values are spelled so that YAML reads numbers as numbers; other braces stay."""
    text = BARE.replace("[evaluate]", 'config = { file = "c.yaml", template = "c.in" }\n[evaluate]')
    template = "lr: {learning_rate}\nfour: {use_4bit}\nchat: '{{ messages }}'\nempty: {}\nliteral: {{model}}\n"
    place = Place(**{**PLACE.__dict__, "template": template})
    call = train_call(described(tmp_path, text), place, "m", TrainSettings(learning_rate=2e-5), cap_steps=False)
    assert call.config == "lr: 2.0e-05\nfour: true\nchat: '{{ messages }}'\nempty: {}\nliteral: {model}\n"
    assert {"learning_rate", "use_4bit"} <= passed_names(load_description(tmp_path).train, template)


def test_a_file_of_settings_of_ones_own_is_given_as_it_is(tmp_path: Path) -> None:
    """It is named and not copied, so braces in it are no placeholders; from another folder its path is whole."""
    text = BARE.replace('"{learning_rate}"', '"{config}", "{learning_rate}"')
    text = text.replace("[evaluate]", 'config = "conf/c.yaml"\n[evaluate]')
    train = described(tmp_path, text).train
    assert train.config is not None
    assert train.config.place(Path("/rec")) == "conf/c.yaml"
    (tmp_path / "conf").mkdir()
    with pytest.raises(InputError, match=r"conf/c.yaml: cannot be read \(config in steph.toml\)"):
        config_template(tmp_path, train)
    (tmp_path / "conf" / "c.yaml").write_text("chat: '{instruction}'\n")
    assert config_template(tmp_path, train) is None
    elsewhere = described(tmp_path, text.replace("[evaluate]", 'cwd = "src"\n[evaluate]', 1))
    place = Place(**{**PLACE.__dict__, "config": "conf/c.yaml"})
    assert "/root/conf/c.yaml" in train_call(elsewhere, place, "m", TrainSettings(), cap_steps=False).argv


def test_a_setting_that_a_file_switches_on_is_switched_off_where_it_is_not_asked(tmp_path: Path) -> None:
    """A file of a person's own may say 4-bit and bf16; a rung without them takes both back."""
    text = '[train]\npreset = "llamafactory"\nconfig = "c.yaml"\nrows.file = "d/t.json"\n[evaluate]\nnone = "x"'
    description, place = described(tmp_path, text), Place(**{**PLACE.__dict__, "config": "c.yaml"})
    with_4bit = train_call(description, place, "m", TrainSettings(mixed_precision="bf16"), cap_steps=True, steps=7)
    assert with_4bit.argv[:4] == ("/env/bin/llamafactory-cli", "train", "c.yaml", "model_name_or_path=m")
    assert {"quantization_bit=4", "bf16=true", "fp16=false", "max_steps=7"} <= {*with_4bit.argv}
    without = train_call(description, place, "m", TrainSettings(use_4bit=False), cap_steps=False).argv
    assert {"quantization_bit=null", "bf16=false", "fp16=false"} <= {*without}
    assert not {"quantization_bit=4", "use_cpu=true"} & {*without}


def test_words_become_none_one_or_several() -> None:
    """A condition that stands alone is a number of words; one within a word is joined to it."""
    several = {"when.a": ("-x", "{model}"), "when.b": ()}
    words = filled_words(["{when.a}", "{when.b}", "k={model}{when.a}", '{"json": 1}'], {"model": "m"}, several)
    assert words == ("-x", "m", "k=m-xm", '{"json": 1}')
    assert filled("{unknown}", {}) == "{unknown}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-5, "2.0e-05"), (0.0002, "0.0002"), (True, "true"), (None, "no"), (("a", "b"), "a,b"), (1.5e-7, "1.5e-07")],
)
def test_a_setting_is_spelled_for_command_lines_and_yaml(value: object, text: str) -> None:
    """PyYAML takes a number with an exponent and no point for a text."""
    assert spelled(value) == text


def test_outputs_of_ones_own_are_known_to_be_moved_aside(tmp_path: Path) -> None:
    """A literal adapter folder and results file are the outputs, where nothing else is said."""
    text = BARE.replace("fixed =", 'artifacts.adapter = "outputs/lora"\nfixed =') + '\nresults.file = "scores.json"'
    description = described(tmp_path, text)
    assert (description.output_dir, description.output) == ("outputs/lora", "scores.json")


@pytest.mark.parametrize(
    ("fixed", "rows", "found"),
    [
        ("num_epochs = 2", 10, (2, 6)),  # 3 steps an epoch, as many as there are
        ("max_steps = 7", 10, (3, 7)),  # in the third epoch
        ("num_epochs = 1, max_steps = 7", 10, (3, 7)),  # as in the Trainer, steps go before epochs
    ],
)
def test_a_program_with_its_steps_inside_is_due_those(
    tmp_path: Path, fixed: str, rows: int, found: tuple[int, int]
) -> None:
    """Epochs and steps are those that the program makes of its rows, not the profile's."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.jsonl").write_text('{"text": "a"}\n' * rows)
    (tmp_path / "e.py").write_text("")
    text = BARE.replace("num_epochs = 1", fixed).replace(
        '"{bin}/x", "{model}", "{train_file}"', '"{python}", "{model}"'
    )
    (tmp_path / "steph.toml").write_text(text)
    options = Options("rtx3080", tmp_path, None, None, False, None, tmp_path / "reports")
    train = read_inputs(options, profile(), ()).profile.train
    assert (train.num_epochs, train.max_steps) == found


def test_a_training_that_nothing_shortens_is_no_heavy_one(tmp_path: Path) -> None:
    """Over 500 steps are refused before anything starts."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.jsonl").write_text('{"text": "a"}\n' * 2100)
    (tmp_path / "steph.toml").write_text(BARE.replace('"{train_file}", ', ""))
    options = Options("rtx3080", tmp_path, None, None, False, None, tmp_path / "reports")
    with pytest.raises(DescriptionError, match="are 525 steps, over 500, and nothing shortens them"):
        read_inputs(options, profile(), ())
