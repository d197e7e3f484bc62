"""Fewer operations with the same numbers: LoRA layers and MLPs in one function, attention without masks."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Load = Callable[..., "PeftModel"]


@pytest.fixture
def load(tiny_model: Path) -> Load:
    """The tiny model with an adapter that does something, the same each time it is made."""

    def make(
        targets: tuple[str, ...] = ALL_LINEAR,
        *,
        dtype: str = "float32",
        four_bit: bool = False,
        **lora: Any,  # noqa: ANN401 - as LoraConfig's
    ) -> Any:  # noqa: ANN401 - a PeftModel
        import torch
        from app.llm.loading import Quantization, load_base_model
        from peft import LoraConfig, get_peft_model

        base = load_base_model(str(tiny_model), getattr(torch, dtype), Quantization() if four_bit else None)
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM", **lora)
        model = get_peft_model(base, config).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return model

    return make


def outputs_and_gradients(model: "PeftModel") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Logits and gradients for some tokens, under autocast where the model is a half one."""
    import torch

    ids = torch.arange(3, 63).view(2, 30)
    with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits = model(input_ids=ids).logits
    logits.float().square().mean().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach().float(), torch.cat(gradients)


def distance(one: "torch.Tensor", other: "torch.Tensor") -> float:
    """The relative difference."""
    return float((one - other).norm() / other.norm())


def own_dequantiser(base: Any) -> Callable[..., "torch.Tensor"]:  # noqa: ANN401 - a linear layer
    """What a card's kernels do: a weight into the rows that it is given, if any."""
    from bitsandbytes.functional import dequantize_4bit

    def dequantise(target: "torch.Tensor | None" = None) -> "torch.Tensor":
        weight = dequantize_4bit(base.weight.data, base.weight.quant_state)
        return weight if target is None else target.copy_(weight)

    return dequantise


@pytest.mark.parametrize("four_bit", [False, True], ids=["16 bits", "4 bits"])
@pytest.mark.parametrize("targets", [ALL_LINEAR, ("q_proj", "v_proj")], ids=["all 7", "q and v"])
def test_the_short_way_gives_pefts_numbers(load: Load, targets: tuple[str, ...], four_bit: bool) -> None:
    """Outputs and every gradient, also with a scaling that is no power of two; in bf16 as near to those of fp32."""
    from app.fast.lora import shorten_lora

    kind = {"four_bit": four_bit, "lora_alpha": 6}
    usual, short = load(targets, **kind), load(targets, **kind)
    layers = short.config.num_hidden_layers
    assert sum(len(group.adapted) for group in shorten_lora(short)) == len(targets) * layers
    exact = outputs_and_gradients(usual)
    for found, expected in zip(outputs_and_gradients(short), exact, strict=True):
        assert distance(found, expected) <= 1e-5
    usual, short = (load(targets, dtype="bfloat16", **kind) for _ in range(2))
    shorten_lora(short)
    for found, peft, expected in zip(outputs_and_gradients(short), outputs_and_gradients(usual), exact, strict=True):
        assert distance(found, expected) <= 1.1 * distance(peft, expected)


@pytest.mark.parametrize("targets", [ALL_LINEAR, ("q_proj", "v_proj", "up_proj")], ids=["all 7", "three"])
def test_weights_that_are_dequantised_in_one_are_multiplied_in_one(
    load: Load, targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernels do it on a card, each weight into its rows of one for all layers of an input."""
    from app.fast import lora

    usual, short = load(targets, four_bit=True), load(targets, four_bit=True)
    monkeypatch.setattr(lora, "_dequantiser", own_dequantiser)
    lora.shorten_lora(short)
    for found, expected in zip(outputs_and_gradients(short), outputs_and_gradients(usual), strict=True):
        assert distance(found, expected) <= 1e-5


def test_values_do_not_keep_the_queries_beside_them(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """One product has all three in one piece of memory; an attention without norms keeps the values alone of it."""
    import torch
    from app.fast import lora

    def kept_bytes(model: "PeftModel") -> int:
        kept: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(input_ids=torch.arange(3, 63).view(2, 30))
            assert outputs.logits.requires_grad
            return sum(kept.values())

    apart, together = load(("v_proj",), four_bit=True), load(("v_proj",), four_bit=True)
    lora.shorten_lora(apart)
    expected = kept_bytes(apart)
    monkeypatch.setattr(lora, "_dequantiser", own_dequantiser)
    lora.shorten_lora(together)
    assert kept_bytes(together) <= 1.01 * expected


def test_frozen_layers_are_short_beside_an_adapter_with_dropout(load: Load) -> None:
    """The MLP has no adapter here, and dropout is none of its business; the numbers are PEFT's."""
    import torch
    from app.fast.lora import shorten_lora

    outcomes = []
    for is_short in (False, True):
        model = load(("q_proj", "v_proj"), four_bit=True, lora_dropout=0.1)
        mlp = model.get_base_model().model.layers[0].mlp
        usual = type(mlp)
        if is_short:
            assert not shorten_lora(model)
            assert type(mlp) is not usual
        torch.manual_seed(2)
        outcomes.append(outputs_and_gradients(model))
    for expected, found in zip(*outcomes, strict=True):
        assert distance(found, expected) <= 1e-5


def test_an_attention_may_project_keys_from_another_input(load: Load) -> None:
    """The first projection computes all three of its input: what is asked of another one is computed of that."""
    import torch
    from app.fast.lora import shorten_lora

    usual, short = load(), load()
    shorten_lora(short)
    numbers = torch.linspace(-1, 1, 3840).view(2, 30, 64)
    for inputs in (
        (numbers, numbers.cos(), numbers),
        (numbers, numbers, numbers),
        (numbers, numbers.cos(), numbers.cos()),
    ):
        for name, each in zip(("q_proj", "k_proj", "v_proj"), inputs, strict=True):
            found, expected = (
                getattr(model.get_base_model().model.layers[0].self_attn, name)(each) for model in (short, usual)
            )
            assert distance(found, expected) <= 1e-5


def test_copies_of_an_adapter_are_cast_anew_for_each_micro_batch(load: Load) -> None:
    """A trained weight counts from the next micro-batch on; outside of them the weights themselves are multiplied."""
    import torch
    from app.fast.lora import LoraCopies, shorten_lora

    model = load(dtype="bfloat16")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    copies = LoraCopies(shorten_lora(model), torch.bfloat16)

    def train(factor: float) -> None:
        for parameter in trained:
            parameter.grad = None
            parameter.data.mul_(factor)

    for _ in range(3):
        train(1.5)
        with copies.fresh():
            inside = outputs_and_gradients(model)
            train(2)
            before = outputs_and_gradients(model)
        outside = outputs_and_gradients(model)
        assert torch.equal(inside[0], before[0])
        assert distance(outside[0], inside[0]) > 0.001
        train(0.5)
        for one, other in zip(outputs_and_gradients(model), inside, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("second", [{}, {"lora_dropout": 0.1}], ids=["short", "with dropout"])
def test_a_base_can_get_another_adapter(load: Load, second: dict[str, Any]) -> None:
    """What was made short around the first one computes with the second, in short or PEFT's way."""
    import torch
    from app.fast.lora import shorten_lora
    from peft import LoraConfig, get_peft_model

    outcomes = []
    for is_short in (False, True):
        first = load(("q_proj", "v_proj"), four_bit=True)
        if is_short:
            shorten_lora(first)
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=list(ALL_LINEAR), task_type="CAUSAL_LM", **second)
        model = get_peft_model(first.unload(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if is_short:
            shorten_lora(model)
        torch.manual_seed(2)
        outcomes.append(outputs_and_gradients(model.train()))
    for expected, found in zip(*outcomes, strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize("shape", [(2, 30, 64), (60, 64), (2, 2, 15, 64)])
def test_what_a_layer_gives_can_be_changed_in_place(load: Load, shape: tuple[int, ...]) -> None:
    """Some attentions scale or clamp their queries where they are: a linear layer lets them, with a bias too."""
    import torch
    from app.fast.lora import shorten_lora

    def gradient(model: "PeftModel") -> torch.Tensor:
        query = model.get_base_model().model.layers[0].self_attn.q_proj
        inputs = torch.linspace(-1, 1, 3840).view(shape).requires_grad_()
        query(inputs).mul_(0.5).square().sum().backward()
        return torch.cat([inputs.grad.flatten(), query.lora_A["default"].weight.grad.flatten()])

    short = load()
    shorten_lora(short)
    assert distance(gradient(short), gradient(load())) <= 1e-5


def test_an_mlp_keeps_what_it_multiplies_and_not_the_product(load: Load) -> None:
    """Of the wide tensors only gate and up wait for the backward, two a layer; PEFT's way keeps twice as many."""
    import torch
    from app.fast.lora import shorten_lora

    def wide(model: "PeftModel") -> int:
        kept: Counter[int] = Counter()
        weights = {parameter.data_ptr() for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in weights and tensor.shape[-1] == model.config.intermediate_size:
                kept[tensor.data_ptr()] = 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=torch.arange(3, 63).view(2, 30)).logits.sum()
            count = len(kept)
        loss.backward()
        return count

    usual, short = load(), load()
    shorten_lora(short)
    layers = short.config.num_hidden_layers
    assert wide(short) == 2 * layers
    assert wide(usual) == 4 * layers


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_another_kind_of_layer_keeps_its_way(load: Load, lora: dict[str, Any]) -> None:
    """Dropout, DoRA and a bias of the adapter's are more than two products."""
    from app.fast.lora import shorten_lora

    model = load(**lora)
    before = [type(module) for module in model.modules()]
    assert not shorten_lora(model)
    assert [type(module) for module in model.modules()] == before


def test_an_mlp_of_another_activation_keeps_its_way(load: Load) -> None:
    """It has the same parts by name, and gives other numbers."""
    import torch
    from app.fast.lora import shorten_lora

    model, usual = load(), load()
    for each in (model, usual):
        for layer in each.get_base_model().model.layers:
            layer.mlp.act_fn = torch.nn.GELU()
    mlp = type(model.get_base_model().model.layers[0].mlp)
    shorten_lora(model)
    assert {type(layer.mlp) for layer in model.get_base_model().model.layers} == {mlp}
    assert distance(outputs_and_gradients(model)[1], outputs_and_gradients(usual)[1]) <= 1e-5


def test_an_activation_is_known_by_what_it_does_far_out(load: Load) -> None:
    """Small weights keep all gates near zero, where GELU and SiLU are almost the same; training leaves it soon."""
    import torch
    from app.fast.lora import shorten_lora

    model = load()
    for layer in model.get_base_model().model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.data.mul_(0.001)
    mlp = type(model.get_base_model().model.layers[0].mlp)
    shorten_lora(model)
    assert {type(layer.mlp) for layer in model.get_base_model().model.layers} == {mlp}


def test_an_mlp_with_a_factor_near_one_keeps_its_way(load: Load) -> None:
    """Some families multiply what it gives; three per cent are more than rounding."""
    import torch
    from app.fast.lora import shorten_lora

    usual_class: Any = type(load().get_base_model().model.layers[0].mlp)

    class Multiplied(usual_class):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.97

    model = load()
    mlps = [layer.mlp for layer in model.get_base_model().model.layers]
    for mlp in mlps:
        mlp.__class__ = Multiplied
    shorten_lora(model)
    assert {type(mlp) for mlp in mlps} == {Multiplied}


def test_an_mlp_that_bounds_its_gates_keeps_its_way(load: Load) -> None:
    """Small inputs never reach the bound, and some families have one in a few layers only."""
    import torch
    from app.fast.lora import shorten_lora

    usual_class: Any = type(load().get_base_model().model.layers[0].mlp)

    class Bounded(usual_class):  # type: ignore[misc]
        limit: float | None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.gate_proj(x), self.up_proj(x)
            if self.limit is not None:
                gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
            return self.down_proj(self.act_fn(gate) * up)

    model = load()
    first, second = (layer.mlp for layer in model.get_base_model().model.layers)
    for mlp, limit in ((first, None), (second, 10.0)):
        mlp.__class__, mlp.limit = Bounded, limit
    shorten_lora(model)
    assert type(first) is not Bounded
    assert type(second) is Bounded


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_are_trained_get_their_gradients(load: Load, bias: str) -> None:
    """LoRA can train the base's biases beside its own weights: every gradient of PEFT's is there."""
    from app.fast.lora import shorten_lora

    usual, short = load(bias=bias), load(bias=bias)
    assert (
        sum(len(group.adapted) for group in shorten_lora(short)) == 4 * short.config.num_hidden_layers
    )  # q, k and v have a bias
    for found, expected in zip(outputs_and_gradients(short), outputs_and_gradients(usual), strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize("targets", [ALL_LINEAR, ("q_proj", "v_proj")], ids=["all 7", "q and v"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_weights_that_are_trained_get_their_gradients(load: Load, targets: tuple[str, ...], late: bool) -> None:
    """Also the plain weight below an MLP, and also where somebody asks for it after the layers became short."""
    from app.fast.lora import shorten_lora

    def train_weights(model: "PeftModel") -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or "down_proj" in name or "v_proj" in name)

    usual, short = load(targets), load(targets)
    train_weights(usual)
    if late:
        shorten_lora(short)
        train_weights(short)
    else:
        train_weights(short)
        shorten_lora(short)
    for found, expected in zip(outputs_and_gradients(short), outputs_and_gradients(usual), strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) <= 1e-5


def test_the_adapter_that_is_active_is_the_one_that_computes(load: Load) -> None:
    """One put on later, both at once, or the first one taken off: the numbers are PEFT's each time."""
    import torch
    from app.fast.lora import shorten_lora
    from peft import LoraConfig

    usual, short = load(), load()
    shorten_lora(short)
    for model in (usual, short):
        torch.manual_seed(1)
        model.add_adapter("second", LoraConfig(r=4, target_modules=list(ALL_LINEAR), task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B.second" in name:
                torch.nn.init.normal_(parameter, std=0.2)

    def apart() -> float:
        ids = torch.arange(3, 63).view(2, 30)
        with torch.no_grad():
            return distance(short(input_ids=ids).logits, usual(input_ids=ids).logits)

    assert apart() <= 1e-5
    for active in (["second"], ["default", "second"]):
        for model in (usual, short):
            model.base_model.set_adapter(active)
        assert apart() <= 1e-5
    for model in (usual, short):
        model.set_adapter("second")
        model.delete_adapter("default")
    assert apart() <= 1e-5


def test_an_adapter_can_still_be_switched_off(load: Load) -> None:
    """Then the base answers alone, as without the short way."""
    import torch
    from app.fast.lora import shorten_lora

    usual, short = load(), load()
    shorten_lora(short)
    ids = torch.arange(3, 63).view(2, 30)
    with torch.no_grad():
        with short.disable_adapter(), usual.disable_adapter():
            expected, found = usual(input_ids=ids).logits, short(input_ids=ids).logits
        assert distance(found, expected) <= 1e-6
        assert distance(short(input_ids=ids).logits, expected) > 1e-3


@pytest.mark.parametrize(("window", "longest", "without"), [(None, 900, True), (32, 32, True), (32, 33, False)])
def test_a_window_narrower_than_a_row_keeps_its_mask(window: int | None, longest: int, without: bool) -> None:
    """A mask hides what is too far back: it goes only where nothing is."""
    from app.fast.model import attend_without_masks
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mistral", **sizes, **heads, sliding_window=window)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert attend_without_masks(model, longest) is without
    assert (model.config._attn_implementation == "sdpa") is not without


def test_a_trained_model_answers_as_before(load: Load) -> None:
    """Training goes without masks; rows that are padded on the left and tokens behind a cache still need them."""
    import torch
    from app.fast.model import attend_without_masks

    model = load().eval()
    ids, mask = torch.arange(3, 63).view(2, 30), torch.ones(2, 30, dtype=torch.long)
    mask[1, :9] = 0

    def answers() -> list[torch.Tensor]:
        with torch.no_grad():
            start = model(input_ids=ids[:, :20], use_cache=True)
            more = model(input_ids=ids[:, 20:], past_key_values=start.past_key_values, use_cache=True)
            return [model(input_ids=ids, attention_mask=mask).logits[mask.bool()], more.logits]

    expected = answers()
    assert attend_without_masks(model.get_base_model(), 40)
    for found, before in zip(answers(), expected, strict=True):
        assert distance(found, before) <= 1e-5


def test_a_copy_of_a_trained_model_has_weights_of_its_own(load: Load) -> None:
    """Nothing that was put into the model computes with, lists or switches what it was copied from."""
    import copy
    from types import SimpleNamespace

    import torch
    from app.fast.lora import shorten_lora
    from app.fast.loss import keep_to_answers
    from app.fast.model import fuse_norms, walk_once

    usual, short = load(), load()
    base = short.get_base_model()
    keep_to_answers(base)
    fuse_norms(base)
    shorten_lora(short)
    walk_once(SimpleNamespace(model=short))
    twin, expected = copy.deepcopy(short), copy.deepcopy(usual)
    assert [*map(id, twin.parameters())] == [id(parameter) for _, parameter in twin.named_parameters()]
    for model in (twin, expected):
        for name, parameter in model.named_parameters():
            parameter.data.mul_(3 if "lora_B" in name else 1)
    for found, right in ((twin, expected), (short, usual)):
        for one, other in zip(outputs_and_gradients(found), outputs_and_gradients(right), strict=True):
            assert distance(one, other) <= 1e-5
    assert not any(module.training for module in twin.eval().modules())
    assert all(module.training for module in short.modules())
    ids = torch.arange(3, 63).view(2, 30)
    assert torch.equal(base(ids).logits, base(input_ids=ids).logits)


def test_a_window_inside_a_model_of_images_is_seen() -> None:
    """Gemma 3's configuration keeps the text's one level down, its window too."""
    from app.fast.model import attend_without_masks
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(
        text_config={**text, **heads, "sliding_window": 8},
        vision_config={**image, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=290,
        boi_token_index=291,
        eoi_token_index=292,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert not attend_without_masks(model, 9)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("doge", {}), ("bert-generation", {"is_decoder": False})],
    ids=["adds to its mask", "looks ahead"],
)
def test_a_mask_that_says_more_is_kept(kind: str, settings: dict[str, Any]) -> None:
    """Only a mask that hides what comes later and the padding, and nothing else, can go."""
    from app.fast.model import attend_without_masks
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = AutoConfig.for_model(kind, **sizes, **heads, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert not attend_without_masks(model, 8)
    assert model.config._attn_implementation == "sdpa"


def test_another_attention_is_left_alone(load: Load) -> None:
    """What the model was loaded with may have reasons of its own."""
    from app.fast.model import attend_without_masks

    model = load().get_base_model()
    model.set_attn_implementation("eager")
    assert not attend_without_masks(model, 40)
    assert model.config._attn_implementation == "eager"
