"""Messages: ids with values, told in each language by its catalogs."""

from __future__ import annotations

import ast
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import steph
from japanese import JAPANESE
from pydantic import BaseModel
from steph.base.messages import (
    LANGUAGES,
    NOTHING,
    WORDS,
    Language,
    Message,
    catalog,
    has_message,
    language,
    placeholders,
    say,
    speaking,
    verbatim,
)
from steph.base.terms import Cause, Phase
from steph.diagnose.table import cases, steps
from steph.doctor.checks import CATALOG as DOCTOR
from steph.judge.checks_process import library_warnings
from steph.judge.kinds import Needs, check_kinds

SUITE = Path(steph.__file__).parent
TOOLS = Path(__file__).parents[2] / "tools"


def test_the_catalogs_have_the_same_messages_with_the_same_placeholders() -> None:
    """A message in one language alone would be shown as its id in the other."""
    japanese, english = catalog("ja"), catalog("en")
    assert set(japanese) == set(english)
    assert {one for one in english if placeholders(japanese[one]) != placeholders(english[one])} == set()


@pytest.mark.parametrize("chosen", LANGUAGES)
def test_no_two_catalogs_say_the_same_id(chosen: Language) -> None:
    """The one read later would silently win."""
    said = [line for path in (WORDS / chosen).glob("*.po") for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter(line for line in said if line.startswith("msgid ") and line != 'msgid ""')
    assert {one for one, count in counts.items() if count > 1} == set()


def test_english_holds_no_japanese() -> None:
    """An English text that is none was never translated."""
    assert {one for one, words in catalog("en").items() if JAPANESE.search(words)} == set()


def test_no_message_is_unused_and_none_is_missing() -> None:
    """Each id is made from a row of a table, or stands in the code; a check's own are keys of its calls."""
    used = {f"diagnose.cause.{cause}.{part}" for cause in Cause for part in ("name", "means", "do", "next")}
    used |= {f"diagnose.case.{case.id}.{part}" for case in cases() for part in ("means", "do", "next")}
    used |= {f"diagnose.step.{step}{known}" for step in steps() for known in ("", ".known")}
    used |= {f"diagnose.phase.{phase}" for phase in Phase}
    used |= {warning.words for warning in library_warnings()}
    files = [*(path for path in SUITE.rglob("*.*") if path.suffix in (".py", ".j2"))]
    files += [TOOLS / "checks_page.py", TOOLS / "key_tables.py"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    used |= {f"diagnose.seen.{name}" for name in re.findall(r'\("(\w+)", \{', code)}
    used |= {f"check.{check}.{part}" for check in check_kinds() for part in ("title", "reads", "note")}
    used |= {f"check.needs.{need}" for need in Needs}
    used |= {f"doctor.{kind.id}.looks_at" for kind in DOCTOR}
    rows = {f"doctor.{kind.id}.{key}" for kind in DOCTOR for key in kind.troubles}
    used |= {f"{row}.{part}" for row in rows for part in ("when", "remedy")}
    literals = set(re.findall(r"[\"']([\w.-]+)[\"']", code))
    used |= {f"check.{check}.{key}" for check in check_kinds() for key in literals if "." not in key}
    prefixes = {*re.findall(r"f[\"']([\w.]+)[.][{]", code), *re.findall(r"[\"']([\w.]+)[.][\"'] ~", code)}
    used |= {
        one for one in catalog("ja") for dot in re.finditer(r"[.]", one)
        if one[: dot.start()] in prefixes and one[dot.end() :] in literals
    }  # fmt: skip
    assert {one for one in catalog("ja") if one not in used and one not in literals} == set()
    said = set(re.findall(r'\b(?:say|phrase|said|text|t)\("([\w-]+\.[\w.-]*\w)"', code))
    assert {one for one in said if not has_message(one)} == set()
    assert {one for one in used if one.startswith("doctor.") and not has_message(one)} == set()


def test_every_call_gives_the_values_of_its_words() -> None:
    """`say("id", name=…)` and `KIND.check(…, "key", name=…)`; a placeholder that is alone in brackets may lack."""
    lacking = set[tuple[str, str]]()
    for path in SUITE.rglob("*.py"):
        for call in (one for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(one, ast.Call)):
            given = {word.arg for word in call.keywords}
            for one in _ids(call) if None not in given else ():
                words = catalog("ja")[one]
                optional = set(re.findall(r"[(（][{](\w+)[^}]*[}][)）]", words))
                lacking |= {(one, name) for name in placeholders(words) - given - optional}
    assert lacking == set()


def _ids(call: ast.Call) -> list[str]:
    """The ids that a call can say: its literal ones, each of a conditional one."""
    match call:
        case ast.Call(func=ast.Name("say" | "phrase"), args=[said, *_]):
            begin = ""
        case ast.Call(func=ast.Attribute(ast.Name(name), "check"), args=[_, said, *_]) if name.lower() in check_kinds():
            begin = f"check.{name.lower()}."
        case _:
            return []
    words = [one.value for one in ast.walk(said) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return [begin + word for word in words if has_message(begin + word)]


def test_a_message_survives_json_with_all_its_values() -> None:
    """Text, numbers, truth, nothing, a message within, and a list of messages."""
    inner = say("verdict.rank", rank=3)
    said = say("verdict.conditions", conditions=[inner, verbatim("x"), "y", 2, 2.5, None, True])
    again = Message.model_validate_json(said.model_dump_json())
    assert again == said
    for one in LANGUAGES:
        assert again.text(one) == said.text(one)
    assert again.text("en") == "Passed with conditions: , rank 3, x, y, 2, 2.5, —, True"


def test_an_old_records_sentence_is_its_own_text() -> None:
    """Where a record of before holds a sentence, it is shown as it stands in every language."""

    class Holder(BaseModel):
        message: Message

    held = Holder.model_validate({"message": "損失が下がった。"}).message
    assert [held.text(one) for one in LANGUAGES] == ["損失が下がった。", "損失が下がった。"]
    assert not NOTHING
    assert held


def test_a_message_of_another_release_is_shown_by_its_id_and_values() -> None:
    """A report is never lost over a word."""
    shown = str(Message(id="verdict.of_tomorrow", values={"figure": 3}))
    assert "verdict.of_tomorrow" in shown
    assert "3" in shown
    with pytest.raises(KeyError):
        say("verdict.of_tomorrow")


@pytest.mark.parametrize(("warnings", "said"), [(1, "1 warning"), (0, "0 warnings"), (2000, "2,000 warnings")])
def test_english_counts_in_singular_and_plural(warnings: int, said: str) -> None:
    """`{warnings:warning|warnings}`."""
    assert say("verdict.warnings", warnings=warnings).text("en") == said


def test_values_can_do_no_harm() -> None:
    """Braces, line ends, secrets and endless text in a value; figures that are none; a value that is missing."""
    shown = say("verdict.unmeasured", check="a{b}", reason="x\ny hf_abcdefghijklmnopqrstuvwxyz " + "z" * 5000).text(
        "en"
    )
    assert "a{b}" in shown
    assert "\n" not in shown
    assert "abcdefghijkl" not in shown
    assert len(shown) < 1000
    assert "nan" in say("verdict.seconds", seconds=float("nan")).text("en")
    assert "[check]" in Message(id="verdict.unmeasured", values={}).text("en")


def test_the_language_in_use_holds_for_everything_that_names_none() -> None:
    """And ends with its block, also where that fails."""
    words: dict[Language, str] = {}
    for one in LANGUAGES:
        with suppress(ZeroDivisionError), speaking(one):
            words[one] = str(say("verdict.clean"))
            raise ZeroDivisionError
    assert words == {"ja": "問題なし", "en": "No trouble found"}
    assert language() == "ja"


@pytest.mark.parametrize("looks", range(8))
def test_an_interrupt_while_a_message_is_made_reaches_the_caller(looks: int) -> None:
    """A Ctrl-C at any look at a value; pydantic's own looks would swallow it, and the doctor would wait on."""
    seen, raised = 0, False

    class Watched(int):
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            nonlocal seen, raised
            seen += 1
            if seen == looks + 1:
                raised = True
                raise KeyboardInterrupt
            return int

    with suppress(KeyboardInterrupt):
        say("verdict.rank", rank=Watched(3))
        assert not raised
    assert seen > 0
