"""What NCCL's watchdogs say of the collectives in which ranks hung: who is behind, and who ran another one.

Format: `[Rank 6] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=20880, OpType=ALLREDUCE, NumelIn=419,
…)` of torch 2.x. A rank counts its collectives, so one number with two sizes means that ranks ran different ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steph.diagnose.reader import PrintedLine

_WORK = re.compile(
    r"\[Rank (?P<rank>\d{1,5})\][^\n]{0,100}WorkNCCL\(SeqNum=(?P<number>\d{1,12}),"
    r"(?: OpType=(?P<kind>\w{1,40}),)?(?: NumelIn=(?P<size>\d{1,15}),)?"
)


@dataclass(frozen=True)
class Collective:
    """One rank's collective that timed out: `number` counts the rank's collectives, `size` is in elements."""

    rank: int
    number: int
    kind: str | None
    size: int | None
    line: str


def collectives_of(lines: Sequence[PrintedLine]) -> tuple[Collective, ...]:
    """The first collective that each rank's watchdog reported, by the rank's number."""
    found: dict[int, Collective] = {}
    for line in lines:
        for match in _WORK.finditer(line.text) if "WorkNCCL(" in line.text else ():
            rank, size = int(match["rank"]), match["size"]
            found.setdefault(
                rank,
                Collective(
                    rank, int(match["number"]), match["kind"], int(size) if size else None, line.text[match.start() :]
                ),
            )
    return tuple(found[rank] for rank in sorted(found))


def behind(found: Sequence[Collective]) -> Collective | None:
    """The rank with the lowest number, where the others are further."""
    if len({one.number for one in found}) < 2:
        return None
    return min(found, key=lambda one: one.number)


def unlike(found: Sequence[Collective]) -> tuple[Collective, Collective] | None:
    """Two ranks with one number and different collectives."""
    for first in found:
        for second in found:
            if first.number == second.number and (first.kind, first.size) != (second.kind, second.size):
                return first, second
    return None
