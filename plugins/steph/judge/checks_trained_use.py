"""What was seen of an evaluation, calls and answers, and checks that it used what was trained. Pure.

What was trained: the adapter, its scaling, its base, the frame of the prompts and how they end. Of the answers, which
ones a row of the results may be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, pairwise, product, takewhile
from pathlib import Path
from typing import TypeVar

from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import holds, normal_form, text_hash
from steph.base.messages import say
from steph.base.terms import Severity
from steph.base.text import one_line
from steph.base.units import MISSING
from steph.contract.questions import NUMBERINGS, as_label, choices_of
from steph.contract.results import Row
from steph.judge.checks_prompts import LEAST_ADDED, LEAST_LOST, asked_share, frame_added, frame_lost, text_beside
from steph.judge.evidence import EvalEvidence, same_path
from steph.judge.kinds import FAIL, WARN, CheckKind, Figures, Needs
from steph.judge.witness import (
    AdapterChanged,
    AdapterLoaded,
    Batch,
    Blind,
    Generation,
    Likelihoods,
    ModelSaved,
    Scoring,
    StateFact,
    TrainingBegins,
    Witness,
)
from steph.record.values import Check

Call = Generation | Scoring
Value = TypeVar("Value")
SAME_TEXT = 0.9  # of the fingerprints: the rest may be lost where a response was cut or joined
LEAST_PRINTS = 2  # of a response; of a shorter one only the hash of the whole tells
PART_OF_QUESTION = 0.5
SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<eos>|<pad>|<end_of_turn>")


@dataclass(frozen=True)
class Answer:
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
    ending: tuple[str, ...] = ()
    thinks: bool | None = None
    scores: tuple[tuple[str, float, int, float], ...] = ()  # of each ending of a scored text
    labels: Mapping[str, float] | None = None  # how likely each label comes next
    read: tuple[str, ...] | None = None  # the lines of a scored text, its choice with them


ANSWERING_HOOKS = (
    "GenerationMixin.generate",
    "GenerationMixin.generate, after",
    "Module._wrapped_call_impl",
    "scoring",
)


@dataclass(frozen=True)
class Answering:
    """All that was seen of an evaluation."""

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
    def are_all_seen(self) -> bool:
        """Whether no call was only counted, or missed by a hook that had failed before."""
        return not self.unseen_calls and not any(fact.where in ANSWERING_HOOKS for fact in self.witness.of(Blind))

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        return tuple(answer for call in self.calls for answer in self._rows_of(call))

    @cached_property
    def counting(self) -> tuple[Answer, ...]:
        """The answers in the state that was asked for, or all where none is."""
        return tuple(answer for answer in self.answers if answer.has_adapter == self.wants_adapter) or self.answers

    @cached_property
    def _likelihoods(self) -> dict[int, Likelihoods]:
        """What was read of the logits of a scoring forward, by that: it is noted right behind it."""
        pairs = (pair for process in self.witness.processes for pair in pairwise(process.facts))
        return {id(one): read for one, read in pairs if isinstance(one, Scoring) and isinstance(read, Likelihoods)}

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
        if not self.are_all_seen:
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
            return bool(call.merged or call.merged_sha256 or (call.layers and call.adapters and not is_off(call)))
        return wanted is not None and (wanted in call.merged_sha256 or (wanted in call.sha256 and not is_off(call)))

    def _rows_of(self, call: Call) -> list[Answer]:
        has_adapter = self.has_adapter(call)
        if isinstance(call, Scoring):
            read = self._likelihoods.get(id(call)) or Likelihoods(at=call.at)
            return [
                Answer(
                    call, has_adapter, _at(call.prompt_fingerprints, n),
                    scores=_at(read.endings, n) or (), labels=_at(read.labels, n), read=_at(call.prompt_lines, n),
                )
                for n in range(call.rows)
            ]  # fmt: skip
        return [
            Answer(
                call, has_adapter, _at(call.prompt_fingerprints, n), _at(call.response_hashes, n),
                _at(call.response_fingerprints, n), _at(call.new_tokens or (), n), _at(call.stopped or (), n),
                _at(call.prompt_lines, n), _at(call.prompt_hashes, n), _at(call.first_characters, n),
                _at(call.lead_hashes, n) or (), _at(call.thinks or (), n),
            )
            for n in range(call.rows)
        ]  # fmt: skip


def begun(seen: Answering) -> tuple[TrainingBegins, ...]:
    """How the training of the adapter last began, if it was seen."""
    witness = seen.evidence.training_witness
    return witness.of(TrainingBegins)[-1:] if witness else ()


def is_off(call: StateFact) -> bool:
    return 0 < call.layers <= call.disabled or (bool(call.scaling) and not any(call.scaling))


def _at(values: Sequence[Value], n: int) -> Value | None:
    return values[n] if n < len(values) else None


def given_by(seen: Answering, row: Row) -> list[Answer]:
    """The answers that a row's response may be, to this row's question where prompts are known."""
    return answers_saying(answers_to(seen.answers, row), SPECIAL.sub("", row.response or ""))


def answers_saying(answers: Sequence[Answer], text: str) -> list[Answer]:
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


def asked_alone(evidence: EvalEvidence, row: Row) -> Row:
    """The row as one prompt asks it: of scored choices each has a prompt of its own."""
    is_scored = row.response is None and evidence.form.format != "lawqa"
    return row.model_copy(update={"choices": None}) if is_scored else row


def answers_to(answers: Sequence[Answer], row: Row) -> list[Answer]:
    """The answers to a row's question; all where no prompt tells."""
    shares = [(answer, None if not answer.prompt else asked_share(answer.prompt, row)) for answer in answers]
    fitting = [(answer, share) for answer, share in shares if share is not None and share >= PART_OF_QUESTION]
    # of questions that are much alike a prompt that has all of one is not another's
    whole = [answer for answer, share in fitting if share >= WHOLE_QUESTION]
    return whole or [answer for answer, _ in fitting] or list(answers)


def asks(answer: Answer, row: Row) -> bool:
    """Whether an answer's prompt asks a row's question."""
    return (asked_share(answer.prompt or (), row) or 0) >= PART_OF_QUESTION


LEAST_ALIKE, LEAST_GOLDS = 2, 3  # questions with one right answer; such answers
MOST_LINES = 32  # of a question, each of which is compared with a thousand ways to join it with an answer
LEAST_OWN_LINE = 8  # characters of a line that is one question's alone
LABEL_FORMS = (
    "{}", "{}.", "{}。", "({})", "答え:{}", "回答:{}", "正解:{}", "Answer:{}", "正解は{}です。", "答えは{}です。",
    "答案:{}", "答案是{}", "정답:{}", "정답은 {}입니다.", "Antwort:{}", "Réponse:{}", "Respuesta:{}", "Risposta:{}",
    "Resposta:{}", "Ответ:{}",
)  # fmt: skip
# how the text that is scored for a choice may be written; white space is not compared
SCORED_AS = (
    "{text}", "{label}", "{label}{text}", "{label}.{text}", "{label}:{text}", "{label}){text}", "({label}){text}",
)  # fmt: skip
BEFORE_QUESTION = ("", "Q:", "Question:", "問題:", "問:", "質問:")
BEFORE_ANSWER = ("", "→", "->", "=>", ":", "=", "|", ",", "A:", "/")
LEAST_SHARED = 3  # pairs of tokens that all rows of a template have
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
    is_foreign = seen.evidence.settings.use_rag or seen.evidence.form.format == "lm_eval"
    if not is_foreign and _ends_unlearnt([row for fact in whole for row in fact.pair_hashes if row], prompts):
        return "end_in_no_row", None
    if len(leads) < LEAST_LEADS or not all(leads) or len({lead[-1] for lead in leads}) > 1 or not prompts:
        return None, None
    header = leads[0][-1]
    if not any(header in prompt.ending for prompt in prompts):
        return "no_lead", None
    prompts = [prompt for prompt in prompts if header in prompt.ending and not prompt.thinks]
    if not begins or is_foreign:
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


def _ends_unlearnt(rows: Sequence[Sequence[str]], prompts: Sequence[Answer]) -> bool:
    """Whether all prompts end in words that no row has, though rows with labels throughout follow one template.

    That has its pairs one behind the other: all long texts have some of a language, here and there. The last pair is
    left out: with an answer behind it, a text may fall into other tokens there.
    """
    if len(rows) < LEAST_LEADS or len({prompt.prompt for prompt in prompts}) < LEAST_ALIKE:
        return False
    common = set[str].intersection(*map(set, rows))
    runs = (len([*own]) for row in rows for is_common, own in groupby(row, common.__contains__) if is_common)
    if max(runs, default=0) < LEAST_SHARED or any(prompt.thinks for prompt in prompts):
        return False
    shared = takewhile(
        lambda pairs: len({*pairs}) == 1, zip(*(prompt.ending[::-1] for prompt in prompts), strict=False)
    )
    last = [pairs[0] for pairs in shared][1:2]
    return bool(last) and not any(last[0] in row for row in rows)


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


SCALING_TOLERANCE = 1e-4

ADAPTER_ACTIVE = CheckKind("adapter_active", "H-3", FAIL, trap=19, core=True)
SCALING_AS_TRAINED = CheckKind("scaling_as_trained", "H-3", WARN, trap=19, optional=True)
BASE_AS_TRAINED = CheckKind("base_as_trained", "H-3", WARN, trap=26, optional=True)
WHOLE_QUESTION = 0.999
PROMPTS_HOLD_QUESTIONS = CheckKind(
    "prompts_hold_questions", "H-3", FAIL, trap=27, optional=True, needs=(Needs.QUESTIONS,)
)
PROMPTS_BARE = CheckKind("prompts_bare", "H-3", WARN, optional=True, needs=(Needs.DATASET, Needs.QUESTIONS))
FRAME_AS_TRAINED = CheckKind("frame_as_trained", "H-3", WARN, trap=6, optional=True)


def active_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """Enough answers were given in the state that was asked for, with the adapter or without any.

    A response in the results that only another state gave is another state's answer.
    """
    wanted, answers = seen.evidence.adapter_sha256_expected, seen.answers
    if seen.wants_adapter and wanted is None:
        return ADAPTER_ACTIVE.check(None, "no_sha256")
    lost = [load for load in seen.witness.of(AdapterLoaded) if load.sha256 in (wanted, None) and load.missing]
    if seen.wants_adapter and lost:
        return ADAPTER_ACTIVE.check(False, "weights_missing", missing=lost[0].missing)
    good = [answer for answer in answers if answer.has_adapter]
    if seen.wants_adapter and not good:
        return _never_active_check(seen, wanted or "")
    partly = [answer for answer in good if 0 < answer.call.disabled < answer.call.layers and not answer.call.merged]
    if seen.wants_adapter and partly:
        off, layers = partly[0].call.disabled, partly[0].call.layers
        return ADAPTER_ACTIVE.check(False, "partly", rows=len(partly), off=off, layers=layers)
    matching = len(good) if seen.wants_adapter else len(answers) - len(good)
    counts: Figures = {"rows": len(answers), "matching": matching}
    is_short = seen.are_all_seen and matching < min(len(rows), len(answers))
    if seen.wants_adapter and is_short:
        return ADAPTER_ACTIVE.check(False, "too_few", questions=len(rows), **counts)
    if not matching or is_short:
        return ADAPTER_ACTIVE.check(False, "too_few_bare", **counts)
    states = [{answer.has_adapter for answer in given_by(seen, row)} for row in rows]
    foreign = sum(bool(state) and seen.wants_adapter not in state for state in states)
    further = {one for answer in good for one in (*answer.call.sha256, *answer.call.merged_sha256)} - {wanted}
    # an adapter that the training already stood on
    further -= {load.sha256 for load in (seen.evidence.training_witness or Witness()).of(AdapterLoaded) if load.sha256}
    others_too = bool(further) and seen.wants_adapter and not foreign
    return ADAPTER_ACTIVE.check(
        not foreign and not others_too,
        "others_too" if others_too else "active" if seen.wants_adapter else "bare",
        severity=WARN if others_too else None,
        foreign=foreign,
        sha256=min(further, default="")[:12],
        **counts,
    )


def _never_active_check(seen: Answering, wanted: str) -> Check:
    loads, calls = seen.witness.of(AdapterLoaded), seen.calls
    is_nameless = any(load.sha256 is None for load in loads)
    if is_nameless and any(call.layers and not call.sha256 and not is_off(call) for call in calls):
        return ADAPTER_ACTIVE.check(None, "unknown_file")
    if any(wanted in call.sha256 for call in calls):
        return ADAPTER_ACTIVE.check(False, "disabled", rows=len(seen.answers))
    others = sorted({sha256[:12] for call in calls for sha256 in (*call.sha256, *call.merged_sha256)} - {wanted[:12]})
    if others:
        return ADAPTER_ACTIVE.check(False, "other_adapter", sha256=others[0], expected=wanted[:12])
    return ADAPTER_ACTIVE.check(False, "loaded_only" if loads else "not_loaded", rows=len(seen.answers))


def scaling_check(seen: Answering) -> Check:
    trained = {value for fact in begun(seen) if fact.lora for value in fact.lora.scaling}
    calls = [answer.call for answer in seen.counting if answer.has_adapter]
    answered = {value for call in calls for value in _scaling_of(seen, call)}
    if not trained or not answered or not seen.wants_adapter:
        return SCALING_AS_TRAINED.check(None, "unseen")
    # part of the weights and active on top; merged layers do not compute it again
    merged = [call for call in calls if {*call.sha256} & {*call.merged_sha256}]
    if any(call.merged < call.layers and not is_off(call) for call in merged):
        return SCALING_AS_TRAINED.check(False, "applied_twice")
    beside = max(len({*call.adapters}) for call in calls)
    if beside > max([1, *(len(fact.lora.active) for fact in begun(seen) if fact.lora)]):
        return SCALING_AS_TRAINED.check(False, "several", adapters=beside)
    same = all(any(abs(one - other) <= SCALING_TOLERANCE * max(abs(one), 1) for other in trained) for one in answered)
    return SCALING_AS_TRAINED.check(same, "scalings", trained=sorted(trained), answered=sorted(answered))


def _scaling_of(seen: Answering, call: Call) -> tuple[float, ...]:
    """What the adapter is scaled by in a call; where it is part of the weights, what it was merged with, if alone."""
    if call.merged < call.layers:
        return call.scaling
    wanted = (seen.evidence.adapter_sha256_expected,)
    witnesses = (seen.evidence.training_witness or Witness(), seen.witness)
    merges = [fact for witness in witnesses for fact in witness.of(AdapterChanged) if fact.change == "merged"]
    known = [fact.scaling for fact in merges if fact.scaling and fact.sha256 == wanted and fact.at <= call.at]
    return known[-1] if known else call.scaling


def _merged_before(seen: Answering) -> set[str]:
    """Adapters that were part of the base when the training began, and that no answering model has."""
    trained = seen.evidence.training_witness or Witness()
    merges = [fact for fact in trained.of(AdapterChanged) if fact.change == "merged"]
    below = {sha256 for begins in begun(seen) for fact in merges if fact.at <= begins.at for sha256 in fact.sha256}
    # a base that was saved with them, or one with a name of its own
    saved = [fact.path for fact in trained.of(ModelSaved) if fact.path and below & {*fact.merged_sha256}]
    names = {answer.call.name_or_path for answer in seen.counting} - {None}
    if any(same_path(path, str(name)) for path in saved for name in names):
        return set()
    return below - {sha256 for answer in seen.counting for sha256 in (*answer.call.merged_sha256, *answer.call.sha256)}


def base_check(seen: Answering, worked: Sequence[Generation]) -> Check:
    """An adapter answers for the base that it was trained on; another rounding of it is another base."""
    trained, answered = (
        {f"{layers.kind}/{layers.quant_type or MISSING}" for fact in facts for layers in fact.quantised}
        for facts in (begun(seen), worked)
    )
    if seen.wants_adapter and (below := _merged_before(seen)):
        return BASE_AS_TRAINED.check(False, "merged_before", sha256=min(below)[:12])
    if not trained or not answered or not seen.wants_adapter:
        return BASE_AS_TRAINED.check(None, "unseen")
    return BASE_AS_TRAINED.check(trained == answered, "layer_types", trained=sorted(trained), answered=sorted(answered))


def questions_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """Every question of the results, with all its choices, was in a prompt."""
    prompts = list(dict.fromkeys(answer.prompt for answer in seen.counting if answer.prompt))
    asked = [asked_alone(seen.evidence, row) for row in rows if row.question]
    shares = [[asked_share(prompt, row) for prompt in prompts] for row in asked]
    by_prompt = [max((share or 0 for share in own), default=0) for own in zip(*shares, strict=True)]
    known = lost = edited = 0
    for own in shares:
        share = max((one for one in own if one is not None), default=None)
        # of questions that are much alike each prompt asks the one that most of which is there
        is_asked = any(one == most for one, most in zip(own, by_prompt, strict=True))
        if share is not None:
            known += 1
            lost += share < PART_OF_QUESTION or (share < WHOLE_QUESTION and not is_asked)
            edited += PART_OF_QUESTION <= share < WHOLE_QUESTION and is_asked
    if not known or not seen.are_all_seen:
        return PROMPTS_HOLD_QUESTIONS.check(None, say("evaluation.prompts_incomparable"))
    is_alone = seen.evidence.dataset is None and seen.evidence.form.format != "lm_eval"  # else the check below says it
    with_others = _with_others(seen.counting, rows) if is_alone and not seen.evidence.settings.use_rag else 0
    if not lost and not edited and 2 * with_others > len(seen.counting):
        counts: Figures = {"prompts": len(seen.counting), "with_others": with_others}
        return PROMPTS_HOLD_QUESTIONS.check(False, "with_others", severity=WARN, **counts)
    severity = WARN if edited and not lost else None
    counts = {"questions": known, "lost": lost, "edited": edited}
    return PROMPTS_HOLD_QUESTIONS.check(not lost and not edited, "compared", severity=severity, **counts)


LEAST_OWN, HELD = 3, 0.9  # fingerprints that a question has to itself, and how many of them a prompt has


def _with_others(answers: Sequence[Answer], rows: Sequence[Row]) -> int:
    """How many prompts ask several questions of the results, as where earlier turns stay; examples are in all."""
    texts = [(row.question, *choices_of(row.choices).texts) for row in rows]
    prints = [{one for text in own for one in fingerprints(text)} for own in texts]
    lines = [{text_hash(line)[:8] for line in _long_lines(row.question)} for row in rows]
    counts = Counter(one for own in (*prints, *lines) for one in own)
    alone, lines = ([{one for one in own if counts[one] == 1} for own in sets] for sets in (prints, lines))
    held = [
        frozenset(
            n
            for n, (own, whole) in enumerate(zip(alone, lines, strict=True))
            if (len(own) >= LEAST_OWN and len(own & {*(answer.prompt or ())}) >= HELD * len(own))
            or (whole and whole <= {*(answer.lines or ())})
        )
        for answer in answers
    ]
    common = frozenset[int].intersection(*held) if len(held) > 1 else frozenset()
    begun = {n for own in held if len(own) == 1 for n in own}
    if len(begun) > 1 and all(min(own) in begun and max(own) - min(own) == len(own) - 1 for own in held if own):
        return 0  # several conversations, each with its own turns before
    are_examples = all(len(own - common) <= 1 for own in held)
    return 0 if are_examples else sum(len(own) > 1 for own in held)


def _long_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(normal_form(line)) >= LEAST_OWN_LINE]


def bare_check(seen: Answering, rows: Sequence[Row]) -> Check:
    """Without retrieval a prompt holds its question, examples and what all have: no law's text, no passage."""
    if seen.evidence.settings.use_rag:
        return PROMPTS_BARE.check(None, "with_rag")
    asking = [answer for answer in seen.counting if answer.prompt]
    prompts = [answer.prompt for answer in asking if answer.prompt]
    with_others = 0 if seen.evidence.form.format == "lm_eval" else _with_others(asking, rows)
    if 2 * with_others > len(prompts):
        return PROMPTS_BARE.check(False, "with_others", prompts=len(prompts), with_others=with_others)
    beside = text_beside(prompts, rows, seen.evidence.dataset)
    if beside is None:
        return PROMPTS_BARE.check(None, say("evaluation.prompts_incomparable"))
    found = "text_of_field" if beside.field else "text_beside"
    counts: Figures = {"prompts": len(prompts), "with_text": beside.prompts, "field": one_line(beside.field, 40)}
    return PROMPTS_BARE.check(beside.prompts * 2 <= len(prompts), found, **counts)


def _other_beginning(batches: Sequence[Batch], calls: Collection[Call]) -> tuple[int, int] | None:
    """How many BOS all rows begin with, and all prompts, where that differs by the same tokenizer.

    Rows that are all as long as each other may have lost their beginning, and so may such prompts, if they begin with
    different texts.
    """
    known = [(fact.bos, fact.leading_bos) for fact in batches if fact.leading_bos]
    in_rows = {(bos, count) for bos, counts in known for count in counts}
    in_prompts = {(call.bos, count) for call in calls for count in call.leading_bos or ()}
    if sum(len(counts) for _, counts in known) < LEAST_LEADS or len(in_rows) != 1 or len(in_prompts) != 1:
        return None
    ((bos, trained),), ((other_bos, asked),) = in_rows, in_prompts
    widths = {fact.shape[1] for fact in batches if not fact.packed and len(fact.shape) > 1}
    may_be_cut = len(widths) == 1 and not any(fact.padding for fact in batches)
    lengths = [n for call in calls for n in (call.prompt_tokens if isinstance(call, Generation) else call.tokens) or ()]
    if trained:
        texts = {prints[0] for call in calls for prints in call.prompt_fingerprints if prints}
        may_be_cut = not asked and len({*lengths}) == 1 < len(texts)
    return (trained, asked) if bos == other_bos and trained != asked and not may_be_cut else None


def _lost_turns(batches: Sequence[Batch], calls: Collection[Call]) -> bool:
    """Whether all trained rows have someone's turn that no prompt has, such as the user's."""
    in_rows = [frozenset(one or ()) for fact in batches if not fact.packed for one in fact.header_hashes or ()]
    in_prompts = [one for call in calls if isinstance(call, Generation) for one in call.header_hashes or () if one]
    if len(in_rows) < LEAST_LEADS or not in_prompts:
        return False
    return bool(frozenset.intersection(*in_rows) - {one for own in in_prompts for one in own})


def _further_turns(batches: Sequence[Batch], calls: Collection[Call]) -> bool:
    """Whether all prompts have someone's turn that no trained row has, such as the system's.

    A thought's mark is nobody's turn; rows that are all as long as each other may have lost their beginning.
    """
    whole = [fact for fact in batches if not fact.packed]
    in_rows = [one for fact in whole for one in fact.header_hashes or ()]
    generations = [call for call in calls if isinstance(call, Generation) and not any(call.thinks or ())]
    in_prompts = [frozenset(one or ()) for call in generations for one in call.header_hashes or ()]
    may_be_cut = len({fact.shape[1] for fact in whole if len(fact.shape) > 1}) == 1 and not any(
        fact.padding for fact in whole
    )
    if len(in_rows) < LEAST_LEADS or not all(in_rows) or not in_prompts or may_be_cut:
        return False
    return bool(frozenset.intersection(*in_prompts) - {one for own in in_rows for one in own or ()})


def _own_examples(seen: Answering, asked: Sequence[Row]) -> int:
    """How many questions stand in their own prompt with the right answer.

    In one line with it, or twice, with the right answer first of all behind the first time.
    """
    found = 0
    for row in asked:
        gold, labels = row.correct_answer, {one.correct_answer for one in asked}
        answers = {
            text_hash(form.format(text))[:8]: label
            for label in labels if label
            for text in (label, label.upper())
            for form in LABEL_FORMS
        }  # fmt: skip
        read = [answer for answer in answers_to(seen.counting, row) if answer.lines]
        told = [*row.question.splitlines(), *(row.choices if isinstance(row.choices, list) else [])] if read else []
        whole = [line for text in told for line in _long_lines(str(text))][-MOST_LINES:]
        own = [text_hash(line)[:8] for line in whole]
        # a question and its answer in one line
        joined = {
            text_hash(before + line + between + form.format(text))[:8]
            for line, text in product(whole, {gold, gold.upper()} - {""})
            for before, between, form in product(BEFORE_QUESTION, BEFORE_ANSWER, LABEL_FORMS)
        }
        for answer in read:
            lines = answer.lines or ()
            if joined & {*lines}:
                found += 1
                break
            line = next((one for one in own if one in lines), None)
            places = [n for n, one in enumerate(lines) if one == line]
            behind = [answers[one] for one in lines[places[0] : places[-1]] if one in answers] if places else []
            if behind[:1] == [gold]:
                found += 1
                break
    return found


def scored_for(seen: Answering, rows: Sequence[Row]) -> list[list[Answer]] | None:
    """The scored texts of each row, by the question that most of which is in them; None where one has no question."""
    alone = [asked_alone(seen.evidence, row) for row in rows]
    shares = [[asked_share(answer.prompt or (), row) or 0 for row in alone] for answer in seen.answers]
    if any(max(share, default=0) < PART_OF_QUESTION for share in shares):
        return None
    pairs = list(zip(seen.answers, shares, strict=True))
    return [[answer for answer, share in pairs if share[n] == max(share)] for n in range(len(rows))]


def _told_to_score(seen: Answering, rows: Sequence[Row]) -> int:
    """How many questions have the right choice, and no other one, in a line of what was read for each of them."""
    told = 0
    for row, own in zip(rows, scored_for(seen, rows) or (), strict=False):
        choices, lines = choices_of(row.choices), [{*answer.read} for answer in own if answer.read]
        labels, gold = choices.labels or NUMBERINGS[0][: len(choices.texts)], as_label(row.correct_answer, choices)
        if gold is None or len(lines) < 2 or len(labels) != len(choices.texts):
            continue
        common = set.intersection(*lines)
        for styles in (SCORED_AS, LABEL_FORMS):
            stand = {
                label
                for label, text in zip(labels, choices.texts, strict=True)
                for one in (label, label.upper())
                if common & {text_hash(style.format(one, text=text, label=one))[:8] for style in styles}
            }
            if stand == {gold}:
                told += 1
                break
    return told


def _told_by_lines(seen: Answering, asked: Sequence[Row]) -> bool:
    """Whether several right answers each have a line that stands in all of their prompts and in no other ones."""
    by_gold: dict[str, list[set[str]]] = {}
    for row in asked:
        own = [set(one.lines) for one in answers_to(seen.counting, row) if one.lines and asks(one, row)]
        by_gold.setdefault(row.correct_answer, []).extend(own[:1])
    several = [gold for gold, lines in by_gold.items() if len(lines) >= LEAST_ALIKE]
    others = {
        gold: {line for one, own in by_gold.items() if one != gold for line in set().union(*own)} for gold in several
    }
    told = [gold for gold in several if set[str].intersection(*by_gold[gold]) - others[gold]]
    return len(told) == len(several) >= LEAST_GOLDS


# what a line says before a right answer that it gives away; after NFKC and without blanks, as lines are hashed
TELLING = (
    *("answer", "the answer", "correct", "correct answer", "right answer", "gold", "gold answer", "expected"),
    *("expected answer", "solution", "label", "target", "key", "reference", "truth", "ground truth", "hint"),
    *("正解", "正答", "答え", "解答", "回答", "ヒント", "答案", "정답", "Antwort", "Lösung", "réponse", "respuesta"),
)
_JOINING, _AROUND = (":", "=", "is", "は"), ("{}", "({})", "[{}]", "【{}】", "<{}>", "**{}**", "#{}", "-{}")


def _told_in_words(seen: Answering, asked: Sequence[Row]) -> int:
    """How many prompts name their right answer in the last line that not all of them have."""
    prompts = []
    for n, row in enumerate(asked):
        own = [one for one in answers_to(seen.counting, row) if one.lines and asks(one, row)]
        if len(own) > 1 and len(seen.counting) == len(asked):  # questions too short to be told apart
            own = [seen.counting[n]]
        prompts += [(row.correct_answer, one.lines) for one in own[:1] if row.correct_answer and one.lines]
    if len({gold for gold, _ in prompts}) < 2:
        return 0
    common = set.intersection(*({*lines} for _, lines in prompts))
    lasts = [(gold, next((one for one in reversed(lines) if one not in common), "")) for gold, lines in prompts]
    told = sum(last in _telling_lines(gold) for gold, last in lasts)
    return told if 2 * told > len(prompts) else 0


@lru_cache(maxsize=64)
def _telling_lines(gold: str) -> frozenset[str]:
    words = {form for word in TELLING for form in (word, word.capitalize(), word.title(), word.upper())}
    golds = {gold, gold.capitalize(), gold.title(), gold.upper()}
    texts = (
        f"{word}{join}{one}{end}" for word in words for join in _JOINING for one in golds for end in ("", ".", "。")
    )
    return frozenset(text_hash(around.format(text))[:8] for text in texts for around in _AROUND)


MOST_CLASSES, LEAST_OF_CLASSES = 8, 16  # answers that are learnt again and again; rows in which that is seen
ANY_LABEL = {label for labels in NUMBERINGS for label in labels[:MOST_CLASSES]} | {"0"}


def _are_other_classes(seen: Answering, batches: Sequence[Batch], asked: Sequence[Row]) -> bool:
    """Whether the few answers that were learnt, as numbers, are none of the few that count as right, as letters.

    A program may turn the ones into the others: so a response must be one of the latter, or count as it was learnt.
    Answers in words are read in many ways, and may be those of another task.
    """
    learnt = [one for fact in batches for one in fact.answer_hashes or ()]
    golds = {row.correct_answer for row in asked}
    if len(learnt) < LEAST_OF_CLASSES or not 1 < len({*learnt}) <= MOST_CLASSES or None in learnt:
        return False
    expected, labels = (
        {text_hash(form.format(text)) for one in own for text in (one, one.upper()) for form in LABEL_FORMS}
        for own in (golds, ANY_LABEL)
    )
    if len(golds) < 2 or not golds <= ANY_LABEL or expected & {*learnt} or not labels >= {*learnt}:
        return False
    said = [(row, {*(answer.hashes or ())}) for row in asked for answer in answers_to(seen.counting, row)]
    as_learnt = [row.predicted_answer in golds for row, own in said if own & {*learnt}]
    return not any(as_learnt) and (bool(as_learnt) or any(own & expected for _, own in said))


def frame_check(seen: Answering, asked: Sequence[Row]) -> Check:
    """What all trained rows have before their question stands in the prompts, and the other way round.

    A template's tokens too. Passages, an order to reason and a harness's own examples are what the evaluation adds.
    """
    settings, batches = seen.evidence.settings, (seen.evidence.training_witness or Witness()).of(Batch)
    calls = {id(answer.call): answer.call for answer in seen.counting}.values()
    if not settings.use_rag and _told_by_lines(seen, asked):
        return FRAME_AS_TRAINED.check(False, "told", severity=FAIL)
    if told := _told_in_words(seen, asked):
        return FRAME_AS_TRAINED.check(False, "told_in_words", severity=FAIL, questions=len(asked), told=told)
    scored = [row for row in asked if row.response is None] if seen.witness.of(Likelihoods) else []
    if (told := _told_to_score(seen, scored)) > 1 and 2 * told > len(scored) and not settings.use_rag:
        return FRAME_AS_TRAINED.check(False, "told_to_score", severity=FAIL, questions=len(scored), told=told)
    if examples := _own_examples(seen, asked):
        severity = FAIL if 2 * examples > len(asked) else None
        return FRAME_AS_TRAINED.check(False, "own_examples", severity=severity, examples=examples, questions=len(asked))
    if seen.wants_adapter and not settings.use_cot and _are_other_classes(seen, batches, asked):
        return FRAME_AS_TRAINED.check(False, "other_classes")
    in_rows = [count for fact in batches for count in fact.special_tokens or ()]
    in_prompts = [count for call in calls for count in call.special_tokens or ()]
    if seen.wants_adapter and in_rows and in_prompts:
        if min(in_rows) > 0 and not any(in_prompts):
            return FRAME_AS_TRAINED.check(False, "template_in_rows_only")
        if min(in_prompts) > 0 and not any(in_rows):
            return FRAME_AS_TRAINED.check(False, "template_in_prompts_only")
    if seen.wants_adapter and _lost_turns(batches, calls):
        return FRAME_AS_TRAINED.check(False, "other_turns")
    if seen.wants_adapter and not (settings.use_rag or settings.use_cot) and _further_turns(batches, calls):
        return FRAME_AS_TRAINED.check(False, "further_turns")
    if seen.wants_adapter and (beginning := _other_beginning(batches, calls)) is not None:
        return FRAME_AS_TRAINED.check(False, "other_beginning", trained=beginning[0], asked=beginning[1])
    if seen.wants_adapter and not settings.use_cot:
        ending, severity = other_ending(seen, batches, asked)
        if ending is not None:
            return FRAME_AS_TRAINED.check(False, ending, severity=severity)
    rows = [row for begins in begun(seen) for row in begins.row_fingerprints or ()]
    rows = rows or [row for fact in batches for row in fact.row_fingerprints or ()]
    prompts = [answer.prompt for answer in seen.counting if answer.prompt]
    lost, added = frame_lost(rows, prompts), None
    if not settings.use_cot and seen.evidence.form.format != "lm_eval":
        # where most batches are as wide as the widest, rows were cut there, or filled up
        widths = [fact.shape[1] for fact in batches if len(fact.shape) > 1]
        widest = [fact for fact in batches if len(fact.shape) > 1 and fact.shape[1] == max(widths)]
        are_cut = 2 * len(widest) > len(widths)
        are_full = 2 * sum(not fact.padding and not fact.packed for fact in widest) > len(widths)
        added = frame_added(prompts, rows, asked, are_cut=are_cut, are_full=are_full)
    if (lost is None and added is None) or not seen.wants_adapter or settings.use_rag:
        return FRAME_AS_TRAINED.check(None, "incomparable")
    if (lost or 0) < LEAST_LOST and (added or 0) >= LEAST_ADDED:
        return FRAME_AS_TRAINED.check(False, "added", prints=added)
    if lost is not None and lost >= LEAST_LOST:
        return FRAME_AS_TRAINED.check(False, "lost", prints=lost)
    return FRAME_AS_TRAINED.check(True, "in_rows" if lost is None else "in_prompts")
