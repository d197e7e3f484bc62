"""Token ids: as hashes, of rows too, as text where a tokenizer is there, and which of them a model may look at."""

from __future__ import annotations

import array
import hashlib
import importlib.util
import os
import re
import sys
import weakref
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from . import splice

QUERIES = 8  # of each row, where a mask says for each position what it sees; of the first batch, all
_LEAST_RUN = 2  # pad tokens in a row; one alone may be the row's own first token
# what ends an answer in one chat format or another; a model's own end tokens come on top
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>", "<|return|>"),
    *("</s>", "<eos>", "<|eom_id|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "[EOS]", "<turn|>"),
)
_MAX_TEXT_TOKENS = 32768
_MOST_LINES = 400
_MOST_PAIRS = 512
_MOST_HEADER = 8  # tokens, with an empty thought
_NEAR_END = 24  # tokens: a template may have an empty thought behind the header
_AFTER = 6  # tokens of an answer
_THOUGHTS = ("</think>", "/no_think", "/think")  # what a template or a prompt's end has to switch thinking off or on
_EDGES = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<eos>|<pad>|<end_of_turn>")  # what results leave out, too
_HEADER, _ALIKE = 12, 3  # tokens of a header, as in <|im_start|>user and a line break; of its beginning

# of the tokenizer in use: every special id, those that end an answer, and those that begin a turn
_known_ids: dict[int, tuple[Any, set[int], set[int], set[int]]] = {}
_last_tokenizer: list[Any] = [None]  # a weak reference to the one that was loaded last


def hook_tokenizers(module: ModuleType) -> None:
    """Know the tokenizer that was loaded last: it is the one that prompts are made with."""
    loads = module.PreTrainedTokenizerBase.from_pretrained
    splice.around(loads, before=lambda given: None, after=lambda token, tokenizer: use(tokenizer))


def use(tokenizer: Any) -> None:
    """From here on texts are read with this one."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
    if tokenizer is not None and hasattr(tokenizer, "decode"):
        _last_tokenizer[0] = weakref.ref(tokenizer)


def tokenizer() -> Any:
    """The tokenizer in use; None where there is none any more."""
    reference = _last_tokenizer[0]
    return None if reference is None else reference()


def end_ids(model: Any) -> set[int]:
    """Every id that ends an answer: the model's, the tokenizer's, and those of the chat formats that it has."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        found.update(ids_of(getattr(holder, "eos_token_id", None)))
    return found | _ids_of_tokenizer()[1]


def special_ids() -> set[int]:
    """Every special id of the tokenizer in use."""
    return _ids_of_tokenizer()[0]


def _ids_of_tokenizer() -> tuple[set[int], set[int], set[int]]:
    own = tokenizer()
    if own is None:
        return set(), set(), set()
    known = _known_ids.get(id(own))
    if known is None or known[0]() is not own:
        special = {*getattr(own, "all_special_ids", ()), *getattr(own, "added_tokens_decoder", ())}
        unknown = getattr(own, "unk_token_id", None)
        named = own.convert_tokens_to_ids(list(_ENDS)) if hasattr(own, "convert_tokens_to_ids") else []
        ends = {one for one in named if isinstance(one, int) and one != unknown}
        ends.update(ids_of(getattr(own, "eos_token_id", None)))
        added = getattr(own, "added_tokens_decoder", {})
        marks = {one for one in special if getattr(added.get(one), "special", False)} - ends
        marks -= {getattr(own, name, None) for name in ("bos_token_id", "pad_token_id", "unk_token_id")}
        _known_ids.clear()
        known = _known_ids[id(own)] = (weakref.ref(own), special, ends, marks)
    return known[1], known[2], known[3]


def ids_of(value: object) -> list[int]:
    """One id, several or none, as a list."""
    values = value if isinstance(value, (list, tuple, set)) else [value]
    return [one for one in values if isinstance(one, int)]


def row_hash(ids: Sequence[int]) -> str:
    """8 hex digits for a row of token ids."""
    return hashlib.blake2b(array.array("q", ids).tobytes(), digest_size=4).hexdigest()


def leading(rows: Sequence[Sequence[int]], bos: int | None) -> list[int] | None:
    """How many BOS tokens stand at the front of each row; None where no such token is known."""
    return None if bos is None else [next((n for n, one in enumerate(row) if one != bos), len(row)) for row in rows]


def lead_hashes(row: Sequence[int]) -> list[str]:
    """A hash of each two tokens that follow each other near a prompt's end: where an answer's header stands."""
    return _pairs(row[-_NEAR_END:])


def pair_hashes(row: Sequence[int]) -> list[str]:
    """The same of the last hundreds of tokens, each once: of a row whose prompt has labels too, which none ends."""
    return [*dict.fromkeys(_pairs(row[-_MOST_PAIRS:]))]


def answer_hashes(prompt: Sequence[int], answer: Sequence[int]) -> list[str]:
    """The same from a prompt's last token on, into the answer."""
    return _pairs([*prompt[-1:], *answer[:_AFTER]])


def _pairs(row: Sequence[int]) -> list[str]:
    return [f"{zlib.crc32(b'%d,%d' % pair):08x}" for pair in zip(row, row[1:])]


def thinks(row: Sequence[int]) -> bool:
    """Whether a prompt ends with a thought, or with an order to think or not."""
    own = tokenizer()
    return own is not None and any(word in own.decode(list(row[-_NEAR_END:])) for word in _THOUGHTS)


def ends_in_thought(values: Sequence[int]) -> bool | None:
    """Whether an answer ends with a closed thought, an end token and blanks aside; None without a tokenizer."""
    own = tokenizer()
    if own is None:
        return None
    ends = _ids_of_tokenizer()[1]
    text: str = own.decode(
        [one for one in values[-_NEAR_END:] if one >= 0 and one not in ends], skip_special_tokens=False
    )
    return text.rstrip().endswith(_THOUGHTS[0])


def header_hashes(row: Sequence[int]) -> list[str] | None:
    """A hash of each token that begins a turn with the one behind it: whose turn it is."""
    _, _, marks = _ids_of_tokenizer()
    return sorted({hashed for one, hashed in zip(row, _pairs(row)) if one in marks}) if marks else None


def turn_hash(row: Sequence[int], *, is_prompt: bool = False) -> str | None:
    """The hash of a row up to what begins its last turn, an answer's; None where nothing does, or at its beginning.

    Of a prompt that turn has no more than its header: before a question stands what many have.
    """
    marks = _ids_of_tokenizer()[2]
    last = next((n for n in range(len(row) - 1, 0, -1) if row[n] in marks), None) if marks else None
    return None if last is None or (is_prompt and len(row) - last > _MOST_HEADER) else row_hash(row[: last + 1])


def is_nested(row: Sequence[int]) -> bool | None:
    """Whether a turn begins in another's header, as where a chat template was applied to its own result."""
    _, ends, marks = _ids_of_tokenizer()
    if not marks:
        return None
    last: dict[int, int] = {}  # where each mark stood since the last end of a turn
    close: dict[int, int] = {}  # how many of it stand close behind each other there; more than two set values apart
    alike: set[int] = set()  # marks with the same behind two of these
    for place, one in enumerate(row):
        if one in ends:
            if any(close[mark] == 1 for mark in alike):
                return True
            last, close, alike = {}, {}, set()
        elif one in marks:
            before, last[one] = last.get(one, -_HEADER), place
            if place - before >= _HEADER:
                if one in alike and close[one] == 1:
                    return True
                close[one] = 0
                alike.discard(one)
                continue
            close[one] += 1
            length = min(place - before, _ALIKE)
            if length > 1 and row[before : before + length] == row[place : place + length]:
                alike.add(one)
    return any(close[mark] == 1 for mark in alike)


def special_tokens(row: Sequence[int]) -> int | None:
    """How many of a row's ids are a template's: special ones but for BOS, padding and the row's end."""
    own = tokenizer()
    if own is None:
        return None
    special, ends, _ = _ids_of_tokenizer()
    # the end is the last token or stands before a last line break
    inner = [*row[:-2], *(one for one in row[-2:] if one not in ends)]
    counted = special - {getattr(own, "bos_token_id", None), getattr(own, "pad_token_id", None)}
    return sum(map(counted.__contains__, inner))


def text_of(ids: Sequence[int]) -> str | None:
    """The text of these ids without special tokens; None without a tokenizer."""
    own = tokenizer()
    if own is None or len(ids) > _MAX_TEXT_TOKENS:
        return None
    # the tokenizer's own way there looks at each id several times
    decode = getattr(getattr(own, "backend_tokenizer", None), "decode", None) or own.decode
    text = decode(list(ids), skip_special_tokens=True)
    return text if isinstance(text, str) else None


def marked_text_of(ids: Sequence[int]) -> str | None:
    """The text with such special tokens as begin a thought, which a decoder may leave in; None without a tokenizer."""
    own = tokenizer()
    if own is None or len(ids) > _MAX_TEXT_TOKENS:
        return None
    text: str = own.decode(list(ids), skip_special_tokens=False)
    return _EDGES.sub("", text)


def fingerprints_of(ids: Sequence[int]) -> list[str] | None:
    """The fingerprints of these ids' text; None without a tokenizer."""
    text = text_of(ids)
    return None if text is None else list(_fingerprint().fingerprints(text))


def line_hashes(ids: Sequence[int]) -> list[str] | None:
    """8 hex digits for each line of these ids' text; None without a tokenizer or with very many lines."""
    text = text_of(ids)
    lines = [] if text is None else list(filter(str.strip, text.splitlines()))
    return None if text is None or len(lines) > _MOST_LINES else [text_hash(line)[:8] for line in lines]


_LABELS = (
    *"abcdeABCDE12345",
    *(form(word) for form in (str, str.capitalize) for word in (
        "yes", "no", "true", "false", "positive", "negative", "neutral", "entailment", "contradiction")),
    "はい", "いいえ",
)  # fmt: skip


def label_ids() -> dict[str, int]:
    """Labels and words that classify, with a blank before them or without, that are one token each."""
    own = tokenizer()
    found: dict[str, int] = {}
    for text in () if own is None else (blank + label for label in _LABELS for blank in ("", " ")):
        ids = own.encode(text, add_special_tokens=False)
        if len(ids) == 1:
            found[text] = ids[0]
    return found


def endings(row: Sequence[int], likely: Sequence[float], special: set[int]) -> list[tuple[str, float, int, float]]:
    """Each ending of a row's tokens: its text's hash, log-likelihood and tokens, and its end tokens' likelihood."""
    behind, found = next((n for n, one in enumerate(reversed(row)) if one not in special), len(row)), []
    for length in range(behind + 1, len(row) + 1):
        text = text_of(row[-length:])
        if text is not None:
            of_end = sum(likely[len(row) - behind :]) if behind else 0.0
            found.append((text_hash(text)[:8], round(sum(likely[-length:]), 4), length - behind, round(of_end, 4)))
    return found


def text_hash(text: str) -> str:
    """The hash of a text by the suite's own rule."""
    hashed: str = _fingerprint().text_hash(text)
    return hashed


def load() -> None:
    """Load what the first row would load in the middle of a training."""
    _fingerprint()


def _fingerprint() -> ModuleType:
    """The suite's own module, which knows how texts are compared; loaded by path, under a name of our own."""
    name = f"{__package__}.fingerprint"
    if name not in sys.modules:
        here = os.path.abspath(__file__)
        suite = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(here))))
        spec = importlib.util.spec_from_file_location(name, os.path.join(suite, "base", "fingerprint.py"))
        assert spec is not None and spec.loader is not None  # noqa: S101, PT018
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


_IGNORED = -100
_MOST_HASHED = 5000
_MOST_READ = 16


def described_rows(dataset: Any) -> dict[str, Any]:
    """Rows, hashes and the first rows' fingerprints; None for what would have to be made by asking the data set.

    A list of rows or a table is read; a data set that makes its rows when asked, or streams them, is left alone.
    """
    count = len(dataset) if hasattr(dataset, "__len__") else None
    ids = _token_ids(dataset)
    if ids is None:
        return {"rows": count, "row_hashes": None, "row_fingerprints": None}
    texts = [fingerprints_of(row) for row in ids[:_MOST_READ]]
    known = [text for text in texts if text is not None]
    return {
        "rows": count,
        "row_hashes": [row_hash(row) for row in ids],
        "row_fingerprints": known if len(known) == len(texts) else None,
        "prompt_hashes": _prompt_hashes(dataset, ids),
    }


def _prompt_hashes(dataset: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """A hash of what stands before the first label in each row of a list, and of what begins each row's last turn."""
    found = [hashed for row in rows if (hashed := turn_hash(row)) is not None]
    for row in dataset[:_MOST_HASHED] if isinstance(dataset, (list, tuple)) else ():
        ids, labels = (one.tolist() if hasattr(one, "tolist") else one for one in map(row.get, ("input_ids", "labels")))
        first = next((n for n, label in enumerate(labels or ()) if label != _IGNORED), 0)
        found += [row_hash(ids[:first])] if first else []
    return found


def _token_ids(dataset: Any) -> list[list[int]] | None:
    if isinstance(dataset, (list, tuple)):
        return _of_rows(list(dataset[:_MOST_HASHED]))
    torch: Any = sys.modules.get("torch")
    if torch is not None and type(dataset) is torch.utils.data.Subset and isinstance(dataset.dataset, (list, tuple)):
        return _of_rows([dataset.dataset[index] for index in dataset.indices[:_MOST_HASHED]])
    known = sys.modules.get("datasets")
    if known is not None and isinstance(dataset, getattr(known, "Dataset", ())):
        return _of_table(dataset)
    return None


def _of_rows(rows: list[Any]) -> list[list[int]] | None:
    found = []
    for row in rows:
        ids: Any = row.get("input_ids") if isinstance(row, dict) else None
        ids = ids.tolist() if hasattr(ids, "tolist") and str(getattr(ids, "device", "cpu")) == "cpu" else ids
        if not isinstance(ids, (list, tuple)) or not all(isinstance(one, int) for one in ids[:1]):
            return None
        found.append(list(ids))
    return found


def _of_table(dataset: Any) -> list[list[int]] | None:
    """Rows of a table in memory or mapped from disk; a format that makes rows anew is not asked."""
    if "input_ids" not in dataset.column_names or dataset.format.get("type") == "custom":
        return None
    column = dataset.data.column("input_ids")
    if dataset._indices is not None:
        places = dataset._indices.column(0).slice(0, _MOST_HASHED).to_pylist()
        values = [column[place].as_py() for place in places]
    else:
        values = column.slice(0, _MOST_HASHED).to_pylist()
    return values if all(isinstance(row, list) for row in values) else None


# --- what a mask and positions let a model look at


def attended(
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
