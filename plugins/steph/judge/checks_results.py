"""Checks of the evaluation's JSON: found, fresh, well-formed, consistent with the lines, of this data set."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import product, zip_longest

from steph.base.files import UnreadableError, sha256_of
from steph.base.messages import NOTHING, Message, say, words_of
from steph.base.text import one_line
from steph.contract.lines import EvalLines, printed_accuracies
from steph.contract.questions import (
    NUMBERINGS,
    Choices,
    Question,
    as_in_dataset,
    as_label,
    choices_of,
    is_in_training,
    key_texts,
    plain_label,
    question_key,
    questions_of,
    without_choices,
)
from steph.contract.results import ACCURACY_TOLERANCE, Results, ResultsFile, Row, half_digit
from steph.judge.checks_prompts import PROMPTS, asked_share, prompt_checks
from steph.judge.checks_trained_use import PART_OF_QUESTION, Answering
from steph.judge.evidence import EvalEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Figures, Needs
from steph.judge.reading import bare, is_exception_text
from steph.judge.witness import Batch, Generation, TrainingBegins, Witness
from steph.record.values import Check

BEGUN_SLACK_SECONDS = 2.0  # the files' clock and the program's may differ
LEAST_AGAIN = 2  # questions: one may stand in the data set twice
MOST_SHOWN = 3
_SAYS_NONE = {
    "", "unanswerable", "noanswer", "none", "null", "na", "notgiven", "notfound", "noanswerpresent", "notmentioned",
    "回答なし", "答えなし", "該当なし", "不明", "わからない", "回答不能",
}  # fmt: skip
_TESTS = re.compile(r"\b(?:assert|def|check|unittest)\b\s*[\w(]")
MOST_OFF = 0.5  # of a number that may be called right within a tolerance
_NUMBER = re.compile(r"(?<![\d.])[-+]?\d{1,15}(?:\.\d{1,15})?(?![\d.]*\d)")
_NUMBER_BEFORE = re.compile(
    r"^\W{0,3}(?:問|設問|q|question|no)?\W{0,2}(\d{1,4})\s?[.:：)）、問](?!\d)\s*", re.IGNORECASE
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
SHORT_ANSWER_CHARS = 40  # a longer right answer is a model answer, which a right one need not hold
CONTEXT_STEP = 256  # tokens: the lengths of contexts are multiples of it
_LIMITS = ("max_new_tokens", "max_gen_toks", "max_completion_tokens")
_LIMIT_OPTION = re.compile(r"--max[-_]new[-_]tokens[= ](\d{1,7})\b")

JSON_WRITTEN = CheckKind("json_written", "H-3", FAIL, core=True)
JSON_FRESH = CheckKind("json_fresh", "H-3", FAIL, trap=15, core=True)
JSON_VALID = CheckKind("json_valid", "H-3", FAIL, core=True)
JSON_CONSISTENT = CheckKind("json_consistent", "H-3", FAIL, needs=(Needs.ROWS,))
CONFIG_AS_ASKED = CheckKind("config_as_asked", "H-3", WARN, optional=True, needs=(Needs.KEY_LINES,))
NO_ERROR_ANSWERS = CheckKind("no_error_answers", "H-3", FAIL, trap=2, needs=(Needs.RESPONSES,))
FLAGS_CONSISTENT = CheckKind("flags_consistent", "H-3", FAIL, needs=(Needs.GOLD,))
ROWS_DISTINCT = CheckKind("rows_distinct", "H-3", FAIL, needs=(Needs.QUESTIONS,))
QUESTIONS_OF_DATASET = CheckKind("questions_of_dataset", "H-3", FAIL, needs=(Needs.DATASET, Needs.QUESTIONS))
FIRST_ROWS = CheckKind("first_rows", "H-3", INFO, optional=True, needs=(Needs.DATASET, Needs.QUESTIONS))
TRAIN_OVERLAP = CheckKind("train_overlap", "H-3", WARN, trap=7, optional=True, needs=(Needs.QUESTIONS,))
DATASET_UNCHANGED = CheckKind("dataset_unchanged", "H-3", FAIL, optional=True, needs=(Needs.DATASET,))
RESULTS_AGREE = CheckKind("results_agree", "H-3", WARN)
_NEEDS_JSON = (
    *(CONFIG_AS_ASKED, NO_ERROR_ANSWERS, FLAGS_CONSISTENT),
    *(ROWS_DISTINCT, QUESTIONS_OF_DATASET, FIRST_ROWS, TRAIN_OVERLAP, *PROMPTS),
)


def file_checks(file: ResultsFile, lines: EvalLines, started_unix: float, stdout: str = "") -> tuple[Check, ...]:
    """Check that the file is there, young and well-formed, and that all figures of accuracy agree.

    `stdout`: of a program that prints its accuracy in words of its own.
    """
    # a second block or file of the same run that tells other figures: one of them was made up afterwards
    others = [*lines.contradictions, *(say("results.other_file", file=one_line(name, 60)) for name in file.others)]
    agree = _printed_check(file.content, stdout) if stdout and file.content and not others else None
    agree = agree or RESULTS_AGREE.check(not others, "others" if others else "one", others=others)
    name = one_line(file.name, 150)
    if file.path is None:
        unread = (kind.check(None, say("results.no_file")) for kind in (JSON_FRESH, JSON_VALID, JSON_CONSISTENT))
        return (JSON_WRITTEN.check(False, "missing", file=name), *unread, agree)
    begun = file.content.begun_unix if file.content else None
    is_replayed = begun is not None and begun < started_unix - BEGUN_SLACK_SECONDS
    age = "older" if not file.fresh else "begun_before" if is_replayed else "newer"
    return (
        JSON_WRITTEN.check(True, "written", file=name),
        JSON_FRESH.check(age == "newer", age),
        JSON_VALID.check(file.content is not None, "unusable" if file.problem else "valid", problem=file.problem),
        _consistency_check(file.content, lines),
        agree,
    )


def _printed_check(results: Results, stdout: str) -> Check | None:
    """A finding where accuracies are printed and none of them is the share of right answers, whichever they are of."""
    told, rows = printed_accuracies(stdout), results.results
    shares = {sum(row.is_correct for row in own) / len(own) for own in _by_task(rows) if own}
    shares |= {score.value for score in results.scores}
    if not told or not rows or not all(score.is_mean for score in results.scores):
        return None
    if any(math.isclose(one, share, abs_tol=max(off, ACCURACY_TOLERANCE)) for one, off in told for share in shares):
        return None
    shown = [f"{100 * one:g} %" for one, _ in told[:MOST_SHOWN]]
    return RESULTS_AGREE.check(False, "printed_otherwise", shown=shown, share=100 * max(shares))


def _by_task(rows: Sequence[Row]) -> list[list[Row]]:
    return [[*rows], *([row for row in rows if row.task == task] for task in {row.task for row in rows})]


def _consistency_check(results: Results | None, lines: EvalLines) -> Check:
    if results is None:
        return JSON_CONSISTENT.check(None, say("results.unusable"))
    if results.summary is None:
        return _scores_check(results)
    total, correct, summary = len(results.results), sum(row.is_correct for row in results.results), results.summary
    counts = (
        ("results.json_correct", summary.correct_count, correct),
        ("results.json_total", summary.total_count, total),
        ("results.printed_total", lines.total, total),
        ("results.printed_correct", lines.correct, correct),
        ("results.printed_incorrect", lines.incorrect, total - correct),
    )
    wrong = [say(what, shown=shown, counted=n) for what, shown, n in counts if shown is not None and shown != n]
    share = correct / total if total else 0.0
    accuracies = (
        ("results.json_accuracy", summary.accuracy, ACCURACY_TOLERANCE),
        ("results.printed_accuracy", lines.accuracy, max(lines.accuracy_tolerance, ACCURACY_TOLERANCE)),
    )
    for what, shown, tolerance in accuracies:
        if shown is not None and not math.isclose(shown, share, abs_tol=tolerance):
            wrong.append(say(what, shown=100 * shown, counted=100 * share))
    if wrong:
        return JSON_CONSISTENT.check(False, "differences", differences=wrong)
    return JSON_CONSISTENT.check(True, "agree", questions=total, correct=correct)


def _scores_check(results: Results) -> Check:
    """Each task's score is the mean of its rows, to the digits that it is given with."""
    wrong: list[Message | str] = [*results.contradictions]
    held, unknown = list[Message](), list[Message | str]()
    for score in results.scores:
        name = one_line("/".join(filter(None, (score.task, score.metric))), 60) or say("results.score")
        rows = [row for row in results.results if row.task == score.task]
        if score.is_mean is None:
            unknown.append(name)
            continue
        if not rows or any(row.score is None for row in rows):
            wrong.append(say("results.no_values", score=name))
            continue
        mean = sum(row.counts for row in rows) / len(rows)
        is_same = math.isclose(score.value, mean, abs_tol=max(ACCURACY_TOLERANCE, half_digit(score.value)))
        compared = say("results.mean", score=name, value=score.value, rows=len(rows), mean=mean)
        (held if is_same else wrong).append(compared)
        if score.count is not None and score.count != len(rows):
            wrong.append(say("results.count", score=name, count=score.count, rows=len(rows)))
    if wrong:
        return JSON_CONSISTENT.check(False, "differences", differences=wrong)
    if not held:
        return JSON_CONSISTENT.not_applicable(say("results.no_means", scores=unknown))
    return JSON_CONSISTENT.check(True, "scores_agree", scores=held)


def dataset_check(evidence: EvalEvidence) -> Check:
    """An evaluation that writes into its own questions can make any answer right."""
    before = evidence.dataset_sha256
    if before is None or evidence.dataset is None:
        return DATASET_UNCHANGED.check(None, "no_sha256")
    try:
        after = sha256_of(evidence.dataset)
    except OSError:
        return DATASET_UNCHANGED.check(False, "unreadable")
    return DATASET_UNCHANGED.check(before == after, "compared", before=before[:12], after=after[:12])


def content_checks(evidence: EvalEvidence, results: Results | None, lines: EvalLines) -> tuple[Check, ...]:
    """Check what the file says row by row."""
    if results is None:
        return tuple(kind.check(None, say("results.unusable")) for kind in _NEEDS_JSON)
    rows = results.results
    # the questions as they were before the evaluation, where they were kept, else as they are now; or why not
    dataset, trouble = evidence.questions, NOTHING
    if dataset is None and evidence.dataset is None:
        trouble = say("results.no_dataset")
    elif dataset is None and evidence.dataset is not None:
        try:
            dataset = questions_of(evidence.dataset)
        except UnreadableError as error:
            trouble = say("results.dataset_unreadable", reason=words_of(error))
    errors = [row for row in rows if row.predicted_answer == "error" or is_exception_text(row.response or "")]
    printed, example = lines.timeout_errors + lines.other_errors, one_line(errors[0].response, 120) if errors else ""
    counts: Figures = {"questions": len(rows), "errors": len(errors), "printed": printed, "example": example}
    return (
        _config_check(evidence, results),
        NO_ERROR_ANSWERS.check(not errors and not printed, "with_example" if errors else "counts", **counts),
        _flags_check(rows, is_free=evidence.form.kind == "generate"),
        *_dataset_checks(
            dataset,
            trouble,
            rows,
            is_exact=evidence.form.format == "lawqa",
            prompts=_prompts_asking(evidence, rows),
        ),
        _overlap_check(evidence, rows),
        *prompt_checks(evidence, rows, dataset),
    )


def _config_check(evidence: EvalEvidence, results: Results) -> Check:
    asked, config = evidence.settings, results.config
    pairs: list[tuple[str, object, object]] = [
        ("rag_enabled", config.rag_enabled, asked.use_rag),
        ("cot_enabled", config.cot_enabled, asked.use_cot),
        ("ensemble_runs", config.ensemble_runs, asked.ensemble),
        ("top_k", config.top_k, asked.top_k),
        ("load_in_4bit", config.load_in_4bit, asked.load_in_4bit),
        ("total_samples", config.total_samples, len(results.results)),
    ]
    passages = [row.retrieved_docs_count for row in results.results if type(row.retrieved_docs_count) is int]
    if not asked.use_rag and (most := max(passages, default=0)):
        pairs.append(("retrieved_docs_count", most, 0))
    shown = [pair for pair in pairs if pair[1] is not None]
    limit, claimed = _limit_beside(evidence, results)
    if not shown and claimed is None:
        return CONFIG_AS_ASKED.check(None, "no_settings")
    wrong = [
        say("results.setting", name=name, given=one_line(given, 30), asked=want)
        for name, given, want in shown
        if given != want
    ]
    wrong += [say("results.limit", claimed=claimed, limit=limit)] if limit is not None else []
    return CONFIG_AS_ASKED.check(not wrong, "otherwise" if wrong else "as_asked", settings=wrong)


def _limit_beside(evidence: EvalEvidence, results: Results) -> tuple[int | None, int | None]:
    """The limit of new tokens that cut the answers, where it is another than what was claimed; and the claim.

    A limit that no answer came to has changed none. Where a context ends, or an answer is made piece by piece, a call's
    limit is not the answer's.
    """
    extra, command = results.config.model_extra or {}, " ".join(evidence.description.evaluate.command or ())
    values = [extra.get(name) for name in _LIMITS]
    found = _LIMIT_OPTION.search(command)
    claims = [value for value in (*values, int(found[1]) if found else None) if type(value) is int and value > 0]
    if not claims:
        return None, None
    claimed = claims[0]
    told = [row.new_tokens for row in results.results if type(row.new_tokens) is int]
    calls = [call for call in evidence.witness.of(Generation) if call.limit] if evidence.witness else []
    if calls:
        limits = {call.limit or 0 for call in calls}
        limit = max(limits)
        at_context = {limit + max(call.prompt_tokens or (1,)) for call in calls}
        if claimed in limits or len(limits) > 1 or any(total % CONTEXT_STEP == 0 for total in at_context):
            return None, claimed
        made = max((count for call in calls for count in call.new_tokens or ()), default=0)
        is_cut = limit < claimed and made >= limit >= max(told, default=0)
        return (limit if is_cut or made > claimed else None), claimed
    cut = [
        row.new_tokens
        for row in results.results
        if type(row.new_tokens) is int and row.finish_reason in ("length", "max_tokens", "max_new_tokens")
    ]
    return (max(cut) if cut and 2 * max(cut) <= claimed else None), claimed


def _flags_check(rows: tuple[Row, ...], *, is_free: bool) -> Check:
    """Whether what is called right is the right answer; of free texts, whether a short right answer is in them."""
    told = [row for row in rows if row.correct_answer]
    if not is_free and rows and not told:
        return FLAGS_CONSISTENT.check(None, "other_metric", severity=INFO)
    if not is_free:
        wrong = sum(row.is_correct != (row.predicted_answer == plain_label(row.correct_answer)) for row in told)
        return FLAGS_CONSISTENT.check(wrong == 0, "compared", questions=len(rows), wrong=wrong)
    if any(row.counts > 1 for row in rows):
        return FLAGS_CONSISTENT.check(None, "other_metric", severity=INFO)
    missing = sum(
        bare(row.correct_answer) == "nan" or (row.is_correct and not row.correct_answer and not _says_none(row))
        for row in rows
    )
    if missing and (told or missing < len(rows)):
        return FLAGS_CONSISTENT.check(False, "no_gold", severity=WARN, questions=len(rows), missing=missing)
    texts = [(row.is_correct, _golds(row), row.predicted_answer or row.response or "") for row in rows]
    short = [(flag, golds, said) for flag, golds, said in texts if golds and max(map(len, golds)) <= SHORT_ANSWER_CHARS]
    if not short:
        return FLAGS_CONSISTENT.check(None, "long_answers", severity=INFO)
    near = _nearest(short)
    praised = sum(
        flag and not any(_stands_in(gold, said) for gold in golds) and (_off(golds, said) or near) >= near
        for flag, golds, said in short
    )
    missed = sum(not flag and bare(said) in map(bare, golds) for flag, golds, said in short)
    counts: Figures = {"questions": len(short), "praised": praised, "missed": missed}
    return FLAGS_CONSISTENT.check(not praised and not missed, "texts_compared", severity=WARN, **counts)


def _says_none(row: Row) -> bool:
    """Whether a question without an answer was answered so."""
    return bare(row.predicted_answer or row.response or "") in _SAYS_NONE


def _golds(row: Row) -> tuple[str, ...]:
    """The right answers, of which one is enough: what stands behind `####` in a solution, and no tests of code."""
    golds = row.also_right or (row.correct_answer,)
    ends = (gold.rpartition("####")[2].strip() for gold in golds if not _TESTS.search(gold))
    return tuple(gold for gold in ends if bare(gold))


def _off(golds: Sequence[str], said: str) -> float | None:
    """How far the nearest number in a text is from a right answer that is a number, as a share of it."""
    wanted = [float(_THOUSANDS.sub("", gold)) for gold in golds if _NUMBER.fullmatch(gold.strip())]
    given = [float(one) for one in _NUMBER.findall(_THOUSANDS.sub("", unicodedata.normalize("NFKC", said)))]
    return min((abs(one - want) / (abs(want) or 1) for one in given for want in wanted), default=None)


def _nearest(answers: Sequence[tuple[bool, Sequence[str], str]]) -> float:
    """How far off a number is right no more, where those nearer are right and all not far from it; else 0."""
    known = [(flag, off) for flag, golds, said in answers if (off := _off(golds, said)) is not None]
    right, wrong = ([off for flag, off in known if flag is is_right] for is_right in (True, False))
    is_tolerance = bool(right and wrong) and max(right) < min(min(wrong), MOST_OFF)
    return min(wrong) if is_tolerance else 0.0


def _stands_in(gold: str, said: str) -> bool:
    """Whether a text has a right answer's letters and digits, or its number; a number is not part of a longer one.

    Of an object of JSON each word is in it, in whatever order.
    """
    if gold.lstrip().startswith(("{", "[")):
        return all(bare(word) in bare(said) for word in re.findall(r"\w+", gold))
    if _off((gold,), said) == 0:
        return True
    plain = bare(gold)
    if plain not in bare(said):
        return False
    digits = re.compile(rf"(?<!\d){'[^0-9]?'.join(plain)}(?!\d)") if plain.isdecimal() and plain.isascii() else None
    return digits is None or digits.search(unicodedata.normalize("NFKC", said)) is not None


def _dataset_checks(
    dataset: tuple[Question, ...] | None,
    trouble: Message,
    rows: tuple[Row, ...],
    *,
    is_exact: bool,
    prompts: int | None = None,
) -> tuple[Check, ...]:
    """The rows are the data set's first ones, each once, with its answers; of another format than lawqa only nearly.

    Rows of one's own choice or order are another evaluation; a few of the first ones replaced were dropped. `prompts`:
    how many different ones asked the rows' questions, None where that was not seen.
    """
    keys = tuple(row.task + question_key(row.question, row.choices) for row in rows)
    if dataset is None:
        distinct = ROWS_DISTINCT.check(None, trouble)
        if not is_exact:  # rows alone: a data set may itself have a question twice, but not half of its questions
            numbers = [match and int(match[1]) for match in (_NUMBER_BEFORE.match(row.question) for row in rows)]
            # an ordinal or a date, which is the question's own, does not count the rows
            if rows and numbers == [*range(numbers[0] or 0, (numbers[0] or 0) + len(rows))]:
                plain = (_NUMBER_BEFORE.sub("", row.question) or row.question for row in rows)
                keys = tuple(row.task + question_key(text, row.choices) for row, text in zip(rows, plain, strict=True))
            again = len(keys) - len({*keys})
            found, severity = ("half", None) if _is_half_again(rows, keys, prompts) else ("repeated", WARN)
            distinct = ROWS_DISTINCT.check(again == 0, found, severity=severity, questions=len(keys), repeated=again)
        return (distinct, *(kind.check(None, trouble) for kind in (QUESTIONS_OF_DATASET, FIRST_ROWS)))
    keys = keys if is_exact else as_in_dataset(keys, dataset)
    count, known = len(keys), Counter(question.key for question in dataset)
    repeated = sum((Counter(keys) - Counter({key: known.get(key, 1) for key in keys})).values())
    answers: dict[str, set[str]] = {}
    for question in dataset:
        answers.setdefault(question.key, set()).update((question.answer, *question.also_right))
    foreign = sum(key not in answers for key in keys)
    told = [
        (row, key, own)
        for row, key in zip(rows, keys, strict=True)
        if row.correct_answer and (own := answers.get(key, {""})) != {""}
        and {*map(plain_label, row.also_right or (row.correct_answer,))}.isdisjoint({*own, *_moved(row, key, own)})
    ]  # fmt: skip
    told = [] if _are_words_for(told, rows) else told
    # both may count choices from 0 or from 1, in all rows alike
    changed = min(sum(not _is_choice(*one, *firsts) for one in told) for firsts in product((0, 1), repeat=2))
    # answers that were made the right ones: in the data set's own letters, and all of them count
    labels = {one for own in answers.values() for one in own}
    is_credited = changed > 1 and all(row.is_correct and plain_label(row.correct_answer) in labels for row, *_ in told)
    origin: Figures = {"questions": count, "foreign": foreign, "changed": changed}
    firsts = tuple(question.key for question in dataset[:count])
    held, in_order = (Counter(firsts) & Counter(keys)).total(), firsts == keys
    order = FIRST_ROWS.check(in_order, "in_order" if in_order else "otherwise", questions=count)
    if count / 2 <= held < count:
        order = FIRST_ROWS.check(False, "replaced", severity=WARN, questions=count, replaced=count - held)
    return (
        ROWS_DISTINCT.check(repeated == 0, "repeated", questions=count, repeated=repeated),
        QUESTIONS_OF_DATASET.check(
            not foreign and not changed, "compared", severity=None if is_exact or is_credited else WARN, **origin
        ),
        order,
    )


def _are_words_for(told: Sequence[tuple[Row, str, set[str]]], rows: Sequence[Row]) -> bool:
    """Whether all rows' right answers are words for the data set's, one for each: positive for 1.

    Some must be alike, unless the data set's are numbers and no choices are known that these count.
    """
    pairs = {(*own, row.correct_answer) for row, _, own in told if len(own) == 1}
    labels, words = {pair[0] for pair in pairs}, {pair[1] for pair in pairs if len(pair) == 2}
    is_one_to_one = len(labels) == len(words) == len(pairs) and labels.isdisjoint(words)
    are_numbers = all(map(str.isdecimal, labels)) and not any(map(str.isdecimal, words))
    is_sure = len(pairs) < len(rows) or (are_numbers and not any(row.choices for row in rows))
    return len(told) == len(rows) and len(pairs) > 1 and is_one_to_one and is_sure


def _prompts_asking(evidence: EvalEvidence, rows: Sequence[Row]) -> int | None:
    """How many different prompts asked the rows' questions; None where not all prompts are known."""
    seen = Answering(evidence, evidence.witness or Witness())
    answers = [answer for answer in seen.counting if answer.prompt_hash]
    if not seen.are_all_seen or len(answers) < len(seen.counting):
        return None
    shares = ((one.prompt_hash, asked_share(one.prompt or (), row)) for row in rows for one in answers)
    # a short question can't be told in a prompt, which may then be its own
    return len({prompt for prompt, share in shares if share is None or share >= PART_OF_QUESTION}) or None


def _is_half_again(rows: Sequence[Row], keys: Sequence[str], prompts: int | None) -> bool:
    """Whether half of the questions or more are others asked again.

    What rows record of a question may be what all questions share: their prompts tell, or else their choices.
    """
    if prompts is None and not all(row.asked or row.choices for row in rows):
        return False
    each = Counter((key, row.correct_answer, row.asked) for key, row in zip(keys, rows, strict=True))
    again = len(rows) - (len(each) if prompts is None else max(prompts, len({*keys})))
    return again >= LEAST_AGAIN and 2 * again >= len(rows)


def _moved(row: Row, key: str, answers: Collection[str]) -> set[str]:
    """The letters of the right choices where the row records the data set's choices in another order."""
    recorded, own = key_texts(question_key("", row.choices))[1], key_texts(key)[1]
    if sorted(recorded) != sorted(own):
        return set()
    numbered = [(one, one.index(answer)) for answer in answers for one in NUMBERINGS if answer in one[: len(own)]]
    return {one[recorded.index(own[place])] for one, place in numbered}


def _is_choice(row: Row, key: str, answers: Collection[str], first: int, first_of_dataset: int) -> bool:
    """Whether a row's right answer is the data set's choice, where one of them records its text or number."""
    own = Choices(key_texts(key)[1])
    recorded = Choices(key_texts(question_key("", row.choices))[1], choices_of(row.choices).labels)
    said = _text_of(row.correct_answer, recorded if recorded.texts else own, first)
    return said is not None and said in {_text_of(answer, own, first_of_dataset) for answer in answers}


def _text_of(answer: str, choices: Choices, first: int) -> str | None:
    label = as_label(answer, choices, first)
    labels = choices.labels or NUMBERINGS[0]
    return choices.texts[labels.index(label)] if label is not None else None


def _overlap_check(evidence: EvalEvidence, rows: tuple[Row, ...]) -> Check:
    """Questions with their choices; scored choices are the answer's texts, so that there the question alone tells.

    A prompt that was trained on, token by token, though the training file has no such question, was brought along by
    the program.
    """
    again, asked = _trained_prompts(evidence, rows)
    if evidence.train_questions is None:
        if again:
            return TRAIN_OVERLAP.check(False, "trained_on", prompts=asked, again=again)
        return TRAIN_OVERLAP.check(None, "no_training_data")
    is_free = evidence.form.format != "lawqa"
    keys = [question_key(row.question, None if is_free and row.response is None else row.choices) for row in rows]
    seen = sum(is_in_training(key, evidence.train_questions) for key in keys)
    alone = sum(is_in_training(without_choices(key), evidence.train_questions) for key in keys)
    if again and not alone:
        severity = FAIL if 2 * again >= asked and all(row.question for row in rows) else None
        return TRAIN_OVERLAP.check(False, "trained_on", severity=severity, prompts=asked, again=again)
    found = "more_alone" if alone > seen else "seen"
    return TRAIN_OVERLAP.check(seen == 0, found, questions=len(keys), seen=seen, alone=alone)


def _trained_prompts(evidence: EvalEvidence, rows: Sequence[Row]) -> tuple[int, int]:
    """How many of the prompts that were seen stood before an answer in the training, and how many these are.

    Trained rows may be asked, too, as for their own accuracy: only prompts of the results' questions count.
    """
    training = evidence.training_witness or Witness()
    known = [fact.prompt_hashes for fact in training.of(TrainingBegins)]
    trained = {one for own in (*known, *(fact.prompt_hashes for fact in training.of(Batch))) for one in own}
    calls = evidence.witness.of(Generation) if evidence.witness else ()
    asked = {
        one: (turn, prompt or ())
        for call in calls
        for one, turn, prompt in zip_longest(call.prompt_hashes, call.turn_hashes, call.prompt_fingerprints)
        if one
    }
    turns = Counter(turn for turn, _ in asked.values())  # what several prompts have before their last turn is a frame
    again = [
        prompt for one, (turn, prompt) in asked.items() if one in trained or (turns[turn] == 1 and turn in trained)
    ]
    shares = [[asked_share(prompt, row) for row in rows] for prompt in again]
    told = sum(any((share or 0) >= PART_OF_QUESTION for share in own) for own in shares)
    # short questions can't be told in a prompt: as many of these as there are too many may be others
    untold = sum(None in own and all((share or 0) < PART_OF_QUESTION for share in own) for own in shares)
    counted = told + max(0, untold - max(0, len(asked) - len(rows)))
    return counted, len(asked) - len(again) + counted
