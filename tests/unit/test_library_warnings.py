"""Which lines of libraries are warnings that a person acts on, and which ones every sound run prints."""

from __future__ import annotations

import pytest
from steph.base.terms import Severity
from steph.judge.checks_process import library_warnings, process_checks
from steph.record.values import Check

WARNINGS = (
    "UserWarning: Could not find response key `<|im_start|>assistant\n` in the following instance: x "
    "This instance will be ignored in loss calculation. Note, if this happens often, consider",
    "Unsloth: Removed 30 out of 40 samples from train_dataset where all labels were -100",
    "Token indices sequence length is longer than the specified maximum sequence length for this model (3100 > 2048).",
    "WARNING: loss is nan at this step, skipping optimizer update",
    "[rank0]: CUDA out of memory, skipping batch 17",
    "skipped batch 4: non-finite gradient",
    "WARNING rank 0 skipped 3 samples because of an exception",
    "[WARNING|supervised.py:80] Dropped lengthy example with length 3000 > 2048.",
    "[WARNING|x] llamafactory.data.template:149 >> New tokens have been added, make sure `resize_vocab` is True.",
    "Some parameters are on the meta device because they were offloaded to the cpu.",
    "WARNING:root:Some parameters are on the meta device device because they were offloaded to the disk and cpu.",
    "ValueError-like: Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM",
    "UserWarning: None of the inputs have requires_grad=True. Gradients will be None",
    "RuntimeWarning: size mismatch for base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight: copying",
    "Some weights of the model checkpoint at x were not used when initializing Qwen2ForCausalLM: ['_orig_mod.lm_head']",
    "Already found a `peft_config` attribute in the model. This will lead to having multiple adapters in the model.",
    "You are trying to modify a model with PEFT for a second time.",
    "Could not locate the best model at out/checkpoint-5/pytorch_model.bin",
    "Gradient accumulation steps mismatch: GradientAccumulationPlugin has 1, DeepSpeed config has 8.",
    "You are using packing, but the attention implementation is not flash: this may cause cross-contamination",
    "Mismatch between tokenized prompt and the start of tokenized prompt+completion. This may be due to whitespace",
    "A decoder-only architecture is being used, but right-padding was detected! For correct generation results, please",
    "UserWarning: Input length of input_ids is 431, but `max_length` is set to 20. This can lead to",
    "This is a friendly reminder - the current text generation call will exceed the model's predefined maximum length",
    "UserWarning: 12 parameters are on the meta device after loading",
    "WARNING: CUDA not available, falling back to CPU",
    "GPU not found, using CPU",
    "警告: GPU がないため CPU にフォールバックします",
    "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 1, reducing to 1\n" * 6,
)  # fmt: skip
HARMLESS = (
    "Setting `pad_token_id` to `eos_token_id`:151645 for open-end generation.",
    "`use_cache=True` is incompatible with gradient checkpointing. Setting `use_cache=False`.",
    "UserWarning: Could not find a config file in Qwen - will assume that the vocabulary was not modified.",
    "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768",
    "Will skip the first 0 epochs then the first 5 batches in the first epoch.",
    "INFO skipping of batches with nan loss is enabled",
    "INFO trainer will skip a batch on out of memory",
    "INFO skipped batches: 0 (nan), 0 (out of memory)",
    "INFO 0 skipped batches because of errors",
    "INFO skipping evaluation of the base model, no errors so far",
    "INFO all labels are counted; -100 is the ignore index",
    "INFO size of lora_A: 16 x 2048, no missing keys",
    "Unsloth: Will smartly offload gradients to save VRAM!",
    "The model is already on multiple devices. Skipping the move to device specified in `args`.",
    "Sliding Window Attention is enabled but not implemented for `sdpa`; unexpected results may be encountered.",
    "UserWarning: Merge lora module to 4-bit linear may get different generations due to rounding errors.",
    "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config and generation config.",
    "max_steps is given, it will override any value given in num_train_epochs",
)


def _check(output: str) -> Check:
    return next(check for check in process_checks(0, output) if check.id == "library_warnings")


@pytest.mark.parametrize("line", WARNINGS)
def test_a_librarys_own_warning_is_a_finding(line: str) -> None:
    """Behind a rank, a logger or a Python warning, the text that the library has in its source is found and quoted."""
    check = _check(f"INFO start\n{line}\nINFO end\n")
    assert check.holds is False, line
    assert check.severity is (Severity.INFO if "tokenized prompt" in line else Severity.WARN)


def test_every_row_of_the_table_is_proven_by_a_line() -> None:
    """No row goes without a line that it finds."""
    assert [row.words for row in library_warnings() if not any(row.pattern.search(line) for line in WARNINGS)] == []


@pytest.mark.parametrize("line", HARMLESS)
def test_what_sound_runs_print_is_no_finding(line: str) -> None:
    """Usual chatter, what would be done, what was done zero times, and the first overflows of fp16 accuse nobody."""
    assert _check(line + "\n").holds is True


def test_a_run_that_was_asked_to_use_the_cpu_may_say_so() -> None:
    """`using CPU` is as asked where no GPU was given; a fall back is told all the same."""
    for line, holds in (("CUDA not available, using CPU", True), ("CUDA is lost, falling back to CPU", False)):
        checks = process_checks(0, line, on_gpu=False)
        assert [check.holds for check in checks if check.id == "library_warnings"] == [holds]
