"""Token ids as hashes, of rows too, and as text where the process has a tokenizer for them."""

from __future__ import annotations

import array
import hashlib
import importlib.util
import os
import sys
import weakref
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from . import splice

# what ends an answer in one chat format or another; a model's own end tokens come on top
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>", "<|return|>"),
    *("</s>", "<eos>", "<|eom_id|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "[EOS]", "<turn|>"),
)
_MAX_TEXT_TOKENS = 32768
_MOST_LINES = 400
_NEAR_END = 24  # tokens: a template may have an empty thought behind the header
_AFTER = 6  # tokens of an answer
_THOUGHTS = ("</think>", "/no_think", "/think")  # what a template or a prompt's end has to switch thinking off or on
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


def described() -> dict[str, Any] | None:
    """The tokenizer's size and special ids."""
    own = tokenizer()
    if own is None:
        return None
    names = {"eos": "eos_token_id", "pad": "pad_token_id", "bos": "bos_token_id"}
    return {"vocab": len(own), **{key: getattr(own, name, None) for key, name in names.items()}}


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


def answer_hashes(prompt: Sequence[int], answer: Sequence[int]) -> list[str]:
    """The same from a prompt's last token on, into the answer."""
    return _pairs([*prompt[-1:], *answer[:_AFTER]])


def _pairs(row: Sequence[int]) -> list[str]:
    return [f"{zlib.crc32(b'%d,%d' % pair):08x}" for pair in zip(row, row[1:])]


def thinks(row: Sequence[int]) -> bool:
    """Whether a prompt ends with a thought, or with an order to think or not."""
    own = tokenizer()
    return own is not None and any(word in own.decode(list(row[-_NEAR_END:])) for word in _THOUGHTS)


def header_hashes(row: Sequence[int]) -> list[str] | None:
    """A hash of each token that begins a turn with the one behind it: whose turn it is."""
    _, _, marks = _ids_of_tokenizer()
    return sorted({hashed for one, hashed in zip(row, _pairs(row)) if one in marks}) if marks else None


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


def fingerprints_of(ids: Sequence[int]) -> list[str] | None:
    """The fingerprints of these ids' text; None without a tokenizer."""
    text = text_of(ids)
    return None if text is None else list(_fingerprint().fingerprints(text))


def line_hashes(ids: Sequence[int]) -> list[str] | None:
    """8 hex digits for each line of these ids' text, each once; None without a tokenizer or with very many lines."""
    text = text_of(ids)
    lines = [] if text is None else list(dict.fromkeys(filter(str.strip, text.splitlines())))
    return None if text is None or len(lines) > _MOST_LINES else [text_hash(line)[:8] for line in lines]


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
    }


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
