"""Single lines that tell a cause without any exception: C aborts, the kernel, launchers, drivers, the shell.

In: lines. Out: a clue for a line, and whether a line shows that the run went on in good health. Lines of help
texts, of a log level below error, and of messages that say "skipped" or "retried" never count.
"""

from __future__ import annotations

import functools
import re

from steph.base.terms import Cause
from steph.diagnose.reader import TELLING_CHARACTERS, PrintedLine
from steph.diagnose.table import Clue, Rule, Weight, first_match, rule

_C, _W = Cause, Weight

# fmt: off
LINES: tuple[Rule, ...] = (
    rule(
        _C.CUDA_DRIVER, _W.HARDWARE,
        r"^Failed to initialize NVML", r"Driver/library version mismatch", r"^NVIDIA-SMI has failed",
        r"fallen off the bus", r"GPU is lost", r"Xid .*: (?:48|61|62|63|64|74|79|92|94|95|119|120|136|140)\b",
        r"Unable to determine the device handle", r"uncorrectable (?:NVLink|ECC) error",
    ),
    rule(
        _C.CUDA_OOM, _W.CERTAIN,
        r"out of memory\. Tried to allocate", r"MPS backend out of memory",
        r"(?:CUDA|HIP)(?: driver| runtime)? (?:error|failure)(?: ?\(?\d+\)?)? ?:? *'?out of memory",
        r"cudaMalloc failed: out of memory", r"Error out of memory at line \d+ in file",
        r"(?:CUDA|HIP)_ERROR_OUT_OF_MEMORY", r"RESOURCE_EXHAUSTED: Out of memory", r"CUBLAS_STATUS_ALLOC_FAILED",
        r"^(?:CUDA|HIP|XPU) out of memory", r"kIOGPUCommandBufferCallbackErrorOutOfMemory",
        r"ggml_\w+: .*(?:out of memory|failed to allocate)", r"what\(\): +(?:CUDA|HIP|XPU)\b.*out of memory",
    ),
    rule(
        _C.CUDA_ASSERT, _W.CERTAIN,
        r"Assertion .*failed", r"device-side assert", r"CUDA error: an illegal memory access",
    ),
    rule(
        _C.HOST_OOM, _W.CERTAIN,
        r"^(?:Killed|強制終了|Out Of Memory)$", r"(?:line \d+:|^\[\d+\][+-]?) +\d+ +(?:Killed|killed|強制終了)\b",
        r"^\S+: \d+: Killed$", r"Out of memory: Kill(?:ed)? process", r"\boom-kill\b", r"oom_reaper", r"OOM-?Killed",
        r"oom[-_ ]kill(?:er|ed)? event", r"out-of-memory handler", r"Task \d+: Out Of Memory",
        r"terminated by signal (?:SIGKILL|9)\b", r"\*\*\* \[.*\] Killed",
        r"DefaultCPUAllocator: (?:can't|not enough)", r"what\(\): +std::bad_alloc", r"instance of 'std::bad_alloc'",
        r"memory allocation of \d+ bytes failed", r"Cannot allocate memory(?: \(errno=12\))?$",
        r"after using all available RAM", r"dataloader's workers are out of shared memory",
        r"insufficient shared memory \(shm\)", r"Fatal Python error: .*MemoryError",
    ),
    rule(
        _C.HOST_OOM, _W.SYMPTOM,
        r"(?:return|exit)s?(?:ed)?(?: with)?(?: (?:return|exit|non-zero)){0,3}(?: (?:code|status))[ =:]*(?:-9|137)\b",
        r"exitcode *: *-9\b", r"Signal 9 \(SIGKILL\) received", r"\bError 137\b", r"interrupted by signal 9",
        r"died with <Signals\.SIGKILL", r"terminated with signal SIGKILL",
    ),
    rule(
        _C.DISK_FULL, _W.CERTAIN,
        r"No space left on device", r"Disk quota exceeded", r"not enough space on the disk", r"空き領域がありません",
        r"ディスク使用量", r"os error (?:28|122)\b", r"database or disk is full", r"cannot write.*disk full",
    ),
    rule(
        _C.BNB_SETUP, _W.CERTAIN,
        r"Error .{1,120} at line \d+ in file .{0,200}(?:bitsandbytes|csrc|\.cu|\.cpp|\.hip)\b",
        r"^CUDA Setup failed despite",
    ),
    rule(
        _C.BNB_SETUP, _W.HINT,
        r"CUDA SETUP: (?:Required|Problem|CUDA (?:detection failed|runtime path not)|Something|Setup|"
        r"Defaulting to libbitsandbytes_cpu)",
        r"bitsandbytes library load error", r"bitsandbytes was compiled without GPU",
        r"No supported devices found for bitsandbytes", r"(?:Could not|Couldn't) (?:load|find) (?:the )?bitsandbytes",
        r"argument of type 'WindowsPath'", r"CUDA exception! Error code",
        r"libbitsandbytes_\w+\.so: (?:cannot|undefined)",
    ),
    rule(
        _C.CUDA_DRIVER, _W.CERTAIN,
        r"driver version is insufficient", r"No devices were found", r"no CUDA-capable device",
        r"CUDA_ERROR_(?:NO_DEVICE|UNKNOWN)", r"NVRM: .*(?:API mismatch|RmInitAdapter failed)",
        r"CUDA error: (?:unknown error|initialization error)", r"nvidia-container-cli: .*error",
        r"could not select device driver",
    ),
    rule(
        _C.CUDA_DRIVER, _W.HINT,
        r"driver on your system is too old", r"not compatible with the current PyTorch", r"CUDA initialization: ",
        r"Can't initialize NVML", r"Found no NVIDIA driver", r"Xid .*: \d+",
    ),
    rule(
        _C.TIMEOUT, _W.CERTAIN,
        r"Watchdog caught collective operation timeout", r"DUE TO TIME LIMIT", r"^(?:E +)?Failed: Timeout",
        r"^\++ Timeout \++$", r"^timeout: sending signal", r"ran for \d+ milliseconds before timing out",
    ),
    rule(
        _C.IMPORT_ERROR, _W.CERTAIN,
        r"symbol lookup error:", r"error while loading shared libraries", r"^[^:]*python[\d.]*: No module named",
    ),
    rule(
        _C.HUB_UNREACHABLE, _W.CERTAIN,
        r"unable to access '?https://(?:huggingface|hf)\.co", r"Could not resolve host: (?:huggingface|hf|cdn-lfs)",
    ),
    rule(
        _C.HUB_GATED, _W.CERTAIN,
        r"^Cannot access gated repo", r"^Repo \w+ \S+ is gated", r"^Access to (?:model|dataset) \S+ is restricted",
    ),
    rule(_C.TIMEOUT, _W.SYMPTOM, r"NCCL operations have failed or timed out"),
    rule(_C.API_DRIFT, _W.CERTAIN, r"error: unrecognized arguments"),
    rule(_C.BAD_DATA, _W.LIKELY, r"^(?:エラー|ERROR)[:：].*(?:データ|ファイル|JSON).*(?:ありません|"
    r"見つかりません|壊れ|空|読め|不正)"),
    rule(
        _C.CUDA_OOM, _W.HINT,
        r"^(?!usage|if |to |tip|hint|note).*\b(?:CUDA|GPU) (?:OOM|out of memory)\b.*(?:abort|exit|fail|giv)",
    ),
    rule(
        _C.OTHER, _W.SIGNAL,
        r"^(?:Segmentation fault|Aborted|Bus error|Illegal instruction|Fatal Python error: )",
        r"line \d+: +\d+ +(?:Aborted|Segmentation fault|Bus error)", r"^Process finished with exit code (?!0\b)",
        r"exits with return code = -?[1-9]",
    ),
)
# fmt: on

# a line without any of these matches no row above; looking for them is a hundred times faster than the rows
TRIGGERS = (
    *(
        "memory",
        "oom",
        "nvml",
        "nvidia",
        "driver",
        "bus",
        "lost",
        "xid",
        "device",
        "ecc",
        "nvlink",
        "assert",
        "killed",
        "強制終了",
    ),
    *(
        "signal",
        "sigkill",
        "status",
        "code",
        "error",
        "space",
        "quota",
        "空き",
        "ディスク",
        "disk",
        "cuda",
        "hip",
        "bitsandbytes",
    ),
    *(
        "windowspath",
        "timeout",
        "timing out",
        "time limit",
        "timed out",
        "symbol",
        "libraries",
        "no module",
        "resolve host",
    ),
    *(
        "unable to access",
        "gated",
        "restricted",
        "エラー",
        "segmentation",
        "aborted",
        "illegal",
        "bad_alloc",
        "ram",
        "alloc",
        "137",
    ),
)

_TRIGGER = re.compile("|".join(map(re.escape, TRIGGERS)))
_HANDLED = re.compile(
    r"retry|retried|try(?:ing)? again|skipp(?:ing|ed)|falling back|fall(?:s)? back|reduc(?:e|ed|ing) (?:the "
    r")?batch|batch size (?:to|was)"
    r"|recover(?:ed|ing)|ignor(?:ed|ing)|\bhandled|(?<!watchdog )\bcaught|再試行|スキップ",
    re.I,
)
_HELP = re.compile(r"^\s*(?:usage:|-{1,2}[A-Za-z][\w-]*[ ,=])|^\s*(?:tip|hint|note)\s*:|^\s*#|^\s*>>> ", re.I)
_METRICS = re.compile(
    r"'train_runtime'|^\*+ (?:train|eval) metrics|^EVALUATION RESULTS|^Detailed results saved|\"train_runtime\""
    r"|^(?:.*\b)?(?:Training|Fine-?tuning|Evaluation)(?: is| has)? (?:been )?(?:completed?|finished|done)\b|"
    r"^Accuracy: [\d.]+",
    re.I,
)
_METRIC_WORD = re.compile("train_runtime|metrics|results|complete|finished|done|accuracy:")
_GOES_ON = re.compile(r"^\{.*['\"](?:\w+_)?loss['\"]: ['\"]?[\d.]|^train_loss|^  ?epoch +=", re.I)
_STEP_WORD, _LOSS_IS = re.compile(r"(?:iter|step|epoch|batch)\w*", re.I), re.compile(r"\bloss\s*[:=]\s*[\d.]", re.I)


def line_clue(line: PrintedLine, following: tuple[PrintedLine, ...] = ()) -> Clue | None:
    """What a single line says; None where it is a help text, a mild message or one that was dealt with."""
    text = line.text
    if len(text) < TELLING_CHARACTERS or len(text) > 20_000 or _is_code(text):
        return None
    found = _row_of(text) if _TRIGGER.search(text.lower()) else None
    if found is None or _HELP.match(text) or (line.is_mild and found.weight not in (Weight.HINT, Weight.SYMPTOM)):
        return None
    if found.weight is Weight.CERTAIN and any(_HANDLED.search(near.text) for near in (line, *following[:2])):
        return None
    return found


@functools.lru_cache(maxsize=1024)
def _row_of(text: str) -> Clue | None:
    return first_match(LINES, text)


def is_final_metric(line: PrintedLine) -> bool:
    """Whether the line reports the end of a training or an evaluation that ran through."""
    return bool(_METRIC_WORD.search(line.text.lower()) and _METRICS.search(line.text))


def shows_progress(line: PrintedLine) -> bool:
    """Whether the line proves that work went on here; progress bars don't, they are drawn again at a crash."""
    goes_on = ("loss" in line.text or "epoch" in line.text) and _tells_loss(line.text)
    return (goes_on or is_final_metric(line)) and not line.is_bar


def _tells_loss(text: str) -> bool:
    word = _STEP_WORD.search(text)
    return bool((word and _LOSS_IS.search(text, word.end())) or _GOES_ON.search(text))


def _is_code(text: str) -> bool:
    return text.startswith(("    ", "\t", "│", "->", "--->")) and "exitcode" not in text
