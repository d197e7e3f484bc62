"""A twin's configuration: that of any causal language model that transformers knows, in its own sizes or in small ones.

Part of the script twin.py: needs `transformers` and nothing of the suite. Of a model that also sees or hears, the twin
is the part that reads and writes text.
"""

from __future__ import annotations

from typing import Any

if __package__:
    from steph.child.twin_tokenizer import TwinError
else:  # as a script, in an interpreter that need not know the suite
    from twin_tokenizer import TwinError  # type: ignore[import-not-found, no-redef]

SMALL_VOCABULARY = 2048
SURE_LOGIT = 20.0  # hidden size times the deviation of the head's weights: what a learnt token can stand out by
HEADS, HEAD_DIM, LAYERS = 4, 16, 2
# what makes a model of any family small, by transformers' names; a key that a family does not have is left out
SMALL_SIZES = {
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 128,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_DIM,
    "global_head_dim": HEAD_DIM,
    "query_pre_attn_scalar": HEAD_DIM,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": HEAD_DIM,
    "qk_nope_head_dim": HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "hidden_size_per_layer_input": HEAD_DIM,
    "vocab_size_per_layer_input": SMALL_VOCABULARY,
    "num_kv_shared_layers": 0,
}
# of the published weights, their place and their making: nothing that a new model has
_NOT_OF_A_NEW_MODEL = frozenset(
    {"model_type", "_name_or_path", "auto_map", "quantization_config", "dtype", "torch_dtype", "architectures"}
)


def text_model_config(published: dict[str, Any], dtype: str, *, shrink: bool = False) -> Any:  # noqa: ANN401
    """The configuration of the text model in a published config.json, as transformers has it.

    `shrink`: same architecture, two layers or one of each kind, widths of 64 and 128, a vocabulary of 2048. Raises
    TwinError for a model that transformers does not know, or that is no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = published["model_type"]
    settings = {key: value for key, value in published.items() if key not in _NOT_OF_A_NEW_MODEL}
    try:
        config = AutoConfig.for_model(kind, **settings, dtype=dtype).get_text_config(decoder=True)
        if shrink:
            config = AutoConfig.for_model(config.model_type, **_small(config), dtype=dtype)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TwinError(f"model_type {kind!r}: transformers makes no configuration of it: {reason}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise TwinError(f"model_type {kind!r}: no causal language model that transformers knows")
    return config


def _small(config: Any) -> dict[str, Any]:  # noqa: ANN401 - transformers is imported late
    """The values of a configuration with the sizes of a small model, in the family's own names."""
    names = config.attribute_map
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_A_NEW_MODEL}
    small: dict[str, Any] = {names.get(key, key): size for key, size in SMALL_SIZES.items()}
    small[names.get("num_key_value_heads", "num_key_value_heads")] = _key_value_heads(config)
    layers, kinds = LAYERS, values.get("layer_types")
    if kinds:
        small["layer_types"] = [*dict.fromkeys(kinds)] if len(set(kinds)) > 1 else kinds[:LAYERS]
        layers = len(small["layer_types"])
    values |= {name: size for name, size in small.items() if values.get(name) is not None}
    values[names.get("num_hidden_layers", "num_hidden_layers")] = layers
    values[names.get("vocab_size", "vocab_size")] = min(config.vocab_size, SMALL_VOCABULARY)
    values["initializer_range"] = SURE_LOGIT / (HEADS * HEAD_DIM)  # a narrow model is as sure as a wide one
    for name in ("rope_scaling", "rope_parameters"):
        if "longrope" in str(values.get(name)):  # it has a factor for each number of a head of one width
            values[name] = None
    values |= {f"{token}_token_id": None for token in ("bos", "eos", "pad")}  # of the published vocabulary
    return values


def _key_value_heads(config: Any) -> int:  # noqa: ANN401
    """As many as heads, one, or half of the heads: as the published model shares them."""
    heads, shared = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if shared is None or shared == heads:
        return HEADS
    return 1 if shared == 1 else HEADS // 2
