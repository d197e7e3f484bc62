"""What a person may ask for on the command line, in the ini file or in the environment, and what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steph.base.messages import Language

SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class OptionError(ValueError):
    """An option's value can't be used; the message names the option, the value and what is allowed."""


@dataclass(frozen=True)
class Option:
    """One line of the table; `is_path` says of a value, as typed and as the path it would be, whether it is one."""

    name: str
    help: str
    default: str = ""
    is_flag: bool = False
    is_path: Callable[[str, Path], bool] = lambda *_: False

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--steph-{self.name}"

    @property
    def key(self) -> str:
        """As in the ini file; in capitals as in the environment."""
        return f"steph_{self.name.replace('-', '_')}"


PROFILE = Option(
    "profile",
    "profile: a name in profiles/ or a path to a .toml file",
    "rtx3080",
    is_path=lambda text, _: text.endswith(".toml"),
)
PIPELINE_ROOT = Option(
    "pipeline-root",
    "folder of the pipeline under test; installed: a copy in steph-pipeline",
    "pipeline",
    is_path=lambda *_: True,
)
PIPELINE_PYTHON = Option(
    "pipeline-python",
    "interpreter of the pipeline's scripts (default: the root's .venv, else this one)",
    is_path=lambda text, _: "/" in text,
)
MODEL = Option(
    "model",
    "the one model to use: an id on the Hub or a local folder; for a twin also a config.json (default: the profile's)",
    is_path=lambda _, path: path.is_dir() or (path.name == "config.json" and path.is_file()),
)
TWIN = Option(
    "twin",
    "use a random-weight twin of the model, no download, small on the CPU; makes the run a rehearsal",
    is_flag=True,
)
VRAM_CAP = Option("vram-cap", "make this card behave like a smaller one, as in 9.64GiB; makes the run a rehearsal")
CALIBRATE = Option(
    "calibrate", "after H-2 passed, five steps more at another length; correct H-4's memory", is_flag=True
)
NO_PREDICT = Option(
    "no-predict", "try every rung of the ladder, also those that are predicted not to fit", is_flag=True
)
REPORT = Option(
    "report", "folder for the report and runs/, or the Markdown file itself", "reports", is_path=lambda *_: True
)
LANGUAGE = Option("language", "language of report, pictures and terminal: ja or en (default: the profile's, else ja)")
OPTIONS = tuple(option for option in vars().values() if isinstance(option, Option))


# what earlier versions had, and the message of what a person does now; a run refuses an option of this name
REPLACED = {Option("deep", "", is_flag=True): "option.deep"}


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
    calibrate: bool = False
    no_predict: bool = False
    language: Language | None = None
    """None: the profile's."""

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
    from steph.base.messages import say  # it loads babel, which a session that is not ours should not wait for

    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise OptionError(say("option.no_size", option=option, value=repr(text)))
    return int(float(match[1]) * SIZE_UNITS[match[2].upper()])


def parse_language(text: str, option: str) -> Language:
    """A language of the suite by its name, in any case; raises OptionError naming `option`."""
    from steph.base.messages import LANGUAGES, say

    chosen = next((language for language in LANGUAGES if language == text.strip().lower()), None)
    if chosen is None:
        raise OptionError(say("option.no_language", option=option, value=repr(text), known=LANGUAGES))
    return chosen
