"""Text is told from other text by its hashes alone."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from steph.base.fingerprint import fingerprints, holds, text_hash

QUESTION = "次のうち、売買契約の解除についての記述として正しくないものはどれか。民法第541条の規定を前提とする。"


def test_width_and_whitespace_make_no_difference() -> None:
    """A template's line breaks, indents and full-width forms leave the hash and the fingerprints alone."""
    spread = "　次のうち、\n".join(["", *QUESTION.split("次のうち、")[1:]]).replace("541", "５４１ ")
    assert text_hash(spread) == text_hash(QUESTION)
    assert fingerprints(spread) == fingerprints(QUESTION)


def test_a_text_holds_the_fingerprints_of_its_parts() -> None:
    """A prompt with a frame around a question holds the whole question, and a changed question less of it."""
    prompt = fingerprints(f"あなたは法律の専門家です。\n問題: {QUESTION}\n回答は記号を一つだけ書いてください。")
    assert holds(prompt, QUESTION) == 1.0
    changed = holds(fingerprints(QUESTION.replace("正しくない", "正しい")), QUESTION)
    assert changed is not None
    assert changed < 1.0


@pytest.mark.parametrize("text", ["", "a", "  正解は b  "])
def test_a_text_too_short_has_no_fingerprints(text: str) -> None:
    """Below twelve characters nothing can be said by pieces; the hash of the whole still tells."""
    assert fingerprints(text) == ()
    assert holds((), text) is None
    assert len(text_hash(text)) == 16


def test_the_digits_are_fixed() -> None:
    """The writer in another process and Python comes to these same digits."""
    assert text_hash("ａ b\n") == text_hash("ab") == "0e52b5f187de1088"
    assert fingerprints("abcdefghijklmnopqrstuvwxyz") == ("c2f70e70", "af454328", "9c889478", "56da8230", "fd3e9ef0")


@pytest.mark.parametrize("text", [QUESTION, "日本の法令 " * 40, "𠮷野家 \ud800 ok " * 9, "a" * 12])
def test_numpy_does_not_change_the_digits(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has numpy loaded comes to the same fingerprints as one that has not."""
    pytest.importorskip("numpy")
    with_numpy = fingerprints(text)
    monkeypatch.delitem(sys.modules, "numpy")
    assert fingerprints(text) == with_numpy


def test_a_numpy_that_is_still_loading_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread imports it, numpy is there without its functions."""
    wanted = fingerprints(QUESTION)
    loading = ModuleType("numpy")
    loading.__spec__ = ModuleSpec("numpy", None)
    loading.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numpy", loading)
    assert fingerprints(QUESTION) == wanted
