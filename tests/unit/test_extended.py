"""The extended stages: who asks for them, what they stand on, what their defects look like, what they never touch."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import record_factory as factory
from steph.base.files import sha256_of
from steph.base.messages import verbatim
from steph.base.terms import AnyStage, ExtendedId, Severity, StageId, Verdict
from steph.conduct.stages import answers_of_h3
from steph.contract.description import Description, load_description
from steph.judge.checks_extended import cot_rows_check
from steph.judge.verdict import Outcome, Overall, overall
from steph.record.events import StageEnded, StageStarted, fold
from steph.record.values import Artifact
from steph.run.journal import opened_event
from steph.tell.attempts import EXTENDED_TESTS, TEST_IDS
from suite_runs import CLONE, Bench, clean_environment, make_bench

COT_TRAINING, COT, RAG, BASE, ONE_STEP, HEART = ExtendedId
PAGE = CLONE / EXTENDED_TESTS


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """All nine stages in one run, on a pipeline that runs out of memory at 512 tokens and shows its prompts."""
    bench = make_bench(tmp_path_factory.mktemp("bench"), train="cuda_oom", until_seq=384, evaluate="rag_prompt")
    status, output = bench.run(options=("-m", "gpu or extended", str(PAGE)))
    assert status == 0, output
    return bench


@pytest.fixture
def bench(asked: Bench, tmp_path: Path) -> Iterator[Bench]:
    """The same, for a test to break: root, record and report are put back as they were, and none depends on another."""
    kept = tmp_path / "kept"
    shutil.copytree(asked.folder, kept)
    yield asked
    shutil.rmtree(asked.folder)
    shutil.copytree(kept, asked.folder)


def test_all_of_them_are_green_beside_the_three(bench: Bench) -> None:
    """One record holds all nine; the headline is that of the three, and the report has a section for the others."""
    record = bench.record()
    assert overall(record) is Overall.DEGRADED
    assert {stage: result.verdict for stage, result in record.extended.items()} == {
        COT_TRAINING: Verdict.PASS_DEGRADED,
        COT: Verdict.PASS,
        RAG: Verdict.PASS,
        BASE: Verdict.PASS,
        ONE_STEP: Verdict.PASS,
        HEART: Verdict.PASS,
    }
    assert [file.role for file in record.data] == ["dataset", "train_file_cot", "train_file"]
    report = bench.report()
    assert all(f"(追加){stage} " in report and f"### {stage} " in report for stage in ExtendedId)


def test_cot_rows_are_trained_on_at_the_settings_that_h2_ended_on(bench: Bench) -> None:
    """What H-2 found out by running out of memory is not tried again, and its adapter stays where it was."""
    h2, cot = bench.record().stages[StageId.H2], bench.record().extended[COT_TRAINING]
    assert [str(attempt.label) for attempt in h2.attempts] == ["512/b2/4bit", "384/b2/4bit"]
    assert [str(attempt.label) for attempt in cot.attempts] == ["384/b2/4bit"]
    assert cot.given_up == h2.given_up
    assert "ft_cot_full_norag.jsonl" in " ".join(cot.attempts[0].argv)
    folders = [result.attempts[-1].training.output_dir for result in (h2, cot) if result.attempts[-1].training]
    assert folders[1] == f"{folders[0]}-cot"


def test_each_evaluation_asks_what_it_is_named_for(bench: Bench) -> None:
    """The flags, the adapter and a JSON of its own."""
    argv = {stage: result.attempts[-1].argv for stage, result in bench.record().extended.items()}
    assert "--use-cot" in argv[COT]
    assert argv[COT][argv[COT].index("--hf-lora-path") + 1].endswith("_4bit-cot")
    assert "--no-rag" not in argv[RAG]
    assert "--hf-lora-path" not in argv[BASE]
    written = {argv[stage][argv[stage].index("--output") + 1] for stage in (COT, RAG, BASE)}
    assert written == {f"results/evaluations/small_model_debug_direct-{name}.json" for name in ("cot", "rag", "base")}


def test_what_the_adapter_changes_is_counted(bench: Bench) -> None:
    """How many answers differ from H-3's, and which way, as the two evaluations' own figures have it."""
    evaluation = bench.record().extended[BASE].attempts[-1].evaluation
    assert evaluation is not None
    assert evaluation.with_adapter is not None
    with_adapter = bench.record().stages[StageId.H3].attempts[-1].evaluation
    assert with_adapter is not None
    changed = sum(a != b for a, b in zip(evaluation.answers, with_adapter.answers, strict=True))
    found = evaluation.with_adapter
    assert (found.questions, found.changed_answers, found.same_responses) == (3, changed, 3 - changed)
    assert found.wrong_to_right - found.right_to_wrong == (with_adapter.correct or 0) - (evaluation.correct or 0)
    assert "| アダプタで 誤→正 |" in bench.report()


def test_retrieval_that_is_not_used_is_red(bench: Bench) -> None:
    """Nothing found although RAG is said to be on: H-3rag fails, and the verdict of the three stays as it was."""
    bench.plant(evaluate="rag_unused")
    assert bench.run(RAG)[0] == 1
    record = bench.record()
    assert record.extended[RAG].verdict is Verdict.FAIL
    assert "rag_retrieved" in {check.id for check in record.extended[RAG].findings}
    assert overall(record) is Overall.DEGRADED
    assert "追加の H-3rag RAG つきの評価は FAIL" in bench.report()


def test_each_defect_is_told_by_its_own_stage(bench: Bench) -> None:
    """Rows without reasoning, an index that can't be built, an adapter without effect: all found in one run.

    The rows are not trained on, which blocks H-3cot. Equal responses are said with care, since they may be chance.
    """
    rows = bench.root / "results/finetune/ft_cot_full_norag.jsonl"
    bare = [json.loads(line) | {"output": "Answer: a"} for line in rows.read_text(encoding="utf-8").splitlines()]
    build = "import sys\nsys.exit(f'no index of {sys.argv[1]}')\n"
    bench.plant(evaluate="adapter_ignored")
    rows.write_text("\n".join(map(json.dumps, bare)), encoding="utf-8")
    with (bench.root / "steph.toml").open("a", encoding="utf-8") as description:
        description.write('[index]\ncommand = ["scripts/build.py", "{dataset}"]\n')
    (bench.root / "scripts/build.py").write_text(build, encoding="utf-8")
    status, output = bench.run(*ExtendedId)
    assert status == 1, output
    results = bench.record().extended
    assert [results[stage].verdict for stage in (COT_TRAINING, COT, RAG)] == [
        Verdict.FAIL,
        Verdict.BLOCKED,
        Verdict.FAIL,
    ]
    assert "理由のない行 40" in str(results[COT_TRAINING].explanation)
    assert "学習は行っていない" in str(results[COT_TRAINING].explanation)
    assert "no index of datasets/lawqa_jp/data/selection.json" in str(results[RAG].explanation)
    assert results[COT_TRAINING].attempts == results[RAG].attempts == ()
    (finding,) = (check for check in results[BASE].findings if check.id == "adapter_changes_responses")
    assert "応答が一字一句同じ 3 問" in str(finding.message)
    assert "適用されていないのかもしれない" in str(finding.message)


def test_answers_of_h3_that_changed_block_what_is_held_against_them(bench: Bench) -> None:
    """Another file in the place of H-3's JSON is no measure for anything."""
    path = bench.root / "results/evaluations/small_model_debug_direct.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert bench.run(RAG, BASE)[0] == 1
    for stage in (RAG, BASE):
        result = bench.record().extended[stage]
        assert result.verdict is Verdict.BLOCKED
        assert "H-3を再実行する" in str(result.explanation)


def test_without_the_three_they_are_blocked_and_red(tmp_path: Path) -> None:
    """On an empty record nothing runs and nothing passes."""
    bench = make_bench(tmp_path)
    assert bench.run(options=("-m", "extended", str(PAGE)))[0] == 1
    assert {result.verdict for result in bench.record().extended.values()} == {Verdict.BLOCKED}
    assert set(bench.record().extended) == set(ExtendedId)


def test_only_who_asks_gets_them() -> None:
    """`-m gpu` is the acceptance; their marker, their file or a node id asks for more."""
    page, file = "tests/acceptance", EXTENDED_TESTS
    asked = {
        f"{page}": 3,
        f"-m gpu {page}": 3,
        f"-m extended {page}": 6,
        f"-m 'gpu and extended' {page}": 6,
        f"-m 'gpu or extended' {page}": 9,
        f"-m 'gpu and not extended' {page}": 3,
        f"-m 'not gpu' {page}": 0,
        f"-m gpu {file}": 6,
        f"{TEST_IDS[RAG]}": 1,
        f"{TEST_IDS[RAG]} {TEST_IDS[StageId.H1]}": 2,
    }
    code = (
        "import json, pytest\n"
        "class Count:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        self.items = len(session.items)\n"
        "def count(words):\n"
        "    plugin = Count()\n"
        "    pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider', *words], plugins=[plugin])\n"
        "    return plugin.items\n"  # one process collects for all
        f"print(json.dumps([count(words) for words in {[shlex.split(words) for words in asked]!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == list(asked.values())


@pytest.mark.parametrize(
    ("replaced", "stale"),
    [
        (StageId.H1, {StageId.H2, StageId.H3, COT_TRAINING, COT, RAG, BASE, ONE_STEP, HEART}),
        (StageId.H2, {StageId.H3, COT_TRAINING, COT, RAG, BASE, ONE_STEP, HEART}),
        (StageId.H3, {RAG, BASE, HEART}),
        (COT_TRAINING, {COT}),
        (RAG, set()),
    ],
)
def test_what_was_built_on_a_replaced_stage_is_stale(replaced: AnyStage, stale: set[AnyStage]) -> None:
    """A stage that runs again leaves what stood on it behind, and nothing else."""
    ended = [
        StageEnded(at="t", stage=stage, verdict=Verdict.PASS, explanation=verbatim(""), seconds=1.0)
        for stage in (*StageId, *ExtendedId)
    ]
    record = fold([opened_event("r", factory.context()), *ended, StageStarted(at="t", stage=replaced)])
    assert {stage for stage, result in record.results.items() if result.stale} == stale


@pytest.mark.parametrize(
    ("output", "holds"),
    [
        ("Reasoning: 民法第4条は成年を十八歳と定める。\nAnswer: b", True),
        ("理由：民法第4条は成年を十八歳と定める。\n\n答えは「ｂ」です。", True),
        ("Answer: b", False),
        ("b", False),
        ("Reasoning: なし\nAnswer: b", False),
        ("Reasoning: 民法第4条は成年を十八歳と定める。", False),
        ("Reasoning: 民法第4条は成年を十八歳と定める。\nAnswer: c", False),
        ("", False),
    ],
)
def test_a_cot_row_needs_a_reason_and_its_own_letter(output: str, holds: bool) -> None:
    """One unsound row in three is a warning, two are a failure."""
    good = {"output": "Reasoning: 民法第4条は成年を十八歳と定める。\nAnswer: b", "meta": {"correct": "b"}}
    row = {"output": output, "meta": {"correct": "b"}}
    once, twice = cot_rows_check([good, good, row]), cot_rows_check([good, row, row])
    assert once.holds is twice.holds is holds
    assert once.severity is Severity.WARN
    assert twice.severity is (Severity.WARN if holds else Severity.FAIL)


def test_the_answers_of_h3_are_read_from_its_json_wherever_that_stands_among_its_files(bench: Bench) -> None:
    """What an evaluation writes beside its JSON, named before it, is not taken for the answers."""
    record = bench.record()
    h3 = record.stages[StageId.H3]
    other = Artifact(path="datasets/lawqa_jp/data/selection.json", size_bytes=1, sha256="0" * 64)
    attempt = h3.attempts[-1]
    beside = attempt.model_copy(update={"artifacts": (other, *attempt.artifacts)})
    told = record.model_copy(
        update={"stages": {**record.stages, StageId.H3: h3.model_copy(update={"attempts": (beside,)})}}
    )
    rows = answers_of_h3(bench.root, told, Description())
    assert isinstance(rows, tuple)
    assert len(rows) == 3
    blocked = answers_of_h3(bench.root, factory.green_acceptance(), Description())
    assert isinstance(blocked, Outcome)
    assert blocked.verdict is Verdict.BLOCKED


@pytest.mark.parametrize(("name", "rows"), [("out.jsonl", None), ("out.json", "items"), ("out.csv", None)])
def test_the_answers_of_h3_are_read_as_the_description_has_them(tmp_path: Path, name: str, rows: str | None) -> None:
    """A line each, under a key, or a table: what held for H-3 holds for what is held against it."""
    each = [{"q": f"question {n}", "gold": "a", "said": "a", "ok": 1} for n in range(3)]
    texts = {
        "out.jsonl": "".join(json.dumps(row) + "\n" for row in each),
        "out.json": json.dumps({"em": 1.0, "items": each}),
        "out.csv": "q,gold,said,ok\n" + "".join(f"question {n},a,a,1\n" for n in range(3)),
    }
    (tmp_path / name).write_text(texts[name], encoding="utf-8")
    (tmp_path / "steph.toml").write_text(
        '[train]\npreset = "trl"\nrows.file = "r.jsonl"\n[evaluate]\ncommand = ["{python}", "e.py", "{model}"]\n'
        f'results.file = "{name}"\n' + (f'results.score = "em"\nresults.rows = "{rows}"\n' if rows else "")
        + 'results.row = { question = "q", expected = "gold", predicted = "said", correct = "ok" }\n'
    )  # fmt: skip
    record = factory.green_acceptance()
    h3 = record.stages[StageId.H3]
    last = h3.attempts[-1]
    assert last.evaluation is not None
    written = Artifact(path=name, size_bytes=1, sha256=sha256_of(tmp_path / name))
    last = last.changed(evaluation=last.evaluation.changed(output_path=name), artifacts=(written,))
    told = record.changed(stages={**record.stages, StageId.H3: h3.changed(attempts=(last,))})
    found = answers_of_h3(tmp_path, told, load_description(tmp_path))
    assert isinstance(found, tuple), found
    assert [row.question for row in found] == ["question 0", "question 1", "question 2"]
