"""A training's figures against its process: what fits, what was rounded, and what belongs to another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from steph.base.files import sha256_of
from steph.base.terms import Severity
from steph.contract.lines import Metrics
from steph.contract.training_files import OwnFigures, TrainerState, TrainingLog
from steph.judge.checks_progress import time_checks
from steph.judge.evidence import Trained
from steph.record.settings import TrainSettings
from steph.record.values import Check

SETTINGS = TrainSettings(batch_size=2, gradient_accumulation_steps=2)


def final(**values: float) -> TrainingLog:
    """A Trainer's final line over 140 rows and 35 steps, with these figures changed."""
    figures = {"runtime": 46.9, "samples_per_second": 2.985, "steps_per_second": 0.746} | values
    return TrainingLog(final=Metrics(tuple((f"train_{key}", value) for key, value in figures.items())))


def evidence(folder: Path) -> Trained:
    """A training that lived for a minute."""
    return Trained(
        log=final(), settings=SETTINGS, state=TrainerState(train_batch_size=2, fresh=True), own=OwnFigures(),
        losses=(2.0,) * 35, steps_done=35, epochs=1.0, rows=140, seconds=60.0, loss_arrivals=(12.0, 58.0),
        output_dir=folder, output_place=folder.resolve(),
    )  # fmt: skip


def check(check_id: str, given: Trained) -> Check:
    """One check of these figures."""
    return next(found for found in time_checks(given) if found.id == check_id)


@pytest.mark.parametrize(
    ("runtime", "seconds", "holds", "severity"),
    [
        (46.9, 60.0, True, None),
        (61.5, 60.0, True, None),  # clocks
        (1250.0, 60.0, False, Severity.FAIL),
        (0.0469, 60.0, False, Severity.WARN),
        (46.9, None, None, Severity.INFO),
    ],
)
def test_a_runtime_fits_into_the_life_of_its_process(
    runtime: float, seconds: float | None, holds: bool | None, severity: Severity | None, tmp_path: Path
) -> None:
    """Longer than the process lived is another run's; far below the time between its own losses is a wrong clock."""
    found = check("runtime_lived", replace(evidence(tmp_path), log=final(runtime=runtime), seconds=seconds))
    assert found.holds is holds
    assert severity is None or found.severity is severity


@pytest.mark.parametrize(
    ("changes", "figures", "holds"),
    [
        ({}, {}, True),
        ({}, {"samples_per_second": 29.85}, False),
        ({}, {"samples_per_second": 0.3}, False),
        ({}, {"steps_per_second": 7.46}, False),
        ({}, {"runtime": 4.69}, False),
        ({"steps_done": 50, "epochs": 1.43}, {"samples_per_second": 4.264, "steps_per_second": 1.066}, True),  # capped
        ({"steps_done": 32}, {"samples_per_second": 2.687, "steps_per_second": 0.682}, True),  # a tenth held out
        ({"steps_done": 6}, {"samples_per_second": 0.49, "steps_per_second": 0.128}, True),  # packed
        ({}, {"runtime": 46900.0, "samples_per_second": 0.003, "steps_per_second": 0.001}, True),  # three decimals
        ({"rows": None}, {}, None),
        ({"log": TrainingLog()}, {}, None),
    ],
)
def test_the_printed_speed_is_that_of_these_rows_and_steps(
    changes: dict[str, object], figures: dict[str, float], holds: bool | None, tmp_path: Path
) -> None:
    """Held out, packed, capped and rounded are this run; ten times the rows are not."""
    given = replace(evidence(tmp_path), log=final(**figures))
    assert check("speed_agrees", replace(given, **changes)).holds is holds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "holds"),
    [
        (OwnFigures(steps=35, epochs=1.0, losses=(2.0,) * 35, step_seconds=(1.3,) * 35), True),
        (OwnFigures(tokens_per_second=900.0), True),
        (OwnFigures(), None),
        (OwnFigures(steps=400), False),
        (OwnFigures(epochs=3.0), False),
        (OwnFigures(losses=(0.3,) * 35), False),
        (OwnFigures(step_seconds=(20.0,) * 35), False),
    ],
)
def test_a_pipelines_own_figures_are_of_this_run(own: OwnFigures, holds: bool | None, tmp_path: Path) -> None:
    """Steps, epochs, losses and seconds are held against what was printed, logged and lived."""
    assert check("own_figures_agree", replace(evidence(tmp_path), own=own)).holds is holds


def test_an_input_that_was_rewritten_or_is_gone_is_named(tmp_path: Path) -> None:
    """The file's hash before the stage is the one after it."""
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    given = replace(evidence(tmp_path), inputs=((path, sha256_of(path)),))
    assert check("inputs_unchanged", given).holds is True
    path.write_text("{}\n{}\n")
    assert "rows.jsonl" in str(check("inputs_unchanged", given).message)
    path.unlink()
    assert check("inputs_unchanged", given).holds is False
    assert check("inputs_unchanged", evidence(tmp_path)).holds is None


def test_a_folder_that_became_a_link_is_named_and_a_link_that_was_there_is_not(tmp_path: Path) -> None:
    """A person may keep the outputs on another disk; a training that puts a link there shows somebody else's files."""
    (tmp_path / "elsewhere").mkdir()
    linked = tmp_path / "out"
    linked.symlink_to(tmp_path / "elsewhere")
    given = replace(evidence(tmp_path), output_dir=linked)
    assert check("output_in_place", replace(given, output_place=linked.resolve())).holds is True
    assert "elsewhere" in str(check("output_in_place", replace(given, output_place=linked)).message)
    assert check("output_in_place", replace(given, output_place=None)).holds is None
