"""What a model may look at: tokens that its mask hides, padding that it does not hide, positions that do not count."""

from __future__ import annotations

import sys
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
    if all(marks):
        return 0
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
) -> dict[str, list[int]]:
    """Positions of each row that don't see all of their text before them, or see what comes after them or padding.

    `queries`: for each row, or for all of them, what every eighth position sees, as numpy takes it. `places` begin anew
    with each text where several are packed; `spans` are the rows without padding. A window of one width hides the same
    from all.
    """
    numpy: Any = sys.modules["numpy"]
    tokens, masks = numpy.asarray(ids), numpy.asarray(queries)
    width = tokens.shape[1]
    step = max(1, width // QUERIES)
    every = range((width - 1) % step, width, step)
    chosen = [
        (n, k, place, first if places is None else _beginning(places[n], place), last)
        for n, (row, (first, last)) in enumerate(zip(ids, spans))
        for k, place in enumerate(every)
        if first <= place < last and row[place] != pad
    ]
    hidden, foreseen, bare = ([0] * len(ids) for _ in range(3))
    if not chosen:
        return {"hidden": hidden, "foreseen": foreseen, "bare_padding": bare}
    rows, numbers, at, begins, ends = (numpy.asarray(column)[:, None] for column in zip(*chosen))
    seen = masks[rows[:, 0] if len(masks) > 1 else 0, numbers[:, 0]]
    is_added = bool((masks < 0).any() or not masks.any())
    visible, keys = seen >= 0 if is_added else seen > 0, numpy.arange(width)
    real = tokens[rows[:, 0]] != pad if pad is not None else True
    own, later = real & (keys >= begins) & (keys < at), real & (keys > at) & (keys < ends)
    whole, held = own.sum(1).tolist(), (own & visible).sum(1).tolist()
    late = (visible & later).any(1).tolist()
    for n, (first, _) in enumerate(spans):
        mine = [k for k, one in enumerate(chosen) if one[0] == n]
        cut = [held[k] for k in mine if held[k] < whole[k]]
        is_window = len(cut) > 1 and len(set(cut)) == 1 and all(whole[k] >= held[k] for k in mine)
        hidden[n] = 0 if is_window and cut[0] > 1 else len(cut)
        foreseen[n] = sum(late[k] for k in mine)
        bare[n] = int(visible[mine, :first].any(1).sum()) if first >= _LEAST_RUN else 0
    return {"hidden": hidden, "foreseen": foreseen, "bare_padding": bare}


def _beginning(places: Sequence[int], place: int) -> int:
    while place > 0 and places[place - 1] == places[place] - 1:
        place -= 1
    return place
