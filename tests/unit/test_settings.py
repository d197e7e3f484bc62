"""Profiles are validated whole, and each complaint names file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from steph.conduct.training import ladder_without_4bit, settings_at
from steph.contract.settings import (
    ProfileError,
    ProfileEvaluate,
    ProfileProduction,
    ProfileTrain,
    load_profile,
    profile_path,
)
from steph.record.settings import EvalSettings, ProductionTarget, TrainSettings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("english")
MINIMAL = '[machine]\ntitle = "x"\n[model]\ncandidates = ["a/b"]\n'


def _load(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text, encoding="utf-8")
    load_profile(path)


@pytest.mark.parametrize("name", ["rtx3080", "cpu", "a100-20gb"])
def test_shipped_profiles_are_valid(name: str) -> None:
    """Each profile that comes with the suite loads, and its name is its file's name."""
    assert load_profile(profile_path(name, ROOT)).name == name


def test_default_profile_holds_the_specs_settings() -> None:
    """The RTX 3080 profile asks for exactly the settings of the spec's commands."""
    profile = load_profile(profile_path("rtx3080", ROOT))
    train, evaluate = profile.train, profile.evaluate
    assert profile.model.candidates[:2] == ("Qwen/Qwen1.5-1.8B-Chat", "Qwen/Qwen1.5-4B-Chat")
    assert (train.num_epochs, train.max_steps, train.batch_size, train.learning_rate) == (1, 50, 2, 2e-4)
    assert (train.max_seq_length, train.gradient_accumulation_steps, train.warmup_ratio) == (512, 2, 0.03)
    assert (train.lora_r, train.lora_alpha, train.lora_dropout) == (16, 32, 0.05)
    assert (train.use_4bit, train.bnb_4bit_quant_type, train.bnb_4bit_compute_dtype) == (True, "nf4", "bfloat16")
    assert (evaluate.samples, evaluate.top_k, evaluate.use_rag, evaluate.ensemble) == (3, 1, False, 1)


@pytest.mark.parametrize("name", ["rtx3080", "cpu", "a100-20gb"])
def test_settings_of_every_rung_are_the_same_again_from_the_journal(name: str) -> None:
    """What a later session reads from the record equals what a profile and its ladder ask for, at each rung."""
    profile = load_profile(profile_path(name, ROOT))
    for base, ladder in ((profile.train, profile.ladder), ladder_without_4bit(profile.train, profile.ladder)):
        for rung in range(len(ladder) + 1):
            settings = settings_at(base, ladder, rung)
            assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
    assert EvalSettings.model_validate_json(profile.evaluate.model_dump_json()) == profile.evaluate


def test_a_profile_without_a_table_has_the_defaults_of_that_table(tmp_path: Path) -> None:
    """The bounds of a profile's keys have the settings' own defaults."""
    path = tmp_path / "p.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    profile = load_profile(path)
    assert (profile.train, profile.evaluate) == (TrainSettings(), EvalSettings())
    assert ProfileTrain().model_dump() == TrainSettings().model_dump()
    assert ProfileEvaluate().model_dump() == EvalSettings().model_dump()
    assert profile.production == ProductionTarget()
    assert ProfileProduction().model_dump() == ProductionTarget().model_dump()


def test_a_record_is_not_held_to_a_profiles_bounds() -> None:
    """What H-4 advises on, or an older version asked, is read back; a profile of the same settings is refused."""
    long = {"num_epochs": 1000, "max_steps": 5000}
    assert TrainSettings.model_validate(long).num_epochs == 1000
    with pytest.raises(ValidationError, match="less than or equal to 10"):
        ProfileTrain.model_validate(long)


def test_a_card_of_no_table_needs_its_memory(tmp_path: Path) -> None:
    """Any card can be rented where the profile says what is usable of it."""
    path = tmp_path / "p.toml"
    path.write_text(f'{MINIMAL}[production]\ncard = "MI300X"\ncard_memory_gib = 191.5\n', encoding="utf-8")
    assert load_profile(path).production.card == "MI300X"


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("[train]\nmax_steps = 501\n", "train.max_steps: 501 is not allowed"),
        ("[train]\nmax_steps = 501\n", "no heavy experiments"),
        ("[evaluate]\nsamples = 11\n", "no full evaluation"),
        ("[train]\nbatchsize = 2\n", "train.batchsize: unknown key"),
        ('[train]\nbnb_4bit_quant_type = "int4"\n', "allowed: 'nf4', 'fp4'"),
        ("[[ladder]]\nmax_seq_length = 0\n", "ladder[0].max_seq_length: 0 is not allowed"),
        (
            '[production]\ncard = "A100 21GB"\n',
            "production: card: A100 21GB: not known; of NVIDIA's cards known are A10, A100 20GB slice",
        ),
        ("[production]\nprice_per_hour = 0\n", "production.price_per_hour: 0 is not allowed"),
        ('[production]\nprice_per_hour = "2"\n', "production.price_per_hour: '2' is not allowed"),
        ("[production]\nquestions = 0\n", "production.questions: 0 is not allowed"),
        ('[production]\nmodel = ""\n', "production.model: '' is not allowed: it must not be empty"),
        ("[production]\nlearning_rate = 1e-4\n", "production.learning_rate: unknown key"),
        ("[[ladder]]\n", "a rung must change at least one setting"),
        (
            "[train]\nnum_processes = 2\n",
            "train.num_processes: 2 is not allowed: several processes need train.launcher",
        ),
        ("[evaluate]\nnum_processes = 0\nlauncher = 'torchrun'\n", "evaluate.num_processes: 0 is not allowed"),
        ("[train]\nlauncher = 'mpirun'\n", "allowed: 'none', 'torchrun', 'accelerate'"),
        ("[train]\nlearning_rate = 'fast'\n", "train.learning_rate: 'fast' is not allowed"),
        ("sha256 = 'x'\n", "unknown key"),
        ('[train]\nuse_4bit = "yes"\n', "train.use_4bit: 'yes' is not allowed: it must be true or false"),
        ('[train]\nmax_steps = "10"\n', "train.max_steps: '10' is not allowed: it must be a whole number"),
        ("[train]\nmax_steps = true\n", "train.max_steps: true is not allowed"),
        ("[train]\nmax_steps = 10.0\n", "train.max_steps: 10.0 is not allowed"),
        ("[train]\nlora_dropout = false\n", "train.lora_dropout: false is not allowed"),
        ("[train]\nmax_seq_length = 9223372036854775808\n", "train.max_seq_length: 9223372036854775808 is not allowed"),
        ("[train]\nbatch_size = 5000\n", "at most 4096"),
        ("[[ladder]]\nmax_seq_length = 9223372036854775807\n", "ladder[0].max_seq_length"),
        ("[limits]\nh1_seconds = inf\n", "limits.h1_seconds: inf is not allowed: it must be a finite number"),
        ("[limits]\nh1_seconds = nan\n", "limits.h1_seconds: nan is not allowed"),
        ("[limits]\nh1_seconds = 1e9\n", "at most 604800"),
        ("[ladder]\nbatch_size = 1\n", "ladder: a table is not allowed: write `[[ladder]]`, once for each"),
        ("[[train]]\nmax_steps = 1\n", "train: a list is not allowed: write `[train]`, once"),
    ],
)
def test_a_bad_key_or_value_is_named(tmp_path: Path, addition: str, said: str) -> None:
    """A bad profile is refused with its file, key, value and what is allowed."""
    text = addition + MINIMAL if addition.startswith("sha256") else MINIMAL + addition
    with pytest.raises(ProfileError, match=r"p\.toml") as caught:
        _load(tmp_path, text)
    assert said in str(caught.value)


def test_accelerate_on_the_cpu_is_refused(tmp_path: Path) -> None:
    """`accelerate launch --cpu` starts one process whatever it is asked for: said before anything runs."""
    two = '[train]\nlauncher = "accelerate"\nnum_processes = 2\n'
    with pytest.raises(ProfileError, match=r"p\.toml: train\.num_processes: 2 .* set train\.launcher to \"torchrun\""):
        _load(tmp_path, MINIMAL.replace('title = "x"', 'title = "x"\ndevice = "cpu"') + two)


def test_every_bad_key_has_its_own_line(tmp_path: Path) -> None:
    """Two mistakes in one profile are both reported at once."""
    with pytest.raises(ProfileError) as caught:
        _load(tmp_path, MINIMAL + "[train]\nmax_steps = 0\nlora_r = 0\n")
    assert len(str(caught.value).splitlines()) == 2


def test_missing_keys_broken_toml_and_missing_files_are_one_line_each(tmp_path: Path) -> None:
    """What can't be read at all is said in one line that names the file."""
    for text in ("[machine]\ntitle='x'\n", "[machine\n", '[machine]\ntitle="x"\n[model]\ncandidates=[]\n'):
        with pytest.raises(ProfileError, match=r"p\.toml") as caught:
            _load(tmp_path, text)
        assert "\n" not in str(caught.value)
    with pytest.raises(ProfileError, match="no such file"):
        profile_path("missing.toml", tmp_path)
    with pytest.raises(ProfileError, match=r"known: .*rtx3080"):
        profile_path("rtx9999", tmp_path)


def test_a_persons_profile_beside_the_project_comes_first(tmp_path: Path) -> None:
    """A profile in the project's own profiles folder is found by its name."""
    own = tmp_path / "profiles" / "rtx3080.toml"
    own.parent.mkdir()
    own.write_text(MINIMAL, encoding="utf-8")
    assert profile_path("rtx3080", tmp_path) == own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL.replace('"x"', '""'), "machine.title: '' is not allowed: it must not be empty"),
        (MINIMAL.replace('"x"', '"  "'), "machine.title: ' ' is not allowed: it must not be empty"),
        (MINIMAL.replace('"a/b"', '" "'), "model.candidates[0]: ' ' is not allowed: it must not be empty"),
        (MINIMAL.replace('["a/b"]', '"a/b"'), "model.candidates: 'a/b' is not allowed"),
        ("a = " + "[" * 100_000 + "]" * 100_000, "not valid TOML"),
    ],
)
def test_what_is_empty_or_nested_without_end_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A title and a candidate say something; nothing that a file can hold ends in a traceback."""
    with pytest.raises(ProfileError) as caught:
        _load(tmp_path, text)
    assert said in str(caught.value)


def test_a_profile_may_begin_with_a_mark_and_is_else_utf8(tmp_path: Path) -> None:
    """A byte order mark does no harm; another encoding is named with its remedy."""
    _load(tmp_path, "\ufeff" + MINIMAL)
    (tmp_path / "sjis.toml").write_bytes(MINIMAL.replace("x", "機械").encode("shift_jis"))
    with pytest.raises(ProfileError, match=r"sjis\.toml: not UTF-8 .*; save it as UTF-8"):
        load_profile(tmp_path / "sjis.toml")


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    """`30` is a fine number of seconds, and an array is a list."""
    path = tmp_path / "p.toml"
    path.write_text(MINIMAL + '[train]\ntarget_modules = ["q_proj"]\n[limits]\nh1_seconds = 30\n', encoding="utf-8")
    assert load_profile(path).limits.h1_seconds == 30
    assert load_profile(path).train.target_modules == ("q_proj",)
