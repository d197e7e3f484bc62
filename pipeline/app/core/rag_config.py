"""Settings of one question-answering run."""

from dataclasses import dataclass
from pathlib import Path

INDEX_DIR = Path("results/retrieval_index")


@dataclass(frozen=True)
class RAGConfig:
    """How questions are answered: which retrieval, which prompt, how many votes.

    `top_k` and `rerank_top_n` count passages; they matter only where `rag_enabled`.
    """

    rag_enabled: bool = False
    retriever_type: str = "bm25"
    top_k: int = 3
    use_reranker: bool = False
    reranker_model: str | None = None
    rerank_top_n: int = 3
    few_shot_enabled: bool = True
    use_cot: bool = False
    ensemble_runs: int = 1
