"""Training files of many kinds: sound ones are accused of nothing, and the defect that each is near is still found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from steph.base.fingerprint import fingerprints, text_hash
from steph.contract.rows import TrainingRow, format_of, training_row
from steph.judge.checks_row_answers import file_checks
from steph.judge.checks_rows import row_checks
from steph.judge.evidence import TrainEvidence
from steph.judge.witness import Batch, TrainingBegins
from steph.record.settings import TrainSettings

Row = dict[str, Any]
COUNT, IN_A_BATCH, WIDTH = 60, 4, 300
SPOKEN = """
court contract party seller buyer notice delivery damage claim period statute remedy breach payment lease tenant
owner title deed agent duty care profit share director board vote record audit report tax invoice service term
clause section appeal judge jury verdict motion brief hearing bail crime theft fraud intent proof burden witness
"""
WORDS = SPOKEN.split()
LETTERS = "abcd"


def said(n: int, words: int, *, salt: str = "") -> str:
    """A sentence that only this number has."""
    chosen = random.Random(f"{salt}{n}-{words}")  # noqa: S311 - no secret
    return " ".join(chosen.choice(WORDS) for _ in range(words)).capitalize() + "."


def labelled(n: int, salt: str = "") -> Row:
    """One of six labels, a sentence each, behind a text that ends as all do."""
    asked = f"Which is it? {said(n, 14, salt=salt)} Its name:"
    return {"input": asked, "output": said(n % 6, 7, salt="label")}


def sampled(n: int, salt: str = "") -> Row:
    """Several short answers to each of ten questions."""
    return {"prompt": said(n % 10, 20, salt=salt), "completion": WORDS[n % 3]}


def brief(n: int, salt: str = "") -> Row:
    """Three words and a label."""
    return {"input": f"Kind: {said(n, 3, salt=salt)}", "output": WORDS[n % 4]}


def chat(n: int, salt: str = "") -> Row:
    """Several short turns behind one long system's."""
    turns = [
        {"role": role, "content": said(10 * n + k, 4, salt=salt + role)}
        for k in range(4)
        for role in ("user", "assistant")
    ]
    return {"messages": [{"role": "system", "content": "You are a kind assistant who knows the law. " * 4}, *turns]}


def extracted(n: int, salt: str = "") -> Row:
    """Nothing is to be found in two of three texts."""
    found = said(n, 2, salt=salt) if n % 3 == 0 else ""
    return {"instruction": "Name the goods, if any.", "input": said(n, 12, salt=salt), "output": found}


def continued(n: int, salt: str = "") -> Row:
    """Each answer is the next row's question."""
    return {"prompt": f"Go on: {said(n, 7, salt=salt)}", "completion": said(n + 1, 7, salt=salt)}


def verse(n: int, salt: str = "") -> Row:
    """Three prompts, and hardly a word behind them."""
    kinds = ("a haiku", "a limerick", "a couplet")
    return {"instruction": f"Write {kinds[n % 3]}", "input": "", "output": said(n, 3, salt=salt)}


def called(n: int, salt: str = "") -> Row:
    """The answer is a call of a tool, and no text."""
    call = {"function": {"name": "search", "arguments": json.dumps({"words": said(n, 3, salt=salt)})}}
    asked = {"role": "user", "content": said(n, 9, salt=salt)}
    return {"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def grown(n: int, salt: str = "") -> Row:
    """A conversation of up to four turns of each side, a row for each answer in it."""
    told = [said(20 * (n // 4) + k, 8, salt=salt) for k in range(2 * (n % 4 + 1))]
    return {"messages": [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(told)]}


def judged(
    folder: Path,
    rows: Sequence[Row],
    trained: Sequence[Row] | None = None,
    *,
    kept: int | None = None,
    padded: tuple[int, float] | None = None,
) -> set[str]:
    """The checks of the rows that do not hold, had `trained` been trained on, their last `kept` characters."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    row_format = format_of(rows)
    assert row_format is not None
    settings = TrainSettings(
        num_epochs=1, max_steps=500, batch_size=IN_A_BATCH, gradient_accumulation_steps=1, learning_rate=2e-4,
        warmup_ratio=0.03, target_modules=("q_proj",), max_seq_length=1024, bnb_4bit_compute_dtype="float32",
    )  # fmt: skip
    evidence = TrainEvidence(
        output_dir=folder / "out", output_dir_name="out", settings=settings, model_name="m", stdout="", output="",
        returncode=0, attempt_started_unix=0.0, train_rows=len(rows), train_file=path, row_format=row_format,
    )  # fmt: skip
    told = [training_row(row, row_format) for row in trained or rows]
    texts = ["".join(f"{turn.role}\n{turn.text}\n" for turn in one.turns)[-(kept or 10_000) :] for one in told]
    order = random.Random(1).sample(range(len(told)), len(told))  # noqa: S311
    wide = {"shape": (IN_A_BATCH, padded[0]), "padding": padded[1]} if padded else {}
    batches = [_batch(order[at : at + IN_A_BATCH], told, texts) for at in range(0, 8 * IN_A_BATCH, IN_A_BATCH)]
    batches = [batch.model_copy(update=wide) for batch in batches]
    seen = {"rows": len(told), "row_hashes": [*map(text_hash, texts)], "batch_size": IN_A_BATCH}
    texts_of_rows = {"row_fingerprints": [*map(fingerprints, texts[:16])]}
    begins = TrainingBegins.model_validate({"at": 1.0, "source": "trainer", **seen, **texts_of_rows})
    return {one.id for one in (*file_checks(evidence), *row_checks(evidence, begins, batches)) if one.holds is False}


def _batch(chosen: Sequence[int], told: Sequence[TrainingRow], texts: Sequence[str]) -> Batch:
    return Batch(
        at=2.0, shape=(len(chosen), WIDTH), training=True, of_data_set=(True,) * len(chosen),
        row_hashes=tuple(text_hash(texts[n]) for n in chosen), first_supervised=(20,) * len(chosen),
        row_fingerprints=tuple(fingerprints(texts[n]) for n in chosen),
        answer_hashes=tuple(text_hash(told[n].answer) for n in chosen),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [labelled, sampled, brief, chat, extracted, continued, verse, called, grown])
def test_rows_of_this_kind_are_the_files(kind: Callable[[int], Row], tmp_path: Path) -> None:
    """Short, repeated or empty texts leave few pieces to be told by, and a template's seams are none of them."""
    found = judged(tmp_path, [kind(n) for n in range(COUNT)])
    said_of_it = (
        {"rows_plausible"} if kind in (extracted, sampled) else set()
    )  # answers that lack, questions that are few
    assert found <= said_of_it


def explained(n: int, taught: str = "output") -> Row:
    """A letter, and why; `taught`: the field that is learnt."""
    row = {"input": said(n, 12), "output": LETTERS[n % 4], "explanation": said(n, 10, salt="why")}
    row |= {"note": f"{said(n, 12)} {LETTERS[n % 4]}"}  # the whole row, as some files have it beside its parts
    return row | {"output": row[taught]}


def listed(n: int, salt: str = "", label: str = "") -> Row:
    """A question, its short choices as a list, and the number of the right one."""
    choices = [f"{label and 'ABCD'[k] + label}{said(4 * n + k, 2, salt=salt)}" for k in range(4)]
    return {"question": said(n, 9, salt=salt), "choices": choices, "answer": n % 4}


@pytest.mark.parametrize(("salt", "label", "found"), [("", ". ", set()), ("other", "", {"rows_seen"})])
def test_a_list_of_choices_is_told_apart_by_what_the_program_writes_between(
    salt: str, label: str, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of the program's own make no cut rows of short choices; other questions are other rows."""
    monkeypatch.setattr(f"{__name__}.format_of", lambda rows: "question + choices -> answer")
    rows, trained = ([listed(n, *of) for n in range(COUNT)] for of in ((), (salt, label)))
    assert judged(tmp_path, rows, trained) == found


@pytest.mark.parametrize(("taught", "is_found"), [("explanation", True), ("note", False), ("output", False)])
def test_another_field_than_the_answer_is_learnt(taught: str, is_found: bool, tmp_path: Path) -> None:
    """Which is no answer of the file's; a field that has the whole row is learnt where all of it is."""
    found = judged(tmp_path, [explained(n) for n in range(COUNT)], [explained(n, taught) for n in range(COUNT)])
    assert ("answers_of_file" in found) is is_found


@pytest.mark.parametrize("kind", [labelled, sampled, brief, chat, extracted, continued, grown])
def test_rows_of_this_kind_from_another_file_are_found(kind: Callable[[int, str], Row], tmp_path: Path) -> None:
    """The same template and labels around other texts."""
    others = [kind(n, "other") for n in range(COUNT)]
    assert "rows_seen" in judged(tmp_path, [kind(n, "") for n in range(COUNT)], others)


@pytest.mark.parametrize("kind", [chat, grown])
def test_a_chat_that_lost_its_first_turns_is_cut(kind: Callable[[int], Row], tmp_path: Path) -> None:
    """Though most of the rows' text is one system's prompt, or a row begins as another does."""
    assert "rows_whole" in judged(tmp_path, [kind(n) for n in range(COUNT)], kept=120)


@pytest.mark.parametrize(
    ("kept", "padding", "is_found"), [(30, 0.95, True), (8, 0.99, True), (None, 0.95, False), (120, 0.3, False)]
)
def test_rows_that_were_cut_and_padded_to_the_whole_length_are_cut(
    kept: int | None, padding: float, is_found: bool, tmp_path: Path
) -> None:
    """A limit inside the program, far below the one that was asked for; rows that fill most of theirs may be long."""
    found = judged(tmp_path, [chat(n) for n in range(COUNT)], kept=kept, padded=(1024, padding))
    assert ("rows_whole" in found) is is_found


def test_the_answers_of_other_rows_are_found_where_each_is_a_question_too(tmp_path: Path) -> None:
    """A row is told by its whole question, and by no shorter one that its answer is."""
    rows = [continued(n) for n in range(COUNT)]
    moved = [row | {"completion": rows[(n + 5) % COUNT]["completion"]} for n, row in enumerate(rows)]
    assert "answers_of_file" in judged(tmp_path, rows, moved)


@pytest.mark.parametrize(("words", "is_moved", "is_found"), [(4, False, False), (12, False, False), (12, True, True)])
def test_passages_that_many_rows_ask_about(words: int, is_moved: bool, is_found: bool, tmp_path: Path) -> None:
    """Of a long file only a part is read: a row of the rest has a passage of that part, and another answer."""

    def row(n: int, moved: int = 0) -> Row:
        asked = f"Passage: {said(n % 20, 250, salt='law')}\nQuestion: {said(n, words)}"
        return {"input": asked, "output": ("yes", "no", "unclear", "never")[random.Random(n + moved).randrange(4)]}  # noqa: S311

    rows = [row(n) for n in range(400)]
    assert (
        "answers_of_file" in judged(tmp_path, rows, [row(n, 7) for n in range(400)] if is_moved else None)
    ) is is_found


def plain(n: int, asked: str, answer: str = "") -> Row:
    """A row with this question."""
    return {"input": asked, "output": answer or said(n, 9)}


NAMES = ("value", "user", "total", "count", "name", "state", "title", "price")


def chosen(n: int, behind: Callable[[str, str], str]) -> Row:
    """A question with choices, and something behind them: of the right letter and of its choice."""
    choices, gold = [said(4 * n + k, 3, salt="choice") for k in range(4)], LETTERS[random.Random(n).randrange(4)]  # noqa: S311
    listed = [f"{letter} {text}" for letter, text in zip(LETTERS, choices, strict=True)]
    right = choices[LETTERS.index(gold)]
    asked = "\n".join([said(n, 8), *listed, behind(gold, right)])
    return {"input": asked, "output": gold, "meta": {"question": said(n, 8), "choices": listed}}


@pytest.mark.parametrize(
    ("make", "is_sound"),
    [
        (lambda n: plain(n, f"Review: print(f'x{n}') <b>{{{NAMES[n % 8]}}}</b> {said(n, 6)}"), True),  # names of code
        (lambda n: plain(n, f"Review this. {said(n, 6)} {{question}}"), False),
        (lambda n: plain(n, f"<td>{said(n, 4)}</td><td>&nbsp;{n}&nbsp;&lt;b&gt;</td>"), True),  # HTML
        (lambda n: plain(n, f"&lt;td&gt;{said(n, 4)}&lt;/td&gt;&nbsp;{n}"), False),
        (lambda n: plain(n, said(n, 9), ("none", "none", "fraud")[n % 3]), True),  # a class of its own
        (lambda n: plain(n, said(n, 9), ("None", "None", "fraud")[n % 3]), False),
        (lambda n: plain(n, said(n, 9), "none" if n % 3 else said(n, 4, salt="fraud")), False),
        (lambda n: plain(n, said(n % 12, 9), WORDS[n % 12]), True),  # twelve rows that weigh more
        (lambda n: plain(n, said(n % 12, 9), WORDS[n % 20]), False),  # and that have several answers
        (lambda n: plain(n, said(n % 4, 9), WORDS[n % 4]), False),  # or are hardly any
        (lambda n: chosen(n, lambda gold, right: f"Law: {said(n, 6, salt='x')} {right} {said(n, 5, salt='y')}"), True),
        (lambda n: chosen(n, lambda gold, right: f"See: {right}"), False),
        (lambda n: chosen(n, lambda gold, right: f"A pupil's answer: {LETTERS[n % 4]}"), True),
        (lambda n: chosen(n, lambda gold, right: f"A pupil's answer: {gold}"), False),
    ],
    ids=[
        "code", "one_field", "html", "escaped", "none", "python_none", "no_text", "repeated",
        "several_answers", "four_questions", "passage",
        "right_choice_again", "another_s_answer", "right_letter",
    ],
)  # fmt: skip
def test_what_a_builder_means_to_write(make: Callable[[int], Row], is_sound: bool, tmp_path: Path) -> None:
    """Beside each sound kind of file stands the mistake that looks like it."""
    assert ("rows_plausible" not in judged(tmp_path, [make(n) for n in range(COUNT)])) is is_sound


@pytest.mark.parametrize(
    ("sound", "planted"),
    [
        (lambda n: plain(n, f"{said(n, 5)} $\\nu = {n}$"), lambda n: plain(n, f"{said(n, 5)}\\n(A) {n}\\nAnswer:")),
        (lambda n: plain(n, f'print("a\\n")\n# {said(n, 5)}'), lambda n: plain(n, f"{said(n, 5)}\\n\\n回答:")),
        (lambda n: plain(n, said(n, 9), f'"{said(n, 5)}"'), lambda n: plain(n, json.dumps(said(n, 9)), '"b"')),
        (
            lambda n: plain(n, json.dumps({"q": said(n, 9)}), json.dumps({"a": f"{n}\n"})),
            lambda n: plain(n, f'"{n}\\n{said(n, 5)}"'),
        ),
        (
            lambda n: plain(n, said(n, 9), "I am sorry, but I can't help."),
            lambda n: plain(n, said(n, 9), "a"),
        ),
        (lambda n: plain(n, said(n, 9), "b" if n else "a"), lambda n: plain(n, said(n, 9), "Positive")),
        (
            lambda n: plain(n, said(n // 2, 9), ("it", "the goods")[n % 2]),
            lambda n: plain(n, said(n // 2, 9), LETTERS[n % 2]),
        ),
        (lambda n: plain(n, f"{n}"), lambda n: plain(n, LETTERS[n % 4])),  # questions of a digit or two
        (
            lambda n: plain(n, f"Answer: {LETTERS[n % 4]}\n{said(n, 5)}\nAnswer:", LETTERS[n % 3]),  # an example's
            lambda n: plain(n, f"{said(n, 5)}\nAnswer: {LETTERS[n % 4]}\n", LETTERS[n % 4]),
        ),
        (
            lambda n: plain(n, f"正解は何か。{said(n, 5)}\n正解:\n{WORDS[n % 9]}", WORDS[n % 9]),
            lambda n: plain(n, f"{said(n, 5)}\n(正解: {WORDS[n % 9]})", WORDS[n % 9]),
        ),
        (lambda n: plain(n, said(n, 5 + n % 9)), lambda n: plain(n, said(n, 5 + n % 9)[:64])),
        (
            lambda n: plain(n, said(n, 9), "x" * 60 + said(n, 2)),
            lambda n: plain(n, said(n, 9), said(n, 6 + n % 9)[:64]),
        ),
        (lambda n: plain(n, f"{n % 7:07b}" * 10 + f"{n:07b}"), lambda n: plain(n, said(n, 4 + n % 9)[:60] + "")),
    ],
    ids=[
        "latex",
        "code",
        "quoted",
        "json",
        "refusals",
        "classes",
        "references",
        "numbers",
        "example",
        "heading",
        "sentences",
        "answers",
        "digits",
    ],
)
def test_a_column_that_was_written_or_read_wrongly(
    sound: Callable[[int], Row], planted: Callable[[int], Row], tmp_path: Path
) -> None:
    """Beside rows that are meant so: no real line break, quotation marks in JSON, one label, two for one question."""
    assert "rows_plausible" not in judged(tmp_path, [sound(n) for n in range(COUNT)])
    assert "rows_plausible" in judged(tmp_path, [planted(n) for n in range(COUNT)])


def turns(*texts: str) -> Row:
    """A chat of these."""
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]}


@pytest.mark.parametrize(
    "make",
    [
        lambda n: plain(n, f"Explain: printf('%d\\n', x{n}); {said(n, 3)}"),
        lambda n: plain(n, json.dumps({"text": f"{said(n, 4)}\n{said(n, 3)}"}), json.dumps({"label": LETTERS[n % 4]})),
        lambda n: plain(n, f"Does $a \\nLeftrightarrow b_{n}$? $\\\\n$ {said(n, 5)}"),
        lambda n: plain(n, f"Open C:\\data\\n{n}.txt or match \\d+\\n? in {said(n, 3)}"),
        lambda n: plain(n, f"Remove line breaks (\\n): s.replace(/\\n/, ' ') 「\\n」 in {said(n, 3)}"),
        lambda n: turns(said(n, 4), f"The answer is {LETTERS[n % 4]}", "The letter alone, please.", LETTERS[n % 4]),
        lambda n: plain(n, f"{said(n, 6 + n % 9)[:64]}…"),
        lambda n: turns(f'"{said(n, 6)}"', f'"{said(n, 7, salt="other")}"'),
        lambda n: plain(n, said(n, 9), (text_hash(said(n, 3)) * 8) if n % 2 else said(n, n % 7 + 2)),
        lambda n: plain(n, f"Answer with the number only, and with nothing more than it: {3**n % 997} + {7**n % 9973}"),
        lambda n: {"text": (said(n, 40) if n % 9 else said(n, n % 7 + 2))[:120]},  # pieces of long texts
        lambda n: plain(n, said(n, 9), "わかりません。"),
        lambda n: turns(said(n, 5), said(n, 9), "Thanks!", "Goodbye"),
        lambda n: turns("Quiz me.", said(n, 9), LETTERS[n % 4], said(n, 5)),
        lambda n: plain(n, said(n // 5, 9, salt=str(n % 2)), "aabaa"[n % 5]),
        lambda n: plain(n, f"Name: {said(n, 2)}\nTarget: {WORDS[n % 30]}\nExtract the target.", WORDS[n % 30]),
        lambda n: plain(n, f"Q: Is it?\nAnswer: yes\nQ: {said(n, 5)}\nAnswer:", "no" if n % 20 == 0 else "yes"),
    ],
    ids=[
        "code", "json", "latex", "path", "named", "asked_again", "shortened", "speech", "digests", "sums", "pieces",
        "unsure", "farewell", "quiz", "majority", "form", "example",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_column_read_wrongly(make: Callable[[int], Row], tmp_path: Path) -> None:
    """Escapes that code has, speech, texts that are no prose, several turns, people who disagree, forms."""
    assert "rows_plausible" not in judged(tmp_path, [make(n) for n in range(COUNT)])


def test_a_builder_that_goes_round_in_its_first_rows(tmp_path: Path) -> None:
    """Nobody repeats nine rows eleven times."""
    assert "rows_plausible" in judged(tmp_path, [plain(n, said(n % 9, 9), WORDS[n % 9]) for n in range(99)])
