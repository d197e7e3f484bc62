"""A BM25 index over passages: built from a question set's statute text, kept in a folder, asked for the best passages.

Tokens are runs of two and of three characters: on the 140 questions of lawqa_jp they find as much as SudachiPy's words,
and need no dictionary of 77 MB (benchmarks/retrieval.md).
"""

import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from app.core.errors import PipelineError
from app.core.files import sha256_of, write_json_atomically
from app.retrieval.passages import Passage

TOKENISATION = "nfkc-lower/character-2-3-grams/1"
MANIFEST, PASSAGES = "index.json", "passages.json"
_GRAM_CHARACTERS = (2, 3)


def grams(text: str) -> list[str]:
    """Every run of two and of three characters of the text, width and case levelled, blanks left out."""
    squeezed = "".join(unicodedata.normalize("NFKC", text).lower().split())
    return [squeezed[at : at + size] for size in _GRAM_CHARACTERS for at in range(len(squeezed) - size + 1)]


@dataclass(frozen=True)
class BM25Retriever:
    """Passages and their BM25 scores."""

    passages: tuple[Passage, ...]
    index: Any  # bm25s.BM25; the package is loaded only where retrieval is used

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> "BM25Retriever":
        """Index the passages (at least one); k1 1.5 and b 0.75 as in Lucene's variant of bm25s."""
        index = _bm25s().BM25(method="lucene", k1=1.5, b=0.75)
        index.index([grams(passage.text) for passage in passages], show_progress=False)
        return cls(tuple(passages), index)

    def retrieve(self, query: str, top_k: int) -> tuple[Passage, ...]:
        """The `top_k` best passages, best first and the earlier of equals; fewer where fewer share a token with it."""
        tokens = grams(query)
        if not tokens:
            return ()
        scores = self.index.get_scores(tokens)
        best = (-scores).argsort(kind="stable")[:top_k]
        return tuple(self.passages[number] for number in best if scores[number] > 0)

    def save(self, folder: Path, dataset: Path) -> None:
        """Write the index into `folder`, its manifest last, so that half an index never passes for a whole one."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        self.index.save(folder)
        write_json_atomically(folder / PASSAGES, [asdict(passage) for passage in self.passages])
        manifest = {
            "tokenisation": TOKENISATION,
            "dataset": str(dataset),
            "dataset_sha256": sha256_of(dataset),
            "passages": len(self.passages),
            "files": {
                path.name: sha256_of(path)
                for path in sorted(folder.iterdir())
                if path.name == PASSAGES or ".index." in path.name
            },
        }
        write_json_atomically(folder / MANIFEST, manifest)


def load_retriever(folder: Path, dataset: Path) -> BM25Retriever:
    """The index in `folder`; raises `PipelineError` where it is missing, broken or not built from `dataset`."""
    remedy = f"build it with scripts/build_index.py --data {dataset} --index-dir {folder}, or pass --no-rag"
    path = folder / MANIFEST
    if not path.is_file():
        raise PipelineError(f"--index-dir {folder} holds no index ({MANIFEST} is missing); {remedy}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        built_from, tokenisation = manifest["dataset_sha256"], manifest["tokenisation"]
        files = [(folder / name, digest) for name, digest in manifest["files"].items()]
        changed = [path.name for path, digest in files if not path.is_file() or sha256_of(path) != digest]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path} is no manifest of an index ({error!r}); {remedy}") from error
    if built_from != sha256_of(dataset):
        origin = f"{manifest.get('dataset')} as it was with sha256 {str(built_from)[:12]}"
        raise PipelineError(f"the index in {folder} is of another data set than {dataset}: {origin}; {remedy}")
    if tokenisation != TOKENISATION:
        raise PipelineError(f"the index in {folder} has tokens {tokenisation!r}, not {TOKENISATION!r}; {remedy}")
    if changed or PASSAGES not in manifest["files"]:
        raise PipelineError(f"the index in {folder} is broken ({(changed or [PASSAGES])[0]}); {remedy}")
    passages = tuple(Passage(**row) for row in json.loads((folder / PASSAGES).read_text(encoding="utf-8")))
    return BM25Retriever(passages, _bm25s().BM25.load(folder))


def _bm25s() -> ModuleType:
    """The package; where JAX is installed too it starts JAX, which would claim three quarters of the GPU for itself."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        return import_module("bm25s")
    except ImportError as error:
        raise PipelineError(f"retrieval needs a package ({error}); pip install bm25s, or pass --no-rag") from error
