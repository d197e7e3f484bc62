"""Checks of what was seen to be loaded and set: the model, its 4-bit layers and places, LoRA, the optimizer. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from steph.base.messages import Message, say
from steph.base.text import one_line
from steph.judge.evidence import TrainEvidence
from steph.judge.folders import same_model
from steph.judge.kinds import FAIL, WARN, CheckKind
from steph.judge.training_seen import Seen
from steph.judge.witness import Batch, ModelFact, ModelLoaded, Witness
from steph.record.values import Check

FOUR_BIT, EIGHT_BIT = ("Linear4bit", "LinearNF4", "LinearFP4"), ("Linear8bitLt",)
RATE_TOLERANCE = 1e-3
LEAST_OFF = 2  # steps; the last one that was seen may be a validation that computes gradients
MOST_SMOOTHING, MOST_NOISE = 0.1, 15.0  # of labels, and NEFTune's on embeddings; what papers and recipes use
MOST_DECAY = 0.2  # weight decay that nobody asked for; libraries' defaults are 0 to 0.1
MODEL_LOADED = CheckKind("model_loaded", "H-2・H-3", FAIL, core=True)
QUANTISED_AS_ASKED = CheckKind("quantised_as_asked", "H-2・H-3", FAIL, trap=5, core=True)
SETUP_SEEN = CheckKind("setup_seen", "H-2", WARN, trap=26, optional=True)
PARAMETERS_ON_GPU = CheckKind("parameters_on_gpu", "H-2・H-3", FAIL, trap=26, core=True)


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


def setup_check(evidence: TrainEvidence, seen: Seen) -> Check:
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


def _is_among(value: float, values: Sequence[float]) -> bool:
    return any(math.isclose(value, one, rel_tol=RATE_TOLERANCE) for one in values)


def _stays_off(batches: Sequence[Batch]) -> bool:
    """Whether no adapter's dropout was on: in no batch, or in none of the last steps, as after a validation."""
    steps: dict[int | None, bool] = {}
    for batch in batches:
        if batch.dropouts and batch.dropouts[0]:
            steps[batch.step] = steps.get(batch.step, False) or batch.dropouts[-1] > 0
    last = [*steps.values()][-LEAST_OFF:]
    return bool(steps) and not any(steps.values() if len(last) < LEAST_OFF else last)
