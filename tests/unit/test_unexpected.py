"""What the suite itself can't do is said in the record, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_training import ScriptedTraining, on_disk
from steph.base.messages import verbatim
from steph.base.terms import EndedBy, StageId, Verdict
from steph.conduct import attempts
from steph.conduct.stages import Conductor
from steph.record.events import ModelChosen, StageEnded, StageStarted
from steph.record.values import StageResult
from steph.run.runner import ChildOutcome, RunnerError
from steph.tell import wording

H1, H2, _ = StageId
SECRET = "hf_abcdefghij0123456789"
FULL = OSError(28, f"No space left\n on device, token {SECRET}", "/reports/runs/x")


def _conducted(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> StageResult:
    """H-2 where the first child can't be run for this reason."""

    def refuse(*spec: object, **options: object) -> ChildOutcome:
        raise error

    monkeypatch.setattr(attempts, "run_child", refuse)
    stage = ScriptedTraining(folder)
    stage.journal.append(StageStarted(at="", stage=H1))
    stage.journal.append(ModelChosen(at="", stage=H1, model=on_disk(folder / "model")))
    stage.journal.append(StageEnded(at="", stage=H1, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1))
    conductor = Conductor(stage.setup, stage.journal, stage.run.console, lambda _: None)
    try:
        conductor.run(H2, 60)
    except BaseException as raised:
        assert raised is error  # noqa: PT017
    assert SECRET not in "".join(stage.said)
    return stage.recorded


def test_an_error_of_the_system_keeps_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage is CRASHED with class and message in one line, secrets masked, and the attempt is no interruption."""
    h2 = _conducted(tmp_path, monkeypatch, FULL)
    assert h2.verdict is Verdict.CRASHED
    assert str(h2.explanation).startswith(
        "実行が中断された: OSError: [Errno 28] No space left on device, token hf_***: "
    )
    assert str(h2.explanation).endswith("'/reports/runs/x'")
    assert SECRET not in str(h2.explanation)
    (attempt,) = h2.attempts
    assert attempt.ended_by is EndedBy.SUITE_ERROR
    assert wording.outcome_words(attempt) == "その他エラー(スイート側)"


def test_a_child_that_cannot_be_run_from_here_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner knows why: FAIL with its sentence, and nothing is raised."""
    h2 = _conducted(tmp_path, monkeypatch, RunnerError("a pipeline can be run on Linux and WSL2 only"))
    assert (h2.verdict, str(h2.explanation)) == (
        Verdict.FAIL,
        "実行に必要なものが揃わない: a pipeline can be run on Linux and WSL2 only",
    )


@pytest.mark.parametrize(("said", "told"), [("SIGTERM", "SIGTERM"), ("", "KeyboardInterrupt")])
def test_a_signal_is_an_interruption_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    """Ctrl-C and signals stay what they were."""
    h2 = _conducted(tmp_path, monkeypatch, KeyboardInterrupt(*filter(None, [said])))
    assert (h2.verdict, str(h2.explanation)) == (Verdict.CRASHED, f"実行が中断された: {told}")
    assert h2.attempts[0].ended_by is EndedBy.INTERRUPTED
