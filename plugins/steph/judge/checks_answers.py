"""Checks of an evaluation by what was seen in its own process: the core of H-3. Reads the data set, changes nothing.

A call of `generate`, or a scoring forward, has the adapter where H-2's file is active in it, or was merged into the
weights that answered. A row of the results is held against the calls by hashes: of its response, and of its question in
the prompt. Base and tuned answers to the same questions may come from one process; those that count are in the results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from steph.base.fingerprint import fingerprints, holds, normal_form, text_hash
from steph.base.messages import say
from steph.base.text import one_line
from steph.base.units import MISSING
from steph.contract.results import Results, Row
from steph.judge.checks_prompts import LEAST_ADDED, LEAST_LOST, asked_share, frame_added, frame_lost, text_beside
from steph.judge.checks_seen import (
    ADAPTER_AS_SAVED,
    ANSWERS_FREE,
    BASE_UNCHANGED,
    MASK_AND_POSITIONS,
    NO_OWN_CODE,
    PROMPTS_AS_RECORDED,
    answering_weight_checks,
    inputs_check,
    recorded_prompts_check,
    steering_check,
)
from steph.judge.checks_witness import model_check, place_checks, quantised_check, why_unseen
from steph.judge.evidence import EvalEvidence
from steph.judge.folders import same_path
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
from steph.judge.reading import LETTERS
from steph.judge.witness import (
    AdapterChanged,
    AdapterLoaded,
    Batch,
    Generation,
    ModelLoaded,
    Quantised,
    Raised,
    Scoring,
    StateFact,
    TrainingBegins,
    Witness,
)
from steph.record.values import Check

Call = Generation | Scoring
Value = TypeVar("Value")

SAME_TEXT = 0.9  # of the fingerprints: the rest may be lost where a response was cut or joined
LEAST_LEADS = 4  # rows whose learnt answers stand behind the same header
LEAST_PRINTS = 2  # of a response; of a shorter one only the hash of the whole tells
WHOLE_QUESTION, PART_OF_QUESTION = 0.999, 0.5
MOST_UNSTOPPED = 0.5
MANY_ANSWERS = 2  # for each row of the results
SCALING_TOLERANCE = 1e-4
_LABEL_FORMS = (
    "{}", "{}.", "{}。", "({})", "答え:{}", "回答:{}", "正解:{}", "Answer:{}", "正解は{}です。", "答えは{}です。"
)  # fmt: skip
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<eos>|<pad>|<end_of_turn>")

ANSWERS_GENERATED = CheckKind("answers_generated", "H-3", FAIL, trap=2, core=True)
ADAPTER_ACTIVE = CheckKind("adapter_active", "H-3", FAIL, trap=19, core=True)
SCALING_AS_TRAINED = CheckKind("scaling_as_trained", "H-3", WARN, trap=19, optional=True)
BASE_AS_TRAINED = CheckKind("base_as_trained", "H-3", WARN, trap=26, optional=True)
PROMPTS_HOLD_QUESTIONS = CheckKind(
    "prompts_hold_questions", "H-3", FAIL, trap=27, optional=True, needs=(Needs.QUESTIONS,)
)
PROMPTS_BARE = CheckKind("prompts_bare", "H-3", WARN, optional=True, needs=(Needs.DATASET, Needs.QUESTIONS))
FRAME_AS_TRAINED = CheckKind("frame_as_trained", "H-3", WARN, trap=6, optional=True)
RESPONSES_GENERATED = CheckKind("responses_generated", "H-3", FAIL, trap=23, optional=True, needs=(Needs.RESPONSES,))
ANSWERS_GREEDY = CheckKind("answers_greedy", "H-3", WARN, optional=True, needs=(Needs.RESPONSES,))
ANSWERS_STOPPED = CheckKind(
    "answers_stopped", "H-3", WARN, trap=28, quality=True, optional=True, needs=(Needs.RESPONSES,)
)
WITNESSED_ANSWERS = (
    ANSWERS_GENERATED,
    ADAPTER_ACTIVE,
    SCALING_AS_TRAINED,
    BASE_AS_TRAINED,
    PROMPTS_HOLD_QUESTIONS,
    PROMPTS_BARE,
    FRAME_AS_TRAINED,
    RESPONSES_GENERATED,
    ANSWERS_GREEDY,
    ANSWERS_STOPPED,
    ANSWERS_FREE,
    PROMPTS_AS_RECORDED,
    ADAPTER_AS_SAVED,
    MASK_AND_POSITIONS,
    BASE_UNCHANGED,
    NO_OWN_CODE,
)


@dataclass(frozen=True)
class _Answer:
    """One row of one call; hashes and fingerprints are None where the witness had no tokenizer."""

    call: Call
    has_adapter: bool
    prompt: tuple[str, ...] | None
    hashes: tuple[str, ...] | None = None
    response: tuple[str, ...] | None = None
    new_tokens: int | None = None
    stopped: bool | None = None
    lines: tuple[str, ...] | None = None
    prompt_hash: str | None = None
    first: str | None = None


@dataclass(frozen=True)
class _Seen:
    """What was seen of an evaluation."""

    evidence: EvalEvidence
    witness: Witness
    asks_both: bool = False  # for texts, and for the likelihood of given ones

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Generations, or scorings where nothing was generated; both of an evaluation that asks for both."""
        generations, scorings = self.witness.of(Generation), self.witness.of(Scoring)
        return (*generations, *scorings) if self.asks_both else generations or scorings

    @cached_property
    def unseen_calls(self) -> int:
        """Calls that were only counted."""
        names = ("generations", "scorings") if self.witness.of(Generation) else ("scorings",)
        total = sum(self.witness.totals(name) for name in (names if self.asks_both else names[:1]))
        return max(0, total - len(self.calls))

    @cached_property
    def answers(self) -> tuple[_Answer, ...]:
        return tuple(answer for call in self.calls for answer in self._rows_of(call))

    @cached_property
    def counting(self) -> tuple[_Answer, ...]:
        """The answers in the state that was asked for, or all where none is."""
        return tuple(answer for answer in self.answers if answer.has_adapter == self.wants_adapter) or self.answers

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter's file lies, if it is still H-2's."""
        own = self.evidence
        if own.lora_path is None or own.adapter_sha256_expected != own.adapter_sha256_actual:
            return None
        return own.root / own.lora_path

    @property
    def prompts_by_line(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Each counting prompt's lines and fingerprints; none where some calls were only counted."""
        if self.unseen_calls:
            return []
        return [(answer.lines, answer.prompt) for answer in self.counting if answer.lines and answer.prompt is not None]

    @property
    def wants_adapter(self) -> bool:
        return self.evidence.lora_path is not None

    def has_adapter(self, call: StateFact) -> bool:
        """Whether H-2's adapter had a part in what this call computed."""
        wanted = self.evidence.adapter_sha256_expected
        if call.name_or_path and any(same_path(folder, call.name_or_path) for folder in self.evidence.merged_folders):
            return True
        if not self.wants_adapter:  # any adapter is one too many
            return bool(call.merged or call.merged_sha256 or (call.layers and call.adapters and not _is_off(call)))
        return wanted is not None and (wanted in call.merged_sha256 or (wanted in call.sha256 and not _is_off(call)))

    def _rows_of(self, call: Call) -> list[_Answer]:
        has_adapter = self.has_adapter(call)
        if isinstance(call, Scoring):
            return [_Answer(call, has_adapter, _at(call.prompt_fingerprints, n)) for n in range(call.rows)]
        return [
            _Answer(
                call, has_adapter, _at(call.prompt_fingerprints, n), _at(call.response_hashes, n),
                _at(call.response_fingerprints, n), _at(call.new_tokens or (), n), _at(call.stopped or (), n),
                _at(call.prompt_lines, n), _at(call.prompt_hashes, n), _at(call.first_characters, n),
            )
            for n in range(call.rows)
        ]  # fmt: skip


def _is_off(call: StateFact) -> bool:
    return 0 < call.layers <= call.disabled or (bool(call.scaling) and not any(call.scaling))


def _at(values: Sequence[Value], n: int) -> Value | None:
    return values[n] if n < len(values) else None


def witnessed_answer_checks(evidence: EvalEvidence, results: Results | None) -> tuple[Check, ...]:
    """All checks of what was seen of an evaluation; where nothing was seen, they say why."""
    told = {row.response is None for row in results.results} if results else set()
    seen = _Seen(evidence, evidence.witness or Witness(), asks_both=len(told) > 1 and evidence.form.format != "lawqa")
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
            quantised_check(evidence.settings.load_in_4bit, loaded[-1:]),
        )
    worked = tuple({id(answer.call): answer.call for answer in seen.counting}.values())
    generations = [call for call in worked if isinstance(call, Generation)]
    with_adapter = [call for call in generations if seen.wants_adapter and seen.has_adapter(call)]
    return (
        generated,
        _active_check(seen, rows),
        _scaling_check(seen),
        _base_check(seen),
        _questions_check(seen, rows),
        _bare_check(seen, rows),
        _frame_check(seen, rows),
        _responses_check(seen, rows),
        _greedy_check(seen, rows),
        _stopped_check(seen),
        steering_check(generations),
        recorded_prompts_check(rows, seen.prompts_by_line),
        *answering_weight_checks(generations, with_adapter, seen.adapter_folder),
        inputs_check(generations),
        model_check(seen.witness, evidence.model_name, worked, seen.evidence.merged_folders),
        quantised_check(evidence.settings.load_in_4bit, worked),
        *place_checks(worked, on_gpu=evidence.on_gpu),
    )


def _generated_check(seen: _Seen, wanted: int) -> Check:
    raised = max(len(seen.witness.of(Raised)), seen.witness.totals("raised"))
    wanted = min(wanted, seen.evidence.settings.samples)
    answered = sum(call.rows for call in seen.calls) + seen.unseen_calls
    if not seen.calls and not raised:
        holds_, why = why_unseen(seen.evidence.witness, "answering")
        return ANSWERS_GENERATED.check(holds_, why)
    enough = answered >= wanted
    error = next((one_line(fact.error, 80) for fact in seen.witness.of(Raised) if fact.error), "")
    return ANSWERS_GENERATED.check(
        enough and not raised,
        "with_error" if error else "answered",
        severity=WARN if enough and raised else None,
        questions=wanted,
        answered=answered,
        raised=raised,
        error=error,
    )


def _active_check(seen: _Seen, rows: Sequence[Row]) -> Check:
    wanted = seen.evidence.adapter_sha256_expected
    if not seen.wants_adapter:
        return _inactive_check(seen, rows)
    if wanted is None:
        return ADAPTER_ACTIVE.check(None, "no_sha256")
    lost = [load for load in seen.witness.of(AdapterLoaded) if load.sha256 in (wanted, None) and load.missing]
    if lost:
        return ADAPTER_ACTIVE.check(False, "weights_missing", missing=lost[0].missing)
    good = [answer for answer in seen.answers if answer.has_adapter]
    if not good:
        return _never_active_check(seen)
    if not seen.unseen_calls and len(good) < min(len(rows), len(seen.answers)):
        return ADAPTER_ACTIVE.check(False, "too_few", rows=len(seen.answers), matching=len(good), questions=len(rows))
    return _of_wanted_state(seen, rows, len(good))


def _inactive_check(seen: _Seen, rows: Sequence[Row]) -> Check:
    bare = sum(not answer.has_adapter for answer in seen.answers)
    if not bare or (not seen.unseen_calls and bare < min(len(rows), len(seen.answers))):
        return ADAPTER_ACTIVE.check(False, "too_few_bare", rows=len(seen.answers), matching=bare)
    return _of_wanted_state(seen, rows, bare)


def _of_wanted_state(seen: _Seen, rows: Sequence[Row], matching: int) -> Check:
    """A response in the results that only another state gave is another state's answer; `matching` were in this one."""
    foreign = 0
    for row in rows:
        states = {answer.has_adapter for answer in _given_by(seen, row)}
        foreign += bool(states) and seen.wants_adapter not in states
    good = [answer.call for answer in seen.answers if answer.has_adapter]
    further = {one for call in good for one in (*call.sha256, *call.merged_sha256)}
    further -= {seen.evidence.adapter_sha256_expected}
    others_too = bool(further) and seen.wants_adapter and not foreign
    state = "active" if seen.wants_adapter else "bare"
    return ADAPTER_ACTIVE.check(
        not foreign and not others_too,
        "others_too" if others_too else state,
        severity=WARN if others_too else None,
        rows=len(seen.answers),
        matching=matching,
        foreign=foreign,
        sha256=min(further, default="")[:12],
    )


def _given_by(seen: _Seen, row: Row) -> list[_Answer]:
    """The answers that a row's response may be, to this row's question where prompts are known."""
    return _told(_asked(seen.answers, row), _SPECIAL.sub("", row.response or ""))


def _told(answers: Sequence[_Answer], text: str) -> list[_Answer]:
    """Those of the answers that this text may be."""
    if not normal_form(text):
        return []
    own, prints = text_hash(text), fingerprints(text)
    return [
        answer
        for answer in answers
        if (answer.hashes and own in answer.hashes)
        or (len(prints) >= LEAST_PRINTS and (holds(answer.response or (), text) or 0) >= SAME_TEXT)
    ]


def _answers_only(seen: _Seen, answer: _Answer, row: Row, rows: Sequence[Row]) -> bool:
    """Whether an answer's prompt asks the question of another of the rows, and not of this one."""

    def is_in_prompt(one: Row) -> bool:
        return (asked_share(answer.prompt or (), _asked_alone(seen.evidence, one)) or 0) >= PART_OF_QUESTION

    return bool(answer.prompt) and not is_in_prompt(row) and any(is_in_prompt(one) for one in rows if one is not row)


def _asked_alone(evidence: EvalEvidence, row: Row) -> Row:
    """The row as one prompt asks it: of scored choices each has a prompt of its own."""
    is_scored = row.response is None and evidence.form.format != "lawqa"
    return row.model_copy(update={"choices": None}) if is_scored else row


def _asked(answers: Sequence[_Answer], row: Row) -> list[_Answer]:
    """The answers to a row's question; all where no prompt tells."""
    shares = [(answer, None if not answer.prompt else asked_share(answer.prompt, row)) for answer in answers]
    fitting = [answer for answer, share in shares if share is not None and share >= PART_OF_QUESTION]
    return fitting or list(answers)


def _never_active_check(seen: _Seen) -> Check:
    wanted = seen.evidence.adapter_sha256_expected or ""
    loads = seen.witness.of(AdapterLoaded)
    nameless = [load for load in loads if load.sha256 is None]
    calls = seen.calls
    if any(call.layers and not call.sha256 and not _is_off(call) for call in calls) and nameless:
        return ADAPTER_ACTIVE.check(None, "unknown_file")
    others = sorted({sha256[:12] for call in calls for sha256 in (*call.sha256, *call.merged_sha256)} - {wanted[:12]})
    if any(wanted in call.sha256 for call in calls):
        return ADAPTER_ACTIVE.check(False, "disabled", rows=len(seen.answers))
    if others:
        return ADAPTER_ACTIVE.check(False, "other_adapter", sha256=others[0], expected=wanted[:12])
    return ADAPTER_ACTIVE.check(False, "loaded_only" if loads else "not_loaded", rows=len(seen.answers))


def _scaling_check(seen: _Seen) -> Check:
    begins = seen.evidence.training_witness.of(TrainingBegins) if seen.evidence.training_witness else ()
    trained = {value for fact in begins[-1:] if fact.lora for value in fact.lora.scaling}
    calls = [answer.call for answer in seen.counting if answer.has_adapter]
    answered = {value for call in calls for value in _scaling_of(seen, call)}
    if not trained or not answered or not seen.wants_adapter:
        return SCALING_AS_TRAINED.check(None, "unseen")
    if any(map(_is_on_twice, calls)):
        return SCALING_AS_TRAINED.check(False, "applied_twice")
    beside = max(len({*call.adapters}) for call in calls)
    if beside > 1:
        return SCALING_AS_TRAINED.check(False, "several", adapters=beside)
    same = all(any(abs(one - other) <= SCALING_TOLERANCE * max(abs(one), 1) for other in trained) for one in answered)
    return SCALING_AS_TRAINED.check(same, "scalings", trained=sorted(trained), answered=sorted(answered))


def _scaling_of(seen: _Seen, call: Call) -> tuple[float, ...]:
    """What the adapter is scaled by in a call; where it is part of the weights, what it was merged with, if alone."""
    if call.merged < call.layers:
        return call.scaling
    wanted = (seen.evidence.adapter_sha256_expected,)
    witnesses = (seen.evidence.training_witness or Witness(), seen.witness)
    merges = [fact for witness in witnesses for fact in witness.of(AdapterChanged) if fact.change == "merged"]
    known = [fact.scaling for fact in merges if fact.scaling and fact.sha256 == wanted and fact.at <= call.at]
    return known[-1] if known else call.scaling


def _base_check(seen: _Seen) -> Check:
    """An adapter answers for the base that it was trained on; another rounding of it is another base."""
    begins = seen.evidence.training_witness.of(TrainingBegins) if seen.evidence.training_witness else ()
    trained = {_type(layers) for fact in begins[-1:] for layers in fact.quantised}
    answered = {
        _type(layers)
        for answer in seen.counting
        if isinstance(answer.call, Generation)
        for layers in answer.call.quantised
    }
    if not trained or not answered or not seen.wants_adapter:
        return BASE_AS_TRAINED.check(None, "unseen")
    return BASE_AS_TRAINED.check(trained == answered, "layer_types", trained=sorted(trained), answered=sorted(answered))


def _type(layers: Quantised) -> str:
    return f"{layers.kind}/{layers.quant_type or MISSING}"


def _is_on_twice(call: StateFact) -> bool:
    """Whether an adapter is part of the weights and active on top; merged layers do not compute it again."""
    return bool(set(call.sha256) & set(call.merged_sha256)) and call.merged < call.layers and not _is_off(call)


def _questions_check(seen: _Seen, rows: Sequence[Row]) -> Check:
    """Every question of the results, with all its choices, was in a prompt."""
    prompts = list(dict.fromkeys(answer.prompt for answer in seen.counting if answer.prompt))
    best = [
        max((share for prompt in prompts if (share := asked_share(prompt, row)) is not None), default=None)
        for row in (_asked_alone(seen.evidence, row) for row in rows if row.question)
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


def _bare_check(seen: _Seen, rows: Sequence[Row]) -> Check:
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


def _frame_check(seen: _Seen, asked: Sequence[Row]) -> Check:
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


def _responses_check(seen: _Seen, rows: Sequence[Row]) -> Check:
    """A response that no call gave, though all that could have given it are known, was not generated here."""
    labels = {row.correct_answer for row in rows} | set(LETTERS)
    compared = made_up = made_up_long = cut = astray = 0
    for row in rows:
        text = _SPECIAL.sub("", row.response or "")
        candidates = [answer for answer in _asked(seen.answers, row) if isinstance(answer.call, Generation)]
        if not normal_form(text) or not candidates or any(not answer.hashes for answer in candidates):
            continue
        is_long = len(fingerprints(text)) >= LEAST_PRINTS
        # a short text may be taken out of a long answer
        if not is_long and any((answer.new_tokens or 0) > 2 * len(text) + 4 for answer in candidates):
            cut += any(answer.first == text_hash(text) for answer in candidates)
            continue
        compared += 1
        if not _given_by(seen, row):
            made_up, made_up_long = made_up + 1, made_up_long + is_long
            # a letter may have been written down otherwise than it was said
            said = normal_form(text).lower()
            if is_long or (said in labels and all(_says_other(answer, said, labels) for answer in candidates)):
                astray += any(_answers_only(seen, answer, row, rows) for answer in _told(seen.answers, text))
    if 2 * cut > len(rows) and not seen.unseen_calls and not made_up:
        return RESPONSES_GENERATED.check(False, "first_characters", severity=WARN, questions=len(rows), cut=cut)
    if not compared or seen.unseen_calls:
        return RESPONSES_GENERATED.check(None, "incomparable")
    is_all = (made_up == compared and made_up_long == made_up) or (astray > 1 and 2 * astray > compared)
    return RESPONSES_GENERATED.check(
        not made_up,
        "of_other_questions" if astray else "compared",
        severity=WARN if made_up and not is_all else None,
        compared=compared,
        made_up=made_up,
        astray=astray,
    )


def _greedy_check(seen: _Seen, rows: Sequence[Row]) -> Check:
    calls = [answer.call for answer in seen.counting]
    known = [call for call in calls if isinstance(call, Generation) and call.do_sample is not None]
    if not known or seen.evidence.settings.ensemble > 1:
        return ANSWERS_GREEDY.check(None, "unseen")
    found = {
        "evaluation.sampled": sum(bool(call.do_sample) for call in known),
        "evaluation.in_training_mode": sum(bool(call.training) for call in known),
        "evaluation.one_of_several": _chosen(seen.counting) if len(seen.counting) > len(rows) else 0,
    }
    troubles = [say(what, rows=count) for what, count in found.items() if count]
    if troubles and _is_until_right(seen, rows):
        return ANSWERS_GREEDY.check(False, "until_right", severity=FAIL, rows=len(known), troubles=troubles)
    if troubles:
        return ANSWERS_GREEDY.check(False, "otherwise", rows=len(known), troubles=troubles)
    prompts = {answer.prompt_hash for answer in seen.counting if answer.prompt_hash}
    if rows and len(prompts) >= MANY_ANSWERS * len(rows):
        return ANSWERS_GREEDY.check(
            False, "many_answers", severity=INFO, rows=len(known), questions=len(rows), times=MANY_ANSWERS
        )
    return ANSWERS_GREEDY.check(True, "greedy", rows=len(known))


def _is_until_right(seen: _Seen, rows: Sequence[Row]) -> bool:
    """Whether answers of another letter were thrown away, and only until the right one came.

    An answer that could not be read may be asked for again; so may all, as often as each other.
    """
    labels = {row.correct_answer for row in rows} | set(LETTERS)
    tries = [(row, [a for a in _asked(seen.counting, row) if a.hashes and _asks(a, row)]) for row in rows]
    if len({len(given) for _, given in tries}) < MANY_ANSWERS or seen.unseen_calls:
        return False
    if any(len(given) < MANY_ANSWERS and not row.is_correct for row, given in tries):
        return False
    return any(
        _told(given[-1:], row.response or "")
        and any(
            _says_other(answer, row.predicted_answer, labels)
            for answer in given[:-1]
            if answer.prompt_hash == given[-1].prompt_hash
        )
        for row, given in tries
        if row.is_correct and given
    )


def _asks(answer: _Answer, row: Row) -> bool:
    return bool(answer.prompt) and (asked_share(answer.prompt or (), row) or 0) >= PART_OF_QUESTION


def _says_other(answer: _Answer, label: str, labels: Set[str]) -> bool:
    """Whether a response, or its first or last line, is nothing but another of the labels."""
    texts = {text for other in labels - {label} for text in (other, other.upper()) if other}
    return any(text_hash(form.format(text)) in (answer.hashes or ()) for text in texts for form in _LABEL_FORMS)


def _chosen(answers: Sequence[_Answer]) -> int:
    """Answers to a prompt that was answered otherwise as well: one of them can be picked."""
    by_prompt: dict[str, list[str]] = {}
    for answer in answers:
        if answer.prompt_hash and answer.hashes:
            by_prompt.setdefault(answer.prompt_hash, []).append(answer.hashes[0])
    return sum(len(hashes) for hashes in by_prompt.values() if len(set(hashes)) > 1)


def _stopped_check(seen: _Seen) -> Check:
    known = [answer.stopped for answer in seen.counting if answer.stopped is not None]
    if not known:
        return ANSWERS_STOPPED.check(None, "unseen")
    cut = known.count(False)
    calls = (answer.call for answer in seen.counting)
    limits = sorted({call.limit for call in calls if isinstance(call, Generation) and call.limit is not None})
    return ANSWERS_STOPPED.check(
        cut <= MOST_UNSTOPPED * len(known),
        "cut_at" if limits else "cut",
        rehearsal=seen.evidence.rehearsal or seen.evidence.random_weights,
        rows=len(known),
        cut=cut,
        limits=limits,
    )
