"""`steph fit` in one language at a time: its answers, its refusals, and those of the commands that take a record."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from japanese import JAPANESE
from steph.base.messages import LANGUAGES, Language, speaking
from steph.base.terms import TrainerName
from steph.cli import app
from steph.conduct.fit import fit_basis
from steph.contract.settings import CARDS
from steph.memory.calibration import Calibration
from steph.memory.forecast import BUILT_IN_CONSTANTS, SHARINGS
from steph.memory.shapes import BUILT_IN, COMMON, FAMILIES, TINY, linear_shapes
from steph.memory.terms import OPTIMIZER_BYTES, TRAINERS
from typer.testing import CliRunner

ONE = "--batch-size 2 --max-seq-length 1024"
ASKED = (
    f'--model Qwen/Qwen3-8B --card "RTX 3080" --trainer trl {ONE}',
    "--model Qwen/Qwen3-8B --vram 20GiB",
    f"--model Qwen/Qwen3-8B --vram 20GiB {ONE}",
    f"--model Qwen/Qwen3-8B --vram 20GiB --trainer answer --recompute off --bits 16 {ONE}",
    f"--model Qwen/Qwen3-8B --vram 20GiB --trainer full --recompute off --no-double-quant {ONE}",
    "--model Qwen2.5-7B --trainer unsloth --card T4 --batch-size 1 --max-seq-length 4096",
    f'--model Qwen2.5-VL-7B --card "RTX 4090" --trainer trl {ONE}',
    '--model Qwen3-30B-A3B --card "A100 80GB"',
    f'--model Qwen2.5-7B --card "RTX 4090" --cards 2 --sharing fsdp --trainer trl {ONE}',
    '--model Qwen2.5-7B --card "RTX 4090" --cards 2 --sharing zero3 --trainer full',
    '--model Qwen2.5-7B --card "RTX 4090" --cards 4',
    f'--model Qwen/Qwen2.5-7B-Instruct-AWQ --card "RTX 4090" --trainer liger {ONE}',
    "--model Qwen/Qwen3-8B --card T4 --optimizer galore_adamw",
    "--model Qwen/Qwen3-8B --card T4 --modules-to-save lm_head --trainer full",
    f"--model Qwen/Qwen3-8B --card T4 --packing --trainer full --dora {ONE}",
    '--model Qwen/Qwen3-8B --card "RTX 3090" --full-finetuning',
    '--model Qwen/Qwen3-8B --card "RTX 3090" --bits 8 --target-modules all-linear --trainer liger',
    '--model gemma-3-4b --card "RTX 3080" --bits 8 --target-modules all-linear',
    "--model meta-llama/Llama-3.1-70B --card T4",
)
REFUSED = (
    "--model Qwen/Qwen9-8B --vram 20GiB",
    '--model unsloth/llama-3-8b-bnb-4bit --card "RTX 4090" --bits 16',
    "--model Qwen/Qwen3-8B-GGUF --card T4",
    "--model Qwen/Qwen3-8B --card A100",
    '--model Qwen/Qwen3-8B --card "2x T4"',
    "--model Qwen/Qwen3-8B --card MI300X",
    "--model Qwen/Qwen3-8B --card T4 --vram 20GiB",
    "--model Qwen/Qwen3-8B --vram 20",
    "--model Qwen/Qwen3-8B --card T4 --trainer foo",
    "--model Qwen/Qwen3-8B --card T4 --recompute on,off",
    "--model Qwen/Qwen3-8B --card T4 --bits 5",
    "--model Qwen/Qwen3-8B --card T4 --cards 2 --sharing dp",
    "--model Qwen/Qwen3-8B --card T4 --optimizer foo",
    "--model Qwen/Qwen3-8B --card T4 --target-modules foo,bar",
    "--model Qwen/Qwen3-8B --card T4 --data no.jsonl",
    "--model Qwen/Qwen3-8B --card T4 --from-record none",
    "--model Qwen2.5-VL-7B --card T4 --target-modules .*foo.*",
)
# what a Japanese line holds in Latin letters: names of programs, options, settings and units
NAMES = """
    steph fit trainer bf16 compute capability GiB MiB GB MB GPU NVIDIA nvidia-smi CUDA LoRA DoRA packing FSDP
    ZeRO-3 MoE ddp torch transformers peft bitsandbytes Unsloth TRL GGUF Hub ID config json tokenizer JSON
    model_type model optimizer max_memory_allocated max_memory_reserved max-seq-length bnb_4bit_quant_storage
    use_liger_kernel True gradient_checkpointing optim paged_adamw_8bit bnb_4bit_use_double_quant load_in_4bit
    Trainer SFTTrainer StepH logits prepare_model_for_kbit_training
    adamw_torch q_proj v_proj targets target_modules reports runs record unknown fp32 awq bnb-4bit
"""
WORD = re.compile(r"[A-Za-z][\w'-]*[A-Za-z0-9]")


def _said(words: str, chosen: Language, *, command: str = "fit") -> tuple[int, str]:
    with speaking(chosen):  # and the command's own choice ends with it
        environment = {"STEPH_LANGUAGE": chosen, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"}
        result = CliRunner().invoke(app, [command, *shlex.split(words)], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def _names(asked: str) -> set[str]:
    """Every word of a name: those of the question, of the tables, and the list above."""
    tables = (
        *OPTIMIZER_BYTES,
        *TRAINERS,
        *(row.version for row in TRAINERS.values()),
        *CARDS,
        *BUILT_IN,
        *COMMON,
        *FAMILIES,
        *linear_shapes(TINY),
        *SHARINGS,
    )
    return set(WORD.findall(" ".join((asked, NAMES, *tables))))


def _english_in(text: str, asked: str) -> set[str]:
    """The words in Latin letters that are no names; options are left out."""
    return set(WORD.findall(re.sub(r"(?<![\w-])--[\w-]+", " ", text))) - _names(asked)


def _own(text: str) -> str:
    """The text without what stands in brackets: a parser's own words."""
    return re.sub(r"[（(].*[)）]", "", text)


@pytest.mark.parametrize("asked", ASKED)
def test_an_answer_is_told_in_one_language(asked: str) -> None:
    """In Japanese nothing but names has Latin letters, in English nothing is Japanese; the figures are the same."""
    said = {chosen: _said(asked, chosen) for chosen in LANGUAGES}
    assert {status for status, _ in said.values()} == {0}, said
    japanese, english = said["ja"][1], said["en"][1]
    assert _english_in(japanese, asked) == set()
    assert not JAPANESE.search(english)
    figures = [sorted(re.findall(r"\d+\.\d+", text)) for text in (japanese, english)]
    assert figures[0] == figures[1]
    for line in filter(None, map(str.strip, japanese.splitlines())):
        assert JAPANESE.search(line) or not re.search("[a-z]{3} ", line), line


@pytest.mark.parametrize("asked", REFUSED)
def test_a_refusal_is_told_in_one_language(asked: str) -> None:
    """One line, in Japanese with Japanese in it; names, options and values stay as they were typed."""
    (status, japanese), (other, english) = (_said(asked, chosen) for chosen in LANGUAGES)
    assert (status, other) == (2, 2)
    assert _english_in(japanese, asked) == set()
    assert JAPANESE.search(japanese)
    assert not JAPANESE.search(english)
    assert [len(text.splitlines()) for text in (japanese, english)] == [1, 1]


def test_the_keys_and_verdicts_of_json_are_the_same_in_every_language() -> None:
    """Programs read them: only what people read is in the language that was asked for."""
    asked = f"--model Qwen/Qwen3-8B --card T4 --trainer full --json {ONE}"
    japanese, english = (json.loads(_said(asked, chosen)[1]) for chosen in LANGUAGES)
    told = ("basis", "changes", "card")
    assert {key: value for key, value in japanese.items() if key not in told} == {
        key: value for key, value in english.items() if key not in told
    }
    assert english["terms"].keys() >= {"4-bit linears", "allocator slack"}
    assert JAPANESE.search(japanese["card"])


def test_what_a_record_gave_is_told_in_one_language() -> None:
    """Each of the six: no peaks, another trainer, off, undescribed, two lengths, corrected."""
    shape = BUILT_IN["Qwen/Qwen3-8B"]
    plain = Calibration(TrainerName.FULL, is_described=True, point_count=2, shape=shape)
    cases = (
        (replace(plain, point_count=0), "full"),
        (plain, "trl"),
        (replace(plain, is_explained=False, constants=replace(BUILT_IN_CONSTANTS, relative_error=0.4)), "full"),
        (replace(plain, is_described=False), "full"),
        (replace(plain, line=(1.0, 2.0)), "full"),
        (plain, "full"),
    )
    told = set[str]()
    for calibration, trainer in cases:
        with speaking("ja"):
            japanese = fit_basis(calibration, trainer, shape)
        with speaking("en"):
            english = fit_basis(calibration, trainer, shape)
        assert _english_in(japanese, "steph.toml") == set()
        assert JAPANESE.search(japanese)
        assert not JAPANESE.search(english)
        told.add(english)
    assert len(told) == len(cases)


@pytest.mark.parametrize("command", ["slow", "report", "compare"])
def test_a_record_that_is_not_there_is_told_in_one_language(command: str, tmp_path: Path) -> None:
    """By a name, and where there is none at all."""
    for asked in (f"elsewhere --reports {tmp_path}", f"--reports {tmp_path}"):
        (status, japanese), (_, english) = (_said(asked, chosen, command=command) for chosen in LANGUAGES)
        assert status == 2
        assert _english_in(japanese, f"{asked} pytest -m gpu") == set()
        assert JAPANESE.search(japanese)
        assert not JAPANESE.search(english)


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b'{"event": "record_opened", "version": 99}\n', b'{"event": "record_opened"}\n']
)
def test_a_record_that_can_not_be_read_is_told_in_one_language(tmp_path: Path, content: bytes) -> None:
    """Empty, of no beginning, of a newer release, or of other keys: `steph slow` and `fit --from-record` say so."""
    (tmp_path / "events.jsonl").write_bytes(content)
    for command, asked in (
        ("slow", str(tmp_path)),
        ("fit", f"--model Qwen/Qwen3-8B --card T4 --from-record {tmp_path}"),
    ):
        (status, japanese), (_, english) = (_said(asked, chosen, command=command) for chosen in LANGUAGES)
        assert status == 2
        assert _english_in(_own(japanese), f"{asked} events jsonl record_opened") == set()
        assert JAPANESE.search(japanese)
        assert not JAPANESE.search(english)


@pytest.mark.parametrize("content", ["", "{\n", "[1]\n", '{"input": "a"}\n'])
def test_a_training_file_that_can_not_be_counted_is_told_in_one_language(tmp_path: Path, content: str) -> None:
    """No rows, no JSON, no object, no answer."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "rows.jsonl").write_text(content)
    asked = f"--model Qwen/Qwen3-8B --card T4 --data {tmp_path}/rows.jsonl --tokenizer {tmp_path}/tokenizer.json"
    (status, japanese), (_, english) = (_said(asked, chosen) for chosen in LANGUAGES)
    assert status == 2
    assert _english_in(_own(japanese), f"{asked} output") == set()
    assert JAPANESE.search(japanese)
    assert not JAPANESE.search(english)
