"""What a pipeline printed is read once: no pattern reads a long line anew from each place in it.

A repeat without an end, behind which a pattern can still fail, costs the rest of the line for each place where it can
begin. Such a pattern is refused here, unless it is anchored or its repeat can begin at few places; these are named.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import steph
from steph.base import redact
from steph.diagnose.table import cases, compiled, programs, wordings
from steph.judge import reading
from steph.judge.lines import missing_weights_in

from benchmarks.readers import INPUTS, READERS

parser: Any = importlib.import_module("re._parser")

# Each begins at a literal that its own repeat can't contain or is used from one place alone; or its text is cut short.
REVIEWED = {
    "steph.judge.adapter_words._NAMED": "in lines cut at 2000 characters",
    "steph.judge.adapter_words._ENGLISH": "in lines cut at 2000 characters",
    "steph.judge.adapter_words._JAPANESE": "in lines cut at 2000 characters",
    "steph.judge.lines._RAISED_THERE": "in lines cut at 2000 characters",
    "steph.judge.lines._LOADED": "in lines cut at 2000 characters",
    "steph.judge.lines._ENDPOINT": "in lines cut at 2000 characters",
    "steph.judge.lines._ANSWER_TROUBLE": "in lines cut at 2000 characters",
    "steph.judge.lines._NO_TROUBLE": "in lines cut at 2000 characters",
    "steph.judge.checks_complete._PACKING": "in lines cut at 2000 characters",
    "steph.diagnose.losses._FREE": "in lines cut at 2000 characters",
    "steph.diagnose.losses._OF_VALIDATION": "in lines cut at 2000 characters",
    "steph.judge.checks_adapter_keys._FOREIGN": "names of tensors, keys or files, which are short",
    "steph.judge.checks_adapter_keys._ELSEWHERE": "names of tensors, keys or files, which are short",
    "steph.judge.checks_lines._MODEL_KEY": "names of tensors, keys or files, which are short",
    "steph.judge.checks_lines._SERVER_KEY": "names of tensors, keys or files, which are short",
    "steph.judge.checks_lines._CLASS_NAME": "names of tensors, keys or files, which are short",
    "steph.judge.witness._NAME": "names of tensors, keys or files, which are short",
    "steph.judge.reading._ANSWER_TAG": "in a response cut at 20,000 characters",
    "steph.judge.reading._BOXED": "in a response cut at 20,000 characters",
    "steph.judge.reading._REASON_WORDS": "in a response cut at 20,000 characters",
    "steph.judge.reading._REASONING_LABEL": "in a response cut at 20,000 characters",
    "steph.judge.reading._TYPED_EXCEPTION": "in a response cut at 20,000 characters",
    "steph.judge.reading._ERROR_WORD": "in a response cut at 20,000 characters",
    "steph.judge.reading._MESSAGE": "in a response cut at 20,000 characters",
    "steph.judge.reading._FAILED_JA": "in a response cut at 20,000 characters",
    "steph.judge.reading._EXCUSE": "in a response cut at 20,000 characters",
    "steph.diagnose.reader._LEAD": "match alone, in 300 characters",
    "steph.diagnose.reader._ANSI": "the repeat ends at the next escape",
    "steph.diagnose.reader._BAR_COUNT": "digits end at the next bar",
    "steph.diagnose.reader._BAR_CLOCK": "the repeat ends at the next bracket",
    "steph.diagnose.reader._BAR_END": "digits end at the next bracket",
    "steph.diagnose.reader._PREFIX": "match alone",
    "steph.diagnose.reader._LEVEL": "match alone, in 200 characters",
    "steph.diagnose.reader._WARNING": "in 600 characters of one line",
    "steph.diagnose.ranks._ENTRY": "digits behind a literal",
    "steph.diagnose.ranks._FIRST": "digits behind a literal",
    "steph.diagnose.losses._PAIR": "a word between quotes",
    "steph.diagnose.losses._FINITE": "spaces behind a word",
    "steph.diagnose.printed._LOSS_IS": "spaces behind a word",
    "steph.diagnose.printed._METRICS": "anchored",
    "steph.diagnose.printed._HELP": "match alone",
    "steph.diagnose.phases._PRINTED": "in 2000 characters, digits behind a literal",
    "steph.diagnose.exceptions._WHAT": "match alone",
    "steph.judge.lines._PAIR": "spaces behind a colon",
    "steph.judge.lines._MADE_UP": "spaces behind a bar",
    "steph.judge.lines._SETUP": "spaces behind a colon",
    "steph.judge.lines._RESULT": "spaces behind a colon",
    "steph.judge.lines._INVOCATION_ERROR": "spaces behind a colon",
    "steph.judge.checks_adapter._MAY_STAY_IDLE": "names of tensors",
    "steph.diagnose.table._ATOM": "the suite's own text",
    "steph.judge.lines._ANSI": "the repeat ends at the next escape",
    "steph.judge.text._ALONE": "fullmatch alone",
    "steph.judge.text._LED": "fullmatch alone",
    "steph.judge.text._LED_TEXT": "fullmatch alone",
    "steph.judge.text._LEADING": "match alone",
    "steph.judge.text._EXCEPTION": "match alone",
    "steph.judge.kinds._CONTROL": "the repeat ends at the next escape",
}


def _module_patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    rooms = [(f"{steph.__path__[0]}/{room}", f"steph.{room}.") for room in ("judge", "diagnose")]
    for found in (one for folder, prefix in rooms for one in pkgutil.iter_modules([folder], prefix)):
        for name, value in vars(importlib.import_module(found.name)).items():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            for one in values:
                inner = one if isinstance(one, tuple) else (one,)
                yield from ((f"{found.name}.{name}", part) for part in inner if isinstance(part, re.Pattern))


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
    for at, (kind, value) in enumerate(parts):
        followed = may_fail_after or at + 1 < len(parts)
        name = str(kind)
        if name == "AT" and str(value) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return False  # tried at one place
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, inner = value
            is_one_character = len(inner) == 1 and str(inner[0][0]) == "LITERAL"  # spaces, behind a literal
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


def _parsed(pattern: re.Pattern[Any]) -> Iterable[Any]:
    tokens: Iterable[Any] = parser.parse(pattern.pattern, pattern.flags)
    return tokens


def test_no_pattern_reads_the_rest_of_a_line_from_each_of_its_places() -> None:
    """Each pattern of the judges is bounded, anchored, or was looked at and says why it may be neither."""
    endless = {name for name, pattern in _module_patterns() if _is_endless(_parsed(pattern), may_fail_after=False)}
    assert endless - {*REVIEWED} == set()


def test_no_row_of_the_tables_of_causes_does() -> None:
    """The rows are bounded by `compiled`, whatever they say."""
    assert [name for name, pattern in _rows() if _is_endless(_parsed(pattern), may_fail_after=False)] == []


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
