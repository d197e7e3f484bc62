"""Checks of an evaluation by what was seen in its own process: the core of H-3. Reads the data set, changes nothing.

A call of `generate`, or a scoring forward, has the adapter where H-2's file is active in it, or was merged into the
weights that answered. A row of the results is held against the calls by hashes: of its response, and of its question in
the prompt. Base and tuned answers to the same questions may come from one process; those that count are in the results.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import product

from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import cached_text_hash, holds, normal_form, text_hash
from steph.base.messages import say
from steph.base.text import one_line
from steph.contract.questions import (
    NUMBERINGS,
    Choices,
    as_in_dataset,
    as_label,
    choices_of,
    key_texts,
    plain_label,
    question_key,
    repeats_question,
)
from steph.contract.results import Results, Row
from steph.judge.checks_prompts import asked_order, asked_share, order_by_lines
from steph.judge.checks_seen import (
    ADAPTER_AS_SAVED,
    ANSWERS_FREE,
    BASE_UNCHANGED,
    MASK_AND_POSITIONS,
    NO_OWN_CODE,
    PROMPTS_AS_RECORDED,
    TEMPLATE_ONCE,
    answering_weight_checks,
    inputs_check,
    recorded_prompts_check,
    steering_check,
    template_check,
)
from steph.judge.checks_setup import model_check, place_checks, quantised_check, why_blind, why_unseen
from steph.judge.checks_trained_use import (
    ADAPTER_ACTIVE,
    BASE_AS_TRAINED,
    FRAME_AS_TRAINED,
    LABEL_FORMS,
    LEAST_PRINTS,
    PROMPTS_BARE,
    PROMPTS_HOLD_QUESTIONS,
    SAME_TEXT,
    SCALING_AS_TRAINED,
    SCORED_AS,
    SPECIAL,
    Answer,
    Answering,
    active_check,
    answers_saying,
    answers_to,
    asked_alone,
    asks,
    bare_check,
    base_check,
    frame_check,
    given_by,
    questions_check,
    scaling_check,
    scored_for,
)
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures, Needs
from steph.judge.reading import LETTERS, stated_labels
from steph.judge.witness import Batch, Blind, Generation, ModelLoaded, Raised, Witness
from steph.record.values import Check

MOST_UNSTOPPED = 0.5
HALF, SEAM_PRINTS = 0.5, 6  # of 22 pieces across two seams some three are kept, more than six once in seventy times
MANY_ANSWERS = 2  # for each row of the results
_RESPONSES = (Needs.RESPONSES,)

ANSWERS_GENERATED = CheckKind("answers_generated", "H-3", FAIL, trap=2, core=True)
RESPONSES_GENERATED = CheckKind("responses_generated", "H-3", FAIL, trap=23, optional=True, needs=_RESPONSES)
ANSWERS_LIKELIEST = CheckKind("answers_likeliest", "H-3", FAIL, optional=True, needs=(Needs.QUESTIONS,))
ANSWERS_GREEDY = CheckKind("answers_greedy", "H-3", WARN, optional=True, needs=_RESPONSES)
ANSWERS_STOPPED = CheckKind("answers_stopped", "H-3", WARN, trap=28, quality=True, optional=True, needs=_RESPONSES)
WITNESSED_ANSWERS = (
    *(ANSWERS_GENERATED, ADAPTER_ACTIVE, SCALING_AS_TRAINED, BASE_AS_TRAINED, PROMPTS_HOLD_QUESTIONS, PROMPTS_BARE),
    *(FRAME_AS_TRAINED, RESPONSES_GENERATED, ANSWERS_GREEDY, ANSWERS_STOPPED, ANSWERS_FREE, PROMPTS_AS_RECORDED),
    *(ADAPTER_AS_SAVED, MASK_AND_POSITIONS, TEMPLATE_ONCE, BASE_UNCHANGED, NO_OWN_CODE, ANSWERS_LIKELIEST),
)


def witnessed_answer_checks(evidence: EvalEvidence, results: Results | None) -> tuple[Check, ...]:
    """All checks of what was seen of an evaluation; where nothing was seen, they say why."""
    told = {row.response is None for row in results.results} if results else set()
    seen = Answering(
        evidence, evidence.witness or Witness(), asks_both=len(told) > 1 and evidence.form.format != "lawqa"
    )
    generated = _generated_check(seen, len(results.results) if results else evidence.settings.samples)
    # a row that is an error by its own word has no answer that could have been seen
    rows = tuple(row for row in results.results if row.predicted_answer != "error") if results else ()
    if not seen.calls:
        why = say("evaluation.no_answers_seen")
        loaded = [fact for fact in seen.witness.of(ModelLoaded) if fact.generates]
        return (
            generated,
            *(kind.check(None, why) for kind in WITNESSED_ANSWERS[1:]),
            model_check(seen.witness, evidence.model_name, ()),
            quantised_check(evidence.settings.load_in_4bit, loaded[-1:], is_unsaid=evidence.is_4bit_unsaid),
        )
    worked = tuple({id(answer.call): answer.call for answer in seen.counting}.values())
    generations = [call for call in worked if isinstance(call, Generation)]
    with_adapter = [call for call in generations if seen.wants_adapter and seen.has_adapter(call)]
    return (
        generated,
        active_check(seen, rows),
        scaling_check(seen),
        base_check(seen, generations),
        _order_check(seen, rows) or questions_check(seen, rows),
        bare_check(seen, rows),
        frame_check(seen, rows),
        _responses_check(seen, rows),
        _greedy_check(seen, rows),
        _stopped_check(seen),
        steering_check(generations, says_labels=_says_labels(evidence, results)),
        recorded_prompts_check(rows, seen.prompts_by_line),
        *answering_weight_checks(generations, with_adapter, seen.adapter_folder),
        inputs_check(generations),
        template_check(generations),
        _likeliest_check(seen, rows),
        model_check(seen.witness, evidence.model_name, worked, seen.evidence.merged_folders),
        quantised_check(evidence.settings.load_in_4bit, worked, is_unsaid=evidence.is_4bit_unsaid),
        *place_checks(worked, on_gpu=evidence.on_gpu),
    )


def _says_labels(evidence: EvalEvidence, results: Results | None) -> bool:
    """Whether the responses to a choice are nothing but labels, that vary and are not all the right ones."""
    if results is None or evidence.form.format == "lawqa" or evidence.form.kind != "choice":
        return False
    said = [plain_label(row.response or "") for row in results.results]
    is_own = any(one != row.correct_answer for one, row in zip(said, results.results, strict=True))
    return is_own and len({*said}) > 1 and {*said} <= {*results.labels}


def as_asked(seen: Answering, rows: Sequence[Row]) -> tuple[tuple[Row, ...], int]:
    """The rows by the letters that their prompts had, and how many count a letter as if choices had not moved.

    Whoever shuffles choices gives a letter back to the choice that it was said for, or moves the right one along: one
    such row speaks for all. Without a data set the rows' own choices are in the order that counts.
    """
    dataset = seen.evidence.questions or ()
    known = {one.key: (key_texts(one.key)[1], one.answer) for one in dataset}
    found, taken, is_sound = [*rows], 0, False
    for n, row in enumerate(rows):
        (key,) = as_in_dataset([question_key(row.question, row.choices)], dataset)
        of_row = ((), "") if dataset else (choices_of(row.choices).texts, plain_label(row.correct_answer))
        choices, gold = known.get(key, of_row)
        labels = next((one[: len(choices)] for one in NUMBERINGS if gold in one[: len(choices)]), ())
        own = row.model_copy(update={"choices": list(choices)})
        for answer in answers_to(seen.counting, own) if labels else ():
            order = order_by_lines(answer.lines or (), choices) or asked_order(answer.prompt or (), choices)
            said = _said(answer, row, labels)
            right = labels.index(gold)
            if order is None or said is None or order[said] == said:
                continue
            if row.predicted_answer == labels[order[said]]:
                letters = {"predicted_answer": labels[said], "correct_answer": labels[order.index(right)]}
                found[n], is_sound = (
                    row.model_copy(update={**letters, "choices": row.choices and [choices[k] for k in order]}),
                    True,
                )
            elif plain_label(row.correct_answer) != gold:
                is_sound = True
            else:  # unless what is right did not move
                taken += order[right] != right and row.predicted_answer == labels[said]
    return tuple(found), 0 if is_sound else taken


def _order_check(seen: Answering, rows: Sequence[Row]) -> Check | None:
    """A finding where choices were asked in another order than the data set's and letters count as they were said.

    The rows alone don't tell whether the right letter, which they record, has moved along.
    """
    taken = as_asked(seen, rows)[1]
    of_rows, severity = ("shuffled", None) if seen.evidence.questions else ("shuffled_from_rows", WARN)
    counts: Figures = {"questions": len(rows), "taken": taken}
    return PROMPTS_HOLD_QUESTIONS.check(False, of_rows, severity=severity, **counts) if taken else None


def _said(answer: Answer, row: Row, labels: Sequence[str]) -> int | None:
    """The place of the one label that a response, or its first or last line, is; or that it names as its answer."""
    found = [n for n, one in enumerate(labels) if _says_other(answer, "", {one})]
    if not found and answers_saying([answer], row.response or ""):
        found = [*map(labels.index, stated_labels(row.response or "", labels))]
    return found[0] if len(found) == 1 else None


def _generated_check(seen: Answering, wanted: int) -> Check:
    raised = max(len(seen.witness.of(Raised)), seen.witness.totals("raised"))
    asked = seen.evidence.settings.samples
    has_rows = wanted > 0
    if has_rows or seen.evidence.form.kind != "metric":  # a figure alone may come of texts in windows
        wanted = min(wanted or asked, asked)
    answered = sum(call.rows for call in seen.calls) + seen.unseen_calls
    if not seen.calls and not raised:
        holds_, why = why_unseen(seen.evidence.witness, "answering")
        return ANSWERS_GENERATED.check(holds_, why)
    is_enough = answered >= wanted
    if not is_enough and not raised and seen.witness.of(Blind):
        return ANSWERS_GENERATED.check(None, why_blind(seen.witness, "answering"))
    error = next((one_line(fact.error, 80) for fact in seen.witness.of(Raised) if fact.error), "")
    severity = WARN if (is_enough and raised) or not (is_enough or has_rows) else None
    counts: Figures = {"questions": wanted or asked, "answered": answered, "raised": raised, "error": error}
    found = "with_error" if error else "answered"
    return ANSWERS_GENERATED.check(is_enough and not raised, found, severity=severity, **counts)


def _responses_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """A response that no call gave, though all that could have given it are known, was not generated here."""
    labels = {row.correct_answer for row in rows} | set(LETTERS)
    compared = made_up = made_up_long = cut = astray = 0
    for row in rows:
        text = SPECIAL.sub("", row.response or "")
        candidates = [answer for answer in answers_to(seen.answers, row) if isinstance(answer.call, Generation)]
        if not normal_form(text) or not candidates or any(not answer.hashes for answer in candidates):
            continue
        is_long = len(fingerprints(text)) >= LEAST_PRINTS
        # a short text may be taken out of a long answer
        if not is_long and any((answer.new_tokens or 0) > 2 * len(text) + 4 for answer in candidates):
            cut += any(answer.first == text_hash(text) for answer in candidates)
            continue
        compared += 1
        # a reasoning and the answer that was asked for after it, or a whole prompt with its answer
        echoes = repeats_question(text, row.question, row.choices)
        parts = {one for own in candidates for one in (*(own.response or ()), *((echoes and own.prompt) or ()))}
        held = (holds(parts, text) or 0) if is_long else 0
        # where it was joined of several, the pieces across a seam are nobody's
        lost = (1 - held) * len(fingerprints(text)) if len(candidates) > 1 else float("inf")
        if not given_by(seen, row) and held < SAME_TEXT and (held < HALF or lost > SEAM_PRINTS):
            made_up, made_up_long = made_up + 1, made_up_long + is_long
            # a letter may have been written down otherwise than it was said
            said = normal_form(text).lower()
            label = next(
                (one for one in labels for form in LABEL_FORMS if normal_form(form.format(one)).lower() == said), ""
            )
            if is_long or (label and all(_says_other(answer, label, labels) for answer in candidates)):
                others = [asked_alone(seen.evidence, one) for one in rows if one is not row]
                given = (one for one in answers_saying(seen.answers, text) if one.prompt and one not in candidates)
                astray += any(any(asks(answer, other) for other in others) for answer in given)
    if 2 * cut > len(rows) and seen.are_all_seen and not made_up:
        return RESPONSES_GENERATED.check(False, "first_characters", severity=WARN, questions=len(rows), cut=cut)
    if not compared or not seen.are_all_seen:
        return RESPONSES_GENERATED.check(None, "incomparable")
    is_all = (made_up == compared and made_up_long == made_up) or (astray > 1 and 2 * astray > compared)
    severity = WARN if made_up and not is_all else None
    counts: Figures = {"compared": compared, "made_up": made_up, "astray": astray}
    found = "of_other_questions" if astray else "compared"
    return RESPONSES_GENERATED.check(not made_up, found, severity=severity, **counts)


def _greedy_check(seen: Answering, rows: Sequence[Row]) -> Check:
    calls = [answer.call for answer in seen.counting]
    known = [call for call in calls if isinstance(call, Generation) and call.do_sample is not None]
    if not known or seen.evidence.settings.ensemble > 1:
        return ANSWERS_GREEDY.check(None, "unseen")
    # one of several answers to a prompt can be picked
    by_prompt: dict[str, list[str]] = {}
    for answer in seen.counting:
        if answer.prompt_hash and answer.hashes:
            by_prompt.setdefault(answer.prompt_hash, []).append(answer.hashes[0])
    chosen = sum(len(hashes) for hashes in by_prompt.values() if len({*hashes}) > 1)
    found = {
        "evaluation.sampled": sum(bool(call.do_sample) for call in known),
        "evaluation.by_beams": sum((call.num_beams or 1) > 1 for call in known),
        "evaluation.in_training_mode": sum(bool(call.training) for call in known),
        "evaluation.one_of_several": chosen if len(seen.counting) > len(rows) else 0,
    }
    troubles = [say(what, rows=count) for what, count in found.items() if count]
    if troubles:
        is_repeatable = {what for what, count in found.items() if count} == {"evaluation.by_beams"}
        is_retried = _is_until_right(seen, rows)
        seems, severity = ("until_right", FAIL) if is_retried else ("otherwise", INFO if is_repeatable else None)
        return ANSWERS_GREEDY.check(False, seems, severity=severity, rows=len(known), troubles=troubles)
    if _is_until_right(seen, rows, is_same_prompt=False):
        again = [say("evaluation.one_of_several", rows=len(seen.counting) - len(rows))]
        return ANSWERS_GREEDY.check(False, "until_right", rows=len(known), troubles=again)
    prompts = {answer.prompt_hash for answer in seen.counting if answer.prompt_hash}
    if rows and len(prompts) >= MANY_ANSWERS * len(rows):
        counts: Figures = {"rows": len(known), "questions": len(rows), "times": MANY_ANSWERS}
        return ANSWERS_GREEDY.check(False, "many_answers", severity=INFO, **counts)
    return ANSWERS_GREEDY.check(True, "greedy", rows=len(known))


def _is_until_right(seen: Answering, rows: Sequence[Row], *, is_same_prompt: bool = True) -> bool:
    """Whether answers of another letter were thrown away, and only until the right one came.

    An answer that could not be read may be asked for again; so may all, as often as each other.
    """
    labels = {row.correct_answer for row in rows} | set(LETTERS)
    tries = [
        (row, [a for a in answers_to(seen.counting, row) if a.hashes and _asks_most(a, row, rows)]) for row in rows
    ]
    if len({len(given) for _, given in tries}) < MANY_ANSWERS or not seen.are_all_seen:
        return False
    if any(len(given) < MANY_ANSWERS and not row.is_correct for row, given in tries):
        return False
    return any(
        answers_saying(given[-1:], row.response or "")
        and any(
            _says_other(answer, row.predicted_answer, labels)
            for answer in given[:-1]
            if not is_same_prompt or answer.prompt_hash == given[-1].prompt_hash
        )
        for row, given in tries
        if row.is_correct and given
    )


def _asks_most(answer: Answer, row: Row, rows: Sequence[Row]) -> bool:
    """Whether an answer's prompt asks this row's question more than any other: several may have the same choices."""
    prompt, others = answer.prompt or (), [one for one in rows if one.question != row.question]
    most = max((asked_share(prompt, one) or 0 for one in others), default=0)
    return asks(answer, row) and (asked_share(prompt, row) or 0) > most


def _says_other(answer: Answer, label: str, labels: Set[str]) -> bool:
    """Whether a response, or its first or last line, is nothing but another of the labels."""
    texts = {text for other in labels - {label} for text in (other, other.upper()) if other}
    return any(cached_text_hash(form.format(text)) in (answer.hashes or ()) for text in texts for form in LABEL_FORMS)


ROUNDED, ROUNDED_SHARE = 0.01, 0.004  # of log-likelihoods, where a program sums them in bf16


def _likeliest_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """The answers are the choices that the model found likeliest, summed up or as a mean, in whichever way fits best.

    Not told where a question was scored in several ways, with another adapter too, or texts without any question were
    scored: what is subtracted or averaged then is the program's own.
    """
    scored = [answer for answer in seen.answers if answer.scores or answer.labels]
    if not scored or seen.evidence.form.format in ("lm_eval", "lawqa"):
        return ANSWERS_LIKELIEST.check(None, "unseen")
    dropped = sum(bool(call.training) for call in {id(one.call): one.call for one in seen.counting}.values())
    if dropped:
        return ANSWERS_LIKELIEST.check(False, "in_training_mode", severity=WARN, rows=dropped)
    by_row = scored_for(seen, rows)
    if by_row is None:
        return ANSWERS_LIKELIEST.check(None, "unseen")
    known = other = 0
    of_classes: list[tuple[int, list[list[float]]]] = []
    for row, own in zip(rows, by_row, strict=True):
        choices = choices_of(row.choices)
        is_class = not choices.texts
        choices = choices if choices.texts or row.response is not None else _classes(rows, len(own))
        labels = choices.labels or NUMBERINGS[0][: len(choices.texts)]
        given = as_label(row.predicted_answer, choices)
        is_whole = len(labels) == len(choices.texts) > 1
        measures = _likelihoods(own, choices.texts, labels, by_label=_learns(seen, choices)) if is_whole else []
        if given is None or not measures or any(answer.has_adapter != seen.wants_adapter for answer in own):
            continue
        known, place = known + 1, labels.index(given)
        of_classes += [(place, measures)] if is_class and len(labels) == len(CLASSES) else []
        other += not any(one[place] >= max(one) - ROUNDED - ROUNDED_SHARE * abs(max(one)) for one in measures)
    if not known or (other and len(of_classes) == known and _has_threshold(of_classes)):
        return ANSWERS_LIKELIEST.check(None, "unseen")
    severity = WARN if other and 2 * other <= known else None
    return ANSWERS_LIKELIEST.check(not other, "compared", severity=severity, questions=known, other=other)


CLASSES = (0, 1)


def _has_threshold(answers: Sequence[tuple[int, list[list[float]]]]) -> bool:
    """Whether each of two classes is the answer beyond the same distance, as where "yes" needs no more than 0.3."""
    for each in zip(*(measures for _, measures in answers), strict=False):
        further = [
            [one[1] - one[0] for (place, _), one in zip(answers, each, strict=True) if place == own] for own in CLASSES
        ]
        if all(further) and max(further[0]) <= min(further[1]):
            return True
    return False


def _classes(rows: Sequence[Row], scored: int) -> Choices:
    """What `scored` texts a question choose between where no row has choices: labels in their order, or all answers."""
    answers = {str(one).strip() for row in rows for one in (row.correct_answer, row.predicted_answer)}
    for known in NUMBERINGS if scored else ():
        if {one.lower() for one in answers} <= {*known}:
            last = max(known.index(one.lower()) for one in answers) + 1
            return Choices(known[: scored if scored > 1 else last], known[: scored if scored > 1 else last])
    if scored == 1:  # words, which name themselves
        words = tuple(sorted({one.lower() for one in answers}))
        return Choices(words, words)
    return Choices(tuple(sorted(answers)) if len(answers) == scored else ())


def _likelihoods(
    own: Sequence[Answer], texts: Sequence[str], labels: Sequence[str], *, by_label: bool
) -> list[list[float]]:
    """Each way to say how likely the choices are, a figure for each; none where one was scored twice or never."""
    for style, change in product(SCORED_AS, (str.lower, str.upper)):
        written = [style.format(text=text, label=change(label)) for text, label in zip(texts, labels, strict=True)]
        hashes = {text_hash(one)[:8]: n for n, one in enumerate(written)}
        found = []
        for answer in own:
            # of two choices one may end as the other is; a line break before it is not its own
            ends = {end[0]: end for end in reversed(answer.scores) if end[0] in hashes}
            found += [(hashes[one], end) for one, end in [*ends.items()][:1]]
        found.sort()
        if [n for n, _ in found] == [*range(len(written))]:
            sizes = [
                (1, tokens, len(normal_form(one)), len(one.encode()))
                for (_, (_, _, tokens, _)), one in zip(found, written, strict=True)
            ]
            sums = [[end[1] for _, end in found], [end[1] - end[3] for _, end in found]]
            return [[one / size[n] for one, size in zip(each, sizes, strict=True)] for each in sums for n in range(4)]
    if len(own) != 1 or not by_label or not own[0].labels:
        return []
    forms = [
        [blank + change(label) for label in labels]
        for blank, change in product(("", " "), (str.lower, str.upper, str.capitalize))
    ]
    return [[own[0].labels[one] for one in form] for form in forms if {*form} <= {*own[0].labels}]


def _learns(seen: Answering, choices: Choices) -> bool:
    """Whether all answers that were seen in training are labels, or such classes as these."""
    batches = (seen.evidence.training_witness or Witness()).of(Batch)
    learnt = {one for fact in batches for one in fact.answer_hashes or (None,)}
    texts = [text for one in (*NUMBERINGS[0][:5], *choices.texts) for text in (one.lower(), one.upper(), one)]
    return bool(learnt) and learnt <= {text_hash(form.format(text)) for form in LABEL_FORMS for text in texts}


def _stopped_check(seen: Answering) -> Check:
    known = [answer.stopped for answer in seen.counting if answer.stopped is not None]
    if not known:
        return ANSWERS_STOPPED.check(None, "unseen")
    cut = known.count(False)
    calls = (answer.call for answer in seen.counting)
    limits = sorted({call.limit for call in calls if isinstance(call, Generation) and call.limit is not None})
    is_lenient = seen.evidence.rehearsal or seen.evidence.random_weights
    counts: Figures = {"rows": len(known), "cut": cut, "limits": limits}
    found = "cut_at" if limits else "cut"
    return ANSWERS_STOPPED.check(cut <= MOST_UNSTOPPED * len(known), found, rehearsal=is_lenient, **counts)
