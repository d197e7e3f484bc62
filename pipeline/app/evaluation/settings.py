"""The evaluation script's command line as one frozen value."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from app.core.rag_config import INDEX_DIR, RAGConfig

_DIRECT_NEW_TOKENS, _COT_NEW_TOKENS = 16, 512


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that decides an evaluation; field names are the flags'."""

    data: Path
    output: Path
    samples: int | None
    no_rag: bool
    top_k: int
    index_dir: Path
    llm_model: str
    no_few_shot: bool
    use_reranker: bool
    reranker_model: str | None
    rerank_top_n: int
    ensemble: int
    use_cot: bool
    llm_backend: Literal["ollama", "hf"]
    hf_model_name: str | None
    hf_lora_path: Path | None
    hf_load_in_4bit: bool
    batch_size: int
    max_new_tokens: int | None

    @property
    def new_token_limit(self) -> int:
        """As asked, else 16 tokens for a letter and 512 for a reasoned answer."""
        return self.max_new_tokens or (_COT_NEW_TOKENS if self.use_cot else _DIRECT_NEW_TOKENS)

    @property
    def rag_config(self) -> RAGConfig:
        """What the pipeline needs to know; without retrieval there is nothing to rerank."""
        return RAGConfig(
            rag_enabled=not self.no_rag,
            top_k=self.top_k,
            use_reranker=self.use_reranker and not self.no_rag,
            reranker_model=self.reranker_model,
            rerank_top_n=self.rerank_top_n,
            few_shot_enabled=not self.no_few_shot,
            use_cot=self.use_cot,
            ensemble_runs=self.ensemble,
        )


def parse_settings(argv: list[str] | None = None) -> EvaluationSettings:
    """Read the command line; argparse exits with 2 on a bad one."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.llm_backend == "hf" and not arguments.hf_model_name:
        parser.error("argument --hf-model-name: required with --llm-backend hf")
    return EvaluationSettings(**{field.name: getattr(arguments, field.name) for field in fields(EvaluationSettings)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask a model four-choice legal questions and count the right answers.")
    add = parser.add_argument
    add("--data", type=Path, default=Path("datasets/lawqa_jp/data/selection.json"))
    add("--output", type=Path, default=Path("results/evaluations/evaluation.json"))
    add("--samples", type=_positive, metavar="N", help="only the first N questions (all where not given)")
    add("--no-few-shot", action="store_true", help="leave the worked examples out of the prompt")
    add("--use-cot", action="store_true", help="ask for a reasoned answer")
    votes = "N answers vote; the first is greedy, the rest sampled"
    add("--ensemble", type=_positive, default=1, metavar="N", help=votes)
    add("--batch-size", type=_positive, default=8, help="prompts at once; 1 after running out of memory")
    add("--max-new-tokens", type=_positive, help="default: 16, with --use-cot 512")
    add = parser.add_argument_group("retrieval").add_argument
    add("--no-rag", action="store_true", help="the model alone, without retrieved passages")
    add("--top-k", type=_positive, default=3, help="passages in the prompt (default: %(default)s)")
    add("--index-dir", type=Path, default=INDEX_DIR, help="made by scripts/build_index.py (default: %(default)s)")
    add("--use-reranker", action="store_true")
    add("--reranker-model")
    add("--rerank-top-n", type=_positive, default=3)
    add = parser.add_argument_group("model").add_argument
    add("--llm-backend", choices=("ollama", "hf"), default="ollama")
    add("--llm-model", default="qwen3:8b", help="the model's name for the ollama backend")
    add("--hf-model-name", help="Hub id or folder of the base model")
    add("--hf-lora-path", type=Path, help="adapter folder; the base model alone where not given")
    add("--hf-load-in-4bit", action="store_true")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value
