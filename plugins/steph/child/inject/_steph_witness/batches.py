"""What stands in a batch: labels against tokens, ends, padding. Read without making the GPU wait."""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

from . import facts, models, tokens

_IGNORED, _UNTAUGHT = -100, -101  # the latter in a row of which nothing is learnt
_MOST_WHOLE = 1 << 20  # numbers of a mask that is read whole
_LAST_SUPERVISED = 3
_MOST_ADDED = 8
_CERTAIN = 0.1  # of the steepest gradient
_ONE_TOKEN = 0.8  # of what rises at a place
_GRADIENTS = 4  # matrices
_READ = ("input_ids", "labels", "attention_mask", "position_ids")
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "seq_idx", "cu_seq_lens", "seq_lengths")

_last_chosen: list[Any] = [None, 0, ()]  # the model, how often its layers had changed, and its matrices
_on_their_way: list[tuple[Any, dict[str, Any]]] = []


def taken(
    model: Any,
    arguments: dict[str, Any],
    *,
    with_texts: bool,
    is_first: bool,
    step: int | None = None,
    is_packed: bool = False,
    known: frozenset[str] | None = None,
) -> dict[str, Any] | None:
    """The needed parts of a batch, copied to the CPU or on their way there; None where nothing can be read now.

    `is_first`: of the training; `step`: how many steps it has done; `is_packed`: whether it says that rows hold several
    texts; `known`: the hashes of the data set's rows.
    """
    torch: Any = sys.modules["torch"]
    # subclasses stand in for tensors while something traces or shards
    given = {name: arguments[name] for name in _READ if type(arguments.get(name)) is torch.Tensor}
    ids = given.get("input_ids")
    if ids is None or ids.dim() != 2 or str(ids.device) == "meta":
        return None
    queries = _queries(given.get("attention_mask"), ids.shape, is_first=is_first)
    given = {name: tensor.detach() for name, tensor in given.items() if tensor.dim() == 2}
    if queries is not None:
        given["queries"] = queries
    batch: dict[str, Any] = {
        "at": time.time(), "training": bool(model.training), "grad": bool(torch.is_grad_enabled()),
        "dropouts": models.dropouts(model),
        "packed": is_packed or any(arguments.get(name) is not None for name in _PACKED),
        "masked": arguments.get("attention_mask") is not None, "ends": tokens.end_ids(models.base_of(model)),
        "bos": models.bos_of(model), "pad": models.pad_id(model), "with_texts": with_texts, "known": known,
        "step": step,
    }  # fmt: skip
    if ids.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return None
        given.update(_gradient(model))
        batch["tensors"] = {name: tensor.to("cpu", non_blocking=True) for name, tensor in given.items()}
        batch["event"] = torch.cuda.current_stream(ids.device).record_event()
    else:
        given.update(_gradient(model))
        batch["tensors"] = {name: _numbers(name, tensor) for name, tensor in given.items()}
    return batch


def _numbers(name: str, tensor: Any) -> Any:
    """A tensor as lists, but what each position sees as an array, if torch and numpy know each other."""
    if not hasattr(tensor, "detach"):
        return tensor
    if name == "queries":
        try:
            return (tensor if str(tensor.dtype) == "torch.bool" else tensor.float()).numpy().copy()
        except RuntimeError:
            return tensor.tolist()
    return tensor.tolist()


def gradient(model: Any) -> Any:
    """The same number, on the CPU or on its way there; None where none can be read."""
    found = None if model is None else _gradient(model).get("gradient")
    if found is not None and found.is_cuda:
        torch: Any = sys.modules["torch"]
        return None if torch.cuda.is_current_stream_capturing() else found.to("cpu", non_blocking=True)
    return found


def _gradient(model: Any) -> dict[str, Any]:
    """The largest number in the gradients that lie on a few B matrices already; nothing where none can be read."""
    torch: Any = sys.modules["torch"]
    chosen = _chosen(model)
    plain = (torch.Tensor, torch.nn.Parameter)
    if not chosen or "deepspeed" in sys.modules or any(type(w) not in plain or hasattr(w, "main_grad") for w in chosen):
        return {}
    if any(not w.numel() or w.device != chosen[0].device for w in chosen) or _is_sharded(model):
        return {}
    found = [w.grad.detach() for w in chosen if type(w.grad) is torch.Tensor and not w.grad.is_sparse]
    if not found:
        return {"gradient": torch.zeros(())}
    return {"gradient": torch.stack([torch.linalg.vector_norm(grad, ord=math.inf) for grad in found]).amax()}


def sizes(model: Any, *, stays: bool = False) -> Any:
    """The norms of a few trained B matrices; None where none can be read.

    On the CPU or on their way there; where they are, if each step has them anew (`stays`).
    """
    torch: Any = sys.modules["torch"]
    chosen = [] if model is None or "deepspeed" in sys.modules or _is_sharded(model) else _chosen(model)
    plain = (torch.Tensor, torch.nn.Parameter)
    if not chosen or any(type(w) not in plain or w.is_meta or w.device != chosen[0].device for w in chosen):
        return None
    if chosen[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    with torch.no_grad():
        norms = torch.stack([torch.linalg.vector_norm(weight.detach(), dtype=torch.float32) for weight in chosen])
    return norms if stays else norms.to("cpu", non_blocking=True)


def _chosen(model: Any) -> list[Any]:
    """A few trained B matrices, those of the last time where they still are."""
    base, changes, known = _last_chosen
    if base is not None and base() is models.base_of(model) and changes == models.changes():
        found = [weight for reference in known if (weight := reference()) is not None and weight.requires_grad]
        if found and len(found) == len(known):
            return found
    stores = [store for layer in models.lora_layers(model) if (store := models.held(layer, "lora_B"))]
    spread = stores[:: max(1, len(stores) // _GRADIENTS)]  # the first ones of these may be frozen
    held = (one for store in (*spread, *stores) for one in dict(store).values())
    weights = (one.weight for one in held if getattr(getattr(one, "weight", None), "requires_grad", False))
    chosen = list(islice(weights, _GRADIENTS))
    _last_chosen[:] = [weakref.ref(models.base_of(model)), models.changes(), [weakref.ref(weight) for weight in chosen]]
    return chosen


def _is_sharded(model: Any) -> bool:
    return any("Fully" in type(one).__name__ for one in (model, models.base_of(model)))


def _queries(mask: Any, shape: Sequence[int], *, is_first: bool) -> Any:
    """What positions see, of a mask that says so for each, in the first batch all of them: a view, nothing waits."""
    width = int(shape[1])
    if mask is None or mask.dim() != 4 or tuple(mask.shape[1:]) != (1, width, width):
        return None
    taken = tokens.taken_places(width, is_whole=is_first and mask.numel() <= _MOST_WHOLE)
    return mask.detach()[:, 0, taken.start :: taken.step]


def label_by_gradient(batch: dict[str, Any], logits: Any) -> None:
    """Attach to a batch the labels that a loss of the program's own has, once its gradient arrives at the logits.

    Of a cross-entropy it is zero where nothing is learnt, and below zero at the one token that is. A label stands at
    its token's place, one behind the logits that predict it, as a model's own loss has it.
    """
    torch: Any = sys.modules["torch"]
    ids = batch["tensors"]["input_ids"]
    rows, width = len(ids), len(ids[0]) if len(ids) else 0
    if type(logits) is not torch.Tensor or not logits.requires_grad or logits.dim() != 3:
        return
    if logits.shape[0] != rows or logits.shape[1] > width:
        return

    name = "learnt" if "labels" in batch["tensors"] else "labels"

    def learnt(gradient: Any) -> None:
        if type(gradient) is not torch.Tensor or name in batch["tensors"]:
            return
        if gradient.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        lowest = gradient.detach()[:, :-1].min(-1)
        # beside labels that were said only what is learnt for certain counts: a term of its own may be anywhere
        least = _CERTAIN * lowest.values.min() if name == "learnt" else torch.zeros_like(lowest.values[0, 0])
        found = lowest.indices.masked_fill(lowest.values >= least.clamp(max=0), _IGNORED)
        if name == "learnt":  # a distribution is no label: of one all that rises is a single token
            size = torch.linalg.vector_norm(gradient.detach()[:, :-1], ord=1, dim=-1)
            found = found.masked_fill(-2 * lowest.values < _ONE_TOKEN * size, _IGNORED)
        found = torch.nn.functional.pad(found, (width - found.shape[1], 0), value=_IGNORED)
        if name == "learnt":
            found = found.masked_fill((lowest.values == 0).all(-1, keepdim=True), _UNTAUGHT)
        # what a last place learns, where a row has nothing else, may be the token that stands there
        last = gradient.detach()[:, -1].min(-1)
        is_alone = (lowest.values == 0).all(-1) & (last.values < 0)
        tensors = {name: found, "last": last.indices.masked_fill(~is_alone, _IGNORED)}
        if not found.is_cuda:
            batch["tensors"].update({key: one.tolist() for key, one in tensors.items()})
            return
        batch["tensors"].update({key: one.to("cpu", non_blocking=True) for key, one in tensors.items()})
        batch["event"] = torch.cuda.current_stream(found.device).record_event()

    logits.register_hook(facts.guarded("labels")(learnt))


def write(batch: dict[str, Any]) -> None:
    """Write the batch as a fact, as soon as it has arrived."""
    _on_their_way.append((batch.pop("event", None), batch))
    write_ready()


def write_ready(*, wait: bool = False) -> None:
    """Write what has arrived, in order; `wait` for the rest."""
    while _on_their_way:
        event, batch = _on_their_way[0]
        if event is not None:
            if wait:
                event.synchronize()
            elif _is_capturing() or not event.query():
                return
        _on_their_way.pop(0)
        read = {name: _numbers(name, tensor) for name, tensor in batch.pop("tensors").items()}
        facts.write("batch", **_described(batch, read))


def _is_capturing() -> bool:
    torch: Any = sys.modules["torch"]
    return bool(torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


@facts.forgets
def _forget() -> None:
    _on_their_way.clear()


def _described(batch: dict[str, Any], read: dict[str, Any]) -> dict[str, Any]:
    ids, labels = read["input_ids"], read.get("labels")
    if labels and "learnt" in read:
        taught = [row[-1] != _UNTAUGHT for row in read["learnt"]]
        labels = _instead(
            labels, [row if one else [_IGNORED] * len(row) for one, row in zip(taught, read["learnt"])], ids
        )
        if any(taught):
            labels = [row if one else [_IGNORED] * len(row) for one, row in zip(taught, labels)]
    width = len(ids[0]) if ids else 0
    is_packed = batch["packed"] or any(map(_begins_again, read.get("position_ids", ())))
    spans = [_real(row, n, batch, read, is_packed=is_packed) for n, row in enumerate(ids)]
    rows = [row[first:last] for row, (first, last) in zip(ids, spans)]
    found: dict[str, Any] = {
        "at": batch["at"], "shape": [len(ids), width], "training": batch["training"], "grad": batch["grad"],
        "dropouts": batch.get("dropouts"), "packed": is_packed,
        "step": batch.get("step"), "gradient": read.get("gradient"),
        "padding": round(1 - sum(map(len, rows)) / max(1, len(ids) * width), 4),
        "row_hashes": [tokens.row_hash(row) for row in rows],
        "special_tokens": _special(rows), "nested": [tokens.is_nested(row) for row in rows],
        "header_hashes": [tokens.header_hashes(row) for row in rows],
        "backwards": batch.get("backwards"),
        "bos": batch["bos"], "leading_bos": None if is_packed else tokens.leading(rows, batch["bos"]),
        "double_bos": sum(_twice(row, batch["bos"]) for row in rows),
    }  # fmt: skip
    marks, places = read.get("attention_mask"), read.get("position_ids")
    found.update(tokens.attended(ids, marks, places, batch["pad"], reads_padding=not is_packed and not batch["masked"]))
    if "queries" in read:
        marks = batch["ends"], tokens.special_ids()
        found.update(tokens.of_queries(ids, read["queries"], places if is_packed else None, batch["pad"], spans, marks))
    if batch.get("known") is not None and not is_packed:
        found["of_data_set"] = [_is_known(row, span, batch["known"]) for row, span in zip(ids, spans)]
    if batch["with_texts"] or not all(found.get("of_data_set", ())):
        texts = [tokens.fingerprints_of(row) for row in rows]
        found["row_fingerprints"] = None if None in texts else texts
    if labels and len(labels) == len(ids) and len(labels[0]) <= width:
        is_last = "last" in read and all(row[-1] == one for row, one in zip(ids, read["last"]))
        if "last" in read and not is_last and not is_packed and len(labels[0]) == width:
            ids, labels, spans = _with_classes(ids, labels, spans, read["last"])
        found.update(_labelled(ids, labels, spans, batch["ends"]))
        found["prompt_hashes"] = [
            tokens.row_hash(row[:first]) for row, first in zip(rows, found["first_supervised"]) if first
        ] + [hashed for row in rows if (hashed := tokens.turn_hash(row)) is not None]
        if is_last:
            found.update(aligned=False, unshifted=True)
        # what begins a thought or a call in an answer is nobody's turn
        found["header_hashes"] = [
            tokens.header_hashes(row[: first or None]) for row, first in zip(rows, found["first_supervised"])
        ]
        if marks and not is_packed:
            edges = {*batch["ends"], batch["bos"]}
            found["labelled_padding"] = _outside(ids, labels, spans, found["ends_with_end_token"], edges)
    return found


def _with_classes(ids: Any, labels: Any, spans: Any, last: Any) -> tuple[Any, Any, Any]:
    """Rows with the one token that each learns behind its end, as where a classifier is given the prompt alone."""
    places = [[n for n, label in enumerate(marks) if label != _IGNORED] for marks in labels]
    if not all(
        own == [end] or (not own and end == len(row) and one != _IGNORED)
        for row, own, (_, end), one in zip(ids, places, spans, last)
    ):
        return ids, labels, spans
    given = [marks[own[0]] if own else one for marks, own, one in zip(labels, places, last)]
    rows = [[*row[:end], one, *row[end:]] for row, (_, end), one in zip(ids, spans, given)]
    marks = [[*[_IGNORED] * end, one, *[_IGNORED] * (len(row) - end)] for row, (_, end), one in zip(ids, spans, given)]
    return rows, marks, [(begin, end + 1) for begin, end in spans]


def _instead(said: Any, learnt: Any, ids: Sequence[Sequence[int]]) -> Any:
    """The labels that a loss of the program's own has, where they are clearly not those that it was given.

    It learns where none was given, the token that stands there or everywhere the same; or another token than was given,
    such as the one before it, the model's own or another row's.
    """
    rows = [row for row in zip(said, learnt, ids) if len(row[0]) == len(row[1]) == len(row[2])]
    beyond = [(one, token) for row in rows for label, one, token in zip(*row) if label == _IGNORED != one]
    both = [one != label for row in rows for label, one, _ in zip(*row) if _IGNORED not in (label, one)]
    given = sum(label != _IGNORED for marks, _, _ in rows for label in marks)
    same = max((sum(one == other for one, _ in beyond) for other in {one for one, _ in beyond}), default=0)
    own = sum(one == token for one, token in beyond)
    if 2 * len(beyond) > given and 2 * max(same, own) > len(beyond):
        return learnt
    return learnt if 2 * sum(both) >= len(both) > 0 else said  # all rows end alike, with an end token


def _is_known(row: Sequence[int], span: tuple[int, int], known: frozenset[str]) -> bool:
    """Whether a row is one of the data set's, a few tokens at its edges aside that a collator adds or a mask hides."""
    first, last = span
    edges = [(0, 0), (1, 0), (0, -1), (1, -1), (0, 1), (-1, 0)]
    longer = (edge for n in range(2, _MOST_ADDED + 1) for edge in ((n, 0), (0, -n)))
    return any(tokens.row_hash(row[max(0, first + a) : last + b]) in known for a, b in chain(edges, longer))


def _special(rows: Sequence[Sequence[int]]) -> list[int] | None:
    counts = [count for row in rows if (count := tokens.special_tokens(row)) is not None]
    return counts if len(counts) == len(rows) else None


def _real(
    row: Sequence[int], n: int, batch: dict[str, Any], read: dict[str, list[list[int]]], *, is_packed: bool
) -> tuple[int, int]:
    """The half-open range of a row that is no padding: by its mask, its positions, or its runs of the pad token."""
    mask, places = read.get("attention_mask"), read.get("position_ids")
    if is_packed and mask is None:
        return 0, len(row)
    if mask is not None and n < len(mask) and len(mask[n]) == len(row):
        seen = [place for place, value in enumerate(mask[n]) if value]
        return (seen[0], seen[-1] + 1) if seen else (0, 0)
    if (
        places is not None
        and n < len(places)
        and len(places[n]) == len(row)
        and places[n][:2] == [0, 0]
        and any(places[n])
    ):
        return next((place - 1 for place, value in enumerate(places[n]) if value), len(row) - 1), len(row)
    if places is not None and n < len(places) and len(places[n]) == len(row) and places[n][:2] == [0, 1]:
        return 0, next((last for last in range(len(row), 1, -1) if places[n][last - 1] != places[n][last - 2]), 1)
    pad, first, last = batch["pad"], 0, len(row)
    if pad is None or mask is not None or places is not None:
        return first, last
    while first < last and row[first] == pad and row[first + 1 : first + 2] == [pad]:
        first += 1
    while last > first and row[last - 1] == pad and row[last - 2] == pad:
        last -= 1
    is_end = pad in batch["ends"]
    return first + (row[first] == pad and first > 0), last - (row[last - 1] == pad and not is_end and last < len(row))


def _twice(row: Sequence[int], token: int | None) -> bool:
    return token is not None and row.count(token) > 1 and any(one == other == token for one, other in zip(row, row[1:]))


def _begins_again(places: Sequence[int]) -> bool:
    first = next((n for n, place in enumerate(places) if place), len(places))
    return 0 in places[first:]


def _outside(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]],
    closing: Sequence[bool], edges: set[int],
) -> list[int]:  # fmt: skip
    """Labels on padding in each row.

    A token next to a row may be its own BOS or end, hidden by a mask that is made of the tokens where padding is the
    same; but not where a row is whole without such a one.
    """
    counts = []
    found = [
        [place for place, label in enumerate(marks, len(row) - len(marks)) if label != _IGNORED and not a <= place < b]
        for row, marks, (a, b) in zip(ids, labels, spans)
    ]
    is_whole = any(ended and not places for ended, places in zip(closing, found))
    for row, places, (first, last) in zip(ids, found, spans):
        own = sum(row[place] in edges and place in (first - 1, last) for place in places)
        counts.append(len(places) if is_whole else len(places) - own)
    return counts


def _labelled(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], ends: set[int]
) -> dict[str, Any]:
    """Where the labels stand; a tensor of labels narrower than the tokens stands at their right edge."""
    supervised, closing, tails, firsts, answers, left, blank, leads, begins = [], [], [], [], [], [], [], [], []
    thoughts, pairs = [], []
    own = following = before = unpredicted = 0
    for row, marks, (begin, end) in zip(ids, labels, spans):
        offset = len(row) - len(marks)
        # narrower than the tokens: no output stands before the first label, which is then never learnt
        unpredicted += bool(offset > 0 and marks and marks[0] != _IGNORED)
        places = [offset + n for n, label in enumerate(marks) if label != _IGNORED]
        values = [marks[place - offset] for place in places]
        supervised.append(len(places))
        closing.append(any(value in ends for value in values[-_LAST_SUPERVISED:]))
        tails.append(end - 1 - places[-1] if places else None)
        firsts.append(places[0] - begin if places else None)
        own += sum(row[place] == value for place, value in zip(places, values))
        before += sum(place > begin and row[place - 1] == value for place, value in zip(places, values))
        following += sum(place + 1 < len(row) and row[place + 1] == value for place, value in zip(places, values))
        answers.append(_answer(values))
        thoughts.append(tokens.ends_in_thought(values))
        leads.append(tokens.lead_hashes(row[begin : places[0]]) if places else None)
        pairs.append(tokens.pair_hashes(row[begin:end]) if places and places[0] <= begin + 1 else None)
        begins.append(tokens.answer_hashes(row[begin : places[0]], row[places[0] : end]) if places else None)
        blank.append(_begins_blank(values, row[begin : places[0]]) if places else None)
        left.append(_answer(row[places[-1] + 1 : end]) if places else None)
    total = sum(supervised)
    is_aligned = own == total
    return {
        "supervised": supervised, "ends_with_end_token": closing, "unsupervised_tail": tails,
        "first_supervised": firsts, "aligned": is_aligned if total else None,
        # the last token has none that follows it
        "shifted": not is_aligned and following >= total - len(ids) if total else None,
        # what is learnt is the token that was just read
        "unshifted": not is_aligned and before == total if total else None,
        "unpredicted": unpredicted, "answer_hashes": answers, "begins_blank": blank, "unlabelled_end_hashes": left,
        "lead_hashes": leads, "pair_hashes": pairs, "begin_hashes": begins, "ends_in_thought": thoughts,
    }  # fmt: skip


def _begins_blank(values: Sequence[int], before: Sequence[int]) -> bool | None:
    """Whether the first label breaks a line right behind a line break: a blank line that the answer has of its own."""
    first, last = (tokens.text_of([one for one in ids if one >= 0]) for ids in (values[:1], before[-1:]))
    if first is None or last is None:
        return None
    return first.lstrip(" ").startswith("\n") and last.rstrip(" ").endswith("\n")


def _answer(values: Sequence[int]) -> str | None:
    try:
        text = tokens.text_of([value for value in values if value >= 0])
    except (OverflowError, ValueError):
        return None
    return None if text is None else tokens.text_hash(text)
