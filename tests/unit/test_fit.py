"""`steph fit`: verdicts from the command line, quickly and without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from measured_records import two_lengths
from steph.base.messages import speaking
from steph.base.terms import StageId, TrainerName
from steph.base.units import GIB
from steph.cli import app
from steph.contract.settings import CARDS, Card, card_by_name
from steph.memory.forecast import BUILT_IN_CONSTANTS, predict
from steph.memory.shapes import BUILT_IN, config_of
from steph.memory.terms import TRAINERS, Workload
from steph.record.events import AttemptEnded, ModelChosen, StageStarted
from steph.record.values import Record
from steph.run.journal import Journal, opened_event
from typer.testing import CliRunner

PLUGINS = Path(__file__).parents[2] / "plugins"
QUESTION = ("fit", "--model", "Qwen/Qwen3-8B", "--vram", "20GiB")
ONE = ("--batch-size", "2", "--max-seq-length", "1024")
BESIDE = {"basis", "host_memory_gib", "disk_gib", "changes", "larger_card"}
KEYS = {"peak_allocated_gib", "peak_reserved_gib", "total_gib", "low_gib", "high_gib", "verdict", "terms"}


def _ask(*words: str) -> tuple[int, str]:
    with speaking("en"):  # and the command's own choice ends with it
        result = CliRunner().invoke(app, list(words), env={"STEPH_LANGUAGE": "en", "HF_HUB_OFFLINE": "1"})
    return result.exit_code, result.output


def test_json_has_the_promised_keys() -> None:
    """One setting is one object of just these, whose terms add up to the total; a grid's rows name their setting."""
    status, text = _ask(*QUESTION, *ONE, "--trainer", "answer", "--json")
    found = json.loads(text)
    assert status == 0
    assert found.keys() == KEYS | BESIDE | {"largest"}
    assert sum(found["terms"].values()) == pytest.approx(found["total_gib"], abs=0.001)
    assert found["verdict"] == "fits"
    whole = json.loads(_ask(*QUESTION, "--trainer", "full", "--json")[1])
    grid = whole["grid"]
    assert whole.keys() == BESIDE | {"grid", "largest"}
    assert all(row.keys() == KEYS | {"batch_size", "max_seq_length"} for row in grid)


def test_the_plain_trainer_needs_the_rented_card_and_the_other_does_not() -> None:
    """Qwen3-8B on an RTX 3080: the fp32 upcast decides."""
    small_card = ("fit", "--model", "Qwen/Qwen3-8B", "--vram", "9.64GiB", "--json", *ONE)
    assert json.loads(_ask(*small_card, "--trainer", "full")[1])["verdict"] == "does_not_fit"
    assert json.loads(_ask(*small_card, "--trainer", "answer")[1])["verdict"] == "fits"


def test_without_a_setting_the_whole_grid_is_shown() -> None:
    """Every batch and length has its verdict, and the largest that fits is one of those that fit."""
    question = (*QUESTION, "--trainer", "full")
    found = json.loads(_ask(*question, "--json")[1])
    verdicts = {(row["batch_size"], row["max_seq_length"]): row["verdict"] for row in found["grid"]}
    assert set(verdicts.values()) == {"fits", "too_close", "does_not_fit"}
    largest = found["largest"]
    assert verdicts[largest["batch_size"], largest["max_seq_length"]] == "fits"
    text = _ask(*question)[1]
    assert f"--batch-size {largest['batch_size']} --max-seq-length {largest['max_seq_length']}" in text


def test_a_config_file_is_enough(tmp_path: Path) -> None:
    """A model folder is read for its shape alone: the same answer as the built-in name."""
    (tmp_path / "config.json").write_text(json.dumps(config_of(BUILT_IN["Qwen/Qwen3-8B"])))
    by_folder = _ask("fit", "--model", str(tmp_path), "--vram", "20GiB", "--json", *ONE)
    assert by_folder == _ask(*QUESTION, "--json", *ONE)


def test_lora_on_all_projections_and_other_settings_count() -> None:
    """Each setting that costs memory raises the total."""
    question = (*QUESTION, *ONE, "--trainer", "full", "--json")
    base = json.loads(_ask(*question)[1])["total_gib"]
    for more in (("--target-modules", "all"), ("--lora-r", "64"), ("--no-double-quant",)):
        assert json.loads(_ask(*question, *more)[1])["total_gib"] > base


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--model", "nobody/none", "--vram", "8GiB"), "steph: --model nobody/none: no folder"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "much"), "--vram"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--trainer", "best"), "--trainer best"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--target-modules", "q_porj"), "q_porj"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--from-record", "none"), "none"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--data", "rows.jsonl"), "--tokenizer"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "20"), "GiB"),
        (("--model", "Qwen/Qwen3-8B"), "--card"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--card", "T4"), "either"),
        (("--model", "Qwen/Qwen3-8B", "--card", "RTX 9999"), "--card RTX 9999"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "-3GiB"), "--vram"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--recompute", "auto"), "on, off"),
        (("--model", "Qwen/Qwen3-8B", "--vram", "8GiB", "--target-modules", "q_proj,,v_proj"), "''"),
        (("--model", "~nobody-at-all/x", "--vram", "8GiB"), "steph: --model ~nobody-at-all"),
        (("--model", "x" * 5000, "--vram", "8GiB"), "name too long"),
        (("--model", "Qwen3-8B", "--vram", "8GiB", "--bits", "5"), "--bits 5"),
        (("--model", "Qwen3-8B", "--vram", "8GiB", "--sharing", "mp"), "--sharing mp"),
        (("--model", "Qwen3-8B", "--vram", "8GiB", "--optimizer", "adamm"), "adamm"),
        (("--model", "gemma-3-4b", "--vram", "8GiB", "--target-modules", ".*q_proj"), "config.json"),
    ],
)
def test_a_bad_option_is_one_line(words: tuple[str, ...], named: str) -> None:
    """Exit status 2 and one line that names the option or its value."""
    status, text = _ask("fit", *words)
    assert status == 2
    assert named in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    "content", ["[]", '"x"', "{", "[" * 100_000, '{"model_type": "qwen2"}', '{"model_type": ["qwen2"]}', "\0"]
)
def test_a_config_of_garbage_is_one_line(tmp_path: Path, content: str) -> None:
    """Whatever lies in a config.json, the answer is a line and not a traceback."""
    path = tmp_path / "config.json"
    path.write_text(content)
    status, text = _ask("fit", "--model", str(path), "--vram", "8GiB")
    assert status == 2
    assert text.startswith(f"steph: --model {path}: ")
    assert len(text.splitlines()) == 1


def _written(folder: Path, record: Record) -> Path:
    """A record's folder under `folder`/runs, as a run would have left it."""
    journal = Journal(folder / "runs" / record.id)
    h1, h2 = record.stages[StageId.H1], record.stages[StageId.H2]
    journal.append(opened_event(record.id, record.context))
    journal.append(StageStarted(at="", stage=StageId.H1))
    assert h1.model is not None
    journal.append(ModelChosen(at="", stage=StageId.H1, model=h1.model))
    journal.append(StageStarted(at="", stage=StageId.H2))
    for attempt in (*h2.attempts, *h2.calibration_attempts):
        journal.append(AttemptEnded(at="", attempt=attempt))
    journal.close()
    return journal.folder


def test_a_record_of_two_lengths_sets_slope_and_intercept(tmp_path: Path) -> None:
    """By id or folder; the trainer is the record's, the prediction what it measured, and the text says so."""
    truth = replace(BUILT_IN_CONSTANTS, logits_scale=1.5, offset_bytes=0.2 * GIB)
    record = two_lengths("full", truth)
    folder = _written(tmp_path, record)
    due = predict(BUILT_IN["Qwen/Qwen3-8B"], Workload(TrainerName.FULL, 2, 1024, gradient_accumulation_steps=4), truth)
    for named in ((str(folder),), (record.id, "--reports", str(tmp_path))):
        found = json.loads(_ask(*QUESTION, *ONE, "--json", "--from-record", *named)[1])
        assert found["peak_allocated_gib"] == pytest.approx(due.peak_allocated_bytes / GIB, rel=0.001)
    assert "slope and intercept by two measured lengths" in _ask(*QUESTION, "--from-record", str(folder))[1]
    other = _ask(*QUESTION, *ONE, "--from-record", str(folder), "--trainer", "answer")[1]
    assert "trainer answer" in other
    assert "the record's trainer is full" in other


def test_a_record_that_no_formula_explains_says_nothing_of_another_model(tmp_path: Path) -> None:
    """An undescribed pipeline with 12 GiB too much: its own model is predicted, another one is refused in a line."""
    folder = _written(tmp_path, two_lengths("undescribed", replace(BUILT_IN_CONSTANTS, offset_bytes=12 * GIB)))
    own = ("fit", "--model", "Qwen/Qwen1.5-1.8B-Chat", "--vram", "20GiB", "--from-record", str(folder))
    assert _ask(*own)[0] == 0
    status, text = _ask(*QUESTION, "--from-record", str(folder))
    assert status == 2
    assert "no formula holds" in text
    assert len(text.splitlines()) == 1


def test_a_records_model_of_unknown_shape_is_the_records_and_not_the_options(tmp_path: Path) -> None:
    """The line names the record and its model; the model that was asked about is none of it."""
    record = two_lengths("full", BUILT_IN_CONSTANTS)
    h1 = record.stages[StageId.H1]
    assert h1.model is not None
    unknown = h1.model_copy(update={"model": h1.model.model_copy(update={"name": "no/body", "snapshot_path": None})})
    folder = _written(tmp_path, record.model_copy(update={"stages": {**record.stages, StageId.H1: unknown}}))
    status, text = _ask(*QUESTION, "--from-record", str(folder))
    assert status == 2
    assert text.startswith(f"steph: --from-record {folder}: no/body: no folder with a config.json")


def test_a_card_is_known_by_its_name() -> None:
    """The same as by its memory, and both text and JSON say what is usable of it and how that is known."""
    model = ("fit", "--model", "Qwen/Qwen3-8B", *ONE)
    by_size = json.loads(_ask(*model, "--vram", "9.64GiB", "--json")[1])
    by_name = json.loads(_ask(*model, "--card", "NVIDIA GeForce rtx3080", "--json")[1])
    words = by_name.pop("card")
    assert by_name == by_size
    assert words == "RTX 3080: 9.64 GiB usable (measured), compute capability 8.6, bf16"
    assert "T4: 14.56 GiB usable (documented), compute capability 7.5, no bf16" in _ask(*model, "--card", "Tesla T4")[1]


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_has_less_than_its_makers_figure(card: Card) -> None:
    """Where the name has gigabytes, what is usable is less and no less than nine tenths; each is found by its name."""
    assert card_by_name(card.name.lower()) is card
    named = re.search(r"(\d+)GB", card.name)
    assert named is None or 0.9 * int(named[1]) < card.usable_gib < int(named[1])


def test_without_a_trainer_the_answer_begins_with_what_fits_with_each() -> None:
    """The useful part first: each trainer's largest setting, which is the one that it has when it is named."""
    model = ("fit", "--model", "Qwen/Qwen3-8B", "--card", "RTX 3080")
    text, found = _ask(*model)[1], json.loads(_ask(*model, "--json")[1])
    largest = found["largest_by_trainer"]
    assert largest.keys() == {*TRAINERS}
    assert (largest["full"], largest["unsloth"]) == (None, {"batch_size": 4, "max_seq_length": 2048})
    for name in ("full", "trl", "unsloth"):
        alone = json.loads(_ask(*model, "--trainer", name, "--json")[1])["largest"]
        assert (alone and {key: alone[key] for key in ("batch_size", "max_seq_length")}) == largest[name], name
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if "batch 4 of 2048 tokens" in line)
    assert "unsloth" in lines[first]
    assert first < next(n for n, line in enumerate(lines) if "too_close" in line)
    assert not any("none" in line for line in lines[: first - 6])


def test_a_card_without_a_figure_of_its_own_has_no_larger_share_than_its_sisters() -> None:
    """What is taken from other cards is on the safe side: one of its or the last generation has a larger share."""
    known = [card for card in CARDS.values() if card.basis != "sister"]
    for card in CARDS.values():
        sisters = [one for one in known if card.capability[0] - one.capability[0] in (0, 1)]
        assert any(card.usable_gib / card.sold_as_gb <= one.usable_gib / one.sold_as_gb for one in sisters), card


def test_it_answers_without_torch() -> None:
    """A fresh process: the whole command, imports included; nothing heavy comes in. Its seconds: benchmarks.starts."""
    code = (
        "import sys; from steph.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, *QUESTION], check=True, env={"PYTHONPATH": str(PLUGINS)})


def test_real_rows_count_where_the_trainer_pads_to_them(tmp_path: Path) -> None:
    """A training file with short rows lowers the answer trainer's prediction and leaves the plain one's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"word": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"input": "word " * 100, "output": "a"}) + "\n")
    data = ("--data", str(rows), "--tokenizer", str(tmp_path / "tokenizer.json"))
    for trainer, changes in (("answer", True), ("full", False)):
        words = (*QUESTION, *ONE, "--trainer", trainer, "--json")
        whole, real = (json.loads(_ask(*words, *more)[1])["total_gib"] for more in ((), data))
        assert (real < whole) is changes


def test_the_shape_of_a_tied_model_counts_its_embedding_once() -> None:
    """A tied head costs nothing of its own."""
    from steph.memory.terms import embedding_bytes

    tied = replace(BUILT_IN["Qwen/Qwen3-8B"], tie_word_embeddings=True)
    work = Workload(TrainerName.ANSWER, 1, 256)
    assert 2 * embedding_bytes(tied, work) == embedding_bytes(BUILT_IN["Qwen/Qwen3-8B"], work)
