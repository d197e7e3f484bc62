"""Checks of the adapter and the base that answered: the trained one, scaled and quantised as in its training. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from steph.base.units import MISSING
from steph.contract.results import Row
from steph.judge.answering import Answering, Call, given_by, is_off
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.witness import AdapterChanged, AdapterLoaded, Generation, Quantised, StateFact, TrainingBegins, Witness
from steph.record.values import Check

SCALING_TOLERANCE = 1e-4
ADAPTER_ACTIVE = CheckKind("adapter_active", "H-3", FAIL, trap=19, core=True)
SCALING_AS_TRAINED = CheckKind("scaling_as_trained", "H-3", WARN, trap=19, optional=True)
BASE_AS_TRAINED = CheckKind("base_as_trained", "H-3", WARN, trap=26, optional=True)


def active_check(seen: Answering, rows: Sequence[Row]) -> Check:
    wanted = seen.evidence.adapter_sha256_expected
    if not seen.wants_adapter:
        return _inactive_check(seen, rows)
    if wanted is None:
        return ADAPTER_ACTIVE.check(None, "no_sha256")
    lost = [load for load in seen.witness.of(AdapterLoaded) if load.sha256 in (wanted, None) and load.missing]
    if lost:
        return ADAPTER_ACTIVE.check(False, "weights_missing", missing=lost[0].missing)
    good = [answer for answer in seen.answers if answer.has_adapter]
    if not good:
        return _never_active_check(seen)
    if not seen.unseen_calls and len(good) < min(len(rows), len(seen.answers)):
        return ADAPTER_ACTIVE.check(False, "too_few", rows=len(seen.answers), matching=len(good), questions=len(rows))
    return _of_wanted_state(seen, rows, len(good))


def _inactive_check(seen: Answering, rows: Sequence[Row]) -> Check:
    bare = sum(not answer.has_adapter for answer in seen.answers)
    if not bare or (not seen.unseen_calls and bare < min(len(rows), len(seen.answers))):
        return ADAPTER_ACTIVE.check(False, "too_few_bare", rows=len(seen.answers), matching=bare)
    return _of_wanted_state(seen, rows, bare)


def _of_wanted_state(seen: Answering, rows: Sequence[Row], matching: int) -> Check:
    """A response in the results that only another state gave is another state's answer; `matching` were in this one."""
    foreign = 0
    for row in rows:
        states = {answer.has_adapter for answer in given_by(seen, row)}
        foreign += bool(states) and seen.wants_adapter not in states
    good = [answer.call for answer in seen.answers if answer.has_adapter]
    further = {one for call in good for one in (*call.sha256, *call.merged_sha256)}
    further -= {seen.evidence.adapter_sha256_expected}
    others_too = bool(further) and seen.wants_adapter and not foreign
    state = "active" if seen.wants_adapter else "bare"
    return ADAPTER_ACTIVE.check(
        not foreign and not others_too,
        "others_too" if others_too else state,
        severity=WARN if others_too else None,
        rows=len(seen.answers),
        matching=matching,
        foreign=foreign,
        sha256=min(further, default="")[:12],
    )


def _never_active_check(seen: Answering) -> Check:
    wanted = seen.evidence.adapter_sha256_expected or ""
    loads = seen.witness.of(AdapterLoaded)
    nameless = [load for load in loads if load.sha256 is None]
    calls = seen.calls
    if any(call.layers and not call.sha256 and not is_off(call) for call in calls) and nameless:
        return ADAPTER_ACTIVE.check(None, "unknown_file")
    others = sorted({sha256[:12] for call in calls for sha256 in (*call.sha256, *call.merged_sha256)} - {wanted[:12]})
    if any(wanted in call.sha256 for call in calls):
        return ADAPTER_ACTIVE.check(False, "disabled", rows=len(seen.answers))
    if others:
        return ADAPTER_ACTIVE.check(False, "other_adapter", sha256=others[0], expected=wanted[:12])
    return ADAPTER_ACTIVE.check(False, "loaded_only" if loads else "not_loaded", rows=len(seen.answers))


def scaling_check(seen: Answering) -> Check:
    begins = seen.evidence.training_witness.of(TrainingBegins) if seen.evidence.training_witness else ()
    trained = {value for fact in begins[-1:] if fact.lora for value in fact.lora.scaling}
    calls = [answer.call for answer in seen.counting if answer.has_adapter]
    answered = {value for call in calls for value in _scaling_of(seen, call)}
    if not trained or not answered or not seen.wants_adapter:
        return SCALING_AS_TRAINED.check(None, "unseen")
    if any(map(_is_on_twice, calls)):
        return SCALING_AS_TRAINED.check(False, "applied_twice")
    beside = max(len({*call.adapters}) for call in calls)
    if beside > 1:
        return SCALING_AS_TRAINED.check(False, "several", adapters=beside)
    same = all(any(abs(one - other) <= SCALING_TOLERANCE * max(abs(one), 1) for other in trained) for one in answered)
    return SCALING_AS_TRAINED.check(same, "scalings", trained=sorted(trained), answered=sorted(answered))


def _scaling_of(seen: Answering, call: Call) -> tuple[float, ...]:
    """What the adapter is scaled by in a call; where it is part of the weights, what it was merged with, if alone."""
    if call.merged < call.layers:
        return call.scaling
    wanted = (seen.evidence.adapter_sha256_expected,)
    witnesses = (seen.evidence.training_witness or Witness(), seen.witness)
    merges = [fact for witness in witnesses for fact in witness.of(AdapterChanged) if fact.change == "merged"]
    known = [fact.scaling for fact in merges if fact.scaling and fact.sha256 == wanted and fact.at <= call.at]
    return known[-1] if known else call.scaling


def _is_on_twice(call: StateFact) -> bool:
    """Whether an adapter is part of the weights and active on top; merged layers do not compute it again."""
    return bool(set(call.sha256) & set(call.merged_sha256)) and call.merged < call.layers and not is_off(call)


def base_check(seen: Answering) -> Check:
    """An adapter answers for the base that it was trained on; another rounding of it is another base."""
    begins = seen.evidence.training_witness.of(TrainingBegins) if seen.evidence.training_witness else ()
    trained = {_type(layers) for fact in begins[-1:] for layers in fact.quantised}
    answered = {
        _type(layers)
        for answer in seen.counting
        if isinstance(answer.call, Generation)
        for layers in answer.call.quantised
    }
    if not trained or not answered or not seen.wants_adapter:
        return BASE_AS_TRAINED.check(None, "unseen")
    return BASE_AS_TRAINED.check(trained == answered, "layer_types", trained=sorted(trained), answered=sorted(answered))


def _type(layers: Quantised) -> str:
    return f"{layers.kind}/{layers.quant_type or MISSING}"
