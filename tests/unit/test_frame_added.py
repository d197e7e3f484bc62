"""What prompts have in common and no trained row has is a frame that was not trained."""

from __future__ import annotations

from steph.base.fingerprint import fingerprints
from steph.contract.results import Row
from steph.judge.checks_prompts import LEAST_ADDED, frame_added

ORDER = (
    "あなたは日本の法令に詳しい専門家です。次の設問の選択肢から正しいものを一つ選び、その記号だけを書いてください。\n"
)
EXAMPLE = "例題: 倉庫証券を発行した会社は、寄託物の返還を請求する者に対し、次のどの書面を求めるか。答えはbである。\n"
TOPICS = ("採石", "温泉", "旅館", "質屋", "倉庫", "漁業")
QUESTIONS = tuple(f"{what}法第三十一条の許可を受けた者が、その営業を廃止するときの届出の期限" for what in TOPICS)
ASKED = tuple(Row(question=text, is_correct=False) for text in QUESTIONS)


def _texts(before: str, behind: str = "") -> list[tuple[str, ...]]:
    return [tuple(fingerprints(f"{before}{question}{behind}")) for question in QUESTIONS]


def test_examples_that_no_row_has_are_found() -> None:
    """The rows have the order and not the examples."""
    added = frame_added(_texts(ORDER + EXAMPLE), _texts(ORDER, "a"), ASKED)
    assert added is not None
    assert added >= LEAST_ADDED


def test_the_same_frame_adds_nothing() -> None:
    """Whatever the rows have behind it, and where only some of them have it."""
    rows = _texts(ORDER + EXAMPLE, "a")
    assert frame_added(_texts(ORDER + EXAMPLE), rows, ASKED) == 0
    assert frame_added(_texts(ORDER + EXAMPLE), [*_texts(ORDER)[:5], rows[0]], ASKED) == 0


def test_what_the_questions_share_is_theirs() -> None:
    """Questions of one law begin alike; rows of another law do not, and are no other frame for that."""
    rows = [
        tuple(fingerprints(f"鉄道の事業を営む者が線路を{n}度に分けて改築するときの認可の申請の要件")) for n in range(6)
    ]
    assert frame_added(_texts(""), rows, ASKED) is None


def test_rows_that_were_cut_are_no_other_frame() -> None:
    """Where all rows are as wide as the limit, their beginnings may have been cut off."""
    headless = _texts("", "a")
    assert (frame_added(_texts(ORDER + EXAMPLE), headless, ASKED) or 0) >= LEAST_ADDED
    assert frame_added(_texts(ORDER + EXAMPLE), headless, ASKED, are_cut=True) is None


def test_a_middle_that_was_cut_is_no_other_frame() -> None:
    """Rows that are cut keep their beginning and end, or the end alone; what stands behind a question was added."""
    order = tuple(fingerprints(ORDER))
    halved = [order + tuple(fingerprints(f"{question}a")) for question in QUESTIONS]
    prompts, shown = _texts(ORDER + EXAMPLE), _texts(ORDER + EXAMPLE, EXAMPLE[::-1])
    assert (frame_added(prompts, halved, ASKED, are_cut=True) or 0) >= LEAST_ADDED
    assert frame_added(prompts, halved, ASKED, are_cut=True, are_full=True) is None
    assert (frame_added(shown, halved, ASKED, are_cut=True, are_full=True) or 0) >= LEAST_ADDED
