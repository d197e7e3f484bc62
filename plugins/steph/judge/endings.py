"""How prompts end against how the learnt rows end before their answers, by hashes of each two tokens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from steph.base.terms import Severity
from steph.contract.results import Row
from steph.judge.answering import Answering, answers_to
from steph.judge.kinds import FAIL
from steph.judge.witness import Batch

LEAST_LEADS = 4  # rows whose learnt answers stand behind the same header
LEAST_SAME = 3  # pairs before a place where two endings differ
LONGEST_LABEL = 3  # pairs: two tokens between two others


def other_ending(seen: Answering, batches: Sequence[Batch], asked: Sequence[Row]) -> tuple[str | None, Severity | None]:
    """How prompts end otherwise than the learnt rows before their answers, by hashes of each two tokens there.

    The header of the answer's turn lacks, the answer was begun in a way that was never learnt, something was put in
    before the header, or what all rows have there was changed. What is put in and changes with the right answer is the
    right answer. Thoughts are let pass.
    """
    whole = [fact for fact in batches if not fact.packed]
    leads = [lead for fact in whole for lead in fact.lead_hashes]
    begins = {begin for fact in whole for begin in fact.begin_hashes if begin}
    prompts = [answer for answer in seen.counting if answer.ending]
    if len(leads) < LEAST_LEADS or not all(leads) or len({lead[-1] for lead in leads}) > 1 or not prompts:
        return None, None
    header = leads[0][-1]
    if not any(header in prompt.ending for prompt in prompts):
        return "no_lead", None
    prompts = [prompt for prompt in prompts if header in prompt.ending and not prompt.thinks]
    if not begins or seen.evidence.settings.use_rag or seen.evidence.form.format == "lm_eval":
        return None, None
    begun = [prompt.ending[_last(prompt.ending, header) + 1 :] for prompt in prompts]
    unlearnt = [own for own in begun if own and not any(own[: len(one)] == one[: len(own)] for one in begins)]
    if 2 * len(unlearnt) > len(seen.counting):
        return "prefix", None
    alike = takewhile(lambda pairs: len({*pairs}) == 1, zip(*(lead[::-1] for lead in leads), strict=False))
    common = tuple(pairs[0] for pairs in alike)[::-1]
    added = [_put_in(common, prompt.ending[: _last(prompt.ending, header) + 1]) for prompt in prompts]
    if 2 * sum(map(bool, added)) <= len(seen.counting):
        changed = [_is_changed(common, prompt.ending[: _last(prompt.ending, header) + 1]) for prompt in prompts]
        return "changed" if 2 * sum(changed) > len(seen.counting) else None, None
    of_prompt = dict(zip((prompt.prompt for prompt in prompts), added, strict=True))
    of_gold = {
        (row.correct_answer, of_prompt[answer.prompt])
        for row in asked
        for answer in answers_to(prompts, row)
        if answer.prompt
    }
    golds, texts = {gold for gold, _ in of_gold}, {text for _, text in of_gold}
    is_gold = len(golds) == len(texts) == len(of_gold) > 1 and max(map(len, texts)) <= LONGEST_LABEL
    return ("answer", FAIL) if is_gold else ("put_in", None)


def _last(values: Sequence[str], value: str) -> int:
    return max(n for n, one in enumerate(values) if one == value)


def _put_in(common: Sequence[str], ending: Sequence[str]) -> tuple[str, ...]:
    """What an ending has between the two parts of a longer one, which are both there; nothing where it has it whole."""
    same = _same_at_end(common, ending)
    before, rest = common[: max(0, len(common) - same - 1)], ending[: len(ending) - same]
    if same == len(common) or not before or before[-1] not in rest:
        return ()
    return tuple(rest[_last(rest, before[-1]) + 1 :])


def _is_changed(common: Sequence[str], ending: Sequence[str]) -> bool:
    """Whether an ending has what stands in another both before and behind a place, and not what stands between."""
    same = _same_at_end(common, ending)
    before, rest = tuple(common[: len(common) - same]), tuple(ending[: len(ending) - same])
    runs = {rest[n : n + LEAST_SAME] for n in range(len(rest) - LEAST_SAME + 1)}
    return any(before[n : n + LEAST_SAME] in runs for n in range(len(before) - LEAST_SAME + 1))


def _same_at_end(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], other[::-1], strict=False)))
