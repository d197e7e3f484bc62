"""Registers the suite's plugin in a clone (installed, its entry point does it), and orders the unit tests."""

import pytest

pytest_plugins = ["steph.plugin"]
# so that no worker is left alone with a long file at the end
LONGEST_FIRST = (
    *("test_rehearsal.py", "test_suite.py", "test_faults.py", "test_two_ranks.py", "test_calibrate.py"),
    *("test_doctor.py", "test_ci.py", "test_deep.py", "test_learning.py", "test_truncation.py", "test_extended.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move whole files; within a file nothing changes."""
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
