"""A twin's tokenizer: a given one copied, or a byte-level BPE trained on the spot; a chat template in any case.

Part of the script twin.py: needs `tokenizers` and nothing of the suite.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_TRAINED_VOCABULARY = 32_000
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# for a base model's tokenizer, which has no token for a turn: what it has anyway, and its end of text behind an answer
PLAIN_TURNS = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TURN_ENDS = (
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|im_end|>",
    "<|return|>",
)  # Llama 3, Gemma, Phi, ChatML, gpt-oss
# Qwen2Tokenizer's own: transformers 5 loads every qwen model's tokenizer.json as that class and splits text by this,
# so a tokenizer trained otherwise would count other tokens than the model gets
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
)


class TwinError(Exception):
    """What is asked for can't be made; one line."""


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of a tokenizer's special tokens; `ends` are those that end an answer, `eos` the first of them."""

    bos: int
    eos: int
    pad: int
    ends: tuple[int, ...]


def write_tokenizer(given: Path | None, train_files: Sequence[Path], vocab_size: int, folder: Path) -> SpecialTokens:
    """Copy or train the tokenizer, with a chat template in any case; the ids of its special tokens."""
    from tokenizers import Tokenizer

    if given:
        copy_tokenizer(given, folder)
    else:
        train_tokenizer(train_files, vocab_size, folder)
    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise TwinError(f"the tokenizer's largest id {largest} doesn't fit the model's vocab_size {vocab_size}")
    if is_chatml(tokenizer):
        end_of_text, end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END)
        return SpecialTokens(end_of_text, end, end_of_text, (end, end_of_text))
    return _own_tokens(tokenizer, read_json(folder / "tokenizer_config.json"), given)


def is_chatml(tokenizer: Any) -> bool:  # noqa: ANN401 - tokenizers is imported late
    """Whether it has the three tokens of the ChatML template."""
    return all(tokenizer.token_to_id(token) is not None for token in (END_OF_TEXT, START, END))


def _own_tokens(tokenizer: Any, settings: dict[str, Any], given: Path | None) -> SpecialTokens:  # noqa: ANN401
    """The tokens that the tokenizer's own settings name, and those of other families that end a turn."""

    def number(key: str) -> int | None:
        named = settings.get(key)
        token = named.get("content") if isinstance(named, dict) else named
        return tokenizer.token_to_id(token) if isinstance(token, str) else None

    eos = number("eos_token")
    if eos is None:
        raise TwinError(f"{given}: tokenizer_config.json names no eos_token that the tokenizer has")
    turns = {tokenizer.token_to_id(token) for token in TURN_ENDS} - {None, eos}
    bos, pad = number("bos_token"), number("pad_token")
    return SpecialTokens(eos if bos is None else bos, eos, eos if pad is None else pad, (eos, *sorted(turns)))


def tokenizer_size(folder: Path) -> int:
    """How many ids a tokenizer has, those that nothing stands for included."""
    from tokenizers import Tokenizer

    return 1 + max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values())


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a given tokenizer; where it has no template of its own, ChatML or, without its tokens, plain turns."""
    from tokenizers import Tokenizer

    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else tokenizer_settings()
    if "chat_template" not in settings and not (folder / "chat_template.jinja").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings["chat_template"] = CHATML if is_chatml(tokenizer) else PLAIN_TURNS
    write_json(path, settings)


def train_tokenizer(files: Sequence[Path], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE on the texts of these files: any text can be encoded, this one in few tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, LARGEST_TRAINED_VOCABULARY),
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for file in files for text in texts_of(file)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {**tokenizer_settings(), "chat_template": CHATML})


def tokenizer_settings() -> dict[str, Any]:
    """A tokenizer_config.json that loads tokenizer.json as it is."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "model_max_length": 32768,
        # as Qwen2Tokenizer: transformers 4 would add token_type_ids, which `generate` refuses
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def texts_of(file: Path) -> list[str]:
    """Every text in a JSON file, or in the lines of a JSON-lines file."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TwinError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    parts = [line for line in content.split("\n") if line.strip()] if file.suffix == ".jsonl" else [content]
    try:
        texts = [text for part in parts for text in strings_in(json.loads(part))]
    except (ValueError, RecursionError) as error:
        raise TwinError(f"{file}: not JSON: {error}") from error
    if not texts:
        raise TwinError(f"{file}: no text to train a tokenizer on")
    return texts


def strings_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever JSON holds
    """The texts in a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; TwinError where the file holds something else."""
    # not base/files.py's reader: this runs in an interpreter that need not know the suite
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TwinError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TwinError(f"{path}: no JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON with Japanese readable."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
