"""Twins: random weights in a published model's exact shapes, made by a script in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steph.child import twin
from steph.conduct.models import find_qwen_tokenizer
from steph.memory.shapes import BUILT_IN, TINY, ModelShape, config_of, parameter_count
from steph.run.model_files import folder_parameters

TEXT = "労働基準法第三十二条 使用者は、労働者に、休憩時間を除き一週間について四十時間を超えて、労働させてはならない。"


def write_config(folder: Path, shape: ModelShape = TINY) -> Path:
    """The config.json from which a twin is made."""
    path = folder / "config.json"
    path.write_text(json.dumps(config_of(shape, "steph/tiny-qwen2")))
    return path


def write_text(folder: Path, text: str = TEXT) -> Path:
    """A data set to train a tokenizer on."""
    path = folder / "selection.json"
    path.write_text(json.dumps({"samples": [{"問題文": text, "number": 3, "references": [text]}]}), encoding="utf-8")
    return path


def arguments(tmp_path: Path, **changes: str) -> list[str]:
    """A command line for a tiny twin."""
    options = {
        "--config": str(write_config(tmp_path)),
        "--output": str(tmp_path / "twins" / "tiny"),
        "--train-tokenizer": str(write_text(tmp_path)),
        **{"--" + name.replace("_", "-"): value for name, value in changes.items()},
    }
    if "--tokenizer" in options:
        del options["--train-tokenizer"]
    return [part for pair in options.items() for part in pair]


def test_a_tiny_twin_is_whole_and_kept(tmp_path: Path) -> None:
    """One run of the script gives a whole model with its tokenizer; a second finds it and keeps it."""
    for package in ("torch", "transformers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from tokenizers import Tokenizer

    command = [sys.executable, twin.__file__, *arguments(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "twins" / "tiny"
    folder_parameters(folder)
    assert folder_parameters(folder) == parameter_count(TINY)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(f"<|im_start|>user\n{TEXT}<|im_end|>").ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"<|im_start|>user\n{TEXT}<|im_end|>"
    assert (ids[0], ids[-1]) == (tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>"))
    assert tokenizer.get_vocab_size() <= TINY.vocab_size
    assert find_qwen_tokenizer([folder], cache_dir=tmp_path / "nowhere") == folder

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]  # transformers 4 adds token types otherwise
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["Qwen2ForCausalLM"], "bfloat16")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"][0] == ids[-1]
    marker = json.loads((folder / "twin.json").read_text())
    assert (marker["parameters"], marker["source_name"]) == (parameter_count(TINY), "steph/tiny-qwen2")

    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == f"twin: kept {folder}\n"


def test_a_twin_is_another_when_shape_or_tokenizer_change(tmp_path: Path) -> None:
    """What a cached twin was made from decides whether it is made anew."""

    def digest(**changes: str) -> str:
        return twin.requested(arguments(tmp_path, **changes)).digest()

    base = digest()
    assert digest() == base
    other_text = tmp_path / "other.json"
    other_text.write_text('["text"]')
    other_shape = tmp_path / "qwen3.json"
    other_shape.write_text(json.dumps(config_of(BUILT_IN["Qwen/Qwen3-0.6B"])))
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "tokenizer.json").write_text("{}")
    others = {
        digest(train_tokenizer=str(other_text)),
        digest(config=str(other_shape)),
        digest(tokenizer=str(tmp_path / "given")),
    }
    assert len(others | {base}) == 4


def test_a_cut_twin_is_not_kept(tmp_path: Path) -> None:
    """A twin that lost bytes of a file is no longer taken for whole."""
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "twin.json").write_text(json.dumps({"digest": "d", "files": {"model.safetensors": 5}}))
    assert twin.is_twin(tmp_path, "d")
    assert not twin.is_twin(tmp_path, "e")
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    assert not twin.is_twin(tmp_path, "d")


def test_a_twin_that_is_there_needs_no_process(tmp_path: Path) -> None:
    """The same arguments say beforehand whether the script would keep what it finds."""
    asked = arguments(tmp_path)
    request = twin.requested(asked)
    assert not twin.is_kept(asked)
    request.output.mkdir(parents=True)
    (request.output / "twin.json").write_text(json.dumps({"digest": request.digest(), "files": {}}))
    assert twin.is_kept(asked)
    assert not twin.is_kept([*asked, "--shrink"])
    (tmp_path / "config.json").unlink()
    assert not twin.is_kept(asked)


def test_a_twin_that_another_process_made_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that begin together: the second one must not take away what the first one trains on by then."""
    request = twin.requested(arguments(tmp_path))
    output = request.output

    def build(request: twin.Request, folder: Path) -> tuple[int, str]:
        (folder / "model.safetensors").write_bytes(b"mine")
        output.mkdir()
        (output / "model.safetensors").write_bytes(b"first")
        twin.write_marker(output, request, 1)
        return 1, "cpu"

    monkeypatch.setattr(twin, "build", build)
    twin.run(request)
    assert (output / "model.safetensors").read_bytes() == b"first"
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_folder_that_is_no_twin_is_left_alone(tmp_path: Path) -> None:
    """A person's own folder in the output's place is refused and keeps its files."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("words")
    with pytest.raises(twin.TwinError, match="is no twin; not replaced"):
        twin.run(twin.requested(arguments(tmp_path, output=str(mine))))
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path: Path) -> None:
    """Token ids past the embedding are told before any weight is made, and nothing is left behind."""
    given = tmp_path / "given"
    given.mkdir()
    twin.train_tokenizer([write_text(tmp_path)], 2048, given)
    small = {**config_of(TINY), "vocab_size": 100}
    (tmp_path / "small.json").write_text(json.dumps(small))
    with pytest.raises(twin.TwinError, match=r"largest id \d+ doesn't fit the model's vocab_size 100"):
        twin.run(twin.requested(arguments(tmp_path, tokenizer=str(given), config=str(tmp_path / "small.json"))))
    assert list((tmp_path / "twins").iterdir()) == []


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    """A tokenizer that has neither turn marks nor a token that ends a text can't serve a model that answers."""
    from tokenizers import Tokenizer, models

    given = tmp_path / "given"
    given.mkdir()
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(given / "tokenizer.json"))
    with pytest.raises(twin.TwinError, match="names no eos_token that the tokenizer has"):
        twin.run(twin.requested(arguments(tmp_path, tokenizer=str(given))))


def _tokenizer(folder: Path, *tokens: str, **settings: str) -> Path:
    """A tokenizer of another family: these special tokens, and no template but what the settings hold."""
    from tokenizers import AddedToken, Tokenizer, models

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


CHATML_TOKENS = (twin.END_OF_TEXT, twin.START, twin.END)


@pytest.mark.parametrize(
    ("tokens", "own", "template"),
    [
        (CHATML_TOKENS, {}, twin.CHATML),
        (("<eos>",), {"eos_token": "<eos>"}, twin.PLAIN_TURNS),
        (("<eos>",), {"eos_token": "<eos>", "chat_template": "mine"}, "mine"),
    ],
)
def test_a_given_tokenizer_gets_a_chat_template_only_where_it_has_none(
    tmp_path: Path, tokens: tuple[str, ...], own: dict[str, str], template: str
) -> None:
    """A template of its own survives; without one ChatML is added, or plain turns where its tokens are not there."""
    out = tmp_path / "out"
    out.mkdir()
    twin.write_tokenizer(_tokenizer(tmp_path / "given", *tokens, **own), (), 2048, out)
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == template


def test_another_familys_answers_end_by_its_own_tokens(tmp_path: Path) -> None:
    """Gemma's: a text begins with <bos>, ends with <eos>, a turn with <end_of_turn>; ids as the tokenizer has them."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    given = _tokenizer(tmp_path / "given", "<pad>", "<eos>", "<bos>", "<end_of_turn>", **names)
    out = tmp_path / "out"
    out.mkdir()
    found = twin.write_tokenizer(given, (), 2048, out)
    assert found == twin.SpecialTokens(bos=4, eos=3, pad=2, ends=(3, 5))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rows.jsonl", '{"input": "a"}\n{', "not JSON"),
        ("rows.json", "[1, 2]", "no text to train a tokenizer on"),
    ],
)
def test_a_file_without_text_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    """A file that a tokenizer can't be trained on is refused by name."""
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(twin.TwinError, match=f"{file}: {message}"):
        twin.texts_of(path)


def test_the_texts_of_json_lines_are_all_found(tmp_path: Path) -> None:
    """Texts are found at any depth and in every line, keys are not."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a", "meta": {"x": ["b", 1]}}\n\n{"output": "c\u2028d"}\n', encoding="utf-8")
    assert twin.texts_of(path) == ["a", "b", "c\u2028d"]


def test_a_dead_process_s_folder_is_cleared(tmp_path: Path) -> None:
    """What a killed run left half-built goes away at the next run; a running one's stays."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".tiny.new-{dead.pid}"
    running = tmp_path / f".tiny.new-{os.getppid()}"
    left.mkdir()
    running.mkdir()
    with twin.building_folder(tmp_path / "tiny") as folder:
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [running.name]


FAMILIES = ("llama", "gemma2", "gemma3", "mistral", "phi3", "gpt_oss", "qwen3", "mixtral", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_architecture_is_kept_in_small_sizes(family: str) -> None:
    """A config.json that names nothing but its family: the kinds of layers and the sharing of heads stay, sizes go."""
    transformers = pytest.importorskip("transformers")
    published = transformers.AutoConfig.for_model(family)
    config = twin.text_model_config({"model_type": family}, shrink=True)
    whole = published.get_text_config(decoder=True)
    assert config.model_type == whole.model_type
    assert (config.hidden_size, config.vocab_size) == (64, 2048)
    assert set(getattr(config, "layer_types", None) or ()) == set(getattr(whole, "layer_types", None) or ())
    assert config.num_hidden_layers <= 4
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert_4_bit(model)


def assert_4_bit(model: Any) -> None:  # noqa: ANN401 - transformers is imported late
    """Every linear layer below the head can be packed: bitsandbytes asks some processors for a multiple of 32 rows."""
    layers = [(name, layer) for name, layer in model.named_modules() if type(layer).__name__ == "Linear"]
    assert not [name for name, layer in layers if layer.out_features % 32 and "lm_head" not in name]


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2", "deepseek_v3", "gemma3n_text"])
def test_narrow_heads_are_wide_enough_for_4_bits(family: str) -> None:
    """One head of keys, keys in a few numbers beside each head, or values of each layer in a list."""
    transformers = pytest.importorskip("transformers")
    settings = {"model_type": family} | ({} if family == "gemma3n_text" else {"num_key_value_heads": 1})
    model = transformers.AutoModelForCausalLM.from_config(twin.text_model_config(settings, shrink=True))
    if family != "gemma3n_text":  # whose routers are as narrow as published
        assert_4_bit(model)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "nobodys_model"}, "transformers makes no configuration of it"),
        ({"model_type": "vit"}, "no causal language model that transformers knows"),
        ({"hidden_size": 64}, "key 'model_type' is missing"),
    ],
)
def test_what_is_no_causal_model_is_one_line(tmp_path: Path, config: dict[str, object], said: str) -> None:
    """Remote code, another task, no kind at all: refused with the reason before a weight is drawn."""
    pytest.importorskip("transformers")
    path = tmp_path / "other.json"
    path.write_text(json.dumps(config))
    with pytest.raises(twin.TwinError, match=said):
        twin.run(twin.requested(arguments(tmp_path, config=str(path))))
