"""The table of all checks of `steph doctor`: what each looks at, in which ways it may fail, and what to do then."""

from __future__ import annotations

from collections.abc import Callable

from steph.doctor import kinds
from steph.doctor.lines import DoctorCheck, Trouble

CATALOG: tuple[DoctorCheck, ...] = (
    kinds.PIPELINE,
    kinds.BUSY,
    kinds.DRIVER,
    kinds.CARD,
    kinds.MEMORY,
    kinds.BF16,
    kinds.WSL,
    kinds.RAM,
    kinds.HUB,
    kinds.MODEL,
    kinds.DISK_MODEL,
    kinds.DISK_OUTPUT,
    kinds.PYTHON,
    kinds.LOCALE,
    kinds.PACKAGES,
    kinds.TORCH,
    kinds.FOUR_BIT,
)


def sections(translate: Callable[[str], str] = str) -> str:
    """A section with a table for each check, in English or in the words that `translate` has for the English ones."""
    return "\n".join(_section(kind, translate) for kind in CATALOG)


def _section(kind: DoctorCheck, translate: Callable[[str], str]) -> str:
    looks_at = translate("Looks at {}.").format(translate(kind.looks_at))
    only = f" {translate('On a GPU only.')}" if kind.gpu_only else ""
    columns = f"| | {translate('when')} | {translate('remedy')} |\n|---|---|---|\n"
    rows = "".join(_row(trouble, translate) for trouble in kind.troubles)
    return f"## {kind.id}\n\n{looks_at}{only}\n\n{columns}{rows}"


def _row(trouble: Trouble, translate: Callable[[str], str]) -> str:
    level = f"{trouble.level}, **{translate('certain')}**" if trouble.is_certain else trouble.level.value
    return f"| {level} | {translate(trouble.when)} | {translate(trouble.remedy)} |\n"
