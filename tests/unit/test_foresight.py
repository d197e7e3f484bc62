"""`steph fit` beyond what was measured: unknown trainers and families, targets, optimizers, cards, what would help."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, FakeModel
from steph.base.messages import Message, speaking
from steph.base.terms import TrainerName
from steph.base.units import GIB
from steph.cli import app
from steph.conduct.fit import Counted, CountingError, LoraOptions, hub_config, subject
from steph.memory import fit as fitting
from steph.memory import terms
from steph.memory.forecast import Forecast, floor_bytes, on_several_cards, predict, predict_any
from steph.memory.shapes import COMMON, Linear, model_shape, parameter_count, shape_of_counts
from steph.memory.terms import OLDER, TRAINERS, AdapterCount, Workload
from typer.testing import CliRunner

LLAMA, GEMMA, MOE = model_shape("Llama-3.1-8B"), model_shape("gemma-3-4b-it"), model_shape("Qwen3-30B-A3B")
TRL = Workload(TrainerName.TRL, 2, 1024)


def _ask(*words: str) -> dict[str, Any]:
    with speaking("en"):
        result = CliRunner().invoke(app, ["fit", *words, "--json"], env={"STEPH_LANGUAGE": "en", "HF_HUB_OFFLINE": "1"})
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _one(*words: str) -> dict[str, Any]:
    return _ask(*words, "--batch-size", "2", "--max-seq-length", "1024")


# a trainer that nobody named


def test_without_a_trainer_fits_means_that_the_highest_of_all_fits() -> None:
    """The interval holds each known trainer's and what older programs keep; just below its upper end nothing fits."""
    found = _one("--model", "Qwen3-8B", "--vram", "100GiB")
    assert set(found["by_trainer"]) == set(TRAINERS)
    assert found["low_gib"] <= min(one["low_gib"] for one in found["by_trainer"].values())
    assert found["high_gib"] >= max(one["high_gib"] for one in found["by_trainer"].values())
    size = found["high_gib"]
    verdicts = [_one("--model", "Qwen3-8B", "--vram", f"{vram:.2f}GiB")["verdict"] for vram in (size, size + 0.2)]
    assert verdicts == ["too_close", "fits"]


def test_what_older_programs_keep_is_in_the_span_alone() -> None:
    """Seven fp32 copies of all logits, eager attention's softmax in every kept layer."""
    work = replace(TRL, trainer=TrainerName.FULL, recompute=False)
    older, full = predict(LLAMA, replace(work, older=True)), predict(LLAMA, work)
    softmax = LLAMA.num_hidden_layers * work.tokens * (4 + 4) * LLAMA.num_attention_heads * work.width
    assert older.peak_allocated_bytes - full.peak_allocated_bytes >= softmax
    assert terms.head_bytes(LLAMA, replace(work, older=True)) == 7 * 4 * work.tokens * LLAMA.vocab_size
    assert OLDER not in TRAINERS.values()
    assert predict_any(LLAMA, work).peak.high_bytes >= older.peak.high_bytes


def test_recompute_that_is_known_narrows_the_span() -> None:
    """Said to be on, the upper end is lower; said to be off, the lower end is higher."""
    question = ("--model", "Qwen3-8B", "--vram", "24GiB")
    either, on, off = (_one(*question, *more) for more in ((), ("--recompute", "on"), ("--recompute", "off")))
    assert on["high_gib"] < either["high_gib"]
    assert off["low_gib"] > either["low_gib"]
    assert (on["low_gib"], off["high_gib"]) == (either["low_gib"], either["high_gib"])


def test_an_older_way_to_recompute_holds_nothing_of_an_eight_bit_base() -> None:
    """Its first pass makes no graph, so that an unknown program may take less; the newer one's stays."""
    work = replace(TRL, use_4bit=False, use_8bit=True)
    kept = 2 * work.tokens * LLAMA.num_hidden_layers * (2 * 4096 + 4096 + 14336)
    assert terms.checkpoint_bytes(LLAMA, work) - terms.checkpoint_bytes(LLAMA, replace(work, reentrant=True)) == kept
    least = min(predict(LLAMA, replace(work, trainer=name)).peak.low_bytes for name in TRAINERS)
    assert predict_any(LLAMA, work, recompute=True).peak.low_bytes < least


# outside of what was measured


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model", "gpt-oss-20b"), "mixture of experts"),
        (("--model", "Qwen3-30B-A3B"), "mixture of experts"),
        (("--model", "gemma-7b"), "model_type gemma was never measured"),
        (("--model", "Qwen3-8B", "--optimizer", "galore_adamw"), "galore_adamw"),
        (("--model", "Qwen3-8B", "--full-finetuning"), "all weights"),
    ],
)
def test_nothing_measured_is_unknown_with_its_reason(words: tuple[str, ...], reason: str) -> None:
    """No figure that looks like a forecast, only what no run can do without; too little for that does not fit."""
    found = _one(*words, "--vram", "200GiB", "--trainer", "trl")
    assert found["verdict"] == "unknown"
    assert any(reason in one for one in found["reasons"])
    assert not {"total_gib", "low_gib", "high_gib", "terms"} & found.keys()
    assert found["at_least_gib"] > 4
    assert _one(*words, "--vram", "4GiB", "--trainer", "trl")["verdict"] == "does_not_fit"


def test_no_room_predicts_a_family_whose_layers_no_formula_gives() -> None:
    """Also not the ladder and H-4, which ask the same formulas."""
    with pytest.raises(ValueError, match="qwen3_moe"), speaking("en"):
        predict(MOE, TRL)


def test_the_least_that_experts_take_is_what_the_leanest_program_needs() -> None:
    """Half a byte each in a 4-bit base, though transformers 5 keeps two; the figure stays below the 16-bit one."""
    four, sixteen = floor_bytes(MOE, TRL), floor_bytes(MOE, replace(TRL, use_4bit=False))
    assert four < 18 * GIB
    assert sixteen > 2 * parameter_count(MOE)


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (("--packing", "--trainer", "unsloth"), "packed rows"),
        (("--dora", "--trainer", "liger"), "DoRA"),
        (("--bits", "8", "--trainer", "answer"), "8-bit base"),
        (("--target-modules", "q_proj,lm_head", "--trainer", "trl"), "trained embedding or head"),
        (("--modules-to-save", "embed_tokens", "--trainer", "trl"), "trained embedding or head"),
        (("--max-seq-length", "8192", "--trainer", "trl"), "3584 tokens"),
    ],
)
def test_a_setting_near_the_measured_ones_widens_the_interval_and_says_so(words: tuple[str, ...], noted: str) -> None:
    """Ten per cent on each side beyond the formulas' own."""
    found = _ask("--model", "Llama-3.1-8B", "--vram", "80GiB", "--batch-size", "1", "--max-seq-length", "512", *words)
    assert any(noted in line for line in found["basis"])
    work = Workload(TrainerName.TRL, 1, 512)
    plain = predict(LLAMA, work)
    wider = replace(plain, peak=plain.peak.widened(fitting.ESTIMATE_ERROR))
    assert wider.peak.low_bytes == round(0.9 * plain.peak.low_bytes)
    assert wider.peak.high_bytes == round(1.1 * plain.peak.high_bytes)
    assert found["high_gib"] / found["total_gib"] > 1.12


def test_a_card_without_bf16_is_outside_of_what_was_measured() -> None:
    """A T4 by its name, but not the same memory given as a size."""
    question = ("--model", "Llama-3.2-3B", "--trainer", "trl")
    by_name, by_size = _one(*question, "--card", "T4"), _one(*question, "--vram", "14.56GiB")
    assert any("bf16" in line for line in by_name["basis"])
    assert by_name["high_gib"] == pytest.approx(1.1 * by_size["high_gib"], abs=0.001)


# parameters


def test_lora_by_name_counts_an_image_towers_linears_too() -> None:
    """Gemma 3's tower has q, k and v of its own: r (in + out) for 34 layers and for 27."""
    text = 34 * ((2560 + 2048) + (2560 + 1024))
    tower = 27 * 2 * (1152 + 1152)
    assert terms.lora_parameters(GEMMA, TRL) == 16 * (text + tower)


def test_embedding_and_head_as_targets_or_trained_as_a_whole() -> None:
    """LoRA on either is r (words + hidden); a whole one is every number of it, with its gradient and moments."""
    words, hidden = LLAMA.vocab_size, LLAMA.hidden_size
    plain = terms.lora_parameters(LLAMA, TRL)
    more = replace(TRL, target_modules=(*TRL.target_modules, "embed_tokens", "lm_head"))
    assert terms.lora_parameters(LLAMA, more) - plain == 16 * 2 * (words + hidden)
    whole = replace(TRL, modules_to_save=("lm_head",), gradient_accumulation_steps=4)
    assert terms.whole_parameters(LLAMA, whole) == words * hidden
    grown = terms.lora_bytes(LLAMA, whole) - terms.lora_bytes(LLAMA, replace(whole, modules_to_save=()))
    assert grown == words * hidden * (2 + 2 + 4)


def test_doras_magnitudes_stay_in_fp32() -> None:
    """One number for each output of q and v, with weight, gradient and moments in fp32."""
    dora = replace(TRL, dora=True, gradient_accumulation_steps=4)
    count = 32 * (4096 + 1024)
    assert terms.magnitude_parameters(LLAMA, dora) == count
    grown = terms.lora_bytes(LLAMA, dora) - terms.lora_bytes(LLAMA, replace(dora, dora=False))
    assert grown == count * (4 + 4 + 8)


def test_an_unquantised_base_keeps_lora_in_fp32() -> None:
    """TRL casts adapters to bf16 for quantised bases alone."""
    assert TRL.adapter_bytes == replace(TRL, use_4bit=False, use_8bit=True).adapter_bytes == 2
    assert replace(TRL, use_4bit=False).adapter_bytes == 4


def test_eight_bit_weights_are_one_byte_and_a_scale_for_each_output() -> None:
    """Llama-3.1-8B's seven projections of 32 layers."""
    eight = replace(TRL, use_4bit=False, use_8bit=True)
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    outputs = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    assert terms.linear_bytes(LLAMA, eight) == weights + 4 * outputs


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [("adamw_torch", 4), ("adamw_8bit", 2), ("lion_32bit", 4), ("lion_8bit", 1), ("adafactor", 0.5), ("sgd", 0)],
)
def test_optimizers_by_the_bytes_of_their_state(optimizer: str, state: float) -> None:
    """Beside a bf16 adapter, whose moments torch's AdamW keeps in bf16, too."""
    count = terms.lora_parameters(LLAMA, TRL)
    assert terms.optimizer_bytes(LLAMA, replace(TRL, optimizer=optimizer)) == count * state


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_8bit"])
def test_paged_states_are_host_memory(optimizer: str) -> None:
    """None of it on the card, all of it in the process's host memory."""
    paged, plain = replace(TRL, optimizer=optimizer), replace(TRL, optimizer="sgd")
    state = terms.optimizer_bytes(LLAMA, paged)
    assert state > 0
    assert terms.lora_bytes(LLAMA, paged) == terms.lora_bytes(LLAMA, plain)
    host = [fitting.host_needs(LLAMA, work).memory_bytes for work in (paged, plain)]
    assert host[0] - host[1] == state


def test_host_memory_and_disk_follow_from_the_parameters() -> None:
    """16 bits a parameter for model and merge; a checkpoint is what is trained with its state; Unsloth moves inputs."""
    host = fitting.host_needs(LLAMA, TRL)
    assert host.model_bytes == host.merged_bytes == 2 * parameter_count(LLAMA)
    assert host.checkpoint_bytes == terms.lora_parameters(LLAMA, TRL) * (2 + 4)
    moved = fitting.host_needs(LLAMA, replace(TRL, trainer=TrainerName.UNSLOTH)).memory_bytes - host.memory_bytes
    assert moved == 2 * TRL.tokens * LLAMA.hidden_size * LLAMA.num_hidden_layers


# several cards


def test_two_cards_hold_the_whole_each_or_share_it() -> None:
    """DDP: one card's and the trained gradients; ZeRO-3 and FSDP: less than one card's, and more than half."""
    one = predict(LLAMA, TRL)
    ddp = on_several_cards(one, LLAMA, 2, "ddp")
    assert ddp.peak.peak_bytes - one.peak.peak_bytes == terms.trained_bytes(LLAMA, TRL)
    for sharing in ("fsdp", "zero3"):
        part = on_several_cards(one, LLAMA, 2, sharing)
        assert one.peak.peak_bytes / 2 < part.peak.peak_bytes < one.peak.peak_bytes
        assert sum(term.size_bytes for term in part.terms if term.at_peak) == part.peak.peak_bytes
    found = _one("--model", "Llama-3.1-8B", "--vram", "10GiB", "--trainer", "trl", "--cards", "2", "--sharing", "zero3")
    assert any("an estimate: ZeRO-3" in line for line in found["basis"])


# what makes it fit


def test_the_cheapest_change_that_is_enough_is_named_alone() -> None:
    """Neither Liger nor half the batch is; a quarter of it is, with as many rows in a step, and a question shows it."""
    model = ("--model", "Llama-3.1-8B", "--vram", "9.64GiB", "--target-modules", "all-linear")
    question = (*model, "--max-seq-length", "2048")
    asked = ("--trainer", "trl", "--batch-size", "4")
    found = _ask(*question, *asked)
    assert found["changes"] == ["batch 1 with 16 accumulation steps (the same step, a little slower)"]
    for words, fits in (
        (asked, False),
        (("--trainer", "liger", "--batch-size", "4"), False),
        (("--trainer", "trl", "--batch-size", "2", "--gradient-accumulation-steps", "8"), False),
        (("--trainer", "trl", "--batch-size", "1", "--gradient-accumulation-steps", "16"), True),
    ):
        assert (_ask(*question, *words)["verdict"] == "fits") is fits


def test_several_changes_together_leave_out_what_is_not_needed() -> None:
    """Each of them is needed: without one the run does not surely fit; the cheapest come first."""

    def fits(work: Workload) -> Forecast | None:
        return predict(LLAMA, work) if work.batch_size <= 2 and work.recompute else None

    work = replace(TRL, batch_size=8, recompute=False)
    change = fitting.changes(work, fits, is_known=True)
    assert change is not None
    with speaking("en"):
        assert [str(words).split(" (")[0] for words in change.words] == [
            "gradient_checkpointing=True",
            "batch 2 with 4 accumulation steps",
        ]
    assert fitting.changes(work, lambda _: None, is_known=True) is None


def test_where_no_change_helps_a_larger_card_is_named() -> None:
    """Llama-3.1-70B on an RTX 3080: none of the offers; the smallest known card on which it fits."""
    found = _one("--model", "Llama-3.1-70B", "--card", "RTX 3080", "--trainer", "trl")
    assert (found["changes"], found["larger_card"]) == ([], "RTX A6000")


@pytest.mark.parametrize("setting", [("--batch-size", "1", "--max-seq-length", "512"), ()])
def test_where_naming_the_trainer_decides_this_is_said(setting: tuple[str, ...]) -> None:
    """No change makes every program fit 10 GiB; the trainers that are named fit where they are asked about alone."""
    question = ("--model", "Llama-3.1-8B", "--vram", "10GiB", *setting)
    found = _ask(*question)
    largest = {name: _ask(*question, "--trainer", name)["largest"] for name in TRAINERS}
    assert found["changes"] == []
    assert 0 < len(found["fitting_trainers"]) < len(TRAINERS)
    assert found["fitting_trainers"] == [name for name in TRAINERS if largest[name]]
    with speaking("en"):
        said = CliRunner().invoke(app, ["fit", *question], env={"STEPH_LANGUAGE": "en", "HF_HUB_OFFLINE": "1"}).output
    assert "name it with --trainer" in said
    again = shlex.join(["steph", "fit", *question, "--trainer", found["fitting_trainers"][0]])
    assert f"narrows the prediction, for example: {again}\n" in said
    assert "no change that is known makes it fit" not in said


def test_where_a_change_fits_only_with_a_named_trainer_the_command_to_name_it_is_given() -> None:
    """8 rows of 2048 tokens on 10 GiB: no change makes every program fit, one makes a named program fit."""
    question = ("--model", "Llama-3.1-8B", "--vram", "10GiB", "--batch-size", "8", "--max-seq-length", "2048")
    found = _ask(*question, "--packing")
    named = {name: _ask(*question, "--packing", "--trainer", name)["changes"] for name in TRAINERS}
    assert (found["changes"], found["fitting_trainers"]) == ([], [])
    assert found["changing_trainers"] == [name for name in TRAINERS if named[name]] != []
    said = CliRunner().invoke(app, ["fit", *question, "--packing", "--language", "en"], env={"HF_HUB_OFFLINE": "1"})
    again = shlex.join(["steph", "fit", *question, "--packing", "--trainer", found["changing_trainers"][0]])
    assert again in said.output.replace("\n", " ")


def test_where_no_trainer_fits_none_is_offered() -> None:
    """Llama-3.1-70B on an RTX 3080, whoever trains it."""
    found = _one("--model", "Llama-3.1-70B", "--card", "RTX 3080")
    assert (found["changes"], found["fitting_trainers"], found["changing_trainers"]) == ([], [], [])


# counted by transformers


def _answer(**more: object) -> dict[str, Any]:
    """What child/count.py prints of a Llama of two layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000, "max_position_embeddings": 512}
    projections = {"q_proj": (64, 64), "k_proj": (64, 32), "v_proj": (64, 32), "o_proj": (64, 64)}
    projections |= {"gate_proj": (64, 128), "up_proj": (64, 128), "down_proj": (128, 64)}
    linears = [[name, *shape, 2] for name, shape in projections.items()]
    weights = sum(2 * inputs * outputs for inputs, outputs in projections.values())
    parameters = weights + 2 * 64 * 1000 + 5 * 64
    return {
        **{"model_type": "llama", "sizes": sizes, "embedding": 64000, "head": 64000, "linears": linears},
        **{"parameters": parameters, **more},
    }


def test_a_counted_model_of_a_measured_family_has_its_formulas() -> None:
    """The same shape as its config gives; a tower's linears and other parameters are beside it."""
    plain = shape_of_counts(_answer())
    assert (plain.model_type, plain.more_linears, plain.more_parameters) == ("llama", (), 0)
    found = _answer()
    tower = [*found["linears"], ["q_proj", 32, 32, 3]]
    seen = shape_of_counts({**found, "linears": tower, "parameters": found["parameters"] + 3 * 32 * 32 + 77})
    assert (seen.more_linears, seen.more_parameters) == ((Linear("q_proj", 32, 32, 3),), 77)
    assert seen.family.is_measured
    biases = 2 * (64 + 32 + 32)
    text = {"model_type": "qwen2_5_vl_text", "parameters": found["parameters"] + biases}
    assert shape_of_counts({**found, **text}).model_type == "qwen2"


@pytest.mark.parametrize("change", [{"model_type": "falcon"}, {"linears": [["query_key_value", 64, 192, 2]]}])
def test_a_counted_model_of_another_build_is_counted_and_not_foreseen(change: dict[str, Any]) -> None:
    """Another family, or linears that the family's formulas do not have: the parameters are all there, no formula."""
    found = _answer(**change)
    shape = shape_of_counts(found)
    assert not shape.family.is_measured
    assert parameter_count(shape) == found["parameters"]


class Counter:
    """A stand-in for the pipeline's interpreter: answers from a file, and notes each time that it was asked."""

    def __init__(self, folder: Path, answer: str, status: int = 0) -> None:
        self.folder, self.python = folder, folder / "bin" / "python"
        self.python.parent.mkdir()
        (folder / "answer").write_text(answer)
        stream = ">&2" if status else ""
        script = f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/asked\ncat {folder}/answer {stream}\nexit {status}\n'
        self.python.write_text(script)
        self.python.chmod(0o755)
        self.heard: list[Message] = []

    def count(self, config: Path, adapter: dict[str, Any] | None = None) -> Counted:
        """Ask as the command does."""
        cache = self.folder / "cache"
        options = LoraOptions(None, 16, (), False, str(self.python), cache, self.heard.append)
        return options.count("a model", config, adapter)

    @property
    def asked(self) -> Sequence[str]:
        """The command lines so far."""
        return (self.folder / "asked").read_text().splitlines()


def test_a_count_is_made_once_and_says_so_first(tmp_path: Path) -> None:
    """The second time it is read; another adapter or another configuration is another question."""
    config = tmp_path / "config.json"
    config.write_text("{}")
    adapter = {"lora": 5, "magnitude": 6, "whole": 7, "modules": ["q_proj"]}
    python = Counter(tmp_path, json.dumps({**_answer(), "adapter": adapter}))
    first, again = python.count(config, {"r": 8}), python.count(config, {"r": 8})
    assert first == again
    assert first.adapter == AdapterCount(5, 6, 7)
    assert (len(python.asked), [message.id for message in python.heard]) == (1, ["fit.counting"])
    assert python.heard[0].values["model"] == "a model"
    python.count(config, {"r": 16})
    config.write_text('{"changed": true}')
    python.count(config, {"r": 16})
    assert len(python.asked) == 3


def test_a_hub_is_asked_once_for_a_configuration_and_nothing_else(tmp_path: Path) -> None:
    """The next question is answered from the cache, also offline; no weights are asked for."""
    model = FakeModel(files={"config.json": b'{"model_type": "falcon"}', "model.safetensors": b"weights"})
    with FakeHub({"some/model": model}) as hub:
        found = [hub_config("some/model", tmp_path, hub.url) for _ in range(2)]
        assert len(hub.asked("config.json")) == 1
        assert hub.asked("model.safetensors|/api/") == []
    assert json.loads(found[0].read_text()) == {"model_type": "falcon"}
    assert hub_config("some/model", tmp_path, "http://127.0.0.1:9") == found[0]


@pytest.mark.parametrize("name", ["some/other", "some/broken", "some/list"])
def test_a_hub_without_a_configuration_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not there, no JSON, no object, or offline: the model's name is said."""
    answers = {"some/broken": b"<html>", "some/list": b"[1]"}
    with FakeHub({model: FakeModel(files={"config.json": told}) for model, told in answers.items()}) as hub:
        with pytest.raises(CountingError, match=name):
            hub_config(name, tmp_path, hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(CountingError, match="HF_HUB_OFFLINE"):
            hub_config(name, tmp_path / "empty", hub.url)


def test_what_can_not_be_counted_is_one_line_and_not_kept(tmp_path: Path) -> None:
    """The last line of what transformers said; asked again the next time."""
    config = tmp_path / "config.json"
    config.write_text("{}")
    python = Counter(tmp_path, "a warning\nValueError: no such model", status=2)
    for _ in range(2):
        with pytest.raises(CountingError, match=r"ValueError: no such model"):
            python.count(config)
    assert len(python.asked) == 2


@pytest.mark.parametrize("answer", ["", "done", "[1]"])
def test_an_interpreter_that_answers_otherwise_is_one_line(tmp_path: Path, answer: str) -> None:
    """One that prints nothing, words or no object, and ends well all the same."""
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(CountingError, match="a model"):
        Counter(tmp_path, answer).count(config)
    assert not (tmp_path / "cache").exists()


def _asked(tmp_path: Path, python: str, targets: str | None, saved: tuple[str, ...] = ()) -> LoraOptions:
    return LoraOptions(targets, 16, saved, False, python=python, cache=tmp_path / "cache", tell=lambda _: None)


def test_plain_targets_of_a_known_model_are_answered_without_an_interpreter(tmp_path: Path) -> None:
    """By name, all of them, or none named: q and v, or the linear that holds them."""
    missing = str(tmp_path / "none")
    assert subject("Phi-4", _asked(tmp_path, missing, None)).targets == ("qkv_proj",)
    assert subject("Qwen3-8B", _asked(tmp_path, missing, None)).targets == ("q_proj", "v_proj")
    every = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert subject("Phi-4", _asked(tmp_path, missing, "all-linear")).targets == every


@pytest.mark.parametrize(
    ("model", "targets", "saved"),
    [
        ("Llama-3.1-8B", r".*layers\.[0-3]\..*q_proj", ()),
        ("Llama-3.1-8B", "q_proj", ("input_layernorm",)),
        ("Qwen3-30B-A3B", "all-linear", ()),
    ],
)
def test_what_no_name_says_is_counted_by_peft(tmp_path: Path, model: str, targets: str, saved: tuple[str, ...]) -> None:
    """A regular expression, other modules trained as a whole, and all of a mixture of experts."""
    answer = {**_answer(), "adapter": {"lora": 5, "magnitude": 0, "whole": 1, "modules": ["q_proj"]}}
    python = Counter(tmp_path, json.dumps(answer))
    found = subject(model, _asked(tmp_path, str(python.python), targets, saved))
    assert found.adapter == AdapterCount(5, 0, 1)
    assert found.targets == ("q_proj",)
    adapter = json.loads(python.asked[0].partition("--adapter ")[2])
    assert adapter["target_modules"] == (["q_proj"] if targets == "q_proj" else targets)


def test_a_model_folder_that_the_formulas_refuse_is_counted(tmp_path: Path) -> None:
    """A family of no row, by its config.json; garbage is not handed to an interpreter."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "falcon"}')
    python = Counter(tmp_path, json.dumps(_answer(model_type="falcon")))
    assert subject(str(folder), _asked(tmp_path, str(python.python), "q_proj")).shape.model_type == "falcon (counted)"


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "Llama-3.1-8B", "gemma-3-4b-it", "Mistral-7B-Instruct-v0.3", "phi-4"])
def test_models_that_people_name_are_in_the_table(name: str) -> None:
    """By what follows the slash, whatever the case."""
    assert model_shape(name.upper()) == model_shape(name)
    assert {"openai/gpt-oss-20b", "Qwen/Qwen3-30B-A3B", "google/gemma-3-4b"} <= set(COMMON)
