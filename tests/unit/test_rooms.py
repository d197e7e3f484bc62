"""The suite's rooms and their one-way order, read from the imports themselves."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / "plugins" / "steph"
MODULES = sorted(SUITE.rglob("*.py"))
ROOMS = ("base", "record", "contract", "memory", "run", "diagnose", "judge", "tell", "child", "conduct")
ENTRIES = (
    "__init__",
    "doctor",
    "plugin",
    "cli",
    "pytest_options",
    "quiet_start",
)  # these see all rooms
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
INJECTED = SUITE / "child" / "inject"
OTHER_INTERPRETERS = {SUITE / "child" / name for name in ("twin.py", "checkup.py", "count.py")}


def _name(path: Path) -> str:
    return path.relative_to(SUITE).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of its code, with dots; from-imports name what they take."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if INJECTED in path.parents and node.level:  # found by its path in another process: it has no other way
                continue
            assert node.level == 0, f"{_name(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(path: Path) -> set[str]:
    """The rooms, or modules of the first floor, that a file of the suite imports."""
    return {name.split(".")[1] for name in _imports(path) if name.startswith("steph.")}


def _allowed(path: Path) -> set[str] | None:
    """What a file may import of the suite; None where it may import everything (what a person calls)."""
    first = path.relative_to(SUITE).parts[0].removesuffix(".py")
    if first in ENTRIES:
        return None
    above = set(ROOMS[: ROOMS.index(first) + 1])
    return above - {"run"} if first in ("diagnose", "judge") else above


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_imports_only_from_rooms_above_its_own(path: Path) -> None:
    """Rooms know each other one way only, in the order of ROOMS; neither diagnose nor judge knows run."""
    allowed = _allowed(path)
    assert allowed is None or _own_imports(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_name_is_had_from_the_module_that_makes_it(path: Path) -> None:
    """Nothing is passed on: no `__all__`, and no name that is imported as itself."""
    names = [node.id for node in ast.walk(_tree(path)) if isinstance(node, ast.Name)]
    froms = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom)]
    assert "__all__" not in names
    assert not [alias.name for node in froms for alias in node.names if alias.asname == alias.name]


def test_every_module_has_a_place_in_the_order() -> None:
    """Each folder and each module of the first floor is a room or an entry, so that none escapes the order."""
    first_floor = {path.relative_to(SUITE).parts[0].removesuffix(".py") for path in MODULES}
    assert first_floor == {*ROOMS, *ENTRIES}


def test_only_what_runs_in_another_interpreter_imports_the_pipelines_packages() -> None:
    """torch and its company: the twin maker, the counter and the doctor's checkup alone, processes of their own."""
    found = {path for path in MODULES if HEAVY & {name.split(".")[0] for name in _imports(path)}}
    assert found <= OTHER_INTERPRETERS
    assert SUITE / "child" / "twin.py" in found


def test_nvml_is_one_modules_affair() -> None:
    """pynvml is imported where the driver is asked, and nowhere else; what is imported by name counts as well."""
    assert [
        _name(path) for path in MODULES if '"pynvml"' in path.read_text() or "import pynvml" in path.read_text()
    ] == ["run/gpu.py"]


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    """A script's folder stands first on sys.path: a module called `profile` or `select` would be taken for Python's."""
    shared = {"__init__", "__main__", "sitecustomize"}
    names = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert (names - shared) & set(sys.stdlib_module_names) == set()
