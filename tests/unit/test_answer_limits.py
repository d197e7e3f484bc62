"""The limit of new tokens that the results claim is held against the limit that the answers were cut at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import plant
from planted.defects import SEEN, Variant
from planted.scenario import evaluation_evidence
from seen_facts import each, facts_in, witness_of
from steph.judge.checks_evaluation import judge_evaluation
from steph.judge.evidence import EvalEvidence


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> EvalEvidence:
    """Answers that were cut at 12 tokens, where the configuration says 64."""
    root = plant(tmp_path_factory.mktemp("cut") / "root", evaluate="limit_unheeded")
    return evaluation_evidence(root, Variant("limit_unheeded", "H-3", ""))


def holds(evidence: EvalEvidence, folder: Path, **seen: Any) -> bool | None:  # noqa: ANN401
    """Whether the configuration is called as asked, had the calls had these values."""
    witness = witness_of(folder / "seen", each("generation", **seen)(facts_in(evidence.root / SEEN)))
    checks = {check.id: check.holds for check in judge_evaluation(replace(evidence, witness=witness))[1]}
    return checks["config_as_asked"]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({}, False),
        ({"limit": 128, "new_tokens": [100]}, False),  # longer than it claims to let them be
        ({"limit": 64}, True),
        ({"limit": None}, False),  # no call says a limit: the rows' own words
        ({"limit": 12, "prompt_tokens": [500]}, True),  # a context of 512 tokens is full
        ({"limit": 4, "new_tokens": [4]}, True),  # three calls made one answer of 12 tokens
        ({"limit": 40, "new_tokens": [12]}, True),  # nothing was cut by it
    ],
)
def test_the_claimed_limit_is_the_one_that_cut(
    cut: EvalEvidence, tmp_path: Path, seen: dict[str, Any], expected: bool
) -> None:
    """Another limit counts where it made an answer another one."""
    assert holds(cut, tmp_path, **({"prompt_tokens": [100]} | seen)) is expected


def test_without_a_witness_the_rows_tell(cut: EvalEvidence) -> None:
    """Cut by the limit, and with less than half of its tokens."""
    checks = {check.id: check.holds for check in judge_evaluation(replace(cut, witness=None))[1]}
    assert checks["config_as_asked"] is False
