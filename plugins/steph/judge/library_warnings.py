"""What libraries say of themselves and nobody reads: one table of their warnings, and which of them an output has.

A row is a warning that a person would act on. What the same libraries print in every sound run (`use_cache`, pad
tokens, an unmodified vocabulary) is in no row. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steph.base.messages import Message, say
from steph.base.terms import Severity
from steph.judge.kinds import INFO, WARN

_LINE_CHARS = 4000


@dataclass(frozen=True)
class LibraryWarning:
    """One warning: `literal` is in every line of it (a quick look), `pattern` decides; `words` is its message's id.

    `at_least`: so many lines; fewer are how a sound run begins. `gpu_only`: on the CPU it says what was asked for.
    """

    literal: str
    pattern: re.Pattern[str]
    words: str
    severity: Severity = WARN
    at_least: int = 1
    gpu_only: bool = False

    @property
    def message(self) -> Message:
        """What it means for the run."""
        return say(self.words)


def _row(
    literal: str,
    pattern: str,
    words: str,
    severity: Severity = WARN,
    *,
    at_least: int = 1,
    gpu_only: bool = False,
) -> LibraryWarning:
    return LibraryWarning(literal, re.compile(pattern, re.I), words, severity, at_least, gpu_only)


_TO_CPU = r"\b(?:fall(?:s|ing)? ?back|fell back|switch(?:ing|ed)|defaulting|revert(?:ing|ed)?) (?:on)?to (?:the )?cpu\b"


_WHY = r"(?:\bnan\b|\binf\b|non-?finite|out of memory|\boom\b|exception|\berrors?\b|too long|empty label|no labels)"
_WHAT = r"\b(?:batch(?:es)?|(?:optimi[sz]er |training )?(?:steps?|updates?)|samples?|examples?|instances?|rows?)"
# what is done, not what would be done: "will skip batches with NaN" and "skipping of NaN batches: enabled" say nothing
_NOT_DONE = (
    rf"\b(?:will|would|if|when|whether|unless|enabled?|disabled?|policy|option|(?:no|0|zero) {_WHAT})\b"
    r"|(?<!rank )\b0 skipped|skipped \w+\s*[:=]\s*0\b"
)
_DONE = rf"^(?!.*(?:{_NOT_DONE})).*"

TABLE: tuple[LibraryWarning, ...] = (
    _row("ignored in loss", r"ignored in (?:the )?loss calculation", "library.not_in_loss"),
    _row("labels", r"all (?:the )?labels .{0,60}(?:are|were) -100", "library.no_labels"),
    _row(
        "sequence length is longer",
        r"token indices sequence length is longer than the specified maximum",
        "library.too_long",
    ),
    _row("skip", rf"{_DONE}{_WHY}.{{0,100}}\bskipp(?:ed|ing)\b.{{0,40}}{_WHAT}", "library.skipped"),
    _row("kipp", rf"{_DONE}\bskipp(?:ed|ing)\b.{{0,40}}{_WHAT}.{{0,60}}{_WHY}", "library.skipped_rows"),
    _row("kipping step", r"overflow.{0,60}skipping step", "library.overflow", at_least=5),
    _row("Dropped ", r"dropped (?:lengthy|invalid) example", "library.dropped"),
    _row("New tokens", r"new tokens have been added, make sure", "library.new_tokens"),
    _row("offload", r"are on the meta device.{0,40}because they were offloaded", "library.off_gpu"),
    _row("dispatched on the", r"modules are dispatched on the (?:cpu|disk)", "library.off_gpu"),
    _row("requires_grad", r"none of the inputs have requires_grad=true", "library.no_gradient"),
    _row("lora_", r"size mismatch for .{0,300}lora_", "library.lora_shapes"),
    _row("not used when", r"were not used when initializing.{0,300}(?:lora_|_orig_mod)", "library.lora_unused"),
    _row("peft_config", r"already found a `?peft_config`? attribute", "library.two_adapters"),
    _row("a second time", r"modify a model with peft for a second time", "library.two_adapters"),
    _row("best model", r"could not locate the best model", "library.no_best"),
    _row("accumulation", r"gradient accumulation steps mismatch", "library.accumulation"),
    _row("contamination", r"(?:packing|padding-free).{0,300}cross-contamination", "library.contamination"),
    _row("right-padding", r"right-padding was detected", "library.right_padding"),
    _row("meta device", r"parameters (?:are|were) (?:still )?on the meta device", "library.meta"),
    _row("CPU", rf"{_TO_CPU}", "library.to_cpu"),
    _row("CPU", r"cpu\s?(?:に|へ)\s?(?:フォールバック|切り替え|切替)", "library.to_cpu"),
    _row(
        "CPU",
        r"(?:cuda|gpu)\b.{0,40}\b(?:not|un)\s?(?:available|found|detected).{0,40}\b(?:using|running on) (?:the )?cpu",
        "library.on_cpu",
        gpu_only=True,
    ),
    _row("tokenized prompt", r"mismatch between tokenized prompt and", "library.boundary", INFO),
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A warning that was printed, and the lines that it was printed in."""

    warning: LibraryWarning
    lines: tuple[str, ...]


def warnings_in(output: str, *, on_gpu: bool = True) -> tuple[Said, ...]:
    """The warnings of the table that this output has, in the table's order."""
    rows = (row for row in TABLE if on_gpu or not row.gpu_only)
    found = (Said(row, _lines_of(row, output)) for row in rows if row.literal in output)
    return tuple(said for said in found if len(said.lines) >= said.warning.at_least)


def _lines_of(row: LibraryWarning, output: str) -> tuple[str, ...]:
    lines = (line[:_LINE_CHARS] for line in re.split(r"[\r\n]+", output) if row.literal in line)
    return tuple(line for line in lines if row.pattern.search(line))
