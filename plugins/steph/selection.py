"""Which stages a pytest run was asked for: the extended ones only where someone names them. Imports nothing heavy."""

from __future__ import annotations

import re

import pytest

EXTENDED = "extended"


def leave_out_extended(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the extended stages unless `-m` names their marker or an argument their file or node id."""
    if re.search(rf"\b{EXTENDED}\b", config.option.markexpr or ""):
        return
    named = {argument.partition("::")[0] for argument in config.args}
    asked = {(config.invocation_params.dir / name).resolve() for name in named}
    extended = [item for item in items if _is_extended_stage(item) and item.path.resolve() not in asked]
    left_out = [item for item in extended if not (config.option.pyargs and _module_name(item) in named)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _module_name(item: pytest.Item) -> str | None:
    return item.module.__name__ if isinstance(item, pytest.Function) else None


def _is_extended_stage(item: pytest.Item) -> bool:
    return item.get_closest_marker("steph_stage") is not None and item.get_closest_marker(EXTENDED) is not None
