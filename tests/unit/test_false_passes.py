"""Each defect and sound variant that was once judged wrongly is planted in some test, and judged as it is wanted."""

from __future__ import annotations

import ast
import csv
import os
import re
from pathlib import Path

import pytest
from planted.defects import DEFECTS, SOUND
from steph.base.terms import Severity

UNIT = Path(__file__).parent
HELD_BY = {row["row"]: row["held by"].split("|") for row in csv.DictReader(
    (UNIT / "samples" / "false_passes.tsv").read_text(encoding="utf-8").splitlines(), delimiter="\t")}  # fmt: skip
HARDNESS = {"fail": {Severity.FAIL}, "warn": {Severity.FAIL, Severity.WARN}}


def index() -> list[dict[str, str]]:
    """The rows of the list: what was planted, and how it is to be judged."""
    root = os.environ.get("STEPH_TEST_DATA")
    if root is None:
        pytest.skip("STEPH_TEST_DATA is not set")
    text = (Path(root) / "false_passes" / "index.tsv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


def of_pipeline() -> dict[str, bool]:
    """Whether each variant of the reference pipeline is a defect. Read and not imported, for want of torch."""
    tree = ast.parse((UNIT / "pipeline" / "planted_reference.py").read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    planted = (call for call in calls if call.func.id == "planted" and call.args)  # type: ignore[attr-defined]
    return {ast.literal_eval(call.args[0]): any(one.arg == "broken" for one in call.keywords) for call in planted}


def test_every_row_is_a_test() -> None:
    """None is left out, and what is said to hold a row is there, as a defect or as a sound variant."""
    rows = index()
    assert [row["id"] for row in rows if _held(row["id"]) is None] == []
    defects = {variant.id: variant for variant in DEFECTS}
    sound, pipeline, missing = {variant.id for variant in SOUND}, of_pipeline(), []
    for row in rows:
        for place in _held(row["id"]) or ():
            is_silent = row["wanted"] == "silent"
            if place.startswith("pipeline:"):
                is_there = pipeline.get(place.removeprefix("pipeline:")) is (not is_silent)
            elif "::" in place:
                file, _, name = place.partition("::")
                is_there = f"def {name}(" in (UNIT / file).read_text(encoding="utf-8")
            else:
                is_there = place in sound if is_silent else place in defects
            if not is_there:
                missing.append((row["id"], place))
    assert not missing


def test_every_row_is_judged_as_hard_as_is_wanted() -> None:
    """Where a row must not be green, one of the variants that hold it breaks a check that fails."""
    defects = {variant.id: variant for variant in DEFECTS}
    soft = [
        row["id"]
        for row in index()
        if (wanted := HARDNESS.get(row["wanted"]))
        and (own := [defects[place] for place in _held(row["id"]) or () if place in defects])
        and not any(variant.hardness_of(name) in wanted for variant in own for name in variant.caught)
    ]
    assert not soft


def _held(row: str) -> list[str] | None:
    """What holds a row, which is named by its number and, where several share that, by the first word behind it."""
    short = re.match(r"(?:S13_[a-z0-9_]+|E19_\d+|[A-Z]\d\d)", row)
    return HELD_BY.get(short[0]) if short else None
