"""Checks that a training and an evaluation share, by what was seen in their processes: inputs and weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median

from steph.base.files import UnreadableError, matrix_numbers, read_header
from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import normal_form, text_hash
from steph.base.messages import Message, say
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.contract.results import Row
from steph.contract.training_files import ADAPTER_WEIGHTS_NAME
from steph.judge.checks_adapter import adapter_config_or_empty
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures
from steph.judge.witness import BaseCompared, Batch, Generation, Matrices, ModelSaved, OwnCode, TrainingEnds
from steph.record.values import Check

MOST_MISPLACED = 0.1  # of a row's tokens; a packed text of one token is misplaced by its form
SOUND_PENALTIES = (0.9, 1.3)
MOST_FORCED_TOKENS = 1.0
LEAST_LINE_CHARS = 4
LEAST_PROMPTS = 3  # what all of them have is a template's
FORCING = ("force_words_ids", "constraints", "forced_bos_token_id", "forced_decoder_ids", "sequence_bias",
           "prefix_allowed_tokens_fn")  # fmt: skip
LIMITING = {"prefix_allowed_tokens_fn", "logits_processor"}
_MARKS = re.compile(r"[<＜]|\[/?INST|\[/?SYS")  # of templates: these may be special tokens, which leave no text
TOLERANCE = 0.02  # of a norm: a matrix that is saved in bf16 keeps its norm and its sum to a thousandth
CUT = 2.0**-7  # of a sum, in bf16
SMALLEST = 1e-6  # of a norm; below that all is noise
EVEN, LEAST_EVEN = 0.999, 16  # of norm times the root of the size: all numbers of a matrix are alike
MOST_GROWN = 1.1  # of a norm: the mean of a training's steps is hardly larger than its last one
LEAST_MEAN = 0.5  # of the last step's B; that of all steps alike has this much
ALIKE = 0.005  # between factors: a mean changes each matrix in its own way
MOST_NAMED = 8  # of places with code of its own
FEW_CHANGED = 0.1  # of the base's tensors
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(.*?\.lora_(?:embedding_)?[AB])(?:\.weight)?$")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module)\.")
_NORM, _WHOLE = re.compile(r"Norm\d*d?$"), re.compile(r"ForCausalLM$|LMHeadModel$")

TEMPLATE_ONCE = CheckKind("template_once", "H-2・H-3", WARN, optional=True)
MASK_AND_POSITIONS = CheckKind("mask_and_positions", "H-2・H-3", FAIL, optional=True)
ANSWERS_FREE = CheckKind("answers_free", "H-3", WARN, optional=True)
PROMPTS_AS_RECORDED = CheckKind("prompts_as_recorded", "H-3", WARN, trap=27, optional=True)
SAVED_AS_TRAINED = CheckKind("saved_as_trained", "H-2", FAIL, trap=23, optional=True)
ADAPTER_AS_SAVED = CheckKind("adapter_as_saved", "H-3", FAIL, trap=19, optional=True)
BASE_UNCHANGED = CheckKind("base_unchanged", "H-2・H-3", FAIL, optional=True)
NO_OWN_CODE = CheckKind("no_own_code", "H-2・H-3", WARN, optional=True)


def inputs_check(facts: Sequence[Batch | Generation]) -> Check:
    """The mask hides padding only and all of what stands before a row; positions rise one by one."""
    troubles: dict[str, int] = {}
    rows = 0
    for fact in facts:
        found = {
            "inputs.hidden": [n > 0 for n in fact.hidden or ()],
            "inputs.bare_padding": [n > 0 for n in fact.bare_padding or ()],
            "inputs.misplaced": [share > MOST_MISPLACED for share in fact.misplaced or ()],
        }
        if isinstance(fact, Generation):
            found["inputs.padding_behind"] = list(fact.padding_behind or ())
        else:
            found["inputs.foreseen"] = [n > 0 for n in fact.foreseen or ()]
        rows += max(map(len, found.values()))
        for what, flags in found.items():
            troubles[what] = troubles.get(what, 0) + sum(flags)
    if not rows:
        return MASK_AND_POSITIONS.check(None, "none")
    told = [say(what, rows=count) for what, count in troubles.items() if count]
    worst = max(troubles.values())
    severity = WARN if 0 < 2 * worst <= rows else None
    return MASK_AND_POSITIONS.check(
        not worst, "wrong" if told else "sound", severity=severity, rows=rows, troubles=told
    )


def template_check(facts: Sequence[Batch | Generation]) -> Check:
    """No turn begins in another one's header."""
    rows = [one for fact in facts for one in fact.nested or () if one is not None]
    if not rows:
        return TEMPLATE_ONCE.check(None, "none")
    return TEMPLATE_ONCE.check(2 * sum(rows) <= len(rows), "counted", rows=len(rows), nested=sum(rows))


def steering_check(calls: Sequence[Generation], *, says_labels: bool = False) -> Check:
    """The check of what the program alone asked `generate` to force, forbid or punish.

    `says_labels`: each answer is a label, which vary and are not all the right ones. Who lets a model choose among
    labels alone forces none of them; that is a note.
    """
    if not calls:
        return ANSWERS_FREE.check(None, "none")
    found: dict[str, float] = {}
    for name, value in (item for call in calls for item in call.steering.items()):
        is_sound_penalty = name.endswith("penalty") and SOUND_PENALTIES[0] <= value <= SOUND_PENALTIES[1]
        is_short = name in ("min_new_tokens", "min_length") and value <= MOST_FORCED_TOKENS
        if not is_sound_penalty and not is_short:
            found[name] = value
    forces = any(name in FORCING for name in found)
    if found and says_labels and found.keys() <= LIMITING:
        return ANSWERS_FREE.check(False, "limited", severity=INFO, arguments=[*found])
    shown = [one_line(f"{name}={value:g}", 60) for name, value in sorted(found.items())]
    return ANSWERS_FREE.check(
        not found, "steered" if found else "free", severity=FAIL if forces else None, arguments=shown
    )


def recorded_prompts_check(rows: Sequence[Row], prompts: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Check:
    """Every line of a row's own prompt was in one of the prompts that were seen, and no others but a template's.

    `prompts`: the hashes of each one's lines, and its fingerprints. A line at the prompt's edge may have a template's
    text on it; lines with a template's marks are not compared.
    """
    seen = [({*lines}, {*prints}) for lines, prints in prompts if lines]
    compared = lost = 0
    nearest: list[tuple[Row, list[set[str]]]] = []  # each row, and the lines of the prompts that are most like its own
    for row in rows:
        text = (row.asked or "").strip() if isinstance(row.prompt, str) else ""
        told = [line for line in text.splitlines() if line.strip()]
        lines = [
            (text_hash(line)[:8], {*fingerprints(line)} if n in (0, len(told) - 1) else None)
            for n, line in enumerate(told)
            if not _MARKS.search(line) and len(normal_form(line)) >= LEAST_LINE_CHARS
        ]
        if not lines or not seen:
            continue
        compared += 1
        missing = [
            sum(own not in hashes and (edge is None or not edge <= prints) for own, edge in lines)
            for hashes, prints in seen
        ]
        lost += min(missing) > 0
        nearest.append((row, [seen[n][0] for n, count in enumerate(missing) if count == min(missing)]))
    if not compared:
        return PROMPTS_AS_RECORDED.check(None, "none")
    added = _added(nearest)
    if not lost and 2 * added > compared:
        return PROMPTS_AS_RECORDED.check(False, "added", compared=compared, added=added)
    return PROMPTS_AS_RECORDED.check(not lost, "compared", compared=compared, lost=lost)


def _added(nearest: Sequence[tuple[Row, list[set[str]]]]) -> int:
    """How many prompts have lines that neither their rows record nor all prompts have, as those of a template.

    Where several have all of a row's lines, one of two questions may be among them: the shortest is the row's own.
    """
    if len(nearest) < LEAST_PROMPTS:
        return 0
    frame = set[str].intersection(*(lines for _, alike in nearest for lines in alike))
    added = 0
    for row, alike in nearest:
        lines = min(alike, key=len)
        told, asked = (
            {text_hash(line)[:8] for line in str(text or "").splitlines() if line.strip()}
            for text in (row.prompt, row.asked)
        )
        # a recorded line with a template's text on it is another line there
        added += len(lines - told - asked - frame) > len(asked - lines)
    return added


def trained_weight_checks(ends: TrainingEnds | None, folder: Path, save: ModelSaved | None = None) -> tuple[Check, ...]:
    """Of a training: the file that it left by the last `save` of it, its base, and its code."""
    facts, seen, at_save = [ends] if ends else [], ends.matrices if ends else None, save.matrices if save else None
    base_and_code = _base_check([one.base for one in facts]), _code_check([one.own_code for one in facts], trains=True)
    if seen is None or (file := _file(folder)) is None:
        return SAVED_AS_TRAINED.check(None, "unread"), *base_and_code
    stored = [
        _WRAPPERS.sub("", one.name).replace(".base_layer.", ".") for one in read_header(folder / ADAPTER_WEIGHTS_NAME)
    ]
    lost = [name for name in (facts[0].base or BaseCompared()).trained if not any(one.endswith(name) for one in stored)]
    if lost:
        names = [one_line(name, 80) for name in lost[:MOST_NAMED]]
        unsaved = say("weights.unsaved", count=len(lost), names=names)
        return SAVED_AS_TRAINED.check(False, unsaved, severity=WARN), *base_and_code
    if isinstance(adapter_config_or_empty(folder).get("init_lora_weights"), str):
        return SAVED_AS_TRAINED.check(None, "from_base"), *base_and_code
    message, holds = _compared(file, seen)
    if holds and (kept := facts[0].since_last) is not None and kept < LEAST_MEAN:
        return SAVED_AS_TRAINED.check(False, "mean", severity=WARN, percent=100 * kept), *base_and_code
    if not holds and at_save and is_mean(at_save, seen) and _compared(file, at_save)[1]:
        # the size of a mean's B matrices, which begin at zero, over that of the training's last ones
        shares = [at_save[name][0] / value[0] for name, value in seen.items() if name.endswith("B") and value[0]]
        kept = median(shares) if shares else 1.0
        return SAVED_AS_TRAINED.check(kept >= LEAST_MEAN, "mean", severity=WARN, percent=100 * kept), *base_and_code
    return SAVED_AS_TRAINED.check(holds, message), *base_and_code


def answering_weight_checks(
    calls: Sequence[Generation], with_adapter: Sequence[Generation], folder: Path | None
) -> tuple[Check, ...]:
    """Of an evaluation: the adapter's file in `folder` against the calls that had it; base and code of all calls."""
    base_and_code = (
        _base_check([call.base for call in calls]),
        _code_check([call.own_code for call in calls], trains=False),
    )
    seen, file = [call.matrices for call in with_adapter if call.matrices], _file(folder) if folder else None
    if not seen or file is None:
        return ADAPTER_AS_SAVED.check(None, "unread"), *base_and_code
    message, holds = min((_compared(file, one) for one in seen), key=lambda one: one[1])
    return ADAPTER_AS_SAVED.check(holds, message), *base_and_code


def is_even(matrices: Matrices | None) -> bool:
    """Whether most B matrices hold one and the same number throughout, as no real gradient leaves them."""
    found = [value for name, value in (matrices or {}).items() if name.endswith("B") and value[2] >= LEAST_EVEN]
    even = [norm > 0 and abs(total) >= EVEN * norm * math.sqrt(size) for norm, total, size in found]
    return bool(even) and 2 * sum(even) > len(even)


def is_mean(saved: Matrices | None, ended: Matrices | None) -> bool:
    """Whether the matrices in memory at the save may be the mean of the last steps of a training that ended otherwise.

    They are of the same names and hardly larger, and not all of them multiplied by one number.
    """
    if not saved or not ended or {*saved} != {*ended}:
        return False
    pairs = [(value, ended[name]) for name, value in saved.items() if not is_same(value, ended[name])]
    if not pairs or any(not all(map(math.isfinite, (*a[:2], *b[:2]))) or a[0] > MOST_GROWN * b[0] for a, b in pairs):
        return False
    factors = [a[n] / b[n] for a, b in pairs for n in (0, 1) if b[n]]
    return any(value[0] for value in saved.values()) and max(factors) - min(factors) > ALIKE


def _compared(file: Matrices, seen: Matrices) -> tuple[Message, bool]:
    """What is to be said of the matrices in memory against those of the file, and whether they are the same."""
    absent, further = sorted({*seen} - {*file}), sorted({*file} - {*seen})
    other = [name for name in seen if name in file and not is_same(seen[name], file[name])]
    first = next(iter([*other, *absent, *further]), None)
    if first is None:
        return say("weights.same", matrices=len(seen)), True
    counts = {"absent": len(absent), "other": len(other), "further": len(further)}
    return say("weights.compared", matrices=len(seen), example=one_line(first, 80), **counts), False


def is_same(one: tuple[float, float, int], other: tuple[float, float, int]) -> bool:
    """Whether two matrices' norms, sums and sizes are alike."""
    if one[2] != other[2]:
        return False
    slack = TOLERANCE * max(one[0], other[0]) + SMALLEST
    # numbers that were cut and not rounded are all a little smaller
    skewed = slack + CUT * max(abs(one[1]), abs(other[1]))
    if not all(map(math.isfinite, (*one[:2], *other[:2]))):
        return math.isfinite(one[0]) == math.isfinite(other[0])
    return abs(one[0] - other[0]) <= slack and abs(one[1] - other[1]) <= skewed


def _file(folder: Path) -> Matrices | None:
    path = folder / ADAPTER_WEIGHTS_NAME
    try:
        stat = path.stat()
        return (_numbers(path, stat.st_mtime_ns, stat.st_size) or None) if path.is_file() else None
    except (OSError, UnreadableError):
        return None


@lru_cache(maxsize=4)
def _numbers(path: Path, changed_ns: int, size_bytes: int) -> Matrices:
    matches = ((_PREFIX.match(_WRAPPERS.sub("", name)), value) for name, value in matrix_numbers(path).items())
    return {match[1]: value for match, value in matches if match}


def _base_check(compared: Sequence[BaseCompared | None]) -> Check:
    known = [one for one in compared if one is not None and one.compared]
    if not known:
        return BASE_UNCHANGED.check(None, "none")
    worst = max(known, key=lambda one: one.changed)
    severity = WARN if 0 < worst.changed < FEW_CHANGED * worst.compared else None
    figures: Figures = {"tensors": worst.compared, "changed": worst.changed, "names": worst.names}
    found = "named" if worst.names else "counted"
    return BASE_UNCHANGED.check(worst.changed == 0, found, severity=severity, **figures)


def _code_check(seen: Sequence[OwnCode | None], *, trains: bool) -> Check:
    """A norm may be faster, and the forward of a whole model that is trained may have a loss of its own."""
    known = [one for one in seen if one is not None]
    if not known:
        return NO_OWN_CODE.check(None, "unseen")
    found: dict[tuple[str, str], int] = {}
    severity: Severity | None = None
    for one in known:
        for what, counts in (
            ("weights.forward", one.forwards),
            ("weights.hook", one.hooks),
            ("weights.gradient_hook", one.gradient_hooks),
            ("weights.optimizer_hook", one.optimizer_hooks),
        ):
            for name, count in counts.items():
                found[name, what] = max(count, found.get((name, what), 0))
                is_usual = what == "weights.forward" and (_NORM.search(name) or (trains and _WHOLE.search(name)))
                severity = severity if is_usual else WARN
    code = [say(what, name=one_line(name, 80), count=count) for (name, what), count in sorted(found.items())]
    return NO_OWN_CODE.check(
        severity is None, "seen" if code else "none", severity=severity or INFO, code=code[:MOST_NAMED]
    )
