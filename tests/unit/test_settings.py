"""Profiles are validated whole, and each complaint names file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from steph.plan.ladder import ladder_without_4bit, settings_at
from steph.plan.settings import ProfileError, ProfileEvaluate, ProfileTrain, load_profile, profile_path
from steph.record import EvalSettings, TrainSettings

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("[train]\nmax_steps = 501\n", "train.max_steps: 501 is not allowed"),
        ("[train]\nmax_steps = 501\n", "no heavy experiments"),
        ("[evaluate]\nsamples = 11\n", "no full evaluation"),
        ("[train]\nbatchsize = 2\n", "train.batchsize: unknown key"),
        ('[train]\nbnb_4bit_quant_type = "int4"\n', "'nf4' or 'fp4'"),
        ("[[ladder]]\nmax_seq_length = 0\n", "ladder[0].max_seq_length: 0 is not allowed"),
        ("[[ladder]]\n", "a rung must change at least one setting"),
        (
            "[train]\nnum_processes = 2\n",
            "train.num_processes: 2 is not allowed: several processes need train.launcher",
        ),
        ("[evaluate]\nnum_processes = 0\nlauncher = 'torchrun'\n", "evaluate.num_processes: 0 is not allowed"),
        ("[train]\nlauncher = 'mpirun'\n", "'none', 'torchrun' or 'accelerate'"),
        ("[train]\nlearning_rate = 'fast'\n", "train.learning_rate: 'fast' is not allowed"),
        ("sha256 = 'x'\n", "unknown key"),
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
