"""Registers the suite's plugin in a clone, and leaves the unit tests alone where none of them can be selected."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

CLONE = Path(__file__).parent
# the same as `pythonpath` in pyproject.toml, which pytest has not read where an option's value led it elsewhere; an
# installed suite comes by its entry point instead
sys.path.insert(0, str(CLONE / "plugins"))
pytest_plugins = ["steph.plugin"]

from steph import quiet_start  # noqa: E402 - found by the line above

quiet_start.begin()

UNIT_TESTS = CLONE / "tests" / "unit"
UNIT_TEST_SECONDS = 300  # no test takes 20 s on two idle cores: this only ends what would hang for good
# these take longest: begun first, none of them keeps one of two workers busy after the other has ended; the fourth
# begins when the first has ended, in the same worker, whose host it uses too
LONG_TESTS = (
    "test_witness_planted.py",
    "test_rehearsal.py",
    "test_typed_commands.py",
    "test_witness_programs.py",
    "test_wheel.py",
)
STAGE_MARKS = ("gpu", "extended", "steph_stage")  # no unit test has one of these: tests/unit/test_selection.py


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't import 3,000 unit tests, and torch with them, to deselect them all under `-m gpu`."""
    if collection_path != UNIT_TESTS or any(_is_inside(config, word) for word in config.args):
        return None
    return True if config.option.markexpr and not can_select_a_unit_test(config.option.markexpr) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest unit tests, and guard each against hanging; the stages have limits of their own."""
    places = {name: place for place, name in enumerate(LONG_TESTS)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if not config.pluginmanager.hasplugin("timeout"):
        return
    for item in items:
        if UNIT_TESTS in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(UNIT_TEST_SECONDS))


def _is_inside(config: pytest.Config, argument: str) -> bool:
    path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
    return path == UNIT_TESTS or UNIT_TESTS in path.parents


def can_select_a_unit_test(expression: str) -> bool:
    """Whether the `-m` expression can be true of a test without the stages' marks, whatever other marks it has.

    True where that can't be told: for a wrong expression, so that pytest says what is wrong with it.
    """
    try:
        from _pytest.mark.expression import Expression

        compiled = Expression.compile(expression)
    except Exception:  # pytest's own parser: what it raises has changed, and so may its place
        return True

    def holds(marks: Mapping[str, bool]) -> bool:
        """Whether it holds with these marks given and taken; tries both for a mark that it asks for besides."""
        asked = list[str]()

        def has(name: str, **arguments: object) -> bool:
            if name not in marks:
                asked.append(name)
            return marks.get(name, False)

        is_true = compiled.evaluate(has)
        if not asked:
            return is_true
        return any(holds({**marks, asked[0]: each}) for each in (False, True))

    return holds(dict.fromkeys(STAGE_MARKS, False))
