"""Finds the acceptance tests and the reference pipeline in an installed wheel, and copies the pipeline to work in.

A clone has both as folders of its own, and nothing here applies. Imports nothing heavy.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from steph import __version__

CARRIED_PIPELINE = Path(__file__).parent / "pipeline"
COPY_NAME = "steph-pipeline"


def is_installed() -> bool:
    """Whether this is the package of a wheel."""
    return CARRIED_PIPELINE.is_dir()


def is_in_use(config: pytest.Config) -> bool:
    """Whether the wheel's tests and pipeline are meant: not where pytest's root folder is a clone with its own."""
    return is_installed() and not (config.rootpath / "pipeline" / "steph.toml").is_file()


def suite_command() -> str:
    """What runs the three stages."""
    return "pytest --pyargs steph.acceptance -m gpu" if is_installed() else "pytest -m gpu"


def defaults_folder(config: pytest.Config) -> Path:
    """Where defaults start, and names of profiles: pytest's root folder, or the current one of an installed suite."""
    return config.invocation_params.dir if is_in_use(config) else config.rootpath


def default(config: pytest.Config, option: str, in_a_clone: str) -> str:
    """An option's default: what it is in a clone, but for the pipeline of an installed suite."""
    return COPY_NAME if option == "pipeline-root" and is_in_use(config) else in_a_clone


def furnish(config: pytest.Config, root: Path, tell: Callable[[str], None]) -> None:
    """Where `root` is an installed suite's default, have the reference pipeline there; raises InputError."""
    if is_in_use(config) and root == config.invocation_params.dir / COPY_NAME:
        copy_once(root, tell)


def copy_once(root: Path, tell: Callable[[str], None]) -> None:
    """Copy the reference pipeline to `root` where there is nothing, and say so in one line.

    A copy that a person changed, or of another version, is used as it is, which is said. Raises InputError.
    """
    from steph.base.messages import phrase, say
    from steph.run.inputs import InputError

    files = (path for path in CARRIED_PIPELINE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    carried = sorted(path.relative_to(CARRIED_PIPELINE).as_posix() for path in files)
    if not root.exists():
        try:  # aside and renamed, so that half a pipeline is never taken for one; no modes, a package may be read-only
            with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as aside:
                made = Path(aside) / root.name
                for name in carried:
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(CARRIED_PIPELINE / name, made / name)
                made.rename(root)
        except OSError as error:
            raise InputError(say("input.not_copied", root=root, error=error.strerror)) from error
        tell(phrase("input.copied", version=__version__, root=root))
        return
    _, different, missing = filecmp.cmpfiles(CARRIED_PIPELINE, root, carried, shallow=False)
    if changed := sorted([*different, *missing]):
        named = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        tell(phrase("input.other_copy", version=__version__, root=root, files=named))
