"""The pipeline reads as a page: what only speed needs is a folder of its own, behind one function."""

import ast
from collections.abc import Iterator
from pathlib import Path

from small_run import PIPELINE

MOST_LINES = 2200
# what runs the steps; the ranks, the order of rows and the clock know nothing of how a step is made fast
SEEN_FROM_OUTSIDE = {"steps", "ranks", "sampler", "clock", "startup"}


def outside() -> list[Path]:
    """Every module that is not there for speed."""
    return [path for path in sorted(PIPELINE.rglob("*.py")) if "fast" not in path.relative_to(PIPELINE).parts]


def imported(path: Path) -> Iterator[str]:
    """The modules of `app.fast` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "app.fast":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("app.fast."):
            yield (node.module or "").removeprefix("app.fast.")


def test_the_rest_is_short() -> None:
    """All that is not there for speed, scripts and empty lines included."""
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in outside())
    assert 1000 < lines <= MOST_LINES


def test_how_a_step_is_made_fast_is_seen_by_nobody() -> None:
    """Recompute, graphs, plans, host memory and kernels are known to `fast_steps` alone."""
    seen = {name for path in outside() for name in imported(path)}
    assert seen == SEEN_FROM_OUTSIDE


def test_every_module_of_speed_is_used() -> None:
    """Nothing is left that nobody imports."""
    fast = PIPELINE / "app" / "fast"
    used = {name for path in PIPELINE.rglob("*.py") for name in imported(path)}
    assert used == {path.stem for path in fast.glob("*.py")} - {"__init__"}
