"""Checks of a training by what was seen in its own process: the core of H-2. Pure but for the training file's rows.

Printed words are not asked here. What no witness could see is unmeasured, with the reason; a hook that took itself off
makes unmeasured what it would have seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from steph.base.messages import Message, say
from steph.base.text import one_line
from steph.base.units import MISSING
from steph.judge.checks_figures import SCALE_TOLERANCE, scaled_loss
from steph.judge.checks_rows import row_checks
from steph.judge.checks_seen import (
    BASE_UNCHANGED,
    MASK_AND_POSITIONS,
    NO_OWN_CODE,
    SAVED_AS_TRAINED,
    inputs_check,
    is_even,
    trained_weight_checks,
)
from steph.judge.evidence import TrainEvidence
from steph.judge.folders import same_model
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.witness import (
    AdapterLoaded,
    Batch,
    Blind,
    Hooked,
    Logged,
    ModelFact,
    ModelLoaded,
    ModelSaved,
    Moved,
    Process,
    TrainingBegins,
    TrainingEnds,
    Witness,
)
from steph.plan.steps import steps_per_epoch
from steph.record.values import Check

OTHER_ENGINES = ("vllm", "llama_cpp", "sglang", "ctransformers", "openai", "ollama", "mlx", "mlx_lm", "tensorrt_llm")
FOUR_BIT, EIGHT_BIT = ("Linear4bit", "LinearNF4", "LinearFP4"), ("Linear8bitLt",)
LEAST_PATH_SHARE = 0.02  # of the summed learning rates: an adaptive optimizer moves a weight by up to one rate a step
LEAST_LOGGED = 3  # steps; of fewer, the one rate that is zero may be the warm-up's or the last one's
MOST_LOST_SHARE = 0.5  # of the steps after the first, without a rate or with a gradient that is no number
MOST_SKIPPED_SHARE = 0.2  # of the optimizer's steps; fp16 skips one or two while it looks for its scale
MOST_PADDING = 0.5
LEAST_LOSSES, LOSS_TOLERANCE, LOSS_ROUNDING = 2, 0.05, 0.01  # steps; a share of the larger one; what is cut in a log
RATE_TOLERANCE = 1e-3
LEAST_OFF = 2  # steps; the last one that was seen may be a validation that computes gradients
LEAST_STEPS = 3  # B begins at zero, so that A has no gradient in the first one
LEAST_TOUCHED = 2  # times that matrices changed between two steps
LEAST_STEPS, SHORT_SHARE = 3, 0.75  # of the first; of a step's rows
MOST_SMOOTHING, MOST_NOISE = 0.1, 15.0  # of labels, and NEFTune's on embeddings; what papers and recipes use
MOST_DECAY = 0.2  # weight decay that nobody asked for; libraries' defaults are 0 to 0.1
MOST_SHRUNK = 0.5  # of A: training changes its numbers and hardly ever makes them smaller

TRAINING_SEEN = CheckKind("training_seen", "H-2", FAIL, trap=23, core=True)
STEPS_SEEN = CheckKind("steps_seen", "H-2", FAIL, core=True)
BATCH_SEEN = CheckKind("batch_seen", "H-2", FAIL, optional=True)
TOKENS_SUPERVISED = CheckKind("tokens_supervised", "H-2", FAIL, trap=21, core=True)
ANSWER_SUPERVISED = CheckKind("answer_supervised", "H-2", WARN, optional=True)
END_SUPERVISED = CheckKind("end_supervised", "H-2", WARN, trap=20, optional=True)
PROMPT_UNLABELLED = CheckKind("prompt_unlabelled", "H-2", WARN, optional=True, needs=(Needs.ANSWER_LABELS,))
BEGINS_NEW = CheckKind("begins_new", "H-2", WARN, optional=True)
ONE_BOS = CheckKind("one_bos", "H-2", WARN, optional=True)
PADDING_BOUNDED = CheckKind("padding_bounded", "H-2", INFO, trap=11, optional=True)
MODEL_LOADED = CheckKind("model_loaded", "H-2・H-3", FAIL, core=True)
QUANTISED_AS_ASKED = CheckKind("quantised_as_asked", "H-2・H-3", FAIL, trap=5, core=True)
SETUP_SEEN = CheckKind("setup_seen", "H-2", WARN, trap=26, optional=True)
PARAMETERS_ON_GPU = CheckKind("parameters_on_gpu", "H-2・H-3", FAIL, trap=26, core=True)
ADAPTER_MOVED = CheckKind("adapter_moved", "H-2", FAIL, core=True)
UPDATES_SEEN = CheckKind("updates_seen", "H-2", FAIL, trap=25, optional=True)
LOSS_AS_COMPUTED = CheckKind("loss_as_computed", "H-2", WARN, optional=True)
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
)


@dataclass(frozen=True)
class Seen:
    """One training of an attempt: the one that ended last, on the first rank; `earlier` raised before it."""

    process: Process
    begins: TrainingBegins
    ends: TrainingEnds | None
    batches: tuple[Batch, ...]
    logged: tuple[Logged, ...]
    earlier: tuple[str, ...] = ()


def why_unseen(witness: Witness | None, what: Literal["training", "answering"]) -> tuple[bool | None, Message]:
    """What it means that `what` was not seen: that it did not happen, or that nobody could have seen it."""
    named = say("witness.training" if what == "training" else "witness.answering")
    if witness is None or not witness.processes:
        return None, say("witness.no_process", what=named)
    engines = sorted({hook.module for hook in witness.of(Hooked) if hook.module in OTHER_ENGINES})
    if engines:
        return None, say("witness.engines", what=named, engines=engines)
    blind = witness.of(Blind)
    if blind:
        where, error = one_line(blind[0].where, 60), one_line(blind[0].error, 120)
        return None, say("witness.blind", what=named, where=where, error=error)
    return False, say("witness.not_done", what=named)


def training_in(witness: Witness | None) -> Seen | None:
    """The training that counts: the last one of the first rank that trained; None where none was seen."""
    found: list[Seen] = []
    for process in witness.processes if witness else ():
        starts = [n for n, fact in enumerate(process.facts) if isinstance(fact, TrainingBegins)]
        if any(getattr(process.facts[n], "source", None) == "trainer" for n in starts):
            starts = [n for n in starts if getattr(process.facts[n], "source", None) == "trainer"]
        earlier: list[str] = []
        for start, end in pairwise([*starts, len(process.facts)]):
            part = Process(process.pid, process.rank, process.facts[start:end])
            ends = part.of(TrainingEnds)
            seen = Seen(
                process, part.of(TrainingBegins)[0], ends[-1] if ends else None,
                tuple(batch for batch in part.of(Batch) if batch.training or batch.grad is not False),
                tuple(line for line in part.of(Logged) if not line.eval), tuple(earlier),
            )  # fmt: skip
            earlier += [ends[-1].raised] if ends and ends[-1].raised else []
            found.append(seen)
    first = min((seen.process.rank or 0 for seen in found), default=0)
    of_first = [seen for seen in found if (seen.process.rank or 0) == first]
    return sorted(of_first, key=lambda seen: seen.begins.at)[-1] if found else None


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
        *_label_checks(seen),
        model_check(witness, evidence.model_name, (seen.begins,)),
        quantised_check(evidence.settings.use_4bit, (seen.begins,)),
        _setup_check(evidence, seen),
        *place_checks((seen.begins,), on_gpu=evidence.card is not None),
        _moved_check(evidence, seen),
        _updates_check(seen),
        _loss_check(seen),
        _saved_check(evidence, witness, seen, adapter_sha256),
        *trained_weight_checks(seen.ends, evidence.output_dir, last_save(seen, witness, adapter_sha256)),
        _begins_new_check(seen),
        inputs_check(seen.batches),
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


def _label_checks(seen: Seen) -> tuple[Check, ...]:
    known = [batch for batch in seen.batches if batch.supervised is not None]
    return (
        _supervised_check(known),
        _answer_check(known),
        _end_check(known),
        _prompt_check(known),
        _bos_check(seen.batches),
        _padding_check(seen.batches),
    )


def _supervised_check(batches: Sequence[Batch]) -> Check:
    counts = [count for batch in batches for count in batch.supervised or ()]
    if not counts:
        return TOKENS_SUPERVISED.check(None, "none")
    if any(batch.shifted for batch in batches):
        return TOKENS_SUPERVISED.check(False, "shifted")
    if any(batch.unshifted for batch in batches):
        return TOKENS_SUPERVISED.check(False, "unshifted")
    lost = sum(batch.unpredicted or 0 for batch in batches)
    if lost * 2 > len(counts):
        return TOKENS_SUPERVISED.check(False, "unpredicted", rows=len(counts), lost=lost)
    bare = counts.count(0)
    counted = say("check.tokens_supervised.counted", rows=len(counts), tokens=sum(counts), bare=bare)
    if bare * 2 > len(counts) or not sum(counts):
        return TOKENS_SUPERVISED.check(False, counted)
    if any(batch.aligned is False for batch in batches):
        return TOKENS_SUPERVISED.check(False, "astray", counted=counted, severity=WARN)
    # one may be the end token, which a mask that is made of the tokens hides where padding is the same
    padded = sum(count > 1 for batch in batches for count in batch.labelled_padding or ())
    if padded * 4 >= len(counts):
        return TOKENS_SUPERVISED.check(False, "padding", counted=counted, padded=padded, severity=WARN)
    return TOKENS_SUPERVISED.check(not bare, counted, severity=WARN if bare else None)


def _answer_check(batches: Sequence[Batch]) -> Check:
    """Labels from the row's beginning that leave several tokens at its end are on the prompt."""
    rows = [
        (first, tail, ends)
        for batch in batches
        if not batch.packed
        for first, tail, ends in zip(
            batch.first_supervised or (), batch.unsupervised_tail or (), batch.ends_with_end_token or (), strict=False
        )
        if first is not None and tail is not None
    ]
    if not rows:
        return ANSWER_SUPERVISED.check(None, "none")
    on_prompt = sum(first <= 2 and tail >= 2 and not ends for first, tail, ends in rows)
    return ANSWER_SUPERVISED.check(on_prompt * 2 <= len(rows), "counted", rows=len(rows), on_prompt=on_prompt)


def _prompt_check(batches: Sequence[Batch]) -> Check:
    """Labels from a row's beginning on are on its prompt, too; the first token may be a BOS that nothing predicts."""
    firsts = [first for batch in batches for first in batch.first_supervised or () if first is not None]
    if not firsts:
        return PROMPT_UNLABELLED.check(None, "none")
    on_prompt = sum(first <= 1 for first in firsts)
    return PROMPT_UNLABELLED.check(on_prompt * 2 <= len(firsts), "counted", rows=len(firsts), on_prompt=on_prompt)


def _begins_new_check(seen: Seen) -> Check:
    """Whether the adapter was made for this training, and not read from a folder before it."""
    read = [fact for fact in seen.process.of(AdapterLoaded) if fact.is_trainable and fact.at <= seen.begins.at]
    if not read:
        return BEGINS_NEW.check(True, "made")
    return BEGINS_NEW.check(False, "read", folder=one_line(read[-1].path, 160))


def has_packed_batches(witness: Witness | None) -> bool:
    """Whether several rows were seen in one, as their positions begin anew."""
    seen = training_in(witness)
    return seen is not None and any(batch.packed for batch in seen.batches)


def _end_check(batches: Sequence[Batch]) -> Check:
    ends = [
        one
        for batch in batches
        if not batch.packed
        for one, count in zip(batch.ends_with_end_token or (), batch.supervised or (), strict=False)
        if one is not None and count
    ]
    if not ends:
        return END_SUPERVISED.check(None, "none")
    return END_SUPERVISED.check(sum(ends) * 2 >= len(ends), "counted", rows=len(ends), labelled=sum(ends))


def _bos_check(batches: Sequence[Batch]) -> Check:
    known = [(batch.double_bos, batch.shape[0]) for batch in batches if batch.double_bos is not None and batch.shape]
    rows, double = sum(rows for _, rows in known), sum(count for count, _ in known)
    if not rows:
        return ONE_BOS.check(None, "none")
    return ONE_BOS.check(double * 2 <= rows, "counted", rows=rows, double=double)


def _padding_check(batches: Sequence[Batch]) -> Check:
    shares = [batch.padding for batch in batches if batch.padding is not None]
    if not shares:
        return PADDING_BOUNDED.check(None, "none")
    share = sum(shares) / len(shares)
    return PADDING_BOUNDED.check(share <= MOST_PADDING, "share", batches=len(shares), percent=100 * share)


def model_check(
    witness: Witness, asked: str, worked: Sequence[ModelFact], merged: frozenset[str] = frozenset()
) -> Check:
    """The weights of the model under test were read and it worked; `merged` are folders made of it by a seen merge."""

    def is_it(*names: str | None) -> bool:
        return any(same_model(one, name) for one in (asked, *merged) for name in names if name)

    strangers = sorted({fact.name_or_path for fact in worked if fact.name_or_path and not is_it(fact.name_or_path)})
    if strangers:
        return MODEL_LOADED.check(False, "stranger", models=[one_line(name, 160) for name in strangers[:3]])
    loaded = [fact for fact in witness.of(ModelLoaded) if is_it(fact.path, fact.name_or_path)]
    read = [fact for fact in loaded if fact.how != "from_config"]
    if not read and loaded:
        return MODEL_LOADED.check(False, "config_only")
    if not read:
        others = [fact.path or fact.name_or_path for fact in witness.of(ModelLoaded) if fact.generates]
        if others:
            return MODEL_LOADED.check(False, "other", model=one_line(others[0], 160))
        return MODEL_LOADED.check(None, "none")
    if loaded[-1].how == "from_config":
        return MODEL_LOADED.check(False, "rebuilt")
    lost = max((fact.missing or 0) + (fact.mismatched or 0) for fact in read)
    name = one_line(read[-1].path or read[-1].name_or_path, 160)
    return MODEL_LOADED.check(lost == 0, "read", model=name, missing=lost)


def quantised_check(asked: bool, worked: Sequence[ModelFact]) -> Check:
    """4-bit layers where they were asked for, in every model that worked; 8-bit is not 4-bit."""
    if not worked:
        return QUANTISED_AS_ASKED.check(None, "none")
    counts = [Counter[str]() for _ in worked]
    for count, fact in zip(counts, worked, strict=True):
        for part in fact.quantised:
            count[part.kind or "?"] += part.layers
    four = [sum(count[kind] for kind in FOUR_BIT) for count in counts]
    layers = [say("witness.layers", kind=kind, layers=count) for kind, count in counts[-1].items()]
    shown = layers or say("witness.no_layers")
    if not asked:
        severity = WARN if any(four) else None
        return QUANTISED_AS_ASKED.check(not any(four), "not_asked", layers=shown, severity=severity)
    known = {*FOUR_BIT, *EIGHT_BIT}
    foreign = sorted({kind for count in counts for kind in count} - known)
    found = say("check.quantised_as_asked.asked", layers=shown)
    if not all(four) and foreign:
        return QUANTISED_AS_ASKED.check(None, "foreign", seen=found)
    # an output layer and a mixture's routers stay plain; whole MLPs or attentions that do are another training
    few = any(count < 3 * (fact.unquantised_linears or 0) for count, fact in zip(four, worked, strict=True))
    if all(four) and few:
        plain = max(fact.unquantised_linears or 0 for fact in worked)
        return QUANTISED_AS_ASKED.check(False, "partly", seen=found, plain=plain, severity=WARN)
    return QUANTISED_AS_ASKED.check(all(four), found)


def place_checks(worked: Sequence[ModelFact], *, on_gpu: bool) -> tuple[Check, ...]:
    """Whether the parameters were on the GPU that was given; none where none was given."""
    if not on_gpu:
        return ()
    places: dict[str, int] = {}
    for fact in worked:
        for place, count in fact.devices.items():
            places[place] = places.get(place, 0) + count
    total = sum(places.values())
    if not total:
        return (PARAMETERS_ON_GPU.check(None, "none"),)
    away = {place: count for place, count in places.items() if place.split(":")[0] not in ("cuda", "xpu", "hpu")}
    outside = sum(away.values())
    if not outside:
        return (PARAMETERS_ON_GPU.check(True, "on_gpu"),)
    shares = [say("witness.place", place=place, percent=100 * count / total) for place, count in away.items()]
    return (PARAMETERS_ON_GPU.check(False, "away", places=shares, severity=WARN if outside < total else None),)


def _is_among(value: float, values: Sequence[float]) -> bool:
    return any(math.isclose(value, one, rel_tol=RATE_TOLERANCE) for one in values)


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


def _setup_check(evidence: TrainEvidence, seen: Seen) -> Check:
    asked, begins = evidence.settings, seen.begins
    four = [part for part in begins.quantised if part.kind in FOUR_BIT] if asked.use_4bit else []
    dropouts = {f"{value:g}" for value in begins.lora.dropout} if begins.lora else set()
    quant_types = {part.quant_type for part in four if part.quant_type}
    compute_types = {part.compute_dtype.removeprefix("torch.") for part in four if part.compute_dtype}
    pairs: list[tuple[Message | str, set[str], Message | str]] = []
    if "bnb_4bit_quant_type" not in evidence.unsaid:
        pairs.append((say("witness.quant_type"), quant_types, asked.bnb_4bit_quant_type))
    if "bnb_4bit_compute_dtype" not in evidence.unsaid:
        pairs.append((say("witness.compute_type"), compute_types, asked.bnb_4bit_compute_dtype))
    if "lora_dropout" not in evidence.unsaid:
        pairs.append(("dropout", dropouts, f"{asked.lora_dropout:g}"))
    if asked.mixed_precision and begins.precision:
        pairs.append((say("witness.precision"), {begins.precision}, asked.mixed_precision))
    if begins.learning_rate is not None:
        rates = (begins.learning_rate, *(begins.learning_rates or ()))  # LoRA+ has a higher one for the B matrices
        same = any(math.isclose(rate, asked.learning_rate, rel_tol=RATE_TOLERANCE) for rate in rates)
        shown = f"{asked.learning_rate if same else begins.learning_rate:g}"
        pairs.append((say("witness.learning_rate"), {shown}, f"{asked.learning_rate:g}"))
    if begins.lora and begins.lora.scaling and not {"lora_alpha", "lora_r"} & evidence.unsaid:
        ranks = [rank for rank in begins.lora.rank if rank] or [asked.lora_r]
        scalings = [asked.lora_alpha / one for rank in ranks for one in (rank, math.sqrt(rank))]  # rank-stabilised
        others = {f"{own:g}" for own in begins.lora.scaling if not _is_among(own, scalings)}
        pairs.append((say("witness.scaling"), others or {f"{scalings[0]:g}"}, f"{scalings[0]:g}"))
    decay = seen.begins.weight_decay
    if decay is not None and decay > MOST_DECAY and not evidence.says("weight[-_ ]?decay"):
        pairs.append((say("witness.weight_decay"), {f"{decay:g}"}, say("witness.no_decay", usual=f"{MOST_DECAY:g}")))
    for name, value, usual, words in (
        (say("witness.label_smoothing"), begins.label_smoothing, MOST_SMOOTHING, "smoothing"),
        (say("witness.embedding_noise"), begins.embedding_noise, MOST_NOISE, "neftune|noise"),
    ):
        if value is not None and value > usual and not evidence.says(words):
            pairs.append((name, {f"{value:g}"}, say("witness.no_decay", usual=f"{usual:g}")))
    known = [pair for pair in pairs if pair[1]]
    if not known:
        return SETUP_SEEN.check(None, "none")
    wrong = [
        say("witness.unlike", setting=name, found=" / ".join(sorted(found)), asked=want)
        for name, found, want in known
        if found != {want}
    ]
    if _stays_off(seen.batches) and "lora_dropout" not in evidence.unsaid:
        wrong.append(say("witness.dropout_off"))
    return SETUP_SEEN.check(False, "differs", settings=wrong) if wrong else SETUP_SEEN.check(True, "same")


def _stays_off(batches: Sequence[Batch]) -> bool:
    """Whether no adapter's dropout was on: in no batch, or in none of the last steps, as after a validation."""
    steps: dict[int | None, bool] = {}
    for batch in batches:
        if batch.dropouts and batch.dropouts[0]:
            steps[batch.step] = steps.get(batch.step, False) or batch.dropouts[-1] > 0
    last = [*steps.values()][-LEAST_OFF:]
    return bool(steps) and not any(steps.values() if len(last) < LEAST_OFF else last)


def _moved_check(evidence: TrainEvidence, seen: Seen) -> Check:
    ends, lora = seen.ends, seen.begins.lora
    if ends is None or ends.lora_b is None or not ends.lora_b.total:
        return ADAPTER_MOVED.check(None, "no_lora" if lora is None else "none")
    b, a = ends.lora_b, ends.lora_a or Moved()
    moved = say("check.adapter_moved.moved", b=b.total, moved_b=b.moved, a=a.total, moved_a=a.moved)
    if ends.optimizer_steps == 0 and not b.moved:
        return ADAPTER_MOVED.check(False, "not_optimised", moved=moved)
    if b.moved * 2 <= b.total or b.zero >= b.total:
        return ADAPTER_MOVED.check(False, moved)
    if is_even(ends.matrices) and (ends.steps or 0) > 1:
        return ADAPTER_MOVED.check(False, "even", moved=moved, severity=WARN)
    if (trouble := _trouble_with_a(evidence, seen, ends, a)) is not None:
        return ADAPTER_MOVED.check(False, "trouble_with_a", moved=moved, trouble=trouble, severity=WARN)
    rates = [line.learning_rate for line in seen.logged if line.learning_rate]
    if b.max_abs is not None and len(rates) >= LEAST_LOGGED and ends.steps:
        path = ends.steps * sum(rates) / len(rates)
        if b.max_abs < LEAST_PATH_SHARE * path:
            return ADAPTER_MOVED.check(False, "little", moved=moved, most=b.max_abs, rates=path, severity=WARN)
    return ADAPTER_MOVED.check(True, moved)


def _trouble_with_a(evidence: TrainEvidence, seen: Seen, ends: TrainingEnds, a: Moved) -> Message | None:
    """What is to be said of A matrices that stood still, which LoRA-FA means to do, or that shrank away."""
    is_meant = evidence.says("lora[-_ ]?fa") or "lorafa" in (seen.begins.optimizer or "").lower()
    rates = [line.learning_rate for line in seen.logged if line.learning_rate is not None]
    steps = ends.optimizer_steps or ends.steps or 0
    steps = min(steps, sum(rate > 0 for rate in rates)) if rates else steps  # without a rate nothing moves
    if a.total and 2 * a.moved <= a.total and steps >= LEAST_STEPS and not is_meant:
        return say("witness.a_not_trained")
    if a.kept is not None and a.kept < MOST_SHRUNK:
        return say("witness.a_shrank", kept=a.kept)
    return None


def _updates_check(seen: Seen) -> Check:
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
    lost, forgotten = _lost_gradients(seen), _forgotten(ends)
    if not troubles and not lost and not forgotten and not _touched(ends):
        return UPDATES_SEEN.check(None, "none")
    wrong = [
        (what, share)
        for what, share in troubles
        if share > (MOST_SKIPPED_SHARE if what in ("skipped", "bare") else MOST_LOST_SHARE)
    ]
    shares = [say(f"check.updates_seen.{what}", percent=100 * share) for what, share in wrong]
    touched = _touched(ends)
    told = [*shares, *filter(None, (lost, forgotten, touched))]
    if not told:
        return UPDATES_SEEN.check(True, "sound", steps=max(len(rates), len(norms)) or (ends and ends.steps) or 0)
    dead = bool(lost) or any(
        share > MOST_LOST_SHARE if what == "skipped" else share == 1 and what != "no_number" for what, share in wrong
    )
    return UPDATES_SEEN.check(False, "wrong", troubles=told, severity=None if dead else WARN)


def _forgotten(ends: TrainingEnds | None) -> Message | None:
    """What is to be said where an optimizer that stepped all the time knows of fewer than half of its steps."""
    if ends is None or ends.optimizer_age is None or 2 * ends.optimizer_age[1] >= ends.optimizer_age[0]:
        return None
    count, age = ends.optimizer_age
    return say("check.updates_seen.forgotten", steps=count, own=age)


def _touched(ends: TrainingEnds | None) -> Message | None:
    """Something of the program's own that changes the matrices again and again; a single time may load an adapter."""
    if ends is None or not ends.gaps or (ends.touched_between or 0) < LEAST_TOUCHED:
        return None
    return say("check.updates_seen.touched", gaps=ends.gaps, touched=ends.touched_between or 0)


def _lost_gradients(seen: Seen) -> Message | None:
    """What is to be said where each micro-batch finds no gradient of the one before it in the same step."""
    accumulation = seen.begins.accumulation or 1
    counts = Counter(batch.step for batch in seen.batches)
    if seen.begins.source != "trainer" or None in counts or max(counts.values(), default=0) > accumulation:
        return None
    later = [batch.gradient for before, batch in pairwise(seen.batches) if before.step == batch.step]
    if not later or any(gradient is None or gradient != 0 for gradient in later):
        return None
    return say("check.updates_seen.not_accumulated")


def _loss_check(seen: Seen) -> Check:
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
    if done is None or not steps or any(not save.in_training for save in same if save.at >= _end_of(seen)):
        return SAVED_AT_END.check(True, "this_attempt")
    return SAVED_AT_END.check(max(steps) >= done, "at_step", step=max(steps), steps=done)


def last_save(seen: Seen | None, witness: Witness, sha256: str | None) -> ModelSaved | None:
    """The save of this adapter's file when the training's last step was done; None where none was seen."""
    if seen is None or seen.ends is None or sha256 is None:
        return None
    done = seen.ends.steps
    late = [
        save for save in witness.of(ModelSaved)
        if save.sha256 == sha256 and save.at >= seen.begins.at
        and (save.at >= seen.ends.at or (save.step is not None and done is not None and save.step >= done))
    ]  # fmt: skip
    return late[-1] if late else None


def _end_of(seen: Seen) -> float:
    return seen.ends.at if seen.ends else math.inf
