"""Checks of what a training was seen to load, set and learn: which one counts, its model, its settings, its labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from steph.base.messages import Message, say
from steph.base.text import one_line
from steph.judge.evidence import TrainEvidence, same_model
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.witness import (
    Batch,
    Blind,
    Hooked,
    Logged,
    ModelFact,
    ModelLoaded,
    ModelSaved,
    Process,
    TrainingBegins,
    TrainingEnds,
    Witness,
)
from steph.record.values import Check

OTHER_ENGINES = ("vllm", "llama_cpp", "sglang", "ctransformers", "openai", "ollama", "mlx", "mlx_lm", "tensorrt_llm")
FOUR_BIT, EIGHT_BIT = ("Linear4bit", "LinearNF4", "LinearFP4"), ("Linear8bitLt",)
RATE_TOLERANCE = 1e-3
LEAST_OFF = 2  # steps; the last one that was seen may be a validation that computes gradients
MOST_SMOOTHING, MOST_NOISE = 0.1, 15.0  # of labels, and NEFTune's on embeddings; what papers and recipes use
MOST_EPSILON = 1e-4  # Adam's; 1e-8 to 1e-5 are usual, and LoRA's gradients may be as small as that
USUAL_BETAS, LEAST_BETAS, MOST_FIRST_BETA = (0.9, 0.999), (0.5, 0.8), 0.995
MOST_DECAY = 0.2  # weight decay that nobody asked for; libraries' defaults are 0 to 0.1
MOST_PADDING = 0.5
_OF_LENGTH = re.compile(r"^rope|window|^layer_types$")
PACKED_TOLERANCE = 0.5
WARMUP_TOLERANCE, WARMUP_STEPS = 0.2, 1.0  # a share, and steps: ratios are rounded up and down

MODEL_LOADED = CheckKind("model_loaded", "H-2・H-3", FAIL, core=True)
QUANTISED_AS_ASKED = CheckKind("quantised_as_asked", "H-2・H-3", FAIL, trap=5, core=True)
SETUP_SEEN = CheckKind("setup_seen", "H-2", WARN, trap=26, optional=True)
PARAMETERS_ON_GPU = CheckKind("parameters_on_gpu", "H-2・H-3", FAIL, trap=26, core=True)
TOKENS_SUPERVISED = CheckKind("tokens_supervised", "H-2", FAIL, trap=21, core=True)
ANSWER_SUPERVISED = CheckKind("answer_supervised", "H-2", WARN, optional=True)
END_SUPERVISED = CheckKind("end_supervised", "H-2", WARN, trap=20, optional=True)
PROMPT_UNLABELLED = CheckKind("prompt_unlabelled", "H-2", WARN, optional=True, needs=(Needs.ANSWER_LABELS,))
ONE_BOS = CheckKind("one_bos", "H-2", WARN, optional=True)
PADDING_BOUNDED = CheckKind("padding_bounded", "H-2", INFO, trap=11, optional=True)


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
    if witness.of(Blind):
        return None, why_blind(witness, what)
    return False, say("witness.not_done", what=named)


def why_blind(witness: Witness, what: Literal["training", "answering"]) -> Message:
    """Which hook failed first, where one did."""
    named = say("witness.training" if what == "training" else "witness.answering")
    first = witness.of(Blind)[0]
    return say("witness.blind", what=named, where=one_line(first.where, 60), error=one_line(first.error, 120))


def training_in(witness: Witness | None) -> Seen | None:
    """The training that counts: the last one of the first rank that trained; None where none was seen."""
    found = trainings_in(witness)
    first = min((seen.process.rank or 0 for seen in found), default=0)
    of_first = [seen for seen in found if (seen.process.rank or 0) == first]
    return sorted(of_first, key=lambda seen: seen.begins.at)[-1] if found else None


def trainings_in(witness: Witness | None) -> list[Seen]:
    """All trainings of all processes."""
    found: list[Seen] = []
    for process in witness.processes if witness else ():
        starts = [n for n, fact in enumerate(process.facts) if isinstance(fact, TrainingBegins)]
        if any(getattr(process.facts[n], "source", None) == "trainer" for n in starts):
            starts = [n for n in starts if getattr(process.facts[n], "source", None) == "trainer"]
        earlier: list[str] = []
        for start, end in pairwise([*starts, len(process.facts)]):
            part = Process(process.pid, process.rank, process.facts[start:end])
            ends = part.of(TrainingEnds)
            batches = tuple(batch for batch in part.of(Batch) if batch.training or batch.grad is not False)
            seen = Seen(
                process, _with_own_rows(part.of(TrainingBegins)[0], batches), ends[-1] if ends else None, batches,
                tuple(line for line in part.of(Logged) if not line.eval), tuple(earlier),
            )  # fmt: skip
            earlier += [ends[-1].raised] if ends and ends[-1].raised else []
            found.append(seen)
    return found


def _with_own_rows(begins: TrainingBegins, batches: Sequence[Batch]) -> TrainingBegins:
    """A loop's last loader may be another one's than the training's, and its rows be changed on their way."""
    trained = {row for batch in batches for row in batch.row_hashes or ()}
    if begins.source == "trainer" or not begins.row_hashes or trained & {*begins.row_hashes}:
        return begins
    unknown = dict.fromkeys(("rows", "row_hashes", "row_fingerprints", "sampler"))
    return begins.model_copy(update=unknown)


def has_packed_batches(witness: Witness | None) -> bool:
    """Whether several rows were seen in one, as their positions begin anew."""
    seen = training_in(witness)
    return seen is not None and any(batch.packed for batch in seen.batches)


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


def end_of(seen: Seen) -> float:
    return seen.ends.at if seen.ends else math.inf


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
    settings = sorted({one_line(setting, 60) for fact in read for setting in fact.set_otherwise})
    if settings and not lost:
        # longer texts and windows are extended so on purpose
        severity = WARN if all(map(_OF_LENGTH.search, settings)) else None
        return MODEL_LOADED.check(False, "set_otherwise", model=name, settings=settings[:8], severity=severity)
    return MODEL_LOADED.check(lost == 0, "read", model=name, missing=lost)


def weight_bits(worked: ModelFact) -> Literal[4, 8, 16, 32] | None:
    """The bits of most of a model's linear layers, 16 or 32 where they are not quantised; None for another way."""
    layers = {
        bits: sum(part.layers for part in worked.quantised if part.kind in kinds)
        for bits, kinds in ((4, FOUR_BIT), (8, EIGHT_BIT))
    }
    if sum(layers.values()) < sum(part.layers for part in worked.quantised):
        return None
    if max(layers.values()) <= (worked.unquantised_linears or 0):
        return 32 if 2 * (worked.fp32_parameters or 0) > (worked.parameters or 0) else 16
    return 4 if layers[4] >= layers[8] else 8


def quantised_check(asked: bool, worked: Sequence[ModelFact], *, is_unsaid: bool = False) -> Check:
    """4-bit layers where they were asked for, in every model that worked; 8-bit is not 4-bit.

    `is_unsaid`: the description does not say whether the program quantises, so that nothing is held against it.
    """
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
        holds = is_unsaid or not any(four)
        return QUANTISED_AS_ASKED.check(holds, "not_asked", layers=shown, severity=None if holds else WARN)
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
        peak = max((line.learning_rate or 0.0 for line in seen.logged), default=0.0)  # a cycle begins lower
        rates = (
            begins.learning_rate,
            peak,
            *(begins.learning_rates or ()),
        )  # LoRA+ has a higher one for the B matrices
        same = any(math.isclose(rate, asked.learning_rate, rel_tol=RATE_TOLERANCE) for rate in rates)
        shown = f"{asked.learning_rate if same else begins.learning_rate:g}"
        pairs.append((say("witness.learning_rate"), {shown}, f"{asked.learning_rate:g}"))
    if begins.lora and begins.lora.scaling and not {"lora_alpha", "lora_r"} & evidence.unsaid:
        ranks = [rank for rank in begins.lora.rank if rank] or [asked.lora_r]
        scalings = [asked.lora_alpha / one for rank in ranks for one in (rank, math.sqrt(rank))]  # rank-stabilised
        others = {f"{own:g}" for own in begins.lora.scaling if not _is_among(own, scalings)}
        pairs.append((say("witness.scaling"), others or {f"{scalings[0]:g}"}, f"{scalings[0]:g}"))
    is_own = "warmup_ratio" in evidence.unsaid or evidence.says(r"warmup_steps\W{1,3}[1-9]")  # steps go before a ratio
    if not is_own and (warmup := _other_warmup(seen, asked.warmup_ratio)) is not None:
        pairs.append((say("witness.warmup_steps"), {f"{begins.warmup_steps:g}"}, f"{warmup:g}"))
    is_adam = "adam" in (begins.optimizer or "").lower()  # others have other numbers under these names
    for name, value, usual, words in (
        (say("witness.weight_decay"), begins.weight_decay, MOST_DECAY, "weight[-_ ]?decay"),
        (say("witness.label_smoothing"), begins.label_smoothing, MOST_SMOOTHING, "smoothing"),
        (say("witness.embedding_noise"), begins.embedding_noise, MOST_NOISE, "neftune|noise"),
        ("Adam epsilon", begins.epsilon if is_adam else None, MOST_EPSILON, "(?<![a-z])eps"),
    ):
        if value is not None and value > usual and not evidence.says(words):
            pairs.append((name, {f"{value:g}"}, say("witness.no_decay", usual=f"{usual:g}")))
    odd = [own for own in begins.betas if own[:1] > (MOST_FIRST_BETA,) or any(map(float.__lt__, own, LEAST_BETAS))]
    if odd and is_adam and not evidence.says("betas|beta[-_]?[12]"):
        pairs.append(("Adam betas", {_listed(odd[0])}, say("witness.unusual", usual=_listed(USUAL_BETAS))))
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


def _other_warmup(seen: Seen, ratio: float) -> int | None:
    """The steps of warm-up that were asked for, where the Trainer was set to another number and the rates show no such.

    A schedule of the program's own may follow other settings than the Trainer's.
    """
    begins, rates = seen.begins, {line.step: line.learning_rate for line in seen.logged if line.step is not None}
    if begins.warmup_steps is None or not begins.steps_due or begins.schedule == "constant":
        return None
    due = ratio * begins.steps_due
    # axolotl counts the steps of packed rows beforehand, by an estimate
    share = PACKED_TOLERANCE if any(batch.packed for batch in seen.batches) else WARMUP_TOLERANCE
    if abs(begins.warmup_steps - due) <= max(WARMUP_STEPS, share * due):
        return None
    known = {step: rate for step, rate in rates.items() if rate is not None}
    if known:
        peak, every = max(known, key=lambda step: (known[step], -step)), min(known)
        if math.floor(due) <= peak <= math.ceil(due) + 1 + every:
            return None
    return math.ceil(due)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


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


def label_checks(seen: Seen) -> tuple[Check, ...]:
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
    padded = sum(count > 0 for batch in batches for count in batch.labelled_padding or ())
    if padded:
        return TOKENS_SUPERVISED.check(False, "padding", counted=counted, padded=padded, severity=WARN)
    return TOKENS_SUPERVISED.check(not bare, counted, severity=WARN if bare else None)


def _answer_check(batches: Sequence[Batch]) -> Check:
    """Labels from the row's beginning that leave several tokens at its end are on the prompt.

    Where the last label closes a thought, no answer follows: what is learnt is to end there.
    """
    known = [one for batch in batches if not batch.packed for one in batch.ends_in_thought or () if one is not None]
    if 2 * sum(known) > len(known):
        return ANSWER_SUPERVISED.check(False, "thoughts", rows=len(known), thoughts=sum(known))
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
