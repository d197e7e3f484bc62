"""Twins for rehearsals: of which model, with whose tokenizer, made by a script in the pipeline's interpreter.

On a GPU a twin has the published model's exact shapes; on the CPU its architecture in small sizes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from steph.base.files import sha256_or_none
from steph.base.messages import say, words_of
from steph.base.terms import StageId, Verdict
from steph.child import twin
from steph.conduct.attempts import Finished, planned, run_attempt
from steph.conduct.preparation import Setup, TwinSource, cache_dir, twin_source
from steph.conduct.stage_run import StageRun
from steph.contract.commands import Call
from steph.judge.verdict import Outcome, attempt_verdict
from steph.record.values import Attempt, ModelChoice, RejectedCandidate
from steph.run import model_files
from steph.run.inputs import InputError
from steph.run.model_files import IncompleteModelError, find_qwen_tokenizer

TWIN_SCRIPT = Path(__file__).parents[1] / "child" / "twin.py"
TEXTS = (".json", ".jsonl")


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

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the script is told of it."""
        return ("--tokenizer", str(self.folder)) if self.folder else ("--train-tokenizer", *map(str, self.texts))


def make_twin(run: StageRun, name: str) -> ModelChoice | NoModel:
    """Make the twin of this model, or keep the one that is there; raises InputError where that can't be."""
    source = twin_source(name, on_gpu=run.setup.profile.machine.device == "gpu")
    tokenizer = tokenizer_of(run.setup, source)
    folder = _folder(source, tokenizer)
    arguments = _arguments(run, source, folder, tokenizer)
    run.console.line(f"H-1 {say('console.twin', model=name, folder=str(folder))}")
    if not twin.is_kept(list(arguments)):
        attempt = _run_script(run, arguments, name)
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
    folder = source.tokenizer
    if folder is None and source.takes_qwens and not source.shrink:
        try:
            folder = find_qwen_tokenizer()
        except ValueError as error:  # of the environment variable that names one
            raise InputError(words_of(error)) from error
    return Tokenizer(str(folder), folder) if folder else _trained_on(setup)


def _trained_on(setup: Setup) -> Tokenizer:
    """The questions, and the training rows where they are there before H-2 builds them."""
    description, hashes = setup.description, {}
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


def _folder(source: TwinSource, tokenizer: Tokenizer) -> Path:
    told = json.dumps([source.config, source.shrink, tokenizer.known_by, 2], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return cache_dir() / "twins" / f"{source.title}-{digest}"


def _arguments(run: StageRun, source: TwinSource, folder: Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    config = run.journal.folder / "twin-config.json"
    config.write_text(json.dumps(source.config), encoding="utf-8")
    shrink = ("--shrink",) if source.shrink else ()
    return "--config", str(config), "--output", str(folder), *tokenizer.arguments, *shrink


def _run_script(run: StageRun, arguments: tuple[str, ...], name: str) -> Attempt:
    call = Call((run.setup.python, str(TWIN_SCRIPT), *arguments))
    plan = planned(StageId.H1, say("attempt.twin", name=name), limit_seconds=run.left_seconds())

    def judge(finished: Finished) -> Attempt:
        return finished.attempt

    return run_attempt(run, plan, call, judge)
