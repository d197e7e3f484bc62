"""The rows that a Trainer was given: how many, and a hash of each row's tokens where reading them costs nothing."""

from __future__ import annotations

import sys
from typing import Any

from . import tokens

_MOST_HASHED = 5000
_MOST_READ = 16


def described(dataset: Any) -> dict[str, Any]:
    """Rows, hashes and the first rows' fingerprints; None for what would have to be made by asking the data set.

    A list of rows or a table is read; a data set that makes its rows when asked, or streams them, is left alone.
    """
    count = len(dataset) if hasattr(dataset, "__len__") else None
    ids = _token_ids(dataset)
    if ids is None:
        return {"rows": count, "row_hashes": None, "row_fingerprints": None}
    texts = [tokens.fingerprints_of(row) for row in ids[:_MOST_READ]]
    known = [text for text in texts if text is not None]
    return {
        "rows": count,
        "row_hashes": [tokens.row_hash(row) for row in ids],
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
