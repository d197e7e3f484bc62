"""A model's folder: whole, or named with the file that is missing or broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hub import write_model
from steph.base.messages import speaking
from steph.run.model_files import IncompleteModelError, folder_licence, require_complete


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, r"config\.json: the file is missing"),
        ("config.json", b"[1]", r"config\.json: it holds no JSON object"),
        ("config.json", b"\xff", r"config\.json: it is not UTF-8"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "only safetensors are loaded"),
        ("model.safetensors", b"\x10", "is cut or no safetensors file"),
        ("model.safetensors", b"\2\0\0\0\0\0\0\0[]", "it is no safetensors file"),
        ("model.safetensors", b"\xff" * 9, "is cut or no safetensors file"),
    ],
)
def test_what_is_not_whole_of_a_model_is_named(tmp_path: Path, file: str, content: bytes | None, said: str) -> None:
    """Each file that a model needs, missing or broken, is the reason why the folder is no model."""
    folder = write_model(tmp_path / "model")
    require_complete(folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with speaking("en"), pytest.raises(IncompleteModelError, match=said):
        require_complete(folder)


@pytest.mark.parametrize("weight_map", [None, {}, ["a"]])
def test_an_index_without_shards_is_no_model(tmp_path: Path, weight_map: object) -> None:
    """An index that names no file can't stand for weights."""
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with speaking("en"), pytest.raises(IncompleteModelError, match=r"index\.json: no weight_map"):
        require_complete(folder)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (None, None),
        ("---\nlicense: apache-2.0 # as the Hub shows it\n---\n", "apache-2.0"),
        ("---\nlanguage: ja\n---\n", None),
        ("license: mit\n", None),
    ],
)
def test_a_local_models_licence_is_read_off_its_front_matter(
    tmp_path: Path, readme: str | None, licence: str | None
) -> None:
    """Only the front matter of README.md counts, not its text."""
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert folder_licence(tmp_path) == licence


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """A sharded model with a shard missing is not whole."""
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with speaking("en"), pytest.raises(IncompleteModelError, match=r"model-00002-of-00002.safetensors: it is missing"):
        require_complete(folder)
