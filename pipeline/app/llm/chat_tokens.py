"""Prompts as token ids: the same ones in training and in generation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.core.errors import PipelineError
from app.core.prompts import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LEAST_CONTENT_TOKENS = 16
_PROBE_PROMPT, _PROBE_ANSWER = "質問", "回答"


@dataclass(frozen=True)
class EncodedPrompt:
    """A rendered prompt as ids, and how many ids of the user's text were dropped from its left end."""

    ids: list[int]
    dropped_tokens: int


def load_tokenizer(model_name: str) -> "PreTrainedTokenizerFast":
    """The model's own fast tokenizer, padding on the left, with a padding token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise PipelineError(f"{model_name} has no tokenizer.json; a fast tokenizer is needed to shorten long prompts")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", prompt: str, max_tokens: int | None = None) -> EncodedPrompt:
    """Render one user turn and tokenize it, at most `max_tokens` long.

    Only the user's text is shortened, from its left and at a character's border: the template around it stays valid and
    the question's choices, which come last, stay whole. Raises `PipelineError` where too little of it would be left.
    """
    rendered = render_chat(tokenizer, prompt)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    if max_tokens is None or len(ids) <= max_tokens:
        return EncodedPrompt(ids, 0)
    first, last = _content_span(encoded["offset_mapping"], rendered, prompt)
    cut = first + len(ids) - max_tokens
    while cut < last and encoded["offset_mapping"][cut][0] < encoded["offset_mapping"][cut - 1][1]:
        cut += 1
    if last - cut < _LEAST_CONTENT_TOKENS:
        raise PipelineError(f"only {max_tokens} tokens are left for a prompt of {len(ids)}; raise --max-seq-length")
    return EncodedPrompt(ids[:first] + ids[cut:], cut - first)


def _content_span(offsets: list[tuple[int, int]], rendered: str, prompt: str) -> tuple[int, int]:
    """The half-open range of tokens that lie wholly inside the user's text."""
    start = rendered.find(prompt)
    if start < 0:
        raise PipelineError("the tokenizer's chat template rewrites the user's text; long prompts can't be shortened")
    end = start + len(prompt)
    inside = [index for index, (left, right) in enumerate(offsets) if left >= start and right <= end]
    return inside[0], inside[-1] + 1


def encode_answer(tokenizer: "PreTrainedTokenizerFast", answer: str) -> list[int]:
    """The answer's ids, closed with the token that ends a turn."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], end_of_turn_id(tokenizer)]


def end_of_turn_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The special token that the chat template puts after an answer (`<|im_end|>` for Qwen), else the EOS token."""
    if tokenizer.chat_template:
        tail = render_chat(tokenizer, _PROBE_PROMPT, _PROBE_ANSWER).rpartition(_PROBE_ANSWER)[2]
        ids: list[int] = tokenizer(tail.lstrip(), add_special_tokens=False)["input_ids"]
        if ids and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder):
            return ids[0]
    if tokenizer.eos_token_id is None:
        raise PipelineError("the tokenizer has no EOS token, so that the model can't learn to stop; set eos_token")
    return int(tokenizer.eos_token_id)


def stop_token_ids(tokenizer: "PreTrainedTokenizerFast", generation_eos: int | list[int] | None) -> list[int]:
    """Every token that ends an answer: the turn's end, the tokenizer's EOS and the model's own."""
    model_eos = generation_eos if isinstance(generation_eos, list) else [generation_eos]
    found = {end_of_turn_id(tokenizer), tokenizer.eos_token_id, *model_eos}
    return sorted(token for token in found if token is not None)
