"""Words for people: a message is an id with values, and each language has gettext catalogs that turn it into text.

The catalogs are `words/<language>/*.po`, read as they are, so that a clone needs no build step. A placeholder is a
name in braces, as `str.format` has it, with a format for a number where it needs one (`{loss:.4g}`). `{rows:row|rows}`
is the number with its noun in the singular or the plural, `{reason:clause}` a message without its full stop. Braces of
the text itself are doubled. A bracket that holds nothing but a value that nobody gave is left out.
"""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steph.base.text import one_line
from steph.base.units import MISSING

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = ("ja", "en")
WORDS = Path(__file__).parent / "words"
TEXT_CHARS = 1000  # of a message's text; a text in it may have `LINE_CHARS`
VERBATIM = "verbatim"  # a message that is its own text: a log line, a library's words, a sentence of an old record
_MISSING = re.compile(r" ?[(（]\[\w{1,40}\][)）]")

One: TypeAlias = "Message | str | int | float | bool | None"
Part: TypeAlias = "Message | str | int | float | bool | None | tuple[Message | str | int | float | bool | None, ...]"  # noqa: RUF036


class Value(BaseModel):
    """A frozen value that refuses unknown keys, also where it is changed."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), json_schema_serialization_defaults_required=True
    )

    def changed(self, **changes: object) -> Self:
        """A copy in which these fields are others, unvalidated; raises TypeError for a field that there is not."""
        unknown = changes.keys() - type(self).model_fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return self.model_copy(update=changes)


class Message(Value):
    """A message: its id in the catalogs and the values of its placeholders; `str()` gives its text.

    A value is a text, a number, another message, or several of them, which the text lists. A plain string is read as a
    message that is its own text.
    """

    id: str
    values: dict[str, Part] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: object) -> object:
        return {"id": VERBATIM, "values": {"text": given}} if isinstance(given, str) else given

    def text(self, language: Language | None = None) -> str:
        """The words in one line, in this language or the one in use; an unknown id is shown with its values."""
        language = language or _in_use
        if self.id == VERBATIM:
            return str(self.values.get("text", ""))
        pattern = catalog(language).get(self.id)
        if pattern is None:  # of another release
            return one_line(f"{self.id} {self.values or ''}", TEXT_CHARS)
        said = _Formatter(language).vformat(pattern, (), self.values)
        return one_line(_MISSING.sub("", said), TEXT_CHARS)

    def __str__(self) -> str:
        return self.text()

    def __hash__(self) -> int:
        return hash(self.id)

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Message(id=VERBATIM, values={"text": ""})


def say(message_id: str, /, **values: object) -> Message:
    """A message of the catalogs; an exception among the values says its own words. Raises KeyError for unknown ids."""
    if not has_message(message_id):
        raise KeyError(message_id)
    # not validated: the parts are what they must be, and a Ctrl-C in the middle of pydantic's look would be swallowed
    parts = {
        name: tuple(map(_one, value)) if isinstance(value, Sequence) and not isinstance(value, str) else _one(value)
        for name, value in values.items()
    }
    return Message.model_construct(id=message_id, values=parts)


def phrase(message_id: str, /, **values: object) -> str:
    """The text of such a message in the language in use, in one line; raises KeyError likewise."""
    return str(say(message_id, **values))


def verbatim(text: object) -> Message:
    """A text that is shown as it is in every language, in one line."""
    return Message(id=VERBATIM, values={"text": one_line(text)})


def words_of(error: BaseException) -> Message:
    """The words of an exception: the message that it was raised with, else its text as it is."""
    return error.args[0] if error.args and isinstance(error.args[0], Message) else verbatim(error)


def _one(value: object) -> One:
    if isinstance(value, BaseException):
        return words_of(value)
    if value is None or isinstance(value, Message | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return one_line(value)


class _Formatter(string.Formatter):
    """Puts values into a pattern of one language; a placeholder without a value is an error, or shown by its name."""

    def __init__(self, language: Language, *, is_strict: bool = False) -> None:
        self.language, self.is_strict = language, is_strict

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        return kwargs[str(key)] if self.is_strict else kwargs.get(str(key), f"[{key}]")

    def format_field(self, value: Any, format_spec: str) -> str:  # noqa: ANN401
        if isinstance(value, Message):
            text = value.text(self.language)
            return text.rstrip("。.") if format_spec == "clause" else text
        if isinstance(value, tuple):
            return catalog(self.language)["list.separator"].join(self.format_field(one, format_spec) for one in value)
        if value is None:
            return MISSING
        if isinstance(value, str | bool) or not format_spec:
            return str(value)
        if "|" in format_spec:
            return f"{value:,} {format_spec.split('|')[value != 1]}"
        return format(value, format_spec)


_in_use: Language = "ja"


def language() -> Language:
    """The language in use, of everything that is said without one."""
    return _in_use


def use_language(chosen: Language) -> None:
    """Say everything in this language from now on, in the whole process."""
    global _in_use
    _in_use = chosen


@contextmanager
def speaking(chosen: Language) -> Iterator[None]:
    """Say everything in this language meanwhile."""
    before = _in_use
    use_language(chosen)
    try:
        yield
    finally:
        use_language(before)


@functools.cache
def catalog(language: Language) -> Mapping[str, str]:
    """Every message id of a language with its text, placeholders still in it."""
    from babel.messages.pofile import read_po  # a tenth of a second, which not every command needs

    words: dict[str, str] = {}
    for path in sorted((WORDS / language).glob("*.po")):
        with path.open("rb") as file:
            words |= {
                str(one.id): str(one.string) for one in read_po(file, abort_invalid=True) if one.id and one.string
            }
    return words


def has_message(message_id: str) -> bool:
    """Whether there are words for this id; the catalogs of all languages have the same ids."""
    return message_id in catalog("ja")


def text(message_id: str, language: Language | None = None, values: Mapping[str, object] | None = None) -> str:
    """The words of an id, placeholders replaced, of any length; raises KeyError for an unknown id or value."""
    language = language or _in_use
    return _Formatter(language, is_strict=True).vformat(catalog(language)[message_id], (), values or {})


def placeholders(pattern: str) -> frozenset[str]:
    """The names in braces in a catalog's text."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(pattern) if name)
