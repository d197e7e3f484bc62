"""Every planted defect is caught by exactly the checks that the table names; sound pipelines are accused of nothing."""

from __future__ import annotations

import importlib
import json
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from causes_page import markdown as causes_markdown
from checks_page import markdown as checks_markdown
from planted import EVALUATE_SCRIPT, ROOT, TRAIN_SCRIPT, plant
from planted.__main__ import markdown as planted_markdown
from planted.defects import DEFECTS, SOUND, Variant
from planted.scenario import judged
from steph import judge
from steph.base.fingerprint import fingerprints, text_hash
from steph.base.terms import Severity
from steph.judge.kinds import CheckKind, check_kinds
from steph.judge.verdict import checks_verdict
from steph.record.values import Check

DOCS = Path(__file__).parents[2] / "docs"


def broken(checks: tuple[Check, ...]) -> dict[str, str]:
    """The checks that do not hold, with their messages."""
    return {check.id: str(check.message) for check in checks if check.holds is False}


def unmeasured(checks: tuple[Check, ...]) -> set[str]:
    """The `fail` checks that could not be measured."""
    return {check.id for check in checks if check.holds is None and check.severity is Severity.FAIL}


@pytest.mark.parametrize("variant", DEFECTS, ids=lambda variant: variant.id)
def test_a_planted_defect_breaks_exactly_its_checks(variant: Variant, tmp_path: Path) -> None:
    """The checks that the table names find it, no others do, and the stage is red exactly where one is a `fail`."""
    _, checks, _ = judged(variant, tmp_path / "root")
    found = broken(checks)
    assert set(found) == variant.caught, found
    assert unmeasured(checks) == variant.unmeasured
    assert variant.caught or variant.unmeasured
    hard = {name for name in variant.caught if variant.hardness_of(name) is Severity.FAIL}
    hard |= variant.unmeasured
    assert (checks_verdict(checks) is not None) == bool(hard)


@pytest.mark.parametrize("variant", SOUND, ids=lambda variant: variant.id)
def test_a_sound_pipeline_is_accused_of_nothing(variant: Variant, tmp_path: Path) -> None:
    """Without a defect every check holds or is optional and unmeasured, and the stage is green."""
    _, checks, artifacts = judged(variant, tmp_path / "root")
    assert broken(checks) == {}
    assert checks_verdict(checks) is None
    assert artifacts


def test_there_are_at_least_forty_defects_and_their_names_are_unique() -> None:
    """The table is as large as promised and names nothing twice."""
    assert len(DEFECTS) >= 40
    assert len({variant.id for variant in (*DEFECTS, *SOUND)}) == len(DEFECTS) + len(SOUND)


def test_every_check_is_broken_by_a_planted_defect() -> None:
    """No check of the table goes without a defect that proves it can fail.

    Other tests prove the rest: ranks need several processes (test_ranks.py, test_checks_witness.py), the machine a card
    (test_checks_process.py), the model a Hub (test_checks_model.py), the CoT rows no run at all (test_extended.py),
    answers learnt by heart and the single step runs of their own (test_by_heart.py), printed words and scored
    choices a description of its own (test_own_evaluation_judged.py).
    """
    proven = {name for variant in DEFECTS for name in variant.caught | variant.unmeasured}
    ranks = {"ranks_as_asked", "results_printed_once", "ranks_agree"}
    machine = {"libraries_loaded", "gpu_used", "vram_cap_honoured", "memory_returned", "no_process_left"}
    elsewhere = {
        kind.id for kind in check_kinds().values() if kind.stages in ("H-1", "H-2heart", "H-3heart", "H-2step")
    }
    assert set(check_kinds()) - proven == {
        *ranks,
        *machine,
        *elsewhere,
        "cot_rows_sound",
        "lines_printed",
        "answers_likeliest",
    }


def test_the_table_has_every_row_that_stands_beside_a_check() -> None:
    """A row that a module of the judge defines is collected, under the name of its id and once."""
    names = [f"steph.judge.{module.name}" for module in pkgutil.iter_modules(judge.__path__)]
    modules = [vars(importlib.import_module(name)) for name in names if name.rpartition(".")[2].startswith("checks_")]
    rows = {name: value for module in modules for name, value in module.items() if isinstance(value, CheckKind)}
    assert {row.id for row in rows.values()} == set(check_kinds())
    assert [row.id.upper() for row in rows.values()] == list(rows)
    assert [check_kinds()[row.id] for row in rows.values()] == list(rows.values())


def test_the_generated_tables_are_current() -> None:
    """The pages of checks, causes and planted defects are what the tables generate."""
    assert (DOCS / "checks.md").read_text(encoding="utf-8") == checks_markdown("ja")
    assert (DOCS / "checks.en.md").read_text(encoding="utf-8") == checks_markdown("en")
    assert (DOCS / "causes.md").read_text(encoding="utf-8") == causes_markdown("ja")
    assert (DOCS / "causes.en.md").read_text(encoding="utf-8") == causes_markdown("en")
    assert (DOCS / "planted-traps.md").read_text(encoding="utf-8") == planted_markdown("ja")
    assert (DOCS / "planted-traps.en.md").read_text(encoding="utf-8") == planted_markdown("en")


def test_the_stand_in_knows_text_by_the_same_digits() -> None:
    """What the fake scripts write as a text's hash and fingerprints is what the judge finds for that text."""
    seen = runpy.run_path(str(ROOT / "scripts" / "seen.py"))
    text = "見本法第１条が定める 売買の期間は\n２日である。The quick brown fox jumps over the lazy dog."
    assert seen["text_hash"](text) == text_hash(text)
    assert tuple(seen["fingerprints"](text)) == fingerprints(text) != ()


def test_the_fake_scripts_run_as_programs(tmp_path: Path) -> None:
    """The pipeline root works when it is copied elsewhere and run by a plain interpreter, defect included."""
    root = plant(tmp_path / "root", evaluate="silent_errors")
    train = [sys.executable, "-I", TRAIN_SCRIPT, "--model-name", "m", "--train-file",
             "results/finetune/ft_cot_full_norag.jsonl", "--output-dir", "runs/x", "--do-train"]  # fmt: skip
    evaluate = [sys.executable, "-I", EVALUATE_SCRIPT, "--output", "out/r.json", "--samples", "3", "--no-rag"]
    for command in (train, evaluate):
        assert subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    assert (root / "runs/x/adapter_model.safetensors").is_file()
    rows = json.loads((root / "out/r.json").read_text(encoding="utf-8"))["results"]
    assert [row["predicted_answer"] for row in rows].count("error") == 1
