"""What H-1's candidates would need of this card: each with its predicted peak, or the reason why there is none."""

from __future__ import annotations

from steph.base.messages import say
from steph.conduct.prediction import expected_of_shape
from steph.conduct.preparation import Setup
from steph.conduct.twins import NoModel
from steph.memory.calibration import shape_of
from steph.memory.shapes import UnknownShapeError, model_shape, parameter_count
from steph.record.values import Candidate, ModelChoice


def predicted_candidates(setup: Setup, found: ModelChoice | NoModel) -> tuple[Candidate, ...]:
    """The model asked for and the profile's, in order; the one chosen is the first that was not passed over."""
    asked = (setup.options.model,) if setup.options.model else ()
    names = tuple(dict.fromkeys((*asked, *setup.profile.model.candidates)))
    passed_over = {item.name for item in found.rejected}
    chosen = next((name for name in names if name not in passed_over), None) if isinstance(found, ModelChoice) else None
    settings = setup.profile.train.short()
    candidates = []
    for name in names:
        if name == chosen and isinstance(found, ModelChoice):
            candidate = Candidate(name=name, outcome="chosen", settings=settings, parameters=found.parameters)
            candidates.append(_predicted(setup, candidate, found))
            continue
        candidate = Candidate(name=name, outcome="rejected" if name in passed_over else "not_tried", settings=settings)
        candidates.append(_predicted(setup, candidate, None))
    return tuple(candidates)


def _predicted(setup: Setup, candidate: Candidate, choice: ModelChoice | None) -> Candidate:
    """The candidate with its forecast; the shape is the chosen model's own, else the one known by the name."""
    try:
        shape = shape_of(choice) if choice else model_shape(candidate.name)
        candidate = candidate.changed(parameters=candidate.parameters or parameter_count(shape))
        expectation = expected_of_shape(setup, shape, setup.profile.train)
    except UnknownShapeError:
        return candidate.changed(unpredicted_reason=say("forecast.unknown_shape"))
    except Exception as error:  # a kind of model or a target module that the formulas don't know, or absurd sizes
        return candidate.changed(unpredicted_reason=say("forecast.not_computed", error=error))
    if expectation is None:
        return candidate.changed(unpredicted_reason=say("forecast.no_gpu"))
    return candidate.changed(predicted=expectation.peak)
