"""Index the question set's statute text for retrieval: `python scripts/build_index.py --help`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.core.errors import PipelineError, exit_code_of
from app.core.files import require_writable_place
from app.core.lawqa import load_questions
from app.core.rag_config import INDEX_DIR
from app.retrieval.bm25 import BM25Retriever
from app.retrieval.passages import corpus_of


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; argparse exits with 2 on a bad one."""
    parser = argparse.ArgumentParser(description="Build the BM25 index over the statute text of a question set.")
    parser.add_argument("--data", type=Path, default=Path("datasets/lawqa_jp/data/selection.json"))
    parser.add_argument("--index-dir", type=Path, default=INDEX_DIR, help="folder of the index (default: %(default)s)")
    return parser.parse_args(argv)


def main() -> int:
    """Write the index and print how many passages it has."""
    arguments = parse_arguments()
    passages = corpus_of(load_questions(arguments.data, "--data"))
    if not passages:
        raise PipelineError(f"--data {arguments.data} has no text under the key 'コンテキスト'; nothing to index")
    require_writable_place(arguments.index_dir, "--index-dir", folder=True)
    BM25Retriever.build(passages).save(arguments.index_dir, arguments.data)
    print(f"Indexed {len(passages)} passages of {arguments.data} in {arguments.index_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
