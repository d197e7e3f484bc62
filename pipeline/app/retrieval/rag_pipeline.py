"""From a question to its prompt: retrieve passages where a retriever is given, and put as much of them in as fits."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import PipelineError
from app.core.lawqa import Question
from app.core.prompts import build_prompt
from app.core.rag_config import RAGConfig
from app.retrieval.passages import Passage


class Retriever(Protocol):
    """Finds passages for a question."""

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """The `top_k` best passages, best first."""
        ...


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with the prompt that the model will be asked and the passages that were retrieved for it.

    `dropped_characters` counts what of the passages' text had no room in the prompt.
    """

    question: Question
    prompt: str
    passages: tuple[Passage, ...] = ()
    dropped_characters: int = 0


class RAGPipeline:
    """Prepares questions under one configuration; without retrieval the model answers from what it knows."""

    def __init__(self, config: RAGConfig, retriever: Retriever | None = None) -> None:
        if config.rag_enabled != (retriever is not None):
            raise ValueError("a retriever goes with rag_enabled, and with nothing else")
        if config.use_reranker:
            raise PipelineError("--use-reranker is not part of this pipeline; leave it out")
        self.config = config
        self._retriever = retriever

    def prepare(self, question: Question, fits: Callable[[str], bool] = lambda prompt: True) -> PreparedQuestion:
        """Retrieve for one question and build its prompt.

        Where the prompt does not fit, the end of the passages is left out, the least relevant first; the question and
        its choices always stay whole.
        """
        passages = self._retrieve(question)

        def prompt(characters: int) -> str:
            return build_prompt(
                question,
                "cot" if self.config.use_cot else "direct",
                few_shot=self.config.few_shot_enabled,
                passages=_beginning(passages, characters),
            )

        whole = sum(len(passage.text) for passage in passages)
        kept = whole
        if passages and not fits(prompt(whole)):
            too_long = bisect_right(range(whole), False, key=lambda characters: not fits(prompt(characters)))
            kept = max(0, too_long - 1)
        return PreparedQuestion(question, prompt(kept), passages, whole - kept)

    def _retrieve(self, question: Question) -> tuple[Passage, ...]:
        """Many questions ask only for what is true: without the choices nothing would say what they are about."""
        if self._retriever is None:
            return ()
        return tuple(self._retriever.retrieve(f"{question.text}\n{question.choices_text}", self.config.top_k))


def _beginning(passages: Sequence[Passage], characters: int) -> tuple[str, ...]:
    """The first `characters` of the passages' texts, without what is empty then."""
    kept = []
    for passage in passages:
        kept.append(passage.text[:characters])
        characters = max(0, characters - len(passage.text))
    return tuple(filter(None, kept))
