"""Holds the rows that a training was seen to get against the rows of the file that it was given. Reads that file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from statistics import median

from steph.base.files import json_rows
from steph.base.fingerprint import cached_fingerprints as fingerprints
from steph.base.fingerprint import normal_form, text_hash
from steph.base.messages import Message, say
from steph.contract.rows import RowFormat, training_row
from steph.judge.checks_setup import training_in
from steph.judge.evidence import TrainEvidence
from steph.judge.kinds import FAIL, INFO, WARN, CheckKind, Needs
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
FEW_ROWS, MANY_ROWS = 0.5, 1.05  # of the file's: dropped, held out and packed rows are no finding, half of them is
MOST_REPEATED = 0.05  # of the rows, beyond those that the file itself repeats
LEAST_BLOCK = 64  # tokens, where no file tells
LEAST_SEEN, MOST_AGAIN = 8, 0.75  # rows of the first batches; the share of them that four passes over each batch make
WHOLE_SHARE = 0.8  # of a file row's fingerprints that a row holds which is not cut
CHANCE = 1e-4  # of rows that are alike after a shuffle
OWN_ORDER = "curriculum|sequential|shuffl|sort"
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
    most_alike: float  # the share of rows that have the commonest answer
    has_plain_edges: bool  # its fields begin and end alike in all rows, so that a template leaves no seams
    words: tuple[tuple[str, ...], ...] = ()  # of the fields, as they stand in the file

    @property
    def known(self) -> frozenset[str]:
        return frozenset(one for row in self.fields for field in row for one in field)

    @property
    def texts(self) -> list[frozenset[str]]:
        """What each row says, without the seams between its fields, where a template may stand."""
        return [frozenset(one for field in row[: (len(row) + 1) // 2] for one in field) for row in self.fields]

    @cached_property
    def single(self) -> frozenset[str]:
        """What only one of them has: no passage that several ask about."""
        counts = Counter(one for text in {*self.texts} for one in text)
        return frozenset(one for one, count in counts.items() if count == 1)


def with_blocks(evidence: TrainEvidence) -> TrainEvidence:
    """The evidence, in which batches of blocks are packed ones: texts one behind the other, cut at one length.

    Such rows fill their batches, all as wide as each other, as rows that are cut to one length do as well. But a block
    neither begins as a text of the file does nor ends as one. Where no file tells, all of its tokens are learnt, and
    blocks do not begin alike.
    """
    seen = training_in(evidence.witness)
    batches = [one for one in seen.batches if len(one.shape) == 2 and not one.packed] if seen else []
    if seen is None or evidence.witness is None or not batches:
        return evidence
    width, count = Counter(one.shape[1] for one in batches).most_common(1)[0]
    alike = [one for one in batches if one.shape[1] == width]
    rows = sum(one.shape[0] for one in alike)
    if 2 * count <= len(batches) or rows < LEAST_ROWS or any(one.padding != 0 for one in alike):
        return evidence
    known = dict(zip(seen.begins.row_hashes or (), seen.begins.row_fingerprints or (), strict=False))
    texts = [
        known.get(name) or text
        for one in alike
        for name, text in zip(
            one.row_hashes or [""] * one.shape[0], one.row_fingerprints or [()] * one.shape[0], strict=False
        )
    ]
    file = _file_rows(evidence.train_file, evidence.row_format)
    pieces = file.known if file else frozenset()
    of_file = ([one for one in text if one in pieces] for text in texts)
    told = [text for text in of_file if len(text) >= LEAST_OWN]
    if told and file:
        fields = [field for row in file.fields for field in row[: (len(row) + 1) // 2] if field]
        firsts, lasts = {field[0] for field in fields}, {field[-1] for field in fields}
        are_blocks = 2 * sum(text[0] not in firsts and text[-1] not in lasts for text in told) > len(told)
    else:
        are_blocks = (file is None or file.is_part) and _fill_alike(alike, texts, width)
    if not are_blocks:
        return evidence
    packed = {id(one): one.model_copy(update={"packed": True}) for one in alike}
    processes = tuple(
        replace(process, facts=tuple(packed.get(id(fact), fact) for fact in process.facts))
        for process in evidence.witness.processes
    )
    return replace(evidence, witness=replace(evidence.witness, processes=processes))


def _fill_alike(batches: Sequence[Batch], texts: Sequence[Sequence[str]], width: int) -> bool:
    """Whether rows learn all of their tokens and begin each with another text, as blocks of a long one do."""
    edges = [
        (first, tail)
        for one in batches
        for first, tail in zip(one.first_supervised or (), one.unsupervised_tail or (), strict=False)
    ]
    begins = Counter(text[0] for text in texts if text)
    is_whole = len(edges) >= LEAST_ROWS and all((first or 0) <= 1 and tail == 0 for first, tail in edges)
    has_bos = any(count for one in batches for count in one.leading_bos or ())
    is_alike = 2 * max(begins.values(), default=0) > begins.total() > 0
    return is_whole and width >= LEAST_BLOCK and not has_bos and not is_alike


def row_checks(evidence: TrainEvidence, begins: TrainingBegins | None, batches: Sequence[Batch]) -> tuple[Check, ...]:
    """Whether the rows are the file's, each once, and whole."""
    file = _file_rows(evidence.train_file, evidence.row_format)
    if begins is None or file is None:
        why = say("rows.no_training_seen") if begins is None else say("rows.no_file")
        return tuple(kind.check(None, why) for kind in ROW_IDENTITY)
    packing = begins.packing or any(batch.packed for batch in batches)
    begins = begins.model_copy(update={"packing": packing})
    seen = begins.row_fingerprints or tuple(
        row for batch in batches if not batch.packed for row in batch.row_fingerprints or ()
    )
    widths = [batch.shape[1] for batch in batches if len(batch.shape) > 1]
    is_narrow = bool(widths) and max(widths) < NARROW_SHARE * evidence.settings.max_seq_length
    # rows most of which were cut are on average longer than half of the limit, however much padding is behind them
    filled = [batch.shape[1] * (1 - (batch.padding or 0)) for batch in batches if len(batch.shape) > 1]
    is_short = bool(filled) and max(filled) < NARROW_SHARE * evidence.settings.max_seq_length / 2
    given = evidence.train_rows or file.rows
    foreign = _foreign_share(file, () if packing else seen, exact=file.has_plain_edges and is_narrow)
    troubles, measured = _counts(begins, file, batches, given)
    # rows as wide as was asked for may have been cut to that by the collator
    narrow = NARROW_SHARE * evidence.settings.max_seq_length
    own = [batch for batch in batches if len(batch.shape) < 2 or batch.shape[1] < narrow]
    strange = [not one for batch in own for one in batch.of_data_set or ()]
    if len(strange) >= LEAST_ROWS and 2 * sum(strange) > len(strange):
        troubles.append(say("rows.changed", rows=len(strange), changed=sum(strange)))
    severity = None
    if foreign is not None:
        measured.append(say("rows.compared", rows=len(seen)))
    if not packing and _are_of_another_file(file, seen):
        severity = FAIL
        troubles.append(say("rows.none_of_file", rows=len(seen)))
    elif foreign is not None and foreign > 0.5:
        troubles.append(say("rows.foreign", rows=len(seen), percent=100 * foreign))
    origin = ROWS_SEEN.check(True, "of_file", measured=measured) if measured else ROWS_SEEN.check(None, "uncounted")
    answers = _answers_check(file, begins, batches)
    if answers.holds is not False and not packing and not evidence.says(OWN_ORDER):
        asked = evidence.settings
        epochs = min(asked.num_epochs, asked.max_steps * asked.effective_batch_size / max(1, given))
        origin = _order_check(file, begins, batches, epochs) or origin
    return (
        ROWS_SEEN.check(False, "otherwise", severity=severity, troubles=troubles) if troubles else origin,
        _whole_check(file, () if packing else seen, evidence, max(widths, default=0), is_narrow=is_narrow or is_short),
        answers,
    )


def _order_check(file: _FileRows, begins: TrainingBegins, batches: Sequence[Batch], most: float) -> Check | None:
    """Rows in an order that hardly any shuffle gives: their answers are all alike, or each epoch is as the one before.

    `most`: epochs that the steps asked for can be. Of a loop the file's order tells, of a Trainer its sampler.
    """
    sampler = (begins.sampler and begins.sampler.kind) or ""
    learnt = [answer for batch in batches for answer in batch.answer_hashes or () if answer]
    rows = min(len(learnt), len({row for batch in batches for row in batch.row_hashes or ()}))
    if len({*learnt}) == 1 and file.most_alike**rows < CHANCE and "Weight" not in sampler:
        return ROWS_SEEN.check(False, "alike", rows=rows)
    is_same = "Sequential" in sampler or (begins.source == "loop" and _is_in_order(file, batches))
    return ROWS_SEEN.check(False, "same_order", severity=INFO, epochs=most) if is_same and most >= 2 else None


def _is_in_order(file: _FileRows, batches: Sequence[Batch]) -> bool:
    """Whether the first rows that were seen are the file's first ones, by the text that each has to itself."""
    seen = [{*row} for batch in batches for row in batch.row_fingerprints or ()]
    texts = [{one for field in row for one in field} for row in file.fields]
    counts = Counter(one for text in texts for one in text)
    own = [({one for one in text if counts[one] == 1}, row) for text, row in zip(texts, seen, strict=False)]
    shares = [len(text & row) / len(text) for text, row in own if len(text) >= LEAST_OWN]
    return len(shares) >= LEAST_SEEN and min(shares) >= WHOLE_SHARE


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
    shares, brief = [], set[str]()  # of questions too short to be told by
    for fields, answer in zip(file.fields, file.answers, strict=True):
        before = fields[: (len(fields) - 1) // 2]  # fields, then their seams
        asked = {one for field in before for one in field}
        whole = asked | {*fields[len(before)]}
        if len(asked) < LEAST_OWN and whole and whole <= places.keys():
            brief.add(answer)
        asked = asked & file.single if file.is_part else asked  # the row itself may be one that was not read
        if len(asked) >= LEAST_OWN:
            shares.append((len(asked & places.keys()) / len(asked), answer, before))
    best = max((share for share, _, _ in shares), default=0.0)
    fitting = [(answer, before) for share, answer, before in shares if share == best >= WHOLE_SHARE]
    if not any(all(_is_as_written(field, places) for field in before) for _, before in fitting):
        return frozenset()
    return frozenset(brief | {answer for answer, _ in fitting})


def _is_as_written(field: Sequence[str], places: Mapping[str, int]) -> bool:
    """Whether a row has a field's text as it stands, or cut at its ends: choices in another order may be asked anew."""
    held = [(place, places[one]) for place, one in enumerate(field) if one in places]
    return all(after[0] == before[0] + 1 and after[1] > before[1] for before, after in pairwise(held))


def _counts(
    begins: TrainingBegins, file: _FileRows, batches: Sequence[Batch], given: int
) -> tuple[list[Message], list[Message]]:
    """What is wrong with the number of rows and with rows that came again, and what was measured."""
    troubles, measured = list[Message](), list[Message]()
    hashes, own = begins.row_hashes or (), 1 - file.distinct / max(file.rows, 1)
    if begins.packing:
        hashes = ()
    elif begins.rows is not None:
        measured.append(say("rows.count", rows=begins.rows, given=given))
        if not FEW_ROWS * given < begins.rows <= MANY_ROWS * given + 1:
            troubles.append(say("rows.other_count", rows=begins.rows, given=given))
    if hashes:
        repeated = len(hashes) - len({*hashes})
        measured.append(say("rows.repeated", repeated=repeated))
        if repeated > 1 and repeated / len(hashes) > own + MOST_REPEATED:
            troubles.append(say("rows.own_repeats", rows=len(hashes), repeated=repeated))
    if begins.sampler and "Weight" in (begins.sampler.kind or ""):
        return troubles, measured  # a sampler that draws by weights is meant to repeat rows
    again = 0 if begins.packing else _drawn_again(begins, batches)
    if not again and not begins.packing and not begins.row_hashes:
        # a loop may compute a batch several times in one step, and its sampler draw rows again: nearly all came again,
        # and the file has enough others
        seen = [row for batch in batches for row in batch.row_hashes or ()]
        repeated = len(seen) - len({*seen})
        again = repeated if LEAST_SEEN <= len(seen) <= given and repeated > (MOST_AGAIN + own) * len(seen) else 0
    if again:
        troubles.append(say("rows.drawn_again", rows=again))
    elif begins.sampler and begins.sampler.replacement:
        troubles.append(say("rows.replaced"))
    return troubles, measured


def _drawn_again(begins: TrainingBegins, batches: Sequence[Batch]) -> int:
    """Rows that came a second time in the steps of the first epoch, before others had come once.

    Rows that are alike in the data set itself are no sign, and nor is one row, which a sampler gives twice to fill up,
    or the same batch again where a step computes more of them than it accumulates, as R-Drop and SAM do.
    """
    hashes = begins.row_hashes or ()
    counts = Counter(hashes)
    a_step = max(1, (begins.batch_size or 1) * (begins.accumulation or 1) * (begins.world_size or 1))
    seen, rows = dict[int, Counter[str]](), Counter[int]()
    in_step = Counter((batch.pid, batch.step) for batch in batches)
    for n, batch in enumerate(batches):
        is_often = in_step[batch.pid, batch.step] > (begins.accumulation or 1)
        if n and is_often and _is_same_batch(batches[n - 1], batch):
            continue
        # of a loop nothing tells how many batches a step takes
        rows[batch.pid] += len(batch.row_hashes or ())
        step, is_loop = batch.step, begins.source == "loop"
        if rows[batch.pid] <= len(hashes) if is_loop else step is not None and step < len(hashes) // a_step:
            seen.setdefault(batch.pid, Counter()).update(batch.row_hashes or ())
    again = sum(number - 1 for own in seen.values() for row, number in own.items() if number > 1 and counts[row] == 1)
    return again if again > 1 else 0


def _is_same_batch(before: Batch, batch: Batch) -> bool:
    """Whether one step computes the same rows again, in whatever order."""
    is_same_step = (before.pid, before.step) == (batch.pid, batch.step)
    return is_same_step and Counter(before.row_hashes or ()) == Counter(batch.row_hashes or ())


def _are_of_another_file(file: _FileRows, seen: Sequence[tuple[str, ...]]) -> bool:
    """Whether no row has a piece of the file's, though rows of the file would nearly surely have had some.

    A text of 20 characters has one piece on average, and often none.
    """
    rows, texts = [row for row in seen if row], file.texts
    if file.is_part or (sum(not text for text in texts) / len(texts)) ** len(rows) > CHANCE:
        return False
    # a program may write all in small letters
    small = {one for row in file.words for text in row for one in fingerprints(text.lower())}
    return not any((file.known | small).intersection(row) for row in rows)


def _foreign_share(file: _FileRows, seen: Sequence[tuple[str, ...]], *, exact: bool) -> float | None:
    """The share of rows that say what the file does not; `exact`: no seams and no cuts can look like that."""
    # what each row has to itself: no template, which most rows have
    counts = Counter(one for row in seen for one in set(row))
    rows = [[one for one in row if counts[one] <= max(1, COMMON_SHARE * len(seen))] for row in seen]
    rows = [own for own in rows if len(own) >= LEAST_OWN]
    if len(rows) < LEAST_ROWS or not file.fields:
        return None
    known, alone = file.known, [one for text in file.texts if (one := text & file.single)]
    foreign, shares = list[list[tuple[bool, int]]](), list[float]()  # of each row the runs of what the file has or not
    # behind the last piece of the file's stand a template and an answer of a word, of which there are a few
    ends = {tuple(own[max((n for n, one in enumerate(own, 1) if one in known), default=0) :]) for own in rows}
    has_few_ends = exact and len(ends) <= len({*file.answers})
    for own in rows:
        runs = [(flag, len([*run])) for flag, run in groupby(one not in known for one in own)]
        # of short rows nearly all pieces are seams: who has all that a row of the file has to itself, is that row
        is_one = not exact and any(len(text & {*own}) >= WHOLE_SHARE * len(text) for text in alone)
        if has_few_ends and len(runs) > 1 and runs[-1][0]:
            del runs[-1]
        if not exact:  # where a template meets a row's text, pieces hold both
            runs = [(flag, length) for flag, length in runs if not flag or length > SEAM_RUN]
        if exact or is_one or sum(length for _, length in runs) >= LEAST_OWN:
            foreign.append(runs)
            strange = sum(length for flag, length in runs if flag)
            shares.append(0.0 if is_one else strange / sum(length for _, length in runs))
    if len(foreign) < LEAST_ROWS:
        return None
    longest = 1 if exact else FOREIGN_RUN
    share = sum(any(flag and length >= longest for flag, length in runs) for runs in foreign) / len(foreign)
    # where most of the file's rows are too short to be told from each other, what is foreign may be seams
    if median(1 - one for one in shares) < LEAST_FROM_FILE:
        if exact or 2 * len(alone) > len(file.fields):
            share = 1.0
        elif not share:
            return None
    return None if file.is_part and share else share


def _whole_check(
    file: _FileRows, seen: Sequence[tuple[str, ...]], evidence: TrainEvidence, width: int, *, is_narrow: bool
) -> Check:
    asked = evidence.settings.max_seq_length
    if len(seen) < LEAST_ROWS or not width or not file.fields or file.is_part:
        return ROWS_WHOLE.check(None, "incomparable")
    texts = [text for text in file.texts if len(text) >= LEAST_OWN]
    least = min(map(len, file.texts))
    cut = compared = 0
    for row in map(frozenset, seen):
        held = [(len(row & text), len(text)) for text in texts]
        most = max((own for own, _ in held), default=0)
        is_short = (most > 0 or not row) and len(row) < WHOLE_SHARE * least  # than any row of the file
        if most < LEAST_OWN and not is_short:
            continue
        compared += 1
        # a longer row of the file may begin with the whole of another, as conversations do that grow turn by turn
        cut += is_short or not any(own >= WHOLE_SHARE * max(most, length) for own, length in held)
    if compared < LEAST_ROWS:
        return ROWS_WHOLE.check(None, "incomparable")
    is_whole = not (is_narrow and cut * 2 > compared)
    return ROWS_WHOLE.check(is_whole, "compared", compared=compared, cut=cut, width=width, asked=asked)


def _file_rows(path: Path | None, row_format: RowFormat) -> _FileRows | None:
    if path is None:
        return None
    rows: list[tuple[str, ...]] = []  # what each row teaches, its answer last; of a row of another format all its texts
    others: list[tuple[str, ...]] = []  # what it says that no answer is
    try:
        for raw in json_rows(path):
            try:
                told = training_row(raw, row_format)
                texts = (*(turn.text for turn in told.turns[:-1] if turn.text), told.answer)  # which may be empty
                # another field of the row is no answer either, unless it holds the whole row
                further = {*_texts(raw)} - {turn.text for turn in told.turns} if len(told.turns) > 1 else ()
                prompt_texts = (*told.prompt_texts, *(one for one in further if told.last_prompt not in one))
            except ValueError:
                texts, prompt_texts = tuple(_texts(raw)), ()
            if any(texts):
                rows.append(texts)
                others.append(prompt_texts)
    except OSError:
        return None
    if not rows:
        return None
    sizes = accumulate(sum(map(len, row)) for row in rows)
    first = rows[: max(1, sum(size <= MOST_READ_CHARS for size in sizes))]
    fields = []
    for row in first:
        plain = [normal_form(text) for text in row]
        # where one field meets the next, as in a template that joins them
        seams = [one[-EDGE_CHARS:] + next_one[:EDGE_CHARS] for one, next_one in pairwise(plain)]
        fields.append(tuple(map(fingerprints, (*row, *seams))))
    edges = [
        {normal_form(row[n])[part] for row in first if n < len(row)}
        for n in range(max(map(len, first)))
        for part in (slice(EDGE_CHARS), slice(-EDGE_CHARS, None))
    ]
    answers = tuple(text_hash(row[-1]) for row in first)
    all_short = not any(fingerprints(row[-1]) for row in first)  # whatever they begin with is a row's end
    asked = {text_hash(text) for texts in others[: len(first)] for text in texts}
    return _FileRows(
        rows=len(rows),
        distinct=len({tuple(map(normal_form, row)) for row in rows}),
        fields=tuple(fields),
        is_part=len(first) < len(rows),
        answers=answers,
        has_blank_answers=any(row[-1].lstrip(" ").startswith("\n") for row in first),
        most_alike=Counter(row[-1] for row in rows).most_common(1)[0][1] / len(rows),
        prompts=frozenset(asked - {*answers, text_hash("")}),
        has_plain_edges=all(len(edge) == 1 for edge in edges[: -2 if all_short else -1]),
        words=tuple(first),
    )


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
