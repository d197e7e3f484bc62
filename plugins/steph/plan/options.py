"""What a person asked for on the command line, in the ini file or in the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class OptionError(ValueError):
    """An option's value can't be used; the message names the option, the value and what is allowed."""


@dataclass(frozen=True)
class Options:
    """All of the suite's options, resolved; paths are absolute."""

    profile: str
    pipeline_root: Path
    pipeline_python: str | None
    model: str | None
    twin: bool
    vram_cap_bytes: int | None
    report: Path
    deep: bool = False
    calibrate: bool = False
    no_predict: bool = False

    @property
    def reports_dir(self) -> Path:
        """Where reports and `runs/` go: `--steph-report` itself, or its folder where it names a .md file."""
        return self.report.parent if self.report.suffix == ".md" else self.report

    @property
    def report_file(self) -> Path | None:
        """The Markdown file asked for by name, None where only a folder was given."""
        return self.report if self.report.suffix == ".md" else None


def parse_size(text: str, option: str) -> int:
    """A size such as `9.64GiB` or `8GB` in bytes; raises OptionError naming `option`."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise OptionError(f"{option}: {text!r} is not a size; allowed: a number with GiB, GB, MiB or MB, as in 9.64GiB")
    return int(float(match[1]) * SIZE_UNITS[match[2].upper()])
