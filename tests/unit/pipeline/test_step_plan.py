"""Deciding recompute and fused micro-batches from measured memory."""

import math
from collections.abc import Callable

from app.fast.plan import (
    GIB,
    Growth,
    HostChoice,
    LargestRow,
    Room,
    StepPlan,
    Way,
    candidates,
    choose_plan,
    plan_without_measuring,
)

ROW = LargestRow(tokens=500, labels=3)
# 3.4 MB a token with activations kept, 0.4 MB with recompute: about a 1.8B model
GROWTH = {False: Growth(0.1 * GIB, 3.4e6, 2e6), True: Growth(0.3 * GIB, 0.4e6, 2e6)}


# of a model with untied embeddings: 0.4 GiB of them, and checkpoints a tenth of what recompute keeps
IN_HOST_MEMORY = {"off": 0.0, "embeddings": 0.4 * GIB, "all": 0.5 * GIB}


def growth_of(way: Way) -> Growth:
    """What the probes would find."""
    growth = GROWTH[way.recompute]
    return Growth(growth.fixed_bytes - IN_HOST_MEMORY[way.host_memory], growth.bytes_per_token, growth.bytes_per_label)


def as_predicted(way: Way) -> float:
    """A worst batch of two rows a micro-batch that takes exactly what was predicted."""
    return growth_of(way).peak_bytes(2 * way.fused_micro_batches * ROW.tokens, 2 * way.fused_micro_batches * ROW.labels)


def plan_for(
    allowed_gib: float,
    measured: Callable[[Way], float] = as_predicted,
    accumulation_steps: int = 4,
    host_memory: HostChoice = "off",
) -> StepPlan:
    """What is chosen where the process already holds 1.6 GiB."""
    room = Room(used_bytes=1.6 * GIB, allowed_bytes=allowed_gib * GIB)
    options = candidates("auto", "auto", accumulation_steps, host_memory)
    return choose_plan(options, growth_of, room, ROW, 2, measured)


def choose(allowed_gib: float, measured: Callable[[Way], float] = as_predicted) -> tuple[bool, int]:
    """The chosen recompute and fusion."""
    plan = plan_for(allowed_gib, measured)
    return plan.gradient_checkpointing, plan.fused_micro_batches


def test_a_large_card_keeps_activations_and_fuses_everything() -> None:
    """With room to spare the step is one forward and backward without recompute."""
    assert choose(80) == (False, 4)


def test_less_memory_gives_up_fusing_before_it_gives_up_activations() -> None:
    """Smaller cards step down in the order of speed: fewer rows at once, then recompute, then fewer rows again."""
    assert [choose(gib) for gib in (17.3, 10.0, 6.0, 4.0, 3.0)] == [
        (False, 4),
        (False, 2),
        (False, 1),
        (True, 4),
        (True, 2),
    ]


def test_where_nothing_fits_the_smallest_is_tried() -> None:
    """The prediction never stops a run; the reason names the limit."""
    plan = plan_for(1.7)
    assert (plan.gradient_checkpointing, plan.fused_micro_batches) == (True, 1)
    assert "1.70 GiB allowed" in plan.reason


def test_host_memory_comes_last() -> None:
    """Embeddings go there before checkpoints do, and only where nothing else fits; `off` keeps both on the card."""
    chosen = [plan_for(gib, host_memory="auto").way for gib in (2.6, 2.3, 2.05, 1.7)]
    assert chosen == [Way(True, 1), Way(True, 1, "embeddings"), Way(True, 1, "all"), Way(True, 1, "all")]
    assert plan_for(1.7).way == Way(True, 1)
    assert "embeddings in host memory took" in plan_for(2.3, host_memory="auto").reason


def test_host_memory_as_the_flags_say() -> None:
    """Checkpoints are nothing without recompute; a demanded place is the only one."""
    assert candidates("off", "off", 4, "auto") == [Way(False, 1), Way(False, 1, "embeddings")]
    assert candidates("on", "off", 4, "all") == [Way(True, 1, "all")]
    assert plan_without_measuring("on", "off", 4, "auto", "no GPU").host_memory == "off"
    assert plan_without_measuring("on", "off", 4, "embeddings", "as asked").host_memory == "embeddings"


def test_a_loss_in_chunks_is_predicted_by_one_chunk() -> None:
    """Logits that are never there together don't rule out what fits."""
    long_answers = LargestRow(tokens=2000, labels=1500)

    def chosen(labels_at_once: float) -> int:
        room, options = Room(used_bytes=1.6 * GIB, allowed_bytes=10 * GIB), candidates("on", "auto", 4)
        plan = choose_plan(options, growth_of, room, long_answers, 2, lambda _: 0.0, labels_at_once=labels_at_once)
        return plan.fused_micro_batches

    assert (chosen(math.inf), chosen(128)) == (1, 4)


def test_an_option_that_takes_more_than_predicted_when_tried_is_passed_over() -> None:
    """Out of memory, or a measured peak at the limit, leads to the next option instead of ending the run."""
    assert choose(10.0, lambda way: math.inf if way.fused_micro_batches == 2 else as_predicted(way)) == (
        False,
        1,
    )
    assert choose(10.0, lambda way: 9 * GIB if way.fused_micro_batches == 2 else as_predicted(way)) == (
        False,
        1,
    )


def test_what_can_not_fit_is_never_tried() -> None:
    """Only options whose prediction fits cost a real batch."""
    tried: list[Way] = []

    def measured(way: Way) -> float:
        tried.append(way)
        return as_predicted(way)

    plan_for(6.0, measured)
    assert tried == [Way(False, 1)]


def test_the_reason_tells_needed_and_allowed_memory() -> None:
    """A reader sees what was refused, what was taken, and of how much."""
    plan = plan_for(10, accumulation_steps=2)
    needed_gib = (1.6 * GIB + as_predicted(Way(False, 2))) / GIB
    assert f"took {needed_gib:.2f} GiB when tried, of 10.00 GiB allowed" in plan.reason


def test_a_flag_that_is_set_is_obeyed() -> None:
    """`on` and `off` leave no other option, whatever the memory."""
    assert candidates("on", "off", 4) == [Way(True, 1)]
    assert candidates("off", "on", 4) == [Way(False, 4)]
    assert candidates("auto", "off", 4) == [Way(False, 1), Way(True, 1)]
    plan = plan_without_measuring("auto", "on", 4, "off", "no GPU")
    assert (plan.gradient_checkpointing, plan.fused_micro_batches) == (False, 4)


def test_only_divisors_of_the_accumulation_are_fused() -> None:
    """Six micro-batches can run as one, two or three wide ones, never as four and two."""
    assert [way.fused_micro_batches for way in candidates("off", "auto", 6)] == [6, 3, 2, 1]


def test_three_probes_give_back_the_growth_they_came_from() -> None:
    """Peaks that are linear in tokens and label positions are resolved into their three parts."""
    from app.fast.memory import growth_from_probes

    growth = Growth(fixed_bytes=5e6, bytes_per_token=3e5, bytes_per_label=2e6)
    probes = [growth.peak_bytes(64, 4), growth.peak_bytes(192, 4), growth.peak_bytes(192, 128)]
    found = growth_from_probes(probes)
    assert abs(found.peak_bytes(4000, 50) - growth.peak_bytes(4000, 50)) < 1
