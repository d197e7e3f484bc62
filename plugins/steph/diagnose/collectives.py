"""What NCCL's watchdogs say of the collectives in which ranks hung: who is behind, and who ran another one.

Format: `[Rank 6] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=20880, OpType=ALLREDUCE, NumelIn=419,
…)` of torch 2.x, newer ones with the process group before `Rank`. A rank counts its collectives in each group, so one
number with two sizes means that ranks ran different ones, but for those whose sizes may differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steph.diagnose.reader import PrintedLine

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
            rank, size = int(match["rank"]), match["size"]
            one = Collective(
                match["group"] or "",
                rank,
                int(match["number"]),
                match["kind"],
                int(size) if size else None,
                line.text[match.start() :],
            )
            found.setdefault((one.group, rank), one)
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
    for first in even:
        for second in even:
            if (first.group, first.number) == (second.group, second.number) and first.work != second.work:
                return first, second
    return None
