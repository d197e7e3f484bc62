"""The doctor's checkup in full, in this process, which has the large libraries behind it.

As a program of its own: tests/unit/test_doctor_reading.py, and whole in `make accept` as it is typed.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from steph.doctor.reading import SCRIPT, read_checkup

WRONG_SCRIPT = """
from transformers import Trainer, TrainingArguments
import transformers
def train(model, args, tok):
    arguments = TrainingArguments(output_dir="x", warmup_ratio=0.03, num_train_epochs=1)
    transformers.Trainer(model=model, args=arguments, tokenizer=tok)
    dict(nowhere=1)
"""


def test_a_real_checkup_computes_in_four_bit_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """bitsandbytes here agrees with its dequantised reference, and transformers' own signatures are asked."""
    script = tmp_path / "train.py"
    script.write_text(WRONG_SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--script", str(script)])
    runpy.run_path(str(SCRIPT))["main"]()
    found = read_checkup(capsys.readouterr().out, "", 0)
    assert found.python
    assert found.python.packages["bitsandbytes"]
    assert found.four_bit
    assert found.four_bit.error is None
    assert found.four_bit.dequantised_error is not None
    assert 0.05 < found.four_bit.dequantised_error < 0.15
    assert found.four_bit.backward_error is not None
    assert found.four_bit.backward_error < 0.01
    assert found.product
    assert found.product.relative_error is not None
    assert found.libraries
    assert found.libraries.unknown_arguments == ("Trainer(tokenizer=)", "TrainingArguments(warmup_ratio=)")
    assert found.libraries.unavailable == ()
