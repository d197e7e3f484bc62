"""Settings of the unit tests' libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault of the code under test
settings.load_profile("any machine")


@pytest.fixture
def english() -> Iterator[None]:
    """What is said in the test's own process is in English."""
    from steph.base.messages import speaking  # not where no test is run

    with speaking("en"):
        yield


def pytest_collection_finish() -> None:
    """Leave thousands of tests and torch out of each garbage collection; a tenth of the time of tests of values."""
    gc.collect()
    gc.freeze()
