"""Others' published GPU memory beside `steph fit`'s answer: `python -m benchmarks.published > benchmarks/published.md`.

Each case of published.toml is asked as a user would ask it. An answer holds where the figure lies within its interval,
counted as the source counts, or where it is `unknown` and says why.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from steph.base.units import GIB
from steph.memory.forecast import BUILT_IN_CONSTANTS, KEPT_FREE_BYTES

CASES = Path(__file__).with_name("published.toml")
GB = 1e9
VERDICTS = ("inside", "unknown", "below", "above", "said to fit")
CARD_GIB = 1e4  # no verdict is wanted: the interval is
CONTEXT_GIB = BUILT_IN_CONSTANTS.context_bytes / GIB


@dataclass(frozen=True)
class Case:
    """One published figure; `figure_gib` are the sizes that it may mean."""

    source: str
    what: str
    asked: tuple[str, ...]
    figure: float
    unit: str
    counts: str

    @property
    def figure_gib(self) -> tuple[float, ...]:
        """The figure in GiB; one in GB may have been counted in either."""
        return (self.figure,) if self.unit == "GiB" else (self.figure * GB / GIB, self.figure)


@dataclass(frozen=True)
class Compared:
    """A case and what was answered: an interval in GiB counted as the source counts, or reasons why there is none."""

    case: Case
    low_gib: float
    high_gib: float
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """`inside`, `below`, `above`, `unknown` or `said to fit`.

        A card on which a run fitted is inside unless said too small, one on which a run did not unless said to hold it.
        """
        sizes = self.case.figure_gib
        if self.case.counts == "oom":
            fits = any(self.high_gib + KEPT_FREE_BYTES / GIB <= size for size in sizes)
            return "said to fit" if fits else "unknown" if self.reasons else "inside"
        if self.reasons and any(size >= self.low_gib for size in sizes):
            return "unknown"
        if self.case.counts != "card" and all(size > self.high_gib for size in sizes):
            return "above"
        return "below" if all(size < self.low_gib for size in sizes) else "inside"


def read_cases() -> tuple[dict[str, str], list[Case]]:
    """Addresses by source, and every case."""
    read = tomllib.loads(CASES.read_text(encoding="utf-8"))
    made = [Case(**{**row, "asked": tuple(row["asked"].split())}) for row in read["case"]]
    return read["sources"], made


def compare(case: Case, ask: Callable[[Sequence[str]], str]) -> Compared:
    """Ask for one case; `ask` runs `steph fit` with these words and gives what it prints."""
    found: dict[str, Any] = json.loads(ask([*case.asked, "--vram", f"{CARD_GIB:.0f}GiB", "--json"]))
    if "reasons" in found:
        return Compared(case, found["at_least_gib"], float("inf"), tuple(found["reasons"]))
    # what lies outside the allocator is in no figure of torch's own
    below = CONTEXT_GIB if case.counts in ("allocator", "either") else 0.0
    above = CONTEXT_GIB if case.counts == "allocator" else 0.0
    return Compared(case, max(0.0, found["low_gib"] - below), found["high_gib"] - above, ())


def table(sources: dict[str, str], compared: Sequence[Compared]) -> str:
    """Markdown: one row a figure, and the count of each verdict."""
    verdicts = [one.verdict for one in compared]
    lines = [
        "# Published figures beside `steph fit`",
        "",
        "Made by `python -m benchmarks.published` from [published.toml](published.toml). Interval: what the answer",
        "allows, in GiB, counted as the source counts (torch's allocator, the device, or either where it is not",
        "said). `card`: a run was seen to fit such a card, so that only the lower end can be wrong. `oom`: one ran out",
        "of memory on a card of which this is usable, so that only `fits` can be wrong.",
        "",
        "| source | what | asked | published | interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for one in compared:
        case = one.case
        interval = "; ".join(one.reasons) or f"{one.low_gib:.1f} to {one.high_gib:.1f}"
        figure = f"{case.figure} {case.unit}, {case.counts}"
        source = f"[{case.source}]({sources[case.source]})"
        lines.append(f"| {source} | {case.what} | `{' '.join(case.asked)}` | {figure} | {interval} | {one.verdict} |")
    counts = ", ".join(f"{name} {verdicts.count(name)}" for name in VERDICTS)
    return "\n".join([*lines, "", f"{len(compared)} figures: {counts}.", ""])


@cache
def _command() -> Any:  # noqa: ANN401 - of the library that typer brings along
    """The command line, put together once: doing so takes as long as half of an answer."""
    from steph.cli import app
    from typer.main import get_command

    return get_command(app)


def ask_in_process(words: Sequence[str]) -> str:
    """The answer of the command itself, in English."""
    from steph.base.messages import speaking

    said = StringIO()
    with speaking("en"), redirect_stdout(said), mock.patch.dict(os.environ, STEPH_LANGUAGE="en"):
        status = _command().main(["fit", *words], standalone_mode=False)
    if status:
        raise ValueError(f"{' '.join(words)}: {said.getvalue().strip()}")
    return said.getvalue()


def main() -> int:
    """Print the table."""
    sources, cases = read_cases()
    sys.stdout.write(table(sources, [compare(case, ask_in_process) for case in cases]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
