"""H-1: the model under test, from the Hub, the local cache, a folder, or made on the spot as a twin."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from steph.base.files import sha256_or_none
from steph.base.messages import Message, say, words_of
from steph.base.terms import StageId, Verdict
from steph.child import twin
from steph.conduct.attempts import Finished, Request, run_attempt
from steph.conduct.preparation import Setup, cache_dir, twin_shape
from steph.conduct.stage_run import Run
from steph.judge.checks_model import ModelEvidence, judge_model, no_model
from steph.judge.verdict import Outcome, attempt_verdict
from steph.memory.shapes import BUILT_IN, TINY, ModelShape, config_of, parameter_count
from steph.record.values import Attempt, Check, ModelChoice, RejectedCandidate
from steph.run import hub, hub_download, model_files
from steph.run.hub_query import HubError
from steph.run.inputs import InputError
from steph.run.model_files import IncompleteModelError, find_qwen_tokenizer

TWIN_SCRIPT = Path(__file__).parents[1] / "child" / "twin.py"


@dataclass(frozen=True)
class NoModel:
    """No model can be had: the stage's outcome, and the candidates that were tried."""

    outcome: Outcome
    rejected: tuple[RejectedCandidate, ...] = ()


def choose_model(run: Run) -> ModelChoice | NoModel:
    """Choose and fetch the model of this record, or say why there is none."""
    explicit, candidates = run.setup.options.model, run.setup.profile.model.candidates
    if run.setup.context.twin:
        return _make_twin(run, explicit or candidates[0])
    return _from_hub(run, (explicit,) if explicit else candidates, is_explicit=explicit is not None)


def smaller_model(run: Run, model: ModelChoice) -> ModelChoice | None:
    """The largest candidate that is smaller than `model` and can be had, None where there is none."""
    sizes = {name: parameter_count(shape) for name, shape in BUILT_IN.items()}
    known = [name for name in run.setup.profile.model.candidates if sizes.get(name, 0) < (model.parameters or 0)]
    names = sorted((name for name in known if name in sizes), key=lambda name: -sizes[name])
    for name in names:
        found = _make_twin(run, name) if run.setup.context.twin else _from_hub(run, (name,), is_explicit=False)
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
        return say("model.not_whole", error=words_of(error))
    if revision == model.revision:
        return None
    return say("model.other_revision", model=model.name, recorded=(model.revision or "")[:12], cached=revision[:12])


def _from_hub(run: Run, candidates: tuple[str, ...], *, is_explicit: bool) -> ModelChoice | NoModel:
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


def _make_twin(run: Run, name: str) -> ModelChoice | NoModel:
    shape = twin_shape(name)
    tokenizer = None if shape is TINY else _tokenizer_of_twins()
    texts, known_by = (tokenizer, str(tokenizer)) if tokenizer else _texts_of_twins(run)
    source = ("--tokenizer" if tokenizer else "--train-tokenizer", texts)
    folder = _twin_folder(name, shape, known_by)
    arguments = _twin_arguments(run, shape, folder, source, name)
    run.console.line(f"H-1 random-weight twin of {name}: {folder}")
    if not twin.is_kept(list(arguments)):
        attempt = _run_twin_script(run, arguments, name)
        failed = attempt_verdict(attempt)
        if failed is not None:
            verdict, explanation = failed
            why = say("model.no_twin", reason=explanation)
            if attempt.last_lines:
                why = say("model.no_twin_said", trouble=why, said=attempt.last_lines[-1])
            return NoModel(Outcome(verdict, why))
    own = say("model.qwen_tokenizer" if tokenizer else "model.own_tokenizer")
    return ModelChoice(
        name=str(folder),
        source="twin",
        reason=say("model.twin", model=name, tokenizer=own),
        parameters=parameter_count(shape),
        snapshot_path=str(folder),
    )


def _tokenizer_of_twins() -> Path | None:
    try:
        return find_qwen_tokenizer()
    except ValueError as error:  # of the environment variable that names one
        raise InputError(str(error)) from error


def _twin_folder(name: str, shape: ModelShape, source: str) -> Path:
    digest = hashlib.sha256(json.dumps([asdict(shape), source, 1], sort_keys=True).encode()).hexdigest()[:8]
    return cache_dir() / "twins" / f"{name.rpartition('/')[2]}-{digest}"


def _texts_of_twins(run: Run) -> tuple[Path, str]:
    """The file whose texts a twin's tokenizer is trained on, and its sha256: the questions, else the training rows."""
    setup = run.setup
    if setup.dataset is not None:
        return setup.root / setup.dataset.path, setup.dataset.sha256
    path = setup.root / (setup.description.train_file or "")
    sha256 = sha256_or_none(path)
    if sha256 is None:
        raise InputError("no texts to train a twin's tokenizer on; give train.rows.file, or --steph-model")
    return path, sha256


def _twin_arguments(run: Run, shape: ModelShape, folder: Path, source: tuple[str, Path], name: str) -> tuple[str, ...]:
    config = run.journal.folder / "twin-config.json"
    config.write_text(json.dumps(config_of(shape, name)), encoding="utf-8")
    return "--config", str(config), "--output", str(folder), source[0], str(source[1])


def _run_twin_script(run: Run, arguments: tuple[str, ...], name: str) -> Attempt:
    argv = (run.setup.python, str(TWIN_SCRIPT), *arguments)
    request = Request(StageId.H1, f"twin {name}", argv, run.left_seconds())

    def judge(finished: Finished) -> Attempt:
        return finished.attempt

    return run_attempt(run, request, judge)
