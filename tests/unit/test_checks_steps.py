"""All steps of a training: schedules, norms and losses that are sound, and those that are not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from steph.base.terms import Severity
from steph.contract.lines import Metrics
from steph.contract.training_files import TrainerState, TrainingLog
from steph.judge.checks_figures import step_checks
from steph.judge.checks_progress import says_packing, steps_check
from steph.judge.evidence import Trained
from steph.record.settings import TrainSettings
from steph.record.values import Check

WARN, FAIL, INFO = Severity.WARN, Severity.FAIL, Severity.INFO


def lines(key: str, values: tuple[float, ...]) -> tuple[Metrics, ...]:
    """A line a step, with this figure beside a loss that says nothing."""
    pairs = ((("loss", 2.0),) if key != "loss" else ()) + ((key, math.nan),)
    return tuple(Metrics((*pairs[:-1], (key, value))) for value in values)


def printed(key: str, values: tuple[float, ...], **known: object) -> Trained:
    """A training that printed these lines, and what is known of it besides."""
    return Trained(log=TrainingLog(lines(key, values)), **known)  # type: ignore[arg-type]


def check(check_id: str, trained: Trained) -> Check:
    """One check of these steps."""
    return next(found for found in step_checks(trained) if found.id == check_id)


@pytest.mark.parametrize(
    ("rates", "holds", "severity"),
    [
        ((2e-4,) * 8, True, None),
        ((0.0, *(2e-4,) * 7), True, None),
        ((0.0, 2e-4, 1.5e-4, 1e-4, 5e-5, 0.0), True, None),
        (tuple(1e-4 * (1 + math.cos(math.pi * n / 8)) for n in range(9)), True, None),
        ((1e-4, 2e-4, 1e-4, 2e-4, 1e-4, 2e-4), True, None),  # cyclic
        ((1e-4, 2e-4, 2e-4, 2e-4, 2e-4), True, None),  # constant with warm-up
        ((0.0,) * 6, False, FAIL),
        ((2e-4, 0.0, 0.0, 0.0, 0.0), False, FAIL),
        ((0.0, 2e-4, 0.0, 0.0, 0.0, 0.0), False, WARN),
        ((*(2e-4,) * 7, 0.0, 0.0, 0.0), False, WARN),
        ((2e-5, 4e-5, 6e-5, 8e-5, 1e-4), False, WARN),
        ((2e-4, 0.0), None, INFO),
    ],
)
def test_a_learning_rate_must_work_to_the_end(
    rates: tuple[float, ...], holds: bool | None, severity: Severity | None
) -> None:
    """Every usual schedule is sound; zero from the second step on trains nothing, and a warm-up must end."""
    for evidence in (
        printed("learning_rate", rates),
        printed(
            "learning_rate", (2e-4,) * len(rates), state=TrainerState(history=lines("learning_rate", rates), fresh=True)
        ),
    ):
        found = check("learning_rate_runs", evidence)
        assert found.holds is holds
        assert severity is None or found.severity is severity


@pytest.mark.parametrize(
    ("schedule", "holds"),
    [
        (lambda n: 0.3**n, False),
        (lambda n: 0.9**n, True),
        (lambda n: (1 + math.cos(math.pi * n / 20)) / 2, True),
        (lambda n: (1 - n / 20) ** 3, True),
    ],
    ids=["steep", "gentle", "cosine", "cubic"],
)
def test_a_rate_that_fades_at_once(schedule: Callable[[int], float], holds: bool) -> None:
    """Half of the steps must have something of the highest rate."""
    assert check("learning_rate_runs", printed("learning_rate", tuple(map(schedule, range(20))))).holds is holds


@pytest.mark.parametrize(
    ("schedule", "holds"),
    [
        (lambda n: (1 + math.cos(2 * math.pi * n / 20)) / 2, False),  # a scheduler that steps twice as often
        (lambda n: min(1, n / 3) * (1 + math.cos(2 * math.pi * n / 20)) / 2, False),
        (lambda n: (1 + math.cos(math.pi * (n % 7) / 7)) / 2, True),  # restarted on purpose
        (lambda n: abs(1 - n / 10), False),
        (lambda n: 1.0, True),
        (lambda n: min(n / 10, 2 - n / 10), True),  # one cycle
        (lambda n: 0.3 + 0.7 * abs(1 - n / 10), True),
    ],
    ids=["cosine", "after_warmup", "restarts", "triangle", "constant", "one_cycle", "shallow"],
)
def test_a_rate_that_rises_again_after_its_end(schedule: Callable[[int], float], holds: bool) -> None:
    """As printed, and as it was seen in a loop, which prints none."""
    rates = tuple(map(schedule, range(20)))
    assert check("learning_rate_runs", printed("learning_rate", rates)).holds is holds
    assert check("learning_rate_runs", Trained(own_rates=rates)).holds is holds


def test_a_warmup_that_was_asked_for_may_last() -> None:
    """Where the settings ask for a warm-up of nearly all steps, a rate that climbs to the end is as asked."""
    evidence = printed("learning_rate", (1e-5, 2e-5, 3e-5, 4e-5), settings=TrainSettings(warmup_ratio=0.9))
    assert check("learning_rate_runs", evidence).holds is True


@pytest.mark.parametrize(
    ("norms", "broken"),
    [
        ((1.0,) * 8, {}),
        ((math.inf, 1.0, 0.9, 0.8), {}),
        ((math.inf, math.inf, math.nan, 1.0, 0.9, 0.8, 0.7), {}),
        ((1.0, 1.0, math.nan, 1.0, 1.0, 1.0), {"grad_norm_finite": INFO}),
        ((1.0, *(math.nan,) * 9), {"grad_norm_finite": WARN}),
        ((math.nan,) * 5, {"grad_norm_finite": WARN, "gradient_flows": FAIL}),
        ((0.0,) * 5, {"gradient_flows": FAIL}),
        ((1.0, 0.0, 0.0, 0.0), {"gradient_flows": WARN}),
        ((0.0, math.nan, 0.0), {"gradient_flows": FAIL, "grad_norm_finite": WARN}),
        ((1.0, 1e9, 1.0, 1.0), {"grad_norm_bounded": WARN}),
        ((900.0, 300.0, 20.0, 5.0), {}),
    ],
)
def test_gradient_norms_of_all_steps(norms: tuple[float, ...], broken: dict[str, Severity]) -> None:
    """Zero or NaN at every step trained nothing; fp16 may begin with a few, and one on the way is a note."""
    found = step_checks(printed("grad_norm", norms))
    assert {one.id: one.severity for one in found if one.holds is False} == broken


@pytest.mark.parametrize(
    ("losses", "vocabulary", "broken"),
    [
        ((2.4, 2.0, 1.6), 151936, set()),
        ((2.0, 6.5, 1.9, 0.4, 3.3, 1.0), 151936, set()),  # single rows are short or long
        ((2.5, 0.6, 0.05, 1e-4, 1e-5, 1e-5), 151936, set()),  # learnt by heart
        (tuple(2.5 * 0.3**n for n in range(40)), 151936, set()),  # or soon: answers that are all alike
        ((1.2, 0.3, 0.9, 0.2, 2.9, 0.6, 0.8, 0.1, 0.5, 0.2), 151936, set()),  # ten rows that are short or long
        ((2.6, 0.4, 2.5, 0.3, 2.6, 0.4, 2.5, 0.4, 2.6, 0.3), 151936, {"loss_plausible"}),
        ((11.9, 11.8, 11.7), 151936, {"loss_below_chance"}),
        ((9.5, 8.0, 6.0), 151936, set()),
        ((5.5, 5.0), 256, set()),  # bytes
        ((2.0, 40.0, 1.9), 151936, {"loss_plausible"}),
        ((2.0, 4e7, 1.9), None, {"loss_plausible"}),
        ((11.9, 11.8), None, {"loss_below_chance"}),
        ((-0.2, -0.4), None, {"loss_plausible"}),
        ((1e-6, 1e-6, 1e-6), None, {"loss_plausible"}),
        ((2.0, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6), None, {"loss_plausible"}),
        ((19.2, 18.9), 151936, {"loss_plausible", "loss_below_chance"}),
    ],
)
def test_losses_that_no_language_model_has(losses: tuple[float, ...], vocabulary: int | None, broken: set[str]) -> None:
    """Negative, tiny from the start, far over chance; and a first loss of ln(vocabulary) knows nothing."""
    found = step_checks(printed("loss", losses, vocabulary=vocabulary))
    assert {one.id for one in found if one.holds is False} == broken


def test_random_weights_may_begin_at_chance() -> None:
    """A twin's first loss is ln(vocabulary), and says nothing."""
    evidence = printed("loss", (11.9, 11.8), vocabulary=151936, random_weights=True)
    assert check("loss_below_chance", evidence).holds is None


@pytest.mark.parametrize(
    ("done", "counted", "epochs", "packed", "holds", "severity"),
    [
        (35, 35, 1.0, False, True, None),
        (32, 32, 1.0, False, True, None),
        (25, 25, 1.0, False, True, None),
        (24, 24, 1.0, False, False, WARN),
        (6, 6, 1.0, True, True, None),
        (6, 6, 1.0, False, False, WARN),
        (9, 9, 0.91, True, False, WARN),  # what was left did not fill a tenth step
        (9, 9, 0.87, True, False, FAIL),
        (9, 9, 0.91, False, False, FAIL),
        (9, 10, 0.91, True, False, FAIL),
        (24, 24, 0.686, False, False, FAIL),  # stopped on the way
        (24, 35, 0.686, False, False, FAIL),
        (24, 35, 1.0, False, False, FAIL),
        (24, None, 1.0, False, False, FAIL),
        (70, 70, 2.0, False, False, FAIL),
        (None, 35, 1.0, False, None, FAIL),
    ],
)
def test_the_steps_due_are_those_that_the_trainer_counted(
    done: int | None, counted: int | None, epochs: float, packed: bool, holds: bool | None, severity: Severity | None
) -> None:
    """Rows held out, dropped or packed leave fewer; a run that was stopped has not done its epochs."""
    found = steps_check(Trained(steps_done=done, steps_due=35, steps_counted=counted, epochs=epochs, packed=packed))
    assert found.holds is holds
    assert severity is None or found.severity is severity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Packing train dataset: 100%", True),
        ("sample_packing: true", True),
        ("packed 140 rows into 23", True),
        ("packing=False", False),
        ('"packing": false', False),
        ("no packing", False),
        ("packing is disabled", False),
        ("unpacking archive", False),
    ],
)
def test_a_program_that_packs_says_so(text: str, said: bool) -> None:
    """A switch that is off and another word are no packing."""
    assert says_packing(text) is said
