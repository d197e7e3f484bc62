"""What a run of the RAG pipeline is configured with."""

from dataclasses import dataclass
from typing import Optional


@dataclass
class RAGConfig:
    use_rag: bool = True
    retriever_type: str = "hybrid"
    llm_model: str = "qwen3:8b"
    llm_backend: str = "ollama"
    hf_model_name: Optional[str] = None
    hf_lora_path: Optional[str] = None
    hf_load_in_4bit: bool = False
    few_shot: bool = True
    use_cot: bool = False
    use_reranker: bool = False
    reranker_model: Optional[str] = None
    rerank_top_n: int = 3
    ensemble: int = 1
    top_k: int = 3
