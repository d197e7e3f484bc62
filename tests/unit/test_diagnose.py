"""The cause of a failure from its log: samples, the order of witnesses, exit statuses, probes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steph.base.terms import Cause, Phase
from steph.diagnose.engine import HEAD_BYTES, TAIL_BYTES, _ends_of, diagnose, first_traceback, run_diagnose
from steph.diagnose.reader import lines_of
from steph.record.values import Probe

SAMPLES = Path(__file__).parent / "samples" / "failures"
SHARED = os.environ.get("STEPH_TEST_DATA")
# these fail only by how they ended; their text alone is no failure
ENDING_ONLY = {"host_silent.txt", "timeout_status.txt", "other_silent.txt"}

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
OOM_TRACEBACK = f'Traceback (most recent call last):\n  File "t.py", line 3, in <module>\n    loss.backward()\n{OOM}\n'
METRICS = "{'train_runtime': 46.9, 'train_loss': 1.55, 'epoch': 1.0}\n"
LOSS = "{'loss': 1.1, 'grad_norm': 0.8, 'learning_rate': 0.0001, 'epoch': 0.5}\n"


def rows(folder: Path) -> list[list[str]]:
    """The rows of a folder's index, header off."""
    return [line.split("\t") for line in (folder / "index.tsv").read_text(encoding="utf-8").splitlines()[1:]]


OWN = rows(SAMPLES)


@pytest.mark.parametrize(("file", "cause", "phase", "status"), OWN, ids=[row[0] for row in OWN])
def test_own_samples(file: str, cause: str, phase: str, status: str) -> None:
    """Each sample of ours gets its cause and, where the index names one, its phase."""
    found = diagnose((SAMPLES / file).read_text(encoding="utf-8"), None if status == "-" else int(status))
    assert found.cause == cause
    assert phase in ("-", found.phase)
    assert bool(found.advice) == (cause != Cause.NONE)


@pytest.mark.parametrize("file", [row[0] for row in OWN if row[0] not in ENDING_ONLY])
def test_own_samples_without_exit_status(file: str) -> None:
    """A pasted log, whose exit status nobody knows, gets the same cause."""
    cause = next(row[1] for row in OWN if row[0] == file)
    assert diagnose((SAMPLES / file).read_text(encoding="utf-8")).cause == cause


def test_every_cause_has_a_sample() -> None:
    """No cause of the closed list is left without a sample."""
    assert {row[1] for row in OWN} == {cause.value for cause in Cause}


@pytest.mark.skipif(not SHARED, reason="STEPH_TEST_DATA is not set: the development samples are not here")
@pytest.mark.parametrize("status", [None, 1])
def test_development_samples(status: int | None) -> None:
    """All labelled development samples are right, with and without a failing exit status."""
    folder = Path(SHARED or "") / "failures"
    labels = {row[0]: row[1] for row in rows(folder)}
    if status:
        labels = {file: cause for file, cause in labels.items() if cause != "none"}
    found = {file: diagnose((folder / file).read_text(encoding="utf-8"), status).cause.value for file in labels}
    assert found == labels


def test_exit_zero_with_final_metrics_is_no_failure() -> None:
    """Whatever was logged on the way, a run that exits 0 with its final metrics did not fail."""
    assert diagnose(OOM_TRACEBACK + METRICS + OOM_TRACEBACK, 0).cause is Cause.NONE


def test_nan_loss_fails_although_it_exits_zero() -> None:
    """A NaN gradient beside a loss of 0.0 is a NaN loss, also with final metrics and exit 0."""
    log = "{'loss': '0.0', 'grad_norm': 'nan', 'epoch': '0.02'}\n" + METRICS
    assert diagnose(log, 0).cause is Cause.NAN_LOSS


def test_first_cause_of_a_chain_counts() -> None:
    """A KeyError raised while a CUDA OOM was handled is not the cause."""
    log = OOM_TRACEBACK + (
        "\nDuring handling of the above exception, another exception occurred:\n\n"
        'Traceback (most recent call last):\n  File "t.py", line 9, in <module>\n    row["output"]\nKeyError: '
        "'output'\n"
    )
    assert diagnose(log, 1).cause is Cause.CUDA_OOM


@pytest.mark.parametrize(
    "wrapper",
    [
        "ValueError: Caught ValueError in DataLoader worker process 0.\nOriginal ",
        "RuntimeError: Caught RuntimeError in replica 1 on device 1.\nOriginal ",
        "Exception: \n\n-- Process 0 terminated with the following error:\n",
    ],
)
def test_what_another_process_raised_is_the_root(wrapper: str) -> None:
    """The exception that hands it on comes first in print; what follows later is no part of it."""
    first = "Traceback (most recent call last):\n"
    head = f'{first}  File "/e/site-packages/torch/_utils.py", line 7, in reraise\n    raise e\n'
    inner = f'{first}  File "/w/data.py", line 52, in row\n    raise FooError("x")\nFooError: row 3 is odd\n'
    found = diagnose(f"{head}{wrapper}{inner}\nTraceback (most recent call last):\n{OOM}\n", 1)
    assert found.cause is Cause.CUDA_OOM
    found = diagnose(f"{head}{wrapper}{inner}", 1)
    assert "FooError: row 3 is odd" in found.evidence[1]
    assert not diagnose(f"{head}{wrapper.partition(chr(10))[0]}\n\nFine.\n", 1).evidence[0].startswith("FooError")


def test_what_a_worker_of_ray_raised_is_the_root() -> None:
    """Its traceback stands below the name of the task."""
    log = (
        'Traceback (most recent call last):\n  File "/e/site-packages/ray/_private/worker.py", line 9, in get_objects\n'
        "    raise value.as_instanceof_cause()\nray.exceptions.RayTaskError(KeyError): ray::task() (pid=81)\n"
        '  File "/w/data.py", line 52, in chunk\n    x = table[1]\nFooError: only equal parts\n'
    )
    assert "FooError: only equal parts" in diagnose(log, 1).evidence[1]


def _looked_up(code: str, raised: str, library: str = "/e/site-packages/lm_eval/api/registry.py") -> str:
    return (
        f"Traceback (most recent call last):\n  File \"{library}\", line 36, in get\n    {code}\nKeyError: 'text'\n\n"
        "During handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
        f'  File "{library}", line 38, in get\n    {raised}\nValueError: no such kind\n'
    )


def test_a_name_that_a_library_looked_up_is_no_column_of_the_data() -> None:
    """What the library says of it counts; a KeyError of one's own, or one that nobody expected, stays the root."""
    assert diagnose(_looked_up("return TABLE[name]", "raise ValueError("), 1).cause is Cause.OTHER
    assert diagnose(_looked_up("return row[name]", "raise ValueError(", "/w/prep.py"), 1).cause is Cause.BAD_DATA
    rows = "/e/site-packages/lm_eval/tasks/law/utils.py"
    assert diagnose(_looked_up("return row[name]", "int(x)", rows), 1).cause is Cause.BAD_DATA


@pytest.mark.parametrize(
    ("file", "cause"),
    [
        ("/w/prep.py", Cause.BAD_DATA),
        ("/e/site-packages/datasets/arrow_dataset.py", Cause.BAD_DATA),
        ("/e/site-packages/transformers/data/data_collator.py", Cause.BAD_DATA),
        ("/e/site-packages/deepspeed/runtime/zero/stage3.py", Cause.OTHER),
        ("/e/site-packages/torch/cuda/nccl.py", Cause.OTHER),
    ],
)
@pytest.mark.parametrize("line", ["KeyError: 'text'", "TypeError: expected string or bytes-like object"])
def test_what_a_library_wants_of_its_own_is_no_row(file: str, cause: Cause, line: str) -> None:
    """The same words in code that handles rows tell of the data."""
    log = f'Traceback (most recent call last):\n  File "{file}", line 36, in get\n    x = f(y)\n{line}\n'
    assert diagnose(log, 1).cause is cause


_GENERATED = "datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset\n"


def test_what_was_raised_while_the_rows_were_read_is_the_root() -> None:
    """The exception around it says only that they were read; alone, it is all there is."""
    reading = (
        'Traceback (most recent call last):\n  File "/e/site-packages/datasets/packaged/odd.py", line 7, in rows\n'
        "    raise ValueError(\nValueError: the header names 4 fields\n\n"
        "The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
        '  File "/e/site-packages/datasets/builder.py", line 9, in _prepare\n    raise DatasetGenerationError(\n'
    )
    found = diagnose(reading + _GENERATED, 1)
    assert found.cause is Cause.BAD_DATA
    assert "the header names 4 fields" in found.evidence[1]
    assert "the header names 4 fields" in " ".join(map(str, found.advice))
    assert diagnose(_GENERATED, 1).evidence[0].startswith("datasets.exceptions")


def test_an_argument_of_a_reward_function_is_a_column() -> None:
    """A trainer hands it the columns; elsewhere such a call tells of versions."""
    head = 'Traceback (most recent call last):\n  File "/w/t.py", line 36, in _calculate_rewards\n    x = f(y)\n'
    error = "TypeError: exact() missing 1 required positional argument: 'answer'\n"
    assert diagnose(head + error, 1).case == "reward_column_missing"
    assert diagnose(head.replace("_calculate_rewards", "main") + error, 1).cause is Cause.API_DRIFT


def _key(file: str, code: str, above: str = "") -> str:
    head = f'Traceback (most recent call last):\n{above}  File "{file}", line 36, in f\n    {code}\n'
    return f"{head}KeyError: 'images'\n"


def test_a_key_is_missed_in_a_row_in_the_collators_rows_or_in_a_batch() -> None:
    """What takes it away differs: the data, the Trainer's removal of columns, and a trainer of another version."""
    collator = '  File "/e/site-packages/torch/fetch.py", line 5, in fetch\n    return self.collate_fn(data)\n'
    trainer = '  File "/e/site-packages/transformers/trainer.py", line 5, in step\n    loss = self.compute_loss(x)\n'
    assert diagnose(_key("/w/t.py", "x = row['images']"), 1).case == "column_missing"
    assert diagnose(_key("/w/t.py", "x = row['images']", collator), 1).case == "collator_column_missing"
    assert diagnose(_key("/w/t.py", "x = batch['images']", trainer), 1).case == "batch_key_missing"
    assert diagnose(_key("/w/t.py", "x = row['images']", trainer), 1).case == "column_missing"


@pytest.mark.parametrize(
    ("file", "cause"),
    [
        ("/w/prep.py", Cause.BAD_DATA),
        ("/e/site-packages/trl/trainer/x.py", Cause.OTHER),
        ("/w/unsloth_compiled_cache/UnslothX.py", Cause.OTHER),
    ],
)
def test_a_list_for_a_table_is_of_the_data_in_ones_own_code_alone(file: str, cause: Cause) -> None:
    """Generated code of a library is no code of one's own."""
    log = _key(file, "x = inputs['ids']").replace(
        "KeyError: 'images'", "TypeError: list indices must be integers, not str"
    )
    assert diagnose(log, 1).cause is cause


def test_a_notebook_that_was_ended_while_memory_grew_ran_out_of_it() -> None:
    """Its host sends what looks like an interrupt; one that a user sent at another time says nothing."""
    grew = "tcmalloc: large alloc 9976371200 bytes == 0x2985d8000 @  0x7f3452087b6b 0x7f34520a7379\n"
    assert diagnose(f"Loading the model\n{grew}^C\n").cause is Cause.HOST_OOM
    assert diagnose("Loading the model\n^C\n").cause is Cause.NONE
    assert diagnose(f"{grew}Loading the model\n").cause is Cause.NONE
    assert diagnose(f"{grew}{LOSS * 8}^C\n").cause is Cause.NONE


_REFUSED = "requests.exceptions.ConnectionError: ('Connection aborted.', RemoteDisconnected('closed'))\n"
_URLLIB = (
    'Traceback (most recent call last):\n  File "/e/site-packages/urllib3/connectionpool.py", line 7, in urlopen\n'
    "    conn.send()\nurllib3.exceptions.ProtocolError: ('Connection aborted.', RemoteDisconnected('closed'))\n\n"
    "During handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
)


@pytest.mark.parametrize(
    ("caller", "cause"),
    [
        ("/e/site-packages/huggingface_hub/file_download.py", Cause.HUB_UNREACHABLE),
        ("/w/train.py", Cause.HUB_UNREACHABLE),
        ("/e/site-packages/trl/extras/vllm_client.py", Cause.OTHER),
        ("/e/site-packages/mlflow/utils/rest_utils.py", Cause.OTHER),
    ],
)
def test_a_lost_connection_is_the_hubs_unless_the_caller_speaks_to_another(caller: str, cause: Cause) -> None:
    """The inner exceptions do not show who called; the outer one does."""
    assert diagnose(f'{_URLLIB}  File "{caller}", line 9, in f\n    post()\n{_REFUSED}', 1).cause is cause


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("../aten/src/ATen/native/cuda/Loss.cu:250: f: block: [0,0,0] Assertion `t >= 0` failed.", Cause.CUDA_ASSERT),
        ("python: /e/ops/csrc/aio/x.cpp:125: int f(): Assertion `a >= b' failed.", Cause.OTHER),
    ],
)
def test_an_assertion_is_the_gpus_unless_a_host_file_names_itself(line: str, cause: Cause) -> None:
    """A kernel's source ends in .cu, or the line names its block."""
    assert diagnose(line, -6).cause is cause


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        ("/w/prep.py", Cause.BAD_DATA),
        ("/e/site-packages/datasets/load.py", Cause.BAD_DATA),
        ("/e/site-packages/triton/runtime/cache.py", Cause.OTHER),
        ("/e/site-packages/mlflow/store/file_store.py", Cause.OTHER),
    ],
)
def test_a_missing_file_is_data_unless_a_cache_or_a_checkpoint_lost_it(frame: str, cause: Cause) -> None:
    """A compiler's cache and a tracker's folder hold no rows."""
    head = f'Traceback (most recent call last):\n  File "{frame}", line 9, in f\n    open(path)\n'
    assert diagnose(f"{head}FileNotFoundError: [Errno 2] No such file or directory: '/w/x/part'", 1).cause is cause
    renamed = f"{head}FileNotFoundError: [Errno 2] No such file or directory: 'a/tmp-checkpoint-5' -> 'a/checkpoint-5'"
    assert diagnose(renamed, 1).case == "checkpoint_race"


def test_a_retried_oom_does_not_hide_the_real_end() -> None:
    """An OOM that training survived is not the cause of a later failure."""
    log = OOM_TRACEBACK + LOSS + OOM_TRACEBACK.replace(OOM, "OSError: [Errno 28] No space left on device")
    assert diagnose(log, 1).cause is Cause.DISK_FULL


def test_a_handled_oom_line_is_not_why_a_process_failed() -> None:
    """A debug line about a skipped batch explains no exit status of 1."""
    assert diagnose("DEBUG CUDA out of memory. Tried to allocate 1.00 GiB\n" + LOSS, 1).cause is Cause.OTHER


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (-9, Cause.HOST_OOM),
        (137, Cause.HOST_OOM),
        (-11, Cause.OTHER),
        (134, Cause.OTHER),
        (1, Cause.OTHER),
        (124, Cause.TIMEOUT),
    ],
)
def test_exit_status_speaks_where_the_log_is_silent(status: int, cause: Cause) -> None:
    """SIGKILL without a deadline is the kernel's OOM killer; other signals say nothing by themselves."""
    found = diagnose(LOSS, status)
    assert found.cause is cause
    assert found.evidence


def test_a_kill_does_not_outweigh_what_the_log_says() -> None:
    """A CUDA OOM whose process was killed afterwards stays a CUDA OOM."""
    assert diagnose(OOM_TRACEBACK, -9).cause is Cause.CUDA_OOM


def test_deadline_is_a_timeout() -> None:
    """A process that the suite ended at its limit timed out, also when it dies of SIGKILL or KeyboardInterrupt."""
    assert diagnose(LOSS, -9, deadline_hit=True).cause is Cause.TIMEOUT
    log = LOSS + OOM_TRACEBACK.replace(OOM, "KeyboardInterrupt")
    assert diagnose(log, -15, deadline_hit=True).cause is Cause.TIMEOUT


def test_a_crash_that_hung_until_the_deadline_keeps_its_cause() -> None:
    """A traceback with nothing after it is why the process came to its limit."""
    assert diagnose(OOM_TRACEBACK, -9, deadline_hit=True).cause is Cause.CUDA_OOM


def test_swallowed_errors_of_an_evaluation_do_not_explain_a_deadline() -> None:
    """One line about an exception that the script went on after is no traceback."""
    log = "Error during LLM invocation: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    assert diagnose(log, -9, deadline_hit=True).cause is Cause.TIMEOUT


def test_the_rank_that_raised_first_hand_gives_the_cause() -> None:
    """Rank 0's lost connection is never the cause when another rank's probe names its exception."""
    log = "[rank0]: RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4021\n"
    probes = (
        Probe(pid=1, rank=0, exception_type="RuntimeError", exception_message="Connection closed by peer [127.0.0.1]"),
        Probe(pid=2, rank=1, exception_type="ValueError", exception_message="planted"),
    )
    found = diagnose(log, 1, probes)
    assert found.cause is Cause.OTHER
    assert "planted" in found.evidence[0]
    oom = probes[1].model_copy(
        update={"exception_type": "OutOfMemoryError", "exception_message": OOM.partition(": ")[2]}
    )
    found = diagnose(log, 1, (probes[0], oom))
    assert found.cause is Cause.CUDA_OOM
    assert found.oom is not None
    assert found.oom.requested_bytes == 2 << 30


def test_a_probe_explains_a_silent_log() -> None:
    """Where a library swallowed stderr, the probe's exception is the cause."""
    probe = Probe(pid=1, exception_type="ModuleNotFoundError", exception_message="No module named 'peft'")
    assert diagnose("", 1, (probe,)).cause is Cause.IMPORT_ERROR


def test_phase_follows_the_frames_then_the_printed_lines() -> None:
    """The same OOM is `prepare` inside prepare_model_for_kbit_training and `step` after a loss line."""
    frame = '  File "/env/peft/utils/other.py", line 98, in prepare_model_for_kbit_training\n'
    prepare = OOM_TRACEBACK.replace(OOM, frame + OOM)
    assert diagnose(prepare, 1).phase is Phase.PREPARE
    assert diagnose(OOM_TRACEBACK, 1).phase is Phase.FIRST_STEP
    assert diagnose(LOSS + OOM_TRACEBACK, 1).phase is Phase.STEP


def test_phase_of_a_trainer_that_is_made_is_prepare() -> None:
    """Whatever the script is called, and whatever library module is called like one that evaluates."""
    making = (
        'Traceback (most recent call last):\n  File "/w/demo.py", line 8, in <module>\n    trainer = SFTTrainer(\n'
        '  File "/e/site-packages/trl/trainer/sft_trainer.py", line 473, in _prepare_dataset\nValueError: x'
    )
    assert diagnose(making, 1).phase is Phase.PREPARE
    mapping = (
        "Map:   0%|          | 0/52 [00:00<?, ? examples/s]\n"
        'Traceback (most recent call last):\n  File "/w/train.py", line 8, in <module>\n    ds.map(f)\n'
        '  File "/e/site-packages/transformers/utils/chat_template_utils.py", line 410, in raise_it\nValueError: x'
    )
    assert diagnose(mapping, 1).phase is Phase.PREPARE


@pytest.mark.parametrize(
    ("frame", "phase"),
    [
        ('transformers/models/llama/configuration_llama.py", line 182, in _rope_scaling_validation', Phase.LOAD),
        ('peft/utils/save_and_load.py", line 71, in get_peft_model_state_dict', Phase.SAVE),
        ('transformers/trainer.py", line 3980, in save_model', Phase.SAVE),
        ('unsloth/save.py", line 2410, in unsloth_save_pretrained_merged\n    save_pretrained_merged(', Phase.SAVE),
        ('torch/serialization.py", line 865, in save\n    torch.save(state, path)', Phase.SAVE),
        ('peft/mapping_func.py", line 122, in get_peft_model', Phase.PREPARE),
    ],
)
def test_phase_of_a_library_call(frame: str, phase: Phase) -> None:
    """Where nothing but the innermost frame shows it."""
    log = f'Traceback (most recent call last):\n  File "/w/x.py", line 8, in main\n  File "/e/{frame}\nValueError: x'
    assert diagnose(log, 1).phase is phase


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("Materializing param=model.norm.weight", Phase.LOAD),
        ("Generating train split: 100 examples [00:00, 2000.00 examples/s]", Phase.LOAD),
        ("Generating train split: 100%|██████████| 100/100 [00:00<00:00, 9000.00 examples/s]", Phase.PREPARE),
        ("***** Running training *****", Phase.FIRST_STEP),
        ("Saving model checkpoint to out/checkpoint-10", Phase.SAVE),
        ("Configuration saved in out/config.json", Phase.SAVE),
        ("tokenizer config file saved in out/tokenizer_config.json", Phase.SAVE),
        ("***** Running Evaluation *****", Phase.EVAL),
        ("***** Running Prediction *****", Phase.EVAL),
        ("Total samples to evaluate: 10", Phase.EVAL),
        ("Initializing RAG pipeline...", Phase.EVAL),
        ("RAG Mode: Disabled (LLM only)", Phase.EVAL),
        ("LoRA Path: outputs/lora", Phase.EVAL),
    ],
)
def test_a_printed_line_shows_the_phase(line: str, phase: Phase) -> None:
    """As transformers, datasets and the pipeline of the specification print it, before an exception without frames."""
    assert diagnose(f"{line}\nRuntimeError: it broke", 1).phase is phase


@pytest.mark.parametrize("line", ["lora path: out/adapter", "evaluating every 100 steps"])
def test_a_setting_that_a_training_prints_is_no_evaluation(line: str) -> None:
    """The phase stays what the lines before it show."""
    log = f"***** Running training *****\n{line}\nRuntimeError: it broke"
    assert diagnose(log, 1).phase is Phase.FIRST_STEP


@pytest.mark.parametrize(
    "told",
    [
        "falling back to batch size 1",
        "the loader falls back to one worker",
        "Reducing batch size to 2",
        "batch size was halved to 1",
        "recovering from it",
        "再試行します",
        "スキップします",
    ],
)
def test_what_a_program_dealt_with_is_no_cause(told: str) -> None:
    """An out-of-memory line that says itself how the run went on."""
    assert diagnose(f"CUDA out of memory. Tried to allocate 2.00 GiB. {told}\n", None).cause is Cause.NONE


@pytest.mark.parametrize(
    "line",
    [
        "CRITICAL training failed: torch.OutOfMemoryError: CUDA out of memory.",
        "学習に失敗しました: RuntimeError: CUDA out of memory.",
        "ERROR training failed: cupy.CudaException: CUDA out of memory.",
        "ERROR training failed: remote.TaskTimeout: CUDA out of memory.",
    ],
)
def test_an_exception_that_a_program_reports_counts(line: str) -> None:
    """Whatever it is called, and in whichever language the program says that it failed."""
    assert diagnose(line, 1).cause is Cause.CUDA_OOM


def test_advice_differs_by_phase() -> None:
    """An OOM while loading is not answered with a smaller batch."""
    load = OOM_TRACEBACK.replace(OOM, '  File "/env/m.py", line 9, in from_pretrained\n' + OOM)
    assert diagnose(load, 1).advice != diagnose(LOSS + OOM_TRACEBACK, 1).advice


def test_evidence_holds_no_secret() -> None:
    """A token in a failing URL does not reach the evidence."""
    log = "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: "
    "https://u:hf_AbCdEf0123456789@huggingface.co/x"
    assert "AbCdEf0123456789" not in "".join(diagnose(log, 1).evidence)


def test_first_traceback_is_the_root_one_whole_and_bounded() -> None:
    """The traceback of the root exception comes as printed, without rank prefixes, and never over about 12 KB."""
    log = "".join(f"[rank0]: {line}\n" for line in OOM_TRACEBACK.splitlines()) + (
        "\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
        '  File "a.py", line 1, in b\nRuntimeError: No executable batch size found, reached zero.\n'
    )
    assert first_traceback(log) == OOM_TRACEBACK.rstrip()
    long = OOM_TRACEBACK.replace(OOM, '  File "m.py", line 1, in forward\n' * 3000 + OOM)
    short = first_traceback(long) or ""
    assert 6_000 < len(short.encode()) <= 12_100
    assert short.startswith("Traceback")
    assert short.endswith(OOM)
    assert first_traceback("all is well\n") is None


def test_the_reader_gives_one_statement_a_line() -> None:
    """Carriage returns, glued bars, colours and prefixes are gone."""
    raw = "\x1b[31m[rank1]: Load:  50%|##  | 1/2 [00:01<00:01,  1.0it/s]Killed\x1b[0m\rnext\r\n"
    assert [line.text for line in lines_of(raw)] == [
        "Load:  50%|##  | 1/2 [00:01<00:01,  1.0it/s]",
        "Killed",
        "next",
        "",
    ]


def report_of_ranks(*ends: tuple[int, int], root: int) -> str:
    """What torchrun prints at its end: (rank, exit code) of each rank that failed, that of rank `root` last."""
    entries = {
        rank: f"[{n}]:\n  time      : 2026-11-22_20:35:17\n  host      : localhost\n"
        f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: {100 + rank})\n  error_file: <N/A>\n"
        for n, (rank, code) in enumerate(ends)
    }
    others = "".join(text for rank, text in entries.items() if rank != root) or "  <NO_OTHER_FAILURES>\n"
    return (
        'Traceback (most recent call last):\n  File "run.py", line 1032, in <module>\n'
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\ntrain.py FAILED\n----\n"
        f"Failures:\n{others}----\nRoot Cause (first observed failure):\n{entries[root]}====\n"
    )


@pytest.mark.parametrize(
    ("ends", "root", "cause", "rank", "words"),
    [
        (((1, -9),), 1, Cause.HOST_OOM, 1, "rank 1 (pid 101): ended by signal 9"),
        (((0, -15), (1, -9)), 1, Cause.HOST_OOM, 1, "rank 1 (pid 101): ended by signal 9"),
        (((0, 1), (1, -9)), 0, Cause.HOST_OOM, 1, "rank 1 (pid 101): ended by signal 9"),
        (((0, -15), (2, -11)), 2, Cause.OTHER, 2, "rank 2 (pid 102): ended by signal 11"),
        (((0, -15), (3, 3)), 3, Cause.OTHER, 3, "rank 3 (pid 103): exit status 3"),
    ],
)
def test_a_dead_rank_is_named(
    ends: tuple[tuple[int, int], ...], root: int, cause: Cause, rank: int, words: str
) -> None:
    """Without any probe the launcher's report names the rank; one that was killed comes before one that noticed it."""
    found = diagnose("{'loss': 2.5}\n" + report_of_ranks(*ends, root=root), 1)
    assert (found.cause, found.rank, found.evidence[0]) == (cause, rank, words)


def test_a_rank_that_ran_out_of_memory_is_named_with_its_cause() -> None:
    """A rank's traceback, its probe and the launcher's report together give one cause and one rank."""
    probes = [
        Probe(pid=9, exception_type="torch.distributed.elastic.multiprocessing.errors.ChildFailedError"),
        Probe(pid=101, rank=1, exception_type="torch.OutOfMemoryError", exception_message="CUDA out of memory."),
    ]
    log = OOM_TRACEBACK + report_of_ranks((0, -15), (1, 1), root=1)
    found = diagnose(log, 1, probes)
    assert (found.cause, found.rank) == (Cause.CUDA_OOM, 1)
    assert found.evidence[0] == "rank 1 (pid 101): exit status 1"
    assert diagnose(log, 1).rank == 1
    assert diagnose(OOM_TRACEBACK, 1).rank is None


def test_run_diagnose_prints_json_with_its_keys(tmp_path: Path) -> None:
    """The command's JSON has exactly the published keys, `oom` null where there are no figures."""
    log = tmp_path / "log.txt"
    log.write_text(OOM_TRACEBACK, encoding="utf-8")
    found = json.loads(run_diagnose(log, 1, True))
    assert list(found) == ["cause", "case", "confidence", "phase", "evidence", "oom", "meaning", "advice", "seen"]
    assert found["oom"]["requested_bytes"] == 2 << 30
    log.write_text("", encoding="utf-8")
    assert json.loads(run_diagnose(log, 1, True))["oom"] is None
    assert run_diagnose(log, None, False).startswith("cause: none")


def test_run_diagnose_reads_only_the_ends_of_a_huge_log(tmp_path: Path) -> None:
    """A sparse log of 4 GiB is answered from its head and its tail."""
    log = tmp_path / "huge.log"
    with log.open("wb") as file:
        file.truncate(4 << 30)
        file.seek(0, 2)
        file.write(b"\n" + OOM_TRACEBACK.encode())
    assert run_diagnose(log, None, False).startswith("cause: cuda_oom")


@pytest.mark.parametrize("before", [0, 5 * TAIL_BYTES])
def test_a_log_from_a_pipe_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """`-` reads what can't be sought in and finds what stands last."""
    stream = io.BytesIO(bytes(before) + b"\n" + OOM_TRACEBACK.encode())
    monkeypatch.setattr(stream, "seekable", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    assert run_diagnose(Path("-"), None, False).startswith("cause: cuda_oom")


def test_the_ends_of_a_pipe_are_those_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes are kept of both, with a line end where the middle is missing."""
    for size in (10, HEAD_BYTES, HEAD_BYTES + TAIL_BYTES, HEAD_BYTES + 4 * TAIL_BYTES):
        data = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
        stream = io.BytesIO(data)
        monkeypatch.setattr(stream, "seekable", lambda: False)
        head, tail, is_cut = _ends_of(stream)
        assert head == data[:HEAD_BYTES]
        assert (head + tail)[-TAIL_BYTES:] == data[-TAIL_BYTES:]
        assert is_cut or head + tail == data
        assert len(tail) <= 2 * TAIL_BYTES


ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=300) | st.lists(
    st.sampled_from(
        [*OOM_TRACEBACK.splitlines(), LOSS, METRICS, "\r", "[rank0]: ", "Killed", "KeyError: 'a'", "{'loss': nan}", ""]
    ),
    max_size=12,
).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT, st.sampled_from([None, 0, 1, 2, -9, 137, -6]), st.booleans())
def test_any_text_is_diagnosed(log: str, status: int | None, deadline: bool) -> None:
    """No text crashes it, the same text gives the same answer, and a nonzero status always has a cause."""
    found = diagnose(log, status, deadline_hit=deadline)
    assert found == diagnose(log, status, deadline_hit=deadline)
    assert found.cause is not Cause.NONE or not status
    first_traceback(log)


HARMLESS = st.lists(
    st.sampled_from(
        [
            "INFO loading tokenizer",
            "/env/x.py:3: FutureWarning: `clean_up_tokenization_spaces` was not set",
            "  warnings.warn(",
            "Map: 100%|##########| 140/140 [00:00<00:00, 900.00 examples/s]",
            "Tip: on CUDA out of memory lower the batch size",
            "設定を読み込みました",
            "",
            "x" * 500,
        ]
    ),
    min_size=1,
    max_size=6,
).map(lambda lines: "\n".join(lines) + "\n")
FAILURES = [row for row in OWN if row[1] != "none" and row[0] not in ENDING_ONLY]


@settings(max_examples=120, deadline=None)
@given(HARMLESS, st.sampled_from(FAILURES))
def test_harmless_lines_before_change_nothing(before: str, row: list[str]) -> None:
    """What a program prints before it fails does not change why it failed."""
    log = (SAMPLES / row[0]).read_text(encoding="utf-8")
    assert diagnose(before + log, 1).cause == diagnose(log, 1).cause


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FAILURES), st.sampled_from(["[rank0]: ", "[default3]:", "[1,2]<stderr>:", "(Worker pid=42) "]))
def test_a_rank_prefix_changes_nothing(row: list[str], prefix: str) -> None:
    """A launcher's prefix on every line does not change the cause."""
    log = (SAMPLES / row[0]).read_text(encoding="utf-8")
    marked = "".join(f"{prefix}{line}\n" for line in log.split("\n"))
    assert diagnose(marked, 1).cause == diagnose(log, 1).cause


@pytest.mark.parametrize(
    "line",
    [
        "Windows fatal exception: access violation",
        "LLVM ERROR: Broken function found, compilation aborted!",
        "trainer-1 exited with code 139",
        "[1]    48213 segmentation fault (core dumped)  python train.py",
        "Error code: Wsl/Service/E_UNEXPECTED",
    ],
)
def test_a_crash_that_one_line_shows_is_no_healthy_log(line: str) -> None:
    """Without an exit status, after lines of a training."""
    assert diagnose(f"{LOSS}{line}\n").cause is Cause.OTHER


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("ImportError: cannot import name 'LocalEntryNotFoundError' from 'huggingface_hub.errors'", Cause.IMPORT_ERROR),
        ("ImportError: cannot import name 'GatedRepoError' from 'huggingface_hub.utils'", Cause.IMPORT_ERROR),
        ("AttributeError: module 'torch.cuda' has no attribute 'OutOfMemoryError'", Cause.API_DRIFT),
        ("TypeError: load() got an unexpected keyword argument 'TimeoutExpired'", Cause.API_DRIFT),
        ("huggingface_hub.errors.LocalEntryNotFoundError: outgoing traffic has been disabled", Cause.HUB_UNREACHABLE),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", Cause.CUDA_OOM),
    ],
)
def test_what_a_name_is_called_is_no_cause(name: str, cause: Cause) -> None:
    """A class that cannot be imported was not raised."""
    assert diagnose(f'Traceback (most recent call last):\n  File "/w/t.py", line 3, in f\n{name}', 1).cause is cause


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        ("/e/site-packages/lm_eval/evaluator.py", Cause.OTHER),
        ("/e/site-packages/torchtune/training/checkpointing/_checkpointer.py", Cause.OTHER),
        ("/w/LLaMA-Factory/src/llamafactory/model/patcher.py", Cause.OTHER),
        ("/w/LLaMA-Factory/src/llamafactory/data/aligner.py", Cause.BAD_DATA),
        ("/e/site-packages/lm_eval/tasks/law/utils.py", Cause.BAD_DATA),
        ("/e/site-packages/pandas/core/indexes/base.py", Cause.BAD_DATA),
        ("/w/train.py", Cause.BAD_DATA),
    ],
)
def test_a_key_that_a_library_looks_up_is_no_column(frame: str, cause: Cause) -> None:
    """Unless the code that looks it up handles rows."""
    log = f'Traceback (most recent call last):\n  File "{frame}", line 3, in f\n    x["output"]\nKeyError: \'output\''
    assert diagnose(log, 1).cause is cause


@pytest.mark.parametrize(
    ("code", "case"),
    [
        ('row["args"]', "column_missing"),
        ('example["checkpoint"]["args"]', "column_missing"),
        ('[one["args"] for one in config_rows]', "column_missing"),
        ('lr = config["optim"]["args"]', "setting_missing"),
        ("x = cfg['args']", "setting_missing"),
        ('model.load_state_dict(ckpt["args"])', "entry_not_in_checkpoint"),
        ('args = torch.load(path, map_location="cpu")["args"]', "entry_not_in_checkpoint"),
        ('lit_weights = lit_weights["args"]', "entry_not_in_checkpoint"),
    ],
)
def test_a_missing_key_is_of_what_was_looked_into(code: str, case: str) -> None:
    """The rows of the data, unless the line that failed reads a configuration or a checkpoint."""
    log = f"Traceback (most recent call last):\n  File \"/w/train.py\", line 3, in f\n    {code}\nKeyError: 'args'"
    assert diagnose(log, 1).case == case
    other = log.replace('/w/train.py", line 3, in f', '/w/train.py", line 3, in g').replace(code, 'row["args"]')
    assert diagnose(f"{log.rpartition(chr(10))[0]}\n{other.partition(chr(10))[2]}", 1).case == "column_missing"


def test_memory_that_runs_out_under_a_compiler_is_memory() -> None:
    """A frame of vLLM's compiler tells what to do only of a failure that nothing else explains."""
    log = (
        'Traceback (most recent call last):\n  File "/e/site-packages/vllm/compilation/backends.py", line 3, in f\n'
        "    x = y(z)\n{}"
    )
    assert diagnose(log.format(OOM), 1).cause is Cause.CUDA_OOM
    assert diagnose(log.format("RuntimeError: Tried to erase a node"), 1).case == "in_vllm_compiler"


@pytest.mark.parametrize(
    ("inner", "cause", "case"),
    [
        (OOM, Cause.CUDA_OOM, None),
        ("CppCompileError: C++ compile error", Cause.OTHER, "cpp_compile"),
        ("AssertionError: ", Cause.OTHER, "dynamo"),
    ],
)
def test_what_the_compiler_wraps_counts(inner: str, cause: Cause, case: str | None) -> None:
    """torch.compile prints the exception of its backend in the second line of its own."""
    log = (
        'Traceback (most recent call last):\n  File "/e/site-packages/torch/_dynamo/x.py", line 3, in f\n    x = y(z)\n'
        f"torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\n{inner}\n\nSet TORCH_LOGS for more"
    )
    found = diagnose(log, 1)
    assert found.cause is cause
    assert case is None or found.case == case


def test_a_row_that_cannot_be_stacked_is_no_broken_checkpoint() -> None:
    """The same words come of a batch whose rows differ in length and of a file of pieces."""
    log = 'Traceback (most recent call last):\n  File "/e/torch/x.py", line 3, in {}\n    out = elem.new(s)\n'
    line = "RuntimeError: Trying to resize storage that is not resizable"
    assert diagnose(log.format("default_collate") + line, 1).case == "rows_not_stacked"
    assert diagnose(log.format("_load") + line, 1).case == "checkpoint_of_shards"


@pytest.mark.parametrize(
    ("line", "cause", "case"),
    [
        ("srun: error: n1: task 0: Killed", Cause.HOST_OOM, "slurm_memory"),
        ("zsh: killed     python train.py", Cause.HOST_OOM, None),
        ("/w/run.sh: 行 12: 4242 強制終了            python train.py", Cause.HOST_OOM, None),
        ("srun: error: n1: task 3: Bus error (core dumped)", Cause.HOST_OOM, "bus_error"),
        ("zsh: illegal hardware instruction  python train.py", Cause.OTHER, "illegal_instruction"),
        (
            "/w/run.sh: line 3: 77 Floating point exception(core dumped) python t.py",
            Cause.OTHER,
            "crashed_in_native_code",
        ),
        ("run.sh: line 3:  77 Terminated              python train.py", Cause.OTHER, "ended_by_system"),
        ("client_loop: send disconnect: Broken pipe", Cause.OTHER, "ended_by_system"),
        ("The kernel appears to have died. It will restart automatically.", Cause.HOST_OOM, "kernel_died"),
        ("make: *** [train] Error 1", Cause.OTHER, "exit_code_only"),
        ("Assertion failed: the batch is not divisible by 2", Cause.OTHER, "host_assertion"),
    ],
)
def test_a_process_may_end_without_a_traceback(line: str, cause: Cause, case: str | None) -> None:
    """Shells, SLURM, notebooks and make each say in words of their own how it ended, in the language of the system."""
    found = diagnose(f"{{'loss': 1.2, 'grad_norm': 0.8, 'epoch': 0.5}}\n{line}\n")
    assert (found.cause, found.case) == (cause, case)


def test_an_exit_code_says_least() -> None:
    """Whatever else a log shows tells more than that a launcher's child failed."""
    warned = "UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."
    found = diagnose(f"{warned}\nsrun: error: n1: task 0: Exited with exit code 1\n")
    assert found.cause is Cause.CUDA_DRIVER


@pytest.mark.parametrize(
    "line",
    [
        "/w/run.sh: line 9: 1234 Terminated              nvidia-smi -l 60 > gpu.log",
        "Process exited with exit code 0",
        "Aborted by user? no",
        "git describe exited with exit code 128 (ignored)",
        "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'.",
        "error rate: 0.12",
        "エラー率: 0.12",
        "error: 0.1234567890123",
        "Error: 0.12, accuracy: 0.88",
        "Connection to node2 closed.",
        "Note: exit code 137 means the kernel ended the process for memory",
        "error: no answer for row 3, skipped",
    ],
)
def test_an_ending_of_something_else_is_no_failure(line: str) -> None:
    """A helper that was ended after the training, or a code that means success."""
    assert diagnose(f"step 9 loss 1.2\n{line}\n").cause is Cause.NONE


def test_what_a_program_reports_last_needs_no_exceptions_name() -> None:
    """The words after `error …:` are looked up as an exception's; earlier in the log they may have been dealt with."""
    line = "ERROR    [eval.py:226] An error occurred during evaluation: module 'lm_eval.tasks' has no attribute 'x'"
    assert diagnose(f"INFO starts\n{line}\n").cause is Cause.API_DRIFT
    assert diagnose(line + "\nstep" * 9 + "\n").cause is Cause.NONE


@pytest.mark.parametrize(
    "line",
    [
        "fatal: no such model card here",
        "tool: error: the tray holds no paper",
        "エラー: 用紙が切れています。補充してください",
    ],
)
def test_a_last_line_that_calls_itself_an_error_is_one(line: str) -> None:
    """In words that no row knows; what ended well afterwards dealt with it."""
    assert diagnose(f"starts\n{line}\n").cause is Cause.OTHER
    assert diagnose(f"starts\n{line}\nTraining completed.\n").cause is Cause.NONE


@pytest.mark.parametrize(
    "line",
    [
        "docker: Error response from daemon: pull access denied for x, repository does not exist",
        "mpirun noticed that process rank 0 with PID 9 on node n1 exited on signal 11 (Segmentation fault).",
        "Host key verification failed.",
        "slurmstepd: error: couldn't chdir to `/home/u/x': No such file or directory: going to /tmp instead",
        "'llamafactory-cli' は、内部コマンドまたは外部コマンド、操作可能なプログラムとして認識されていません。",
        "  × No solution found when resolving dependencies:",
        "Cannot connect to GPU backend",
    ],
)
def test_what_did_not_start_is_told_by_whoever_should_have_started_it(line: str) -> None:
    """Installers, containers, clusters, shells and notebook services print no traceback."""
    found = diagnose(f"starts\n{line}\n")
    assert found.cause is not Cause.NONE
    assert found.case is not None
