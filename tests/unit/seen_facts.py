"""Changes what the witness of a planted run saw, fact by fact, as another program's process would have shown it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steph.judge.witness import Witness, read_witness

Facts = list[dict[str, Any]]
Change = Callable[[Facts], Facts]


def facts_in(folder: Path) -> Facts:
    """All facts of a folder with one witness file, as they were written."""
    (path,) = folder.glob("witness-*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def witness_of(folder: Path, *processes: Iterable[dict[str, Any]]) -> Witness:
    """What a reader finds of these processes; the first has rank 0 where there are several."""
    folder.mkdir(parents=True)
    for n, facts in enumerate(processes):
        name = f"witness-{n if len(processes) > 1 else 'none'}-{100 + n}.jsonl"
        (folder / name).write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    witness = read_witness(folder)
    assert witness.unread_lines == 0
    return witness


def each(kind: str, **values: Any) -> Change:  # noqa: ANN401
    """Give every fact of one kind these values."""
    return lambda facts: [fact | values if fact["fact"] == kind else fact for fact in facts]


def without(*kinds: str) -> Change:
    """Leave facts of these kinds out."""
    return lambda facts: [fact for fact in facts if fact["fact"] not in kinds]
