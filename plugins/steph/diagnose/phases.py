"""How far a script had come when it failed: from the frames of the exception, else from what was printed before it."""

from __future__ import annotations

import re

from steph.base.terms import Phase
from steph.diagnose.exceptions import Chain
from steph.diagnose.reader import TELLING_CHARACTERS, PrintedLine

_FRAMES: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    (
        Phase.SAVE,
        re.compile(
            r"\bsave_pretrained\b|_save_checkpoint|\bsave_model\b|in save_file|serialization\.py.{0,300}in save\b|"
            r"torch\.save\(|_save_optimizer"
        ),
    ),
    (
        Phase.PREPARE,
        re.compile(r"prepare_model_for_(?:kbit|int8)_training|\bget_peft_model\b|inject_adapter|_create_and_replace"),
    ),
    (
        Phase.LOAD,
        re.compile(
            r"\bfrom_pretrained\b|_load_pretrained_model|load_checkpoint|load_state_dict|snapshot_download|"
            r"hf_hub_download"
            r"|cached_files?\b|validate_environment|load_dataset\b|load_model\b|convert_and_load"
        ),
    ),
    (
        Phase.EVAL,
        re.compile(
            r"\bin (?:generate|_sample|evaluate|evaluation_loop|prediction_step|predict)\b|\.generate\(|"
            r"\.evaluate\(|evaluate_\w{1,100}\.py"
        ),
    ),
    (
        Phase.STEP,
        re.compile(
            r"\bin (?:train|_inner_training_loop|training_step|backward|compute_loss|_run_epoch|"
            r"optimizer_step)\b|trainer\.train\("
            r"|\.backward\(|optimizer\.step\(|\bin training_step|loss\.backward"
        ),
    ),
)
_PRINTED: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    (
        Phase.SAVE,
        re.compile(
            r"'train_runtime'|Saving model checkpoint|Configuration saved in|tokenizer config file saved|"
            r"checkpoint-\d+ .{0,300}sav",
            re.I,
        ),
    ),
    (
        Phase.STEP,
        re.compile(r"^\{.*'(?:loss|grad_norm)'|\b(?:step|iter\w{0,20})\s{0,9}[:=#]?\s{0,9}[1-9].{0,400}\bloss\b", re.I),
    ),
    (
        Phase.EVAL,
        re.compile(
            r"Total samples to evaluate|Initializing RAG|Running (?:Evaluation|Prediction)|^Evaluating|RAG "
            r"Mode:|LoRA Path:"
        ),
    ),
    (Phase.FIRST_STEP, re.compile(r"\* Running training|Num (?:examples|Epochs) =|trainable params:", re.I)),
    (
        Phase.LOAD,
        re.compile(
            r"Loading (?:checkpoint shards|weights|base model|model|tokenizer|dataset|adapter)|^Download|"
            r"^Fetching \d+ files|^Materializing"
            r"|\.safetensors|Generating \w+ split|resolve/main|libbitsandbytes|CUDA SETUP",
            re.I,
        ),
    ),
)
_COUNT = re.compile(r"^(?P<label>[^|]*?)(?<!\d)\d+%\|.*\|\s*(?P<done>\d+)/(?P<due>\d+) \[")
_OTHER_BAR = re.compile(
    r"load|download|map|token|fetch|shard|generat|filter|saving|upload|process|pack|\.safetensors|\.bin|\.json|weight",
    re.I,
)
_NEARBY_LINES = 5


def phase_of(lines: tuple[PrintedLine, ...], index: int, chain: Chain = ()) -> Phase | None:
    """The phase at line `index`, None where the log has no sign of it.

    `chain` is the exception's; its frames speak first, since they name the call that failed.
    """
    frames = "\n".join(frame for raised in chain for frame in raised.frames)
    phase = next((phase for phase, pattern in _FRAMES if pattern.search(frames)), None)
    if phase is not None and phase is not Phase.STEP:
        return phase
    before = [line for line in lines if line.index < index]
    if phase is Phase.STEP:
        stepped = any(_printed_phase(line) is Phase.STEP for line in before)
        return Phase.STEP if stepped else Phase.FIRST_STEP
    return _last_printed(before) or _first_printed(
        [line for line in lines if index <= line.index <= index + _NEARBY_LINES]
    )


def _last_printed(lines: list[PrintedLine]) -> Phase | None:
    return next((phase for line in reversed(lines) if (phase := _printed_phase(line))), None)


def _first_printed(lines: list[PrintedLine]) -> Phase | None:
    return next((phase for line in lines if (phase := _printed_phase(line))), None)


def _printed_phase(line: PrintedLine) -> Phase | None:
    if len(line.text) < TELLING_CHARACTERS:
        return None
    if line.is_bar:
        return _bar_phase(line.text)
    return next((phase for phase, pattern in _PRINTED if pattern.search(line.text[:2000])), None)


def _bar_phase(text: str) -> Phase | None:
    match = _COUNT.match(text)
    label = match["label"] if match else text[:80]
    if re.search(r"load|download|fetch|shard|weight|\.safetensors|\.bin", label, re.I):
        return Phase.LOAD
    if re.search(r"eval|predict|generat\w+ answers|question", label, re.I):
        return Phase.EVAL
    if match is None or _OTHER_BAR.search(label):
        return None
    return Phase.STEP if int(match["done"]) else Phase.FIRST_STEP
