"""Checks that the weights that worked are those of the files, and that no code of the program's own stood in between.

The adapter's matrices in memory are held against its file by their names, norms and sums. Reads that file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from steph.base.files import UnreadableError, read_json
from steph.base.tensors import matrix_numbers
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind
from steph.judge.witness import BaseCompared, Generation, Matrices, ModelSaved, OwnCode, TrainingEnds
from steph.record.values import Check

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
MOST_CONFIG_BYTES = 1 << 20
TOLERANCE = 0.02  # of a norm: a matrix that is saved in bf16 keeps its norm and its sum to a thousandth
CUT = 2.0**-7  # of a sum, in bf16
SMALLEST = 1e-6  # of a norm; below that all is noise
EVEN, LEAST_EVEN = 0.999, 16  # of norm times the root of the size: all numbers of a matrix are alike
MOST_GROWN = 1.1  # of a norm: the mean of a training's steps is hardly larger than its last one
ALIKE = 0.005  # between factors: a mean changes each matrix in its own way
FEW_CHANGED = 0.1  # of the base's tensors
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(.*?\.lora_(?:embedding_)?[AB])(?:\.weight)?$")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module)\.")
_USUAL_FORWARDS = re.compile(r"Norm\d*d?$|ForCausalLM$|LMHeadModel$")  # a faster norm, a loss of one's own

SAVED_AS_TRAINED = CheckKind("saved_as_trained", "H-2", FAIL, trap=23, optional=True)
ADAPTER_AS_SAVED = CheckKind("adapter_as_saved", "H-3", FAIL, trap=19, optional=True)
BASE_UNCHANGED = CheckKind("base_unchanged", "H-2・H-3", FAIL, optional=True)
NO_OWN_CODE = CheckKind("no_own_code", "H-2・H-3", WARN, optional=True)


def trained_weight_checks(ends: TrainingEnds | None, folder: Path, save: ModelSaved | None = None) -> tuple[Check, ...]:
    """Of a training: the file that it left by the last `save` of it, its base, and its code."""
    facts = [ends] if ends else []
    return (
        _saved_check(ends.matrices if ends else None, folder, save.matrices if save else None),
        _base_check([one.base for one in facts]),
        _code_check([one.own_code for one in facts]),
    )


def answering_weight_checks(
    calls: Sequence[Generation], with_adapter: Sequence[Generation], folder: Path | None
) -> tuple[Check, ...]:
    """Of an evaluation: the adapter's file in `folder` against the calls that had it; base and code of all calls."""
    return (
        _loaded_check([call.matrices for call in with_adapter if call.matrices], folder),
        _base_check([call.base for call in calls]),
        _code_check([call.own_code for call in calls]),
    )


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
    pairs = [(value, ended[name]) for name, value in saved.items() if not _is_same(value, ended[name])]
    if not pairs or any(not all(map(math.isfinite, (*a[:2], *b[:2]))) or a[0] > MOST_GROWN * b[0] for a, b in pairs):
        return False
    factors = [a[n] / b[n] for a, b in pairs for n in (0, 1) if b[n]]
    return any(value[0] for value in saved.values()) and max(factors) - min(factors) > ALIKE


def _saved_check(seen: Matrices | None, folder: Path, at_save: Matrices | None) -> Check:
    if seen is None or (file := _file(folder)) is None:
        return SAVED_AS_TRAINED.check(None, "学習の終わりの行列か、アダプターのファイルが読めない。")
    try:
        config = read_json(folder / CONFIG_NAME, MOST_CONFIG_BYTES)
    except UnreadableError:
        config = {}
    if isinstance(config, Mapping) and isinstance(config.get("init_lora_weights"), str):
        return SAVED_AS_TRAINED.check(None, "ベースの重みから始めたアダプターは、別の形で保存されることがある。")
    message, holds = _compared(file, seen)
    if not holds and at_save and is_mean(at_save, seen) and _compared(file, at_save)[1]:
        return SAVED_AS_TRAINED.check(True, "学習の終わりのあと、メモリで平均された行列（EMA など）が保存された。")
    return SAVED_AS_TRAINED.check(holds, message)


def _loaded_check(seen: Sequence[Matrices], folder: Path | None) -> Check:
    file = _file(folder) if folder else None
    if not seen or file is None:
        return ADAPTER_AS_SAVED.check(None, "回答時の行列か、アダプターのファイルが読めない。")
    message, holds = min((_compared(file, one) for one in seen), key=lambda one: one[1])
    return ADAPTER_AS_SAVED.check(holds, message)


def _compared(file: Matrices, seen: Matrices) -> tuple[str, bool]:
    """What is to be said of the matrices in memory against those of the file, and whether they are the same."""
    absent, further = sorted({*seen} - {*file}), sorted({*file} - {*seen})
    other = [name for name in seen if name in file and not _is_same(seen[name], file[name])]
    message = (
        f"メモリの {len(seen)} 個の行列のうち、ファイルにないものが {len(absent)} 個、値が違うものが {len(other)} 個、"
        f"ファイルだけにあるものが {len(further)} 個"
    )
    first = next(iter([*other, *absent, *further]), "")
    return f"{message}{f'（{one_line(first, 80)} など）' if first else ''}。", not (absent or further or other)


def _is_same(one: tuple[float, float, int], other: tuple[float, float, int]) -> bool:
    if one[2] != other[2]:
        return False
    slack = TOLERANCE * max(one[0], other[0]) + SMALLEST
    # numbers that were cut and not rounded are all a little smaller
    skewed = slack + CUT * max(abs(one[1]), abs(other[1]))
    if not all(map(math.isfinite, (*one[:2], *other[:2]))):
        return math.isfinite(one[0]) == math.isfinite(other[0])
    return abs(one[0] - other[0]) <= slack and abs(one[1] - other[1]) <= skewed


def _file(folder: Path) -> Matrices | None:
    path = folder / WEIGHTS_NAME
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
        return BASE_UNCHANGED.check(None, "ベースの重みを比べられない（マージしたか、すべて学習した）。")
    worst = max(known, key=lambda one: one.changed)
    named = f"（{one_line('、'.join(worst.names), 120)} など）" if worst.names else ""
    severity = WARN if 0 < worst.changed < FEW_CHANGED * worst.compared else None
    message = f"比べた {worst.compared} 個のテンソルのうち {worst.changed} 個が、読み込んだあとで変わった{named}。"
    return BASE_UNCHANGED.check(worst.changed == 0, message, severity=severity)


def _code_check(seen: Sequence[OwnCode | None]) -> Check:
    known = [one for one in seen if one is not None]
    if not known:
        return NO_OWN_CODE.check(None, "モデルの中のコードを目撃していない。")
    found: dict[str, int] = {}
    severity: Severity | None = None
    for one in known:
        for what, counts in (("forward", one.forwards), ("フック", one.hooks), ("勾配のフック", one.gradient_hooks)):
            for name, count in counts.items():
                found[f"{name} の{what}"] = max(count, found.get(f"{name} の{what}", 0))
                if what != "forward" or not _USUAL_FORWARDS.search(name):
                    severity = WARN
    shown = "、".join(f"{name} {count} 個" for name, count in sorted(found.items())) or "なし"
    return NO_OWN_CODE.check(
        severity is None, f"プログラム自身のコード: {one_line(shown, 240)}。", severity=severity or INFO
    )
