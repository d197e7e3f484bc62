"""H-1: the model under test, from the Hub, the local cache, a folder, or made on the spot as a twin."""

from __future__ import annotations

import os
from pathlib import Path

from steph.base.messages import Message, say, words_of
from steph.base.terms import Verdict
from steph.conduct.preparation import Setup
from steph.conduct.stage_run import StageRun
from steph.conduct.twins import NoModel, make_twin
from steph.judge.checks_model import ModelEvidence, judge_model, no_model
from steph.judge.verdict import Outcome
from steph.memory.shapes import BUILT_IN, parameter_count
from steph.record.values import Check, ModelChoice, RejectedCandidate
from steph.run import hub, hub_download, model_files
from steph.run.hub_query import HubError
from steph.run.model_files import IncompleteModelError


def choose_model(run: StageRun) -> ModelChoice | NoModel:
    """Choose and fetch the model of this record, or say why there is none."""
    explicit, candidates = run.setup.options.model, run.setup.profile.model.candidates
    if run.setup.context.twin:
        return make_twin(run, explicit or candidates[0])
    return _from_hub(run, (explicit,) if explicit else candidates, is_explicit=explicit is not None)


def smaller_model(run: StageRun, model: ModelChoice) -> ModelChoice | None:
    """The largest candidate that is smaller than `model` and can be had, None where there is none."""
    sizes = {name: parameter_count(shape) for name, shape in BUILT_IN.items()}
    known = [name for name in run.setup.profile.model.candidates if sizes.get(name, 0) < (model.parameters or 0)]
    names = sorted((name for name in known if name in sizes), key=lambda name: -sizes[name])
    for name in names:
        found = make_twin(run, name) if run.setup.context.twin else _from_hub(run, (name,), is_explicit=False)
        if isinstance(found, ModelChoice):
            reason = say("model.smaller", model=model.name)
            return found.changed(automatic_substitute=True, reason=reason)
    return None


def model_checks(setup: Setup, model: ModelChoice) -> tuple[Check, ...]:
    """What H-1 stands on: the model is there whole, its size is known and within the profile's range."""
    limits = setup.profile.model
    is_there = model.snapshot_path is not None and (Path(model.snapshot_path) / "config.json").is_file()
    is_explicit = setup.options.model is not None
    return judge_model(ModelEvidence(model, is_there, limits.min_parameters, limits.max_parameters, is_explicit))


def model_trouble(model: ModelChoice) -> Message | None:
    """Why what the pipeline would load now is not the record's model, in one line; None where it is."""
    published = model.revision is not None and model.source in ("hub", "cache")
    try:
        if not published:
            model_files.check_whole(Path(model.snapshot_path or model.name))
            return None
        revision = model_files.cached_model(model_files.default_cache_dir(), model.name).revision
    except IncompleteModelError as error:
        return say("model.not_whole", error=error)
    if revision == model.revision:
        return None
    return say("model.other_revision", model=model.name, recorded=(model.revision or "")[:12], cached=revision[:12])


def _from_hub(run: StageRun, candidates: tuple[str, ...], *, is_explicit: bool) -> ModelChoice | NoModel:
    endpoint, console, profile = os.environ.get("HF_ENDPOINT"), run.console, run.setup.profile
    try:
        choice = hub.choose(
            candidates,
            endpoint=endpoint,
            primary_count=profile.model.preferred,
            is_explicit=is_explicit,
            timeout_seconds=profile.limits.hub_request_seconds,
            log=console.line,
        )
    except hub.NoModelError as error:
        reasons = [say("model.rejected", model=item.name, reason=item.message) for item in error.rejected]
        explanation = say("model.none", reasons=reasons)
        return NoModel(Outcome(Verdict.FAIL, explanation, checks=no_model(explanation)), error.rejected)
    try:
        return hub_download.download(
            choice,
            endpoint=endpoint,
            deadline_seconds=run.left_seconds(),
            request_timeout_seconds=profile.limits.hub_request_seconds,
            progress=lambda done_bytes, due_bytes: console.transfer(f"H-1 {choice.name}", done_bytes, due_bytes),
            log=console.line,
        )
    except HubError as error:
        said = words_of(error)
        outcome = Outcome(Verdict.FAIL, say("model.not_downloaded", error=said), checks=no_model(said))
        failed = RejectedCandidate(name=choice.name, cause=error.failure.cause, message=said)
        return NoModel(outcome, (*choice.rejected, failed))
