"""Advice fits the log: nobody is told what they did already, and settings have their program's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from steph.base.messages import Language, speaking, text
from steph.base.terms import Cause, Phase
from steph.diagnose.engine import diagnose, run_diagnose
from steph.record.values import Diagnosis

LOSS = "{'loss': 1.1, 'grad_norm': 0.8, 'learning_rate': 0.0001, 'epoch': 0.5}\n"
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
STEP = f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in <module>\n    trainer.train()\n{OOM}\n'
LOAD = STEP.replace("trainer.train()", "AutoModelForCausalLM.from_pretrained(name)")


def told(log: str, language: Language = "en") -> str:
    """All that a person is told about a log."""
    found = diagnose(log, 1)
    return "\n".join(one.text(language) for one in (*((found.meaning,) if found.meaning else ()), *found.advice))


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
    found = diagnose(STEP.replace(OOM, message), 1)
    assert found.case == "oom_other_process"
    assert "3.80 GiB" in str(found.meaning)
    whole = message.replace("3.80 GiB", "22.80 GiB")
    assert diagnose(STEP.replace(OOM, whole), 1).case != "oom_other_process"


def test_the_same_diagnosis_is_told_in_both_languages() -> None:
    """What is recorded has no language; its words do."""
    found = Diagnosis.model_validate_json(diagnose(STEP, 1).model_dump_json())
    assert len(found.advice) == 2
    assert all(step.text("en").isascii() for step in found.advice)
    assert all(step.text("ja").endswith("。") for step in found.advice)


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
    with speaking("en"):
        shown = run_diagnose(path, None, False)
    assert "2 losses: 1.5 to 1.25" in shown
    assert text("diagnose.seen.no_metrics", "en") in shown
    assert text("diagnose.seen.metrics", "en") not in shown
    seen = json.loads(run_diagnose(path, None, True))["seen"]
    assert any("1.5 → 1.25" in one for one in seen)
    path.write_text("{'train_runtime': 1.0, 'train_loss': 1.2}\n", encoding="utf-8")
    assert text("diagnose.seen.metrics") in run_diagnose(path, None, False)


def test_confidence_follows_the_wording() -> None:
    """Certain where only this cause leaves it, likely where other reasons exist, a guess where no row knows it."""
    assert diagnose(STEP, 1).confidence == "certain"
    assert diagnose(STEP.replace(OOM, "RuntimeError: CUDA error: misaligned address"), 1).confidence == "likely"
    assert diagnose(STEP.replace(OOM, "AcmeError: the flux is not aligned"), 1).confidence == "guess"


NCCL = (
    "[E ProcessGroupNCCL.cpp:475] [Rank {}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum={}, "
    "OpType=ALLREDUCE, NumelIn={}, NumelOut=1, Timeout(ms)=1800000) ran for 1800221 milliseconds before timing out.\n"
)
CPU_OOM = "RuntimeError: [enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory.\n"
OWN = 'Traceback (most recent call last):\n  File "{}", line 5, in <module>\n    x()\n'


def test_ranks_that_ran_different_collectives_are_named() -> None:
    """One number with two sizes is no rank that hung: some parameters were used by some ranks only."""
    log = "".join(NCCL.format(rank, 137, size) for rank, size in ((1, 1127), (6, 1127), (7, 1094)))
    found = diagnose(log, None)
    assert found.case == "nccl_different_collectives"
    assert "set_z3_leaf_modules" in found.advice[0].text("en")
    assert [line.count("[Rank ") for line in found.evidence] == [1, 1]
    assert "[Rank 7]" in found.evidence[1]


@pytest.mark.parametrize("order", [((6, 20880), (7, 20879)), ((7, 20879), (6, 20880), (5, 20880))])
def test_the_rank_with_the_lowest_number_is_named_and_quoted(order: tuple[tuple[int, int], ...]) -> None:
    """A reader would otherwise look at the rank that was printed first."""
    found = diagnose(LOSS + "".join(NCCL.format(rank, number, number) for rank, number in order), None)
    assert found.case == "nccl_rank_behind"
    assert "rank 7" in found.advice[0].text("en")
    assert any("[Rank 7]" in line for line in found.evidence)


def test_ranks_at_one_collective_name_none() -> None:
    """All wait at the same place: who is missing printed nothing."""
    assert diagnose(LOSS + NCCL.format(1, 9, 5) + NCCL.format(2, 9, 5), None).case == "nccl_timeout"


@pytest.mark.parametrize(
    ("log", "has", "lacks"),
    [
        (OWN.format(r"D:\w\t.py") + CPU_OOM, "paging file", ("dmesg", "wslconfig", "swap", "docker")),
        (OWN.format("/mnt/c/w/t.py") + CPU_OOM, "wslconfig", ("dmesg", "paging file", "docker")),
        (OWN.format("/home/a/t.py") + CPU_OOM, "swap", ("paging file", "wslconfig", "docker")),
        (OWN.format("/w/t.py") + CPU_OOM + "trainer exited with code 137\n", "docker", ("paging file", "wslconfig")),
        (OWN.format(r"C:\w\t.py") + "RuntimeError: Failed to find C compiler.\n", "MSVC", ("apt",)),
        (OWN.format("/w/t.py") + "RuntimeError: Failed to find C compiler.\n", "apt", ("MSVC", "Windows")),
        (OWN.format(r"C:\w\t.py") + "RuntimeError: CUDA error: unknown error\n", "Restart Windows", ("sudo", "wsl ")),
        (OWN.format("/mnt/c/t.py") + "RuntimeError: CUDA error: unknown error\n", "wsl --shutdown", ("sudo",)),
        (OWN.format("/w/t.py") + "RuntimeError: CUDA error: unknown error\n", "sudo rmmod", ("Restart Windows",)),
        (OWN.format(r"C:\w\t.py") + "RuntimeError: CUDA error: out of memory\n", "nvidia-smi", ("wsl",)),
    ],
)
def test_advice_is_for_the_system_of_the_log(log: str, has: str, lacks: tuple[str, ...]) -> None:
    """Windows, WSL, Linux and containers are not told in one bracket."""
    assert has in told(log)
    assert [one for one in lacks if one in told(log)] == []


def test_several_processes_are_made_fewer_first() -> None:
    """Each loads its own copy."""
    log = "ERROR:torch.distributed.elastic:failed (exitcode: -9) local_rank: 1 (pid: 9) of binary: python3\n"
    found = diagnose(log, 1)
    assert "fewer processes" in found.advice[0].text("en")
    assert found.confidence == "likely"


@pytest.mark.parametrize(
    "line", ["Killed", "t.sh: line 28:  7 Killed          python t.py", "  exitcode  : -7 (pid: 1)"]
)
def test_a_bare_signal_is_only_likely(line: str) -> None:
    """An administrator or a scheduler can send it."""
    assert diagnose(line).confidence == "likely"
    assert diagnose("Out of memory: Killed process 81 (python) total-vm:88112kB").confidence == "certain"


def test_an_import_names_the_package_that_must_change() -> None:
    """The library in the last frame, under its name on PyPI; in a script of one's own what it imports."""
    error = (
        "ImportError: cannot import name 'Foo' from 'transformers.models.bar' (/env/site-packages/transformers/x.py)\n"
    )
    library = told(OWN.format("/env/lib/python3.10/site-packages/awq/models/base.py") + error)
    assert "pip install -U autoawq" in library
    assert "transformers from before" in library
    assert "transformers.models" not in library.partition("\n")[2]
    script = told(OWN.format(r"C:\w\train.py") + error)
    assert "pip install -U transformers" in script
    assert "bitsandbytes" not in script
    warned = "UserWarning: The installed version of bitsandbytes was compiled without GPU support.\n"
    assert "bitsandbytes>=0.43" in told(warned + OWN.format(r"C:\w\train.py") + error)


def test_an_option_of_the_log_is_removed_not_contradicted() -> None:
    """sd-scripts refuses --use_8bit_adam beside --optimizer_type."""
    error = "Error no kernel image is available for execution on the device at line 167 in file D:\\b\\csrc\\ops.cu\n"
    log = f"train_network.py {error}"
    assert "--optimizer_type AdamW)" in told(log)
    flagged = told(f"{error}python train_network.py --use_8bit_adam\n")
    assert "remove --use_8bit_adam" in flagged
    assert "optimizer_type" not in flagged


@pytest.mark.parametrize("limit", [10, 128, 256])
def test_no_length_above_the_one_in_the_log_is_advised(limit: int) -> None:
    """The tokenizer's warning names the limit."""
    warning = (
        "Token indices sequence length is longer than the specified maximum sequence length for this model (999 > {})"
    )
    assert "max_length" not in told(f"{warning.format(limit)}\nper_device_train_batch_size=1\n{STEP}")
    assert "from 2048 to 1024" in told(
        f"{warning.format(2048)}\nper_device_train_batch_size=1, gradient_checkpointing=True\n{STEP}"
    )
    assert "by half" in told(f"per_device_train_batch_size=1, gradient_checkpointing=True\n{STEP}")


def test_safetensors_are_not_advised_where_they_are_read() -> None:
    """The log shows the file."""
    log = "loading: /m/base.safetensors\nLoading checkpoint shards:   0%|          | 0/2 [00:00<?, ?it/s]\nKilled\n"
    assert "safetensors" not in told(log)
    assert "safetensors" in told(log.partition("\n")[2])


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            OWN.format("/w/t.py")
            + "ImportError: \n requires the protobuf library but it was not found in your environment.\n",
            "ImportError: requires the protobuf",
        ),
        (
            OWN.format("/w/t.py")
            + "RuntimeError: Error(s) in loading state_dict for PeftModel:\n\tsize mismatch for lm_head.weight: "
            "copying a param with shape torch.Size([9, 2]) from checkpoint, the shape in current model is torch.Size("
            "[8, 2]).\n",
            "size mismatch",
        ),
        (
            "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.1.2 as it may crash.\n"
            + OWN.format("/w/t.py")
            + "AttributeError: _ARRAY_API not found\n",
            "NumPy 2.1.2",
        ),
    ],
)
def test_the_evidence_holds_the_telling_line(log: str, line: str) -> None:
    """It need not be the first of the message, nor part of it."""
    assert any(line in one for one in diagnose(log, 1).evidence)


def test_frames_in_an_unknown_form_are_read_above_the_exception() -> None:
    """A notebook's export in HTML keeps the function but not the frame."""
    assert diagnose(f"    781     def _is_fp16_bf16_tensor(tensor):\n\n{OOM}\n", 1).case == "oom_logits"


def test_an_evaluation_that_ends_with_its_accuracy_came_to_its_end(tmp_path: Path) -> None:
    """A line of training that has an accuracy is no end."""
    path = tmp_path / "log.txt"
    for line, part in (
        ('{"accuracy": 0.7233, "n": 300, "errors": 0}', "metrics"),
        ('{"n": 300, "f1": 0.5}', "metrics"),
        ('{"accuracy": 0.7233, "epoch": 0.5}', "no_metrics"),
    ):
        path.write_text(f"{line}\n", encoding="utf-8")
        assert text(f"diagnose.seen.{part}") in run_diagnose(path, None, False)


def test_collectives_are_compared_within_their_group() -> None:
    """Each process group counts for itself, and an all-to-all may be uneven."""
    grouped = NCCL.replace("[Rank", "[PG ID {} PG GUID 1(default_pg) Rank")
    apart = grouped.format(0, 1, 9, 5, 5) + grouped.format(1, 2, 4, 6, 6)
    assert diagnose(LOSS + apart, None).case == "nccl_timeout"
    late = grouped.format(0, 1, 9, 5, 5) + grouped.format(0, 2, 4, 5, 5)
    assert "rank 2" in told(LOSS + late)
    for kind in ("ALLTOALL_BASE", "SEND", "RECV", "COALESCED", "GATHER", "SCATTER"):
        uneven = (NCCL.format(1, 9, 5) + NCCL.format(2, 9, 6)).replace("ALLREDUCE", kind)
        assert diagnose(LOSS + uneven, None).case == "nccl_timeout"


def test_a_file_of_ones_own_is_not_installed_from_an_index() -> None:
    """Its name on PyPI is another's."""
    said = told(
        "Traceback (most recent call last):\nImportError: cannot import name 'a' from 'utils' (/home/me/utils.py)\n"
    )
    assert "pip install -U" not in said
    assert "/home/me/utils.py" in said


@pytest.mark.parametrize(
    ("raised", "hint"),
    [
        ("ValueError: No judge is named x. Try `judge --list` to list them.", "Try `judge --list`"),
        (
            "NotImplementedError: Foo: x is not supported in your current Foo version! Please update Foo via:",
            "Please update",
        ),
        ("ImportError: Foo requires bar: Please run `pip install bar`", "pip install bar"),
        ("RuntimeError: no backend, run with FOO=0 to disable it.", "run with FOO=0"),
        ("ImportError: Foo: Please import foo before bar.", "says: Please import foo"),
        ("ImportError: Foo requires `bar` or `baz` to be installed.", "requires `bar`"),
        (
            "ValueError: You can't train it, it has to be on a GPU. Make sure that FOO is set.",
            "says: Make sure that FOO",
        ),
    ],
)
def test_an_unknown_form_is_told_what_its_own_message_says(raised: str, hint: str) -> None:
    """The message often names the fix; it stands before the general advice."""
    first = told(f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in f\n{raised}').splitlines()
    assert any("message itself" in line and hint in line for line in first)


@pytest.mark.parametrize(
    "raised",
    ["RuntimeError: x failed. Please report a bug to us.", "ValueError: it is 3", f"{OOM} Please set FOO=1."],
)
def test_no_empty_instruction_is_passed_on(raised: str) -> None:
    """To report a bug is no fix, and where memory ran out the cause's own steps are better."""
    assert "message itself" not in told(f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in f\n{raised}')


@pytest.mark.parametrize(
    ("frame", "package"),
    [
        ("/e/lib/python3.12/site-packages/accelerate/accelerator.py", "accelerate"),
        ("C:\\e\\Lib\\site-packages\\timm\\layers\\mlp.py", "timm"),
        ("/w/mine.py", None),
    ],
)
def test_an_unknown_form_names_the_package_that_raised_it(frame: str, package: str | None) -> None:
    """Not torch or Python, through which the package called; in one's own code none is named."""
    inner = '  File "/e/site-packages/torch/nn/f.py", line 9, in f\n  File "/usr/lib/python3.12/copy.py", line 1, in g'
    log = (
        f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in f\n  File "{frame}", line 4, in g\n{inner}\n'
    )
    for raised in ("RuntimeError: it is 3", "AttributeError: 'Foo' object has no attribute 'bar'"):
        words = told(log + raised)
        assert ("It was raised in the code of" in words) == (package is not None)
        assert package is None or f"pip install -U {package})" in words


@pytest.mark.parametrize(
    ("frame", "case", "fix"),
    [
        ("/e/lib/python3.12/site-packages/trl/trainer/grpo_trainer.py", "in_trl", "Install the trl"),
        ("C:\\e\\Lib\\site-packages\\bitsandbytes\\nn\\modules.py", "in_bitsandbytes", "optim=adamw_torch"),
        ("/w/unsloth_compiled_cache/UnslothGRPOTrainer.py", "in_unsloth", "unsloth_zoo"),
        ("/e/dist-packages/flash_attn/flash_attn_interface.py", "in_attention_kernel", "attn_implementation=sdpa"),
        ("/e/site-packages/mlflow/utils/file_utils.py", "in_tracking", "report_to to none"),
        ("/e/site-packages/torch/_inductor/scheduler.py", "in_compiler", "TORCHDYNAMO_DISABLE=1"),
        ("/w/flash_attn_demo.py", None, "first exception of the traceback"),
    ],
)
def test_an_unknown_form_is_told_what_helps_where_it_was_raised(frame: str, case: str | None, fix: str) -> None:
    """Whatever the message says; a file of one's own that is called like a package is none."""
    log = f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in f\n  File "{frame}", line 4, in g\n'
    found = diagnose(f"{log}RuntimeError: it is 3", 1)
    assert (found.cause, found.case) == (Cause.OTHER, case)
    assert fix in told(f"{log}RuntimeError: it is 3")


def test_a_known_form_is_not_put_on_the_place() -> None:
    """Memory that ran out in an attention kernel is no fault of the kernel; a refusal is told before the place."""
    frame = 'Traceback (most recent call last):\n  File "/e/site-packages/flash_attn/x.py", line 4, in g\n'
    assert diagnose(frame + OOM, 1).cause is Cause.CUDA_OOM
    refusal = told(f"{frame}    raise ValueError(\nValueError: the head size is 96")
    assert refusal.index("the head size is 96") < refusal.index("attn_implementation=sdpa")


def test_ones_own_last_line_is_told() -> None:
    """Where the script's own code raised, and where it called what did; a line that the log lacks is not made up."""
    own = '  File "/w/t.py", line 31, in f\n    a, b = text.split(MARK)\n'
    library = '  File "/e/site-packages/accelerate/x.py", line 4, in g\n    y()\n'
    head = "Traceback (most recent call last):\n"
    for log in (f"{head}{own}RuntimeError: it is 3", f"{head}{own}{library}RuntimeError: it is 3"):
        assert "t.py, line 31 (a, b = text.split(MARK))" in told(log)
    assert "line 31 (a, b" in told(f"{head}{own}ValueError: not enough values to unpack (expected 2, got 1)")
    assert "t.py, line 31: look there" in told(f"{head}{own.splitlines()[0]}\nRuntimeError: it is 3")
    assert "Your own code" not in told(f"{head}{library}RuntimeError: it is 3")


@pytest.mark.parametrize(
    "raised",
    [
        "UnboundLocalError: local variable 'kinds' referenced before assignment",
        "TypeError: 'dict' object is not callable",
        "ValueError: too many values to unpack (expected 2)",
        "ZeroDivisionError: division by zero",
    ],
)
def test_an_error_of_pythons_own_kinds_in_a_library_asks_for_a_newer_one(raised: str) -> None:
    """Beside one's own line; where that line raised it, or the library on purpose, no version is at fault."""
    own = 'Traceback (most recent call last):\n  File "/w/t.py", line 31, in f\n    out = run(kinds)\n'
    library = '  File "/e/site-packages/timm/x.py", line 4, in g\n    y()\n'
    assert "pip install -U timm." in told(f"{own}{library}{raised}")
    assert "t.py, line 31" in told(f"{own}{library}{raised}")
    assert "pip install -U" not in told(f"{own}{raised}")
    assert "pip install -U" not in told(f"{own}{library.replace('y()', 'raise E(y)')}{raised}")


def test_neither_a_starter_nor_a_bare_call_is_the_line_to_look_at() -> None:
    """A file that an installer wrote, and a line that hands nothing over, have no mistake in them."""
    library = '  File "/e/site-packages/accelerate/x.py", line 4, in g\n    y()\nRuntimeError: it is 3'
    for file, code, is_named in (
        ("/e/bin/accelerate", "sys.exit(main())", False),
        ("/w/t.py", "trainer.train()", False),
        ("/w/t.py", "main()", False),
        ("C:\\Python311\\Lib\\multiprocessing\\queues.py", "return loads(res)", False),
        ("C:\\w\\lib\\rows.py", "return loads(res)", True),
        ("/w/t.py", "trainer.train(resume_from_checkpoint=True)", True),
        ("/w/t.py", "rows = read()", True),
    ):
        log = f'Traceback (most recent call last):\n  File "{file}", line 31, in f\n    {code}\n{library}'
        assert ("Your own code" in told(log)) == is_named, code


def test_a_condition_that_a_library_asserts_is_told() -> None:
    """Without a message, the line of code is what it says."""
    frame = '  File "/e/site-packages/timm/a.py", line 4, in g\n    assert kind is not None\n'
    assert "assert kind is not None" in told(f"Traceback (most recent call last):\n{frame}AssertionError")
    own = told(f"Traceback (most recent call last):\n{frame.replace('/e/site-packages/timm', '/w')}AssertionError")
    assert "refuses" not in own


def test_what_torch_refuses_is_no_refusal_of_the_library_that_called_it() -> None:
    """A newer version of the library may call it as it should be."""
    frame = '  File "/e/site-packages/timm/a.py", line 4, in g\n    run(x)\n'
    torch = '  File "/e/site-packages/torch/utils/flow.py", line 9, in run\n    raise ValueError(\n'
    log = f"Traceback (most recent call last):\n{frame}{torch}ValueError: the flow is odd"
    assert "pip install -U timm)" in told(log)
    assert "refuses" not in told(log)


def test_a_command_that_a_message_introduces_is_told_with_it() -> None:
    """`Please run:` alone says nothing."""
    raised = "RuntimeError: The index is old. To fix this:\nodd-tool rebuild --all\nMore text."
    assert "odd-tool rebuild --all" in told(raised)


def test_a_refusal_is_told_in_the_librarys_words() -> None:
    """What a library refuses on purpose, a newer one refuses too, unless it is about a model."""
    log = (
        'Traceback (most recent call last):\n  File "/w/t.py", line 3, in f\n    TrainingArguments("x")\n'
        '  File "/e/site-packages/transformers/training_args.py", line 4, in g\n    raise ValueError(\n'
        "ValueError: it requires the strategies to match"
    )
    assert "what it expects: it requires the strategies to match" in told(log)
    assert "pip install -U" not in told(log)
    assert "pip install -U transformers" in told(log.replace("    raise ValueError(\n", "    x = y[0]\n"))
    assert "pip install -U transformers" in told(log.replace(", in g", ", in from_pretrained"))
    assert "pip install -U transformers" in told(log.partition("ValueError: ")[0] + "NotImplementedError")


def test_what_handed_the_exception_on_is_updated_too() -> None:
    """A worker's exception is raised anew by the package that started the worker."""
    log = (
        'Traceback (most recent call last):\n  File "/e/site-packages/somelib/worker.py", line 4, in g\n    x = y[0]\n'
        "{0}\n\nDuring handling of the above exception, another exception occurred:\n\n"
        'Traceback (most recent call last):\n  File "/e/site-packages/caller/run.py", line 8, in h\n'
        "    raise RuntimeError(error)\n{0}"
    )
    assert "pip install -U somelib caller" in told(log.format("RuntimeError: it went wrong"))
    in_a_folder = log.replace("/e/site-packages/caller", "/w/LLaMA-Factory/src/llamafactory")
    assert "pip install -U somelib)" in told(in_a_folder.format("RuntimeError: it went wrong"))


def test_no_library_is_blamed_for_an_error_of_the_system() -> None:
    """A newer package does not mend a file system."""
    log = (
        'Traceback (most recent call last):\n  File "/e/site-packages/safetensors/torch.py", line 4, in g\n'
        "    x = y[0]\n{}: [Errno 71] Protocol error"
    )
    assert "safetensors" not in told(log.format("OSError"))
    assert "safetensors" in told(log.format("OSError").replace("[Errno 71] ", ""))
    of_rust = log.replace("[Errno 71] Protocol error", "I/O error: Protocol error (os error 71)")
    assert "safetensors" not in told(of_rust.format("RuntimeError"))


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ("File ~/e/lib/python3.11/site-packages/timm/models/rl.py:854, in patch(a)\n--> 854 x = y[-2]", 854),
        ("[/e/dist-packages/timm/models/rl.py](https://localhost:8080/#) in patch(a)\n--> 9 x = y[-2]", 0),
        ("/usr/lib/python3/dist-packages/timm/models/rl.py in patch(a)\n----> 9 x = y[-2]", 0),
        ("File /e/site-packages/timm/models/rl.py:854, in patch(a)\n    853 z = 1\n--> 854 x = y[-2]\n    855 z", 854),
        ("│ /e/site-packages/timm/models/rl.py:854 in patch │\n│ ❱ 854 │   x = y[-2] │", 854),
        ("│ /e/site-packages/timm/models/rl.py:854 in │\n│ patch │\n│ ❱ 854 │   x = y[-2] │", 854),
        (r"File c:\Users\An A\Lib\site-packages\timm\models\rl.py:854, in patch(a)", 854),
    ],
)
def test_a_notebooks_frames_name_the_package_too(frames: str, line: int) -> None:
    """As IPython, Colab and rich draw them; a line of code that they mark may say that it raises on purpose."""
    head = "IndexError                 Traceback (most recent call last)\n"
    log = f"{head}{frames}\n\nIndexError: list index out of range"
    assert "pip install -U timm)" in told(log)
    assert f"line {line}" in diagnose(log, 1).evidence[0]
    raising = log.replace("x = y[-2]", 'raise IndexError("list index out of range")')
    assert ("pip install" in told(raising)) == (raising == log)


FOLDERS = ["/w/LLaMA-Factory/src/llamafactory", "/w/lm-evaluation-harness/lm_eval", "/w/torchtune/torchtune"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_program_that_runs_from_its_folder_is_pulled_not_installed(folder: str) -> None:
    """A clone is no package of an index; a script of one's own beside it is one's own."""
    log = f'Traceback (most recent call last):\n  File "{folder}/x/y.py", line 4, in g\n    a[1]\nIndexError: it is 3'
    assert "git pull" in told(log)
    own = told(log.replace(f"{folder}/x/y.py", "/w/axolotl/train.py"))
    assert "git pull" not in own
    assert "train.py, line 4" in own


def test_a_message_that_asks_for_a_bug_report_is_answered_with_a_newer_version() -> None:
    """Its author knows no other reason than versions."""
    log = (
        'Traceback (most recent call last):\n  File "/e/site-packages/timm/a.py", line 4, in g\n'
        "    raise RuntimeError(\nRuntimeError: Unpack has been moved! Please file a bug report asap!"
    )
    assert "pip install -U timm)" in told(log)
    assert "pip install" not in told(log.replace(" Please file a bug report asap!", ""))


def test_two_packages_that_fail_at_import_are_updated_together() -> None:
    """The one that raised and the one that called it; later, at work, only the first is at fault."""
    log = (
        'Traceback (most recent call last):\n  File "/w/t.py", line 3, in <module>\n    import deepspeed\n'
        '  File "/e/site-packages/deepspeed/monitor/config.py", line 68, in Config\n    @root_validator\n'
        '  File "/e/site-packages/pydantic/deprecated/class_validators.py", line 246, in root_validator\n    x()\n'
        "pydantic.errors.PydanticUserError: If you use `@root_validator`, you MUST specify `skip_on_failure=True`."
    )
    assert "pip install -U deepspeed pydantic)" in told(log)
    assert "pydantic from when deepspeed" in told(log)
    assert "from when deepspeed" not in told(log.replace("import deepspeed", "run()"))


@pytest.mark.parametrize(
    ("frame", "is_named"),
    [("/e/site-packages/lm_eval/models/vllm_causallms.py", True), ("/w/train.py", False)],
)
def test_the_library_that_passes_an_unknown_argument_is_named(frame: str, *, is_named: bool) -> None:
    """The frame that called shows who must change: a library by its name, a script of one's own by its line."""
    log = f"""Traceback (most recent call last):
  File "{frame}", line 150, in start
    engine = EngineArgs(disable_log_requests=True)
TypeError: EngineArgs.__init__() got an unexpected keyword argument 'disable_log_requests'"""
    assert ("pip install -U lm" in told(log)) is is_named
    assert "If your script does, remove or rename it." in told(log)
