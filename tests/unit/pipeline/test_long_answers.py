"""The loss in chunks: the numbers of the whole computation, without ever holding all logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from steph.base.terms import TrainerName
from steph.memory.shapes import BUILT_IN
from steph.memory.terms import Workload

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK = 4
# uneven prompts and answers, 3 × 13 predicting positions, no multiple of a chunk
SIZES = ((40, 13), (23, 5), (31, 1))
Batch = dict[str, Any]
Load = Callable[..., "PreTrainedModel"]


@dataclass(frozen=True)
class Kind:
    """A way to load the tiny model and to adapt it."""

    dtype: str = "float32"
    four_bit: bool = False
    tied: bool = False
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0


KINDS = {
    "fp32": Kind(),
    "tied": Kind(tied=True),
    "bf16": Kind("bfloat16"),
    "fp32 in 4 bits": Kind(four_bit=True),
    "bf16 in 4 bits": Kind("bfloat16", four_bit=True, tied=True),
    "LoRA on the head": Kind(targets=("q_proj", "lm_head")),
    "LoRA on the head, bf16": Kind("bfloat16", targets=("q_proj", "lm_head")),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four positions, so that a few tokens are a long answer."""
    monkeypatch.setattr("app.fast.loss.CHUNK_POSITIONS", CHUNK)


@pytest.fixture
def load(tiny_model: Path) -> Load:
    """An adapted model of a kind, the same each time it is made."""

    def make(kind: Kind, *, chunked: bool) -> "PreTrainedModel":
        import torch
        from app.fast.loss import keep_to_answers
        from app.llm.loading import Quantization, load_base_model
        from peft import LoraConfig, get_peft_model

        base = load_base_model(str(tiny_model), getattr(torch, kind.dtype), Quantization() if kind.four_bit else None)
        if kind.tied:
            base.lm_head.weight = base.model.embed_tokens.weight
        torch.manual_seed(0)
        lora = LoraConfig(target_modules=list(kind.targets), lora_dropout=kind.dropout, task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if chunked:
            assert keep_to_answers(model.get_base_model())
        model.train()
        return model

    return make


def batch_of(sizes: tuple[tuple[int, int], ...]) -> Batch:
    """Random rows of (tokens, answer tokens) as the pipeline's collator gives them."""
    import torch
    from app.training.collator import AnswerCollator

    generator = torch.Generator().manual_seed(1)
    rows = []
    for tokens, answer in sizes:
        ids = torch.randint(3, 300, (tokens,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (tokens - answer) + ids[tokens - answer :]})
    return AnswerCollator(0)(rows)


def loss_and_gradients(model: "PreTrainedModel", batch: Batch, dtype: str) -> tuple[float, "torch.Tensor"]:
    """One forward and backward, under autocast where the dtype is a half one."""
    import torch

    model.zero_grad()
    given = batch if "forward" in vars(model.get_base_model()) else {**batch, "answer_positions": None}
    with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
        loss = model(**given).loss
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("items", [None, 57], ids=["the batch's labels", "the step's labels"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_chunks_give_the_whole_computations_loss_and_gradients(load: Load, kind: Kind, items: int | None) -> None:
    """To rounding, in each dtype, with any head, over whatever count of labels the sum is divided by."""
    batch = batch_of(SIZES) | ({} if items is None else {"num_items_in_batch": items})
    expected_loss, expected = loss_and_gradients(load(kind, chunked=False), batch, kind.dtype)
    loss, gradients = loss_and_gradients(load(kind, chunked=True), batch, kind.dtype)
    # in bf16 how it rounds is the processor's affair: 1.1 % on one
    rounding, of_loss = (1e-5, 1e-6) if kind.dtype == "float32" else (2e-2, 1e-3)
    assert loss == pytest.approx(expected_loss, rel=of_loss)
    assert float((gradients - expected).norm() / expected.norm()) <= rounding


def test_a_label_less_is_seen(load: Load) -> None:
    """The comparison above can fail: without one of 19 labels loss and gradients are far off."""
    batch = batch_of(SIZES)
    expected_loss, expected = loss_and_gradients(load(Kind(), chunked=False), batch, "float32")
    batch["labels"][1, 22] = -100
    loss, gradients = loss_and_gradients(load(Kind(), chunked=True), batch, "float32")
    assert loss != pytest.approx(expected_loss, rel=1e-3)
    assert float((gradients - expected).norm() / expected.norm()) > 0.02


def test_the_heads_dropout_is_drawn_again_in_the_backward(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout before a LoRA on the head the recomputed chunk is the one that the loss came from."""
    import torch
    from app.fast import loss

    batch, kind = batch_of(SIZES), Kind(targets=("lm_head",), dropout=0.5)
    model = load(kind, chunked=True)
    torch.manual_seed(3)
    recomputed = loss_and_gradients(model, batch, "float32")
    monkeypatch.setattr(loss, "checkpoint", lambda function, *inputs, **_: function(*inputs))
    torch.manual_seed(3)
    kept = loss_and_gradients(model, batch, "float32")
    assert recomputed[0] == kept[0]
    assert torch.allclose(recomputed[1], kept[1], rtol=1e-5, atol=1e-9)


@pytest.fixture
def positions_at_the_head(load: Load) -> Callable[[Batch], list[int]]:
    """How many positions each call of the head gets, in a forward and backward."""

    def run(batch: Batch) -> list[int]:
        model = load(Kind(), chunked=True)
        counts: list[int] = []
        model.get_output_embeddings().register_forward_hook(
            lambda _module, inputs, _output: counts.append(inputs[0].shape[:-1].numel())
        )
        loss_and_gradients(model, batch, "float32")
        return counts

    return run


def test_the_head_never_gets_more_than_a_chunk(positions_at_the_head: Callable[[Batch], list[int]]) -> None:
    """19 labels are 19 positions; chunks are equal, the last too, and each runs once: for loss and gradient."""
    chunks = -(-sum(answer for _, answer in SIZES) // CHUNK)
    assert positions_at_the_head(batch_of(SIZES)) == [CHUNK] * chunks


def test_the_head_sees_short_answers_once(positions_at_the_head: Callable[[Batch], list[int]]) -> None:
    """Two one-token answers are two positions, wherever they end, seen in one piece and not again."""
    assert positions_at_the_head(batch_of(((20, 1), (17, 1)))) == [2]


def test_a_row_without_a_label_adds_nothing(load: Load) -> None:
    """What fills up the ranks' last batches changes neither sum."""
    model = load(Kind(), chunked=True)
    alone = loss_and_gradients(model, batch_of(SIZES) | {"num_items_in_batch": 19}, "float32")
    filled = loss_and_gradients(model, batch_of((*SIZES, (1, 0))) | {"num_items_in_batch": 19}, "float32")
    assert filled[0] == pytest.approx(alone[0], rel=1e-5)
    assert float((filled[1] - alone[1]).norm() / alone[1].norm()) <= 1e-5


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma2", {"head_dim": 16}),
        ("cohere", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("mixtral", {"output_router_logits": True}),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 64}),
    ],
)
def test_a_model_that_does_more_than_its_head_goes_its_own_way(family: str, options: dict[str, Any]) -> None:
    """Bounded or scaled logits, another loss beside, a body that is called in parts: chunks would leave that out."""
    import torch
    from app.fast.loss import keep_to_answers
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads, **ids, **options)).eval()
    batch = batch_of(SIZES)
    positions = batch.pop("answer_positions")
    with torch.no_grad():
        own = float(model(**batch).loss)
        assert keep_to_answers(model) is False
        widths: list[int] = []
        model.get_output_embeddings().register_forward_hook(lambda *call: widths.append(call[2].shape[1]))
        assert float(model(**batch, answer_positions=positions).loss) == pytest.approx(own, rel=1e-5)
    assert widths == [len({int(position) % 40 for position in positions})]


@pytest.mark.parametrize("softcap", [None, 30.0], ids=["in chunks", "its own way"])
def test_a_steps_labels_weigh_the_same_in_a_model_that_denies_it(softcap: float | None) -> None:
    """Models of images deny it for their images: rows of text count by their labels, and one without any by nothing."""
    import torch
    from app.fast.loss import keep_to_answers
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": softcap}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **sizes, **heads)).eval()
    type(model).accepts_loss_kwargs = False
    try:
        assert keep_to_answers(model) is (softcap is None)
        assert model.accepts_loss_kwargs
    finally:
        del type(model).accepts_loss_kwargs
    with torch.no_grad():
        whole = float(model(**batch_of(SIZES)).loss)
        parts = [batch_of(((40, 0),)), batch_of(SIZES)]
        assert sum(float(model(**part, num_items_in_batch=19).loss) for part in parts) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("family", ["bart", "xlnet", "cpmant"])
def test_a_model_without_a_loss_for_some_positions_keeps_its_own(family: str) -> None:
    """Its class shifts no labels, or knows no positions to keep: it computes the loss of all of them."""
    import torch
    from app.fast.loss import keep_to_answers
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "d_model": 32, "decoder_layers": 1, "n_layer": 1, "num_hidden_layers": 1}
    heads = {"decoder_attention_heads": 2, "n_head": 2, "num_attention_heads": 2, "hidden_size": 32, "dim_head": 16}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads)).eval()
    batch = batch_of(SIZES)
    positions = batch.pop("answer_positions")
    with torch.no_grad():
        own = float(model(**batch).loss)
        assert keep_to_answers(model) is False
        assert float(model(**batch, answer_positions=positions).loss) == pytest.approx(own, rel=1e-5)


def test_asking_the_model_draws_no_random_number(load: Load) -> None:
    """Dropout of the training that follows is what it would be without chunks."""
    import torch
    from app.fast.loss import keep_to_answers
    from app.fast.model import attend_without_masks

    model = load(Kind(dropout=0.5), chunked=False)
    model.config.attention_dropout = 0.1
    state = torch.random.get_rng_state()
    keep_to_answers(model.get_base_model())
    assert attend_without_masks(model.get_base_model(), 40)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_of_zero_is_no_operation(load: Load) -> None:
    """Without dropout LoRA's input goes straight to its first matrix: no mask, no copy."""
    import torch

    assert not [module for module in load(Kind(), chunked=False).modules() if isinstance(module, torch.nn.Dropout)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_what_recompute_begins_from_goes_to_host_memory(
    load: Load, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Each layer's input and nothing else, and the gradients are the same; with dropout by torch's own hooks."""
    import torch
    from app.fast import recompute

    batch, sent = batch_of(SIZES), []

    def recorded(*, pin_memory: bool) -> Any:  # noqa: ANN401 - a context manager
        assert pin_memory is False  # there is no GPU to copy from

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sent.append(tuple(tensor.shape))
            return tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    push = recompute.HostStack.push

    def pushed(stack: recompute.HostStack, tensor: torch.Tensor) -> Any:  # noqa: ANN401 - what gives it back
        sent.append(tuple(tensor.shape))
        return push(stack, tensor)

    def step(model: "PreTrainedModel") -> tuple[float, torch.Tensor]:
        torch.manual_seed(3)
        return loss_and_gradients(model, batch, "float32")

    model = load(Kind(dropout=dropout), chunked=True)
    recompute.set_recompute(model, True)
    expected_loss, expected = step(model)
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", recorded)
    monkeypatch.setattr(recompute.HostStack, "push", pushed)
    recompute.set_recompute(model, True, on_host=True)
    loss, gradients = step(model)
    rows, width = batch["input_ids"].shape
    assert sent == [(rows, width, model.config.hidden_size)] * model.config.num_hidden_layers
    assert loss == expected_loss
    assert torch.equal(gradients, expected)
    sent.clear()
    recompute.set_recompute(model, True)
    step(model)
    assert sent == []


def test_embeddings_in_host_memory_change_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same loss and gradients; there to stay, and never where the head shares the weight or ranks train together."""
    import torch
    from app.fast import host_memory

    batch, model = batch_of(SIZES), load(Kind(), chunked=True)
    expected_loss, expected = loss_and_gradients(model, batch, "float32")
    assert host_memory.move_embeddings_to_host(model)
    assert host_memory.move_embeddings_to_host(model)
    embeddings = model.get_base_model().get_input_embeddings()
    looked_up: list[torch.Size] = []
    embeddings.register_forward_hook(lambda _module, inputs, _output: looked_up.append(inputs[0].shape))
    loss, gradients = loss_and_gradients(model, batch, "float32")
    assert loss == expected_loss
    assert torch.equal(gradients, expected)
    assert looked_up == [batch["input_ids"].shape]
    model.to("meta")
    assert {parameter.device.type for parameter in model.parameters() if parameter is not embeddings.weight} == {"meta"}
    assert embeddings.weight.device.type == "cpu"
    assert not host_memory.move_embeddings_to_host(load(Kind(tied=True), chunked=True))
    adapted = load(Kind(targets=("embed_tokens", "q_proj")), chunked=False)
    assert not host_memory.move_embeddings_to_host(adapted)
    monkeypatch.setattr(host_memory, "rank_count", lambda: 2)
    assert not host_memory.move_embeddings_to_host(load(Kind(), chunked=True))


@pytest.mark.parametrize(("chunked", "most_gib"), [(True, 0.8), (False, None)])
def test_memory_of_long_answers_is_flat(monkeypatch: pytest.MonkeyPatch, chunked: bool, most_gib: float | None) -> None:
    """Batches of changing lengths, counted at Qwen3-8B's widths: chunks leave no holes; whole logits leave many."""
    monkeypatch.setattr("app.fast.loss.CHUNK_POSITIONS", 128)
    monkeypatch.setattr("app.fast.loss._is_body_head_and_loss", lambda _: True)
    shape = replace(BUILT_IN["Qwen/Qwen3-8B"], num_hidden_layers=2)
    work = Workload(TrainerName.ANSWER, 1, 2048, target_modules=("q_proj", "v_proj", "gate_proj", "down_proj"))
    sizes = ((2048, 1268), (1584, 1330), (1640, 1453), (1976, 1511))
    from counted_step import counted_long_answers

    memory = counted_long_answers(shape, work, sizes, chunked=chunked)
    gib = memory.peak_reserved_bytes / 2**30
    assert gib <= most_gib if most_gib else gib > 4
