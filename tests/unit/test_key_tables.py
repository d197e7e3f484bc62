"""The tables of keys in the docs are what the models allow, and no key goes without its meaning."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from key_tables import PAGES, TABLES, MeaningError, language_of, page, table, translation_of
from pydantic import BaseModel
from steph.contract.description import Description

CLONE = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_the_published_tables_are_current(name: str) -> None:
    """`PYTHONPATH=plugins python tools/key_tables.py` would change nothing."""
    text = (CLONE / name).read_text(encoding="utf-8")
    assert page(text, language_of(CLONE / name), translation_of(CLONE / name)) == text
    assert "<!-- keys: " in text


def test_the_japanese_of_the_tables_is_whole() -> None:
    """docs/ja.po has each phrase of the English pages' tables and no other; code in a phrase stays as it is."""
    asked: list[str] = []
    for name in PAGES:
        text = (CLONE / name).read_text(encoding="utf-8")
        page(text, "en", lambda phrase: asked.append(phrase) or phrase)  # type: ignore[func-returns-value]
    japanese = translation_of(CLONE / "docs" / "doctor.md")
    with (CLONE / "docs" / "ja.po").open("rb") as file:
        assert {str(message.id) for message in read_po(file) if message.id} == set(asked)
    for phrase in asked:
        assert set(re.findall(r"`[^`]+`", japanese(phrase))) == set(re.findall(r"`[^`]+`", phrase)), phrase
    with pytest.raises(MeaningError, match="no Japanese for 'a phrase'"):
        japanese("a phrase")
    assert translation_of(CLONE / "docs" / "doctor.en.md")("a phrase") == "a phrase"


def test_every_key_of_the_shipped_files_is_in_a_table() -> None:
    """What the reference pipeline's description and the shipped profiles set can be looked up."""

    def keys(found: dict[str, object], before: str = "") -> set[str]:
        dotted: set[str] = set()
        for key, value in found.items():
            if isinstance(value, dict):
                dotted |= keys(value, f"{before}{key}.")
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                dotted |= {f"[{key}].{inner}" for item in value for inner in item}
            else:
                dotted.add(f"{before}{key}")
        return dotted

    files = {CLONE / "pipeline" / "steph.toml": "steph.toml"}
    files |= dict.fromkeys((CLONE / "profiles").glob("*.toml"), "profile")
    for path, name in files.items():
        described = table(TABLES[name])
        written = keys(tomllib.loads(path.read_text(encoding="utf-8")))
        assert {key for key in written if f"`{key}`" not in described} == set()


class Bare(BaseModel):
    """A model whose key says nothing about itself."""

    silent: int = 1


def test_a_key_without_a_meaning_is_named() -> None:
    """A new key can't reach the docs without a sentence."""
    with pytest.raises(MeaningError, match=r"Bare\.silent"):
        table(Bare)


def test_the_text_around_the_tables_stays() -> None:
    """Only what stands between the marks is written anew."""
    text = "before\n<!-- keys: steph.toml -->\nold\n<!-- keys end -->\nafter\n"
    assert page(text, "en") == f"before\n<!-- keys: steph.toml -->\n\n{table(Description)}\n<!-- keys end -->\nafter\n"
