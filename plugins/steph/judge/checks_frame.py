"""Checks of the prompts that an evaluation was seen to give: whole questions, nothing beside them, as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steph.base.messages import say
from steph.base.text import one_line
from steph.contract.results import Row
from steph.judge.answering import PART_OF_QUESTION, Answering, Call, asked_alone
from steph.judge.checks_prompts import LEAST_ADDED, LEAST_LOST, asked_share, frame_added, frame_lost, text_beside
from steph.judge.kinds import FAIL, WARN, CheckKind, Needs
from steph.judge.witness import Batch, Generation, TrainingBegins, Witness
from steph.record.values import Check

LEAST_LEADS = 4  # rows whose learnt answers stand behind the same header
WHOLE_QUESTION = 0.999
PROMPTS_HOLD_QUESTIONS = CheckKind(
    "prompts_hold_questions", "H-3", FAIL, trap=27, optional=True, needs=(Needs.QUESTIONS,)
)
PROMPTS_BARE = CheckKind("prompts_bare", "H-3", WARN, optional=True, needs=(Needs.DATASET, Needs.QUESTIONS))
FRAME_AS_TRAINED = CheckKind("frame_as_trained", "H-3", WARN, trap=6, optional=True)


def questions_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """Every question of the results, with all its choices, was in a prompt."""
    prompts = list(dict.fromkeys(answer.prompt for answer in seen.counting if answer.prompt))
    best = [
        max((share for prompt in prompts if (share := asked_share(prompt, row)) is not None), default=None)
        for row in (asked_alone(seen.evidence, row) for row in rows if row.question)
    ]
    known = [share for share in best if share is not None]
    if not known or seen.unseen_calls:
        return PROMPTS_HOLD_QUESTIONS.check(None, say("evaluation.prompts_incomparable"))
    lost = sum(share < PART_OF_QUESTION for share in known)
    edited = sum(share < WHOLE_QUESTION for share in known) - lost
    severity = WARN if edited and not lost else None
    return PROMPTS_HOLD_QUESTIONS.check(
        not lost and not edited, "compared", severity=severity, questions=len(known), lost=lost, edited=edited
    )


def bare_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """Without retrieval a prompt holds its question, examples and what all have: no law's text, no passage."""
    if seen.evidence.settings.use_rag:
        return PROMPTS_BARE.check(None, "with_rag")
    prompts = [answer.prompt for answer in seen.counting if answer.prompt]
    beside = text_beside(prompts, rows, seen.evidence.dataset)
    if beside is None:
        return PROMPTS_BARE.check(None, say("evaluation.prompts_incomparable"))
    return PROMPTS_BARE.check(
        beside.prompts * 2 <= len(prompts),
        "text_of_field" if beside.field else "text_beside",
        prompts=len(prompts),
        with_text=beside.prompts,
        field=one_line(beside.field, 40),
    )


def frame_check(seen: Answering, asked: Sequence[Row]) -> Check:
    """What all trained rows have before their question stands in the prompts, and the other way round.

    A template's tokens too. Passages, an order to reason and a harness's own examples are what the evaluation adds.
    """
    trained = seen.evidence.training_witness or Witness()
    calls = {id(answer.call): answer.call for answer in seen.counting}.values()
    batches = trained.of(Batch)
    in_rows = [count for fact in batches for count in fact.special_tokens or ()]
    in_prompts = [count for call in calls for count in call.special_tokens or ()]
    if seen.wants_adapter and in_rows and in_prompts:
        if min(in_rows) > 0 and not any(in_prompts):
            return FRAME_AS_TRAINED.check(False, "template_in_rows_only")
        if min(in_prompts) > 0 and not any(in_rows):
            return FRAME_AS_TRAINED.check(False, "template_in_prompts_only")
    if seen.wants_adapter and not seen.evidence.settings.use_cot and _lacks_lead(batches, calls):
        return FRAME_AS_TRAINED.check(False, "no_lead")
    rows: list[tuple[str, ...]] = []
    for begins in trained.of(TrainingBegins)[-1:]:
        rows += begins.row_fingerprints or ()
    if not rows:
        rows += [row for fact in batches for row in fact.row_fingerprints or ()]
    prompts = [answer.prompt for answer in seen.counting if answer.prompt]
    lost, settings = frame_lost(rows, prompts), seen.evidence.settings
    is_own = not settings.use_cot and seen.evidence.form.format != "lm_eval"
    added = frame_added(prompts, rows, asked, are_cut=_are_cut(batches)) if is_own else None
    if (lost is None and added is None) or not seen.wants_adapter or settings.use_rag:
        return FRAME_AS_TRAINED.check(None, "incomparable")
    if (lost or 0) < LEAST_LOST and (added or 0) >= LEAST_ADDED:
        return FRAME_AS_TRAINED.check(False, "added", prints=added)
    if lost is None:
        return FRAME_AS_TRAINED.check(True, "in_rows")
    if lost < LEAST_LOST:
        return FRAME_AS_TRAINED.check(True, "in_prompts")
    return FRAME_AS_TRAINED.check(False, "lost", prints=lost)


def _lacks_lead(batches: Sequence[Batch], calls: Iterable[Call]) -> bool:
    """Whether the header that stands right before every learnt answer is at no prompt's end."""
    leads = [lead for fact in batches if not fact.packed for lead in fact.lead_hashes or ()]
    ends = [end for call in calls if isinstance(call, Generation) for end in call.lead_hashes or ()]
    if len(leads) < LEAST_LEADS or len(set(leads)) > 1 or leads[0] is None or not ends:
        return False
    return not any(leads[0] in (end or ()) for end in ends)


def _are_cut(batches: Sequence[Batch]) -> bool:
    """Whether most batches are as wide as the widest: rows were cut there, or filled up."""
    widths = [fact.shape[1] for fact in batches if len(fact.shape) > 1]
    return bool(widths) and 2 * widths.count(max(widths)) > len(widths)
