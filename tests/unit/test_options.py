"""What the suite makes of the options that a person typed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from steph import plugin
from steph.base.messages import language
from steph.base.terms import StageId
from steph.contract.options import Options
from steph.contract.settings import builtin_profiles
from steph.pytest_options import resolve_options
from steph.run.gpu import GpuBusyError, GpuLockError
from steph.run.hub import Hub, choose
from suite_runs import make_model


class _Reader:
    """Reads the options instead of running."""

    def __init__(self) -> None:
        self.options: list[Options] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        self.options.append(resolve_options(config))
        return 0


def _options(*words: str) -> Options:
    reader = _Reader()
    pytest.main(["-p", "steph.plugin", "--noconftest", *words], plugins=[reader])
    (options,) = reader.options
    return options


@pytest.mark.parametrize("is_relative", [True, False])
def test_a_link_to_a_model_is_the_folder_that_the_record_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_relative: bool
) -> None:
    """A rerun with the same words joins the record, and one whose link leads elsewhere by now does not."""
    link = tmp_path / "link"
    link.symlink_to(make_model(tmp_path / "real"))
    monkeypatch.chdir(tmp_path)
    recorded = choose([str(link)], Hub(), is_explicit=True).name
    asked = f"--steph-model={link.name if is_relative else link}"
    assert _options(asked).model == recorded == str(tmp_path.resolve() / "real")
    link.unlink()
    link.symlink_to(make_model(tmp_path / "another"))
    assert _options(asked).model != recorded


@pytest.mark.parametrize(("word", "is_on"), [("1", True), ("YES", True), ("off", False), ("0", False), ("", False)])
def test_a_switch_of_the_environment_is_on_or_off(monkeypatch: pytest.MonkeyPatch, word: str, is_on: bool) -> None:
    """The usual words in any case; an empty one is none."""
    monkeypatch.setenv("STEPH_TWIN", word)
    assert _options().twin is is_on


class _Speaker:
    """Asks a session for its language, as a stage would be told in it."""

    def __init__(self) -> None:
        self.languages: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        plugin._asked(config)
        self.languages.append(language())
        return 0


@pytest.mark.parametrize(
    ("words", "variable", "spoken"),
    [
        ((), "", "en"),
        ((), "JA", "ja"),
        (("-o", "steph_language=en"), "ja", "en"),
        (("-o", "steph_language=en", "--steph-language=ja"), "en", "ja"),
        (("--steph-profile=rtx3080",), "", "ja"),
    ],
)
def test_a_session_speaks_as_asked_and_then_as_its_profile_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], variable: str, spoken: str
) -> None:
    """Command line before ini key before environment before profile before Japanese; and not beyond its end."""
    monkeypatch.setenv("STEPH_LANGUAGE", variable)
    profile = tmp_path / "english.toml"
    told = (builtin_profiles() / "cpu.toml").read_text(encoding="utf-8")
    profile.write_text(f'{told}\n[report]\nlanguage = "en"\n', encoding="utf-8")
    speaker = _Speaker()
    pytest.main(["-p", "steph.plugin", "--noconftest", f"--steph-profile={profile}", *words], plugins=[speaker])
    assert speaker.languages == [spoken]
    assert language() == "ja"


@pytest.mark.parametrize(
    ("words", "variable", "named"),
    [
        (("--steph-language=de",), "", "--steph-language"),
        ((), "de", "STEPH_LANGUAGE"),
        (("-o", "steph_language=de"), "ja", "ini key steph_language"),
    ],
)
def test_a_language_that_nobody_speaks_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    variable: str,
    named: str,
) -> None:
    """With those that there are, and where it was asked for."""
    monkeypatch.setenv("STEPH_LANGUAGE", variable)
    assert pytest.main(["-p", "steph.plugin", "--noconftest", "-m", "gpu", "tests/acceptance", *words]) == 4
    (line,) = (line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("ERROR"))
    said = "'de' という言語はない(not a language of the suite)。使える値(allowed): ja、en"
    assert line == f"ERROR: {named}: {said}"


@pytest.mark.parametrize(
    ("words", "variable", "named"),
    [
        (("--steph-deep",), "", "--steph-deep"),
        (("-o", "steph_deep=true"), "", "ini key steph_deep"),
        ((), "1", "STEPH_DEEP"),
        ((), "maybe", "STEPH_DEEP"),
    ],
)
def test_an_option_that_is_gone_says_in_one_line_what_replaced_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    variable: str,
    named: str,
) -> None:
    """As an option, an ini key or a variable it ends the run with exit status 4 before anything is started."""
    monkeypatch.setenv("STEPH_DEEP", variable)
    monkeypatch.setenv("STEPH_LANGUAGE", "en")
    assert pytest.main(["-p", "steph.plugin", "--noconftest", "-m", "gpu", "tests/acceptance", *words]) == 4
    (line,) = (line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("ERROR"))
    assert line.startswith(f"ERROR: {named}: gone: `pytest -m extended` ")


@pytest.mark.parametrize(
    ("words", "in_profile", "said"),
    [
        ((), "", "train.max_steps: 0 は使えない。1 以上にする"),
        ((), "en", "train.max_steps: 0 is not allowed: at least 1"),
        (("--steph-language", "en"), "ja", "train.max_steps: 0 is not allowed: at least 1"),
        (("--steph-language", "ja"), "en", "train.max_steps: 0 は使えない。1 以上にする"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused_in_the_language_that_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], in_profile: str, said: str
) -> None:
    """By an option, else by the profile itself, though it can't be used."""
    told = f'[report]\nlanguage = "{in_profile}"\n' if in_profile else ""
    profile = tmp_path / "p.toml"
    profile.write_text(f'[machine]\ntitle = "x"\n[model]\ncandidates = ["a/b"]\n{told}[train]\nmax_steps = 0\n')
    arguments = ["-p", "steph.plugin", "--noconftest", "-m", "gpu", "tests/acceptance", f"--steph-profile={profile}"]
    assert pytest.main([*arguments, *words]) == 4
    assert f"p.toml: {said}" in "".join(capsys.readouterr())


@pytest.mark.parametrize("word", ["0", "false", "off", ""])
def test_an_option_that_is_gone_may_be_off(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """A CI that had it switched off runs on, and no help page mentions it."""
    monkeypatch.setenv("STEPH_DEEP", word)
    assert _options().calibrate is False


def test_a_switch_that_is_neither_on_nor_off_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was meant to be on must not run as if it were off."""
    monkeypatch.setenv("STEPH_TWIN", "y")
    monkeypatch.setenv("STEPH_LANGUAGE", "en")
    assert pytest.main(["-p", "steph.plugin", "--noconftest", "-m", "gpu", "tests/acceptance"]) == 4
    assert "STEPH_TWIN: 'y' is neither on nor off; allowed: 1, true, yes, on" in "".join(capsys.readouterr())


@pytest.mark.parametrize("error", [GpuLockError("/ro/steph/locks: no place"), GpuBusyError("GPU-1", None)])
def test_a_card_that_cannot_be_held_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: GpuLockError
) -> None:
    """Exit status 4 with the lock's own sentence, and no traceback of the plugin's."""

    def refuse(*facts: object) -> None:
        raise error

    profile = SimpleNamespace(machine=SimpleNamespace(device="cpu"))
    monkeypatch.setattr(plugin, "_asked", lambda config: (None, profile))
    monkeypatch.setattr(plugin, "_stage_of", lambda item: StageId.H1)
    monkeypatch.setattr(plugin, "_open", refuse)
    flags = dict.fromkeys(("collectonly", "setuponly", "setupplan", "continue_on_collection_errors"), False)
    item = SimpleNamespace(get_closest_marker=lambda name: name == "steph_stage")
    session = SimpleNamespace(config=SimpleNamespace(option=SimpleNamespace(**flags)), items=[item], testsfailed=0)
    with pytest.raises(pytest.UsageError) as refused:
        plugin.pytest_runtestloop(cast("pytest.Session", session))
    assert str(refused.value) == str(error)
