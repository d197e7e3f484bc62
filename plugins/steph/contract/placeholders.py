"""What may stand in braces in a description's commands, `{model}` or `{when.cpu}`, and how it is filled in. Pure.

A word that is `{when.NAME}` alone becomes the words of that condition, or none; within a word they are joined to it.
`{{name}}` is the text `{name}`; braces around anything but a name are left alone, so that JSON needs no escape.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from steph.base.messages import Message, say
from steph.record.settings import EvalSettings, TrainSettings

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
}
# beside these, every setting of TrainSettings and EvalSettings has a placeholder of its name
TRAIN_NAMES: Mapping[str, str] = {
    **BOTH_NAMES,
    "train_script": "`paths.train_script`",
    "train_dir": "a folder that holds the training file and nothing else",
    "output_dir": "the folder that the training writes",
}
EVALUATE_NAMES: Mapping[str, str] = {
    **BOTH_NAMES,
    "evaluate_script": "`paths.evaluate_script`",
    "adapter": "the folder of H-2's adapter",
    "output": "the file or folder that the evaluation writes",
}
KNOWN_IN_TRAIN = frozenset({*TRAIN_NAMES, *TrainSettings.model_fields})
KNOWN_IN_EVALUATE = frozenset({*EVALUATE_NAMES, *EvalSettings.model_fields})


def names_in(texts: Iterable[str]) -> Iterator[str]:
    """The placeholders in these texts, in order, each as often as it stands there."""
    return (found["name"] for text in texts for found in _NAMED.finditer(text) if found["name"])


def unknown_placeholder(texts: Iterable[str], known: Iterable[str]) -> Message | None:
    """The first placeholder that is not known, with the name that may be meant; None where all are."""
    allowed = sorted(known)
    for name in names_in(texts):
        if name not in allowed:
            if near := difflib.get_close_matches(name, allowed, 1):
                return say("description.near_placeholder", name=name, near=near[0])
            return say("description.placeholder", name=name, known=allowed)
    return None


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders replaced; a name without a value stays as it is."""
    return _NAMED.sub(
        lambda found: f"{{{found['escaped']}}}" if found["escaped"] else values.get(found["name"], found[0]), text
    )


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
    """A setting as a command line and YAML spell it: PyYAML takes `2e-05` for a text, `2.0e-05` for a number."""
    if value is None:
        return "no"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:g}"
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
