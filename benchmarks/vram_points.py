"""The grid of the memory model's validation: which points set its constants and which judge it, fixed beforehand.

Points of the small model with a head of its own set the constants and each trainer's slack. Those of four other shapes
were looked at while the model was made (`seen`). Those of the second series, on three shapes more and at settings of
their own, were drawn up after it and judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from steph.base.terms import TrainerName
from steph.base.units import GIB
from steph.memory.forecast import KEPT_FREE_BYTES, Constants, Forecast, predict
from steph.memory.shapes import BUILT_IN, COMMON, TINY, linear_shapes
from steph.memory.terms import DEFAULT_TARGETS, Workload

CALIBRATES = "Qwen/Qwen1.5-1.8B-Chat"
SEEN = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B")
NEW = ("Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen1.5-4B-Chat")
MODELS = (CALIBRATES, *SEEN, *NEW)
SFT = (TrainerName.TRL, TrainerName.LIGER, TrainerName.UNSLOTH)
LLAMA = "meta-llama/Llama-3.1-8B"
SFT_SEEN = ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen3-8B", LLAMA)
GEMMA = ("google/gemma-2-2b", "google/gemma-3-4b")
SFT_NEW = ("meta-llama/Llama-3.2-3B", "mistralai/Mistral-7B-v0.3", "Qwen/Qwen2.5-7B")
DRY_MODEL = "tiny"
LABELS = 3  # a letter, the end of the turn, a line break
# what earlier series had none of, so that their keys stay as they are
USUAL = {
    "answer_tokens": LABELS,
    "use_4bit": True,
    "use_8bit": False,
    "packing": False,
    "dora": False,
    "dropout": True,
    "host_memory": "off",
}
ALL_LINEAR = tuple(linear_shapes(TINY))
# a twin is a model's part that reads and writes text
SHAPES = {
    name: replace(shape, more_linears=(), more_parameters=0)
    for name, shape in {**COMMON, **BUILT_IN, DRY_MODEL: TINY}.items()
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
Bound = Literal["fits", "does_not_fit"]
Use = Literal["calibrate", "seen", "judge"]


@dataclass(frozen=True)
class Point:
    """One measurement; `allowed_gib` caps the allocator, None leaves it the whole card.

    `cuda_graph`: the reference trainer replays its steps, which it does for a step of one micro-batch without
    recompute. `bound`: the cap was chosen so that the prediction is only just this verdict.
    """

    model: str
    trainer: TrainerName
    batch: int
    seq: int
    r: int = 16
    targets: tuple[str, ...] = DEFAULT_TARGETS
    recompute: bool = True
    accumulation: int = 2
    cuda_graph: bool = False
    allowed_gib: float | None = None
    bound: Bound | None = None
    series: int = 1
    answer_tokens: int = LABELS
    use_4bit: bool = True
    use_8bit: bool = False
    packing: bool = False
    dora: bool = False
    dropout: bool = True
    host_memory: Literal["off", "embeddings", "all"] = "off"

    @property
    def use(self) -> Use:
        """Whether this point sets constants, was seen while the model was made, or judges it; never two of them."""
        if self.model == CALIBRATES and self.allowed_gib is None:
            return "calibrate"
        return "judge" if self.series in (2, 4, 6) or self.bound else "seen"

    @property
    def work(self) -> Workload:
        """The point as the memory model sees it."""
        return Workload(
            trainer=self.trainer,
            batch_size=self.batch,
            width=self.seq,
            gradient_accumulation_steps=self.accumulation,
            lora_r=self.r,
            target_modules=self.targets,
            recompute=self.recompute,
            label_positions=self.answer_tokens + 1,
            use_4bit=self.use_4bit,
            use_8bit=self.use_8bit,
            packing=self.packing,
            dora=self.dora,
            host_memory=self.host_memory,
            cuda_graph=self.cuda_graph,
            lora_dropout=self.dropout and self.trainer not in SFT,
        )

    def forecast(self, constants: Constants) -> Forecast:
        """The prediction for this point."""
        return predict(SHAPES[self.model], self.work, constants)

    @property
    def key(self) -> str:
        """What makes two measurements the same point."""
        fields = {**asdict(self), "trainer": str(self.trainer)}
        for name, usual in USUAL.items():
            if fields[name] == usual:
                del fields[name]
        return repr(sorted(fields.items()))


# batch, seq, r, targets, recompute; one list for every model, so that shapes differ and nothing else
_ANSWER: Sequence[tuple[int, int, int, tuple[str, ...], bool]] = (
    (1, 256, 16, DEFAULT_TARGETS, True),
    (2, 512, 16, DEFAULT_TARGETS, True),
    (2, 1024, 16, DEFAULT_TARGETS, True),
    (4, 1024, 16, ALL_LINEAR, True),
    (8, 512, 8, ALL_LINEAR, True),
    (2, 2048, 64, ALL_LINEAR, True),
    (2, 512, 16, DEFAULT_TARGETS, False),
    (4, 512, 16, ALL_LINEAR, False),
)
_FULL: Sequence[tuple[int, int, int, tuple[str, ...], bool]] = (
    (1, 256, 16, DEFAULT_TARGETS, True),
    (2, 512, 16, DEFAULT_TARGETS, True),
    (2, 1024, 16, ALL_LINEAR, True),
    (1, 2048, 64, DEFAULT_TARGETS, True),
    (8, 512, 16, DEFAULT_TARGETS, True),
)
_SECOND_ANSWER: Sequence[tuple[int, int, int, tuple[str, ...], bool]] = (
    (3, 640, 32, ATTENTION, True),
    (1, 1536, 8, ALL_LINEAR, True),
    (6, 384, 16, DEFAULT_TARGETS, True),
    (2, 896, 16, ALL_LINEAR, False),
    (4, 320, 16, DEFAULT_TARGETS, False),
)
_SECOND_FULL: Sequence[tuple[int, int, int, tuple[str, ...], bool]] = (
    (3, 384, 16, DEFAULT_TARGETS, True),
    (1, 1536, 16, ALL_LINEAR, True),
    (4, 640, 8, DEFAULT_TARGETS, True),
    (2, 256, 64, ATTENTION, True),
)
# batch, seq, targets of the reference trainer's one-graph steps, as H-2 runs them on a large card
_GRAPHS: Sequence[tuple[int, int, tuple[str, ...]]] = ((4, 512, DEFAULT_TARGETS), (2, 768, ALL_LINEAR))
# under the 8.8 GiB that an RTX 3080 leaves the allocator: some run out of memory, none of those may be said to fit
_CAPPED_GIB = 8.8
_CAPPED: Sequence[tuple[str, TrainerName, int, int]] = (
    ("Qwen/Qwen1.5-1.8B-Chat", TrainerName.FULL, 4, 768),
    ("Qwen/Qwen1.5-1.8B-Chat", TrainerName.FULL, 4, 1024),
    ("Qwen/Qwen3-4B", TrainerName.FULL, 2, 512),
    ("Qwen/Qwen3-4B", TrainerName.FULL, 2, 1024),
    ("Qwen/Qwen3-8B", TrainerName.ANSWER, 4, 1024),
    ("Qwen/Qwen3-8B", TrainerName.ANSWER, 6, 1024),
    ("Qwen/Qwen3-8B", TrainerName.ANSWER, 8, 1024),
)


def points_of(model: str) -> tuple[Point, ...]:
    """A model's points whose settings do not depend on a prediction."""
    if model == DRY_MODEL:
        tiny: tuple[TrainerName, ...] = (TrainerName.ANSWER, TrainerName.FULL)
        return tuple(Point(DRY_MODEL, trainer, 2, 128, 4) for trainer in tiny)
    if model in NEW:
        return _second(model, every=1)
    free = [Point(model, TrainerName.ANSWER, *values) for values in _ANSWER] + [
        Point(model, TrainerName.FULL, *values) for values in _FULL
    ]
    graphs = [
        Point(model, TrainerName.ANSWER, batch, seq, targets=targets, recompute=False, accumulation=1, cuda_graph=True)
        for batch, seq, targets in _GRAPHS
    ]
    capped = [Point(*values, allowed_gib=_CAPPED_GIB) for values in _CAPPED if values[0] == model]
    return (*free, *graphs, *capped, *(_second(model, every=2) if model in SEEN else ()))


# batch, seq, r, targets, recompute, tokens of the answer
_SFT: Sequence[tuple[int, int, int, tuple[str, ...], bool, int]] = (
    (1, 256, 16, DEFAULT_TARGETS, True, LABELS),
    (2, 512, 16, DEFAULT_TARGETS, True, LABELS),
    (2, 1024, 16, ALL_LINEAR, True, LABELS),
    (1, 2048, 64, ALL_LINEAR, True, LABELS),
    (4, 512, 16, DEFAULT_TARGETS, True, LABELS),
    (2, 512, 16, ALL_LINEAR, False, LABELS),
    (2, 1024, 16, DEFAULT_TARGETS, True, 700),
)
_SFT_OTHERS: Sequence[tuple[int, int, int, tuple[str, ...], bool, int]] = (
    (3, 384, 32, DEFAULT_TARGETS, True, LABELS),
    (1, 1536, 16, ALL_LINEAR, True, LABELS),
    (4, 640, 16, ATTENTION, True, LABELS),
    (1, 2048, 16, ALL_LINEAR, True, 1500),
)
# drawn up after the three trainers' rows of constants were made
_SFT_SECOND: Sequence[tuple[int, int, int, tuple[str, ...], bool, int]] = (
    (2, 448, 16, ALL_LINEAR, True, LABELS),
    (3, 896, 8, DEFAULT_TARGETS, True, LABELS),
    (1, 1792, 32, ATTENTION, True, 1000),
    (1, 640, 16, DEFAULT_TARGETS, False, LABELS),
)


def sft_points() -> tuple[Point, ...]:
    """Points of TRL's trainer and of those built on it.

    The small model's set their constants, three models' were seen while their rows were made, three others' judge.
    """
    found = []
    for trainer in SFT:
        for rows, models, series in ((_SFT, (CALIBRATES,), 1), (_SFT_OTHERS, SFT_SEEN, 1), (_SFT_SECOND, SFT_NEW, 2)):
            for model in models:
                for batch, seq, r, targets, recompute, answer in rows:
                    point = Point(model, trainer, batch, seq, r, targets, recompute, series=series)
                    found.append(replace(point, answer_tokens=answer))
        for batch, seq in ((2, 512), (1, 1536)):
            found.append(Point("Qwen/Qwen3-1.7B", trainer, batch, seq, use_4bit=False))
    return tuple(found)


# batch, seq, r, targets, recompute, tokens of the answer
_SHAPES_THIRD: Sequence[tuple[int, int, int, tuple[str, ...], bool, int]] = (
    (2, 512, 16, DEFAULT_TARGETS, True, LABELS),
    (1, 1536, 16, ALL_LINEAR, True, LABELS),
    (4, 768, 8, ATTENTION, True, 300),
    (1, 512, 16, ALL_LINEAR, False, LABELS),
)
_KINDS_THIRD: Sequence[tuple[int, int, int, tuple[str, ...], bool, int]] = (
    (2, 640, 16, DEFAULT_TARGETS, True, LABELS),
    (1, 1280, 16, ALL_LINEAR, True, LABELS),
)
# under the 8.8 GiB that an RTX 3080 leaves the allocator: model, trainer, batch, seq, whether in 4 bits
_CAPPED_THIRD: Sequence[tuple[str, TrainerName, int, int, bool]] = (
    ("google/gemma-2-2b", TrainerName.TRL, 8, 2560, True),
    ("google/gemma-2-2b", TrainerName.LIGER, 4, 3072, False),
    ("meta-llama/Llama-3.2-3B", TrainerName.TRL, 8, 2304, True),
    ("meta-llama/Llama-3.2-3B", TrainerName.TRL, 8, 2816, True),
    ("meta-llama/Llama-3.2-3B", TrainerName.TRL, 2, 3072, False),
    ("meta-llama/Llama-3.2-3B", TrainerName.LIGER, 8, 2816, True),
    ("meta-llama/Llama-3.2-3B", TrainerName.LIGER, 4, 2304, False),
    ("Qwen/Qwen2.5-3B-Instruct", TrainerName.TRL, 8, 2560, True),
    ("Qwen/Qwen2.5-3B-Instruct", TrainerName.TRL, 8, 1024, False),
    ("Qwen/Qwen2.5-3B-Instruct", TrainerName.LIGER, 8, 3072, True),
    ("Qwen/Qwen2.5-3B-Instruct", TrainerName.LIGER, 8, 3584, True),
)


def third_points() -> tuple[Point, ...]:
    """Gemma shapes, packing, bases in 8 and in 16 bits, DoRA, and runs of TRL and Liger under a cap.

    They were looked at while the formulas for them were made.
    """

    def made(
        model: str, trainer: TrainerName, rows: Sequence[tuple[int, int, int, tuple[str, ...], bool, int]]
    ) -> list[Point]:
        return [
            Point(model, trainer, batch, seq, r, targets, recompute, series=3, answer_tokens=answer)
            for batch, seq, r, targets, recompute, answer in rows
        ]

    trl, liger = TrainerName.TRL, TrainerName.LIGER
    small = "meta-llama/Llama-3.2-1B"
    found = [
        point
        for model in ("google/gemma-3-1b", *GEMMA)
        for side in (trl, liger)
        for point in made(model, side, _SHAPES_THIRD)
    ]
    found += [replace(point, trainer=TrainerName.FULL) for model in GEMMA for point in made(model, trl, _KINDS_THIRD)]
    for model in (small, "meta-llama/Llama-3.2-3B", "Qwen/Qwen2.5-3B-Instruct"):
        found += [replace(point, use_4bit=False, use_8bit=True) for point in made(model, trl, _KINDS_THIRD)]
        found += [replace(point, packing=True) for point in made(model, trl, _KINDS_THIRD)]
    for model in (small, "meta-llama/Llama-3.2-3B"):
        found += [replace(point, dora=True) for point in made(model, trl, _KINDS_THIRD)]
    for model in (small, "meta-llama/Llama-3.2-3B", "google/gemma-2-2b"):
        found += [
            replace(point, use_4bit=False) for side in (trl, liger) for point in made(model, side, _KINDS_THIRD[1:])
        ]
    found += [replace(point, packing=True) for point in made("google/gemma-2-2b", trl, _KINDS_THIRD)]
    found += [replace(point, use_4bit=False, use_8bit=True) for point in made("google/gemma-2-2b", liger, _KINDS_THIRD)]
    for model, trainer, batch, seq, use_4bit in _CAPPED_THIRD:
        found.append(Point(model, trainer, batch, seq, series=3, allowed_gib=_CAPPED_GIB, use_4bit=use_4bit))
    return tuple(found)


PHI_LINEAR = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_Kind = Literal["4bit", "8bit", "bf16", "packing", "dora"]
# drawn up after the third series had been looked at, on two shapes more: model, trainers, kind, batch, seq, r, targets,
# recompute, tokens of the answer
_FOURTH: Sequence[tuple[str, str, _Kind, int, int, int, tuple[str, ...], bool, int]] = (
    ("microsoft/Phi-4-mini", "trl liger", "4bit", 2, 640, 16, ("qkv_proj",), True, LABELS),
    ("microsoft/Phi-4-mini", "trl liger", "4bit", 1, 1152, 16, PHI_LINEAR, True, LABELS),
    ("microsoft/Phi-4-mini", "trl", "4bit", 1, 448, 16, PHI_LINEAR, False, LABELS),
    ("google/gemma-2-2b", "trl liger", "4bit", 3, 576, 32, DEFAULT_TARGETS, True, LABELS),
    ("google/gemma-2-2b", "trl liger", "4bit", 1, 1408, 8, ALL_LINEAR, True, LABELS),
    ("google/gemma-2-2b", "trl liger", "8bit", 1, 896, 16, ATTENTION, True, LABELS),
    ("google/gemma-2-2b", "trl", "bf16", 2, 576, 16, DEFAULT_TARGETS, True, LABELS),
    ("google/gemma-2-2b", "trl", "packing", 3, 704, 16, ATTENTION, True, LABELS),
    ("google/gemma-2-2b", "full", "4bit", 1, 896, 16, ATTENTION, True, LABELS),
    ("google/gemma-3-1b", "trl liger", "4bit", 3, 832, 16, ALL_LINEAR, True, LABELS),
    ("google/gemma-3-1b", "trl liger", "4bit", 1, 704, 16, DEFAULT_TARGETS, False, LABELS),
    ("google/gemma-3-1b", "full", "4bit", 2, 448, 16, ALL_LINEAR, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl", "8bit", 2, 768, 16, ALL_LINEAR, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl", "8bit", 1, 1536, 16, DEFAULT_TARGETS, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl liger", "bf16", 2, 960, 16, ATTENTION, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl", "packing", 4, 512, 16, ALL_LINEAR, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl", "dora", 2, 640, 16, ALL_LINEAR, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl", "dora", 1, 896, 16, DEFAULT_TARGETS, True, LABELS),
    ("Qwen/Qwen2.5-1.5B-Instruct", "trl liger", "4bit", 1, 2048, 16, ALL_LINEAR, True, 1500),
    ("meta-llama/Llama-3.2-1B", "trl liger", "4bit", 4, 896, 16, ALL_LINEAR, True, LABELS),
    ("meta-llama/Llama-3.2-1B", "trl", "8bit", 3, 512, 16, ALL_LINEAR, True, LABELS),
    ("meta-llama/Llama-3.2-1B", "trl", "dora", 1, 768, 16, ATTENTION, True, LABELS),
    ("meta-llama/Llama-3.2-1B", "trl", "bf16", 1, 640, 16, ALL_LINEAR, False, LABELS),
    ("meta-llama/Llama-3.2-1B", "full", "4bit", 2, 768, 16, ALL_LINEAR, True, LABELS),
)


def fourth_points() -> tuple[Point, ...]:
    """What judges the formulas for the third series' kinds, and phi3's."""
    found = []
    for model, trainers, kind, batch, seq, r, targets, recompute, answer in _FOURTH:
        for trainer in trainers.split():
            point = Point(
                model,
                TrainerName(trainer),
                batch,
                seq,
                r,
                targets,
                recompute,
                series=4,
                answer_tokens=answer,
                use_4bit=kind not in ("8bit", "bf16"),
                use_8bit=kind == "8bit",
                packing=kind == "packing",
                dora=kind == "dora",
            )
            found.append(point)
    return tuple(found)


# the reference pipeline of 0.2.0: batch, seq, r, targets, recompute, dropout, host memory, CUDA graph
_Reference = tuple[int, int, int, tuple[str, ...], bool, bool, Literal["off", "embeddings", "all"], bool]
_REFERENCE: Sequence[_Reference] = (
    (1, 256, 16, DEFAULT_TARGETS, True, True, "off", False),
    (2, 512, 16, DEFAULT_TARGETS, True, True, "off", False),
    (2, 1024, 16, DEFAULT_TARGETS, True, False, "off", False),
    (4, 1024, 16, ALL_LINEAR, True, True, "off", False),
    (4, 1024, 16, ALL_LINEAR, True, False, "off", False),
    (2, 2048, 64, ALL_LINEAR, True, False, "off", False),
    (2, 512, 16, DEFAULT_TARGETS, False, True, "off", False),
    (4, 512, 16, ALL_LINEAR, False, True, "off", False),
    (4, 512, 16, ALL_LINEAR, False, False, "off", False),
    (2, 1024, 16, ALL_LINEAR, True, False, "off", True),
    (4, 512, 16, DEFAULT_TARGETS, False, True, "off", True),
    (2, 1024, 16, ALL_LINEAR, True, False, "embeddings", False),
    (2, 1024, 16, ALL_LINEAR, True, False, "all", False),
)
_REFERENCE_SEEN: Sequence[_Reference] = (
    (2, 1024, 16, ALL_LINEAR, True, False, "embeddings", True),
    (3, 640, 32, ATTENTION, True, True, "off", False),
    (1, 2048, 16, ALL_LINEAR, True, False, "all", False),
    (2, 384, 16, DEFAULT_TARGETS, False, False, "off", True),
)
# drawn up before any of the series was measured; they judge it
_REFERENCE_JUDGES: Sequence[_Reference] = (
    (3, 768, 16, ALL_LINEAR, True, False, "off", True),
    (1, 1536, 8, DEFAULT_TARGETS, True, True, "off", False),
    (4, 640, 16, ATTENTION, True, False, "off", True),
    (1, 1792, 32, ALL_LINEAR, True, False, "embeddings", True),
    (2, 448, 16, ALL_LINEAR, False, False, "off", False),
    (2, 640, 16, DEFAULT_TARGETS, False, True, "off", True),
    (2, 1280, 16, ALL_LINEAR, True, True, "all", False),
)


def reference_points() -> tuple[Point, ...]:
    """The reference pipeline's steps as of 0.2.0: the small model's set constants, two were seen, three others judge.

    Gradients accumulate over two micro-batches, of which each goes through the model by itself.
    """

    def made(models: Sequence[str], rows: Sequence[_Reference], series: int) -> list[Point]:
        return [
            Point(
                model,
                TrainerName.REFERENCE,
                batch,
                seq,
                r,
                targets,
                recompute,
                cuda_graph=graph,
                series=series,
                dropout=dropout,
                host_memory=host,
            )
            for model in models
            for batch, seq, r, targets, recompute, dropout, host, graph in rows
        ]

    capped = [
        replace(point, allowed_gib=_CAPPED_GIB)
        for point in made(("Qwen/Qwen3-8B",), (_REFERENCE[5], (2, 2048, 16, ALL_LINEAR, True, False, "all", False)), 6)
    ]
    return (
        *made((CALIBRATES,), _REFERENCE, 5),
        *made(("Qwen/Qwen3-8B", "Qwen/Qwen2.5-1.5B-Instruct"), _REFERENCE_SEEN, 5),
        *made(("Qwen/Qwen3-4B", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.2-3B"), _REFERENCE_JUDGES, 6),
        *capped,
    )


def _second(model: str, every: int) -> tuple[Point, ...]:
    answer = [Point(model, TrainerName.ANSWER, *values, series=2) for values in _SECOND_ANSWER[::every]]
    full = [Point(model, TrainerName.FULL, *values, series=2) for values in _SECOND_FULL[::every]]
    return (*answer, *full)


def bounds(constants: Constants) -> Iterator[Point]:
    """Points at the interval's two ends: a cap under which a run is only just said to fit, or not to fit.

    The first must train and the second must run out of memory, or the interval is too narrow.
    """
    settings: tuple[Callable[[str], Point], ...] = (
        lambda model: Point(model, TrainerName.ANSWER, 4, 1024, targets=ALL_LINEAR),
        lambda model: Point(model, TrainerName.ANSWER, 2, 512, recompute=False),
        lambda model: Point(model, TrainerName.FULL, 2, 512),
    )
    for model in (*NEW, "Qwen/Qwen3-8B"):
        for point in (made(model) for made in settings):
            found = point.forecast(constants)
            ends: dict[Bound, float] = {
                "fits": found.peak.high_bytes - constants.context_bytes,
                "does_not_fit": found.peak.low_bytes - constants.context_bytes - KEPT_FREE_BYTES,
            }
            for bound, allowed_bytes in ends.items():
                yield replace(point, allowed_gib=round(allowed_bytes / GIB, 3), bound=bound)


def card_bytes(point: Point, constants: Constants) -> float | None:
    """The size of the card that a capped point stands for, None for the others."""
    return None if point.allowed_gib is None else point.allowed_gib * GIB + constants.context_bytes + KEPT_FREE_BYTES
