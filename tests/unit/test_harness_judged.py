"""An evaluation with lm_eval, judged by what a real run left and what the witness saw in it; and by what may be wrong.

`samples/lm_eval` holds both: five documents of a task that is scored and of one that is answered, lm_eval 0.4.13.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from steph.base.messages import verbatim
from steph.base.terms import Severity
from steph.contract.description import load_description
from steph.judge.checks_evaluation import judge_evaluation
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import Needs, check_kinds
from steph.judge.verdict import checks_verdict
from steph.judge.witness import read_witness
from steph.record.settings import EvalSettings
from steph.record.values import Check, EvalOutcome

SAMPLES = Path(__file__).parent / "samples" / "lm_eval"
ADAPTER = "runs/adapter"
TOML = """
[train]
preset = "trl"
rows = { file = "train.jsonl", format = "messages" }
[evaluate]
preset = "lm-eval"
extra = ["--tasks", "sums_mc,sums_gen"]
output = "out"
"""
# what answers at random says over and over is no matter of the harness
WORDS_OF_A_RANDOM_MODEL = {"responses_bounded", "answers_stopped", "letters_vary", "responses_differ"}


@dataclass
class Planted:
    """A root with the real files and facts, to be changed before it is judged."""

    root: Path
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """The results file."""
        return next(self.root.glob("out/**/results_*.json"))

    def samples(self, task: str) -> Path:
        """The rows of a task."""
        return next(self.root.glob(f"out/**/samples_{task}_*.jsonl"))

    def change_results(self, change: Callable[[Any], object]) -> None:
        """Change the results file in place."""
        raw = json.loads(self.results.read_text(encoding="utf-8"))
        change(raw)
        self.results.write_text(json.dumps(raw), encoding="utf-8")

    def change_lines(self, path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Change or drop the rows of a file of JSON lines."""
        rows = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None), encoding="utf-8")

    def change_facts(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Change or drop what the witness saw."""
        self.change_lines(next((self.root / "seen").glob("witness-*.jsonl")), change)

    @property
    def adapter_sha256(self) -> str:
        """The hash of the adapter that the real run loaded."""
        lines = next((SAMPLES / "seen").glob("witness-*.jsonl")).read_text(encoding="utf-8").splitlines()
        return str(next(fact["sha256"] for fact in map(json.loads, lines) if fact["fact"] == "adapter_loaded"))

    def judged(self) -> tuple[EvalOutcome, dict[str, Check]]:
        """The outcome, and the checks by their ids."""
        evidence = EvalEvidence(
            root=self.root, dataset=None, output_path="out", settings=EvalSettings(samples=5, load_in_4bit=False),
            model_name="model", lora_path=ADAPTER, stdout="", output="", returncode=0, attempt_started_unix=0.0,
            seconds=60.0, adapter_sha256_expected=self.adapter_sha256, adapter_sha256_actual=self.adapter_sha256,
            train_questions=frozenset(), random_weights=True, rehearsal=True,
            witness=read_witness(self.root / "seen"), description=load_description(self.root),
        )  # fmt: skip
        outcome, checks, _ = judge_evaluation(replace(evidence, **self.evidence))
        return outcome, {check.id: check for check in checks}


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """The sound run."""
    shutil.copytree(SAMPLES / "runs__adapter", tmp_path / "out/runs__adapter")
    shutil.copytree(SAMPLES / "seen", tmp_path / "seen")
    (tmp_path / "steph.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / ADAPTER).mkdir(parents=True)
    config = {"base_model_name_or_path": "model", "r": 4, "lora_alpha": 8}
    (tmp_path / ADAPTER / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Planted(tmp_path)


def broken(checks: Iterable[Check]) -> set[str]:
    """Ids of what does not hold, and of what must be measured and was not."""
    must = (check for check in checks if check.applies and check.holds is None and check.severity is Severity.FAIL)
    return {check.id for check in checks if check.holds is False} | {check.id for check in must}


def test_a_sound_run_passes_with_all_core_checks_measured(planted: Planted) -> None:
    """The adapter was active while texts were scored and written, the model was the one under test, five of each."""
    outcome, checks = planted.judged()
    assert checks_verdict(tuple(checks.values())) is None
    assert broken(checks.values()) <= WORDS_OF_A_RANDOM_MODEL
    core = ("exit_zero", "json_fresh", "json_valid", "total_samples", "answers_generated", "adapter_active",
            "adapter_unchanged", "model_loaded", "json_consistent", "model_named", "lora_path_named")  # fmt: skip
    assert [checks[one].holds for one in core] == [True] * len(core)
    assert (outcome.total, outcome.correct, outcome.score, outcome.metric) == (10, 1, 0.2, "sums_mc/acc,none")
    assert (outcome.model_name, outcome.lora_path) == ("model", ADAPTER)


def test_what_the_description_rules_out_is_not_applicable_and_says_why(planted: Planted) -> None:
    """No lines of lawqa, no data set, no labels where texts are written; none of these is green or red."""
    _, checks = planted.judged()
    ruled_out = {one.id: str(one.message) for one in checks.values() if not one.applies}
    needing = {
        "line_results": Needs.KEY_LINES,
        "questions_of_dataset": Needs.DATASET,
        "strict_parse_agrees": Needs.LABELS,
        "flags_consistent": Needs.GOLD,
        "prompts_agree": Needs.PROMPTS,
    }
    for some, need in needing.items():
        assert need in check_kinds()[some].needs
        assert ruled_out[some].startswith("対象外: ")
    assert not any(check_kinds()[one].core for one in ruled_out)
    assert all(checks[one].holds is None and checks[one].severity is Severity.INFO for one in ruled_out)


def test_a_core_check_is_never_ruled_out() -> None:
    """Not by asking for it either."""
    for kind in check_kinds().values():
        if kind.core:
            assert not kind.needs
            with pytest.raises(ValueError, match="core"):
                kind.not_applicable(verbatim("…"))


def without_adapter(fact: dict[str, Any]) -> dict[str, Any] | None:
    """A fact of a process that loaded no adapter."""
    if fact["fact"] == "adapter_loaded":
        return None
    if fact["fact"] in ("scoring", "generation"):
        return fact | {"adapters": [], "layers": 0, "scaling": [], "sha256": []}
    return fact


def lose_peft(planted: Planted) -> None:
    """`peft=` was lost on the way to the command."""
    planted.change_facts(without_adapter)
    planted.change_results(lambda raw: raw["config"]["model_args"].pop("peft"))


def print_peft_only(planted: Planted) -> None:
    """The results name an adapter that no process loaded."""
    planted.change_facts(without_adapter)


def of_yesterday(planted: Planted) -> None:
    """Another adapter was loaded, from another folder."""

    def change(fact: dict[str, Any]) -> dict[str, Any]:
        old = "0" * 64
        told = fact.get("sha256")
        return fact | ({"sha256": [old] if isinstance(told, list) else old} if told else {})

    planted.change_facts(change)
    planted.change_results(lambda raw: raw["config"]["model_args"].update(peft="runs/yesterday"))


def switch_off(planted: Planted) -> None:
    """The adapter was loaded and its layers were disabled."""
    planted.change_facts(lambda fact: fact | ({"disabled": fact["layers"]} if "disabled" in fact else {}))


def leave_old_results(planted: Planted) -> None:
    """The results were there before the attempt."""
    planted.evidence["attempt_started_unix"] = 4e9


def touch_old_results(planted: Planted) -> None:
    """The results are of last week, and copied with the time of now."""
    planted.change_results(lambda raw: raw.update(date=raw["date"] - 7 * 86400))
    planted.evidence["attempt_started_unix"] = planted.results.stat().st_mtime - 60


def edit_the_score(planted: Planted) -> None:
    """A better score than the rows have."""
    planted.change_results(lambda raw: raw["results"]["sums_mc"].update({"acc,none": 0.8}))


def right_every_row(planted: Planted) -> None:
    """Rows that are all right, and the score of before."""
    planted.change_lines(planted.samples("sums_mc"), lambda row: row | {"acc": 1.0})


def take_other_rows(planted: Planted) -> None:
    """Rows of other documents."""
    planted.change_lines(planted.samples("sums_gen"), lambda row: row | {"doc_hash": "0" * 64})


def drop_a_row(planted: Planted) -> None:
    """One row less than was counted."""
    planted.change_lines(planted.samples("sums_mc"), lambda row: None if row["doc_id"] == 4 else row)


def ask_fewer(planted: Planted) -> None:
    """Eight were asked for, five were answered."""
    planted.evidence["settings"] = EvalSettings(samples=8, load_in_4bit=False)


def ignore_the_limit(planted: Planted) -> None:
    """Three were asked for, five were answered."""
    planted.evidence["settings"] = EvalSettings(samples=3, load_in_4bit=False)


def load_another_model(planted: Planted) -> None:
    """Another model answered, and the results say so."""
    named = ("name_or_path", "path")

    def change(fact: dict[str, Any]) -> dict[str, Any]:
        is_adapter = fact["fact"] == "adapter_loaded"
        return fact | {key: "other/model" for key in named if key in fact and not is_adapter}

    planted.change_facts(change)
    planted.change_results(lambda raw: raw["config"]["model_args"].update(pretrained="other/model"))


def name_another_model(planted: Planted) -> None:
    """The results are of another model than the one that answered."""
    planted.change_results(lambda raw: raw["config"]["model_args"].update(pretrained="other/model"))


def log_no_samples(planted: Planted) -> None:
    """`--log_samples` was lost."""
    for task in ("sums_mc", "sums_gen"):
        planted.samples(task).unlink()


def replay_everything(planted: Planted) -> None:
    """Results without any answer in this attempt's process."""
    planted.change_facts(lambda fact: fact if fact["fact"] in ("hooked", "model_loaded", "adapter_loaded") else None)


def make_up_responses(planted: Planted) -> None:
    """The responses are not what the model generated."""
    made_up = "the sum of {doc_id} and itself, I believe"
    planted.change_lines(
        planted.samples("sums_gen"), lambda row: row | {"resps": [[made_up.format(doc_id=row["doc_id"])]]}
    )


DEFECTS: tuple[tuple[Callable[[Planted], None], set[str]], ...] = (
    (lose_peft, {"adapter_active", "lora_path_named"}),
    (print_peft_only, {"adapter_active"}),
    (of_yesterday, {"adapter_active", "lora_path_named"}),
    (switch_off, {"adapter_active"}),
    (leave_old_results, {"json_fresh"}),
    (touch_old_results, {"json_fresh"}),
    (edit_the_score, {"json_consistent"}),
    (right_every_row, {"json_consistent"}),
    (take_other_rows, {"json_consistent"}),
    (drop_a_row, {"json_consistent", "total_samples"}),
    (ask_fewer, {"total_samples"}),
    (ignore_the_limit, {"total_samples"}),
    (load_another_model, {"model_loaded", "model_named", "model_names_agree"}),
    (name_another_model, {"model_named", "model_names_agree"}),
    (log_no_samples, {"json_valid", "json_consistent"}),
    (replay_everything, {"answers_generated", "adapter_active"}),
    (make_up_responses, {"responses_generated"}),
)


@pytest.mark.parametrize(("plant", "caught"), DEFECTS, ids=[plant.__name__ for plant, _ in DEFECTS])
def test_a_planted_defect_is_found(plant: Callable[[Planted], None], caught: set[str], planted: Planted) -> None:
    """Each by the checks that are about it, and the run is not green."""
    plant(planted)
    _, checks = planted.judged()
    found = broken(checks.values()) - WORDS_OF_A_RANDOM_MODEL
    assert caught <= found
    if plant is not make_up_responses:
        assert checks_verdict(tuple(checks.values())) is not None


def only_scored(planted: Planted) -> None:
    """The task that is scored alone, as most of the harness's are."""
    planted.change_results(lambda raw: [raw[table].pop("sums_gen") for table in ("results", "n-samples", "configs")])
    planted.samples("sums_gen").unlink()
    planted.change_facts(lambda fact: None if fact["fact"] == "generation" else fact)


def test_a_row_that_is_right_without_the_likeliest_choice_is_found(planted: Planted) -> None:
    """Score and rows agree with each other, and not with the likelihoods beside them."""
    only_scored(planted)
    assert planted.judged()[1]["flags_consistent"].holds
    planted.change_lines(planted.samples("sums_mc"), lambda row: row | {"acc": 1.0})
    planted.change_results(lambda raw: raw["results"]["sums_mc"].update({"acc,none": 1.0}))
    _, checks = planted.judged()
    assert checks["json_consistent"].holds
    assert "4 問" in str(checks["flags_consistent"].message)
    assert checks["flags_consistent"].holds is False


def test_answers_that_no_filter_found_are_unread(planted: Planted) -> None:
    """A real model's are a warning: its score says nothing of what it wrote."""
    planted.change_lines(planted.samples("sums_gen"), lambda row: row | {"filtered_resps": ["[invalid]"]})
    planted.evidence.update(random_weights=False)
    _, checks = planted.judged()
    assert (checks["answers_parsed"].holds, checks["answers_parsed"].severity) == (False, Severity.WARN)


def test_metrics_of_a_whole_corpus_rule_the_comparison_out(planted: Planted) -> None:
    """A perplexity or a corpus' F1 is no mean of the rows: that is no fault, and no stage is red by it."""

    def of_the_corpus(raw: dict[str, Any]) -> None:
        for config in raw["configs"].values():
            for metric in config["metric_list"]:
                metric["aggregation"] = "f1"

    planted.change_results(of_the_corpus)
    _, checks = planted.judged()
    assert (checks["json_consistent"].holds, checks["json_consistent"].applies) == (None, False)
    assert "sums_mc" in str(checks["json_consistent"].message)


def keep_several_dates(planted: Planted) -> None:
    """Results of an earlier evaluation lie beside these."""
    for path in list(planted.root.glob("out/**/*_2026-*")):
        old = path.with_name(path.name.replace("2026-11-29", "2026-11-28"))
        shutil.copy2(path, old)
    for path in planted.root.glob("out/**/*_2026-11-28*"):
        os.utime(path, (1000, 1000))
    planted.evidence["attempt_started_unix"] = 2000.0


def spell_arguments_as_text(planted: Planted) -> None:
    """As older versions write them."""
    planted.change_results(lambda raw: raw["config"].update(model_args=f"pretrained=model,peft={ADAPTER},batch=1"))


def name_whole_paths(planted: Planted) -> None:
    """The adapter by its whole path."""
    planted.change_results(lambda raw: raw["config"]["model_args"].update(peft=str(planted.root / ADAPTER)))


def without_task_hashes(planted: Planted) -> None:
    """As older versions write them."""
    planted.change_results(lambda raw: raw.pop("task_hashes"))


def answer_merged(planted: Planted) -> None:
    """The adapter was merged into a model that is evaluated alone."""
    merged, seen = str(planted.root / "merged"), planted.root / "seen-training"
    seen.mkdir()
    saved = {"fact": "model_saved", "at": 1.0, "path": merged, "adapter": False}
    fact = json.dumps(saved | {"merged_sha256": [planted.adapter_sha256]})
    (seen / "witness-none-7.jsonl").write_text(fact + "\n", encoding="utf-8")
    planted.evidence["training_witness"] = read_witness(seen)

    def change(fact: dict[str, Any]) -> dict[str, Any] | None:
        kept = without_adapter(fact)
        return kept and kept | {key: merged for key in ("name_or_path", "path") if key in kept}

    planted.change_facts(change)
    planted.change_results(lambda raw: raw["config"].update(model_args={"pretrained": merged, "dtype": "float32"}))


def evaluate_the_base_as_well(planted: Planted) -> None:
    """The base model alone is evaluated after it, into the same folder."""
    for path in list(planted.root.glob("out/**/*_2026-*")):
        later = path.with_name(path.name.replace("2026-11-29", "2026-11-30"))
        shutil.copy(path, later)
        os.utime(path, (4e9 - 60, 4e9 - 60))
        os.utime(later, (4e9, 4e9))
        if later.name.startswith("results_"):
            raw = json.loads(later.read_text(encoding="utf-8"))
            raw["config"]["model_args"].pop("peft")
            raw["results"]["sums_mc"]["acc,none"] = 0.6
            later.write_text(json.dumps(raw), encoding="utf-8")


def filter_twice(planted: Planted) -> None:
    """Two filters, as of gsm8k: each document stands twice in the rows, and each metric in the results."""
    path, filters = planted.samples("sums_gen"), ("strict-match", "flexible-extract")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"filter": name}) + "\n" for name in filters for row in rows]
    path.write_text("".join(lines), encoding="utf-8")

    def change(raw: dict[str, Any]) -> None:
        known = raw["results"]["sums_gen"]
        for key in [key for key in known if key.endswith(",none")]:
            value = known.pop(key)
            known |= {key.replace(",none", f",{name}"): value for name in filters}
        del raw["task_hashes"]

    planted.change_results(change)


SOUND = (
    filter_twice,
    answer_merged,
    evaluate_the_base_as_well,
    only_scored,
    keep_several_dates,
    spell_arguments_as_text,
    name_whole_paths,
    without_task_hashes,
)


@pytest.mark.parametrize("plant", SOUND, ids=[plant.__name__ for plant in SOUND])
def test_a_sound_variant_is_not_accused(plant: Callable[[Planted], None], planted: Planted) -> None:
    """What other versions and other folders look like."""
    plant(planted)
    _, checks = planted.judged()
    assert broken(checks.values()) <= WORDS_OF_A_RANDOM_MODEL
