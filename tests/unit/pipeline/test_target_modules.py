"""Where LoRA goes in models of other families: what a family has no modules for is said, and what fits all is there."""

from __future__ import annotations

from typing import Any

import pytest
from app.core.errors import PipelineError

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 16}


def base(family: str) -> Any:  # noqa: ANN401 - torch is imported late
    """A model of one layer, on no device."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    more = {"num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(family, **SIZES, **more)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("family", "chosen"), [("llama", None), ("phi3", "all-linear"), ("gpt_oss", "all-linear")])
def test_without_a_choice_every_family_gets_modules_that_it_has(family: str, chosen: str | None) -> None:
    """PEFT's own choice where it has one of this family, else all linear layers: never modules that are not there."""
    peft = pytest.importorskip("peft")
    from app.training.run import _target_modules

    model = base(family)
    assert _target_modules(model, None) == chosen
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=chosen, task_type="CAUSAL_LM"))
    assert any("lora_A" in name for name, _ in adapted.named_parameters())


def test_a_module_that_a_family_lacks_is_one_line_with_those_that_it_has() -> None:
    """Phi-3 has q, k and v in one module: its own names and the word for all are in the sentence."""
    pytest.importorskip("peft")
    from app.training.run import _target_modules

    assert _target_modules(base("llama"), ("q_proj", "v_proj")) == ["q_proj", "v_proj"]
    phi = base("phi3")
    with pytest.raises(PipelineError, match="--target-modules q_proj: a phi3 model has no such module") as said:
        _target_modules(phi, ("q_proj", "down_proj"))
    assert "it has down_proj, gate_up_proj, lm_head, o_proj, qkv_proj; or give all-linear" in str(said.value)
    assert _target_modules(phi, ("all-linear",)) == "all-linear"
