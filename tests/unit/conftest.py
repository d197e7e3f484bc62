"""Settings of the unit tests' libraries."""

from __future__ import annotations

import gc

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault of the code under test
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Leave thousands of tests and torch out of each garbage collection; a tenth of the time of tests of values."""
    gc.collect()
    gc.freeze()
