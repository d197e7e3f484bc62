"""A loss that is printed as zero: what its gradient says about it."""

from __future__ import annotations

import math

import pytest
from steph.base.terms import Severity
from steph.contract.lines import Metrics
from steph.contract.training_files import TrainerState, TrainingLog
from steph.judge.checks_figures import loss_checks
from steph.judge.evidence import Trained
from steph.judge.verdict import checks_verdict
from steph.record.values import Check


def _checks(norm: float | None, *, logged: tuple[float, ...] = (), train_loss: float = 0.4) -> dict[str, Check]:
    lines = (
        Metrics((("loss", 1.2), ("grad_norm", 2.0))),
        Metrics((("loss", 0.0), *([("grad_norm", norm)] if norm is not None else []))),
    )
    log = TrainingLog(lines, final=Metrics((("train_loss", train_loss),)))
    trained = Trained(log=log, state=TrainerState(losses=logged, fresh=True), steps_done=2)
    return {check.id: check for check in loss_checks(trained)}


def test_a_loss_rounded_to_zero_is_a_warning() -> None:
    """Below 5e-5 transformers prints 0.0: with a gradient that is there, H-2 stays green and is told."""
    checks = _checks(0.003, logged=(1.2, 0.0))
    assert checks["loss_finite"].holds is True
    assert (checks["loss_rounded"].holds, checks["loss_rounded"].severity) == (False, Severity.WARN)
    assert checks_verdict(list(checks.values())) is None


@pytest.mark.parametrize("norm", [0.0, None, math.nan, math.inf])
def test_a_zero_loss_without_a_gradient_is_a_failure(norm: float | None) -> None:
    """Nothing was learned there, or a NaN was filtered."""
    checks = _checks(norm)
    assert (checks["loss_finite"].holds, checks["loss_rounded"].holds) == (False, True)


@pytest.mark.parametrize(("logged", "train_loss"), [((0.0, 0.0), 0.4), ((), 0.0)])
def test_only_the_zero_that_was_printed_beside_its_gradient_is_excused(
    logged: tuple[float, ...], train_loss: float
) -> None:
    """A zero elsewhere on the disk, or as the mean of all steps, is none of rounding."""
    assert _checks(0.003, logged=logged, train_loss=train_loss)["loss_finite"].holds is False
