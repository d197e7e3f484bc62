"""What may stand in braces in a description's commands, `{model}` or `{when.cpu}`, and how it is filled in. Pure.

A word that is `{when.NAME}` alone becomes the words of that condition, or none; within a word they are joined to it.
`{{name}}` is the text `{name}`; braces around anything but a name are left alone, so that JSON needs no escape.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

_NAMED = re.compile(r"\{\{(?P<escaped>[a-z_][\w.]*)\}\}|\{(?P<name>[a-z_][\w.]*)\}")
WHEN = "when."

BOTH_NAMES: Mapping[str, str] = {
    "model": "the model under test: a name on the Hub or a folder",
    "python": "the pipeline's Python",
    "bin": "the folder of the pipeline's Python, where its programs are: `{bin}/trl`",
    "launch": "the pipeline's Python, with `torchrun` or `accelerate launch` where the profile says so; several words",
    "root": "the pipeline root, absolute",
    "device": "`cuda` or `cpu`",
    "config": "the file that `config` writes",
    "train_file": "the training file; of fewer rows where nothing else keeps the training within `max_steps`",
    "dataset": "the questions, `paths.dataset`",
    "num_processes": "processes that the launcher starts",
}
TRAIN_NAMES: Mapping[str, str] = {
    **BOTH_NAMES,
    "train_script": "`paths.train_script`",
    "train_dir": "a folder that holds the training file and nothing else",
    "output_dir": "the folder that the training writes",
    "num_epochs": "epochs",
    "max_steps": "optimizer steps: those of the asked epochs, at most the profile's `max_steps`",
    "batch_size": "rows of one forward pass in one process",
    "learning_rate": "learning rate",
    "max_seq_length": "the longest row, in tokens",
    "gradient_accumulation_steps": "forward passes of one optimizer step",
    "warmup_ratio": "share of the steps in which the learning rate rises",
    "lora_r": "LoRA's rank",
    "lora_alpha": "LoRA's alpha",
    "lora_dropout": "LoRA's dropout",
    "target_modules": "LoRA's target modules, with commas between",
    "use_4bit": "`true` or `false`",
    "bnb_4bit_compute_dtype": "`bfloat16`, `float16` or `float32`",
    "bnb_4bit_quant_type": "`nf4` or `fp4`",
    "mixed_precision": "`bf16`, `fp16` or `no`",
    "logging_steps": "steps between two lines of losses",
}
EVALUATE_NAMES: Mapping[str, str] = {
    **BOTH_NAMES,
    "evaluate_script": "`paths.evaluate_script`",
    "adapter": "the folder of H-2's adapter",
    "output": "the file or folder that the evaluation writes",
    "samples": "how many samples are asked",
    "top_k": "passages that retrieval gives",
    "ensemble": "answers to each question",
    "load_in_4bit": "`true` or `false`",
    "use_rag": "`true` or `false`",
    "use_cot": "`true` or `false`",
}


def names_in(texts: Iterable[str]) -> Iterator[str]:
    """The placeholders in these texts, in order, each as often as it stands there."""
    return (found["name"] for text in texts for found in _NAMED.finditer(text) if found["name"])


def unknown_placeholder(texts: Iterable[str], known: Iterable[str]) -> str | None:
    """A sentence about the first placeholder that is not known, with the name that may be meant; None where all are."""
    allowed = sorted(known)
    for name in names_in(texts):
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            meant = f"did you mean {{{near[0]}}}?" if near else f"allowed: {', '.join(allowed)}"
            return f"unknown placeholder {{{name}}}; {meant}"
    return None


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders replaced; a name without a value stays as it is."""

    def value(found: re.Match[str]) -> str:
        if found["escaped"]:
            return f"{{{found['escaped']}}}"
        return values.get(found["name"], found[0])

    return _NAMED.sub(value, text)


def filled_words(
    words: Sequence[str], values: Mapping[str, str], several: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """A command with its placeholders replaced; `several` are those that stand for any number of words."""
    found: list[str] = []
    for word in words:
        alone = _NAMED.fullmatch(word)
        if alone and alone["name"] in several:
            found += [filled(one, values) for one in several[alone["name"]]]
            continue
        joined = {name: filled("".join(parts), values) for name, parts in several.items()}
        found.append(filled(word, {**values, **joined}))
    return tuple(found)


def spelled(value: object) -> str:
    """A setting as a command line and a YAML file spell it.

    PyYAML takes `2e-05` for a text and `2.0e-05` for a number, so a number with an exponent gets its point.
    """
    if value is None:
        return "no"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:g}"
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
