"""LoRA's matrices in their pairs: which two belong together, which stand alone, which can't be multiplied. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from steph.base.tensors import Tensor

MATRIX = re.compile(r"\blora_(embedding_)?[AB]\b")


def pairs_of(tensors: Iterable[Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Each pair by its parts, `A` and `B`; one of them is missing where a matrix stands alone."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        found = MATRIX.search(tensor.name)
        if found and not tensor.name.endswith(".bias"):
            pairs.setdefault(MATRIX.sub(r"lora_\1*", tensor.name), {})[found[0][-1]] = tensor
    return tuple(pairs.values())


def unfit(pair: dict[str, Tensor]) -> bool:
    """Whether a whole pair can't be multiplied: A is rank by in, B is out by rank, and neither is empty."""
    if len(pair) < 2:
        return False
    first, second = pair["A"].shape, pair["B"].shape
    if not math.prod(first) or not math.prod(second):
        return True
    return len(first) > 1 and len(second) > 1 and first[0] != second[1]
