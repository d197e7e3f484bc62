"""Reads what single lines of a log show: figures, a cause without an exception, and how far the run had come.

Losses: transformers 4 prints floats, transformers 5 quoted strings; with `logging_nan_inf_filter` (the default) a NaN
loss is printed as 0.0 and only `grad_norm` shows it.

Ranks: the report that torchrun prints at its own end, torch 1.9 to 2.13 (`torch.distributed.elastic`), also under
`accelerate launch`, which runs it.

Collectives: `[Rank 6] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=20880, OpType=ALLREDUCE,
NumelIn=419, …)` of torch 2.x, newer ones with the process group before `Rank`. A rank counts its collectives in each
group, so one number with two sizes means that ranks ran different ones, but for those whose sizes may differ.

Causes: lines of help texts, of a log level below error, and of messages that say "skipped" or "retried" never count.

Phases: nothing is the first step before a step began; a function that is called `train` shows none, a bar or a
Trainer's own frame does.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from steph.base.terms import Phase
from steph.diagnose.reader import TELLING_CHARACTERS, Chain, PrintedLine
from steph.diagnose.table import Clue, Weight, first_match, rows_in, signs, triggers
from steph.record.values import OomNumbers

_PAIR = re.compile(
    r"['\"](\w+)['\"]:\s*(?:np\.float\d+\()?['\"]?(-?(?:nan|inf(?:inity)?|\d[\d.]{0,40}(?:e[-+]?\d{1,9})?))\b", re.I
)
# a value beside a name is shown; a sentence must end or go on as one that tells of an event, not of a setting
_LOSS_NAN = re.compile(
    r"(?<!best )(?<!best_)\b(?P<name>\w{0,60}loss|損失)(?:"
    r"['\"]?\s{0,9}[:=]\s{0,9}['\"]?(?:tensor\()?-?nan\b"
    r"|\s{1,9}-?nan(?=\s{0,3}(?:[,|]|\(nan\)|$"
    r"|(?:- )?(?:lr|learn|acc|grad|epoch|time|dt|ppl|perp|val|eval|tok|mem|step|kl|reward)\w{0,20}[ :=]{1,3}-?\d))"
    r"|\s{1,9}(?:is|was|became|turned)\s{1,9}(?:now\s{1,9}|a\s{1,9})?(?:tensor\()?-?nan\b(?:\s{0,9}(?:or|/)\s{0,9}inf\w*)?"
    r"(?=\s{0,9}(?:$|[.,;:!?)\]}(]|(?:at|in|on|for|after|since|from|again|now|here|skipp|stopp|abort|detect|and|-)))"
    r")(?![-_ ]?(?:guard|check|filter|safe|handl|monitor|policy|watch|protect|tolera)\w*)",
    re.I,
)
_NORM = re.compile(r"\bgrad(?:ient)?[_ ]?norm\b\W{0,9}[:=]", re.I)
_NAN_NORM = re.compile(
    r"\b(?P<name>grad(?:ient)?[_ ]?norm)['\"]?\s{0,9}[:=]\s{0,9}['\"]?(?:tensor\()?(?:nan|inf)\b", re.I
)
_CONDITION = re.compile(r"\b(?:if|when|whenever|whether|unless|until|in case|should|stops? on)\b[^.;:!?]{0,80}$", re.I)
_OF_VALIDATION = re.compile(r"(?:val|valid\w*|eval|test|dev)(?:_|(?=loss))", re.I)
_FINITE = re.compile(r"(?:\bloss|損失)\s{0,9}[:=]?\s{0,9}\d")
_TABLE_HEAD, _TABLE_ROW = (
    re.compile(r"\s{0,9}(?:Step|Epoch)\s{1,9}Training Loss"),
    re.compile(r"\s{0,9}\d{1,9}\s{1,9}(nan|inf|\d{1,9}\.\d{1,9})\b"),
)
_LOSSES = ("loss", "train_loss", "eval_loss")
_DROP_FROM = 0.05  # a loss above this that is exactly 0.0 in the next two lines did not get there by learning
_ZERO_STEPS = 3  # this many first losses of exactly 0.0 were never computed from a label
_ROSE_BY = 1.5


@dataclass(frozen=True)
class Losses:
    """Losses of the printed steps in order; `bad` are the lines that show a loss or gradient that is no number."""

    values: tuple[float, ...]
    bad: tuple[PrintedLine, ...]
    gradient_broke_at: int | None  # the first step whose gradient norm is no number

    @property
    def is_zero_from_start(self) -> bool:
        """Whether the first losses are exactly 0.0."""
        return len(self.values) >= _ZERO_STEPS and not any(self.values[:_ZERO_STEPS])

    @property
    def diverged(self) -> bool:
        """Whether a loss rose well above an earlier one, then was 0.0 or no number."""
        good = [value for value in self.values if math.isfinite(value) and value > 0]
        return bool(self.bad) and len(good) > 1 and good[-1] > _ROSE_BY * min(good[:-1])


def losses_of(lines: tuple[PrintedLine, ...]) -> Losses:
    """Read every printed loss; a run in good health has no `bad` line."""
    rows = [
        (line, {key: float(value) for key, value in _PAIR.findall(line.text)} if "{" in line.text else {})
        for line in lines
        if len(line.text) < 4000 and ("loss" in (low := line.text.lower()) or "grad" in low or "損失" in low)
    ]
    printed = [(line, pairs) for line, pairs in rows if pairs]
    if not printed:  # the table that the Trainer draws in a notebook: step (or epoch), training loss, more
        start = next((n for n, line in enumerate(lines) if _TABLE_HEAD.match(line.text)), len(lines))
        drawn = ((line, _TABLE_ROW.match(line.text)) for line in lines[start + 1 :])
        printed = [(line, {"loss": float(match[1])}) for line, match in drawn if match]
    steps = [(line, pairs) for line, pairs in printed if "loss" in pairs]
    bad = []
    for line, pairs in printed:
        losses = [pairs[key] for key in _LOSSES if key in pairs]
        if not all(map(math.isfinite, losses)) or (0.0 in losses and not _gradient_is_finite(pairs)):
            bad.append(line)
    bad = bad or _became_zero(steps) or _in_words([line for line, pairs in rows if not pairs])
    broken = (n for n, (_, pairs) in enumerate(steps) if not _gradient_is_finite(pairs))
    return Losses(tuple(pairs["loss"] for _, pairs in steps), tuple(bad), next(broken, None))


def _gradient_is_finite(pairs: dict[str, float]) -> bool:
    return math.isfinite(pairs.get("grad_norm", 0.0))


def _became_zero(steps: list[tuple[PrintedLine, dict[str, float]]]) -> list[PrintedLine]:
    """The lines where the loss is 0.0 and can't be: from the start, after a NaN gradient, or right after a high one."""
    if len(steps) >= _ZERO_STEPS and not any(pairs["loss"] for _, pairs in steps[:_ZERO_STEPS]):
        return [line for line, _ in steps[:_ZERO_STEPS]]
    norms = [pairs for _, pairs in steps if "grad_norm" in pairs]
    if len(norms) >= 2 and not any(map(_gradient_is_finite, norms[-2:])):  # a scaler skips one such step, not the last
        return [line for line, pairs in steps if not _gradient_is_finite(pairs)]
    plain = [(line, pairs["loss"]) for line, pairs in steps if "grad_norm" not in pairs]
    for (_, before), (line, loss), (_, after) in zip(plain, plain[1:], plain[2:], strict=False):
        if before > _DROP_FROM and loss == 0.0 and after == 0.0:
            return [line]
    return []


def _in_words(lines: list[PrintedLine]) -> list[PrintedLine]:
    bad = [line for line in lines if _says_nan(line, _LOSS_NAN)]
    if bad and not any(line.index > bad[-1].index and _FINITE.search(line.text) for line in lines):
        return bad
    norms = [line for line in lines if _NORM.search(line.text)]
    if len(norms) >= 2 and all(_says_nan(line, _NAN_NORM) for line in norms[-2:]):  # a scaler skips one such step
        return norms[-2:]
    return []


def _says_nan(line: PrintedLine, pattern: re.Pattern[str]) -> bool:
    """Whether a line tells of a NaN that was there; a bar or a meter shows one for a validation that was not yet."""
    return any(
        not _CONDITION.search(line.text, 0, match.start())
        and not (_OF_VALIDATION.match(match["name"]) and (line.is_bar or line.text.startswith(" (", match.end())))
        for match in pattern.finditer(line.text)
    )


# A counter that went below zero is printed as 2**64 bytes (17179869184.00 GiB) or near it; no machine has 64 TiB.
PLAUSIBLE_BYTES = 1 << 46

_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
_SIZES = {name: tuple(map(re.compile, patterns)) for name, patterns in rows_in("signs")["sizes"].items()}


def oom_numbers(message: str) -> OomNumbers | None:
    """The figures of one message, in bytes; None where it has none.

    `reserved_bytes` is the allocator's whole reserve: torch 1.x prints it, torch 2.x prints what is allocated and what
    is reserved beyond that, and their sum is taken. Sizes that no machine has (wrapped counters) become None.
    Hard-wrapped lines are joined both ways, and the reading with more figures counts.
    """

    def first(name: str, text: str) -> int | None:
        match = next((match for pattern in _SIZES[name] if (match := pattern.search(text))), None)
        if match is None:
            return None
        size = float(match[1].replace(",", "")) * _UNIT_BYTES[match[2].lower()]
        return round(size) if 0 <= size < PLAUSIBLE_BYTES else None

    best, most = None, 0
    for glue in (" ", ""):
        text = glue.join(message.split("\n"))
        allocated, beyond = first("allocated", text), first("unallocated", text)
        both = allocated is not None and beyond is not None
        numbers = OomNumbers(
            requested_bytes=first("requested", text),
            total_bytes=first("total", text),
            free_bytes=first("free", text),
            allocated_bytes=allocated,
            reserved_bytes=(allocated or 0) + (beyond or 0) if both else first("reserved", text),
        )
        count = sum(value is not None for value in numbers.model_dump().values())
        if count > most:
            best, most = numbers, count
    return best


_ENTRY = re.compile(
    r"^[ \t]{0,40}rank +: (\d+) \(local_rank: \d+\)\n[ \t]{0,40}exitcode +: (-?\d+) \(pid: (\d+)\)", re.M
)
_FIRST = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\) of binary")
_SIGTERM = 15  # how the launcher ends the others


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended: `status` as of a process, negative for a signal."""

    rank: int
    status: int
    pid: int

    @property
    def words(self) -> str:
        """One line of evidence."""
        ended = f"ended by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        return f"rank {self.rank} (pid {self.pid}): {ended}"


def failed_rank(
    ends: tuple[RankEnd, ...], probed: int | None, writer: str | None
) -> tuple[int | None, tuple[str, ...]]:
    """The rank whose failure ended the others, and the words for it; None where only one process ran.

    `probed` is the rank whose own exception was chosen as the cause, None where no probe told one; `writer` is who
    printed it.
    """
    if probed is not None:
        return probed, tuple(end.words for end in ends if end.rank == probed)
    # who lost the connection to a killed rank may be the first that the launcher sees
    killed = [end for end in ends if end.status < 0 and end.status != -_SIGTERM]
    first = next(iter([*killed, *ends]), None)
    if first is not None:
        return first.rank, (first.words,)
    told = re.fullmatch(r"(\d{1,5})|.*\brank[\s:=_#-]{0,3}(\d{1,5})\b.*", writer or "")
    return (int(told[1] or told[2]), ()) if told else (None, ())


def rank_ends(lines: tuple[PrintedLine, ...]) -> tuple[RankEnd, ...]:
    """The ranks of torchrun's report, its root cause first."""
    if not any("exitcode" in line.text for line in lines):
        return ()
    text = "\n".join(line.text for line in lines)
    root = text.rfind("Root Cause (first observed failure)")
    found = sorted(_ENTRY.finditer(text), key=lambda match: match.start() < root)
    if found:
        return tuple(RankEnd(*map(int, match.groups())) for match in found)
    return tuple(RankEnd(int(rank), int(status), int(pid)) for status, rank, pid in _FIRST.findall(text))


_WORK = re.compile(
    r"\[(?P<group>PG[^\]\n]{1,80} )?Rank (?P<rank>\d{1,5})\][^\n]{0,100}WorkNCCL\(SeqNum=(?P<number>\d{1,12}),"
    r"(?: OpType=(?P<kind>\w{1,40}),)?(?: NumelIn=(?P<size>\d{1,15}),)?"
)

_UNEVEN = re.compile(r"SEND|RECV|ALLTOALL|COALESCED|GATHER$|SCATTER$")  # ranks may differ in operation or size


@dataclass(frozen=True)
class Collective:
    """One rank's collective that timed out: `number` counts the rank's collectives, `size` is in elements."""

    group: str
    rank: int
    number: int
    kind: str | None
    size: int | None
    line: str

    @property
    def work(self) -> str:
        """Operation and size, as `ALLREDUCE (419)`."""
        return f"{self.kind or 'NCCL'} ({self.size})"


def collectives_of(lines: Sequence[PrintedLine]) -> tuple[Collective, ...]:
    """The first collective that each rank's watchdog reported, in each group, by the rank's number."""
    found: dict[tuple[str, int], Collective] = {}
    for line in lines:
        for match in _WORK.finditer(line.text) if "WorkNCCL(" in line.text else ():
            group, rank, size = match["group"] or "", int(match["rank"]), int(match["size"]) if match["size"] else None
            one = Collective(group, rank, int(match["number"]), match["kind"], size, line.text[match.start() :])
            found.setdefault((group, rank), one)
    return tuple(found[key] for key in sorted(found))


def behind(found: Sequence[Collective]) -> Collective | None:
    """The rank with the lowest number, where the others are further."""
    for group in dict.fromkeys(one.group for one in found):
        mine = [one for one in found if one.group == group]
        if len({one.number for one in mine}) > 1:
            return min(mine, key=lambda one: one.number)
    return None


def unlike(found: Sequence[Collective]) -> tuple[Collective, Collective] | None:
    """Two ranks with one number and different collectives."""
    even = [one for one in found if not _UNEVEN.search(one.kind or "")]
    pairs = ((first, second) for first in even for second in even if first.work != second.work)
    return next((pair for pair in pairs if len({(one.group, one.number) for one in pair}) == 1), None)


_OF_MILD = frozenset({Weight.HINT, Weight.SYMPTOM})
_LINES = signs("lines", re.I)
_HELP = re.compile(
    r"^\s*(?:usage:|-{1,2}[A-Za-z][\w-]*[ ,=](?!'[^']{1,200}' is not ))|^\s*(?:tip|hint|note)\s*:|^\s*#", re.I
)
_METRIC_WORD = re.compile('train_runtime|metrics|results|complete|finished|done|accuracy:|^\\{"')
_GOES_ON = re.compile(r"^\{.*['\"](?:\w+_)?loss['\"]: ['\"]?[\d.]|^train_loss|^  ?epoch +=", re.I)
_STEP_WORD, _LOSS_IS = (
    re.compile(r"(?:iter|step|epoch|batch)\w*|ステップ|エポック", re.I),
    re.compile(r"(?:\bloss|損失)\s{0,9}[:= ]\s{0,9}[\d.]", re.I),
)


def line_clue(line: PrintedLine, following: tuple[PrintedLine, ...] = ()) -> Clue | None:
    """The clue of a single line; None where it is a help text, a mild message or one that was dealt with."""
    text = line.text
    is_code = text.startswith(("    ", "\t", "│", "->", "--->")) and "exitcode" not in text and "OOMKilled" not in text
    if len(text) < TELLING_CHARACTERS or len(text) > 20_000 or is_code or _HELP.match(text):
        return None
    found = _row_of(text, line.is_mild) if _trigger().search(text.lower()) else None
    if found is None:
        return None
    if found.weight in (Weight.CERTAIN, Weight.ECHO) and any(was_handled(near.text) for near in (line, *following[:2])):
        return None
    return found


def was_handled(text: str) -> bool:
    """Whether a line says that the program went on: it retried, skipped, fell back."""
    return _LINES["handled"].search(text) is not None


@functools.cache
def _trigger() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, triggers())))


@functools.lru_cache(maxsize=1024)
def _row_of(text: str, is_mild: bool) -> Clue | None:
    """The clue of a line; one that calls itself mild can only hint, or leave what one cause alone leaves."""
    return first_match("printed", text, weights=_OF_MILD if is_mild else None)


def is_final_metric(line: PrintedLine) -> bool:
    """Whether the line reports the end of a training or an evaluation that ran through."""
    return bool(_METRIC_WORD.search(line.text.lower()) and _LINES["metrics"].search(line.text))


def shows_progress(line: PrintedLine) -> bool:
    """Whether the line proves that work went on here; progress bars don't, they are drawn again at a crash."""
    text, goes_on = line.text, False
    if "loss" in text or "epoch" in text or "損失" in text:
        word = _STEP_WORD.search(text)
        goes_on = bool((word and _LOSS_IS.search(text, word.end())) or _GOES_ON.search(text))
    return (goes_on or is_final_metric(line) or text.startswith("Successfully installed ")) and not line.is_bar


_FRAMES, _CALLS, _PRINTED = signs("frames"), signs("calls"), signs("printed", re.I)
_LAST_MODULE = re.compile(r"(?:site|dist)-packages.{0,300}in <module>")
_AFTER_TRAINING = re.compile(r"apply_chat_template")
_COUNT = re.compile(r"^(?P<label>[^|]*?)(?<!\d)\d+%\|.*\|\s*(?P<done>\d+)/(?P<due>\d+) \[")
_OF_DATA = re.compile(r"map|token|generat\w{1,20} \w{1,40} split|filter|pack|process|format", re.I)
_OTHER_BAR = re.compile(r"saving|upload|\.json", re.I)
_NEARBY_LINES = 8


def phase_of(lines: tuple[PrintedLine, ...], index: int, chain: Chain = ()) -> Phase | None:
    """The phase at line `index`, None where the log has no sign of it.

    `chain` is the exception's; its frames speak first, since they name the call that failed.
    """
    before = [line for line in lines if line.index < index]
    frames = "\n".join(frame for raised in chain for frame in raised.frames)
    if frames:
        found = _phase_of_frames(chain, frames, before)
        if found is not None:
            return found
    return _last(before) or _last([line for line in lines if index <= line.index <= index + _NEARBY_LINES])


def _phase_of_frames(chain: Chain, frames: str, before: list[PrintedLine]) -> Phase | None:
    trains = _CALLS["trains"].search(frames) is not None
    if chain[0].frames and _LAST_MODULE.search(chain[0].last_frame):
        return Phase.LOAD  # an import failed
    evaluates = _CALLS["evaluates"].search(frames) is not None
    named = next((Phase(phase) for phase, pattern in _FRAMES.items() if pattern.search(frames)), None)
    if named is Phase.PREPARE and "_trainer.py" in frames:
        return named
    if not trains and (evaluates or (named is Phase.LOAD and _CALLS["loads_adapter"].search(frames))):
        return Phase.SAVE if named is Phase.SAVE else Phase.EVAL
    if trains and evaluates and named in (None, Phase.EVAL):
        return Phase.EVAL
    if named is not None:
        return named
    has_stepped = any(_printed_phase(line) is Phase.STEP for line in before)
    if trains:
        return Phase.STEP if has_stepped else Phase.FIRST_STEP
    return Phase.EVAL if has_stepped and _AFTER_TRAINING.search(frames) else None


def _last(lines: list[PrintedLine]) -> Phase | None:
    """The last phase that the lines show; after a training's summary its bar is only drawn again."""
    over = next((line.index for line in lines if "train_runtime" in line.text), None)
    for line in reversed(lines):
        phase = _printed_phase(line)
        is_drawn_again = over is not None and line.index > over and phase in (Phase.STEP, Phase.FIRST_STEP)
        if phase is not None and not is_drawn_again:
            return phase
    return None


def _printed_phase(line: PrintedLine) -> Phase | None:
    if len(line.text) < TELLING_CHARACTERS:
        return None
    if not line.is_bar:
        return next((Phase(phase) for phase, pattern in _PRINTED.items() if pattern.search(line.text[:2000])), None)
    match = _COUNT.match(line.text)
    label = match["label"] if match else line.text[:80]
    if re.search(r"merging", label, re.I):
        return Phase.SAVE
    if re.search(r"load|download|fetch|shard|weight|\.safetensors|\.bin", label, re.I):
        return Phase.LOAD
    if re.search(r"eval|predict|generat\w+ answers|question", label, re.I):
        return Phase.EVAL
    if _OF_DATA.search(label):
        return Phase.PREPARE
    if match is None or _OTHER_BAR.search(label):
        return None
    return Phase.STEP if int(match["done"]) else Phase.FIRST_STEP
