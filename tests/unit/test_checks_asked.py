"""Whether a training did what its flags asked: what a Trainer prints and writes in, checks out."""

from __future__ import annotations

import pytest
from steph.base.terms import Severity
from steph.contract.lines import Metrics
from steph.contract.training_files import TrainerState, TrainingLog
from steph.judge.checks_progress import asked_checks
from steph.judge.evidence import Trained
from steph.record.settings import TrainSettings, epochs_in, steps_in
from steph.record.values import Check

SETTINGS = TrainSettings(batch_size=2, gradient_accumulation_steps=2, learning_rate=2e-4)


def line(epoch: float, rate: float = 2e-4) -> Metrics:
    """A printed loss."""
    return Metrics((("loss", 2.0), ("learning_rate", rate), ("epoch", epoch)))


def found(
    check_id: str,
    *metrics: Metrics,
    epochs: float | None = None,
    rows: int | None = 140,
    settings: TrainSettings = SETTINGS,
    **state: object,
) -> Check:
    """One check of a training whose checkpoint says this."""
    known = TrainerState(**{"fresh": True, **state})  # type: ignore[arg-type]
    trained = Trained(settings=settings, log=TrainingLog(metrics), state=known, epochs=epochs, rows=rows)
    return next(check for check in asked_checks(trained) if check.id == check_id)


@pytest.mark.parametrize(
    ("steps", "epochs", "batch", "holds", "severity"),
    [
        (50, 1.4285714, 2, True, None),
        (50, 1.43, None, True, None),  # transformers 4
        (50, 1.6, 2, True, None),  # a tenth of the rows held out
        (50, 0.714, 1, False, Severity.FAIL),
        (50, 1.43, 1, False, Severity.FAIL),
        (50, 1.43, 4, True, None),  # two accumulated micro-batches as one
        (50, 2.857, 4, False, Severity.FAIL),  # twice the rows a step
        (50, 1.43, 3, False, Severity.FAIL),
        (50, 1.43, 8, False, Severity.FAIL),
        (50, None, 4, None, Severity.INFO),
        (50, 0.714, None, False, Severity.WARN),
        (50, 2.857, 2, False, Severity.WARN),
        (50, None, 2, None, Severity.INFO),
        (None, 1.43, None, None, Severity.INFO),
    ],
)
def test_the_batch_is_told_by_the_state_and_by_how_far_so_many_steps_went(
    steps: int | None, epochs: float | None, batch: int | None, holds: bool | None, severity: Severity | None
) -> None:
    """Another batch in the state is a failure, unless it is the accumulation as one; an odd epoch is a warning."""
    check = found("batch_as_asked", epochs=epochs, global_step=steps, train_batch_size=batch)
    assert check.holds is holds
    assert severity is None or check.severity is severity


@pytest.mark.parametrize("rows", [5, 45, 140, 1000])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_epoch_figure_of_every_step_is_the_trainers_own(rows: int, batch: int, accumulation: int) -> None:
    """Steps to epochs and back agree, also where the last batch and the last accumulation of an epoch are smaller."""
    settings = SETTINGS.model_copy(update={"batch_size": batch, "gradient_accumulation_steps": accumulation})
    for steps in range(1, 60):
        epochs = epochs_in(steps, rows, settings)
        assert steps_in(epochs, rows, settings) == steps
        check = found("batch_as_asked", epochs=round(epochs, 2), rows=rows, settings=settings, global_step=steps)
        assert check.holds is True


@pytest.mark.parametrize(
    ("rates", "holds"),
    [
        ((0.0, 2e-4, 1.9e-4, 1.8e-4), True),
        ((1.99e-4, 1.5e-4, 1e-4), True),
        ((5e-5, 4e-5, 3e-5), False),
        ((0.0, 4e-6, 8e-6), False),
        ((2e-3, 1e-3, 5e-4), False),
        ((0.0, 1e-5), None),
        ((), None),
    ],
)
def test_the_highest_printed_learning_rate_is_the_asked_one(rates: tuple[float, ...], holds: bool | None) -> None:
    """Warm-up and decay leave it near the asked rate once; an ignored flag or an endless warm-up does not."""
    check = found("learning_rate_as_asked", *(line(0.1 * (n + 1), rate) for n, rate in enumerate(rates)))
    assert check.holds is holds


@pytest.mark.parametrize(
    ("epochs", "holds"),
    [
        ((0.1, 0.2, 0.3), True),
        ((0.03, 0.29, 0.57), True),  # logging_first_step
        ((0.03, 0.03, 0.06), True),  # two decimals of short steps
        ((0.6, 0.7, 0.8), False),
        ((0.52, 0.53, 0.53, 0.54), False),
        ((0.5,), None),
        ((), None),
    ],
)
def test_a_training_that_goes_on_from_an_earlier_one_is_told_by_its_first_loss(
    epochs: tuple[float, ...], holds: bool | None
) -> None:
    """The first loss comes one interval after the start, whatever the interval is."""
    assert found("trained_from_start", *(line(epoch) for epoch in epochs)).holds is holds


@pytest.mark.parametrize(
    ("written", "printed", "fresh", "holds"),
    [
        (1.4285714, 1.43, True, True),
        (3.3, 1.43, True, False),
        (3.3, 1.43, False, None),
        (None, 1.43, True, None),
        (1.4, None, True, None),
    ],
)
def test_the_checkpoints_state_ends_where_the_printed_training_ended(
    written: float | None, printed: float | None, fresh: bool, holds: bool | None
) -> None:
    """A state that was copied from another training has another epoch; an old one is told by its age instead."""
    assert found("state_of_this_run", epochs=printed, epoch=written, fresh=fresh).holds is holds
