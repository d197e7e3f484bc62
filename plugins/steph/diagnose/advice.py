"""Reads facts of the run off a log, finds the case of a cause, and says what to do next in the program's own settings.

Program, batch, length, 4-bit, card, workers and losses are read off the log, so that nobody is told what they did
already. A value that the log does not say is None. Pure.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from steph.base.messages import Message, catalog, has_message, placeholders, say
from steph.base.terms import Cause, Phase
from steph.base.text import redact
from steph.base.units import GIB, gib
from steph.diagnose.figures import Collective, Losses, RankEnd, behind, unlike
from steph.diagnose.reader import Chain, Raised
from steph.diagnose.table import Case, Program, cases, common_settings, package_of, programs, row_of, signs, steps
from steph.record.values import OomNumbers

_SIGTERM = 15
_MUCH_TRAINED_PERCENT = 10.0  # of the weights; LoRA on all linear layers at rank 64 stays below 5
_FEW_MAP_WORKERS = 4
_SHORT_ROWS = 256
# a frame's module: of an installed package, of Unsloth's cache, of a known program that runs from its own folder
_MODULE = re.compile(
    r"(?:site|dist)-packages[/\\](?P<installed>\w{1,60})(?:[/\\]|\.py\")|[/\\](?P<cached>unsloth)_compiled_cache[/\\]"
    r"|[/\\](?:src[/\\](?=axolotl|llama)|torchtune[/\\](?=torch)|(?=lm_eval|llama\.))"
    r"(?P<folder>llamafactory|llmtuner|axolotl|torchtune|lm_eval|llama\.cpp)[/\\]"
)
_NUMBERS, _SHOWN, _NAMES = signs("numbers"), signs("shown"), signs("names")


@dataclass(frozen=True)
class Facts:
    """Facts of one log about its run."""

    program: Program | None
    batch_size: int | None
    length: int | None
    trained_percent: float | None
    map_workers: int | None
    card: str | None
    several_gpus: bool
    oom: OomNumbers | None
    losses: Losses
    ends: tuple[RankEnd, ...]
    collectives: tuple[Collective, ...]
    importer: str | None  # the library whose code raised, None for a script of one's own
    shown: frozenset[str]  # names of what the text shows by itself

    @functools.cached_property
    def flags(self) -> frozenset[str]:
        """The names, as the tables use them, of what holds."""
        oom = self.oom or OomNumbers()
        total, own, slack = oom.total_bytes, oom.reserved_bytes or oom.allocated_bytes, _slack(oom)
        free = oom.free_bytes or 0
        held_by_others = total is not None and own is not None and own + free < 0.6 * total
        holds = {
            "batch_is_one": self.batch_size == 1,
            "rows_are_short": self.length is not None and self.length <= _SHORT_ROWS,
            "several_gpus": self.several_gpus,
            "trains_too_much": self.trained_percent is not None and _MUCH_TRAINED_PERCENT <= self.trained_percent < 95,
            "trains_nothing": self.trained_percent == 0,
            "many_map_workers": self.map_workers is not None and self.map_workers > _FEW_MAP_WORKERS,
            "card_held_by_others": held_by_others,
            "memory_fragmented": slack is not None and slack > max(oom.requested_bytes or GIB, 2 * GIB),
            "only_ended_ranks": bool(self.ends) and all(end.status == -_SIGTERM for end in self.ends),
            "nan_gradient_at_start": self.losses.gradient_broke_at == 0,
            "zero_loss_at_start": self.losses.is_zero_from_start,
            "loss_diverged": self.losses.diverged,
            "importer_known": self.importer is not None,
            "under_lm_eval": self.program is not None and self.program.name == "lm-evaluation-harness",
            "a_rank_is_behind": behind(self.collectives) is not None,
            "collectives_differ": unlike(self.collectives) is not None,
        }
        return self.shown | {name for name, is_so in holds.items() if is_so}

    def values(self) -> dict[str, str]:
        """The values for the words of cases and steps: settings as the program spells them, and what the log says."""
        oom = self.oom or OomNumbers()
        program = dict(self.program.settings) if self.program else {}
        length = self.length or 0
        late, pair = behind(self.collectives), unlike(self.collectives)
        slack = _slack(oom)
        said: Mapping[str, object] = {
            "batch_size": self.batch_size,
            "half_batch": self.batch_size and max(1, self.batch_size // 2),
            "length": self.length,
            "shorter": self.length and max(_SHORT_ROWS, 1 << (length - 1).bit_length() - 1 if length > 1 else 1),
            "trained_share": self.trained_percent and f"{self.trained_percent:.0f}",
            "map_count": self.map_workers,
            "card": self.card,
            "importer": self.importer and package_of(self.importer),
            "late_rank": late and str(late.rank),
            "late_number": late and late.number,
            "first_rank": pair and str(pair[0].rank),
            "second_rank": pair and str(pair[1].rank),
            "first_work": pair and pair[0].work,
            "second_work": pair and pair[1].work,
            "shared_number": pair and pair[0].number,
            "program": self.program and self.program.name,
            "card_total": oom.total_bytes and gib(oom.total_bytes),
            "allocated": oom.allocated_bytes and gib(oom.allocated_bytes),
            "unallocated": slack and gib(slack),
        }
        return {**common_settings(), **program, **{key: str(value) for key, value in said.items() if value}}


def _slack(oom: OomNumbers) -> int | None:
    both = oom.reserved_bytes is not None and oom.allocated_bytes is not None
    return (oom.reserved_bytes or 0) - (oom.allocated_bytes or 0) if both else None


def facts_of(
    text: str,
    losses: Losses,
    ends: tuple[RankEnd, ...],
    oom: OomNumbers | None,
    collectives: tuple[Collective, ...] = (),
    last_frame: str = "",
) -> Facts:
    """Read the whole log once for each kind of fact; where it says one several times, the last counts.

    `last_frame` is the innermost frame of the exception that counts.
    """
    library = _MODULE.search(last_frame)
    shown = frozenset(name for name, pattern in _SHOWN.items() if pattern.search(text))
    cards = (pattern.search(text) for pattern in _NAMES.values())
    return Facts(
        program=next((one for one in programs() if one.seen.search(text)), None),
        batch_size=_last_number("batch_size", text),
        length=_last_number("length", text) or _last_number("tokenizer_limit", text),
        trained_percent=_last_figure("trained_percent", text),
        map_workers=_last_number("map_workers", text),
        card=next((match[1] for match in cards if match), None),
        several_gpus=(_last_number("gpus", text) or 0) > 1 or "ranks" in shown,
        oom=oom,
        losses=losses,
        ends=ends,
        collectives=collectives,
        importer=library["installed"] or library["folder"] if library else None,
        shown=shown,
    )


def _last_number(name: str, text: str) -> int | None:
    figure = _last_figure(name, text)
    return None if figure is None else int(figure)


def _last_figure(name: str, text: str) -> float | None:
    last = None
    for match in _NUMBERS[name].finditer(text):
        last = next(value for value in match.groups() if value)
    return None if last is None or not math.isfinite(float(last)) else float(last)


_TEXT_CHARACTERS = 8000  # of an exception or a line: each of some 300 wordings is looked for in it
_STEPS_SHOWN = 2
_SAID_LINES, _SAID_CHARACTERS, _HINT_CHARACTERS = 12, 2000, 300
_SENTENCE_END = re.compile(r"(?<=[.!?;]) +|\n+|[,:] (?=please )", re.I)
_INSTRUCTS = re.compile(
    r"(?:please|either|try|use|set|run|consider|make sure|re-?install|upgrade|update|downgrade|pass|specify"
    r"|reduc(?:e|ing)|you (?:can(?!['n])|should|must|need|may|might|have to)"
    r"|to (?:fix|disable|avoid|enable|solve|resolve)"
    r"|did you (?:mean|forget)|instead)\b",
    re.I,
)
_IMPLIES = re.compile(
    r".{0,200}?(?:\brun with\b|\bpip install\b|\bneeds? to\b|\bha(?:s|ve) to be\b|\b(?:should|must) (?:be|"
    r"provide|specify|contain|give|set|use|pass|define|include|choose|start|end|divide|not)\b"
    r"|\brequires? [^\n]{1,120} to be installed|\bmay help\b|\bbut you didn't\b|\bmake sure\b|\b(?:is|are) required\b"
    r"|\bexpected one of\b|\bcannot exceed\b"
    r"|\b(?:supported|valid|allowed|available|accepted|possible) (?:\w{1,30} ){0,3}(?:are|is)\b)",
    re.I,
)
_STANDARD_LIBRARY = re.compile(
    r"[/\\]python3(?:\.\d{1,2})?[/\\]\w{1,60}[/\\.]"
    rf"|\\[Ll]ib\\(?:{'|'.join(sorted(sys.stdlib_module_names))})[\\.]"  # of Windows
)
_STARTER = re.compile(r"[/\\](?:bin|Scripts)[/\\][\w.-]{1,60}\"")  # what an installer wrote to start a program
_ENTRY = re.compile(
    r"(?:sys\.exit\()?(?:\w{1,60}\.){0,3}\w{0,60}(?:main|train|fit|run|evaluate)\(\)\)?$"
)  # passes nothing on
_CODE_CHARACTERS = 120
_OF_THE_SYSTEM = re.compile(r"\[(?:Errno|WinError) \d|.{0,300}\(os error \d")  # no library is at fault
# causes of which the version of the package that raised may be the reason
_OF_VERSIONS = frozenset((Cause.OTHER, Cause.API_DRIFT, Cause.IMPORT_ERROR))
_NOT_AT_FAULT = frozenset(("torch", "numpy", "fire", "click", "typer"))
# a sentence that was raised on purpose and still names no wish
_FAILED = re.compile(
    r"\bfail(?:ed|ure)\b|\binternal\b|\bunexpected(?:ly)?\b|\bcorrupt|\breport (?:a|this|the) bug|\bbug report"
    r"|\bopen an issue|\bfile an? (?:issue|bug|ticket)",
    re.I,
)
_IMPORTS = re.compile(r"(?:site|dist)-packages[^\n]{0,300}, in <module>|^\s{1,20}(?:from \S{1,100} )?import ", re.M)
_LOADS_MODEL = re.compile(r"\bin (?:from_pretrained|from_dict|from_config)\b|\bAuto\w+\.from_pretrained\(")
_PLACE = re.compile(r'File "(?:[^"\n]{0,300}[/\\])?([^"/\\\n<]{1,100})", line (\d{1,7})')
_SAYS_NOTHING = re.compile(
    r"report|torch\.Size\(|\bdocs\b|file an? (?:issue|ticket|bug)|open an issue|for more (?:info|details)|documentation"
    r"|indices must be|LAUNCH_BLOCKING|USE_CUDA_DSA|TORCH_LOGS|NCCL_DEBUG|enable traceback|look up|try again",
    re.I,
)


@dataclass(frozen=True)
class Words:
    """The words on one cause or case: its meaning, and the steps to take, the best one first."""

    meaning: Message
    steps: tuple[Message, ...]


def case_of(
    cause: Cause,
    told: str | None,
    phase: Phase | None,
    chain: Chain,
    evidence: str,
    log: str,
    facts: Facts,
    above: str = "",
    root: Raised | None = None,
) -> Case | None:
    """The first row of the cause that fits all that is known; `told` is the case whose wording decided the cause.

    `evidence` is the exception or line that told the cause, `log` the whole text; `above` are the lines before an
    exception, which stand for its frames where the log shows none in a known form. `root` is the exception that counts.
    """
    modules = modules_of(root) if root is not None else []
    place = package_of(modules[0][0]) if modules and not modules[0][1] else None
    told_lines = [line[:_TEXT_CHARACTERS] for line in evidence.split("\n")]
    raised_texts = [text for raised in chain for text in raised.texts] or [evidence]
    texts = [text[:_TEXT_CHARACTERS] for text in raised_texts]
    frames = "\n".join(frame[:500] for raised in chain for frame in raised.frames[-200:]) or above
    for case in cases():
        if case.cause is not cause:
            continue
        if case.id == told:
            return case
        if (case.phases and phase not in case.phases) or not facts.flags.issuperset(case.facts):
            continue
        if case.packages and place not in case.packages:
            continue
        if case.frames is not None and not case.frames.search(frames):
            continue
        worded = any(pattern.search(one) for pattern in case.raised for one in texts) or any(
            pattern.search(line) for pattern in case.printed for line in told_lines
        )
        if worded or (case.log.search(log) if case.log is not None else not (case.raised or case.printed)):
            return case  # beside a log pattern, wordings are other ways to know the case
    return None


def captured(case: Case, texts: list[str]) -> dict[str, str]:
    """What the named groups of the case's wordings hold in the first text that fits."""
    for pattern in (*case.raised, *case.printed):
        for one in texts:
            match = pattern.search(one)
            if match is not None:
                found = {name: value for name, value in match.groupdict().items() if value}
                return {"package": package_of(found["module"]), **found} if "module" in found else found
    return {}


def advice_of_unknown(chain: Chain, cause: Cause, root: Raised | None, has_place: bool = False) -> tuple[Message, ...]:
    """Steps for an exception of unknown form: what its message says, and the packages or the place that raised it.

    `has_place`: a case knows the package that raised it, and says what to do about that.
    """
    if not chain:
        return ()
    hint = None
    for raised in reversed(chain):
        text = "\n".join(raised.message[:_SAID_LINES])[:_SAID_CHARACTERS]
        sentences = [one for one in map(str.strip, _SENTENCE_END.split(text)) if not _SAYS_NOTHING.search(one)]
        found = next(filter(_INSTRUCTS.match, sentences), None) or next(filter(_IMPLIES.match, sentences), None)
        if found is not None:
            more = (
                sentences[sentences.index(found) + 1 :][:1] if found.endswith(":") else []
            )  # the command that it names
            hint = redact(" ".join((found, *more))[:_HINT_CHARACTERS].rstrip(";"))
            break
    steps = [say("diagnose.step.message_says", hint=hint)] if hint is not None else []
    if cause not in _OF_VERSIONS and cause is not Cause.BAD_DATA:
        return tuple(steps)
    last = root if root is not None and root.frames else chain[-1]
    modules = modules_of(last)
    said = redact("\n".join(last.message)[:_HINT_CHARACTERS].strip()) or (
        last.last_code if last.last_code.startswith("assert ") else ""
    )
    packages = list(dict.fromkeys(package_of(name) for name, _ in modules))[:2]
    if modules:
        package, in_folder = packages[0], modules[0][1]
        # what torch or Python raises on purpose, the library that called it did not mean
        is_its_own = last.is_deliberate and _module_in(last.last_frame) == modules[0]
        is_unmeant = not is_its_own or _FAILED.search(said) is not None
        if len(packages) == 2 and _IMPORTS.search("\n".join(last.frames[-200:])):
            steps.insert(0, say("diagnose.step.import_pair", package=package, caller=packages[1]))
        elif is_unmeant and cause is Cause.BAD_DATA:
            pass  # no other version would take such a row
        elif in_folder and is_unmeant:
            steps.append(say("diagnose.step.raised_in_folder", package=package))
        elif is_unmeant or (hint is None and not said):
            every = (pair for one in (last, *chain) for pair in modules_of(one))
            both = " ".join(list(dict.fromkeys(package_of(name) for name, is_folder in every if not is_folder))[:2])
            step = say("diagnose.step.raised_in", package=package, packages=both)
            steps += [] if has_place else [step]
        elif hint is None:  # the code looked for this, and says so in words of its own
            steps.append(say("diagnose.step.refused", package=package, said=said))
            if _LOADS_MODEL.search("\n".join(last.frames[-200:])):
                steps.append(say("diagnose.step.newer_importer", importer=package))
    if has_place or cause is not Cause.OTHER:
        return tuple(steps)
    return (*steps, *own_code_of(last))


def _module_in(frame: str) -> tuple[str, bool] | None:
    """The module that a frame stands in, and whether it runs from a folder; None for one's own code and Python's."""
    match = _MODULE.search(frame[:500])
    return (match["installed"] or match["cached"] or match["folder"], match["folder"] is not None) if match else None


def modules_of(raised: Raised) -> list[tuple[str, bool]]:
    """The modules in whose code an exception was raised, the innermost first, and whether each runs from a folder.

    Torch and the standard library, through which they called, are left out; empty where one's own code raised it.
    """
    found: list[tuple[str, bool]] = []
    if _OF_THE_SYSTEM.match(raised.message[0]):
        return found
    for frame in reversed([frame for frame in raised.frames[-200:] if 'File "' in frame]):
        module = _module_in(frame)
        if module is not None:
            found += [module] if module[0] not in _NOT_AT_FAULT else []
        elif not _STANDARD_LIBRARY.search(frame[:500]):
            break
    return found


def newer_of(raised: Raised) -> tuple[Message, ...]:
    """A step that updates the installed library in whose code an error of Python's own kinds came up; maybe empty."""
    modules = modules_of(raised)
    if not modules or modules[0][1] or raised.is_deliberate:
        return ()
    return (say("diagnose.step.newer_importer", importer=package_of(modules[0][0])),)


def own_code_of(raised: Raised) -> tuple[Message, ...]:
    """A step that names the innermost frame that is no library's, with its code where that is shown; maybe empty."""
    frames = [frame[:500] for frame in raised.frames[-200:]]
    for frame, code in reversed(list(zip(frames, [*frames, ""][1:], strict=False))):
        match = _PLACE.search(frame)
        if match is None or _MODULE.search(frame) or _STANDARD_LIBRARY.search(frame) or _STARTER.search(frame):
            continue
        said = "" if 'File "' in code else redact(code.strip()[:_CODE_CHARACTERS])
        if _ENTRY.match(said):
            return ()
        place = {"file": match[1], "line": match[2]}
        step = "diagnose.step.own_code.shown" if said else "diagnose.step.own_code"
        return (say(step, **place, code=said) if said else say(step, **place),)
    return ()


def words_of(
    cause: Cause,
    case: Case | None,
    facts: Facts | None,
    found: Mapping[str, str] | None = None,
    first: tuple[Message, ...] = (),
) -> Words:
    """What is said of a case, else of its cause, after the steps that are to stand `first`.

    Without `facts` every step is shown: the page of causes has no log.
    """
    base = f"diagnose.case.{case.id}" if case else f"diagnose.cause.{cause.value}"
    values = dict(common_settings() if facts is None else facts.values())
    values.update({**(case.values if case else {}), **(found or {})})
    values["both"] = " ".join(dict.fromkeys(values[name] for name in ("importer", "package") if values.get(name)))
    ids = case.steps if case else row_of(cause).get("steps", ())
    messages = [] if ids else [f"{base}.{part}" for part in ("do", "next") if has_message(f"{base}.{part}")]
    for step in (steps()[one] for one in ids):
        if facts is None:
            messages.append(f"diagnose.step.{step.id}")
        elif facts.flags.issuperset(step.when) and not facts.flags.intersection(step.unless):
            messages.append(f"diagnose.step.{step.id}" + (".known" if step.known in values else ""))
    named = {one: placeholders(catalog("en")[one]) for one in (f"{base}.means", *messages)}
    if facts is not None:  # a setting that the program lacks is spelled as nothing
        sayable = [one for one in messages if all(values.get(name) != "" for name in named[one])]
        if not sayable:  # the program is part of a larger one, or was taken for another
            values.update({name: spelled for name, spelled in common_settings().items() if not values.get(name)})
        messages = (sayable or messages)[:_STEPS_SHOWN]
    meaning, *advice = (
        say(one, **{name: values[name] for name in named[one] if name in values})
        for one in (f"{base}.means", *messages)
    )
    return Words(meaning, tuple([*first, *advice][:_STEPS_SHOWN] if first else advice))
