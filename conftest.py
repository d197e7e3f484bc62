"""Registers the suite's plugin in a clone; installed, its entry point of the same name does it."""

pytest_plugins = ["steph.plugin"]
