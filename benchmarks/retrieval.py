"""What retrieval finds and what it costs, by tokenisation and against rank-bm25: one Markdown page.

pip install rank-bm25 sudachipy sudachidict_core
OMP_NUM_THREADS=1 PYTHONPATH=pipeline python -m benchmarks.retrieval --data SELECTION.json --output PAGE.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from app.core.lawqa import Question, load_questions
from app.retrieval.bm25 import BM25Retriever, grams, load_retriever
from app.retrieval.passages import Passage, corpus_of, passages_of

DEPTHS = (1, 3, 5, 10)
USED = "characters, runs of 2 and 3 (in use)"
_CONTENT_WORDS = frozenset(("名詞", "動詞", "形容詞", "形状詞", "接頭辞", "接尾辞"))
_PACKAGES = ("bm25s", "rank-bm25", "sudachipy", "sudachidict_core", "numpy")

Tokenise = Callable[[str], list[str]]
Scores = Callable[[list[str]], Any]  # tokens of a query to one score for each passage, a numpy array
Index = Callable[[list[list[str]]], Scores]


@dataclass(frozen=True)
class Case:
    """One way to retrieve: an engine, its tokens, and what is asked."""

    engine: str
    index: Index
    tokens: str
    tokenise: Tokenise
    with_choices: bool = True

    def query(self, question: Question) -> str:
        """What is asked for a question."""
        return f"{question.text}\n{question.choices_text}" if self.with_choices else question.text


@dataclass(frozen=True)
class Round:
    """One index built and every question asked of it: CPU seconds, and the best passages of each question."""

    build_seconds: float
    query_seconds: Sequence[float]
    found: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of the questions by depth, medians of the times."""

    case: Case
    hit: Mapping[int, float]
    recall: Mapping[int, float]
    build_seconds: float
    query_seconds: float


@dataclass(frozen=True)
class Bench:
    """Questions, the passages of them all, and which of these are each question's own."""

    questions: Sequence[Question]
    passages: Sequence[Passage]
    own: Sequence[frozenset[int]]
    repeats: int

    @classmethod
    def of(cls, questions: Sequence[Question], repeats: int) -> Bench:
        """The bench over one question set."""
        passages = corpus_of(questions)
        place = {passage: number for number, passage in enumerate(passages)}
        own = [frozenset(place[passage] for passage in passages_of(question.context)) for question in questions]
        return cls(questions, passages, own, repeats)

    def measure(self, cases: Sequence[Case]) -> list[Row]:
        """All cases in turn, as often as `repeats` says, so that whatever slows the machine slows them alike."""
        rounds = [[self._round(case) for case in cases] for _ in range(self.repeats)]
        return [self._row(case, of_case) for case, of_case in zip(cases, zip(*rounds, strict=True), strict=True)]

    def _round(self, case: Case) -> Round:
        started = time.process_time()
        scores_of = case.index([case.tokenise(passage.text) for passage in self.passages])
        build_seconds = time.process_time() - started
        query_seconds, found = [], []
        for question in self.questions:
            query = case.query(question)
            started = time.process_time()
            found.append((-scores_of(case.tokenise(query))).argsort(kind="stable")[: max(DEPTHS)].tolist())
            query_seconds.append(time.process_time() - started)
        return Round(build_seconds, query_seconds, found)

    def _row(self, case: Case, rounds: Sequence[Round]) -> Row:
        found = rounds[0].found  # the same each time
        return Row(
            case,
            {depth: self._hit(found, depth) for depth in DEPTHS},
            {depth: self._recall(found, depth) for depth in DEPTHS},
            statistics.median(each.build_seconds for each in rounds),
            statistics.median(seconds for each in rounds for seconds in each.query_seconds),
        )

    def _hit(self, found: Sequence[Sequence[int]], depth: int) -> float:
        return statistics.mean(not own.isdisjoint(best[:depth]) for own, best in zip(self.own, found, strict=True))

    def _recall(self, found: Sequence[Sequence[int]], depth: int) -> float:
        shares = (len(own & {*best[:depth]}) / len(own) for own, best in zip(self.own, found, strict=True))
        return statistics.mean(shares)

    def disk_seconds(self, data: Path) -> tuple[float, float]:
        """Medians of writing the whole index and of reading and checking it, as the scripts do."""
        retriever = BM25Retriever.build(self.passages)
        saving, loading = [], []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(self.repeats):
                started = time.perf_counter()
                retriever.save(Path(folder), data)
                saving.append(time.perf_counter() - started)
                started = time.perf_counter()
                load_retriever(Path(folder), data)
                loading.append(time.perf_counter() - started)
        return statistics.median(saving), statistics.median(loading)


def by_bm25s(corpus: list[list[str]]) -> Scores:
    """As the pipeline does."""
    import bm25s

    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(corpus, show_progress=False)
    scores: Scores = index.get_scores
    return scores


def by_rank_bm25(corpus: list[list[str]]) -> Scores:
    """rank-bm25's Okapi with the same k1 and b; it keeps its own inverse document frequency."""
    import rank_bm25

    scores: Scores = rank_bm25.BM25Okapi(corpus, k1=1.5, b=0.75).get_scores
    return scores


def characters(*sizes: int) -> Tokenise:
    """Runs of characters, levelled as the pipeline levels them."""

    def tokenise(text: str) -> list[str]:
        squeezed = "".join(unicodedata.normalize("NFKC", text).lower().split())
        return [squeezed[at : at + size] for size in sizes for at in range(len(squeezed) - size + 1)]

    return tokenise


def words(mode: str) -> Tokenise:
    """SudachiPy's content words in their normalised form; mode A is the shortest unit, C the longest."""
    import sudachipy

    split = getattr(sudachipy.SplitMode, mode)
    dictionary = sudachipy.Dictionary().tokenizer(split)

    def tokenise(text: str) -> list[str]:
        found = dictionary.tokenize(unicodedata.normalize("NFKC", text).lower())
        return [word.normalized_form() for word in found if word.part_of_speech()[0] in _CONTENT_WORDS]

    return tokenise


def cases() -> list[Case]:
    """Every tokenisation with bm25s, and the one in use with rank-bm25 too; then all of them without the choices."""
    tokenisations: dict[str, Tokenise] = {
        "characters, runs of 2": characters(2),
        "characters, runs of 3": characters(3),
        USED: grams,
        **{f"SudachiPy words, mode {mode}": words(mode) for mode in "ABC"},
    }
    asked = [Case("bm25s", by_bm25s, name, tokenise) for name, tokenise in tokenisations.items()]
    asked.append(Case("rank-bm25", by_rank_bm25, USED, grams))
    return [*asked, *(replace(case, with_choices=False) for case in asked)]


def page(bench: Bench, rows: Sequence[Row], disk_seconds: tuple[float, float]) -> str:
    """The Markdown page."""
    sizes = [len(passage.text) for passage in bench.passages]
    each = statistics.mean(map(len, bench.own))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    cores = len(os.sched_getaffinity(0))
    found = " | ".join(f"hit@{depth}" for depth in DEPTHS), " | ".join(f"recall@{depth}" for depth in DEPTHS)
    lines = [
        "# Retrieval: what is found, and what it costs",
        "",
        f"{len(bench.questions)} questions, {len(bench.passages)} distinct passages of all their contexts "
        f"(median {statistics.median(sizes):.0f} characters), on average {each:.1f} of them a question's own.",
        "",
        "- A *hit* at k: one of the k best passages is, word for word, a passage of the question's own context. "
        "*Recall* at k: the mean share of the question's own passages among the k best (with k = 1 it can't reach 1).",
        "- Build: tokenise all passages and index them. Query: tokenise one query, score all passages, sort. Both are "
        f"medians over {bench.repeats} rounds, in milliseconds of CPU time, one thread.",
        f"- Writing the index in use to disk takes {1e3 * disk_seconds[0]:.0f} ms, reading and checking it "
        f"{1e3 * disk_seconds[1]:.0f} ms.",
        "- rank-bm25 is its BM25Okapi with the same tokens, k1 and b; the same machine and process.",
        f"- The tokens in use hit at most {_most_behind(bench, rows)} fewer of the questions than the best other "
        "tokens at any k, and need no dictionary (SudachiPy's: 77 MB).",
        "",
        f"| engine | tokens | query | {found[0]} | {found[1]} | build ms | query ms |",
        "|---|---|---|" + "---:|" * (2 * len(DEPTHS) + 2),
        *map(_line, rows),
        "",
        f"CPU, {cores} cores. {versions}.",
        "",
        "```bash",
        "pip install rank-bm25 sudachipy sudachidict_core",
        "OMP_NUM_THREADS=1 PYTHONPATH=pipeline python -m benchmarks.retrieval \\",
        "  --data pipeline/datasets/lawqa_jp/data/selection.json --output benchmarks/retrieval.md",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _most_behind(bench: Bench, rows: Sequence[Row]) -> int:
    """By how many questions the tokens in use miss the best of all, asked with the choices as the pipeline asks."""
    asked = [row for row in rows if row.case.engine == "bm25s" and row.case.with_choices]
    used = next(row for row in asked if row.case.tokens == USED)
    gaps = (max(row.hit[depth] for row in asked) - used.hit[depth] for depth in DEPTHS)
    return round(len(bench.questions) * max(gaps))


def _line(row: Row) -> str:
    shares = [f"{share[depth]:.3f}" for share in (row.hit, row.recall) for depth in DEPTHS]
    times = [f"{1e3 * row.build_seconds:.0f}", f"{1e3 * row.query_seconds:.2f}"]
    query = "question and choices" if row.case.with_choices else "question alone"
    return "| " + " | ".join([row.case.engine, row.case.tokens, query, *shares, *times]) + " |"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    bench = Bench.of(load_questions(arguments.data, "--data"), arguments.repeats)
    rows = bench.measure(cases())
    arguments.output.write_text(page(bench, rows, bench.disk_seconds(arguments.data)), encoding="utf-8")


if __name__ == "__main__":
    main()
