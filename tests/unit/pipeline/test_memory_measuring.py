"""Measuring memory for the step plan, with the CUDA allocator's figures made up."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from app.fast.plan import GIB

TOKENS, LABELS = 400, 3
FREE_GIB, ALLOCATED_BYTES = 9.0, 1.5 * GIB


@pytest.fixture
def made_up_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 10 GiB card, half of which the process may use, whose peak grows by 1 MB a token and 2 MB a label."""
    import torch

    def peaks() -> Iterator[float]:
        while True:
            # three probes, then the worst batch of the first option that should fit: two micro-batches of two rows
            batches = ((64, 4), (192, 4), (192, 128), (4 * TOKENS, 4 * LABELS))
            yield from (ALLOCATED_BYTES + 1e6 * tokens + 2e6 * labels for tokens, labels in batches)

    following = peaks()
    figures = {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: next(following),
        "memory_allocated": lambda: ALLOCATED_BYTES,
        "memory_reserved": lambda: ALLOCATED_BYTES,
        "mem_get_info": lambda: (FREE_GIB * GIB, 10 * GIB),
        "get_per_process_memory_fraction": lambda: 0.5,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)


@pytest.mark.usefixtures("made_up_allocator")
def test_the_plan_follows_the_measured_growth_and_the_memory_fraction(tiny_model: Path) -> None:
    """Probes give the growth, the fraction in force the limit, Adam's moments are counted; nothing stays behind."""
    import torch
    from app.fast.memory import cuda_room, measured_plan
    from app.training.settings import parse_settings
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
    ids = list(range(TOKENS))
    rows = [{"input_ids": ids, "labels": [-100] * (TOKENS - LABELS) + ids[TOKENS - LABELS :]}]
    flags = ["--model-name", "m", "--train-file", "f", "--output-dir", "o", "--gradient-accumulation-steps", "4"]
    state = torch.random.get_rng_state()
    plan = measured_plan(parse_settings(flags), model, rows, torch.bfloat16)

    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    room = cuda_room(model)
    assert room.allowed_bytes == 5 * GIB
    assert room.used_bytes == ALLOCATED_BYTES + 14 * trainable
    predicted_gib = (room.used_bytes + 8 * (1e6 * TOKENS + 2e6 * LABELS)) / GIB
    assert f"recompute off with 4 micro-batches at once needs {predicted_gib:.2f} GiB: too much" in plan.reason
    assert (plan.gradient_checkpointing, plan.fused_micro_batches) == (False, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
