"""Finds why an attempt ended as it did: its log, its exit status and its probes become one `Diagnosis`.

Candidates come from exception chains, single lines, losses, the exit status and the probes; the one that says most
counts, and among equals the one printed first, since later ones are mostly its consequences. Pure, but for `steph
diagnose`, which reads one log, of a huge one both ends, and prints its diagnosis as text or JSON.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from steph.base.messages import Message, text
from steph.base.terms import Cause, Phase
from steph.base.text import encoding_of, redact
from steph.base.units import gib
from steph.diagnose import reader
from steph.diagnose.advice import advice_of_unknown, captured, case_of, facts_of, newer_of, own_code_of, words_of
from steph.diagnose.figures import (
    Collective,
    Losses,
    RankEnd,
    behind,
    collectives_of,
    failed_rank,
    is_final_metric,
    line_clue,
    losses_of,
    oom_numbers,
    phase_of,
    rank_ends,
    shows_progress,
    unlike,
    was_handled,
)
from steph.diagnose.table import Case, Clue, Weight, first_match, row_of
from steph.record.values import Diagnosis, OomNumbers, Probe

_EVIDENCE_CHARACTERS = 600
_EVIDENCE_LINES = 5
_REPORT_CHARACTERS = 3000
_FRAMES_LOOKED_AT, _FRAME_CHARACTERS = 200, 500
_SIGKILL, _TIMEOUT_STATUS = 9, 124
_REPORTED = re.compile(
    r"^(?=.{0,200}?\b(?:ERROR|CRITICAL|FATAL|[Ee]rror|[Ff]ailed|[Ff]ailure)\b|.{0,200}?失敗)(?!\s*['\"(])(?!.*[Rr]etry)"
    r".{1,200}?(?P<type>\b(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Timeout)): (?P<message>.{1,2000})"
)
_REPORTED_BARE = re.compile(
    r"(?:\b(?:ERROR|CRITICAL|FATAL|[Ee]rror)\b|エラー).{0,200}?[:：] ?"
    r"(?P<message>\S.{7,2000})"
)
_LAST_WORDS = re.compile(
    r"^(?:\S{1,60}: )?(?:ERROR|[Ee]rror|fatal|FATAL|エラー)[:：](?! ?-?\d{1,9}\.\d) ?"
    r"(?P<message>(?=.*[^\W\d]{3}).{10,2000})"
)
_LOOK_UP = re.compile(r"(?:KeyError|AttributeError|IndexError|StopIteration)$")
_LAST_LINES = 6
_LINES_ABOVE = 8
_BARE_KILL = re.compile(r"^(?:.{0,300}\s)?(?:[Kk]illed|強制終了|已杀死)(?:\s{2,}.{0,600})?$")
_FACTS_CHARACTERS = 1 << 19  # at each end of a log: a program prints its settings at its start
# an exception that speaks of a name: what it is called (`LocalEntryNotFoundError`) tells nothing of the Hub or the card
_ABOUT_A_NAME = re.compile(
    r"^(?:[\w.]{1,80}\.)?(?:(?:ImportError|ModuleNotFoundError): (?:cannot import name|No module named)"
    r"|NameError: name '|AttributeError: (?:partially initialized )?(?:module|type object) '?[\w.]+'? has no attribute"
    r"|TypeError: [\w.<>]{1,120}\(\) got an unexpected keyword argument)"
)
# cases whose first line only says that a compiler or a check failed
_REASON_IS_BELOW = frozenset(("compile_failed", "config_key_unknown", "dynamo"))
_OF_NAMES = frozenset((Cause.IMPORT_ERROR, Cause.API_DRIFT, Cause.BNB_SETUP, Cause.OTHER))
_LIBRARY_FRAME = re.compile(r"(?:(?:site|dist)-packages|[/\\]src|lm-evaluation-harness)[/\\](?P<rest>.*)")
_HANDLES_DATA = re.compile(
    r"data|pandas|arrow|polars|collat|token|prompt|templat|format|process|row|sample|example|doc|jinja|column|trainer"
    r"|[/\\]tasks[/\\]"
)
_ALLOCATION_MESSAGE = re.compile(r"out of memory|[Tt]ried to allocate|would exceed allowed memory", re.I)


@dataclass(frozen=True)
class _Candidate:
    clue: Clue
    index: int
    evidence: tuple[str, ...]
    chain: reader.Chain = ()
    root: reader.Raised | None = None
    rank: int | None = None

    @property
    def weight(self) -> Weight:
        return self.clue.weight


@dataclass(frozen=True)
class _Log:
    lines: tuple[reader.PrintedLine, ...]
    chains: tuple[reader.Chain, ...]
    last_progress: int  # index of the last line that shows progress, -1 where none does
    has_metrics: bool
    losses: Losses
    ends: tuple[RankEnd, ...]

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)

    def ended(self, cause: Cause, how: str) -> _Candidate:
        """A candidate from how the process ended, with the last two lines that it printed."""
        last = [line.text for line in self.lines[-40:] if line.text.strip()][-2:]
        return _Candidate(Clue(cause, Weight.SIGNAL), len(self.lines), (how, *last))


def diagnose(
    log: str,
    returncode: int | None = None,
    probes: Sequence[Probe] = (),
    deadline_hit: bool = False,
) -> Diagnosis:
    """The cause of an attempt's end and its case, the phase, the lines that say so, and what to do next.

    `returncode` is the process's: negative or 128 + n for a signal, None where nobody knows it. `deadline_hit`: the
    suite itself ended the process at its limit. Nonzero never gives `none`.
    """
    read = _read(log)
    chosen = _choose(read, returncode, probes, deadline_hit)
    if chosen is None:
        return Diagnosis(cause=Cause.NONE)
    cause, root, chain = chosen.clue.cause, chosen.root, chosen.chain
    if not chain:  # the exception that followed the line that told the cause, where it is of the same cause
        later = [chain for chain in read.chains if chain[0].index > chosen.index]
        chain = next((chain for chain in later if any(clue_of(one).cause is cause for one in chain)), ())
    rank, rank_words = failed_rank(read.ends, chosen.rank, root.rank if root else None)
    oom = _oom(read, chosen) if cause in (Cause.CUDA_OOM, Cause.HOST_OOM) else None
    hung = collectives_of(read.lines) if cause is Cause.TIMEOUT else ()
    last_frame = next((raised.last_frame for raised in chain if raised is root), "")
    shown = reader.clip(read.text, _FACTS_CHARACTERS, _FACTS_CHARACTERS)
    facts = facts_of(shown, read.losses, read.ends, oom, hung, last_frame)
    is_of_losses = cause is Cause.NAN_LOSS and read.losses.bad and not chain
    phase = Phase.STEP if is_of_losses else phase_of(read.lines, chosen.index, chain)
    told = "\n".join(chosen.evidence)
    above = "\n".join(line.text for line in read.lines if chosen.index - _LINES_ABOVE <= line.index < chosen.index)
    case = case_of(cause, chosen.clue.case, phase, chain, told, read.text, facts, above if chain else "", root)
    row = row_of(cause)
    phase = phase or (case.in_phase if case else None) or (Phase(row["in_phase"]) if "in_phase" in row else None)
    texts = [one for raised in chain for one in raised.texts] or [told]
    is_place = case is not None and bool(case.packages)
    is_looked_through = is_place or (case is None and bool(row.get("says_what_to_do")))
    first = advice_of_unknown(chain, cause, root, is_place) if is_looked_through else ()
    words = words_of(cause, case, facts, captured(case, texts) if case else None, first)
    places = _places_of(root, case) if root is not None else ()
    evidence = _telling(chosen, case)
    every = (*rank_words, *evidence, *_quoted(read, case, hung, evidence))
    unique = dict.fromkeys(redact(text.strip())[:_EVIDENCE_CHARACTERS] for text in every if text.strip())
    is_bare_kill = chosen.weight is Weight.SYMPTOM or any(map(_BARE_KILL.search, chosen.evidence))
    confidence: Literal["certain", "likely", "guess"]
    if cause is Cause.HOST_OOM and is_bare_kill:
        confidence = "likely"  # an administrator or a scheduler can send a SIGKILL, too
    elif chosen.weight >= Weight.SYMPTOM:
        confidence = case.sure if case else "certain"
    else:
        confidence = "likely" if chosen.weight >= Weight.LIKELY or case is not None else "guess"
    return Diagnosis(
        cause=cause,
        case=case.id if case else None,
        confidence=confidence,
        phase=phase,
        rank=rank,
        evidence=tuple(unique)[:_EVIDENCE_LINES],
        oom=oom,
        meaning=words.meaning,
        advice=(*words.steps[: 1 if len(places) > 1 else None], *places),
    )


def _places_of(root: reader.Raised, case: Case | None) -> tuple[Message, ...]:
    """For an error of Python's own kinds: the library in which it came up, and one's own line that led there."""
    if case is None or not case.shows_line:
        return ()
    is_told = bool(case.steps) or case.cause is not Cause.OTHER
    return (*(() if is_told else newer_of(root)), *own_code_of(root))


def first_traceback(log: str) -> str | None:
    """The root exception's traceback as printed, prefixes and colours off, at most about 12 KB; None without one."""
    read = _read(log)
    chosen = _choose(read, 1, (), False)
    root = chosen.root if chosen and chosen.root else next((c[0] for c in read.chains if c[0].frames), None)
    return redact(reader.shortened("\n".join(root.printed))) if root is not None and root.frames else None


def _telling(chosen: _Candidate, case: Case | None) -> tuple[str, ...]:
    """The evidence, with the line of a long message that tells the case, or the first one that says anything."""
    root = chosen.root
    if root is None or root.line not in chosen.evidence:
        return chosen.evidence
    patterns = case.raised if case else ()
    rest = [line for line in root.message[1:] if line.strip()]
    line = next((one for one in rest if any(pattern.search(one) for pattern in patterns)), None)
    if line is None and not root.message[0].strip():
        line = next(iter(rest), None)
    if line is None or any(pattern.search(root.line) for pattern in patterns):
        return chosen.evidence
    at = chosen.evidence.index(root.line)
    both = (root.line, line) if root.message[0].strip() else (f"{root.line}: {line.strip()}",)
    return (*chosen.evidence[:at], *both, *chosen.evidence[at + 1 :])


def _quoted(read: _Log, case: Case | None, hung: tuple[Collective, ...], told: tuple[str, ...]) -> list[str]:
    """Other lines of the log that the words speak of: those that the case asks for, and the ranks that differ."""
    wanted = [
        next((line.text for line in read.lines if pattern.search(line.text[:_REPORT_CHARACTERS])), "")
        for pattern in (case.quote if case else ())
    ]
    late = behind(hung)
    ranks = (*(unlike(hung) or ()), *((late,) if late else ()))
    return [one for one in (*wanted, *(rank.line for rank in ranks)) if not any(one in line for line in told)]


def _read(log: str) -> _Log:
    lines = reader.lines_of(log)
    telling = [line for line in lines if len(line.text) >= reader.TELLING_CHARACTERS]
    return _Log(
        lines=lines,
        chains=reader.chains_of(lines),
        last_progress=next((line.index for line in reversed(telling) if shows_progress(line)), -1),
        has_metrics=any(map(is_final_metric, telling)),
        losses=losses_of(lines),
        ends=rank_ends(lines),
    )


def _choose(read: _Log, returncode: int | None, probes: Sequence[Probe], deadline_hit: bool) -> _Candidate | None:
    """The candidate that says most; None where nothing failed."""
    bad = read.losses.bad
    clue, shown = Clue(Cause.NAN_LOSS, Weight.SYMPTOM), tuple(line.text for line in bad[:3])
    losses = [_Candidate(clue, bad[0].index, shown)] if bad else []
    if returncode == 0 and read.has_metrics:
        return _best(losses)
    raised = [_from_chain(chain) for chain in read.chains if not chain[0].ignored]
    late = [one for one in raised if one.index > read.last_progress]
    if deadline_hit:  # a process that raised and then hung until its limit failed of what it raised
        own = (one for one in late if one.weight >= Weight.CERTAIN and one.root and one.root.has_header)
        return _best(own) or read.ended(Cause.TIMEOUT, "deadline reached")
    # after what is late nothing shows progress; where that is a launcher's report at the end, one before it counted too
    unhandled = raised if late and all(one.weight is Weight.ECHO for one in late) else late
    printed = _from_lines(read)
    if returncode in (0, None):
        found = [*unhandled, *printed]
        if returncode is None and not found:
            found = _from_end(read)
        if returncode == 0:
            found = [one for one in found if one.root is not None and one.root.has_header]
        return _best((*found, *losses))
    found = [*(unhandled or raised[-1:]), *printed, *losses]
    number = -returncode if returncode < 0 else returncode - 128 if 128 < returncode < 128 + 65 else 0
    status = f"exit status {returncode}" + (f" (signal {number})" if number else "")
    if returncode == _TIMEOUT_STATUS or number == _SIGKILL:
        found.append(read.ended(Cause.TIMEOUT if returncode == _TIMEOUT_STATUS else Cause.HOST_OOM, status))
    return _best((*found, *_from_probes(probes, found))) or read.ended(Cause.OTHER, status)


def _best(found: Iterable[_Candidate]) -> _Candidate | None:
    return min(found, key=lambda one: (-one.weight, one.index), default=None)


def _from_chain(chain: reader.Chain) -> _Candidate:
    told = [one for one, after in zip(chain, (*chain[1:], None), strict=True) if not _was_looked_up(one, after)]
    around = "\n".join(map(_frames_of, chain))
    clues = [(raised, clue_of(raised, around)) for raised in told]
    root, clue = min(clues, key=lambda pair: -max(pair[1].weight, Weight.UNKNOWN))
    if clue.weight is Weight.ECHO:
        root, clue = next((pair for pair in clues if pair[1].weight is not Weight.ECHO), clues[0])
    if root.type.endswith("DatasetGenerationError"):  # it says only what was done when another one came
        root = told[0]
    others = tuple(raised.line for raised in chain if raised is not root)
    frame = (root.last_frame,) if root.last_frame else ()
    return _Candidate(clue, root.index, (*frame, root.line, *others), chain, root)


def _was_looked_up(raised: reader.Raised, after: reader.Raised | None) -> bool:
    """Whether a library asked a table or an object of its own for a name, and says itself what it missed."""
    if after is None or not after.is_deliberate or not _LOOK_UP.match(raised.type):
        return False
    (file, _, _), (same, _, _) = raised.last_frame.partition(", line"), after.last_frame.partition(", line")
    return file == same and "-packages" in file


def _frames_of(raised: reader.Raised) -> str:
    return "\n".join(frame[:_FRAME_CHARACTERS] for frame in raised.frames[-_FRAMES_LOOKED_AT:])


def clue_of(raised: reader.Raised, around: str = "") -> Clue:
    """The clue of one exception, in a chain with the frames `around`; `other` and UNKNOWN where no row knows it."""
    frames = _frames_of(raised)
    best = Clue(Cause.OTHER, Weight.UNKNOWN)
    causes = _OF_NAMES if _ABOUT_A_NAME.match(raised.line) else None
    opened: Clue | None = None  # told by the first line, which leaves the reason to the lines below
    for said in raised.texts:
        found = first_match("raised", said[:8000], frames, causes=causes, around=around)
        if found is not None and (found.weight >= Weight.CERTAIN or found.weight is Weight.ECHO):
            if found.case not in _REASON_IS_BELOW:
                return found
            opened = found
        if found is not None and (best.cause is Cause.OTHER or found.weight > best.weight):
            best = found
    if opened is not None:
        return opened
    library = _LIBRARY_FRAME.search(raised.last_frame)
    if best.cause is Cause.BAD_DATA and best.weight is Weight.LIKELY and library:
        is_of_rows = _HANDLES_DATA.search(library["rest"]) is not None
        return best if is_of_rows else Clue(Cause.OTHER, Weight.UNKNOWN)  # something of the library's own, not a row
    return best


def _from_lines(read: _Log) -> list[_Candidate]:
    """Clues of single lines after which nothing shows progress."""
    found = []
    for position, line in enumerate(read.lines):
        if line.index <= read.last_progress or len(line.text) < reader.TELLING_CHARACTERS:
            continue
        clue = line_clue(line, read.lines[position + 1 : position + 3])
        if clue is not None:
            found.append(_Candidate(clue, line.index, (line.text,)))
    if found or read.chains:
        return found
    return [one for one in (_from_wrapped(read) or _from_reports(read)) if one.index > read.last_progress]


def _from_end(read: _Log) -> list[_Candidate]:
    """An exception that ended the log behind a logger's date and level, whatever the level; else a last `error: …`."""
    last = [line for line in read.lines[-40:] if line.text.strip()][-_LAST_LINES:]
    bare = tuple(reader.PrintedLine(line.index, line.text[len(reader.lead_of(line.text)) :]) for line in last)
    late = [chain for chain in reader.chains_of(bare) if not chain[0].ignored and chain[0].index > read.last_progress]
    harmless = {raised.index for chain in read.chains if chain[0].ignored for raised in chain}
    if last[-1:] and last[-1].text.strip() == "^C" and not read.chains:  # a notebook host ends a process like this
        grew = [line for line in last if "tcmalloc: large alloc" in line.text]
        return [_Candidate(Clue(Cause.HOST_OOM, Weight.LIKELY), grew[-1].index, (grew[-1].text, "^C"))] if grew else []
    said = _LAST_WORDS.match(last[-1].text) if last and not read.has_metrics and not read.chains else None
    if said and not last[-1].is_mild and not was_handled(last[-1].text) and last[-1].index > read.last_progress:
        late.append((reader.Raised(last[-1].index, "Error", (said["message"].strip(),), (), ()),))
    return [
        _from_chain(chain)
        for chain in late
        if ("Error" in chain[-1].type or "Exception" in chain[-1].type) and chain[-1].index not in harmless
    ]


def _from_reports(read: _Log) -> list[_Candidate]:
    """`ERROR … failed: SomeError: why`: an exception that a program caught, reported and ended on.

    Without the exception's name only among the last lines, and in a wording that only one cause has.
    """
    found = []
    last = [line.index for line in read.lines[-40:] if line.text.strip()][-_LAST_LINES:]
    for line in read.lines:
        text = line.text[:_REPORT_CHARACTERS]
        match, least = None, Weight.LIKELY
        if (": " in text or "：" in text) and not line.is_mild:
            match = _REPORTED.match(text)
            if match is None and line.index in last and not was_handled(text):
                match, least = _REPORTED_BARE.search(text), Weight.CERTAIN
        if match is not None:
            kind = match.groupdict().get("type") or "Error"
            clue = clue_of(reader.Raised(line.index, kind, (match["message"],), (), ()))
            if clue.weight >= least:
                found.append(_Candidate(Clue(clue.cause, Weight.LIKELY), line.index, (line.text,)))
    return found


def _from_wrapped(read: _Log) -> list[_Candidate]:
    """A message that a terminal's width cut in mid-word, without an exception's name to find it by."""
    for first, second in zip(read.lines, read.lines[1:], strict=False):
        if len(first.text) >= 40 and not first.is_mild and not first.is_bar:
            clue = line_clue(reader.PrintedLine(first.index, first.text + second.text))
            if clue is not None and clue.weight >= Weight.CERTAIN:
                return [_Candidate(clue, first.index, (first.text, second.text))]
    return []


def _from_probes(probes: Sequence[Probe], found: Sequence[_Candidate]) -> list[_Candidate]:
    """With several ranks the rank that raised first-hand counts, whatever the survivors printed."""
    raised = [probe for probe in probes if probe.exception_type and probe.exception_type != "SystemExit"]
    if len(probes) == 1 and any(one.root for one in found):
        return []
    candidates = []
    for probe in raised:
        message = tuple((probe.exception_message or "").splitlines()) or ("",)
        own = reader.Raised(-1, probe.exception_type or "", message, (), (), rank=str(probe.rank))
        label = f"rank {probe.rank}: {own.line}" if probe.rank is not None else own.line
        one = _Candidate(clue_of(own), -1, (label,), (own,), own, probe.rank)
        for printed in found:
            last = printed.chain[-1] if printed.root else own
            same_type = own.type.rpartition(".")[2] == last.type.rpartition(".")[2]
            if last is not own and same_type and message[0].strip() == last.message[0]:
                one = replace(printed, evidence=(label, *printed.evidence), rank=probe.rank)
                break
        if one.weight is not Weight.ECHO:  # an unknown exception that a rank itself reported still beats symptoms
            candidates.append(replace(one, clue=Clue(one.clue.cause, max(one.weight, Weight.SYMPTOM))))
    return candidates


def _oom(read: _Log, chosen: _Candidate) -> OomNumbers | None:
    """The figures of the chosen exception or line, else of any other line that speaks of an allocation."""
    near = [line for line in read.lines if line.index == chosen.index]
    near += [line for line in read.lines if _ALLOCATION_MESSAGE.search(line.text) and line.index > read.last_progress]
    texts = ["\n".join((raised.type, *raised.message)) for raised in chosen.chain]
    texts += ["\n".join(line.text for line in read.lines[line.index : line.index + 8]) for line in near]
    return next((numbers for text in texts if (numbers := oom_numbers(text))), None)


HEAD_BYTES = 1 << 20
TAIL_BYTES = 4 << 20
NOTEBOOK_BYTES = 256 << 20  # JSON is read whole: its ends alone are none
_GZIP = b"\x1f\x8b"


def run_diagnose(path: Path, returncode: int | None, as_json: bool) -> str:
    """What `steph diagnose` prints for a log file (`-`: standard input); of a huge log, its head and its tail.

    The JSON has the keys cause, case, confidence, phase, evidence, oom, meaning, advice and seen, and `rank` where
    several processes ran. Raises OSError where the file can't be read.
    """
    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
        start = file.read(2)
        whole = file if file.seekable() and file.seek(0) == 0 else _Rejoined(start, file)
        if start == _GZIP:
            whole = _Rejoined(b"", stack.enter_context(gzip.GzipFile(fileobj=whole)))
        try:
            head, tail, is_cut = _ends_of(whole)
        except (EOFError, gzip.BadGzipFile) as error:
            raise OSError(0, f"a broken gzip file ({error})") from error
    encoding = encoding_of(head)
    ends = (head, tail) if is_cut else (head + tail,)
    log = "\n".join(end.decode(encoding, "replace") for end in ends)
    found = diagnose(log, returncode)
    seen = seen_in(log) if found.cause is Cause.NONE else ()
    if as_json:
        without = {"rank"} if found.rank is None else None
        words = {"meaning": found.meaning and str(found.meaning), "advice": list(map(str, found.advice))}
        shown = {**found.model_dump(mode="json", exclude=without), **words, "seen": list(seen)}
        return json.dumps(shown, ensure_ascii=False, indent=2)
    return "\n".join((*_as_text(found), *seen))


class _Rejoined(io.RawIOBase, BinaryIO):
    """A stream behind the bytes that were read from it to see what it is; it can't be sought in."""

    def __init__(self, start: bytes, rest: BinaryIO | gzip.GzipFile) -> None:
        super().__init__()
        self._start, self._rest = start, rest

    def read(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        return start + self._rest.read(size - len(start) if size >= 0 else -1)


def _ends_of(stream: BinaryIO) -> tuple[bytes, bytes, bool]:
    """The stream's first bytes, its last ones, and whether some between them are left out; a notebook comes whole."""
    head = stream.read(HEAD_BYTES)
    if head.lstrip()[:1] == b"{" and b'"cells"' in head:
        return head + stream.read(NOTEBOOK_BYTES), b"", False
    if stream.seekable():
        start = max(HEAD_BYTES, stream.seek(0, 2) - TAIL_BYTES) & ~1  # even, for UTF-16
        stream.seek(start)
        return head, stream.read(), start > HEAD_BYTES
    tail, dropped = b"", False
    while block := stream.read(1 << 20):
        tail += block
        if len(tail) > 2 * TAIL_BYTES:
            tail, dropped = tail[(len(tail) - TAIL_BYTES) & ~1 :], True
    return head, tail, dropped


def _as_text(found: Diagnosis) -> list[str]:
    phase: Phase | None = found.phase
    out = [f"cause: {found.cause.value}"]
    out += [f"case: {found.case}"] if found.case else []
    out += [f"confidence: {found.confidence}"] if found.confidence else []
    out += [f"phase: {phase.value if phase else '-'}"]
    out += [f"rank: {found.rank}"] if found.rank is not None else []
    out += [f"evidence: {line}" for line in found.evidence]
    if found.oom:
        figures = {key: value for key, value in found.oom.model_dump().items() if value is not None}
        out += [f"{key}: {value} ({gib(value)})" for key, value in figures.items()]
    out += [f"meaning: {found.meaning}"] if found.meaning else []
    return out + [f"advice: {line}" for line in found.advice]


def seen_in(log: str) -> tuple[str, ...]:
    """Sentences about a healthy or unfinished run, so that nobody takes "no failure found" for "all is well"."""
    lines = reader.lines_of(log)
    losses = losses_of(lines)
    facts = facts_of("\n".join(line.text for line in lines), losses, (), None)
    found: list[tuple[str, dict[str, object]]] = [("nothing", {})]
    found.append(("lines", {"lines": sum(bool(line.text.strip()) for line in lines)}))
    if facts.program:
        found.append(("program", {"program": facts.program.name}))
    values = [value for value in losses.values if math.isfinite(value)]
    if values:
        found.append(("losses", {"count": len(values), "first": f"{values[0]:g}", "last": f"{values[-1]:g}"}))
    if handled := sum(not chain[0].ignored and "Error" in chain[0].type for chain in reader.chains_of(lines)):
        found.append(("handled", {"count": handled}))
    if warnings := sum(line.is_mild and "WARN" in line.text.upper() for line in lines):
        found.append(("warnings", {"count": warnings}))
    if any(is_final_metric(line) for line in lines):
        found.append(("metrics", {}))
    else:
        phase = phase_of(lines, len(lines))
        if phase is not None:
            found.append(("phase", {"phase": text(f"diagnose.phase.{phase.value}")}))
        found.append(("no_metrics", {}))
    return tuple(text(f"diagnose.seen.{name}", values=values) for name, values in found)
