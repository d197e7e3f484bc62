"""Words around a loss that is NaN: which of them tell of one, and which only speak of the possibility."""

from __future__ import annotations

import pytest
from steph.base.terms import Cause
from steph.diagnose.engine import diagnose

METRICS = "{'train_runtime': '1.0', 'train_loss': '1.2', 'epoch': '1.0'}\n"


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: loss is nan at this step, skipping optimizer update",
        "step 7: loss is nan",
        "[rank0]: loss=nan",
        "loss: nan, stopping",
        "train_loss became NaN after 3 steps",
        "loss: tensor(nan, device='cuda:0')",
        "the loss was nan or inf in 6 of 10 steps",
        "val_loss: nan",
        "Epoch: [3][7427/24290]  Time 2.460 (2.266)      Loss nan (nan)",
        "[30/100] loss NaN lr 1e-4",
        "Epoch 1/3 - loss nan - lr 2e-4",
        "ステップ 30 / 100 損失 nan",
        "Epoch 0:  50%|#####     | 5/10 [00:03<00:03, train_loss=nan, val_loss=1.2]",
    ],
)
def test_a_nan_that_was_there_is_the_cause(line: str) -> None:
    """Told in a sentence or as a value, behind a prefix or in a bar, also where all ends with 0."""
    assert diagnose(f"{line}\n{METRICS}", 0).cause is Cause.NAN_LOSS


@pytest.mark.parametrize(
    "line",
    [
        "INFO loss is nan guard enabled",
        "INFO loss: nan-guard on",
        "INFO stop the training if the loss is nan, else go on",
        "INFO when loss is NaN the batch is skipped",
        "INFO check whether loss is nan: on",
        "INFO whenever loss is nan the batch is skipped",
        "INFO checks whether loss: nan",
        "INFO runs until loss is nan",
        "INFO in case loss is nan, the step is undone",
        "INFO stops on loss: nan",
        "Epoch 0:  50%|#####     | 5/10 [00:03<00:03, train_loss=1.23, val_loss=nan]",
        "Epoch 0:   0%|          | 0/10 [00:00<?, ?it/s, eval_loss=nan]",
        "Epoch 0:   0%|          | 0/10 [00:00<?, ?it/s, dev_loss=nan]",
        "Epoch: [0][10/100]  Time 1.2 (1.3)  Loss 3.1 (3.4)  ValLoss nan (nan)",
        "INFO loss is nan-safe",
        "INFO best loss: nan",
        "INFO loss nan count: 0",
        "INFO batches with loss nan 0",
        "step 7 loss nan lr 1e-4\nstep 8 loss 2.3 lr 1e-4",
        "ステップ 7 損失 nan\nステップ 8 損失 2.3",
        "INFO nan checks of the loss: enabled",
    ],
)
def test_words_about_nan_are_no_nan(line: str) -> None:
    """A guard's name, a condition, and a bar before its first validation are harmless."""
    assert diagnose(f"{line}\n{METRICS}", 0).cause is Cause.NONE


@pytest.mark.parametrize("head", ["Step\tTraining Loss", "Epoch\tTraining Loss\tValidation Loss"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_notebooks_table_is_read(head: str, value: str) -> None:
    """The Trainer draws one by steps or by epochs."""
    assert diagnose(f"{head}\n1\t1.234000\n2\t{value}\n", 0).cause is Cause.NAN_LOSS
