"""What a pipeline printed is read once: no pattern reads a long line anew from each place in it.

A repeat without an end, behind which a pattern can still fail, may cost the rest of the line for each place where it
can begin. The work of such a pattern is counted on texts of what it repeats: it must not grow faster than the text.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import steph
from regex_steps import Token, hostile_text, parser, tree
from steph.base import text as redact
from steph.contract.lines import missing_weights_in
from steph.contract.questions import choices_of
from steph.diagnose.table import cases, compiled, programs, wordings
from steph.judge import checks_row_answers, evidence, reading

from benchmarks.readers import INPUTS, READERS

# used by match and fullmatch alone: the work is counted from the text's beginning
MATCHED = {
    "checks_evaluation._CLASS_NAME", "checks_evaluation._MODEL_KEY", "checks_evaluation._SERVER_KEY",
    "checks_extended._LABEL",
    "figures._OF_VALIDATION",
    "reader._PREFIX", "reading._ERROR_WORD", "reading._EXCUSE", "reading._FAILED_JA", "reading._REASON_WORDS",
    "reading._TYPED_EXCEPTION", "settings.SEVERAL",
}  # fmt: skip
# their work does grow faster, and their text is short
SHORT_TEXTS = {
    "reader._LEVEL": "200 characters of a line",
    "reader._WARNING": "600 characters of a line",
    "table._ATOM": "the suite's own patterns",
}


def _module_patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Each pattern of the judges by its module and name."""
    rooms = [(f"{steph.__path__[0]}/{room}", f"steph.{room}.") for room in ("contract", "diagnose", "judge")]
    for found in (one for folder, prefix in rooms for one in pkgutil.iter_modules([folder], prefix)):
        for name, value in vars(importlib.import_module(found.name)).items():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            for one in values:
                inner = one if isinstance(one, tuple) else (one,)
                place = f"{found.name.rpartition('.')[2]}.{name}"
                yield from ((place, part) for part in inner if isinstance(part, re.Pattern))


def _rows() -> Iterator[tuple[str, re.Pattern[Any]]]:
    for row in (*wordings("raised"), *wordings("printed")):
        yield f"{row.cause} {row.pattern.pattern[:60]}", row.pattern
    for case in cases():
        for pattern in (*case.raised, *case.printed, *filter(None, (case.frames, case.log))):
            yield f"{case.id} {pattern.pattern[:60]}", pattern
    yield from ((program.name, program.seen) for program in programs())


def _is_endless(tokens: Iterable[Any], *, may_fail_after: bool) -> bool:
    """Whether a repeat without an end is followed by something that may fail."""
    parts = list(tokens)
    for at, (name, value) in enumerate(parts):
        followed = may_fail_after or at + 1 < len(parts)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, inner = value
            is_one_character = len(inner) == 1 and inner[0][0] == "LITERAL"  # spaces, behind a literal
            if most == parser.MAXREPEAT and followed and not is_one_character:
                return True
            if _is_endless(inner, may_fail_after=True):
                return True
        elif name == "SUBPATTERN":
            if _is_endless(value[-1], may_fail_after=followed):
                return True
        elif name == "BRANCH":
            if any(_is_endless(branch, may_fail_after=followed) for branch in value[1]):
                return True
        elif name in ("ASSERT", "ASSERT_NOT") and _is_endless(value[1], may_fail_after=False):
            return True
    return False


def _suspects() -> list[tuple[str, re.Pattern[Any]]]:
    return [(name, one) for name, one in _module_patterns() if _is_endless(tree(one), may_fail_after=False)]


LABELS = {"letters": "abcd", "capitals": "ABCDE", "kana": "アイウエ", "numbers": "1234", "words": ("yes", "no")}
MATCHED_LABELS = {"alone", "begins"}  # by match and fullmatch alone
SLOW = {"led"}  # takes seconds, and what may fail in it stands before the labels: for one set alone


def _patterns_of_labels() -> Iterator[Any]:
    """Each pattern that is built for a set of labels."""
    for labels, given in LABELS.items():
        for name, value in vars(reading._Reader(tuple(given))).items():
            for n, one in enumerate(value if isinstance(value, tuple) else (value,)):
                if name not in SLOW or labels == "letters":
                    yield pytest.param(name, one, id=f"{name} {n} {labels}")


@cache
def _patterns_of_calls() -> list[re.Pattern[Any]]:
    """What is built from labels, choices and names by other functions, as they build it."""
    built: dict[str, re.Pattern[Any]] = {}
    compiles: Any = vars(re)["_compile"]

    def noted(pattern: str, flags: int) -> re.Pattern[str]:
        built[pattern] = compiles(pattern, flags)
        return built[pattern]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(re, "_compile", noted)
        for labels in LABELS.values():
            reading.names_label(f"It is {labels[0]}.", labels[0])
            choices_of(" ".join(f"{label}) of it" for label in labels))
            checks_row_answers._numbers_a_choice(labels[0], "of it", "of it")
        evidence.names_model("Qwen/Qwen2.5-0.5B, in 4 bits", "Qwen/Qwen2.5-0.5B")
    return list(built.values())


SUSPECTS = [pytest.param(name, one, id=name) for name, one in _suspects() if name not in SHORT_TEXTS]


@pytest.mark.parametrize(("name", "pattern"), SUSPECTS)
def test_a_patterns_work_grows_as_its_text_does(name: str, pattern: re.Pattern[str]) -> None:
    """Each further piece of text takes the same work, on whatever it repeats, Japanese and spaces too."""
    assert hostile_text(pattern, at_beginning=name in MATCHED) is None


@pytest.mark.parametrize(("name", "pattern"), [*_patterns_of_labels()])
def test_so_does_that_of_a_pattern_for_labels(name: str, pattern: re.Pattern[str]) -> None:
    """A model may answer with a thousand opening brackets, behind a label or a word for the answer too."""
    assert hostile_text(pattern, at_beginning=name in MATCHED_LABELS) is None


def test_so_does_that_of_a_pattern_built_in_a_call() -> None:
    """Labels, choices and names of models are looked for in what was printed or answered."""
    assert len(_patterns_of_calls()) > len(LABELS)
    assert [one.pattern for one in _patterns_of_calls() if hostile_text(one)] == []


def test_each_exception_is_needed() -> None:
    """What is not suspect any more leaves the tables."""
    assert {*SHORT_TEXTS, *MATCHED} <= {name for name, _ in _suspects()}


@pytest.mark.parametrize(
    "slow",
    [
        r"(\w+) LOAD REPORT",
        r"\s*[#*\s]*(?:理由|reasoning):",
        r"^(?:a|aa)*b",
        r"<.*>",
        r"[ぁ-ん]+が(?:ない|あり)",
        r"^(?:.*x)+$",
    ],
)
def test_a_pattern_that_reads_a_line_again_and_again_is_told(slow: str) -> None:
    """Those that once took minutes, and textbook ones."""
    assert hostile_text(re.compile(slow)) is not None


@pytest.mark.parametrize(
    "linear",
    [
        r"\b(\w{1,200}) LOAD REPORT",
        r"(?<![#*\s])[#*\s]*+(?:理由|reasoning):",
        r"^a*b",
        r"<[^<>]*>",
        r"x+",
        r"^(?:a|b)*c",
    ],
)
def test_a_pattern_that_reads_a_line_once_is_left_alone(linear: str) -> None:
    """Bounded, anchored, or from one place of a row alone."""
    assert hostile_text(re.compile(linear)) is None


def test_no_row_of_the_tables_of_causes_does() -> None:
    """The rows are bounded by `compiled`, whatever they say, but for alternatives that are anchored."""
    loose = [
        name
        for name, pattern in _rows()
        for tokens in _alternatives(tree(pattern))
        if tokens[0][1] != "AT_BEGINNING" and _is_endless(tokens, may_fail_after=False)
    ]
    assert loose == []


def _alternatives(tokens: Sequence[Token]) -> Sequence[Sequence[Token]]:
    (kind, value), *more = tokens
    return value[1] if kind == "BRANCH" and not more else [tokens]


def test_a_row_reaches_as_far_as_a_message_is_long() -> None:
    """`.*` is bounded where a wording may begin anywhere, whatever atom it repeats; anchored ones stay as they are."""
    row = compiled(r"a.*b", r"c[^\n]+?d", r"e\w*f\.*g", r"^h.*i", r"[.*]j *k")
    assert row.pattern == r"a.{0,300}b|c[^\n]{1,300}?d|e\w{0,300}f\.{0,300}g|^h.*i|[.*]j *k"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("reader", [name for name in READERS if name != "capture"])
@pytest.mark.parametrize("hostile", INPUTS)
def test_hostile_text_is_read_to_its_end(hostile: str, reader: str) -> None:
    """What slowed a reader down once ends; the rates are printed by benchmarks/readers.py."""
    READERS[reader](INPUTS[hostile](20_000))


def test_a_long_word_before_a_load_report_is_no_model() -> None:
    """The report is found behind whatever stands before it in the line."""
    rows = "LOAD REPORT from: m\nlm_head.weight | MISSING |"
    assert missing_weights_in(f"{'x' * 3000}\n[rank0] Qwen2ForCausalLM {rows}") == "lm_head.weight | MISSING |"
    assert missing_weights_in(f"{'語' * 500} {rows}") is None


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("  **答え**: (b)。", "b"),
        ("### 回答は 選択肢 c です。", "c"),
        ("答え:「a」となります。", "a"),
        ("回答: d) 法律による", "d"),
        ("<think>b かもしれない</think>\n答え: a", "a"),
        ("<think>a</think><think>b</think>c", "c"),
        ("<think>答え: b", None),
        (" " * 5000 + "a", "a"),
        ("答え" + " " * 5000, None),
        ("答案是" + " " * 5000, None),
        ("réponse" + " " * 5000 + "est", None),
        ("#" * 5000 + "答え: a", "a"),
    ],
)
def test_an_answer_is_read_as_before(said: str, letter: str | None) -> None:
    """Reading in one pass changes no answer."""
    assert reading.strict_letter(said, cot=False) == letter


def test_secrets_in_a_row_of_names_are_masked_whole() -> None:
    """A value that itself looks like names is one secret, and what follows a quote in it is another."""
    assert redact.redact("api_token=" + "token=" * 500 + "end rest") == "api_token=*** rest"
    long = "x" * 1000
    assert redact.redact(f'"hf_token": "{long}", "secret": "{long}"') == '"hf_token": "***", "secret": "***"'
    assert redact.redact(f"token={'a1' * 100}token:'zz11zz11zz11zz11zz'") == "token=***'***'"
    assert redact.redact("eos_token=" * 500) == "eos_token=" * 500
