"""Advice fits the log: nobody is told what they did already, and settings have their program's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steph.base.messages import Language, text
from steph.base.terms import Cause, Phase
from steph.diagnose.command import run_diagnose
from steph.diagnose.engine import diagnose
from steph.record.values import Diagnosis

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
STEP = f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in <module>\n    trainer.train()\n{OOM}\n'
LOAD = STEP.replace("trainer.train()", "AutoModelForCausalLM.from_pretrained(name)")


def told(log: str, language: Language = "en") -> str:
    """All that a person is told about a log."""
    found = diagnose(log, 1, language=language)
    return "\n".join((found.meaning or "", *found.advice))


def test_a_batch_of_one_is_not_lowered() -> None:
    """The first step is the next one that still helps."""
    assert "per_device_train_batch_size from 8 to 4" in told(f"per_device_train_batch_size=8\n{STEP}")
    assert "batch_size" not in told(f"per_device_train_batch_size=1\n{STEP}").replace("per_device_eval", "")
    assert "batch_size" in told(STEP)


def test_checkpointing_that_is_on_is_not_advised() -> None:
    """Nor is 4-bit that is on, nor a length that is short already."""
    known = "per_device_train_batch_size: 1, gradient_checkpointing=True, max_seq_length=2048"
    assert "max_length from 2048 to 1024" in told(f"{known}\n{STEP}")
    assert "gradient_checkpointing" not in told(f"{known}\n{STEP}")
    rest = told(f"{known}, load_in_4bit=True\n{STEP}".replace("2048", "256"))
    assert "load_in_4bit" not in rest
    assert "smaller model" in rest
    assert "load_in_4bit" not in told(f"load_in_4bit=True\n{LOAD}")
    assert "does not fit even in 4 bits" in told(f"load_in_4bit=True\n{LOAD}")


@pytest.mark.parametrize(
    ("sign", "name"),
    [
        ("[axolotl.cli.train]", "micro_batch_size"),
        ("llamafactory-cli train x.yaml", "per_device_train_batch_size"),
        ("tune run lora_finetune_single_device", "batch_size"),
        ("lm_eval --model hf", "--batch_size"),
        ('File "/env/swift/cli/sft.py"', "--per_device_train_batch_size"),
        ("python scripts/train_qwen_law_ft.py", "--batch-size"),
    ],
)
def test_settings_are_named_as_the_program_spells_them(sign: str, name: str) -> None:
    """The log shows which program it is."""
    assert f"Lower {name} " in told(f"{sign}\n{STEP}")


def test_a_share_of_trained_weights_far_above_lora_is_named() -> None:
    """24 % is no LoRA; 100 % is meant."""
    share = "trainable params: 1,361,753,856 || all params: 5,661,833,328 || trainable%: {}\n" + STEP
    assert "24 % of the model" in told(share.format("24.05"))
    assert "lm_head" not in told(share.format("100.0"))
    assert "lm_head" not in told(share.format("0.81"))


def test_other_processes_on_the_card_are_named() -> None:
    """Where this process holds a fifth of the card, its settings are not at fault."""
    message = (
        f"{OOM} GPU 0 has a total capacity of 23.69 GiB of which 102.00 MiB is free. Process 9 has 19.20 GiB memory in "
        "use. Of the allocated memory 3.80 GiB is allocated by PyTorch, and 90.00 MiB is reserved by PyTorch but "
        "unallocated."
    )
    found = diagnose(STEP.replace(OOM, message), 1, language="en")
    assert found.case == "oom_other_process"
    assert "3.8 GiB" in (found.meaning or "")
    whole = message.replace("3.80 GiB", "22.80 GiB")
    assert diagnose(STEP.replace(OOM, whole), 1).case != "oom_other_process"


def test_the_same_case_is_told_in_both_languages() -> None:
    """The diagnosis is one; its words differ."""
    found: dict[Language, Diagnosis] = {one: diagnose(STEP, 1, language=one) for one in ("ja", "en")}
    words = {"meaning": None, "advice": ()}
    assert found["ja"].model_copy(update=words) == found["en"].model_copy(update=words)
    assert len(found["ja"].advice) == len(found["en"].advice) == 2
    assert all(step.isascii() for step in found["en"].advice)
    assert all(step.endswith("。") for step in found["ja"].advice)


def test_what_the_wording_captured_stands_in_the_words() -> None:
    """The module, the argument, the column."""
    assert "trl.models" in told(
        "Traceback (most recent call last):\nModuleNotFoundError: No module named 'trl.models'\n"
    )
    drift = (
        "Traceback (most recent call last):\nTypeError: f.<locals>.g() got an unexpected keyword argument 'use_flux'\n"
    )
    assert "use_flux" in told(drift)


@pytest.mark.parametrize(
    ("frames", "before", "phase"),
    [
        ('  File "/w/evaluate.py", line 4, in main\n    PeftModel.from_pretrained(m, a)\n', "", Phase.EVAL),
        ('  File "/w/t.py", line 4, in main\n    PeftModel.from_pretrained(m, a)\n', "", Phase.EVAL),
        ('  File "/w/t.py", line 4, in train\n    x()\n', "", None),
        ('  File "/w/t.py", line 4, in train\n    x()\n', "  0%|          | 0/10 [00:00<?, ?it/s]\n", Phase.FIRST_STEP),
        ('  File "/w/t.py", line 4, in train\n    x()\n', "{'loss': 1.2, 'epoch': 0.1}\n", Phase.STEP),
        (
            '  File "/w/t.py", line 4, in main\n    ds.map(f)\n',
            "Map: 10%|#         | 1/10 [00:00<00:09,  1.00it/s]\n",
            Phase.PREPARE,
        ),
        ('  File "/env/site-packages/torch/__init__.py", line 129, in <module>\n    raise err\n', "", Phase.LOAD),
        ('  File "/env/site-packages/safetensors/torch.py", line 307, in save_file\n', "", Phase.SAVE),
    ],
)
def test_the_phase_is_what_frames_or_lines_show(frames: str, before: str, phase: Phase | None) -> None:
    """Loading an adapter to evaluate is evaluation, and no step is one before a step."""
    log = f"{before}Traceback (most recent call last):\n{frames}AcmeError: the flux is not aligned\n"
    assert diagnose(log, 1).phase is phase


@pytest.mark.parametrize(
    ("log", "case"),
    [
        (
            "{'loss': 1.0, 'grad_norm': nan, 'epoch': 0.1}\n{'loss': 0.0, 'grad_norm': nan, 'epoch': 0.2}",
            "nan_gradient_from_start",
        ),
        (
            "{'loss': 1.0, 'grad_norm': nan, 'epoch': 0.1}\n{'loss': 1.0, 'grad_norm': nan, 'epoch': 0.2}",
            "nan_gradient_from_start",
        ),
        (
            "{'loss': 0.0, 'epoch': 0.1}\n{'loss': 0.0, 'epoch': 0.2}\n{'loss': 0.0, 'epoch': 0.3}",
            "loss_zero_from_start",
        ),
        ("{'loss': 1.9, 'epoch': 0.1}\n{'loss': 4.2, 'epoch': 0.2}\n{'loss': nan, 'epoch': 0.3}", "loss_diverged"),
        ("Step\tTraining Loss\n10\t0.000000\n20\t0.000000\n30\t0.000000", "loss_zero_from_start"),
        ("Step\tTraining Loss\n10\t1.200000\n20\tnan", None),
        ("iter 10: loss 2.1, time 2.1ms\niter 20: loss nan, time 2.1ms", None),
        ("step 1 loss: 1.2 grad_norm: nan\nstep 2 loss: 1.2 grad_norm: nan", None),
    ],
)
def test_gradients_and_zeros_are_seen(log: str, case: str | None) -> None:
    """A norm that stays NaN and a loss that was never computed are a NaN loss, whatever the exit status."""
    for status in (None, 0, 1):
        found = diagnose(log, status)
        assert (found.cause, found.case) == (Cause.NAN_LOSS, case)


def test_a_log_without_failure_says_what_it_shows(tmp_path: Path) -> None:
    """`none` is no verdict of health: losses, warnings, and whether it came to its end."""
    path = tmp_path / "log.txt"
    path.write_text("WARNING: slow disk\n{'loss': 1.5, 'epoch': 0.1}\n{'loss': 1.25, 'epoch': 0.2}\n", encoding="utf-8")
    shown = run_diagnose(path, None, False, "en")
    assert "2 losses: 1.5 to 1.25" in shown
    assert text("diagnose.seen.no_metrics", "en") in shown
    assert text("diagnose.seen.metrics", "en") not in shown
    seen = json.loads(run_diagnose(path, None, True, "ja"))["seen"]
    assert any("1.5 → 1.25" in one for one in seen)
    path.write_text("{'train_runtime': 1.0, 'train_loss': 1.2}\n", encoding="utf-8")
    assert text("diagnose.seen.metrics", "en") in run_diagnose(path, None, False, "en")


def test_confidence_follows_the_wording() -> None:
    """Certain where only this cause leaves it, likely where other reasons exist, a guess where no row knows it."""
    assert diagnose(STEP, 1).confidence == "certain"
    assert diagnose(STEP.replace(OOM, "RuntimeError: CUDA error: misaligned address"), 1).confidence == "likely"
    assert diagnose(STEP.replace(OOM, "AcmeError: the flux is not aligned"), 1).confidence == "guess"
