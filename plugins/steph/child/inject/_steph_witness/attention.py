"""What a model may look at: tokens that its mask hides, padding that it does not hide, positions that do not count."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

QUERIES = 8  # of each row, where a mask says for each position what it sees; of the first batch, all
_LEAST_RUN = 2  # pad tokens in a row; one alone may be the row's own first token


def described(
    ids: Sequence[Sequence[int]],
    mask: Sequence[Sequence[int]] | None,
    places: Sequence[Sequence[int]] | None,
    pad: int | None,
    *,
    reads_padding: bool,
) -> dict[str, Any]:
    """Tokens of each row that a mask hides though they are no padding, bare padding before it, wrong positions.

    `reads_padding`: whether a row without a mask is read with its padding. A list is None where nothing can tell.
    """
    mask = mask if mask is not None and list(map(len, mask)) == list(map(len, ids)) else None
    bare = mask is not None or reads_padding
    if places is not None and len(places) == 1:
        places = [places[0]] * len(ids)
    return {
        "hidden": None if mask is None else [_hidden(row, marks, pad) for row, marks in zip(ids, mask)],
        "bare_padding": None
        if pad is None or not bare
        else [_bare(row, mask[n] if mask is not None else [1] * len(row), pad) for n, row in enumerate(ids)],
        "padding_behind": None if mask is None else [bool(marks) and not marks[-1] and any(marks) for marks in mask],
        "misplaced": None
        if places is None or list(map(len, places)) != list(map(len, ids))
        else [_misplaced(row, own, mask[n] if mask is not None else None, pad) for n, (row, own) in
              enumerate(zip(ids, places))],
    }  # fmt: skip


def _hidden(row: Sequence[int], marks: Sequence[int], pad: int | None) -> int:
    """Masked tokens but for the pad token, and for a run of one token at either edge, which is padding by any name."""
    if all(marks):
        return 0
    first, last = 0, len(row)
    while first < last and not marks[first] and row[first] == row[0]:
        first += 1
    while last > first and not marks[last - 1] and row[last - 1] == row[-1]:
        last -= 1
    return sum(not marks[n] and row[n] != pad for n in range(first, last))


def _bare(row: Sequence[int], marks: Sequence[int], pad: int) -> int:
    """Pad tokens at the row's beginning that the model reads as text.

    A tokenizer may pad with the token that begins each row: then that one is seen behind the padding, and rightly so.
    """
    run = next((n for n, token in enumerate(row) if token != pad), len(row))
    seen = sum(map(bool, marks[:run]))
    return seen if seen >= _LEAST_RUN and run < len(row) else 0


def _misplaced(row: Sequence[int], places: Sequence[int], marks: Sequence[int] | None, pad: int | None) -> float:
    """The share of tokens that do not stand one behind the token before them, nor begin a text of their own."""
    text = places[-1] + 1 if places else 0
    before = len(row) - text
    is_padded = before >= 0 and (row[:before] == [pad] * before or (marks is not None and not any(marks[:before])))
    if is_padded and list(places[before:]) == list(range(text)):
        return 0.0
    steps = [
        (places[n], places[n + 1])
        for n in range(len(row) - 1)
        if row[n + 1] != pad and row[n] != pad and (marks is None or (marks[n] and marks[n + 1]))
    ]
    wrong = sum(after != before + 1 and not (before > after in (0, 1)) for before, after in steps)
    return round(wrong / len(steps), 3) if steps else 0.0


def of_queries(
    ids: Sequence[Sequence[int]],
    queries: Any,
    places: Sequence[Sequence[int]] | None,
    pad: int | None,
    spans: Sequence[tuple[int, int]],
    marks: tuple[set[int], set[int]] = (set(), set()),
) -> dict[str, list[int]]:
    """Positions of each row that don't see all of their text before them, or see what comes after them or padding.

    `queries`: for each row, or for all of them, what each position that was taken sees (`taken_places`). `places` begin
    anew with each text where several are packed; `spans` are the rows without padding; `marks` are the tokens that end
    a text, and all special ones. A sliding window hides what is older than its width and nothing else, and of texts
    that are packed without such places each one sees itself alone.
    """
    numpy: Any = sys.modules["numpy"]
    tokens, masks = numpy.asarray(ids), numpy.asarray(queries)
    width = tokens.shape[1]
    keys, every = numpy.arange(width), taken_places(width, is_whole=masks.shape[1] == width)
    is_hidden = masks < 0 if masks.dtype.kind == "f" else ~masks.astype(bool)
    sees = ~is_hidden if masks.dtype.kind != "f" or is_hidden.any() or not masks.any() else masks > 0
    hidden, foreseen, bare = ([0] * len(ids) for _ in range(3))
    for n, (row, (first, last)) in enumerate(zip(ids, spans)):
        chosen = [(k, at) for k, at in enumerate(every) if first <= at < last and row[at] != pad]
        if not chosen:
            continue
        visible = sees[n if len(sees) > 1 else 0][[k for k, _ in chosen]]
        ats = numpy.asarray([at for _, at in chosen])[:, None]
        real = (tokens[n] != pad) & (keys >= first) & (keys < last)
        own, later = real & (keys < ats), real & (keys > ats)
        if places is not None:
            own &= keys >= numpy.asarray([_beginning(places[n], at) for _, at in chosen])[:, None]
        cut = (own > visible).any(1)
        if cut.any() and not (
            _is_window(ats - keys, own, visible) or _are_texts(row, ats, own, visible, (*marks, pad))
        ):
            hidden[n] = int(cut.sum())
        foreseen[n] = int((visible & later).any(1).sum())
        bare[n] = int(visible[:, :first].any(1).sum()) if first >= _LEAST_RUN else 0
    return {"hidden": hidden, "foreseen": foreseen, "bare_padding": bare}


def taken_places(width: int, *, is_whole: bool) -> range:
    """The positions whose view of the others is looked at: each, or every eighth part of the row, its last included."""
    step = 1 if is_whole else max(1, width // QUERIES)
    return range((width - 1) % step, width, step)


def _is_window(distances: Any, own: Any, visible: Any) -> bool:
    """Whether one width parts what is seen from what is hidden, at every position alike."""
    farthest = int(distances[own & visible].max(initial=0))
    return 1 < farthest < int(distances[own & ~visible].min())


def _are_texts(
    row: Sequence[int], ats: Any, own: Any, visible: Any, marks: tuple[set[int], set[int], int | None]
) -> bool:
    """Whether what is hidden are the texts that end before: from all positions of the next ones, and from no other."""
    numpy: Any = sys.modules["numpy"]
    keys, first = numpy.arange(own.shape[1]), int(own.any(0).argmax())
    begins = numpy.where(own & ~visible, keys + 1, first).max(1)
    if (own & visible & (keys < begins[:, None])).any():
        return False
    places, positions = begins.tolist(), ats[:, 0].tolist()
    is_orderly = all(now == before or now > at for before, now, at in zip(places, places[1:], positions))
    return is_orderly and all(_begins_text(row, place, first, *marks) for place in {*places} - {first})


def _begins_text(
    row: Sequence[int], place: int, first: int, ends: set[int], special: set[int], pad: int | None
) -> bool:
    """Whether a text begins here: as the row itself does, or right behind an end, and not with a template's turn."""
    while place + 1 < len(row) and (row[place] == pad or row[place] in ends):
        place += 1
    is_alike = list(row[place : place + 2]) == list(row[first : first + 2])
    return is_alike or (row[place - 1] in {*ends, pad} and row[place] not in special)


def _beginning(places: Sequence[int], place: int) -> int:
    while place > 0 and places[place - 1] == places[place] - 1:
        place -= 1
    return place
