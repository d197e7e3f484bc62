"""What lm_eval and other evaluations write is read into one value, and what its files say against each other is told.

`samples/lm_eval` is what lm_eval 0.4.13 wrote for five documents of two tasks, with a tiny model and an adapter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from steph.contract.results import Results, ResultsFile, ResultsForm, value_at, values_at
from steph.contract.results_files import READERS, ResultsFormat, find_results

SAMPLES = Path(__file__).parent / "samples" / "lm_eval"
HARNESS = ResultsForm(
    format="lm_eval", kind="loglikelihood", file="out/**/results_*.json", rows="out/**/samples_*.jsonl"
)
BEGUN = 1795919416.4392192
OWN = ResultsForm(
    format="json", kind="choice", file="out/eval.json", score="summary.accuracy", count="summary.n",
    model="run.model", adapter="run.adapter", rows="items",
    row={"question": "q", "expected": "gold", "predicted": "answer", "response": "text", "correct": "ok"},
)  # fmt: skip


def harness_run(root: Path) -> Path:
    """A root with the real files in its output folder."""
    shutil.copytree(SAMPLES / "runs__adapter", root / "out/runs__adapter")
    return root


def found(root: Path, form: ResultsForm = HARNESS) -> ResultsFile:
    """What is read after an attempt that began before the files were written."""
    return find_results(root, form, "out", None, 0.0)


def content(root: Path, form: ResultsForm = HARNESS) -> Results:
    """The results, which must be readable."""
    file = found(root, form)
    assert file.content is not None, file.problem
    return file.content


def edit_json(pattern: str, root: Path, change: Callable[[Any], object]) -> Path:
    """Change one JSON file of a root in place."""
    (path,) = root.glob(pattern)
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    return path


def test_the_harness_results_are_read_with_their_rows(tmp_path: Path) -> None:
    """Model, adapter, start, and of each task score, count and rows with prompt, answer and right answer."""
    results = content(harness_run(tmp_path))
    config = results.config
    assert (config.hf_model_name, config.lora_path, config.backend) == ("model", "runs/adapter", "hf")
    scores = {score.task: (score.metric, score.value, score.count, score.is_mean) for score in results.scores}
    assert scores == {"sums_mc": ("acc,none", 0.2, 5, True), "sums_gen": ("exact_match,none", 0.0, 5, True)}
    assert results.begun_unix == pytest.approx(BEGUN)
    assert results.contradictions == ()
    assert results.whole == 24  # both tasks' n-samples.original
    scored = [row for row in results.results if row.task == "sums_mc"]
    assert [row.predicted_answer for row in scored] == ["1", "2", "0", "2", "1"]
    assert [row.correct_answer for row in scored] == ["0", "1", "2", "0", "1"]
    assert [row.is_correct for row in scored] == [False, False, False, False, True]
    assert all(row.response is None for row in scored)
    written = [row for row in results.results if row.task == "sums_gen"]
    assert written[0].question == "What is 0 plus 0?"
    assert written[0].prompt == "Question: What is 0 plus 0?\nAnswer:"
    assert written[0].response == "1212121212121212"


def test_the_rows_of_another_run_are_told_by_their_hashes(tmp_path: Path) -> None:
    """The results file holds a hash of all rows: one row taken from elsewhere, and they are not its rows."""
    root = harness_run(tmp_path)
    (samples,) = root.glob("out/**/samples_sums_mc_*.jsonl")
    lines = samples.read_text(encoding="utf-8").splitlines()
    lines[0] = lines[0].replace('"doc_hash": "4da7', '"doc_hash": "0000')
    samples.write_text("\n".join(lines), encoding="utf-8")
    assert "task_hash" in str(content(root).contradictions[0])


def test_samples_of_another_date_are_not_these_results_rows(tmp_path: Path) -> None:
    """A folder may hold the samples of yesterday: without those of its own date a result has no rows."""
    root = harness_run(tmp_path)
    (samples,) = root.glob("out/**/samples_sums_mc_*.jsonl")
    samples.rename(samples.with_name("samples_sums_mc_2026-11-28T02-03-04.578925.jsonl"))
    file = found(root)
    assert file.content is None
    assert "sums_mc" in str(file.problem)


def test_older_versions_spell_their_arguments_as_text(tmp_path: Path) -> None:
    """`model_args` was one text until it became a table; 4-bit is in both."""
    root = harness_run(tmp_path)
    edit_json(
        "out/**/results_*.json",
        root,
        lambda raw: raw["config"].update(model_args="pretrained=org/model,peft=out/adapter,load_in_4bit=True"),
    )
    config = content(root).config
    assert (config.hf_model_name, config.lora_path, config.load_in_4bit) == ("org/model", "out/adapter", True)


def test_a_lost_peft_argument_is_no_adapter(tmp_path: Path) -> None:
    """What is not there is not made up."""
    root = harness_run(tmp_path)
    edit_json("out/**/results_*.json", root, lambda raw: raw["config"]["model_args"].pop("peft"))
    assert content(root).config.lora_path is None


def test_without_its_counts_the_rows_are_counted(tmp_path: Path) -> None:
    """As versions before `n-samples` wrote it."""
    root = harness_run(tmp_path)
    edit_json("out/**/results_*.json", root, lambda raw: raw.pop("n-samples"))
    results = content(root)
    assert [score.count for score in results.scores] == [None, None]
    assert len(results.results) == 10


def test_a_metric_over_the_whole_corpus_is_no_mean(tmp_path: Path) -> None:
    """Its rows can't be held against it, and it is not said to be their mean."""
    root = harness_run(tmp_path)
    edit_json(
        "out/**/results_*.json",
        root,
        lambda raw: raw["configs"]["sums_mc"]["metric_list"][0].update(aggregation="f1"),
    )
    assert [score.is_mean for score in content(root).scores] == [None, True]


def test_a_described_metric_is_taken_in_the_place_of_the_first(tmp_path: Path) -> None:
    """By its name, with or without the filter; likelihoods weighed by length say no more which answer is right."""
    form = replace(HARNESS, score="results.sums_mc.acc_norm,none")
    results = content(harness_run(tmp_path), form)
    assert [(score.task, score.metric) for score in results.scores] == [
        ("sums_mc", "acc_norm,none"), ("sums_gen", "exact_match,none"),
    ]  # fmt: skip
    assert {row.correct_answer for row in results.results if row.task == "sums_mc"} == {""}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.pop("results"), "results がない"),
        (lambda raw: (raw.pop("n-samples"), raw.pop("configs")), "configs"),
        (lambda raw: raw["results"]["sums_mc"].update({"acc,none": float("nan")}), "nan"),
    ],
)
def test_what_is_no_result_of_the_harness_is_refused(
    change: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    """A file of this name that lacks its parts, or a score that is no number, is not read as some result."""
    root = harness_run(tmp_path)
    edit_json("out/**/results_*.json", root, change)
    file = found(root)
    assert file.content is None
    assert said in str(file.problem)


def test_of_several_results_the_attempts_newest_counts_and_others_are_named(tmp_path: Path) -> None:
    """Two files of the same model and adapter with other scores; one of the base model alone is another matter."""
    root = harness_run(tmp_path)
    (first,) = root.glob("out/**/results_*.json")
    raw = json.loads(first.read_text(encoding="utf-8"))
    raw["results"]["sums_mc"]["acc,none"] = 0.8
    second = first.with_name("results_2026-11-29T09-00-00.000000.json")
    second.write_text(json.dumps(raw), encoding="utf-8")
    for samples in list(root.glob("out/**/samples_*.jsonl")):
        task = samples.name.split("_2026")[0]
        shutil.copy(samples, samples.with_name(f"{task}_2026-11-29T09-00-00.000000.jsonl"))
    os.utime(first, (1000, 1000))
    file = find_results(root, HARNESS, "out", None, 500.0)
    assert file.path == second
    assert file.others == (first.relative_to(root).as_posix(),)
    raw["config"]["model_args"].pop("peft")
    second.write_text(json.dumps(raw), encoding="utf-8")
    assert find_results(root, HARNESS, "out", None, 500.0).others == ()


def own_json(root: Path, **changes: object) -> Path:
    """An evaluation's own JSON as a person may write it."""
    items = [
        {"q": f"問 {n}", "gold": "B", "answer": answer, "text": f"答え: {answer}", "ok": answer == "B"}
        for n, answer in enumerate("BBA")
    ]
    raw = {"summary": {"accuracy": 66.67, "n": 3}, "run": {"model": "org/m", "adapter": "out/a"}, "items": items}
    (root / "out").mkdir()
    path = root / "out/eval.json"
    path.write_text(json.dumps(raw | changes, ensure_ascii=False), encoding="utf-8")
    return path


def test_dotted_paths_find_the_figures_of_any_json(tmp_path: Path) -> None:
    """A percentage is a share; labels are compared without case."""
    own_json(tmp_path)
    results = content(tmp_path, OWN)
    assert (results.config.hf_model_name, results.config.lora_path) == ("org/m", "out/a")
    assert results.scores[0].value == pytest.approx(0.6667)
    assert results.scores[0].count == 3
    assert [row.predicted_answer for row in results.results] == ["b", "b", "a"]
    assert [row.is_correct for row in results.results] == [True, True, False]
    assert results.labels[:2] == ("a", "b")


def test_rows_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    """JSON Lines beside the figures, found by a pattern."""
    path = own_json(tmp_path, items=None)
    rows = [{"q": "問", "gold": "x", "answer": "x", "text": "x"}]
    (tmp_path / "out/rows-1.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    form = ResultsForm(
        **{**vars(OWN), "rows": "out/rows-*.jsonl", "row": {k: v for k, v in OWN.row.items() if k != "correct"}}
    )
    file = found(tmp_path, form)
    assert file.content is not None, file.problem
    assert [row.is_correct for row in file.content.results] == [True]
    assert file.path == path
    assert [rows.name for rows in file.rows_files] == ["rows-1.jsonl"]


def test_a_table_of_rows_is_read(tmp_path: Path) -> None:
    """As a spreadsheet has it: every value is text, and an empty cell is no answer. The score is its rows' mean."""
    (tmp_path / "out").mkdir()
    table = "q,gold,answer,text,ok\n問 1,B,B,答え: B,True\n問 2,B,A,答え: A,False\n問 3,B,,わからない,False\n"
    (tmp_path / "out/eval.csv").write_text(table, encoding="utf-8")
    form = ResultsForm(format="json", file="out/eval.csv", row=OWN.row)
    results = content(tmp_path, form)
    assert [row.is_correct for row in results.results] == [True, False, False]
    assert [row.is_answered for row in results.results] == [True, True, False]
    assert results.scores[0].value == pytest.approx(1 / 3)


@pytest.mark.parametrize("place", [0, 3])
def test_a_line_that_is_no_row_heads_the_rows_or_sums_them_up(place: int, tmp_path: Path) -> None:
    """What has nothing that a row has; a row that lacks its answer stays one."""
    own_json(tmp_path, items=None)
    rows: list[dict[str, object]] = [{"q": f"問 {n}", "gold": "x", "answer": "x", "text": "x"} for n in range(3)]
    rows.insert(place, {"meta": {"model": "org/m"}, "score": 1.0})
    (tmp_path / "out/rows-1.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    row = {k: v for k, v in OWN.row.items() if k != "correct"}
    form = ResultsForm(**{**vars(OWN), "rows": "out/rows-*.jsonl", "row": row})
    assert [one.question for one in content(tmp_path, form).results] == ["問 0", "問 1", "問 2"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"summary": {"accuracy": 0.5, "n": "3.5"}}, "count(summary.n)が件数でない"),
        ({"summary": {"accuracy": "3/0", "n": 3}}, "score(summary.accuracy)が数でない"),
        ({"summary": {"accuracy": "high", "n": 3}}, "score(summary.accuracy)が数でない"),
        ({"summary": {"accuracy": 0.5, "n": "three"}}, "count(summary.n)が件数でない"),
        ({"items": "none"}, "rows(items)に行の並びがない"),
        ({"items": [{"q": "問", "ok": "perhaps"}]}, "1 行目の correct(ok)が正誤でない"),
        ({"summary": {"accuracy": True, "n": 3}}, "score(summary.accuracy)が数でない"),
    ],
)
def test_a_path_that_finds_something_else_is_named(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    """Which key of the description finds no figure, and what stands there."""
    own_json(tmp_path, **changes)
    file = found(tmp_path, OWN)
    assert file.content is None
    assert said in str(file.problem)


def test_paths_take_any_name_and_keys_with_dots() -> None:
    """`*` stands for one name or any item; a key that has dots itself is found whole."""
    raw = {"results": {"a.b": {"acc,none": 1}, "c": {"acc,none": 2}}, "list": [{"x": 3}, {"x": 4}]}
    assert values_at(raw, "results.*.acc,none") == (1, 2)
    assert value_at(raw, "results.a.b.acc,none") == 1
    assert values_at(raw, "list.*.x") == (3, 4)
    assert value_at(raw, "list.1.x") == 4
    assert value_at(raw, "results.nothing") is None


def by_task(root: Path, scores: tuple[object, ...] = (0.67, "50 %")) -> ResultsForm:
    """An evaluation of two tasks: the rows and the score of each below its name."""
    rows = {"sums": "BBA", "names": "BA"}
    tasks = {
        name: {
            "accuracy": score,
            "n": len(answers),
            "samples": [{"q": f"{name} {n}", "gold": "B", "answer": one, "text": one} for n, one in enumerate(answers)],
        }
        for (name, answers), score in zip(rows.items(), scores, strict=True)
    }
    own_json(root, tasks=tasks)
    row = {k: v for k, v in OWN.row.items() if k != "correct"}
    return replace(OWN, rows="tasks.*.samples", score="tasks.*.accuracy", count="tasks.*.n", row=row)


def test_a_path_with_a_star_collects_the_rows_of_all_matches(tmp_path: Path) -> None:
    """Each task's score is held against its own rows, rounded as it is; the whole is the mean of all rows."""
    results = content(tmp_path, by_task(tmp_path))
    assert [row.question for row in results.results] == ["sums 0", "sums 1", "sums 2", "names 0", "names 1"]
    assert (results.scores[0].value, results.scores[0].count) == (3 / 5, 5)
    assert results.contradictions == ()


def test_a_tasks_score_that_is_not_its_rows_mean_is_told(tmp_path: Path) -> None:
    """Though the mean of all rows would hide it."""
    results = content(tmp_path, by_task(tmp_path, (0.5, 0.67)))
    assert [str(one) for one in results.contradictions] == [
        "accuracy (1) 0.5(3 行の平均 0.6667)", "accuracy (2) 0.67(2 行の平均 0.5)",
    ]  # fmt: skip


def test_a_star_may_stand_for_each_row_and_for_nothing(tmp_path: Path) -> None:
    """A table of rows by their ids, its rows named by `*`; a path that nothing is at says which keys there are."""
    form = by_task(tmp_path)
    path = tmp_path / "out/eval.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(raw | {"by_id": {str(n): row for n, row in enumerate(raw["items"])}}), encoding="utf-8")
    one_score = replace(form, score="summary.accuracy", count=None)
    assert len(content(tmp_path, replace(one_score, rows="by_id.*")).results) == 3
    assert len(content(tmp_path, replace(one_score, rows="by_id")).results) == 3
    problem = str(found(tmp_path, replace(form, rows="task.*.samples")).problem)
    assert "rows(task.*.samples)に当たるものがファイルにない" in problem
    assert "summary、run、items、tasks、by_id" in problem
    problem = str(found(tmp_path, replace(form, rows="tasks.*.n")).problem)
    assert "rows(tasks.*.n)に行の並びがない" in problem


def test_every_format_that_a_description_may_name_has_its_reader() -> None:
    """A name without a reader would end an evaluation with a KeyError; `lawqa` is found by what it prints."""
    assert set(get_args(ResultsFormat)) == {"lawqa", *READERS}
