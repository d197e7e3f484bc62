"""Replayed steps: the fixed batch holds what the collator made, and a graph is only kept where it is faster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from app.fast.graphs import GraphedStep

Batch = dict[str, Any]
Make = Callable[..., "GraphedStep"]


@dataclass
class Recorded:
    """A graph's stand-in: replaying runs the step again on what the fixed batch holds."""

    step: Callable[[], "torch.Tensor"]
    loss: "torch.Tensor"
    replays: int = 0
    gradients: list["torch.Tensor"] = field(default_factory=list)

    def replay(self) -> None:
        self.replays += 1
        self.loss.copy_(self.step())


@pytest.fixture
def collator() -> Any:  # noqa: ANN401 - imported late
    """The pipeline's collator for fp32."""
    from app.training.collator import AnswerCollator

    return AnswerCollator(pad_token_id=0)


def rows(*sizes: tuple[int, int]) -> list[dict[str, list[int]]]:
    """Rows of (tokens, answer tokens)."""
    made = []
    for tokens, answer in sizes:
        ids = [(7 * at) % 250 + 3 for at in range(tokens)]
        made.append({"input_ids": ids, "labels": [-100] * (tokens - answer) + ids[tokens - answer :]})
    return made


def test_a_smaller_batch_in_the_fixed_one_gives_the_same_loss_and_gradients(tiny_model: Path, collator: Any) -> None:  # noqa: ANN401
    """Padding to the largest rows, width and answer changes nothing, after a larger batch has been there too."""
    import torch
    from app.fast.graphs import FixedBatch
    from app.fast.loss import keep_to_answers
    from app.fast.plan import LargestRow
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert keep_to_answers(model)
    fixed = FixedBatch(4, LargestRow(41, 6), collator, model.device)

    def step(batch: Batch, items: Any) -> tuple[float, torch.Tensor]:  # noqa: ANN401 - a count, on the card or not
        model.zero_grad()
        loss = model(**batch, num_items_in_batch=items).loss
        loss.backward()
        return loss.item(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    fixed.write(collator(rows((41, 5), (33, 1), (40, 2), (12, 3))), 11)
    small = collator(rows((20, 2), (9, 1), (17, 1)))
    for items in (None, 9):
        fixed.write(small, items)
        (expected_loss, expected), (loss, gradient) = step(small, items), step(fixed.tensors, fixed.items)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert tuple(fixed.tensors["input_ids"].shape) == (4, 41)


@pytest.fixture
def parameter() -> "torch.nn.Parameter":
    """The one weight that is trained: the loss is it times the sum of a batch's tokens."""
    import torch

    return torch.nn.Parameter(torch.tensor(1.0))


@pytest.fixture
def step(parameter: "torch.nn.Parameter") -> Callable[[Batch, Any], "torch.Tensor"]:
    """Forward and backward of that."""

    def run(batch: Batch, items: Any) -> Any:  # noqa: ANN401 - a tensor
        loss = parameter * batch["input_ids"].sum() / items
        loss.backward()
        return loss.detach()

    return run


@pytest.fixture
def graphed(parameter: "torch.nn.Parameter", collator: Any) -> Make:  # noqa: ANN401
    """A step whose clock and capture are made up; each pair of ticks is one timed step."""
    import torch
    from app.fast.graphs import FixedBatch, GraphedStep
    from app.fast.plan import LargestRow

    def make(seconds: list[float], capture: Callable[..., Any], **options: bool) -> GraphedStep:
        def ticks() -> Iterator[float]:
            for each in seconds:
                yield 0.0
                yield each

        clock = ticks()
        fixed = FixedBatch(2, LargestRow(8, 2), collator, torch.device("cpu"))
        return GraphedStep([parameter], fixed, capture=capture, clock=lambda: next(clock), **options)

    return make


@pytest.fixture
def recording(parameter: "torch.nn.Parameter") -> Callable[[list[Recorded]], Callable[..., Any]]:
    """A capture that keeps what it captured; like a real one it runs nothing, and a replay moves no tensor."""

    def make(made: list[Recorded]) -> Callable[..., Any]:
        def capture(run: Callable[[], "torch.Tensor"]) -> tuple[Recorded, "torch.Tensor"]:
            gradient = parameter.grad
            had = gradient.clone()

            def replayed() -> "torch.Tensor":
                loss = run()
                parameter.grad = gradient
                return loss

            found = Recorded(replayed, run().clone())
            gradient.copy_(had)
            made.append(found)
            return found, found.loss

        return capture

    return make


@pytest.fixture
def attention() -> Iterator[Callable[[], str]]:
    """Whose attention torch takes where both could; flash attention again at the end."""
    import torch
    from app.fast.graphs import use_cudnn_attention

    use_cudnn_attention(enabled=False)
    yield lambda: "cuDNN" if torch.backends.cuda.cudnn_sdp_enabled() else "flash"
    use_cudnn_attention(enabled=False)


@pytest.mark.parametrize("cudnn", [False, True])
def test_a_faster_graph_is_replayed_from_the_third_on(
    attention: Callable[[], str],
    cudnn: bool,
    graphed: Make,
    step: Any,  # noqa: ANN401
    collator: Any,  # noqa: ANN401
    parameter: "torch.nn.Parameter",
    recording: Any,  # noqa: ANN401
) -> None:
    """Two are run one by one, each later one is a replay; gradients add up within a step, and no further."""
    made: list[Recorded] = []
    graph = graphed([9.0, 1.0, 0.2], recording(made), cudnn=cudnn)
    batches = [collator(rows((count % 7 + 2, 1))) for count in range(8)]
    sums = [float(batch["input_ids"].sum()) for batch in batches]
    for first in (0, 4):  # two steps of four micro-batches
        parameter.grad = None
        for at in range(first, first + 4):
            assert float(graph(step, batches[at], 4)) == sums[at] / 4
            assert parameter.grad is not None
            assert float(parameter.grad) == pytest.approx(sum(sums[first : at + 1]) / 4)
    assert [found.replays for found in made] == [6]
    assert attention() == ("cuDNN" if cudnn else "flash")
    assert graph.told == "used: 0.200 s a micro-batch instead of 1.000 s"


@pytest.mark.parametrize(
    ("forced", "sizes", "replays"),
    [(False, ((5, 1),), 1), (True, ((5, 1),), 4), (False, ((8, 2), (8, 2)), 4)],
    ids=["mostly padding", "demanded", "a full batch"],
)
def test_a_graph_that_saves_little_is_dropped_unless_it_was_demanded(
    graphed: Make,
    step: Any,  # noqa: ANN401
    collator: Any,  # noqa: ANN401
    parameter: "torch.nn.Parameter",
    recording: Any,  # noqa: ANN401
    forced: bool,
    sizes: tuple[tuple[int, int], ...],
    replays: int,
) -> None:
    """What a replay pads counts against it. Its one micro-batch counts, and the run goes on as it was."""
    made: list[Recorded] = []
    graph = graphed([9.0, 1.0, 0.9], recording(made), forced=forced)
    batch = collator(rows(*sizes))
    for _ in range(6):
        parameter.grad = None
        graph(step, batch, 1)
        assert parameter.grad is not None
        assert float(parameter.grad) == float(batch["input_ids"].sum())
    assert made[0].replays == replays
    assert graph.told.startswith("used" if replays > 1 else "not used")


@pytest.mark.parametrize("cudnn", [False, True])
def test_a_capture_that_fails_costs_nothing_but_itself(
    attention: Callable[[], str],
    cudnn: bool,
    graphed: Make,
    step: Any,  # noqa: ANN401
    collator: Any,  # noqa: ANN401
    parameter: "torch.nn.Parameter",
) -> None:
    """Out of memory while capturing: the step is run without, capturing is not tried again, and the reason is told."""
    import torch

    tries: list[int] = []

    def capture(_: object) -> Any:  # noqa: ANN401
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    graph = graphed([9.0, 1.0], capture, cudnn=cudnn)
    batch = collator(rows((5, 1)))
    assert [float(graph(step, batch, 1)) for _ in range(6)] == [float(batch["input_ids"].sum())] * 6
    assert parameter.grad is not None
    assert float(parameter.grad) == 6 * float(batch["input_ids"].sum())
    assert len(tries) == 1
    assert attention() == "flash"
    assert graph.told == "not used: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def test_what_a_failed_capture_allocated_is_free_for_the_step_without(graphed: Make, step: Any, collator: Any) -> None:  # noqa: ANN401
    """The error knows every frame that it came through, and they what they had made: it must be gone by then."""
    import weakref

    import torch

    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def capture(_: object) -> Any:  # noqa: ANN401
        activations = torch.ones(8)
        made.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def watched(batch: Batch, items: Any) -> Any:  # noqa: ANN401 - a count, a tensor
        alive.extend(each() is not None for each in made)
        return step(batch, items)

    graph = graphed([9.0, 1.0], capture)
    for _ in range(3):
        graph(watched, collator(rows((5, 1))), 1)
    assert alive == [False]


def test_dropout_goes_on_where_it_was_after_a_failed_capture(
    graphed: Make,
    step: Any,  # noqa: ANN401
    collator: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch marks the generator's state while a graph is captured, and takes the mark off where CUDA ended it well."""
    import torch

    @dataclass
    class State:
        offset: int = 8
        capturing: bool = False

    class Generator:
        def __init__(self, state: State) -> None:
            self.state = state

        def clone_state(self) -> "Generator":
            return Generator(State(self.state.offset))

        def graphsafe_set_state(self, other: "Generator") -> None:
            self.state = other.state

        def draw(self) -> int:
            assert not self.state.capturing, "Offset increment outside graph capture encountered unexpectedly."
            self.state.offset += 4
            return self.state.offset

    generator = Generator(State())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    drawn: list[int] = []

    def capture(_: object) -> Any:  # noqa: ANN401
        generator.state.capturing = True
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def drawing(batch: Batch, items: Any) -> Any:  # noqa: ANN401 - a count, a tensor
        drawn.append(generator.draw())
        return step(batch, items)

    graph = graphed([9.0, 1.0], capture)
    for _ in range(4):
        graph(drawing, collator(rows((5, 1))), 1)
    assert drawn == [12, 16, 20, 24]


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({"random_recompute": True}, "recompute with dropout draws its random numbers outside a graph"),
        ({"ranks": 2}, "several GPUs"),
        ({"whole_logits": True}, "the positions of the answers are looked up in each batch"),
        ({"half": True}, "float16's loss scale changes between steps"),
        ({"micro_batches": 9}, "less than 10 micro-batches"),
        ({}, None),
    ],
)
def test_graphs_are_tried_only_where_a_micro_batch_can_be_one(
    monkeypatch: pytest.MonkeyPatch, fact: dict[str, Any], reason: str | None
) -> None:
    """Each obstacle is named; without one there is no reason against."""
    import torch
    from app.fast.graphs import why_not

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free = {"whole_logits": False, "random_recompute": False, "ranks": 1, "half": False, "micro_batches": 50}
    assert why_not(**{**free, **fact}) == reason


def test_steps_are_counted_with_epochs_and_cap() -> None:
    """Two epochs of 137 rows by four are 70 steps, less with a cap."""
    from app.training.run import capped_steps, epoch_steps
    from app.training.settings import parse_settings

    words = "--model-name m --train-file f --output-dir o --batch-size 2 --gradient-accumulation-steps 2 --num-epochs 2"
    for cap, for_trainer in {None: -1, 50: 50, 70: -1}.items():
        settings = replace(parse_settings(words.split()), max_steps_override=cap)
        assert (epoch_steps(settings, 137), capped_steps(settings, 137)) == (70, for_trainer)
