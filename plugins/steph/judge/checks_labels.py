"""Checks of the tokens that a training was seen to learn: labels, their ends, BOS, padding. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from steph.base.messages import say
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.training_seen import Seen
from steph.judge.witness import Batch
from steph.record.values import Check

MOST_PADDING = 0.5
TOKENS_SUPERVISED = CheckKind("tokens_supervised", "H-2", FAIL, trap=21, core=True)
ANSWER_SUPERVISED = CheckKind("answer_supervised", "H-2", WARN, optional=True)
END_SUPERVISED = CheckKind("end_supervised", "H-2", WARN, trap=20, optional=True)
PROMPT_UNLABELLED = CheckKind("prompt_unlabelled", "H-2", WARN, optional=True, needs=(Needs.ANSWER_LABELS,))
ONE_BOS = CheckKind("one_bos", "H-2", WARN, optional=True)
PADDING_BOUNDED = CheckKind("padding_bounded", "H-2", INFO, trap=11, optional=True)


def label_checks(seen: Seen) -> tuple[Check, ...]:
    known = [batch for batch in seen.batches if batch.supervised is not None]
    return (
        _supervised_check(known),
        _answer_check(known),
        _end_check(known),
        _prompt_check(known),
        _bos_check(seen.batches),
        _padding_check(seen.batches),
    )


def _supervised_check(batches: Sequence[Batch]) -> Check:
    counts = [count for batch in batches for count in batch.supervised or ()]
    if not counts:
        return TOKENS_SUPERVISED.check(None, "none")
    if any(batch.shifted for batch in batches):
        return TOKENS_SUPERVISED.check(False, "shifted")
    if any(batch.unshifted for batch in batches):
        return TOKENS_SUPERVISED.check(False, "unshifted")
    lost = sum(batch.unpredicted or 0 for batch in batches)
    if lost * 2 > len(counts):
        return TOKENS_SUPERVISED.check(False, "unpredicted", rows=len(counts), lost=lost)
    bare = counts.count(0)
    counted = say("check.tokens_supervised.counted", rows=len(counts), tokens=sum(counts), bare=bare)
    if bare * 2 > len(counts) or not sum(counts):
        return TOKENS_SUPERVISED.check(False, counted)
    if any(batch.aligned is False for batch in batches):
        return TOKENS_SUPERVISED.check(False, "astray", counted=counted, severity=WARN)
    # one may be the end token, which a mask that is made of the tokens hides where padding is the same
    padded = sum(count > 1 for batch in batches for count in batch.labelled_padding or ())
    if padded * 4 >= len(counts):
        return TOKENS_SUPERVISED.check(False, "padding", counted=counted, padded=padded, severity=WARN)
    return TOKENS_SUPERVISED.check(not bare, counted, severity=WARN if bare else None)


def _answer_check(batches: Sequence[Batch]) -> Check:
    """Labels from the row's beginning that leave several tokens at its end are on the prompt."""
    rows = [
        (first, tail, ends)
        for batch in batches
        if not batch.packed
        for first, tail, ends in zip(
            batch.first_supervised or (), batch.unsupervised_tail or (), batch.ends_with_end_token or (), strict=False
        )
        if first is not None and tail is not None
    ]
    if not rows:
        return ANSWER_SUPERVISED.check(None, "none")
    on_prompt = sum(first <= 2 and tail >= 2 and not ends for first, tail, ends in rows)
    return ANSWER_SUPERVISED.check(on_prompt * 2 <= len(rows), "counted", rows=len(rows), on_prompt=on_prompt)


def _prompt_check(batches: Sequence[Batch]) -> Check:
    """Labels from a row's beginning on are on its prompt, too; the first token may be a BOS that nothing predicts."""
    firsts = [first for batch in batches for first in batch.first_supervised or () if first is not None]
    if not firsts:
        return PROMPT_UNLABELLED.check(None, "none")
    on_prompt = sum(first <= 1 for first in firsts)
    return PROMPT_UNLABELLED.check(on_prompt * 2 <= len(firsts), "counted", rows=len(firsts), on_prompt=on_prompt)


def _end_check(batches: Sequence[Batch]) -> Check:
    ends = [
        one
        for batch in batches
        if not batch.packed
        for one, count in zip(batch.ends_with_end_token or (), batch.supervised or (), strict=False)
        if one is not None and count
    ]
    if not ends:
        return END_SUPERVISED.check(None, "none")
    return END_SUPERVISED.check(sum(ends) * 2 >= len(ends), "counted", rows=len(ends), labelled=sum(ends))


def _bos_check(batches: Sequence[Batch]) -> Check:
    known = [(batch.double_bos, batch.shape[0]) for batch in batches if batch.double_bos is not None and batch.shape]
    rows, double = sum(rows for _, rows in known), sum(count for count, _ in known)
    if not rows:
        return ONE_BOS.check(None, "none")
    return ONE_BOS.check(double * 2 <= rows, "counted", rows=rows, double=double)


def _padding_check(batches: Sequence[Batch]) -> Check:
    shares = [batch.padding for batch in batches if batch.padding is not None]
    if not shares:
        return PADDING_BOUNDED.check(None, "none")
    share = sum(shares) / len(shares)
    return PADDING_BOUNDED.check(share <= MOST_PADDING, "share", batches=len(shares), percent=100 * share)
