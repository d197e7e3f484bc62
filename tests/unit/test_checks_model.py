"""H-1's checks of the model under test, figures in and checks out."""

from __future__ import annotations

import record_factory as factory
from steph.base.messages import verbatim
from steph.base.terms import Severity
from steph.judge.checks_process import ModelEvidence, judge_model, no_model
from steph.record.values import Check, ModelChoice


def checks_of(choice: ModelChoice, *, is_there: bool = True) -> dict[str, Check]:
    """The checks of a choice that nobody named, by their ids."""
    evidence = ModelEvidence(choice, is_there, 1_000_000_000, 4_000_000_000, is_explicit=False)
    return {check.id: check for check in judge_model(evidence)}


def test_a_model_from_the_hub_that_is_there_and_of_the_right_size_passes() -> None:
    """Both checks hold, and nothing is said of the Hub, which was asked."""
    assert {name: check.holds for name, check in checks_of(factory.model_choice()).items()} == {
        "model_available": True,
        "parameters_in_range": True,
    }


def test_a_model_that_is_not_there_fails() -> None:
    """A folder without its configuration, and no model at all, break `model_available`, which is hard."""
    absent = no_model(verbatim("no network"))
    for check in (checks_of(factory.model_choice(), is_there=False)["model_available"], *absent):
        assert (check.id, check.holds, check.severity) == ("model_available", False, Severity.FAIL)


def test_a_copy_that_the_hub_did_not_confirm_is_a_warning() -> None:
    """What comes from the cache alone passes, and is shown."""
    choice = factory.model_choice().model_copy(update={"source": "cache"})
    check = checks_of(choice)["hub_confirmed"]
    assert (check.holds, check.severity) == (False, Severity.WARN)
