"""Which of the trainings that were seen in an attempt counts, and what it means that none was. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from steph.base.messages import Message, say
from steph.base.text import one_line
from steph.judge.witness import Batch, Blind, Hooked, Logged, ModelSaved, Process, TrainingBegins, TrainingEnds, Witness

OTHER_ENGINES = ("vllm", "llama_cpp", "sglang", "ctransformers", "openai", "ollama", "mlx", "mlx_lm", "tensorrt_llm")


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
