"""From questions to answers: retrieve passages where a retriever is given, build the prompt, ask the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import PipelineError
from app.core.lawqa import Question
from app.core.prompts import build_prompt
from app.core.rag_config import RAGConfig


@dataclass(frozen=True)
class Passage:
    """One retrieved text and where it came from."""

    text: str
    source: str


class Retriever(Protocol):
    """Finds passages for a question."""

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """The `top_k` best passages, best first."""
        ...


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with the prompt that the model will be asked and the passages that went into it."""

    question: Question
    prompt: str
    passages: tuple[Passage, ...]


class RAGPipeline:
    """Prepares questions under one configuration; without a retriever the model answers from what it knows."""

    def __init__(self, config: RAGConfig, retriever: Retriever | None = None) -> None:
        if config.rag_enabled and retriever is None:
            raise PipelineError("retrieval has no index in this pipeline yet; pass --no-rag")
        self.config = config
        self._retriever = retriever if config.rag_enabled else None

    def prepare(self, question: Question) -> PreparedQuestion:
        """Retrieve for one question and build its prompt."""
        passages = tuple(self._retriever.retrieve(question.text, self.config.top_k)) if self._retriever else ()
        prompt = build_prompt(
            question,
            "cot" if self.config.use_cot else "direct",
            few_shot=self.config.few_shot_enabled,
            passages=tuple(passage.text for passage in passages),
        )
        return PreparedQuestion(question, prompt, passages)
