"""What a model may look at: tokens that its mask hides, padding that it does not hide, positions that do not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

QUERIES = 8  # of each row, where a mask says for each position what it sees
_LEAST_RUN = 2  # pad tokens in a row; one alone may be a row's own


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
    first, last = 0, len(row)
    while first < last and not marks[first] and row[first] == row[0]:
        first += 1
    while last > first and not marks[last - 1] and row[last - 1] == row[-1]:
        last -= 1
    return sum(not marks[n] and row[n] != pad for n in range(first, last))


def _bare(row: Sequence[int], marks: Sequence[int], pad: int) -> int:
    """Pad tokens at the row's beginning that the model reads as text."""
    run = next((n for n, token in enumerate(row) if token != pad), len(row))
    return sum(map(bool, marks[:run])) if _LEAST_RUN <= run < len(row) else 0


def _misplaced(row: Sequence[int], places: Sequence[int], marks: Sequence[int] | None, pad: int | None) -> float:
    """The share of tokens that do not stand one behind the token before them, nor begin a text of their own."""
    steps = [
        (places[n], places[n + 1])
        for n in range(len(row) - 1)
        if row[n + 1] != pad and row[n] != pad and (marks is None or (marks[n] and marks[n + 1]))
    ]
    wrong = sum(after != before + 1 and not (before > after in (0, 1)) for before, after in steps)
    return round(wrong / len(steps), 3) if steps else 0.0


def of_queries(
    ids: Sequence[Sequence[int]],
    queries: Sequence[Sequence[Sequence[float]]],
    places: Sequence[Sequence[int]] | None,
    pad: int | None,
    spans: Sequence[tuple[int, int]],
) -> dict[str, list[int]]:
    """Positions of each row that don't see all of their text before them, or see what comes after them or padding.

    `places` begin anew with each text where several are packed; `spans` are the rows without padding. A window of one
    width hides the same from all.
    """
    rows = list(queries) * (len(ids) if len(queries) == 1 else 1)
    hidden, foreseen, bare = [], [], []
    for n, (row, seen, (first, last)) in enumerate(zip(ids, rows, spans)):
        step = max(1, len(row) // QUERIES)
        is_added = any(value < 0 for query in seen for value in query) or not any(v for q in seen for v in q)
        reaches, late, padded = [], 0, 0
        for place, query in zip(range((len(row) - 1) % step, len(row), step), seen):
            if not first <= place < last or row[place] == pad:
                continue
            visible = [value >= 0 if is_added else value > 0 for value in query]
            begin = first if places is None else _beginning(places[n], place)
            own = [key for key in range(begin, place) if row[key] != pad]
            reaches.append((len(own), sum(visible[key] for key in own)))
            padded += first >= _LEAST_RUN and any(visible[:first])
            late += any(visible[key] and row[key] != pad for key in range(place + 1, last))
        cut = [held for whole, held in reaches if held < whole]
        is_window = len(cut) > 1 and len(set(cut)) == 1 and all(whole >= held for whole, held in reaches)
        hidden.append(0 if is_window and cut[0] > 1 else len(cut))
        foreseen.append(late)
        bare.append(padded)
    return {"hidden": hidden, "foreseen": foreseen, "bare_padding": bare}


def _beginning(places: Sequence[int], place: int) -> int:
    while place > 0 and places[place - 1] == places[place] - 1:
        place -= 1
    return place
