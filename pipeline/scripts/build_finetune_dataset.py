"""Build the fine-tuning rows from the question set: `python scripts/build_finetune_dataset.py --help`."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.core.errors import PipelineError, exit_code_of
from app.core.files import require_writable_place, sha256_of, write_text_atomically
from app.core.lawqa import load_questions
from app.core.rag_config import INDEX_DIR
from app.finetune.rows import finetune_rows
from app.retrieval.bm25 import load_retriever


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; argparse exits with 2 on a bad one."""
    parser = argparse.ArgumentParser(description="Build fine-tuning rows (JSON Lines) from a four-choice question set.")
    parser.add_argument("--lawqa-path", type=Path, default=Path("datasets/lawqa_jp/data/selection.json"))
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--mode", choices=("direct", "cot"), default="direct")
    parser.add_argument("--no-rag", action="store_true", help="leave retrieved passages out of the prompt")
    parser.add_argument("--top-k", type=int, default=3, help="passages in the prompt (default: %(default)s)")
    parser.add_argument("--index-dir", type=Path, default=INDEX_DIR, help="made by scripts/build_index.py")
    parser.add_argument("--few-shot", action="store_true", help="put the two fixed worked examples into the prompt")
    parser.add_argument(
        "--holdout",
        type=int,
        default=0,
        metavar="N",
        help="leave the first N questions out, so that they can be evaluated",
    )
    arguments = parser.parse_args(argv)
    if arguments.holdout < 0:
        parser.error(f"argument --holdout: must be 0 or more, not {arguments.holdout}")
    if arguments.top_k < 1:
        parser.error(f"argument --top-k: must be 1 or more, not {arguments.top_k}")
    return arguments


def main() -> int:
    """Write the rows and print how many."""
    arguments = parse_arguments()
    questions = load_questions(arguments.lawqa_path, "--lawqa-path")
    if arguments.holdout >= len(questions):
        raise PipelineError(
            f"--holdout {arguments.holdout} leaves no row of the {len(questions)} in {arguments.lawqa_path}; lower it"
        )
    require_writable_place(arguments.output_path, "--output-path", folder=False)
    rows = finetune_rows(
        questions,
        arguments.mode,
        few_shot=arguments.few_shot,
        holdout=arguments.holdout,
        source=arguments.lawqa_path,
        source_sha256=sha256_of(arguments.lawqa_path),
        retriever=None if arguments.no_rag else load_retriever(arguments.index_dir, arguments.lawqa_path),
        top_k=arguments.top_k,
    )
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_text_atomically(arguments.output_path, "\n".join(lines) + "\n")
    print(f"Wrote {len(rows)} rows to {arguments.output_path} ({arguments.holdout} held out)")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
