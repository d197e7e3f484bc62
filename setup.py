"""What pyproject.toml can't say: folders of the clone that the wheel carries inside the package.

The clone keeps them where people look for them; an editable install leaves them there. Only what is named here goes
in, so that what a run left in `pipeline/` never does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

CARRIED = {
    "tests/acceptance": ("*.py",),
    "profiles": ("*.toml",),
    "pipeline": ("README.md", "steph.toml", "app/**/*.py", "scripts/*.py", "datasets/README.md", "datasets/sample/*"),
}


class CarryFolders(Command):
    """Copies each folder into the built package, under its own name; the protocol is setuptools' SubCommand."""

    user_options = []  # noqa: RUF012 - setuptools asks for it as it is
    editable_mode = False

    def initialize_options(self) -> None:
        """Where to build is not known yet."""
        self.build_lib: str | None = None  # what setuptools takes for not set

    def finalize_options(self) -> None:
        """Build where the package is built."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Copy; what an earlier build left there goes first."""
        if self.editable_mode:
            return
        for folder in CARRIED:
            shutil.rmtree(self._target(Path(folder)), ignore_errors=True)
        for target, source in self.get_output_mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        """What the sdist needs."""
        found = (path for folder, patterns in CARRIED.items() for each in patterns for path in Path(folder).glob(each))
        return sorted(str(path) for path in found if path.is_file())

    def get_outputs(self) -> list[str]:
        """What the wheel gets."""
        return list(self.get_output_mapping())

    def get_output_mapping(self) -> dict[str, str]:
        """Each built file and its source; none in an editable install."""
        sources = [] if self.editable_mode else self.get_source_files()
        return {str(self._target(Path(source))): source for source in sources}

    def _target(self, source: Path) -> Path:
        folder = next(Path(folder) for folder in CARRIED if source.is_relative_to(folder))
        return Path(self.build_lib or "", "steph", folder.name, source.relative_to(folder))


build.sub_commands.append(("carry_folders", None))
setup(cmdclass={"carry_folders": CarryFolders})
