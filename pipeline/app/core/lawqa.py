"""The question set: `selection.json` in the schema of the Digital Agency's lawqa_jp."""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.errors import PipelineError
from app.core.files import require_file

LETTERS = ("a", "b", "c", "d")
REMEDY = "clone the question set into datasets/lawqa_jp or pass datasets/sample/selection.json"
_CHOICE = re.compile(r"^([a-d])(?:[.:)、]|\s)\s*(\S.*)$")


@dataclass(frozen=True)
class Question:
    """One four-choice question, its letters normalised to ASCII."""

    file_name: str
    context: str
    instruction: str
    text: str
    choices: tuple[str, str, str, str]
    answer: str
    references: tuple[str, ...]

    @property
    def choices_text(self) -> str:
        """The four choices as lines `a …` to `d …`."""
        return "\n".join(f"{letter} {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True))


def load_questions(path: Path, flag: str) -> list[Question]:
    """Read every question of `path`; raises `PipelineError` naming file, row and key where one is missing or broken."""
    require_file(path, flag, REMEDY)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not valid JSON ({error}); {REMEDY}") from error
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise PipelineError(f"{path} has no list under the key 'samples'; {REMEDY}")
    if not samples:
        raise PipelineError(f"{path} has no question under the key 'samples'; {REMEDY}")
    return [_question(sample, f"{path} samples[{index}]") for index, sample in enumerate(samples)]


def _question(sample: object, place: str) -> Question:
    if not isinstance(sample, dict):
        raise PipelineError(f"{place} is not an object; {REMEDY}")
    answer = _normalised(_text(sample, "output", place)).lower()
    if answer not in LETTERS:
        raise PipelineError(f"{place} has output {sample['output']!r}; it must be one of a, b, c, d")
    return Question(
        file_name=_text(sample, "ファイル名", place),
        context=_text(sample, "コンテキスト", place, required=False),
        instruction=_instruction(_text(sample, "指示", place, required=False)),
        text=_text(sample, "問題文", place),
        choices=_choices(_text(sample, "選択肢", place), place),
        answer=answer,
        references=tuple(str(reference) for reference in sample.get("references") or ()),
    )


def _text(sample: dict[str, Any], key: str, place: str, *, required: bool = True) -> str:
    value = sample.get(key, None if required else "")
    if not isinstance(value, str) or (required and not value.strip()):
        raise PipelineError(f"{place} has no text under the key {key!r}; mend that row or remove it")
    return value.strip()


def _choices(text: str, place: str) -> tuple[str, str, str, str]:
    """Split the lines `a …` to `d …`; a line without a letter continues the choice above it."""
    found: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _CHOICE.match(_normalised(line[0]).lower() + line[1:])
        if match and len(found) < len(LETTERS) and match[1] == LETTERS[len(found)]:
            found.append(match[2].strip())
        elif found:
            found[-1] += f" {line}"
    if len(found) != len(LETTERS):
        raise PipelineError(
            f"{place} has {len(found)} choices under the key '選択肢'; it needs the lines a to d in order"
        )
    return found[0], found[1], found[2], found[3]


def _instruction(text: str) -> str:
    """The row's instruction without markup, its full-width letters and digits as ASCII, spaces between them dropped."""
    return re.sub(r"\s+", "", _normalised(re.sub(r"<[^>]*>", "", text)))


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()
