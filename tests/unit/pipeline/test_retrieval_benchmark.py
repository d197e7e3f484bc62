"""What the retrieval benchmark counts: hits, recall and their table, on three passages."""

import json
from pathlib import Path

import pytest
from app.core.lawqa import load_questions
from app.retrieval.bm25 import grams
from small_run import question

from benchmarks.retrieval import DEPTHS, USED, Bench, Case, by_bm25s, page


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two questions: one with a passage of its own, one with two, of which the query names only the first."""
    second = question(1) | {"コンテキスト": "## 架空法\n### 第1条\n森林は別に定める。\n### 第2条\n空港を除く。"}
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({"samples": [question(0), second]}, ensure_ascii=False), encoding="utf-8")
    return path


def test_hits_and_recall_are_counted_by_depth(data: Path) -> None:
    """Both questions hit at once; the second one's other passage comes with depth, and recall with it."""
    bench = Bench.of(load_questions(data, "--data"), repeats=2)
    (row,) = bench.measure([Case("bm25s", by_bm25s, USED, grams)])
    assert [len(own) for own in bench.own] == [1, 2]
    assert dict(row.hit) == dict.fromkeys(DEPTHS, 1.0)
    assert (row.recall[1], row.recall[5]) == (0.75, 1.0)
    assert row.build_seconds > 0


def test_the_page_shows_each_case_and_its_figures(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a case, and by how many questions the tokens in use miss the best."""
    monkeypatch.setattr("benchmarks.retrieval._PACKAGES", ("bm25s",))
    bench = Bench.of(load_questions(data, "--data"), repeats=1)
    blind = Case("bm25s", lambda corpus: by_bm25s(corpus[::-1]), "passages in another order", grams)
    rows = bench.measure([blind, Case("bm25s", by_bm25s, USED, grams)])
    text = page(bench, rows, bench.disk_seconds(data))
    assert f"| bm25s | {USED} | question and choices | 1.000 |" in text
    assert "hit at most 0 fewer" in text
    assert text.count("| bm25s |") == 2
