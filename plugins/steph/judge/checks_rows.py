"""Holds the rows that a training was seen to get against the rows of the file that it was given. Reads that file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from statistics import median

from steph.base.files import json_rows
from steph.base.fingerprint import fingerprints, normal_form, text_hash
from steph.base.messages import say
from steph.contract.rows import RowFormat, training_row
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, WARN, CheckKind, Needs
from steph.judge.witness import Batch, TrainingBegins
from steph.record.values import Check

MOST_READ_CHARS = 300_000  # of a file's texts; of a longer one the first rows are compared, and can only confirm
LEAST_ROWS = 4  # with fingerprints; of fewer nothing is common
COMMON_SHARE = 0.25  # of the rows; what more of them have is a template
LEAST_OWN = 3  # fingerprints that a row has to itself; fewer say nothing
LEAST_FROM_FILE = 0.5  # of a row's own fingerprints, the median row
SEAM_RUN = 2  # own fingerprints that one seam can make: a piece is 12 characters, and one in eight is kept
FOREIGN_RUN = 8  # own fingerprints in a row that the file has not: about 64 characters, more than a template's seams
EDGE_CHARS = 11  # next to a template's text, where pieces are half the file's and half the template's
MOST_EDGES = 12  # different beginnings or ends of a field; more, and each row has seams of its own
FEW_ROWS, MANY_ROWS = 0.5, 1.05  # of the file's: dropped, held out and packed rows are no finding, half of them is
MOST_REPEATED = 0.05  # of the rows, beyond those that the file itself repeats
LEAST_SEEN, MOST_AGAIN = 8, 0.75  # rows of the first batches; the share of them that four passes over each batch make
WHOLE_SHARE = 0.8  # of a file row's fingerprints that a row holds which is not cut
NARROW_SHARE = 0.9  # of the length that was asked for

ROWS_SEEN = CheckKind("rows_seen", "H-2", WARN, trap=22, optional=True, needs=(Needs.TRAIN_ROWS,))
ROWS_WHOLE = CheckKind("rows_whole", "H-2", WARN, trap=1, optional=True, needs=(Needs.TRAIN_ROWS,))
ANSWERS_OF_FILE = CheckKind("answers_of_file", "H-2", FAIL, trap=22, optional=True, needs=(Needs.TRAIN_ROWS,))
ROW_IDENTITY = (ROWS_SEEN, ROWS_WHOLE, ANSWERS_OF_FILE)


@dataclass(frozen=True)
class _FileRows:
    """The texts of a training file: how many rows, how many different ones, its rows' fields as fingerprints.

    `answers`: the hash of each row's last text; `has_blank_answers`: one of these begins with a line break. `prompts`:
    the hashes of texts that are no row's answer, such as its question.
    """

    rows: int
    distinct: int
    fields: tuple[tuple[tuple[str, ...], ...], ...]  # of the first rows only where `is_part`
    is_part: bool
    answers: tuple[str, ...]  # of the same rows as `fields`
    has_blank_answers: bool
    prompts: frozenset[str]
    has_plain_edges: bool  # its fields begin and end alike in all rows, so that a template leaves no seams

    @property
    def known(self) -> frozenset[str]:
        return frozenset(one for row in self.fields for field in row for one in field)


def row_checks(evidence: TrainEvidence, begins: TrainingBegins | None, batches: Sequence[Batch]) -> tuple[Check, ...]:
    """Whether the rows are the file's, each once, and whole."""
    file = _file_rows(evidence.train_file, evidence.row_format)
    if begins is None or file is None:
        why = say("rows.no_training_seen") if begins is None else say("rows.no_file")
        return tuple(kind.check(None, why) for kind in ROW_IDENTITY)
    seen = begins.row_fingerprints or tuple(
        row for batch in batches if not batch.packed for row in batch.row_fingerprints or ()
    )
    packing = begins.packing or any(batch.packed for batch in batches)
    begins = begins.model_copy(update={"packing": packing})
    widths = [batch.shape[1] for batch in batches if len(batch.shape) > 1]
    is_narrow = bool(widths) and max(widths) < NARROW_SHARE * evidence.settings.max_seq_length
    return (
        _origin_check(
            begins,
            file,
            batches,
            () if begins.packing else seen,
            evidence.train_rows,
            evidence.settings.max_seq_length,
            is_narrow=is_narrow,
        ),
        _whole_check(file, () if begins.packing else seen, evidence, max(widths, default=0), is_narrow=is_narrow),
        _answers_check(file, begins, batches),
    )


def _answers_check(file: _FileRows, begins: TrainingBegins, batches: Sequence[Batch]) -> Check:
    """Labels that are another row's answer, a question, or nothing but an end token; others say nothing."""
    rows = dict(zip(begins.row_hashes or (), begins.row_fingerprints or (), strict=False))
    nothing, known = text_hash(""), {*file.answers}
    compared = wrong = blank = 0
    for batch in batches:
        hashes, answers = batch.row_hashes or (), batch.answer_hashes or ()
        left = [end for end in batch.unlabelled_end_hashes or () if end in known and end != nothing]
        compared, wrong = compared + len(left), wrong + len(left)
        texts = batch.row_fingerprints or [()] * len(hashes)
        begins_blank = batch.begins_blank or [None] * len(hashes)
        for row, answer, first, is_blank, text in zip(
            hashes, answers, batch.first_supervised or (), begins_blank, texts, strict=False
        ):
            if answer in file.prompts:
                compared, wrong = compared + 1, wrong + 1
                continue
            own = _answers_at(file, rows.get(row) or tuple(text)) if first else frozenset()
            if own and answer in known | {nothing}:
                compared += 1
                wrong += answer not in own
                blank += bool(is_blank)
    if compared < LEAST_ROWS:
        return ANSWERS_OF_FILE.check(None, "too_few", least=LEAST_ROWS)
    if not wrong and 2 * blank > compared and not file.has_blank_answers:
        return ANSWERS_OF_FILE.check(False, "blank_line", severity=WARN, compared=compared, blank=blank)
    severity = WARN if 0 < wrong * 2 <= compared else None
    return ANSWERS_OF_FILE.check(not wrong, "compared", severity=severity, compared=compared, wrong=wrong)


def _answers_at(file: _FileRows, row: tuple[str, ...]) -> frozenset[str]:
    """The answers of the file's rows that a trained row may be, by what stands before the answer; none if none fits."""
    places = {one: place for place, one in enumerate(row)}
    shares = []
    for fields, answer in zip(file.fields, file.answers, strict=True):
        before = fields[: (len(fields) - 1) // 2]  # fields, then their seams
        asked = {one for field in before for one in field}
        if len(asked) >= LEAST_OWN:
            shares.append((len(asked & places.keys()) / len(asked), answer, before))
    best = max((share for share, _, _ in shares), default=0.0)
    fitting = [(answer, before) for share, answer, before in shares if share == best >= WHOLE_SHARE]
    if not any(all(_is_as_written(field, places) for field in before) for _, before in fitting):
        return frozenset()
    return frozenset(answer for answer, _ in fitting)


def _is_as_written(field: Sequence[str], places: Mapping[str, int]) -> bool:
    """Whether a row has a field's text as it stands, or cut at its ends: choices in another order may be asked anew."""
    held = [(place, places[one]) for place, one in enumerate(field) if one in places]
    return all(after[0] == before[0] + 1 and after[1] > before[1] for before, after in pairwise(held))


def _origin_check(
    begins: TrainingBegins,
    file: _FileRows,
    batches: Sequence[Batch],
    seen: Sequence[tuple[str, ...]],
    rows_given: int | None,
    asked: int,
    *,
    is_narrow: bool,
) -> Check:
    troubles, measured = [], []
    given = rows_given or file.rows
    if begins.rows is not None and not begins.packing:
        measured.append(say("rows.count", rows=begins.rows, given=given))
        if not FEW_ROWS * given < begins.rows <= MANY_ROWS * given + 1:
            troubles.append(say("rows.other_count", rows=begins.rows, given=given))
    if begins.row_hashes and not begins.packing:
        repeated = len(begins.row_hashes) - len(set(begins.row_hashes))
        own = 1 - file.distinct / max(file.rows, 1)
        measured.append(say("rows.repeated", repeated=repeated))
        if repeated > 1 and repeated / len(begins.row_hashes) > own + MOST_REPEATED:
            troubles.append(say("rows.own_repeats", rows=len(begins.row_hashes), repeated=repeated))
    again = 0 if begins.packing else _drawn_again(begins, batches) or _hardly_new(begins, file, batches, given)
    if again or (begins.sampler and begins.sampler.replacement and not _is_weighted(begins)):
        troubles.append(say("rows.drawn_again", rows=again) if again else say("rows.replaced"))
    strange = [not one for batch in batches if not _may_be_cut(batch, asked) for one in batch.of_data_set or ()]
    if len(strange) >= LEAST_ROWS and 2 * sum(strange) > len(strange):
        troubles.append(say("rows.changed", rows=len(strange), changed=sum(strange)))
    foreign = _foreign_share(file, seen, exact=file.has_plain_edges and is_narrow)
    if foreign is not None:
        measured.append(say("rows.compared", rows=len(seen)))
        if foreign > 0.5:
            troubles.append(say("rows.foreign", rows=len(seen), percent=100 * foreign))
    if troubles:
        return ROWS_SEEN.check(False, "otherwise", troubles=troubles)
    return ROWS_SEEN.check(True, "of_file", measured=measured) if measured else ROWS_SEEN.check(None, "uncounted")


def _may_be_cut(batch: Batch, asked: int) -> bool:
    """Whether rows as wide as was asked for may have been cut to that by the collator."""
    return len(batch.shape) > 1 and batch.shape[1] >= NARROW_SHARE * asked


def _drawn_again(begins: TrainingBegins, batches: Sequence[Batch]) -> int:
    """Rows that came a second time in the steps of the first epoch, before others had come once.

    Rows that are alike in the data set itself are no sign, and nor is one row, which a sampler gives twice to fill up.
    """
    if _is_weighted(begins) or not begins.row_hashes:
        return 0
    counts = Counter(begins.row_hashes)
    a_step = max(1, (begins.batch_size or 1) * (begins.accumulation or 1) * (begins.world_size or 1))
    steps = len(begins.row_hashes) // a_step
    seen: dict[int, Counter[str]] = {}
    for batch in batches:
        if batch.step is not None and batch.step < steps:
            seen.setdefault(batch.pid, Counter()).update(batch.row_hashes or ())
    again = sum(number - 1 for rows in seen.values() for row, number in rows.items() if number > 1 and counts[row] == 1)
    return again if again > 1 else 0


def _hardly_new(begins: TrainingBegins, file: _FileRows, batches: Sequence[Batch], given: int) -> int:
    """Rows of a loop's first batches that came again where nearly all did and the file has enough others.

    A batch may be computed several times in one step, and a sampler may draw rows again.
    """
    if _is_weighted(begins) or begins.row_hashes:
        return 0
    seen = [row for batch in batches for row in batch.row_hashes or ()]
    again = len(seen) - len(set(seen))
    own = 1 - file.distinct / max(file.rows, 1)
    return again if LEAST_SEEN <= len(seen) <= given and again > (MOST_AGAIN + own) * len(seen) else 0


def _is_weighted(begins: TrainingBegins) -> bool:
    """Whether a sampler draws by weights, which is meant to repeat rows."""
    return begins.sampler is not None and "Weight" in (begins.sampler.kind or "")


def _foreign_share(file: _FileRows, seen: Sequence[tuple[str, ...]], *, exact: bool) -> float | None:
    """The share of rows that say what the file does not; `exact`: no seams and no cuts can look like that."""
    rows = _own(seen)
    if len(rows) < LEAST_ROWS or not file.fields:
        return None
    known = file.known
    foreign = [[one not in known for one in own] for own in rows]
    if not exact:
        foreign = [kept for flags in foreign if len(kept := _without_seams(flags)) >= LEAST_OWN]
        if len(foreign) < LEAST_ROWS:
            return None
    elsewhere = median(1 - sum(flags) / len(flags) for flags in foreign) < LEAST_FROM_FILE
    longest = FOREIGN_RUN if not exact else 1
    share = 1.0 if elsewhere else sum(_longest_run(flags) >= longest for flags in foreign) / len(foreign)
    return None if file.is_part and share else share


def _own(seen: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """What each row has to itself: no template, which most rows have."""
    counts = Counter(one for row in seen for one in set(row))
    rows = [[one for one in row if counts[one] <= max(1, COMMON_SHARE * len(seen))] for row in seen]
    return [own for own in rows if len(own) >= LEAST_OWN]


def _without_seams(flags: Sequence[bool]) -> list[bool]:
    """Without the short runs that are not in the file: where a template meets a row's text, pieces hold both."""
    runs = [list(run) for _, run in groupby(flags)]
    return [flag for run in runs if not run[0] or len(run) > SEAM_RUN for flag in run]


def _longest_run(flags: Sequence[bool]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def _whole_check(
    file: _FileRows, seen: Sequence[tuple[str, ...]], evidence: TrainEvidence, width: int, *, is_narrow: bool
) -> Check:
    asked = evidence.settings.max_seq_length
    if len(seen) < LEAST_ROWS or not width or not file.fields or file.is_part:
        return ROWS_WHOLE.check(None, "incomparable")
    texts = [frozenset(one for field in row for one in field) for row in file.fields]
    texts = [text for text in texts if len(text) >= LEAST_OWN]
    cut = compared = 0
    for row in map(frozenset, seen):
        held = max(((len(row & text), len(text)) for text in texts), default=(0, 1))
        if held[0] < LEAST_OWN:
            continue
        compared += 1
        cut += held[0] < WHOLE_SHARE * held[1]
    if not compared:
        return ROWS_WHOLE.check(None, "incomparable")
    is_whole = not (is_narrow and cut * 2 > compared)
    return ROWS_WHOLE.check(is_whole, "compared", compared=compared, cut=cut, width=width, asked=asked)


def _file_rows(path: Path | None, row_format: RowFormat) -> _FileRows | None:
    if path is None:
        return None
    try:
        read = [(texts, _asked(row, row_format)) for row in json_rows(path) if (texts := _row_texts(row, row_format))]
    except OSError:
        return None
    if not read:
        return None
    rows = [texts for texts, _ in read]
    distinct = len({tuple(map(normal_form, row)) for row in rows})
    sizes = accumulate(sum(map(len, row)) for row in rows)
    first = rows[: max(1, sum(size <= MOST_READ_CHARS for size in sizes))]
    fields = tuple(tuple(map(fingerprints, (*row, *_seams(row)))) for row in first)
    edges = [
        {normal_form(row[n])[part] for row in first if n < len(row)}
        for n in range(max(map(len, first)))
        for part in (slice(EDGE_CHARS), slice(-EDGE_CHARS, None))
    ]
    has_plain_edges = all(len(edge) <= MOST_EDGES for edge in edges[:-1])
    answers = tuple(text_hash(row[-1]) for row in first)
    has_blank_answers = any(row[-1].lstrip(" ").startswith("\n") for row in first)
    asked = {text_hash(text) for _, texts in read[: len(first)] for text in texts}
    prompts = frozenset(asked - {*answers, text_hash("")})
    is_part = len(first) < len(rows)
    return _FileRows(len(rows), distinct, fields, is_part, answers, has_blank_answers, prompts, has_plain_edges)


def _seams(row: Sequence[str]) -> Iterator[str]:
    """Where one field meets the next, as in a template that joins them."""
    plain = [normal_form(text) for text in row]
    yield from (one[-EDGE_CHARS:] + next_one[:EDGE_CHARS] for one, next_one in pairwise(plain))


def _row_texts(row: Mapping[str, object], row_format: RowFormat) -> tuple[str, ...]:
    """What a row teaches, its answer last; of a row of another format all its texts."""
    try:
        return tuple(turn.text for turn in training_row(row, row_format).turns if turn.text)
    except ValueError:
        return tuple(_texts(row))


def _asked(row: Mapping[str, object], row_format: RowFormat) -> tuple[str, ...]:
    """What a row says that no answer is; nothing of a row of another format."""
    try:
        return training_row(row, row_format).unlearnt
    except ValueError:
        return ()


def _texts(value: object) -> Iterator[str]:
    """The texts of a row in their order, but for what describes it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in ("meta", "metadata", "role", "id"):
                yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
