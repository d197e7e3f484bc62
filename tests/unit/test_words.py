"""Console and diagnosis say what is so, in words of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import record_factory as factory
from scripted_training import choice
from steph.base.files import UnreadableError, json_lines, read_json_object
from steph.base.messages import say, speaking, verbatim
from steph.base.terms import Cause, EndedBy, Severity, StageId, Verdict
from steph.base.text import make_printable
from steph.contract.description import Description
from steph.diagnose.engine import diagnose
from steph.judge.checks_process import ModelEvidence, judge_model
from steph.judge.verdict import attempt_verdict, passed, stage_verdict
from steph.record.settings import TrainSettings
from steph.record.values import Check, Diagnosis
from steph.run.inputs import InputError, read_dataset
from steph.tell.wording import outcome_words
from suite_runs import CLONE, clean_environment, make_bench, run_pytest

TRACEBACK = 'Traceback (most recent call last):\n  File "/w/train.py", line 3, in <module>\n    main()\n'


@pytest.mark.parametrize(
    ("error", "cause", "said", "unsaid"),
    [
        ("EOFError: EOF when reading a line", Cause.OTHER, "標準入力", "データ"),
        ("EOFError: Ran out of input", Cause.BAD_DATA, "pickle", "標準入力"),
        ("SyntaxError: invalid syntax", Cause.OTHER, "文法エラー", "既知の原因"),
        ("IndentationError: unexpected indent", Cause.OTHER, "文法エラー", "既知の原因"),
        (
            "ValueError: Your setup doesn't support bf16/gpu. You need to assign use_cpu if you want to train on CPU",
            Cause.API_DRIFT,
            "bf16 に対応していません",
            "再起動",
        ),
    ],
)
def test_each_of_these_has_words_of_its_own(error: str, cause: Cause, said: str, unsaid: str) -> None:
    """A closed standard input, broken grammar and a precision that is not there are neither data nor driver."""
    found = diagnose(f"{TRACEBACK}{error}\n", 1)
    assert found.cause is cause
    words = " ".join(map(str, (found.meaning, *found.advice)))
    assert said in words
    assert unsaid not in words


def _check(severity: Severity, holds: bool | None, name: str = "x") -> Check:
    return Check(id=name, severity=severity, holds=holds, message=verbatim("m"))


def test_a_pass_counts_its_warnings() -> None:
    """問題なし stands only where nothing was found."""
    good, warned = _check(Severity.FAIL, True), _check(Severity.WARN, False)
    attempt = factory.trained(1, TrainSettings())
    assert stage_verdict(attempt, [good], ()) == (Verdict.PASS, say("verdict.clean"))
    verdict, words = stage_verdict(attempt, [good, warned, warned, warned], ())
    assert (verdict, str(words), words.text("en")) == (Verdict.PASS, "警告 3 件", "3 warnings")
    assert stage_verdict(attempt, [good, _check(Severity.INFO, False)], ()) == (Verdict.PASS, say("verdict.clean"))
    words = passed((verbatim("small"),), [warned])[1]
    assert str(words) == "条件付きで通過: small(警告 1 件)"
    assert words.text("en") == "Passed with conditions: small (1 warning)"


def test_a_timeout_names_its_limit() -> None:
    """What the limit was, and how long it took until the end; older records know no limit."""
    attempt = factory.trained(1, TrainSettings())
    attempt = attempt.changed(ended_by=EndedBy.DEADLINE, seconds=16.0, limit_seconds=6.0)
    decided = attempt_verdict(attempt)
    assert decided is not None
    assert decided[0] is Verdict.TIMEOUT
    assert str(decided[1]) == "制限時間 6 秒で打ち切り(終了まで 16秒)"
    assert decided[1].text("en") == "Stopped at its time limit of 6 s (ended after 16 s)"
    decided = attempt_verdict(attempt.changed(limit_seconds=None))
    assert decided is not None
    assert str(decided[1]) == "制限時間で打ち切り(終了まで 16秒)"


def test_another_error_is_not_called_so_twice() -> None:
    """その他エラー alone where the cause has no name."""
    attempt = factory.trained(1, TrainSettings()).changed(returncode=1, diagnosis=Diagnosis(cause=Cause.OTHER))
    assert outcome_words(attempt) == "その他エラー"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(3_200_000, "3.20M"), (1_836_828_672, "1.84B"), (494_032_768, "0.49B"), (0, "0"), (12_000, "12.00K")],
)
def test_a_small_model_is_no_model_of_zero_parameters(count: int, shown: str) -> None:
    """A twin of some million parameters is counted in millions."""
    model = choice("Qwen/Qwen1.5-1.8B-Chat").changed(parameters=count)
    evidence = ModelEvidence(
        model=model, is_there=True, is_explicit=False, min_parameters=0, max_parameters=1_500_000_000
    )
    (message,) = [str(check.message) for check in judge_model(evidence) if check.id == "parameters_in_range"]
    assert f"パラメータ数 {shown} が" in message
    assert "範囲 0〜1.5B" in message


def test_a_locale_without_japanese_still_shows_it() -> None:
    """ASCII becomes UTF-8; another encoding gets a mark for what it can't spell, and line ends stay line ends."""
    for encoding, shown in (("ascii", "問題\n".encode()), ("latin-1", b"??\n"), ("utf-8", "問題\n".encode())):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
        make_printable(stream, None)
        stream.write("問題\n")
        stream.flush()
        assert raw.getvalue() == shown


def test_a_run_under_the_c_locale_is_legible(tmp_path: Path) -> None:
    """`PYTHONUTF8=0 LC_ALL=C`: Japanese as UTF-8, and no escapes."""
    bench = make_bench(tmp_path)
    environment = {**clean_environment(), "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *bench.arguments(StageId.H1)],
        cwd=CLONE,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "H-1 PASS: 問題なし".encode() in done.stdout
    assert rb"\u" not in done.stdout
    assert rb"\n" not in done.stdout


def test_a_stale_result_is_shown_as_one(tmp_path: Path) -> None:
    """After H-1 was run again, what stands on the old one is marked in the terminal."""
    bench = make_bench(tmp_path)
    bench.run()
    _, output = bench.run(StageId.H1)
    lines = [line for line in output.splitlines() if line.startswith(("H-2 ", "H-3 ")) and "(古い結果)" in line]
    assert len(lines) == 2, output


def test_a_byte_order_mark_is_harmless_and_another_encoding_is_named(tmp_path: Path) -> None:
    """In selection.json, in rows and in a model's files alike."""
    description = Description.model_validate({"paths": {"dataset": "d.json"}})
    text = '{"samples": [{"問題文": "x"}]}'
    (tmp_path / "d.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_dataset(tmp_path, description)
    assert found is not None
    assert found.rows == 1
    (tmp_path / "d.json").write_bytes(text.encode("shift_jis"))
    with speaking("en"), pytest.raises(InputError, match=r"d\.json: it is not UTF-8 .*save it as UTF-8"):
        read_dataset(tmp_path, description)
    (line,) = json_lines('{"input": "問"}'.encode("shift_jis"))
    assert "save it as UTF-8" in line.trouble.text("en")
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json_object(tmp_path / "config.json") == {}


def test_json_that_is_nested_without_end_is_one_line(tmp_path: Path) -> None:
    """Whoever reads it says so."""
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "d.json").write_text(deep)
    with speaking("en"), pytest.raises(InputError, match=r"d\.json: it is not valid JSON"):
        read_dataset(tmp_path, Description.model_validate({"paths": {"dataset": "d.json"}}))
    with pytest.raises(UnreadableError, match="入れ子"):
        read_json_object(tmp_path / "d.json")
    (line,) = json_lines(deep.encode())
    assert "not valid JSON" in line.trouble.text("en")


@pytest.mark.parametrize("option", ["profile", "pipeline-root", "pipeline-python", "model", "report"])
def test_a_name_that_no_disk_can_hold_is_one_line(tmp_path: Path, option: str) -> None:
    """A name of 300 characters in any option of a path: exit 4, the option and the reason."""
    bench = make_bench(tmp_path)
    value = "/tmp/" + "x" * 300 + (".toml" if option == "profile" else "")  # noqa: S108
    status, output = bench.run(StageId.H1, options=(f"--steph-{option}={value}",))
    assert status == 4, output
    assert f"--steph-{option}" in output
    assert "File name too long" in output
    assert "INTERNALERROR" not in output


def test_a_name_that_no_disk_can_hold_is_one_line_for_the_command() -> None:
    """`steph report` and its like as well."""
    for command in (["report", "x" * 300], ["diagnose", "x" * 300]):
        done = subprocess.run(
            [sys.executable, "-m", "steph.cli", *command],
            env={**os.environ, "PYTHONPATH": str(CLONE / "plugins")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "File name too long" in done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_while_the_session_ends_is_status_2(tmp_path: Path) -> None:
    """An interruption in the report's making or in the summary: one line, no traceback of a hundred."""
    bench = make_bench(tmp_path)
    for place in ("steph.conduct.session.StageSession.finish", "steph.plugin._summarize"):
        module, _, name = place.rpartition(".")
        code = (
            "import importlib, pytest\n"
            "def broken(*a, **k):\n    raise KeyboardInterrupt\n"
            "def pytest_collection_finish(session):\n"
            f"    import steph.conduct.session, steph.plugin\n    {module}.{name} = broken\n"
        )
        (tmp_path / "meddler.py").write_text(code)
        status, output = run_pytest("-p", "meddler", bench.arguments(StageId.H1), PYTHONPATH=str(tmp_path))
        assert "Traceback" not in output
        assert "中断された" in output
        assert status == (2 if "finish" in place else 0)
