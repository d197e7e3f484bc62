"""H-1: gets the model under test from the Hub, the cache or a folder, or makes a random-weight twin of it.

Also predicts the peak memory of each candidate model and of each rung before it runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steph.base.files import TABLES, sha256_or_none
from steph.base.messages import Message, say, words_of
from steph.base.terms import FitVerdict, StageId, Verdict
from steph.base.units import GIB
from steph.child import twin
from steph.conduct.attempts import run_attempt
from steph.conduct.preparation import Setup, StageRun, TwinSource, cache_dir, twin_source
from steph.contract.commands import Call
from steph.contract.rows import RowLengths
from steph.judge.checks_process import ModelEvidence, judge_model, no_model
from steph.judge.verdict import Outcome, attempt_verdict
from steph.memory.calibration import shape_of, workload_of
from steph.memory.forecast import Forecast, automatic, leanest, predict
from steph.memory.shapes import BUILT_IN, ModelShape, UnknownShapeError, model_shape, parameter_count
from steph.memory.terms import ASSUMED_TRAINER
from steph.record.settings import TrainSettings
from steph.record.values import Attempt, Candidate, Check, ModelChoice, PredictedPeak, RejectedCandidate
from steph.run import hub, model_files
from steph.run.fetch import HubError
from steph.run.inputs import InputError
from steph.run.model_files import IncompleteModelError

TWIN_SCRIPT = Path(__file__).parents[1] / "child" / "twin.py"
TEXTS = (".json", ".jsonl", *TABLES)
QWEN_TOKENS = 151_665  # of the tokenizer that Qwen1.5 to Qwen3 share, its added tokens included


@dataclass(frozen=True)
class NoModel:
    """No model can be had: the stage's outcome, and the candidates that were tried."""

    outcome: Outcome
    rejected: tuple[RejectedCandidate, ...] = ()


@dataclass(frozen=True)
class Tokenizer:
    """A twin's tokenizer: a `folder` to copy, else `texts` to train it on; `known_by` tells it from others."""

    known_by: str
    folder: Path | None = None
    texts: tuple[Path, ...] = ()


def make_twin(run: StageRun, name: str) -> ModelChoice | NoModel:
    """Make the twin of this model, or keep the one that is there; raises InputError where that can't be."""
    source = twin_source(name, on_gpu=run.setup.profile.machine.device == "gpu")
    tokenizer = tokenizer_of(run.setup, source)
    kind = json.dumps([source.config, source.shrink, tokenizer.known_by, 2], sort_keys=True)
    folder = cache_dir() / "twins" / f"{source.title}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
    config = run.journal.folder / "twin-config.json"
    config.write_text(json.dumps(source.config), encoding="utf-8")
    copied = ("--tokenizer", str(tokenizer.folder)) if tokenizer.folder else ()
    trained = () if tokenizer.folder else ("--train-tokenizer", *map(str, tokenizer.texts))
    shrink = ("--shrink",) if source.shrink else ()
    arguments = ("--config", str(config), "--output", str(folder), *copied, *trained, *shrink)
    run.console.line(f"H-1 {say('console.twin', model=name, folder=str(folder))}")
    if not twin.is_kept(arguments):
        call = Call((run.setup.python, str(TWIN_SCRIPT), *arguments))
        label, limit_seconds = say("attempt.twin", name=name), run.left_seconds()
        plan = Attempt(stage=StageId.H1, number=0, label=label, started_at="", limit_seconds=limit_seconds)
        attempt = run_attempt(run, plan, call, lambda finished: finished.attempt)
        failed = attempt_verdict(attempt)
        if failed is not None:
            verdict, explanation = failed
            why = say("model.no_twin", reason=explanation)
            if attempt.last_lines:
                why = say("model.no_twin_said", trouble=why, said=attempt.last_lines[-1])
            return NoModel(Outcome(verdict, why))
    try:
        parameters = model_files.folder_parameters(folder)
    except IncompleteModelError as error:
        return NoModel(Outcome(Verdict.FAIL, say("model.no_twin", reason=words_of(error))))
    return ModelChoice(
        name=str(folder),
        source="twin",
        reason=say(
            "model.twin_small" if source.shrink else "model.twin",
            model=name,
            tokenizer=say("model.tokenizer_given" if tokenizer.folder else "model.tokenizer_trained"),
        ),
        parameters=parameters,
        snapshot_path=str(folder),
    )


def tokenizer_of(setup: Setup, source: TwinSource) -> Tokenizer:
    """The model's own where it is there, a Qwen model's from anywhere on this disk, else one trained on the texts."""
    folder, config = source.tokenizer, source.config
    takes_qwens = str(config["model_type"]).startswith("qwen") and int(config.get("vocab_size", 0)) >= QWEN_TOKENS
    if folder is None and takes_qwens and not source.shrink:
        try:
            folder = find_qwen_tokenizer()
        except ValueError as error:  # of the environment variable that names one
            raise InputError(words_of(error)) from error
    if folder:
        return Tokenizer(str(folder), folder)
    description, hashes = setup.description, {}  # of the questions, and of training rows that H-2 need not build
    if setup.dataset is not None:
        hashes[setup.root / setup.dataset.path] = setup.dataset.sha256
    if description.train_file is not None and description.build is None and not description.train.before:
        path = setup.root / description.train_file
        sha256 = sha256_or_none(path)
        if sha256 is not None and path.suffix in TEXTS:
            hashes[path] = sha256
    if not hashes:
        raise InputError(say("input.no_texts"))
    return Tokenizer(" ".join(hashes.values()), texts=tuple(hashes))


def find_qwen_tokenizer(extra: Sequence[Path] = (), cache_dir: Path | None = None) -> Path | None:
    """A folder with a `tokenizer.json` that knows ChatML, or None.

    Looked for in $STEPH_TOKENIZER (a folder or a tokenizer.json), then in the folders `extra`, then in the Hub's cache,
    Qwen's own models first. Raises ValueError where $STEPH_TOKENIZER is set to something else.
    """

    def with_chatml(path: Path) -> Path | None:
        file = path if path.name == "tokenizer.json" else path / "tokenizer.json"
        try:
            return file.parent if b"<|im_start|>" in file.read_bytes() else None
        except OSError:
            return None

    named = os.environ.get("STEPH_TOKENIZER")
    if named:
        folder = with_chatml(Path(named).expanduser())
        if folder is None:
            raise ValueError(say("model_files.no_chatml", named=named))
        return folder
    cache_dir = cache_dir or model_files.default_cache_dir()
    patterns = ("models--Qwen--*/snapshots/*", "models--*/snapshots/*")
    cached = (path for pattern in patterns for path in sorted(cache_dir.glob(pattern)))
    return next(filter(None, map(with_chatml, (*extra, *cached))), None)


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
    """The checks of H-1: the model is there whole, its size is known and within the profile's range."""
    limits = setup.profile.model
    is_there = model.snapshot_path is not None and (Path(model.snapshot_path) / "config.json").is_file()
    is_explicit = setup.options.model is not None
    return judge_model(ModelEvidence(model, is_there, limits.min_parameters, limits.max_parameters, is_explicit))


def model_trouble(model: ModelChoice) -> Message | None:
    """Why what the pipeline would load now is not the record's model, in one line; None where it is."""
    published = model.revision is not None and model.source in ("hub", "cache")
    try:
        if not published:
            model_files.require_complete(Path(model.snapshot_path or model.name))
            return None
        revision = model_files.cached_model(model_files.default_cache_dir(), model.name).name
    except IncompleteModelError as error:
        return say("model.not_whole", error=error)
    if revision == model.revision:
        return None
    return say("model.other_revision", model=model.name, recorded=(model.revision or "")[:12], cached=revision[:12])


def _from_hub(run: StageRun, candidates: tuple[str, ...], *, is_explicit: bool) -> ModelChoice | NoModel:
    console, profile = run.console, run.setup.profile
    asked = hub.Hub(profile.limits.hub_request_seconds)
    try:
        choice = hub.choose(
            candidates, hub=asked, primary_count=profile.model.preferred, is_explicit=is_explicit, log=console.line
        )
    except hub.NoModelError as error:
        reasons = [say("model.rejected", model=item.name, reason=item.message) for item in error.rejected]
        explanation = say("model.none", reasons=reasons)
        return NoModel(Outcome(Verdict.FAIL, explanation, checks=no_model(explanation)), error.rejected)
    try:
        return hub.download(
            choice,
            hub=asked,
            deadline_seconds=run.left_seconds(),
            progress=lambda done_bytes, due_bytes: console.transfer(f"H-1 {choice.name}", done_bytes, due_bytes),
        )
    except HubError as error:
        said = words_of(error)
        outcome = Outcome(Verdict.FAIL, say("model.not_downloaded", error=said), checks=no_model(said))
        failed = RejectedCandidate(name=choice.name, cause=error.failure.cause, message=said)
        return NoModel(outcome, (*choice.rejected, failed))


@dataclass(frozen=True, slots=True)
class Expectation:
    """A training attempt's forecast as the trainer will run it, and in the least memory that it can."""

    likely: Forecast
    least: Forecast
    card_bytes: int
    is_binding: bool  # may rule a setting out: not of an undescribed trainer, nor under --steph-no-predict

    @property
    def verdict(self) -> FitVerdict:
        """Whether it fits this card, the trainer falling back on the least where it can't have the likely."""
        return (
            FitVerdict.FITS
            if self.likely.verdict(self.card_bytes) is FitVerdict.FITS
            else self.least.verdict(self.card_bytes)
        )

    @property
    def peak(self) -> PredictedPeak:
        """The likely forecast as a record keeps it."""
        return self.likely.peak.changed(verdict=self.verdict)

    @property
    def cannot_fit(self) -> bool:
        """Whether even the least that is needed is more than there is."""
        return self.least.verdict(self.card_bytes) is FitVerdict.DOES_NOT_FIT

    @property
    def surely_fits(self) -> bool:
        """Whether the least that is needed is there with certainty."""
        return self.least.verdict(self.card_bytes) is FitVerdict.FITS

    def words(self) -> Message:
        """The prediction and the card."""
        low, peak, card = (
            size / GIB for size in (self.least.peak.low_bytes, self.least.peak.peak_bytes, self.card_bytes)
        )
        return say("forecast.peak", peak=peak, low=low, card=card)


def expected(
    setup: Setup, model: ModelChoice, settings: TrainSettings, rows: RowLengths | None = None
) -> Expectation | None:
    """The memory that a training attempt will need; rows as long as they can be where they are not known."""
    try:
        return expected_of_shape(setup, shape_of(model), settings, rows)
    except Exception:  # a shape or module that the model doesn't know, or sizes that nothing can be computed of
        return None


def expected_of_shape(
    setup: Setup, shape: ModelShape, settings: TrainSettings, rows: RowLengths | None = None
) -> Expectation | None:
    """The memory that training this shape will need, None without a GPU; raises ValueError for an unknown module."""
    card_bytes = usable_bytes(setup)
    if card_bytes is None:
        return None
    work = workload_of(settings, setup.description.trainer or ASSUMED_TRAINER)
    if rows is not None and not work.kind.pads_to_maximum:
        work = work.of_rows(rows.longest_tokens, rows.longest_answer_tokens)
    likely = predict(shape, automatic(shape, work, card_bytes))
    is_binding = setup.description.trainer is not None and not setup.options.no_predict
    return Expectation(likely, predict(shape, leanest(work)), card_bytes, is_binding)


def worth_trying(expectation: Expectation, last: Attempt | None, *, gave_up_4bit: bool) -> bool:
    """Whether a rung is tried: not where it can't fit; without 4-bit after an OOM only where it surely fits."""
    if not expectation.is_binding:
        return True
    ran_out = last is not None and last.ran_out_of_memory
    # giving up 4-bit makes the weights larger, which no OOM is cured by
    return expectation.surely_fits if ran_out and gave_up_4bit else not expectation.cannot_fit


def usable_bytes(setup: Setup) -> int | None:
    """Bytes that a training process may take of the smallest of its cards, None without a GPU."""
    cards = setup.devices(setup.profile.train.num_processes)
    return min((card.usable_bytes(setup.options.vram_cap_bytes) for card in cards), default=None)


def predicted_candidates(setup: Setup, found: ModelChoice | NoModel) -> tuple[Candidate, ...]:
    """The model asked for and the profile's, in order; the one chosen is the first that was not passed over."""
    asked = (setup.options.model,) if setup.options.model else ()
    names = tuple(dict.fromkeys((*asked, *setup.profile.model.candidates)))
    passed_over = {item.name for item in found.rejected}
    chosen = next((name for name in names if name not in passed_over), None) if isinstance(found, ModelChoice) else None
    settings = setup.profile.train.short()
    candidates = []
    for name in names:
        choice = found if name == chosen and isinstance(found, ModelChoice) else None
        candidate = Candidate(name=name, outcome="rejected" if name in passed_over else "not_tried", settings=settings)
        if choice:
            candidate = candidate.changed(outcome="chosen", parameters=choice.parameters)
        candidates.append(_predicted(setup, candidate, choice))
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
