"""An evaluation of one's own that writes JSON: judged by what its description says it has, and by what was seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from steph.base.fingerprint import fingerprints, text_hash
from steph.base.messages import NOTHING
from steph.base.terms import Severity
from steph.contract.description import load_description
from steph.contract.questions import Question, as_label, question_key, questions_of
from steph.contract.results import Row, with_labels
from steph.judge.checks_evaluation import judge_evaluation
from steph.judge.checks_prompts import text_beside
from steph.judge.checks_results import _dataset_checks
from steph.judge.evidence import EvalEvidence
from steph.judge.verdict import checks_verdict
from steph.judge.witness import read_witness
from steph.record.settings import EvalSettings
from steph.record.values import Check, EvalOutcome
from test_harness_judged import broken

ADAPTER, SHA256 = "runs/out", "a" * 64
QUESTIONS = (
    "日本で一番高い山は何という山ですか。",
    "水は標高零メートルで何度で沸騰しますか。",
    "一年はふつう何日ありますか。",
    "太陽系で一番大きい惑星はどれですか。",
)
CHOICES = ("(A) 富士山\n(B) 百度\n(C) 三百六十五日\n(D) 木星\n(E) 高尾山",) * 4
GOLD, SAID = "ABCD", "ABCE"  # five labels: one answer is the fifth, and wrong
WRITTEN = (
    "富士山という山が一番高い。",
    "標高零メートルでは百度で沸騰する。",
    "ふつうの年には三百六十五日ある。",
    "一番大きい惑星は土星である。",
)
WORDS = ("富士山", "百度", "三百六十五日", "木星")
HEAD = """
[train]
preset = "trl"
rows.file = "train.jsonl"
[evaluate]
command = ["{bin}/python", "evaluate.py"]
output = "out/eval.json"
"""
TOML = {
    "choice": """
kind = "choice"
lines = ["evaluating", "done"]
[evaluate.results]
file = "{output}"
score = "accuracy"
count = "n"
model = "model"
adapter = "adapter"
rows = "rows"
row = { question = "q", choices = "c", expected = "gold", predicted = "said", response = "text", correct = "ok" }
""",
    "generate": """
[evaluate.results]
file = "{output}"
score = "accuracy"
count = "n"
rows = "rows"
row = { question = "q", expected = "word", response = "text", correct = "ok" }
""",
    "metric": """
kind = "metric"
[evaluate.results]
file = "{output}"
score = "rouge"
count = "n"
""",
}
OTHER_TOML = {
    "figure": """
[evaluate.results]
file = "{output}"
score = "rouge"
count = "n"
""",
    "letters": """
[evaluate.results]
file = "{output}"
score = "accuracy"
count = "n"
rows = "rows"
row = { question = "q", expected = "gold", predicted = "said", response = "text", correct = "ok" }
""",
    "scored": """
kind = "loglikelihood"
[evaluate.results]
file = "{output}"
score = "accuracy"
count = "n"
rows = "rows"
row = { question = "q", choices = "c", expected = "gold", predicted = "said", correct = "ok" }
""",
}


def facts(kind: str) -> list[dict[str, Any]]:
    """What the witness sees of a process that loads model and adapter and answers each question."""
    state = {"name_or_path": "org/model", "adapters": ["default"], "layers": 4, "disabled": 0, "merged": 0,
             "scaling": [2.0], "sha256": [SHA256], "merged_sha256": []}  # fmt: skip
    found: list[dict[str, Any]] = [
        {"fact": "hooked", "at": 1.0, "module": "transformers.modeling_utils"},
        {"fact": "model_loaded", "at": 2.0, "how": "from_pretrained", "path": "org/model", "name_or_path": "org/model",
         "generates": True, "missing": 0},
        {"fact": "adapter_loaded", "at": 3.0, "path": ADAPTER, "sha256": SHA256, "missing": 0, "layers": 4},
    ]  # fmt: skip
    for n, question in enumerate(QUESTIONS):
        text = response(kind, n)
        found.append({
            "fact": "generation", "at": 4.0 + n, "rows": 1, "do_sample": False, "training": False,
            "prompt_tokens": [60], "new_tokens": [len(text)], "stopped": [True], "limit": 64,
            "prompt_fingerprints": [list(fingerprints(f"{question}\n{CHOICES[n]}\n答え:"))],
            "response_hashes": [[text_hash(text)]], "response_fingerprints": [list(fingerprints(text))], **state,
        })  # fmt: skip
    return found


def response(kind: str, n: int) -> str:
    """What the model says to a question."""
    return f"答え: {SAID[n]}" if kind == "choice" else WRITTEN[n]


@dataclass
class Planted:
    """A root with a sound evaluation's files, to be changed before it is judged."""

    root: Path
    kind: str
    raw: dict[str, Any]
    facts: list[dict[str, Any]]
    printed: str = "evaluating 4 questions\ndone\n"
    evidence: dict[str, Any] = field(default_factory=dict)

    def judged(self) -> tuple[EvalOutcome, dict[str, Check]]:
        """The outcome, and the checks by their ids."""
        (self.root / "out").mkdir()
        (self.root / "out/eval.json").write_text(json.dumps(self.raw, ensure_ascii=False), encoding="utf-8")
        (self.root / "seen").mkdir()
        lines = "".join(json.dumps(fact) + "\n" for fact in self.facts)
        (self.root / "seen/witness-none-7.jsonl").write_text(lines, encoding="utf-8")
        (self.root / "steph.toml").write_text(HEAD + (TOML | OTHER_TOML)[self.kind], encoding="utf-8")
        (self.root / ADAPTER).mkdir(parents=True)
        config = json.dumps({"base_model_name_or_path": "org/model"})
        (self.root / ADAPTER / "adapter_config.json").write_text(config, encoding="utf-8")
        evidence = EvalEvidence(
            root=self.root, dataset=None, output_path="out/eval.json",
            settings=EvalSettings(samples=4, load_in_4bit=False), model_name="org/model", lora_path=ADAPTER,
            stdout=self.printed, output=self.printed, returncode=0, attempt_started_unix=0.0, seconds=60.0,
            adapter_sha256_expected=SHA256, adapter_sha256_actual=SHA256, train_questions=frozenset(),
            witness=read_witness(self.root / "seen"), description=load_description(self.root),
        )  # fmt: skip
        outcome, checks, _ = judge_evaluation(replace(evidence, **self.evidence))
        return outcome, {check.id: check for check in checks}


def sound(root: Path, kind: str) -> Planted:
    """Three of four right."""
    rows = [
        {
            "q": QUESTIONS[n],
            "c": CHOICES[n],
            "gold": GOLD[n],
            "word": WORDS[n],
            "said": SAID[n],
            "text": response(kind, n),
            "ok": n < 3,
        }
        for n in range(4)
    ]
    raw = {"accuracy": 0.75, "rouge": 31.4, "n": 4, "model": "org/model", "adapter": ADAPTER, "rows": rows}
    return Planted(root, kind, raw, facts(kind))


MORE = ("月は何日で地球を一周しますか。", "光は一秒に何キロ進みますか。")


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"data/quiz.jsonl": (*QUESTIONS, *MORE)}, 6),
        ({"quiz.json": (*QUESTIONS, *MORE), "copy.csv": (*QUESTIONS, *MORE), "train.jsonl": MORE}, 6),
        ({"quiz.jsonl": tuple(f"Answer.\n{text}" for text in (*MORE, *reversed(QUESTIONS)))}, None),
        ({"quiz.jsonl": (*MORE, *reversed(QUESTIONS))}, 6),
        ({"quiz.jsonl": (*QUESTIONS, *MORE), "train.jsonl": (*MORE, *MORE, *QUESTIONS)}, 6),
        ({"one.jsonl": (*QUESTIONS, *MORE), "other.jsonl": QUESTIONS}, None),
        ({"quiz.jsonl": QUESTIONS[:3]}, None),
        ({"large.jsonl": (*QUESTIONS, *("問" * 100_000 for _ in range(40)))}, 44),
        ({}, None),
    ],
)
def test_all_questions_are_those_of_the_file_that_has_the_asked_ones(
    files: dict[str, tuple[str, ...]], count: int | None, tmp_path: Path
) -> None:
    """Before all others or anywhere; the results themselves are no such file, nor is one of another length decided."""
    for name, texts in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = [{"id": n, "query": text, "answer": "A"} for n, text in enumerate(texts)]
        table = "id,query,answer\n" + "".join(f"{row['id']},{row['query']},A\n" for row in rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        spelled = {".csv": table, ".jsonl": lines, ".json": json.dumps(rows)}
        path.write_text(spelled[path.suffix], encoding="utf-8")
    outcome, _ = sound(tmp_path, "choice").judged()
    assert outcome.questions == count


@pytest.mark.parametrize(
    ("kind", "generated", "severity"),
    [("figure", 4, None), ("figure", 3, Severity.WARN), ("metric", 3, None), ("generate", 3, Severity.FAIL)],
)
def test_questions_that_no_row_tells_of_were_asked_all_the_same(
    kind: str, generated: int, severity: Severity | None, tmp_path: Path
) -> None:
    """Without rows the number that was asked for counts, and softly: how texts were batched is not known."""
    planted = sound(tmp_path, kind)
    del planted.facts[len(planted.facts) - 4 + generated :]
    check = planted.judged()[1]["answers_generated"]
    assert (check.holds, None if check.holds else check.severity) == (severity is None, severity)
    assert check.message is not None
    assert (check.message.values["questions"], check.message.values["answered"]) == (4, generated)


@pytest.mark.parametrize("kind", TOML)
def test_a_sound_evaluation_of_each_kind_passes(kind: str, tmp_path: Path) -> None:
    """Labels up to E, free texts, and a figure alone: each is judged by what it has, the core always."""
    outcome, checks = sound(tmp_path, kind).judged()
    assert broken(checks.values()) == set()
    assert checks_verdict(tuple(checks.values())) is None
    for core in ("exit_zero", "json_fresh", "json_valid", "total_samples", "answers_generated", "adapter_active"):
        assert checks[core].holds, core
    wanted: Mapping[str, tuple[float | None, float]] = {
        "choice": (0.75, 0.75), "generate": (0.75, 0.75), "metric": (None, 31.4),
    }  # fmt: skip
    assert (outcome.accuracy, outcome.score) == wanted[kind]


@pytest.mark.parametrize(
    ("kind", "ruled_out", "kept"),
    [
        (
            "choice",
            {"line_results", "prompts_agree", "questions_of_dataset"},
            {"flags_consistent", "answers_as_responded"},
        ),

        ("generate", {"strict_parse_agrees", "answers_as_responded", "lines_printed", "model_named"},
         {"json_consistent", "responses_generated"}),
        ("metric", {"json_consistent", "responses_present", "flags_consistent", "rows_distinct"}, {"total_samples"}),
    ],
)  # fmt: skip
def test_each_kind_is_asked_what_it_has(kind: str, ruled_out: set[str], kept: set[str], tmp_path: Path) -> None:
    """What a kind has no answer to is not applicable, with its reason; the rest is measured."""
    _, checks = sound(tmp_path, kind).judged()
    assert {one for one in ruled_out if checks[one].applies} == set()
    assert {one for one in kept if checks[one].holds is not True} == set()


@pytest.mark.parametrize(
    ("texts", "said", "found"),
    [
        (("答えは A", "答えは B", "答えは C", "答えは E"), "ABCE", {}),
        (("おそらく", "さあ", "条文には", "ほかの"), "AAAA", {"answers_grounded": Severity.WARN}),  # a default
        (
            ("答えは A", "答えは B", "答えは C", "答えは E"),
            "BCDA",
            {"answers_as_responded": Severity.FAIL, "answers_grounded": Severity.WARN},
        ),
        (("富士山かな", "百度", "三百六十五", "木星"), ("富", "百", "三", "木"), {}),  # no letters: a free text
        (("おそらく", "答えは B", "さあ", "答えは E"), ("unknown", "B", "unknown", "E"), {}),
    ],
)
def test_letters_are_read_out_of_responses_whatever_the_description_calls_it(
    tmp_path: Path, texts: tuple[str, ...], said: Sequence[str], found: dict[str, Severity]
) -> None:
    """Without a `kind` free texts are expected; where all answers are letters of choices they are held to be such."""
    one = sound(tmp_path, "choice")
    one.kind = "letters"
    right = tuple(answer == gold for answer, gold in zip(said, GOLD, strict=True))
    _say(one, texts, said=tuple(said), ok=right)
    one.raw["accuracy"] = sum(right) / 4
    checks = one.judged()[1].values()
    wrong = {
        check.id: check.severity for check in checks if check.holds is False and check.severity is not Severity.INFO
    }
    assert {name: severity for name, severity in wrong.items() if name != "strict_parse_agrees"} == found


def _no_adapter(one: Planted) -> None:
    one.facts = [
        fact
        | ({"adapters": [], "layers": 0, "sha256": [], "scaling": []} if "layers" in fact and "rows" in fact else {})
        for fact in one.facts
        if fact["fact"] != "adapter_loaded"
    ]


def _rows(one: Planted, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    one.raw["rows"] = [change(row) for row in one.raw["rows"]]


def _praise(one: Planted) -> None:
    _rows(one, lambda row: row | {"ok": True})
    one.raw["accuracy"] = 1.0


def _gold_for_said(one: Planted) -> None:
    _rows(one, lambda row: row | {"said": row["gold"], "ok": True})
    one.raw["accuracy"] = 1.0


def _say(one: Planted, texts: tuple[str, ...], **values: tuple[object, ...]) -> None:
    """The model said this, and the rows have these values, one for each."""
    rows = [row | {"text": text} for row, text in zip(one.raw["rows"], texts, strict=True)]
    one.raw["rows"] = [row | {name: value[n] for name, value in values.items()} for n, row in enumerate(rows)]
    calls = [fact for fact in one.facts if fact["fact"] == "generation"]
    for call, text in zip(calls, texts, strict=True):
        call.update(new_tokens=[len(text)], response_hashes=[[text_hash(text)]])
        call["response_fingerprints"] = [list(fingerprints(text))]


LENGTHS = (
    "高さは 15 キロメートル近くもある。",
    "沸点は１０５度になる。",
    "一年はおよそ 3650 日である。",
    "木星が一番大きい。",
)
FIGURES = ("高さは 3,776 メートルである。", "沸点は１００度になる。", "一年は 365 日である。", "木星が一番大きい。")
RIGHT_THREE = {"ok": (True, True, True, False)}
DEFECTS: tuple[tuple[str, str, Callable[[Planted], object], set[str]], ...] = (
    ("adapter_never_loaded", "choice", _no_adapter, {"adapter_active"}),
    ("adapter_never_loaded", "generate", _no_adapter, {"adapter_active"}),
    ("adapter_never_loaded", "metric", _no_adapter, {"adapter_active"}),
    ("score_of_no_rows", "choice", lambda one: one.raw.update(accuracy=0.9), {"json_consistent"}),
    ("score_of_no_rows", "generate", lambda one: one.raw.update(accuracy=0.9), {"json_consistent"}),
    ("fewer_than_asked", "metric", lambda one: one.raw.update(n=3), {"total_samples"}),
    ("fewer_rows_than_counted", "generate", lambda one: one.raw["rows"].pop(),
     {"total_samples", "json_consistent"}),
    ("stale", "generate", lambda one: one.evidence.update(attempt_started_unix=4e9), {"json_fresh"}),
    ("other_model_named", "choice", lambda one: one.raw.update(model="org/other"),
     {"model_named", "model_names_agree"}),
    ("other_adapter_named", "choice", lambda one: one.raw.update(adapter="runs/old"), {"lora_path_named"}),
    ("wrong_counted_right", "choice", lambda one: _rows(one, lambda row: row | {"ok": True}),
     {"flags_consistent", "json_consistent"}),
    ("label_not_said", "choice", _gold_for_said, {"answers_as_responded", "strict_parse_agrees"}),
    ("wrong_counted_right", "generate", _praise, {"flags_consistent"}),
    ("part_of_a_number", "generate",
     lambda one: _say(one, LENGTHS, word=("5", "10", "365", "土星"), **RIGHT_THREE), {"flags_consistent"}),
    ("no_right_answer", "generate", lambda one: _say(one, WRITTEN, word=("", "", "", "木星")), {"flags_consistent"}),
    ("right_answer_is_nan", "generate",
     lambda one: _say(one, WRITTEN, word=("富士山", "百度", "三百六十五日", "nan")), {"flags_consistent"}),
    ("words_missing", "choice", lambda one: setattr(one, "printed", "done\nevaluating\n"), {"lines_printed"}),
    ("response_of_nobody", "generate",
     lambda one: _rows(one, lambda row: row | {"text": "これはどのモデルも生成していない、後から書かれた文である。"}),
     {"responses_generated", "responses_differ"}),
    ("same_question_twice", "generate", lambda one: _rows(one, lambda row: row | {"q": QUESTIONS[0]}),
     {"rows_distinct"}),
    ("exception_as_answer", "generate",
     lambda one: _rows(one, lambda row: row | {"text": "RuntimeError: CUDA error: device-side assert triggered"}),
     {"no_error_answers", "responses_generated"}),
    ("nothing_answered", "generate", lambda one: _rows(one, lambda row: row | {"text": ""}), {"responses_present"}),
    ("score_missing", "metric", lambda one: one.raw.pop("rouge"), {"json_valid"}),
    ("question_never_asked", "generate",
     lambda one: _rows(one, lambda row: row | {"q": f"まったく別の問題が、{row['text']}という答えになる。"}),
     {"prompts_hold_questions"}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "plant", "caught"), [row[1:] for row in DEFECTS], ids=[f"{name}-{kind}" for name, kind, *_ in DEFECTS]
)
def test_a_planted_defect_is_found(
    kind: str, plant: Callable[[Planted], object], caught: set[str], tmp_path: Path
) -> None:
    """By the checks that are about it; nothing else is accused of the wrong thing."""
    one = sound(tmp_path, kind)
    plant(one)
    _, checks = one.judged()
    assert caught <= broken(checks.values())


def test_a_question_of_the_training_is_told_by_the_question_alone(tmp_path: Path) -> None:
    """The evaluation's choices, where the training asks without any, make no other question of it."""
    one = sound(tmp_path, "generate")
    one.evidence["train_questions"] = frozenset({QUESTIONS[1]})
    _, checks = one.judged()
    assert checks["train_overlap"].holds is False
    assert "1 問が学習データにある" in str(checks["train_overlap"].message)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one: one.raw.update(accuracy=75), "a percentage"),
        (lambda one: one.raw.update(accuracy="75.0%"), "written as text"),
        (lambda one: one.raw.update(accuracy="75 ％", n="4"), "all figures as text"),
        (lambda one: one.raw.update(accuracy="3/4", n=4.0), "a fraction, and a count with a point"),
        (lambda one: _rows(one, lambda row: row | {"ok": "〇" if row["ok"] else "×"}), "marks for right and wrong"),
        (lambda one: _rows(one, lambda row: row | {"ok": "1.0" if row["ok"] else "0.0"}), "numbers as text"),
        (lambda one: _rows(one, lambda row: row | {"ok": int(row["ok"])}), "numbers for right and wrong"),
        (lambda one: _rows(one, lambda row: row | {"said": row["said"].lower(), "gold": f"({row['gold']})"}), "labels"),
        (lambda one: one.raw.update(adapter=str(one.root / ADAPTER)), "a whole path"),
        (lambda one: one.raw.update(rows={str(n): row for n, row in enumerate(one.raw["rows"])}), "a table of rows"),
        (lambda one: one.raw["rows"].append({"mean": 0.75}), "a summary behind the rows"),
    ],
)  # fmt: skip
def test_a_sound_variant_is_not_accused(change: Callable[[Planted], object], why: str, tmp_path: Path) -> None:
    """As other people write the same."""
    one = sound(tmp_path, "choice")
    change(one)
    _, checks = one.judged()
    assert broken(checks.values()) == set(), why


CITIES = ("Paris", "Rome", "Oslo", "Bern")
CALLS = tuple(json.dumps({"city": city, "days": 3}) for city in CITIES)
ASKED_FOR = tuple(json.dumps({"days": 3, "city": city}) for city in CITIES)
CODE = tuple(f"def f(x): return x + {n}" for n in range(4))
TESTS = tuple(f"assert f(1) == {n + 1}" for n in range(4))
NUMBERS = ("It is 3.70.", "some 10", "7,250", "1")
SUMS = ("3 + 4 = 7\n#### 7", "so 1,200\n#### 1200", "#### 15", "#### 3")
NOBODY = ("unanswerable", *WRITTEN[1:])
MARKS = (True, True, True, False)


@pytest.mark.parametrize(
    ("said", "golds", "marks", "score", "caught"),
    [
        (WRITTEN, WORDS, (80.0, 50.0, 100.0, 0.0), 57.5, None),  # percentages
        (WRITTEN, WORDS, (80.0, 50.0, 100.0, 0.0), 67.5, "json_consistent"),
        (WRITTEN, WORDS, (4, 5, 3, 1), 3.25, None),  # a judge's ratings
        (WRITTEN, WORDS, (8, 10, 9, 3), 7.5, None),
        (WRITTEN, WORDS, (4, 5, 3, 1), 4.25, "json_consistent"),
        (WRITTEN, (["富士", "富士山"], *([one] for one in WORDS[1:])), MARKS, 0.75, None),  # one of several is enough
        (WRITTEN, (["高尾", "高尾山"], *([one] for one in WORDS[1:])), MARKS, 0.75, "flags_consistent"),
        (CALLS, (*ASKED_FOR[:3], "{}"), MARKS, 0.75, None),
        (CALLS, (*ASKED_FOR[1:], "{}"), MARKS, 0.75, "flags_consistent"),
        (NUMBERS, (3.7, 10.0, 7250, 9), MARKS, 0.75, None),  # the same number
        (NUMBERS, (3.5, 10.4, 7000, 9), MARKS, 0.75, None),  # within a tolerance
        (NUMBERS, (3.5, 1.0, 7000, 9), MARKS, 0.75, "flags_consistent"),  # or only a part of it
        (NUMBERS, (3.5, 10.4, 7000, 1.01), MARKS, 0.75, "flags_consistent"),  # and those nearer are wrong
        (SUMS, ("4 + 3 is\n#### 7", "x\n#### 1,200", "y\n#### 15", "z\n#### 4"), MARKS, 0.75, None),  # a solution's end
        (SUMS, ("4 + 3 is\n#### 8", "x\n#### 1,300", "y\n#### 15", "z\n#### 4"), MARKS, 0.75, "flags_consistent"),
        (CODE, TESTS, MARKS, 0.75, None),  # right is what runs
        (NOBODY, ("", *WORDS[1:]), MARKS, 0.75, None),  # a question that has no answer
        (WRITTEN, ("", *WORDS[1:]), MARKS, 0.75, "flags_consistent"),
    ],
)
def test_free_texts_are_scored_in_many_ways(
    said: tuple[str, ...], golds: tuple[object, ...], marks: tuple[object, ...], score: float, caught: str | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Beside each sound way stands a score or a mark that is not so."""
    one = sound(tmp_path, "generate")
    _say(one, said, word=golds, ok=marks)
    one.raw["accuracy"] = score
    _, checks = one.judged()
    assert broken(checks.values()) == ({caught} if caught else set())


@pytest.mark.parametrize(
    ("said", "recorded", "caught"),
    [
        (("positive", "negative", "Positive.", "negative"), (1, 0, 1, 0), set()),  # a word for each number
        (("positive", "negative", "positive", "positive"), (1, 0, 1, 0), {"strict_parse_agrees", "answers_grounded"}),
        (("Yes", "No", "yes.", "no"), (True, False, True, False), set()),
        (("Not sure", "Yes", "No", "Yes"), ("not_sure", "yes", "no", "yes"), set()),
        (("Rating: 4", "5", "Its score: 3", "5"), (4, 5, 3, 5), set()),
        (("Rating: 4", "5", "Its score: 3", "5"), (4, 5, 4, 5), {"strict_parse_agrees", "answers_as_responded"}),
        (("Wrong rating: 4", "5", "3", "5"), (4, 5, 3, 5), {"strict_parse_agrees"}),
        (("The tone is calm.", "angry", "calm", "angry"), ("calm", "angry", "calm", "angry"), set()),
        (("It is not calm.", "angry", "calm", "angry"), ("calm", "angry", "calm", "angry"), {"strict_parse_agrees"}),
    ],
)
def test_a_label_may_be_said_in_other_words(
    said: tuple[str, ...], recorded: tuple[object, ...], caught: set[str], tmp_path: Path
) -> None:
    """Of a classification, whose labels are no letters of choices."""
    one = sound(tmp_path, "choice")
    for row in one.raw["rows"]:
        del row["c"]
    _say(one, said, said=recorded, gold=(*recorded[:3], recorded[0]), ok=MARKS)
    _, checks = one.judged()
    assert broken(checks.values()) == caught


@pytest.mark.parametrize(
    ("gold", "caught"), [("D", {"answers_parsed"}), ("N/A", {"strict_parse_agrees", "answers_grounded"})]
)
def test_a_word_for_no_answer_is_no_answer(gold: str, caught: set[str], tmp_path: Path) -> None:
    """Unless it is a right one."""
    one = sound(tmp_path, "choice")
    refusal = "I'm sorry, but I can't help with that."
    _say(
        one,
        ("A", "B", "C", refusal),
        said=("A", "B", "C", "N/A"),
        gold=("A", "B", "C", gold),
        ok=(*MARKS[:3], gold != "D"),
    )
    one.raw["accuracy"] = 0.75 if gold == "D" else 1.0
    _, checks = one.judged()
    assert broken(checks.values()) == caught


OPTIONS = ("二千メートルの山", "三千メートルの山", "四千メートルの山")


@pytest.mark.parametrize(
    ("in_set", "golds", "is_sound"),
    [
        ([{"answers": {"text": [word], "answer_start": [3]}} for word in WORDS], WORDS, True),  # SQuAD
        ([{"answer": {"value": word, "aliases": ["別名", word]}} for word in WORDS], WORDS, True),  # TriviaQA
        ([{"answer": ["別名", word]} for word in WORDS], WORDS, True),  # NQ
        ([{"answer": ["別名", word]} for word in WORDS], WORDS[::-1], False),
        ([{"answer": f"だから {n} である。\n#### {n}"} for n in range(4)], "0123", True),  # GSM8K
        ([{"answer": f"だから {n} である。\n#### {n}"} for n in range(4)], "1234", False),
        ([{"answer": one} for one in (True, False, True, False)], ("yes", "no", "yes", "no"), True),  # BoolQ
        ([{"answer": one} for one in (True, False, True, False)], ("yes", "no", "no", "no"), False),
        ([{"label": n} for n in range(4)], ("calm", "angry", "sad", "glad"), True),  # names of classes
        ([{"label": n} for n in (0, 1, 2, 1)], ("calm", "angry", "sad", "glad"), False),
        ([dict(zip(("choice0", "choice1", "choice2"), OPTIONS, strict=True)) | {"label": n % 3} for n in range(4)],
         [OPTIONS[n % 3] for n in range(4)], True),  # JCommonsenseQA
        ([dict(zip(("opa", "opb", "opc"), OPTIONS, strict=True)) | {"answer": OPTIONS[n % 3]} for n in range(4)],
         [OPTIONS[(n + 1) % 3] for n in range(4)], False),
    ],
)  # fmt: skip
def test_right_answers_are_found_in_other_peoples_data_sets(
    in_set: list[dict[str, object]], golds: Sequence[str], is_sound: bool, tmp_path: Path
) -> None:
    """One of several, a solution's end, a word for a number, or the text of a choice in a column of its own."""
    path = tmp_path / "set.jsonl"
    asked = [
        {"instruction": "答えなさい。", "question": text} | own for text, own in zip(QUESTIONS, in_set, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    has_choices = golds[0] in OPTIONS
    rows = tuple(
        Row(question=text, correct_answer=gold, choices=[*OPTIONS] if has_choices else None, is_correct=True)
        for text, gold in zip(QUESTIONS, golds, strict=True)
    )
    checks = _dataset_checks(questions_of(path), NOTHING, rows, is_exact=False)
    assert {one.id: one.holds for one in checks}["questions_of_dataset"] is is_sound


@pytest.mark.parametrize("names", [("instruction", "input", "output"), ("prompt", "completion", "source")])
def test_the_field_that_is_asked_is_no_text_beside_the_question(names: tuple[str, str, str], tmp_path: Path) -> None:
    """Whatever it is called, and though all rows have one instruction; another field that tells the answer is one."""
    told = [text if "instruction" in names else f"{text}よ" for text in QUESTIONS]
    keys = names if "prompt" in names else (names[1], names[2], names[0])
    rows = [
        dict(zip(keys, (text, word, "次の問いに答えなさい。"), strict=True)) | {"note": f"{n}番".join(QUESTIONS[n])}
        for n, (text, word) in enumerate(zip(told, WORDS, strict=True))
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    results = [Row(question=text, is_correct=True) for text in told]
    prompts = [fingerprints(f"{text}\n答え:") for text in told]
    assert [question.key for question in questions_of(path)] == [question_key(text, None) for text in told]
    beside = text_beside(prompts, results, path)
    assert beside is None or beside.prompts == 0
    led = [fingerprints(f"{row['note']}\n{text}\n答え:") for row, text in zip(rows, told, strict=True)]
    found = text_beside(led, results, path)
    assert found is not None
    assert found.prompts > 0


@pytest.mark.parametrize(("first", "moved", "is_found"), [(0, 0, False), (1, 0, False), (0, 1, True)])
def test_a_letter_is_said_for_a_choice_that_is_recorded_by_its_number(
    first: int, moved: int, is_found: bool, tmp_path: Path
) -> None:
    """Choices without labels, as MMLU has them, counted from 0 or from 1; another choice is recorded for another."""
    one = sound(tmp_path, "choice")
    _rows(one, lambda row: row | {"c": [f"{text}である。" for text in (*WORDS, "高尾山")]})
    said, golds = (["ABCDE".index(letter) + first for letter in letters] for letters in (SAID, GOLD))
    said[3] -= moved
    _say(one, tuple(f"答え: {letter}" for letter in SAID), said=tuple(said), gold=tuple(golds),
         ok=(*MARKS[:3], said[3] == golds[3]))  # fmt: skip
    one.raw["accuracy"] = 1.0 if moved else 0.75
    _, checks = one.judged()
    assert bool(broken(checks.values())) is is_found


def test_short_questions_with_the_same_choices_were_not_asked_until_right(tmp_path: Path) -> None:
    """Their prompts look alike: none is another try of the question before it."""
    one = sound(tmp_path, "choice")
    _say(one, tuple(f"答え: {letter}" for letter in GOLD), said=tuple(GOLD), ok=(True,) * 4)
    one.raw["accuracy"] = 1.0
    _, checks = one.judged()
    assert broken(checks.values()) == set()


@pytest.mark.parametrize(
    ("seen", "severity"), [({"num_beams": 4}, Severity.INFO), ({"do_sample": True}, Severity.WARN)]
)
def test_beams_give_the_same_answers_again(seen: dict[str, object], severity: Severity, tmp_path: Path) -> None:
    """Which sampling does not."""
    one = sound(tmp_path, "generate")
    one.facts = [fact | (seen if fact["fact"] == "generation" else {}) for fact in one.facts]
    _, checks = one.judged()
    assert (checks["answers_greedy"].holds, checks["answers_greedy"].severity) == (False, severity)


def _limited(one: Planted, said: str) -> None:
    """The program lets the model say these labels and nothing else."""
    rights = tuple(letter == gold for letter, gold in zip(said, GOLD, strict=True))
    _say(one, tuple(said), said=tuple(said), ok=rights)
    one.raw["accuracy"] = sum(rights) / 4
    for fact in one.facts:
        fact |= {"steering": {"prefix_allowed_tokens_fn": 1.0}} if fact["fact"] == "generation" else {}


@pytest.mark.parametrize(("said", "severity"), [(SAID, Severity.INFO), (GOLD, Severity.FAIL), ("AAAA", Severity.FAIL)])
def test_a_choice_among_labels_alone_is_no_force(said: str, severity: Severity, tmp_path: Path) -> None:
    """Unless it lets the model say the right one alone, or the same one always."""
    one = sound(tmp_path, "choice")
    _limited(one, said)
    _, checks = one.judged()
    assert (checks["answers_free"].holds, checks["answers_free"].severity) == (False, severity)
    assert said != SAID or broken(checks.values()) == {"answers_free"}


def test_right_answers_that_are_all_yes_make_no_label_of_no_unheard_of(tmp_path: Path) -> None:
    """Of a few questions; what else was answered is a label, too."""
    one = sound(tmp_path, "choice")
    for row in one.raw["rows"]:
        del row["c"]
    one.raw["rows"] = [row | {"gold": "はい"} for row in one.raw["rows"]]
    _say(one, ("はい。", "いいえ。", "はい、そうです。", "いいえ"), said=("はい", "いいえ") * 2, ok=(True, False) * 2)
    one.raw["accuracy"] = 0.5
    _, checks = one.judged()
    assert broken(checks.values()) == set()
    _say(one, ("はい。", "いいえ。", "はい、そうです。", "いいえ"), said=("はい",) * 4, ok=(True,) * 4)


SHOTS = "問題: 別の問いがここにある。\n答え: B"


@pytest.mark.parametrize(
    ("prompt", "is_found"),
    [
        ("{question}\n{choices}\n答え: {gold}\n\n{question}\n{choices}\n答え:", True),
        (SHOTS + "\n\n{question}\n{choices}\n答え:", False),
        ("{question}\nもう一度読む。\n{question}\n{choices}\n答え:", False),
        ("{question} → {gold}\n\n{question}\n{choices}\n答え:", True),  # examples in one line each
        ("Q: {question} A: {gold}\nQ: {question}\n{choices}\nA:", True),
        ("{question} → {other}\n\n{question}\n{choices}\n答え:", False),
        ("{question}\n{choices}\n答え: {other}\n\n{question}\n{choices}\n答え:", False),  # somebody's, to be judged
    ],
)
def test_a_question_that_is_its_own_example(prompt: str, is_found: bool, tmp_path: Path) -> None:
    """Seen by the lines of the prompts, which the results need not have."""
    one = sound(tmp_path, "choice")
    calls = [fact for fact in one.facts if fact["fact"] == "generation"]
    for n, fact in enumerate(calls):
        gold, other = GOLD[n], GOLD[n - 1]
        text = prompt.format(question=QUESTIONS[n], choices=CHOICES[n], gold=gold, other=other)
        lines = [text_hash(line)[:8] for line in text.splitlines() if line.strip()]
        fact |= {"prompt_fingerprints": [list(fingerprints(text))], "prompt_lines": [lines]}
    _, checks = one.judged()
    assert (checks["frame_as_trained"].holds is False) is is_found
    assert not is_found or checks["frame_as_trained"].severity is Severity.FAIL


@pytest.mark.parametrize(
    ("prompt", "is_found"),
    [
        ("{question}\n{choices}\n正解: {gold}\n答え:", True),
        ("{question}\n{choices}\n(Correct: {gold})\nAnswer:", True),
        ("{question}\n{choices}\n[The answer is {gold}.]", True),
        ("{question}\n{choices}\n正解: {other}\n答え:", False),  # somebody's, to be judged
        ("別の問い\n正解: {gold}\n{question}\n{choices}\n答え:", False),  # of an example that was chosen for it
    ],
)
def test_a_prompt_that_ends_with_its_right_answer(prompt: str, is_found: bool, tmp_path: Path) -> None:
    """In a line of its own behind the question, where nothing but the frame follows."""
    one = sound(tmp_path, "choice")
    for n, fact in enumerate(fact for fact in one.facts if fact["fact"] == "generation"):
        text = prompt.format(question=QUESTIONS[n], choices=CHOICES[n], gold=GOLD[n], other=GOLD[n - 1])
        lines = [text_hash(line)[:8] for line in text.splitlines()]
        fact |= {"prompt_fingerprints": [list(fingerprints(text))], "prompt_lines": [lines]}
    check = one.judged()[1]["frame_as_trained"]
    assert (check.holds is False) is is_found
    assert not is_found or check.severity is Severity.FAIL


def test_numbers_are_found_as_they_are_written(tmp_path: Path) -> None:
    """With a comma, wide, or with a word behind them."""
    one = sound(tmp_path, "generate")
    _say(one, FIGURES, word=("3776", "100", "365", "土星"), **RIGHT_THREE)
    _, checks = one.judged()
    assert broken(checks.values()) == set()


def test_random_weights_that_say_nothing_lost_nothing(tmp_path: Path) -> None:
    """A text that ends at once is a finding of real weights, and of the words of a random model only a warning."""
    one = sound(tmp_path, "generate")
    one.evidence["random_weights"] = True
    _rows(one, lambda row: row | {"text": ""})
    _, checks = one.judged()
    assert (checks["responses_present"].holds, checks["responses_present"].severity) == (False, Severity.WARN)


LONG = tuple(
    (
        f"{place}の届出を受けた者は、その日から起算して{n * 9 + 5}日以内に所管の大臣へ書面で報告しなければならない",
        f"{place}の許可を更新する者は、期間の満了する{n * 7 + 30}日前までに知事に申請書を差し出すものとする",
        f"{place}の事業を廃止した者は、遅滞なくその旨を登記所に申し出て、{n + 3}年の間は帳簿を保存する",
        f"{place}の登録を取り消された者は、{n + 2}年を経過した後でなければ再び登録を受けることができない",
    )
    for n, place in enumerate(("倉庫", "質屋", "鉄道", "港湾"))
)
ORDERS = ((2, 0, 3, 1), (1, 3, 0, 2), (3, 2, 1, 0), (0, 1, 2, 3))  # of the choices in each prompt
MEANT = (0, 1, 3, 3)  # the choice that each answer is; the third is wrong


def _shuffled(one: Planted, said_for: Callable[[int], str], gold: Callable[[int], str], *, kept: bool = False) -> None:
    """Ask with the choices in another order; `kept`: each with its own letter."""
    one.evidence["questions"] = tuple(
        Question(question_key(question, LONG[n]), "abcd"[n]) for n, question in enumerate(QUESTIONS)
    )
    calls = [fact for fact in one.facts if fact["fact"] == "generation"]
    for n, (fact, row) in enumerate(zip(calls, one.raw["rows"], strict=True)):
        letters = [("ABCD"[k] if kept else "ABCD"[place], LONG[n][k]) for place, k in enumerate(ORDERS[n])]
        prompt = "\n".join([QUESTIONS[n], *(f"{letter}. {text}" for letter, text in letters), "答え:"])
        text = next(letter for letter, text in letters if text == LONG[n][MEANT[n]])
        fact |= {"prompt_fingerprints": [list(fingerprints(prompt))], "response_hashes": [[text_hash(text)]],
                 "response_fingerprints": [[]], "new_tokens": [2]}  # fmt: skip
        row |= {"text": text, "said": said_for(n), "gold": gold(n)}
        row["ok"] = row["said"].lower() == row["gold"].lower()
        del row["c"]
    one.raw["accuracy"] = sum(row["ok"] for row in one.raw["rows"]) / 4


def _as_said(n: int) -> str:
    return "ABCD"[ORDERS[n].index(MEANT[n])]


@pytest.mark.parametrize(
    ("said_for", "gold", "kept", "is_found"),
    [
        (_as_said, lambda n: "ABCD"[n], False, True),
        (lambda n: "ABCD"[MEANT[n]], lambda n: "ABCD"[n], False, False),  # the letter given back to its choice
        (_as_said, lambda n: "ABCD"[ORDERS[n].index(n)], False, False),  # the right letter moved along
        (lambda n: "ABCD"[MEANT[n]], lambda n: "ABCD"[n], True, False),  # lines moved, labels and all
    ],
)
def test_choices_shuffled_in_the_prompts_alone(
    said_for: Callable[[int], str], gold: Callable[[int], str], kept: bool, is_found: bool, tmp_path: Path
) -> None:
    """Neither choices nor prompts are recorded: what the prompts had shows whose letters are counted."""
    one = sound(tmp_path, "choice")
    _shuffled(one, said_for, gold, kept=kept)
    _, checks = one.judged()
    assert broken(checks.values()) == ({"prompts_hold_questions"} if is_found else set())
    assert checks["prompts_hold_questions"].severity is Severity.FAIL
    assert ("別の選択肢" in str(checks["prompts_hold_questions"].message)) == is_found


BRIEF = tuple([f"{n * 4 + k + 2}日前まで" for k in range(4)] for n in range(4))  # told by their lines alone


@pytest.mark.parametrize(
    ("said_for", "orders", "is_found"),
    [
        (_as_said, ORDERS, True),
        (lambda n: "ABCD"[MEANT[n]], ORDERS, False),  # the letter given back to its choice
        (_as_said, ((0, 1, 2, 3),) * 4, False),
    ],
)
@pytest.mark.parametrize("style", ["{l} {text}", "({L}) {text}", "{n}. {text}"])
def test_short_choices_shuffled_in_the_prompts_of_an_evaluation_without_a_data_set(
    style: str, said_for: Callable[[int], str], orders: tuple[tuple[int, ...], ...], is_found: bool, tmp_path: Path
) -> None:
    """The rows record another order than the prompts had, and the letter that was said counts in that one."""
    one = sound(tmp_path, "choice")
    for n, (fact, row) in enumerate(
        zip((f for f in one.facts if f["fact"] == "generation"), one.raw["rows"], strict=True)
    ):
        texts = [
            style.format(l="abcd"[place], L="ABCD"[place], n=place + 1, text=BRIEF[n][k])
            for place, k in enumerate(orders[n])
        ]
        lines = [QUESTIONS[n], *texts, "答え:"]
        text = "ABCD"[orders[n].index(MEANT[n])]
        fact |= {"prompt_fingerprints": [list(fingerprints("\n".join(lines)))], "new_tokens": [2],
                 "prompt_lines": [[text_hash(line)[:8] for line in lines]],
                 "response_hashes": [[text_hash(text)]], "response_fingerprints": [[]]}  # fmt: skip
        said = text if said_for is _as_said else said_for(n)
        row |= {"c": [f"{'abcd'[k]} {day}" for k, day in enumerate(BRIEF[n])], "text": text, "said": said}
        row["ok"] = said == row["gold"]
    one.raw["accuracy"] = sum(row["ok"] for row in one.raw["rows"]) / 4
    _, checks = one.judged()
    check = checks["prompts_hold_questions"]
    assert (check.holds is False, check.severity is Severity.WARN) == (is_found, is_found), check.message


PROMPT_IDS = [f"{n:08x}" for n in range(4)]


@pytest.mark.parametrize(
    ("trained", "in_file", "severity"),
    [
        (PROMPT_IDS, False, Severity.FAIL),
        (PROMPT_IDS[:1], False, Severity.WARN),
        (PROMPT_IDS, True, Severity.WARN),  # whoever gave the file knows it
        (["ffffffff"], False, None),
    ],
)
@pytest.mark.parametrize(("fact", "by_turn"), [("training_begins", False), ("batch", False), ("batch", True)])
def test_prompts_that_were_trained_on_without_the_files_knowledge(
    fact: str, by_turn: bool, trained: list[str], in_file: bool, severity: Severity | None, tmp_path: Path
) -> None:
    """A program that adds the test's questions to its rows: the very tokens of the prompt stood before an answer.

    Where a row's labels are on all of it, what stands before its last turn tells.
    """
    one = sound(tmp_path, "choice")
    for call, own in zip((f for f in one.facts if f["fact"] == "generation"), PROMPT_IDS, strict=True):
        call |= {"prompt_hashes": [f"e{own[1:]}"], "turn_hashes": [own]} if by_turn else {"prompt_hashes": [own]}
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "witness-none-3.jsonl").write_text(json.dumps({"fact": fact, "at": 1.0, "prompt_hashes": trained}) + "\n")
    one.evidence["training_witness"] = read_witness(folder)
    if in_file:
        one.evidence["train_questions"] = frozenset(question_key(text, CHOICES[0]) for text in QUESTIONS)
    _, checks = one.judged()
    check = checks["train_overlap"]
    assert (check.severity if check.holds is False else None) is severity, check.message


@pytest.mark.parametrize(
    ("learnt", "said", "read_as", "is_found"),
    [
        ("1234", SAID, SAID, True),  # letters are said though numbers were learnt
        ("1234", "1235", "1235", True),
        ("1234", "1234", "ABCD", False),  # the program makes letters of numbers
        ("1234", "xyxy", ("unknown",) * 4, False),  # nothing was learnt yet
        ("ABCD", SAID, SAID, False),
        (tuple(f"choice {n}" for n in range(16)), SAID, SAID, False),
        ([f"{letter}. {word}" for letter, word in zip("ABCD", WORDS, strict=True)], SAID, SAID, False),  # with its text
        (['{"answer": "A"}', '{"answer": "B"}'], SAID, SAID, False),
        (("yes", "no"), SAID, SAID, False),  # another task's
    ],
)
def test_answers_of_another_kind_than_was_learnt(
    learnt: Sequence[str], said: str, read_as: Sequence[str], is_found: bool, tmp_path: Path
) -> None:
    """A builder that numbers the choices, and an evaluation that wants their letters."""
    one = sound(tmp_path, "choice")
    right = tuple(answer == gold for answer, gold in zip(read_as, GOLD, strict=True))
    _say(one, tuple(said), said=tuple(read_as), ok=right)
    folder = tmp_path / "trained"
    folder.mkdir()
    hashes = [text_hash(learnt[n % len(learnt)]) for n in range(16)]
    batch = {"fact": "batch", "at": 1.0, "shape": [16, 60], "answer_hashes": hashes}
    (folder / "witness-none-3.jsonl").write_text(json.dumps(batch) + "\n")
    one.evidence["training_witness"] = read_witness(folder)
    _, checks = one.judged()
    assert (checks["frame_as_trained"].holds is False) is is_found, checks["frame_as_trained"].message


@pytest.mark.parametrize(
    ("printed", "is_found"),
    [
        ("accuracy: 0.95", True),
        ("正解率は 95.0 %", True),
        ("Accuracy (strict) = 1/4", True),
        ("Accuracy (strict) = 3/4", False),
        ("acc 75%", False),
        ("train accuracy 0.99\nbase accuracy 0.25\naccuracy=0.750", False),
        ("accuracy_by_topic written to acc.csv; accuracy 1e-3 tolerated", False),
        ("12:00:01 INFO: Final test accuracy: 95%", True),
        ("0 of 4\r4 of 4\rAccuracy: 2 of 4", True),
        ("Accuracy: 3 / 4", False),
        ("law accuracy 0.5\naccuracy (tax): 1.0\n民法の正解率: 50%\nOverall: 0.75", False),  # of categories
        ("base accuracy: 0.25\nchance accuracy = 0.2\nepoch 1 accuracy 0.6\nvalidation acc 0.6", False),
        ("lenient accuracy: 1.0\naccuracy (without unparsed): 1.0\nmean token accuracy 0.91", False),
        ("target accuracy: 0.9\nAccuracy 16-bit", False),
        ("", False),
    ],
)
def test_a_printed_accuracy_that_the_results_do_not_have(printed: str, is_found: bool, tmp_path: Path) -> None:
    """A line that is written once and never computed; of several figures one must be that of the results."""
    one = sound(tmp_path, "choice")
    one.printed += printed
    _, checks = one.judged()
    assert broken(checks.values()) == ({"results_agree"} if is_found else set())


@pytest.mark.parametrize(("golds", "severity"), [("ABCD", Severity.FAIL), ("CDAB", Severity.WARN), ("BCDA", None)])
def test_right_answers_that_follow_what_was_said(golds: str, severity: Severity | None) -> None:
    """Written over by the answers, all of which count then; answers of other places alone are a warning."""
    known = tuple(Question(question_key(text, LONG[n]), "bcda"[n]) for n, text in enumerate(QUESTIONS))
    rows = tuple(
        Row(question=text, choices=list(LONG[n]), correct_answer=golds[n], predicted_answer="ABCD"[n],
            is_correct=golds[n] == "ABCD"[n])
        for n, text in enumerate(QUESTIONS)
    )  # fmt: skip
    check = _dataset_checks(known, NOTHING, rows, is_exact=False)[1]
    assert (check.severity if check.holds is False else None) is severity, check.message


@pytest.mark.parametrize(("texts", "is_found"), [(["道路の許可"] * 4, True), ([*QUESTIONS], False)])
@pytest.mark.parametrize("number", ["問{}. ", "Q{}: ", "{}) "])
def test_one_question_under_several_numbers(number: str, texts: list[str], is_found: bool) -> None:
    """What numbers the rows makes no other questions of it."""
    rows = tuple(
        Row(question=number.format(n) + text, correct_answer="A", is_correct=False) for n, text in enumerate(texts, 1)
    )
    assert (_dataset_checks(None, NOTHING, rows, is_exact=False)[0].holds is False) is is_found


@pytest.mark.parametrize("text", ["{}.5 + 2", "{}:30に出る。", "{}の2倍は。", "{}. Amendment?"])
def test_a_number_that_is_the_questions_own(text: str) -> None:
    """A decimal point, an hour's colon and an ordinal number no question."""
    rows = tuple(Row(question=text.format(n), correct_answer="A", is_correct=False) for n in (2, 1, 9, 5))
    assert _dataset_checks(None, NOTHING, rows, is_exact=False)[0].holds


@pytest.mark.parametrize(
    ("others", "is_found"),
    [
        (lambda n: range(n), True),  # earlier turns stay
        (lambda n: (0,), False),  # one of the questions is the example of all
        (lambda n: range(n // 2 * 2, n), False),  # two conversations
        (lambda n: (), False),
    ],
)
def test_questions_that_stay_in_the_next_ones_prompt(
    others: Callable[[int], Sequence[int]], is_found: bool, tmp_path: Path
) -> None:
    """A list of messages that is made once, outside the loop: without a data set too, and for short questions."""
    one = sound(tmp_path, "choice")
    asked = [f"{text}\n{CHOICES[n]}\n答え:" for n, text in enumerate(QUESTIONS)]
    for n, call in enumerate(fact for fact in one.facts if fact["fact"] == "generation"):
        lines = "\n".join([*(asked[k] for k in others(n) if k != n), asked[n]])
        call |= {"prompt_fingerprints": [list(fingerprints(lines))],
                 "prompt_lines": [[text_hash(line)[:8] for line in lines.splitlines()]]}  # fmt: skip
    _, checks = one.judged()
    check = checks["prompts_hold_questions"]
    assert (check.holds is False and check.severity is Severity.WARN) is is_found, check.message


@pytest.mark.parametrize(
    "text", ["第{}条の期間は何日か。", "第{}条により届出をすべき期間は、事由の生じた日から何日と定められているか。"]
)
def test_trained_rows_that_are_asked_too_are_none_of_the_results(text: str, tmp_path: Path) -> None:
    """Whoever measures the training's own accuracy as well asks what was trained on."""
    one = sound(tmp_path, "choice")
    asked = [fact for fact in one.facts if fact["fact"] == "generation"]
    trained = [f"{text.format(n)}\n答え:" for n in range(4)]
    for call, prompt, own in zip(asked, trained, PROMPT_IDS, strict=True):
        call["prompt_hashes"] = [f"e{own[1:]}"]
        one.facts.append(call | {"prompt_hashes": [own], "prompt_fingerprints": [list(fingerprints(prompt))]})
    folder = tmp_path / "trained"
    folder.mkdir()
    batch = {"fact": "batch", "at": 1.0, "prompt_hashes": PROMPT_IDS}
    (folder / "witness-none-3.jsonl").write_text(json.dumps(batch) + "\n")
    one.evidence["training_witness"] = read_witness(folder)
    assert one.judged()[1]["train_overlap"].holds


def test_what_all_prompts_begin_with_is_no_question_that_was_trained_on(tmp_path: Path) -> None:
    """Without an answer's header the last turn is the question's own, and a system's text stands before it."""
    one = sound(tmp_path, "choice")
    for call, own in zip((f for f in one.facts if f["fact"] == "generation"), PROMPT_IDS, strict=True):
        call |= {"prompt_hashes": [own], "turn_hashes": ["ffffffff"]}
    folder = tmp_path / "trained"
    folder.mkdir()
    batch = {"fact": "batch", "at": 1.0, "prompt_hashes": ["ffffffff"]}
    (folder / "witness-none-3.jsonl").write_text(json.dumps(batch) + "\n")
    one.evidence["training_witness"] = read_witness(folder)
    assert one.judged()[1]["train_overlap"].holds


def test_choices_recorded_in_the_order_that_they_were_asked_in() -> None:
    """Their letters are those of that order: the right one of the data set has moved with its choice."""
    key = question_key(QUESTIONS[0], LONG[0])
    rows = [
        Row(question=QUESTIONS[0], choices=[LONG[0][k] for k in order], correct_answer=letter, is_correct=True)
        for order, letter in ((ORDERS[0], "B"), (ORDERS[0], "C"), ((0, 1, 2, 3), "A"))
    ]
    found = [_dataset_checks((Question(key, "a"),), NOTHING, (row,), is_exact=False)[1].holds for row in rows]
    assert found == [True, False, True]


TEXTS = ("富士山", "百度", "三百六十五日", "木星", "高尾山")
NUMBERED = dict(zip("abcde", TEXTS, strict=True))
Form = Callable[[str], object]


def _text(letter: str) -> str:
    return TEXTS["ABCDE".index(letter)]


def _from_0(letter: str) -> int:
    return "ABCDE".index(letter)


def _from_1(letter: str) -> int:
    return "ABCDE".index(letter) + 1


def _with_text(letter: str) -> str:
    return f"({letter}) {_text(letter)}"


@pytest.mark.parametrize(
    ("said", "gold", "choices"),
    [
        *((said, gold, choices)
          for said, gold in (
              (_text, str), (_text, _text), (str, _text), (_with_text, _text), (_from_0, str), (_from_0, _text)
          )
          for choices in (NUMBERED, list(TEXTS), CHOICES[0])),
        (_from_0, _from_0, NUMBERED), (_from_1, _from_1, NUMBERED), (_from_1, str, CHOICES[0]),
    ],
)  # fmt: skip
def test_an_answer_may_be_its_choices_text_or_number(said: Form, gold: Form, choices: object, tmp_path: Path) -> None:
    """Whatever the other answer is recorded by: it is the label that the response says, or a finding."""
    for name, letters in (("sound", SAID), ("planted", GOLD)):
        one = sound(tmp_path / name, "choice")
        one.root.mkdir()
        one.raw["rows"] = [
            row | {"c": choices, "gold": gold(right), "said": said(letter), "ok": letter == right}
            for row, letter, right in zip(one.raw["rows"], letters, GOLD, strict=True)
        ]
        one.raw["accuracy"] = 0.75 if name == "sound" else 1.0
        outcome, checks = one.judged()
        as_written = tuple(str(said(letter)) for letter in letters)  # where nothing shows what numbers begin with
        assert outcome.answers in (tuple(letters.lower()), as_written if said is gold is _from_1 else ())
        assert ("answers_as_responded" in broken(checks.values())) == (name == "planted")
        assert name == "planted" or broken(checks.values()) == set()


def test_the_text_of_two_choices_stays_unread() -> None:
    """Neither is it a right answer nor one that was given; a label before it says which."""
    twice = ["Paris", "Rome", "Paris", "Bonn"]
    assert [as_label(one, twice) for one in ("Paris", "rome", "C. Paris", "Madrid", "d", "")] == [
        None,
        "b",
        "c",
        None,
        "d",
        None,
    ]
    assert [as_label(2, twice, first) for first in (0, 1, None)] == ["c", "b", None]
    rows = tuple(
        Row(question=f"q{n}", choices=twice, correct_answer=gold, predicted_answer=said, is_correct=gold == said)
        for n, (gold, said) in enumerate((("rome", "rome"), ("bonn", "paris"), ("paris", "paris"), ("bonn", "lyon")))
    )
    found = [(row.correct_answer, row.predicted_answer) for row in with_labels(rows, has_flags=True)]
    assert found == [("b", "b"), ("d", "unknown"), ("", "unknown"), ("d", "lyon")]


@pytest.mark.parametrize(
    ("recorded", "answers", "changed"),
    [
        ("abcd", "0123", 0), ("0123", "abcd", 0), ("1234", "abcd", 0), (TEXTS[:4], "abcd", 0), ("abcd", TEXTS[:4], 0),
        ("abca", "0123", 1), ("0120", TEXTS[:4], 1), ("1324", "abcd", 2), ((*TEXTS[:3], TEXTS[4]), "abcd", 1),
    ],
)  # fmt: skip
def test_right_answers_are_compared_by_the_choice_that_they_are(
    recorded: tuple[str, ...], answers: tuple[str, ...], changed: int
) -> None:
    """By label, text or number, counted from 0 or 1 in all rows alike."""
    rows = tuple(
        Row(question=question, choices=list(TEXTS), correct_answer=gold.lower(), is_correct=True)
        for question, gold in zip(QUESTIONS, recorded, strict=True)
    )
    dataset = tuple(
        Question(question_key(question, list(TEXTS)), answer)
        for question, answer in zip(QUESTIONS, answers, strict=True)
    )
    check = _dataset_checks(dataset, NOTHING, rows, is_exact=False)[1]
    assert (check.holds, check.message.values["changed"]) == (changed == 0, changed)


def _asked_again(one: Planted, places: tuple[int, ...]) -> None:
    """The rows and the calls are those of these places."""
    one.raw["rows"] = [one.raw["rows"][n] for n in places]
    one.raw["accuracy"] = sum(row["ok"] for row in one.raw["rows"]) / len(places)
    calls = [fact for fact in one.facts if fact["fact"] == "generation"]
    for n, place in enumerate(places):
        prompt = f"{QUESTIONS[place]}\n{CHOICES[place]}\n答え:"
        of_row = {"prompt_hashes": [text_hash(prompt)], "prompt_fingerprints": [list(fingerprints(prompt))]}
        said = one.raw["rows"][n]["text"]
        of_row |= {"response_hashes": [[text_hash(said)]], "response_fingerprints": [list(fingerprints(said))]}
        calls[n].update(of_row)


@pytest.mark.parametrize("kind", ["choice", "generate"])
@pytest.mark.parametrize(
    ("places", "severity"),
    [((0, 1, 2, 3), None), ((0, 1, 2, 2), Severity.WARN), ((0, 1, 0, 1), Severity.FAIL), ((2, 2, 2, 2), Severity.FAIL)],
)
def test_half_of_the_questions_asked_again_stand_for_others(
    places: tuple[int, ...], severity: Severity | None, kind: str, tmp_path: Path
) -> None:
    """One may be in the data set twice."""
    one = sound(tmp_path, kind)
    _asked_again(one, places)
    _, checks = one.judged()
    check = checks["rows_distinct"]
    assert (check.holds, None if check.holds else check.severity) == (severity is None, severity)


def test_rows_that_record_what_all_questions_share_were_not_asked_again(tmp_path: Path) -> None:
    """Their prompts differ; or were not seen, and nothing is recorded that tells."""
    one = sound(tmp_path / "seen", "generate")
    one.root.mkdir()
    _rows(one, lambda row: row | {"q": "次のうち正しいものはどれですか。"})
    for n, fact in enumerate(fact for fact in one.facts if fact["fact"] == "generation"):
        prompt = f"次のうち正しいものはどれですか。\n{QUESTIONS[n]}\n答え:"
        fact |= {"prompt_hashes": [text_hash(prompt)], "prompt_fingerprints": [list(fingerprints(prompt))]}
    check = one.judged()[1]["rows_distinct"]
    assert (check.holds, check.severity) == (False, Severity.WARN)
    row = Row(question="問", correct_answer="a", is_correct=True)
    check = _dataset_checks(None, NOTHING, (row,) * 4, is_exact=False)[0]
    assert (check.holds, check.severity) == (False, Severity.WARN)
    both = tuple(row.model_copy(update={"choices": ["甲", "乙"], "prompt": f"{n} 問"}) for n in range(4))
    assert _dataset_checks(None, NOTHING, both, is_exact=False)[0].severity is Severity.WARN
    same = tuple(one.model_copy(update={"prompt": "問"}) for one in both)
    assert _dataset_checks(None, NOTHING, same, is_exact=False)[0].severity is Severity.FAIL


def test_a_question_that_the_data_set_has_twice_may_be_asked_twice() -> None:
    """However many those are."""
    keys = [question_key(QUESTIONS[n], None) for n in (0, 0, 1, 1)]
    rows = tuple(Row(question=QUESTIONS[n], correct_answer="a", is_correct=True) for n in (0, 0, 1, 1))
    twice, once = (tuple(Question(key, "a") for key in own) for own in (keys, (*dict.fromkeys(keys), "甲", "乙")))
    assert _dataset_checks(twice, NOTHING, rows, is_exact=False)[0].holds
    found = _dataset_checks(once, NOTHING, rows, is_exact=False)[0]
    assert (found.holds, found.severity) == (False, Severity.FAIL)


STATUTE = "第{0}条の届出は、番号{0}の事由が生じた日から何日以内に、第{0}係へしなければならないと定められているか。"
DAYS = ("5日以内", "15日以内", "25日以内", "30日以内")  # one ends as two others do
LIKELY = ((-7.0, -4.0, -6.0, -5.0), (-3.0, -9.0, -9.5, -8.0), (-8.0, -7.0, -6.5, -2.0), (-9.0, -9.0, -1.0, -9.0))
LIKELIEST = "badc"


def endings(text: str, likely: float) -> list[tuple[str, float, int, float]]:
    """Those of a scored text, a character a token; an end token and the text before it are in them."""
    whole, each = f"人\n{text}", likely / len(text)
    return [
        (text_hash(whole[-n:])[:8], round(n * each - 0.5, 4), n, -0.5) for n in range(1, len(whole) + 1)
    ]  # fmt: skip


def scored(
    root: Path,
    said: str,
    *,
    style: str = "{text}",
    letters: bool = False,
    further: Callable[[int], list[str]] = lambda _: [],
) -> Planted:
    """Each choice is scored behind its question, or the question once and what comes next; `further` texts too."""
    state = {"name_or_path": "org/model", "adapters": ["default"], "layers": 4, "disabled": 0, "merged": 0,
             "scaling": [2.0], "sha256": [SHA256], "merged_sha256": []}  # fmt: skip
    seen = facts("choice")[:3]
    for n, likely in enumerate(LIKELY):
        question, labels = STATUTE.format(n + 11), dict(zip("abcd", likely, strict=True))
        told = [style.format(text=text, label="abcd"[k]) for k, text in enumerate(DAYS)]
        texts = (
            [] if letters else [(question + text, endings(text, one)) for text, one in zip(told, likely, strict=True)]
        )
        texts += [(question + "答え:", endings("答え:", -9.0))] * letters
        texts += [(text, endings("答え:", -9.0)) for text in further(n)]
        for text, found in texts:
            seen += [
                {"fact": "scoring", "at": 4.0 + n, "rows": 1, "tokens": [60],
                 "prompt_fingerprints": [list(fingerprints(text))], **state},
                {"fact": "likelihoods", "at": 4.0 + n, "endings": [found], "labels": [labels]},
            ]  # fmt: skip
    rows = [
        {"q": STATUTE.format(n + 11), "c": list(DAYS), "gold": LIKELIEST[n], "said": one, "ok": one == LIKELIEST[n]}
        for n, one in enumerate(said)
    ]
    right = sum(bool(row["ok"]) for row in rows)
    return Planted(root, "scored", {"accuracy": right / 4, "n": 4, "rows": rows}, seen)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (LIKELIEST, None),
        ("abba", Severity.FAIL),  # the least likely ones
        ("cbad", Severity.FAIL),  # read off by one
        ("bada", Severity.WARN),
    ],
)
@pytest.mark.parametrize("style", ["{text}", "{label}", "{label}. {text}"])
def test_the_choice_that_was_found_likeliest_is_the_answer(
    tmp_path: Path, style: str, said: str, found: Severity | None
) -> None:
    """Whatever text is scored for a choice: its own, its label's, or both."""
    check = scored(tmp_path, said, style=style).judged()[1]["answers_likeliest"]
    assert (check.holds, check.severity if found else None) == (found is None, found)


@pytest.mark.parametrize(("said", "found"), [(LIKELIEST, None), ("abba", Severity.FAIL), ("bada", Severity.WARN)])
@pytest.mark.parametrize(("style", "answers"), [("{label}", "abcd"), ("{label}", "ABCD"), ("{text}", DAYS)])
def test_rows_without_choices_are_compared_by_their_answers(
    tmp_path: Path, style: str, answers: Sequence[str], said: str, found: Severity | None
) -> None:
    """The labels in their order, or all answers that any row has, are what a question's scored texts choose between."""
    one = scored(tmp_path, said, style=style)
    for row in one.raw["rows"]:
        row["c"] = ""
        row["gold"], row["said"] = (answers["abcd".index(row[key])] for key in ("gold", "said"))
    check = one.judged()[1]["answers_likeliest"]
    is_known = style == "{label}" or {*said, *LIKELIEST} == {*"abcd"}
    assert check.holds is (found is None if is_known else None)
    assert found is None or not is_known or check.severity is found


def test_a_failed_hook_counts_no_more(tmp_path: Path) -> None:
    """Three of four answers were seen, and then a hook failed: nobody knows of the fourth, and nothing is green."""
    for n, (extra, holds) in enumerate(
        [([], False), ([{"fact": "blind", "at": 9.0, "where": "GenerationMixin.generate"}], None)]
    ):
        (tmp_path / str(n)).mkdir()
        one = sound(tmp_path / str(n), "choice")
        one.facts = [*one.facts[:-1], *extra]
        checks = one.judged()[1]
        assert checks["answers_generated"].holds is holds
        assert checks_verdict(tuple(checks.values())) is not None


@pytest.mark.parametrize("training", [False, True])
def test_choices_that_are_scored_with_dropout_are_told_of(tmp_path: Path, training: bool) -> None:
    """Nobody called `eval()`: each score has some chance in it."""
    one = scored(tmp_path, LIKELIEST)
    one.facts = [fact | ({"training": training} if fact["fact"] == "scoring" else {}) for fact in one.facts]
    check = one.judged()[1]["answers_likeliest"]
    assert (check.holds is False) is training
    assert not training or check.severity is Severity.WARN


def test_the_likeliest_letter_is_the_answer(tmp_path: Path) -> None:
    """Where a question is read once, and what comes next decides: told where training had letters for answers."""
    learnt = {"fact": "batch", "at": 1.0, "answer_hashes": [text_hash("a"), text_hash("c")]}
    texts = {"fact": "batch", "at": 1.0, "answer_hashes": [text_hash("五日以内です"), text_hash("c")]}
    tries = [(LIKELIEST, learnt, True), ("abba", learnt, False), ("abba", texts, None)]
    for n, (choices, (said, batch, holds)) in enumerate(product((DAYS, ()), tries)):
        folder = tmp_path / str(n)
        (folder / "trained").mkdir(parents=True)
        (folder / "trained/witness-none-3.jsonl").write_text(json.dumps(batch) + "\n", encoding="utf-8")
        one = scored(folder, said, letters=True)
        one.raw["rows"] = [row | {"c": list(choices)} for row in one.raw["rows"]]
        one.evidence["training_witness"] = read_witness(folder / "trained")
        assert one.judged()[1]["answers_likeliest"].holds is holds


@pytest.mark.parametrize(("said", "holds"), [(("yes", "no", "yes", "no"), True), (("no", "yes", "no", "yes"), False)])
def test_the_likeliest_word_is_the_answer(tmp_path: Path, said: tuple[str, ...], holds: bool) -> None:
    """Classes that are words, read out of what comes next: swapped ones are told."""
    batch = {"fact": "batch", "at": 1.0, "answer_hashes": [text_hash("yes"), text_hash("no")]}
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/witness-none-3.jsonl").write_text(json.dumps(batch) + "\n", encoding="utf-8")
    one = scored(tmp_path, LIKELIEST, letters=True)
    one.evidence["training_witness"] = read_witness(tmp_path / "trained")
    likely = iter([" yes", " no", " yes", " no"])
    for fact in one.facts:
        if fact["fact"] == "likelihoods":
            best = next(likely)
            words = {word: -1.0 if word == best else -3.0 for word in (" yes", " no")}
            fact["labels"] = [{**words, "a": -5.0, "b": -6.0}]
    for row, answer in zip(one.raw["rows"], said, strict=True):
        row |= {"c": "", "said": answer, "gold": "yes", "ok": answer == "yes"}
    one.raw["accuracy"] = 0.5
    assert one.judged()[1]["answers_likeliest"].holds is holds


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        (("yes", "no", "yes", "no"), None),  # from 0.3 on
        (("no", "yes", "no", "yes"), False),  # the other way round
        (("yes", "yes", "yes", "yes"), False),  # whatever the model says
    ],
)
def test_a_class_that_needs_another_likelihood_than_half(
    tmp_path: Path, said: tuple[str, ...], holds: bool | None
) -> None:
    """A threshold of the program's own, or a calibration, parts the same likelihoods elsewhere."""
    batch = {"fact": "batch", "at": 1.0, "answer_hashes": [text_hash("yes"), text_hash("no")]}
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/witness-none-3.jsonl").write_text(json.dumps(batch) + "\n", encoding="utf-8")
    one = scored(tmp_path, LIKELIEST, letters=True)
    one.evidence["training_witness"] = read_witness(tmp_path / "trained")
    read = [fact for fact in one.facts if fact["fact"] == "likelihoods"]
    for fact, likely in zip(read, (0.35, 0.2, 0.4, 0.1), strict=True):
        fact["labels"] = [{" yes": math.log(likely), " no": math.log(1 - likely)}]
    for row, answer, gold in zip(one.raw["rows"], said, ("yes", "no", "no", "yes"), strict=True):
        row |= {"c": "", "said": answer, "gold": gold, "ok": answer == gold}
    one.raw["accuracy"] = 0.5
    assert one.judged()[1]["answers_likeliest"].holds is holds


@pytest.mark.parametrize(
    "further",
    [
        lambda n: ["答え:"],  # how likely a choice is without its question
        lambda n: [STATUTE.format(n + 11) + text for text in DAYS],  # a second way to ask
    ],
)
def test_what_a_program_makes_of_several_scores_is_its_own(tmp_path: Path, further: Callable[[int], list[str]]) -> None:
    """Scores that are subtracted or averaged are not compared."""
    one = scored(tmp_path, "abba", further=further)
    if "答え:" not in further(0)[0]:
        for fact in one.facts:
            if fact["fact"] == "likelihoods":
                fact["endings"] = [endings("5日以内", -3.0)]
    assert one.judged()[1]["answers_likeliest"].holds is None


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((0, 1, 2, 3), None),
        ((0, 0, 0, 0), Severity.FAIL),  # the first one every time
        ((0, 1, 1, 3), Severity.FAIL),
        ((3, 2, 1, 0), None),  # in another order
    ],
)
def test_questions_that_are_much_alike_are_each_asked(
    tmp_path: Path, asked: tuple[int, ...], found: Severity | None
) -> None:
    """A prompt asks the question that it has whole, and not another that has most of its words."""
    one = scored(tmp_path, LIKELIEST)
    seen = [fact for fact in one.facts if fact["fact"] == "scoring"]
    for n, fact in enumerate(seen):
        prompt = STATUTE.format(asked[n // 4] + 11) + DAYS[n % 4]
        fact["prompt_fingerprints"] = [list(fingerprints(prompt))]
    check = one.judged()[1]["prompts_hold_questions"]
    assert (check.holds, check.severity if found else None) == (found is None, found)


@pytest.mark.parametrize(
    ("before", "is_found"),
    [
        (lambda n, k: [DAYS["abcd".index(LIKELIEST[n])]], True),
        (lambda n, k: [f"正解: {LIKELIEST[n]}", "a. 5日以内", "b. 15日以内", "c. 25日以内", "d. 30日以内"], True),
        (lambda n, k: ["a. 5日以内", "b. 15日以内", "c. 25日以内", "d. 30日以内"], False),
        (lambda n, k: [], False),
        (lambda n, k: [DAYS[k]], False),  # the scored choice itself, in a line of its own
        (lambda n, k: [DAYS[0]], False),  # an example in all of them
    ],
)
def test_the_right_choice_in_all_texts_that_are_scored(
    tmp_path: Path, before: Callable[[int, int], list[str]], is_found: bool
) -> None:
    """A prompt that ends with the right choice tells the model what to find likely."""
    one = scored(tmp_path, LIKELIEST)
    seen = [fact for fact in one.facts if fact["fact"] == "scoring"]
    for at, fact in enumerate(seen):
        n, k = divmod(at, 4)
        lines = [STATUTE.format(n + 11), *before(n, k), "答え: " + DAYS[k]]
        fact["prompt_lines"] = [[text_hash(line)[:8] for line in lines]]
    check = one.judged()[1]["frame_as_trained"]
    assert (check.holds is False) is is_found
    assert not is_found or check.severity is Severity.FAIL


@pytest.mark.parametrize("moved", [0, 1])
def test_a_batch_whose_answers_went_to_other_questions(tmp_path: Path, moved: int) -> None:
    """Of questions that are much alike, too: a prompt that has all of one asks that one."""
    one = sound(tmp_path, "choice")
    own = "ABCB"
    said = [own[(n + moved) % 4] for n in range(4)]
    right = [answer == gold for answer, gold in zip(said, GOLD, strict=True)]
    one.raw["accuracy"] = sum(right) / 4
    calls = [fact for fact in one.facts if fact["fact"] == "generation"]
    for n, (row, call) in enumerate(zip(one.raw["rows"], calls, strict=True)):
        question = STATUTE.format(n + 11)
        row.update(q=question, text=f"答え: {said[n]}", said=said[n], ok=right[n])
        call["prompt_fingerprints"] = [list(fingerprints(f"{question}\n{CHOICES[n]}\n答え:"))]
        call["response_hashes"] = [[text_hash(f"答え: {own[n]}")]]
    check = one.judged()[1]["responses_generated"]
    assert (check.holds, check.severity) == (not moved, Severity.FAIL)
