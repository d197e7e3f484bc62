"""Checks of a training by what was seen in its own process: its steps, what they changed, its inputs. The core of H-2.

Pure but for the training file's rows. Printed words are not asked here. What no witness could see is unmeasured, with
the reason; a hook that took itself off makes unmeasured what it would have seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from steph.base.messages import Message, say
from steph.base.text import one_line
from steph.base.units import MISSING
from steph.judge import checks_seen, checks_setup
from steph.judge.checks_figures import SCALE_TOLERANCE, scaled_loss
from steph.judge.checks_rows import row_checks
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.witness import AdapterLoaded, Batch, Lora, ModelSaved, Moved, TrainingBegins, TrainingEnds, Witness
from steph.record.settings import steps_per_epoch
from steph.record.values import Check

LEAST_ROWS = 4
LEAST_PATH_SHARE = 0.02  # of the summed learning rates: an adaptive optimizer moves a weight by up to one rate a step
LEAST_MOVING_STEPS = 3  # B begins at zero, so that A has no gradient in the first one
LEAST_LOGGED = 3  # steps; of fewer, the one rate that is zero may be the warm-up's or the last one's
MOST_LOST_SHARE = 0.5  # of the steps after the first, without a rate or with a gradient that is no number
MOST_SKIPPED_SHARE = 0.2  # of the optimizer's steps; fp16 skips one or two while it looks for its scale
LEAST_LOSSES, LOSS_TOLERANCE, LOSS_ROUNDING = 2, 0.05, 0.01  # steps; a share of the larger one; what is cut in a log
LEAST_LOST_STEPS, MANY_LOST = 2, 7  # steps; micro-batches of one step
LEAST_LEFT = 2  # steps that began with a gradient
LEAST_TOUCHED = 2  # times that matrices changed between two steps
MOST_OFTEN = 1.5  # steps of an optimizer for each of the Trainer's
MOST_SHRUNK = 0.5  # of A: training changes its numbers and hardly ever makes them smaller
ADAPTER_MOVED = CheckKind("adapter_moved", "H-2", FAIL, core=True)
UPDATES_SEEN = CheckKind("updates_seen", "H-2", FAIL, trap=25, optional=True)
LOSS_AS_COMPUTED = CheckKind("loss_as_computed", "H-2", WARN, optional=True)


def moved_check(evidence: TrainEvidence, seen: checks_setup.Seen) -> Check:
    ends, lora = seen.ends, seen.begins.lora
    if ends is None or ends.lora_b is None or not ends.lora_b.total:
        return ADAPTER_MOVED.check(None, "no_lora" if lora is None else "none")
    b, a = ends.lora_b, ends.lora_a or Moved()
    moved = say("check.adapter_moved.moved", b=b.total, moved_b=b.moved, a=a.total, moved_a=a.moved)
    if not b.moved and not a.moved:
        moved = say("check.adapter_moved.nothing", b=b.total, a=a.total)
    if ends.optimizer_steps == 0 and not b.moved:
        return ADAPTER_MOVED.check(False, "not_optimised", moved=moved)
    is_by_choice = b.moved > 0 and b.moved + b.frozen >= b.total and b.zero < b.total
    if b.moved * 2 <= b.total and is_by_choice:
        return ADAPTER_MOVED.check(False, "frozen", moved=moved, frozen=b.frozen, severity=WARN)
    if b.moved * 2 <= b.total or b.zero >= b.total:
        return ADAPTER_MOVED.check(False, moved)
    if checks_seen.is_even(ends.matrices) and (ends.steps or 0) > 1:
        return ADAPTER_MOVED.check(False, "even", moved=moved, severity=WARN)
    if (trouble := _trouble_with_a(evidence, seen, ends, a)) is not None:
        return ADAPTER_MOVED.check(False, "trouble_with_a", moved=moved, trouble=trouble, severity=WARN)
    rates = [line.learning_rate for line in seen.logged if line.learning_rate]
    if b.max_abs is not None and len(rates) >= LEAST_LOGGED and ends.steps:
        path = ends.steps * sum(rates) / len(rates)
        if b.max_abs < LEAST_PATH_SHARE * path:
            return ADAPTER_MOVED.check(False, "little", moved=moved, most=b.max_abs, rates=path, severity=WARN)
    return ADAPTER_MOVED.check(True, moved)


def _trouble_with_a(evidence: TrainEvidence, seen: checks_setup.Seen, ends: TrainingEnds, a: Moved) -> Message | None:
    """What is to be said of A matrices that stood still, which LoRA-FA means to do, or that shrank away."""
    is_meant = evidence.says("lora[-_ ]?fa") or "lorafa" in (seen.begins.optimizer or "").lower()
    rates = [line.learning_rate for line in seen.logged if line.learning_rate is not None]
    steps = ends.optimizer_steps or ends.steps or 0
    steps = min(steps, sum(rate > 0 for rate in rates)) if rates else steps  # without a rate nothing moves
    if a.total and 2 * a.moved <= a.total and steps >= LEAST_MOVING_STEPS and not is_meant:
        return say("witness.a_not_trained")
    if a.kept is not None and a.kept < MOST_SHRUNK:
        return say("witness.a_shrank", kept=a.kept)
    return None


def updates_check(seen: checks_setup.Seen) -> Check:
    """Steps that taught nothing: without a rate or gradient, with one that is no number, or skipped by the scaler."""
    rates = [line.learning_rate for line in seen.logged if line.learning_rate is not None]
    norms = [line.grad_norm for line in seen.logged if line.grad_norm is not None]
    troubles: list[tuple[str, float]] = []  # an id, and the share of the steps that it concerns
    if len(rates) >= LEAST_LOGGED:
        later = rates[1:-1] if rates[-1] == 0 and any(rates[1:-1]) else rates[1:]
        troubles.append(("no_rate", sum(rate == 0 for rate in later) / len(later)))
    if len(norms) >= LEAST_LOGGED:
        later = norms[1:]
        troubles.append(("no_gradient", sum(norm == 0 for norm in later) / len(later)))
        troubles.append(("no_number", sum(not math.isfinite(norm) for norm in later) / len(later)))
    ends = seen.ends
    if ends and not rates and ends.rateless_steps is not None and (ends.steps or 0) > LEAST_LOGGED:
        # a warm-up may begin at zero
        troubles.append(("no_rate", max(0, ends.rateless_steps - 1) / ((ends.steps or 0) - 1)))
    if ends and ends.steps and ends.optimizer_steps and ends.optimizer_steps < ends.steps:
        share = 1 - ends.optimizer_steps / ends.steps
        troubles.append(("skipped", share if ends.steps - ends.optimizer_steps > 2 else 0.0))
    if ends and ends.bare_forwards and ends.steps:
        whole = max(ends.bare_forwards + (ends.forwards or 0), ends.steps * (seen.begins.accumulation or 1))
        share = ends.bare_forwards / whole
        troubles.append(("bare", share))
    lost, left, forgotten = _lost_gradients(seen), _left_gradients(seen), _forgotten(ends)
    if (unlearnt := _unlearnt(seen)) is not None:
        troubles.append(("unlearnt", unlearnt))
    if not any((troubles, lost, left, forgotten, _touched(ends))):
        return UPDATES_SEEN.check(None, "none")
    wrong = [
        (what, share)
        for what, share in troubles
        if share > (MOST_SKIPPED_SHARE if what in ("skipped", "bare", "unlearnt") else MOST_LOST_SHARE)
    ]
    shares = [say(f"check.updates_seen.{what}", percent=100 * share) for what, share in wrong]
    touched = _touched(ends)
    told = [*shares, *filter(None, (lost, left, forgotten, touched, _stepped_often(seen)))]
    if not told:
        return UPDATES_SEEN.check(True, "sound", steps=max(len(rates), len(norms)) or (ends and ends.steps) or 0)
    dead = (bool(lost) and seen.begins.source == "trainer") or any(
        share > MOST_LOST_SHARE
        if what == "skipped"
        else share >= MOST_LOST_SHARE
        if what == "unlearnt"
        else share == 1 and what != "no_number"
        for what, share in wrong
    )
    return UPDATES_SEEN.check(False, "wrong", troubles=told, severity=None if dead else WARN)


def _unlearnt(seen: checks_setup.Seen) -> float | None:
    """Which share of the first forward passes no backward pass came back to, where most of their steps have such ones.

    A validation now and then has none, nor has one in evaluation mode, or without gradients. Where none has one, though
    the matrices moved, something else than loss and logits is learnt from.
    """
    ends = seen.ends
    if ends is None:
        return None
    calls = [one for one in ends.calls if one[0] < (ends.steps or 0)]  # a last validation comes after all steps
    calls = [one for one in calls if one[1]] or calls
    has_moved = ends.lora_b is None or ends.lora_b.moved > 0
    if not calls or (has_moved and not any(is_learnt for *_, is_learnt in calls)):
        return None
    lost = [step for step, _, is_learnt in calls if not is_learnt]
    return len(lost) / len(calls) if 2 * len({*lost}) > len({step for step, *_ in calls}) else 0.0


def _forgotten(ends: TrainingEnds | None) -> Message | None:
    """What is to be said where an optimizer that stepped all the time knows of fewer than half of its steps."""
    if ends is None or ends.optimizer_age is None or 2 * ends.optimizer_age[1] >= ends.optimizer_age[0]:
        return None
    count, age = ends.optimizer_age
    return say("check.updates_seen.forgotten", steps=count, own=age)


def _stepped_often(seen: checks_setup.Seen) -> Message | None:
    """One optimizer that steps more often than the Trainer does; of several each may step once."""
    ends = seen.ends
    if seen.begins.source != "trainer" or ends is None or not ends.steps or ends.optimizer_age is None:
        return None
    # two trainings may have it, one after the other
    is_often = min(ends.optimizer_age[0], ends.optimizer_steps or 0) > MOST_OFTEN * ends.steps
    return say("check.updates_seen.often", steps=ends.steps, own=ends.optimizer_age[0]) if is_often else None


def _touched(ends: TrainingEnds | None) -> Message | None:
    """Something of the program's own that changes the matrices again and again; a single time may load an adapter."""
    if ends is None or not ends.gaps or (ends.touched_between or 0) < LEAST_TOUCHED:
        return None
    return say("check.updates_seen.touched", gaps=ends.gaps, touched=ends.touched_between or 0)


def _lost_gradients(seen: checks_setup.Seen) -> Message | None:
    """What is to be said where each micro-batch finds no gradient of the one before it in the same step."""
    if seen.begins.source == "loop":
        return _lost_in_loop(seen.batches)
    accumulation = seen.begins.accumulation or 1
    counts = Counter(batch.step for batch in seen.batches)
    if seen.begins.source != "trainer" or None in counts or max(counts.values(), default=0) > accumulation:
        return None
    later = [batch.gradient for before, batch in pairwise(seen.batches) if before.step == batch.step]
    if not later or any(gradient is None or gradient != 0 for gradient in later):
        return None
    return say("check.updates_seen.not_accumulated")


def _left_gradients(seen: checks_setup.Seen) -> Message | None:
    """What is to be said where each step finds the gradients of the one before it.

    The Trainer clears them after a step, a loop maybe only after its forward pass: its backward pass tells.
    """
    firsts = [
        now.gradient
        for before, now in pairwise(seen.batches)
        if before.step is not None and now.step is not None and now.step > before.step
    ]
    if seen.begins.source == "loop":
        firsts = [*seen.ends.left_gradients] if seen.ends else []
    if len(firsts) < LEAST_LEFT or not all(firsts):
        return None
    return say("check.updates_seen.not_cleared")


def _lost_in_loop(batches: Sequence[Batch]) -> Message | None:
    """The same of a loop, which says nothing of its micro-batches: other rows, learnt from, and no gradient is left.

    The same rows again are a method (SAM); in one step alone it may be fp16 that looks for its scale.
    """
    later = [
        (now.step, now.gradient)
        for before, now in pairwise(batches)
        if before.step == now.step and now.backwards and now.row_hashes != before.row_hashes
    ]
    is_often = len({step for step, _ in later}) >= LEAST_LOST_STEPS or len(later) >= MANY_LOST
    return say("check.updates_seen.not_accumulated") if is_often and all(size == 0 for _, size in later) else None


def loss_check(seen: checks_setup.Seen) -> Check:
    """The losses that were logged are what the Trainer's own steps gave, on one process and step by step."""
    logged = {line.step: line.loss for line in seen.logged if line.step is not None and line.loss is not None}
    given = seen.ends.first_losses if seen.ends else {}
    accumulation = seen.begins.accumulation
    pairs = [
        (sum(losses), float(logged[done + 1] or 0.0))
        for done, losses in given.items()
        if len(losses) == accumulation and done + 1 in logged and (done in logged or not done)
    ]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < LEAST_LOSSES or (seen.begins.world_size or 1) > 1:
        return LOSS_AS_COMPUTED.check(None, "none")
    wrong = [pair for pair in pairs if abs(pair[0] - pair[1]) > LOSS_TOLERANCE * max(map(abs, pair)) + LOSS_ROUNDING]
    own, told = wrong[0] if wrong else pairs[0]
    holds = 2 * len(wrong) <= len(pairs)
    if holds and (scaled := scaled_loss(seen.begins, seen.ends)) is not None:
        factor, is_mean = scaled
        if is_mean and abs(factor - 1) <= SCALE_TOLERANCE:
            return LOSS_AS_COMPUTED.check(False, "undivided", accumulation=accumulation)
        return LOSS_AS_COMPUTED.check(False, "scaled", factor=factor)
    return LOSS_AS_COMPUTED.check(holds, "compared", steps=len(pairs), different=len(wrong), computed=own, logged=told)


LEAST_STEPS, SHORT_SHARE = 3, 0.75  # of the first; of a step's rows
ZERO_BEGINNINGS = {"True", "False", "gaussian"}  # False draws both matrices at random, which is for tests
OTHER_BEGINNINGS = "init[-_ ]?lora|loftq|pissa|milora|lora[-_ ]?ga"

TRAINING_SEEN = CheckKind("training_seen", "H-2", FAIL, trap=23, core=True)
STEPS_SEEN = CheckKind("steps_seen", "H-2", FAIL, core=True)
BATCH_SEEN = CheckKind("batch_seen", "H-2", FAIL, optional=True)
BEGINS_NEW = CheckKind("begins_new", "H-2", WARN, optional=True)
SAVED_AT_END = CheckKind("saved_at_end", "H-2", WARN, trap=23, optional=True)
RANKS_AGREE = CheckKind("ranks_agree", "H-2", FAIL, optional=True)
WITNESSED_TRAINING = (
    *(TRAINING_SEEN, STEPS_SEEN, BATCH_SEEN, RANKS_AGREE),
    *(checks_setup.TOKENS_SUPERVISED, checks_setup.ANSWER_SUPERVISED, checks_setup.END_SUPERVISED),
    *(checks_setup.PROMPT_UNLABELLED, checks_setup.ONE_BOS, checks_setup.PADDING_BOUNDED, checks_setup.MODEL_LOADED),
    *(checks_setup.QUANTISED_AS_ASKED, checks_setup.SETUP_SEEN, checks_setup.PARAMETERS_ON_GPU),
    *(ADAPTER_MOVED, UPDATES_SEEN, LOSS_AS_COMPUTED, SAVED_AT_END, checks_seen.SAVED_AS_TRAINED),
    *(checks_seen.BASE_UNCHANGED, checks_seen.NO_OWN_CODE, BEGINS_NEW),
    *(checks_seen.MASK_AND_POSITIONS, checks_seen.TEMPLATE_ONCE),
)


def witnessed_training_checks(evidence: TrainEvidence, adapter_sha256: str | None) -> tuple[Check, ...]:
    """All checks of what was seen of a training; where none was seen, they say why."""
    seen = checks_setup.training_in(evidence.witness)
    witness = evidence.witness or Witness()
    if seen is None:
        holds, why = checks_setup.why_unseen(evidence.witness, "training")
        needed = [
            kind
            for kind in WITNESSED_TRAINING
            if kind not in (TRAINING_SEEN, checks_setup.PARAMETERS_ON_GPU, RANKS_AGREE)
        ]
        unmeasured = (kind.check(None, say("witness.no_training")) for kind in needed)
        return (TRAINING_SEEN.check(holds, why), *unmeasured, *row_checks(evidence, None, ()))
    return (
        _ended_check(seen),
        _steps_check(evidence, seen),
        _batch_check(evidence, seen.begins, seen.batches),
        *_ranks_checks(seen, checks_setup.trainings_in(evidence.witness)),
        *checks_setup.label_checks(seen),
        checks_setup.model_check(witness, evidence.model_name, (seen.begins,)),
        checks_setup.quantised_check(
            evidence.settings.use_4bit, (seen.begins,), is_unsaid="use_4bit" in evidence.unsaid
        ),
        checks_setup.setup_check(evidence, seen),
        *checks_setup.place_checks((seen.begins,), on_gpu=evidence.card is not None),
        moved_check(evidence, seen),
        updates_check(seen),
        loss_check(seen),
        _saved_check(evidence, witness, seen, adapter_sha256),
        *checks_seen.trained_weight_checks(
            seen.ends, evidence.output_dir, checks_setup.last_save(seen, witness, adapter_sha256)
        ),
        _begins_new_check(evidence, seen),
        checks_seen.inputs_check(seen.batches),
        checks_seen.template_check(seen.batches),
        *row_checks(evidence, seen.begins, seen.batches),
    )


def _ended_check(seen: checks_setup.Seen) -> Check:
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


def _steps_check(evidence: TrainEvidence, seen: checks_setup.Seen) -> Check:
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
    asked = evidence.settings
    is_loop = begins.source == "loop"  # which says nothing of its batches
    due = {"batch_size": asked.effective_batch_size, "accumulation": 1} if is_loop else {}
    if (short := _short_steps(begins.model_copy(update=due), batches)) is not None:
        rows, wanted = short
        return BATCH_SEEN.check(False, "short", severity=WARN, rows=rows, wanted=wanted)
    if not begins.batch_size:
        return BATCH_SEEN.check(None, "none")
    parts = (begins.batch_size, begins.accumulation or 1, begins.world_size or 1)
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


def _ranks_checks(seen: checks_setup.Seen, every: Sequence[checks_setup.Seen]) -> tuple[Check, ...]:
    """Every process ends with the same adapter, as after synchronised gradients, and trains on rows of its own.

    Of a single process nothing is asked.
    """
    last = {
        one.process.pid: one for one in sorted(every, key=lambda one: one.begins.at) if one.process.rank is not None
    }
    others = [one for pid, one in last.items() if pid != seen.process.pid]
    if not others:
        return ()
    own, rows = (seen.ends.matrices if seen.ends else None) or {}, _rows_of(seen)
    compared = apart = shared = 0
    for one in others:
        matrices, theirs = (one.ends.matrices if one.ends else None) or {}, _rows_of(one)
        # parts of a matrix may lie in different processes
        common = [(own[name], matrices[name]) for name in own if name in matrices and own[name][2] == matrices[name][2]]
        compared += bool(common)
        apart += any(not checks_seen.is_same(mine, other) for mine, other in common)
        fewer = min(len(rows), len(theirs))
        shared += bool(common) and fewer >= LEAST_ROWS and 2 * len(rows & theirs) > fewer
    if not compared:
        return (RANKS_AGREE.check(None, "none"),)
    if apart:
        return (RANKS_AGREE.check(False, "apart", processes=compared + 1, apart=apart),)
    if shared:
        return (RANKS_AGREE.check(False, "same_rows", processes=compared + 1, severity=WARN),)
    return (RANKS_AGREE.check(True, "agree", processes=compared + 1),)


def _rows_of(seen: checks_setup.Seen) -> frozenset[str]:
    return frozenset(row for batch in seen.batches for row in batch.row_hashes or ())


def _begins_new_check(evidence: TrainEvidence, seen: checks_setup.Seen) -> Check:
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


def _saved_check(evidence: TrainEvidence, witness: Witness, seen: checks_setup.Seen, sha256: str | None) -> Check:
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
    if done is None or not steps or any(not save.in_training for save in same if save.at >= checks_setup.end_of(seen)):
        return SAVED_AT_END.check(True, "this_attempt")
    return SAVED_AT_END.check(max(steps) >= done, "at_step", step=max(steps), steps=done)
