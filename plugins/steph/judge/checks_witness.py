"""Checks of a training by what was seen in its own process: the core of H-2. Pure but for the training file's rows.

Printed words are not asked here. What no witness could see is unmeasured, with the reason; a hook that took itself off
makes unmeasured what it would have seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from steph.base.messages import say
from steph.base.text import one_line
from steph.base.units import MISSING
from steph.judge.checks_rows import row_checks
from steph.judge.checks_seen import (
    BASE_UNCHANGED,
    MASK_AND_POSITIONS,
    NO_OWN_CODE,
    SAVED_AS_TRAINED,
    TEMPLATE_ONCE,
    inputs_check,
    template_check,
    trained_weight_checks,
)
from steph.judge.checks_setup import (
    ANSWER_SUPERVISED,
    END_SUPERVISED,
    MODEL_LOADED,
    ONE_BOS,
    PADDING_BOUNDED,
    PARAMETERS_ON_GPU,
    PROMPT_UNLABELLED,
    QUANTISED_AS_ASKED,
    SETUP_SEEN,
    TOKENS_SUPERVISED,
    Seen,
    end_of,
    label_checks,
    last_save,
    model_check,
    place_checks,
    quantised_check,
    setup_check,
    training_in,
    why_unseen,
)
from steph.judge.checks_updates import (
    ADAPTER_MOVED,
    LOSS_AS_COMPUTED,
    MOST_LOST_SHARE,
    UPDATES_SEEN,
    loss_check,
    moved_check,
    updates_check,
)
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.witness import AdapterLoaded, Batch, Lora, ModelSaved, TrainingBegins, Witness
from steph.record.settings import steps_per_epoch
from steph.record.values import Check

LEAST_STEPS, SHORT_SHARE = 3, 0.75  # of the first; of a step's rows
ZERO_BEGINNINGS = {"True", "False", "gaussian"}  # False draws both matrices at random, which is for tests
OTHER_BEGINNINGS = "init[-_ ]?lora|loftq|pissa|milora|lora[-_ ]?ga"

TRAINING_SEEN = CheckKind("training_seen", "H-2", FAIL, trap=23, core=True)
STEPS_SEEN = CheckKind("steps_seen", "H-2", FAIL, core=True)
BATCH_SEEN = CheckKind("batch_seen", "H-2", FAIL, optional=True)
BEGINS_NEW = CheckKind("begins_new", "H-2", WARN, optional=True)
SAVED_AT_END = CheckKind("saved_at_end", "H-2", WARN, trap=23, optional=True)
WITNESSED_TRAINING = (
    TRAINING_SEEN,
    STEPS_SEEN,
    BATCH_SEEN,
    TOKENS_SUPERVISED,
    ANSWER_SUPERVISED,
    END_SUPERVISED,
    PROMPT_UNLABELLED,
    ONE_BOS,
    PADDING_BOUNDED,
    MODEL_LOADED,
    QUANTISED_AS_ASKED,
    SETUP_SEEN,
    PARAMETERS_ON_GPU,
    ADAPTER_MOVED,
    UPDATES_SEEN,
    LOSS_AS_COMPUTED,
    SAVED_AT_END,
    SAVED_AS_TRAINED,
    BASE_UNCHANGED,
    NO_OWN_CODE,
    BEGINS_NEW,
    MASK_AND_POSITIONS,
    TEMPLATE_ONCE,
)


def witnessed_training_checks(evidence: TrainEvidence, adapter_sha256: str | None) -> tuple[Check, ...]:
    """All checks of what was seen of a training; where none was seen, they say why."""
    seen = training_in(evidence.witness)
    witness = evidence.witness or Witness()
    if seen is None:
        holds, why = why_unseen(evidence.witness, "training")
        needed = [kind for kind in WITNESSED_TRAINING if kind not in (TRAINING_SEEN, PARAMETERS_ON_GPU)]
        unmeasured = (kind.check(None, say("witness.no_training")) for kind in needed)
        return (TRAINING_SEEN.check(holds, why), *unmeasured, *row_checks(evidence, None, ()))
    return (
        _ended_check(seen),
        _steps_check(evidence, seen),
        _batch_check(evidence, seen.begins, seen.batches),
        *label_checks(seen),
        model_check(witness, evidence.model_name, (seen.begins,)),
        quantised_check(evidence.settings.use_4bit, (seen.begins,)),
        setup_check(evidence, seen),
        *place_checks((seen.begins,), on_gpu=evidence.card is not None),
        moved_check(evidence, seen),
        updates_check(seen),
        loss_check(seen),
        _saved_check(evidence, witness, seen, adapter_sha256),
        *trained_weight_checks(seen.ends, evidence.output_dir, last_save(seen, witness, adapter_sha256)),
        _begins_new_check(evidence, seen),
        inputs_check(seen.batches),
        template_check(seen.batches),
        *row_checks(evidence, seen.begins, seen.batches),
    )


def _ended_check(seen: Seen) -> Check:
    begins, ends = seen.begins, seen.ends
    own = "Trainer" if begins.source == "trainer" else say("witness.own_loop")
    who = one_line(begins.trainer, 60) if begins.trainer else own
    if ends is None:
        return TRAINING_SEEN.check(False, "unended", who=who)
    if ends.raised:
        return TRAINING_SEEN.check(False, "raised", who=who, error=one_line(ends.raised, 100))
    if seen.earlier:
        errors = [one_line(error, 100) for error in seen.earlier[:3]]
        return TRAINING_SEEN.check(False, "begun_again", who=who, errors=errors, severity=WARN)
    return TRAINING_SEEN.check(True, "ended", who=who)


def _steps_check(evidence: TrainEvidence, seen: Seen) -> Check:
    """All steps that the Trainer counted on were done, and it counted on as many as its rows are due."""
    begins, ends, settings = seen.begins, seen.ends, evidence.settings
    done = ends.steps if ends and ends.steps is not None else ends.optimizer_steps if ends else None
    if done is None:
        return STEPS_SEEN.check(None, "none")
    due = (ends.due if ends else None) or begins.steps_due
    if due is not None and done != due and ends is not None and ends.stopped_itself:
        names = [one_line(name, 60) for name in ends.stopped_by or ()] or MISSING
        return STEPS_SEEN.check(
            False, "stopped", severity=WARN, due=due, done=done, evaluations=ends.evaluations, callbacks=names
        )
    if due is not None and done != due:
        return STEPS_SEEN.check(False, "differs", due=due, done=done)
    is_packed = begins.packing or any(batch.packed for batch in seen.batches)
    rows = begins.rows if begins.rows and not is_packed else None
    if rows is None and due is not None:
        return STEPS_SEEN.check(True, "as_planned", done=done)
    rows = rows or evidence.train_rows
    if not rows:
        return STEPS_SEEN.check(True if due else None, "rows_unknown", done=done)
    whole = steps_per_epoch(rows, settings) * settings.num_epochs
    most, least = min(whole + settings.num_epochs, settings.max_steps), min(whole, settings.max_steps)
    # a loop of its own may hold out rows; the Trainer may drop an incomplete last batch in each epoch
    least = math.ceil(MOST_LOST_SHARE * least) if due is None else max(1, least - settings.num_epochs)
    expected = min(whole, settings.max_steps)
    return STEPS_SEEN.check(least <= done <= most, "counted", done=done, rows=rows, expected=expected)


def _batch_check(evidence: TrainEvidence, begins: TrainingBegins, batches: Sequence[Batch]) -> Check:
    if not begins.batch_size:
        return BATCH_SEEN.check(None, "none")
    if (short := _short_steps(begins, batches)) is not None:
        rows, wanted = short
        return BATCH_SEEN.check(False, "short", severity=WARN, rows=rows, wanted=wanted)
    parts = (begins.batch_size, begins.accumulation or 1, begins.world_size or 1)
    asked = evidence.settings
    return BATCH_SEEN.check(
        math.prod(parts) == asked.effective_batch_size,
        "rows",
        batch=parts[0],
        accumulation=parts[1],
        processes=parts[2],
        rows=math.prod(parts),
        asked_batch=asked.batch_size,
        asked_accumulation=asked.gradient_accumulation_steps,
        asked_processes=asked.num_processes,
    )


def _begins_new_check(evidence: TrainEvidence, seen: Seen) -> Check:
    """Whether the adapter was made for this training, and not read from a folder before it, nor begun at random.

    A new one changes nothing of the base, but for methods that begin elsewhere; one that was trained before does.
    """
    read = [fact for fact in seen.process.of(AdapterLoaded) if fact.at <= seen.begins.at]
    if trained := [fact for fact in read if fact.is_trainable]:
        return BEGINS_NEW.check(False, "read", folder=one_line(trained[-1].path, 160))
    lora, before = seen.begins.lora or Lora(), seen.process.of(TrainingBegins)[0].at < seen.begins.at
    is_known = read or before or seen.begins.resumed or evidence.says(OTHER_BEGINNINGS)
    if lora.nonzero_pairs and {*lora.begun_as} and {*lora.begun_as} <= ZERO_BEGINNINGS and not is_known:
        return BEGINS_NEW.check(False, "disturbed", pairs=lora.pairs, nonzero=lora.nonzero_pairs)
    return BEGINS_NEW.check(True, "made")


def _short_steps(begins: TrainingBegins, batches: Sequence[Batch]) -> tuple[int, int] | None:
    """Rows that reached the model in the usual one of the first whole steps, where a quarter and more were lost.

    Rows may hold several texts, and another process may have the others.
    """
    accumulation = begins.accumulation or 1
    steps = Counter(batch.step for batch in batches if batch.step is not None)
    rows = [
        sum(batch.shape[0] for batch in batches if batch.step == step and batch.shape)
        for step, count in steps.items()
        if count >= accumulation
    ]
    wanted = (begins.batch_size or 0) * accumulation
    is_open = (begins.world_size or 1) == 1 and not begins.packing and not any(batch.packed for batch in batches)
    if not is_open or len(rows) < LEAST_STEPS:
        return None
    usual = int(median(rows))
    return (usual, wanted) if usual <= SHORT_SHARE * wanted else None


def _saved_check(evidence: TrainEvidence, witness: Witness, seen: Seen, sha256: str | None) -> Check:
    saves = [save for save in witness.of(ModelSaved) if save.adapter is not False and save.sha256]
    done = seen.ends.steps if seen.ends else None
    if sha256 is None or not saves:
        return SAVED_AT_END.check(None, "none")
    same = [save for save in saves if save.sha256 == sha256]
    if not same:
        folder = evidence.output_dir.resolve()
        overwritten = any(save.path and Path(save.path).resolve() == folder for save in saves)
        found = "overwritten" if overwritten else "stranger"
        return SAVED_AT_END.check(False, found, sha256=sha256[:12], severity=FAIL if overwritten else None)
    if all(save.at < seen.begins.at for save in same):
        return SAVED_AT_END.check(False, "before")
    steps = [save.step for save in same if save.step is not None]
    if done is None or not steps or any(not save.in_training for save in same if save.at >= end_of(seen)):
        return SAVED_AT_END.check(True, "this_attempt")
    return SAVED_AT_END.check(max(steps) >= done, "at_step", step=max(steps), steps=done)
