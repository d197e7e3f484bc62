"""The acceptance tests: `tests/acceptance` in a clone, `pytest --pyargs steph.acceptance` where StepH is installed."""
