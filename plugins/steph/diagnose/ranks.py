"""Which of several processes failed: its probe says so, else the report that torchrun prints at its own end.

Formats: torch 1.9 to 2.13 (`torch.distributed.elastic`), also under `accelerate launch`, which runs it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steph.diagnose.reader import PrintedLine

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
    found = [(match.start() < root, _end(*match.groups())) for match in _ENTRY.finditer(text)]
    if found:
        return tuple(end for _, end in sorted(found, key=lambda pair: pair[0]))
    return tuple(_end(rank, status, pid) for status, rank, pid in _FIRST.findall(text))


def _end(rank: str, status: str, pid: str) -> RankEnd:
    return RankEnd(int(rank), int(status), int(pid))
