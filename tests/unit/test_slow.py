"""`steph slow`: what a record says of why its training took its time."""

from __future__ import annotations

from typing import Any

import pytest
import record_factory as factory
from measured_records import OWN, attempt, record_of
from steph.base.messages import say, speaking
from steph.base.terms import Severity, StageId, TrainerName
from steph.base.units import GIB
from steph.cli import app
from steph.memory.calibration import NothingTrainedError, why_slow, workload_of
from steph.memory.forecast import BUILT_IN_CONSTANTS
from steph.record.values import Attempt, Check, Probe, Record, TrainOutcome
from typer.testing import CliRunner

EVEN = (0.9, *[0.5] * 20)


def _record(*, card_gib: float = 8.0, steps: tuple[float, ...] = EVEN, **changes: Any) -> Record:  # noqa: ANN401
    """A full trainer's record with these step times, and changes to its one attempt."""
    own = attempt(OWN, workload_of(OWN, TrainerName.FULL), BUILT_IN_CONSTANTS)
    assert own.training is not None
    training = own.training.model_copy(update={"step_seconds": steps, "tokens_per_second": None})
    values: dict[str, Any] = {"training": training, "seconds": 1.1 * sum(steps), "mean_row_tokens": 500.0, **changes}
    record = record_of("full", (own.model_copy(update=values),))
    card = factory.device(total_bytes=round(card_gib * GIB))
    environment = record.context.environment.model_copy(update={"device": card})
    context = record.context.model_copy(update={"environment": environment})
    return record.model_copy(update={"context": context})


def _found(record: Record) -> list[str]:
    return [message.id for message in why_slow(record)]


def test_an_even_run_on_a_full_card_is_as_fast_as_the_card() -> None:
    """Nothing is accused; its pace is said."""
    assert _found(_record()) == ["slow.card", "slow.step"]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"probes": (Probe(pid=1, allocator_retries=3),)}, "slow.retries"),
        ({"seconds": 40.0}, "slow.loading"),
        ({"steps": (*EVEN, 9.0, 9.0)}, "slow.uneven"),
        ({"mean_row_tokens": 100.0}, "slow.padding"),
        (
            {"checks": (Check(id="no_memory_spill", severity=Severity.WARN, holds=False, message=say("slow.spill")),)},
            "slow.spill",
        ),
    ],
)
def test_each_cause_is_seen_alone(changes: dict[str, Any], cause: str) -> None:
    """One at a time, before the pace; the card is then not what sets it."""
    found = _found(_record(**changes))
    assert found == [cause, "slow.step"]


def test_a_first_step_that_warms_up_and_short_loading_accuse_nothing() -> None:
    """Twenty times the median, but the first; a tenth of the time beside the steps."""
    assert _found(_record(steps=(10.0, *[0.5] * 60))) == ["slow.card", "slow.step"]


def test_room_on_the_card_is_named() -> None:
    """A card that is large enough for kept activations and for eight times the batch; not where rows are unknown."""
    assert _found(_record(card_gib=79.0)) == ["slow.recompute", "slow.batch", "slow.step"]
    undescribed = _record(card_gib=79.0)
    context = undescribed.context.model_copy(update={"trainer": "undescribed"})
    assert "slow.recompute" not in _found(undescribed.model_copy(update={"context": context}))


def test_tokens_a_second_are_said_where_they_are_counted() -> None:
    """Without step times too."""
    record = _record(steps=())
    own = record.stages[StageId.H2].attempts[0]
    assert own.training is not None
    training: TrainOutcome = own.training.model_copy(update={"tokens_per_second": 4000.0})
    changed: Attempt = own.model_copy(update={"training": training})
    h2 = record.stages[StageId.H2].model_copy(update={"attempts": (changed,)})
    assert _found(record.model_copy(update={"stages": {**record.stages, StageId.H2: h2}})) == [
        "slow.card",
        "slow.tokens",
    ]


def test_a_record_without_training_says_so() -> None:
    """As an error of the library, and as one line of the command for a record that is not there."""
    record = _record()
    with pytest.raises(NothingTrainedError):
        why_slow(record.model_copy(update={"stages": {}}))
    with speaking("en"):
        result = CliRunner().invoke(app, ["slow", "none"], env={"STEPH_LANGUAGE": "en"})
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
