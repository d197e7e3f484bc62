"""Whether the tokenizer beside an adapter is the model's own: two files in, the check out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from steph.base.files import Tensor
from steph.base.terms import Severity
from steph.judge.checks_adapter import tokenizer_check

BASE: dict[str, Any] = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<|im_end|>"}]}


def written(path: Path, content: object) -> Path:
    """A file with this JSON."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("saved", "holds"),
    [
        (BASE, True),
        (BASE | {"truncation": {"max_length": 512}, "padding": {"pad_id": 2}}, True),
        ({"model": {"vocab": {"a": 0, "b": 1, "<|im_end|>": 2}}, "added_tokens": []}, True),
        (BASE | {"added_tokens": [{"id": 2, "content": "<|im_end|>"}, {"id": 3, "content": "<pad>"}]}, True),
        ({"model": {"vocab": {"a": 1, "b": 0}}, "added_tokens": BASE["added_tokens"]}, False),
        ({"model": {"vocab": {"x": 0, "y": 1}}}, False),
        ({"model": {"vocab": [["a", -1.0], ["b", -2.0], ["<|im_end|>", 0.0]]}}, True),
        ({"model": {"vocab": [["b", -1.0], ["a", -2.0]]}}, False),
        ({"model": {}}, False),
        ([], False),
    ],
)
def test_a_word_may_be_added_but_none_may_change_its_number(saved: object, holds: bool, tmp_path: Path) -> None:
    """How a library writes the file again is no difference; other numbers make a model read other words."""
    check = tokenizer_check(written(tmp_path / "saved.json", saved), written(tmp_path / "base.json", BASE))
    assert check.holds is holds
    assert check.severity is Severity.WARN


@pytest.mark.parametrize(
    ("added", "padding", "tensors", "holds"),
    [
        (["<law>"], "<pad>", (), False),
        (["<law>"], "<pad>", ("base_model.model.model.embed_tokens.lora_embedding_A",), False),
        (["<law>"], "<pad>", ("base_model.model.model.embed_tokens.weight",), True),
        (["<law>"], "<pad>", ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",), True),
        (["<pad>"], "<pad>", (), True),  # which nothing ever reads
        ([], "<pad>", (), True),
    ],
)
def test_an_added_word_needs_an_embedding_that_is_saved(
    added: list[str], padding: str, tensors: tuple[str, ...], holds: bool, tmp_path: Path
) -> None:
    """Beyond the base's own rows each load would draw another one; a free row of the base is everybody's."""
    words = [*BASE["added_tokens"], *({"id": n, "content": one} for n, one in enumerate(added, 3))]
    saved = written(tmp_path / "tokenizer.json", BASE | {"added_tokens": words})
    written(tmp_path / "tokenizer_config.json", {"pad_token": {"content": padding}})
    base = written(tmp_path / "base.json", BASE)
    held = [Tensor(name, "F32", (4, 4), 0, 0) for name in tensors]
    assert tokenizer_check(saved, base, 3, held).holds is holds
    assert tokenizer_check(saved, base, 8).holds is True


def test_without_two_files_nothing_is_said(tmp_path: Path) -> None:
    """A model without a `tokenizer.json`, an unreadable one, and an adapter beside which none was saved."""
    base = written(tmp_path / "base.json", BASE)
    cut = tmp_path / "cut.json"
    cut.write_text('{"model"', encoding="utf-8")
    for saved, known in ((base, None), (base, tmp_path / "gone.json"), (base, cut), (tmp_path / "gone.json", base)):
        check = tokenizer_check(saved, known)
        assert (check.holds, check.severity) == (None, Severity.INFO)
    assert tokenizer_check(cut, base).holds is False


def test_a_published_tokenizer_written_again_by_the_library_is_the_same(tmp_path: Path) -> None:
    """Qwen's own file, loaded and saved as a pipeline does it, has the same words."""
    data = os.environ.get("STEPH_TEST_DATA")
    if not data:
        pytest.skip("STEPH_TEST_DATA is not set")
    tokenizers = pytest.importorskip("tokenizers")
    base = Path(data) / "tokenizers/qwen2.5/tokenizer.json"
    tokenizers.Tokenizer.from_file(str(base)).save(str(tmp_path / "saved.json"))
    assert tokenizer_check(tmp_path / "saved.json", base).holds is True
