"""The table of all checks of `steph doctor`: what each looks at, in which ways it may fail, and what to do then."""

from __future__ import annotations

from steph.base.messages import Language, text
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


def sections(language: Language) -> str:
    """A section with a table for each check."""
    return "\n".join(_section(kind, language) for kind in CATALOG)


def _section(kind: DoctorCheck, language: Language) -> str:
    looks_at = text("doctor.page.looks_at", language, {"what": kind.words("looks_at", language)})
    only = f" {text('doctor.page.gpu_only', language)}" if kind.gpu_only else ""
    when, remedy = (text(f"doctor.page.{column}", language) for column in ("when", "remedy"))
    columns = f"| | {when} | {remedy} |\n|---|---|---|\n"
    rows = "".join(_row(kind, trouble, language) for trouble in kind.troubles)
    return f"## {kind.id}\n\n{looks_at}{only}\n\n{columns}{rows}"


def _row(kind: DoctorCheck, trouble: Trouble, language: Language) -> str:
    certain = f", **{text('doctor.page.certain', language)}**" if trouble.is_certain else ""
    when, remedy = (kind.words(f"{trouble.key}.{part}", language) for part in ("when", "remedy"))
    return f"| {trouble.level}{certain} | {when} | {remedy} |\n"
