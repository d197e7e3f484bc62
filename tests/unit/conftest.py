"""Settings of the unit tests' libraries."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault of the code under test
settings.load_profile("any machine")
