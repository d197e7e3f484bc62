"""One evaluation: ask every question, parse, vote."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm  # type: ignore[import-untyped]

from app.core.lawqa import Question
from app.evaluation.answers import ERROR, majority, parse_answer
from app.evaluation.settings import EvaluationSettings
from app.fast.ranks import is_first
from app.llm.hf_llm import Generation, HFLLMConfig, HFLoRALLM
from app.retrieval.rag_pipeline import PreparedQuestion, RAGPipeline


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question, what was asked, every run's generation, and the letter that won."""

    prepared: PreparedQuestion
    generations: tuple[Generation, ...]
    predicted: str

    @property
    def is_correct(self) -> bool:
        """Whether the predicted letter is the question's."""
        return self.predicted == self.prepared.question.answer

    @property
    def failures(self) -> tuple[Exception, ...]:
        """The exceptions that took the place of answers."""
        return tuple(generation.failure for generation in self.generations if generation.failure)


def load_model(settings: EvaluationSettings, model_name: str) -> HFLoRALLM:
    """Base and adapter, once."""
    return HFLoRALLM(
        HFLLMConfig(
            model_name=model_name,
            lora_path=settings.hf_lora_path,
            load_in_4bit=settings.hf_load_in_4bit,
            max_new_tokens=settings.new_token_limit,
            batch_size=settings.batch_size,
        )
    )


def answer_questions(llm: HFLoRALLM, pipeline: RAGPipeline, questions: Sequence[Question]) -> list[AnsweredQuestion]:
    """Ask every question in every run of the ensemble, the first of which is greedy.

    Failures are kept in place of answers. Of several ranks each answers its share and gets the others' answers.
    """
    prepared = [pipeline.prepare(question, llm.fits) for question in questions]
    prompts = [item.prompt for item in prepared]
    runs = pipeline.config.ensemble_runs
    with tqdm(
        total=runs * len(prompts), desc="Evaluating", unit="question", file=sys.stderr, disable=not is_first()
    ) as bar:
        by_run = [llm.generate(prompts, sample_seed=run or None, progress=bar.update) for run in range(runs)]
    return [
        _answered(item, generations, reasoned=pipeline.config.use_cot)
        for item, *generations in zip(prepared, *by_run, strict=True)
    ]


def _answered(prepared: PreparedQuestion, generations: Sequence[Generation], *, reasoned: bool) -> AnsweredQuestion:
    votes = [ERROR if item.failure else parse_answer(item.text, reasoned=reasoned) for item in generations]
    predicted = ERROR if ERROR in votes else majority(votes)
    return AnsweredQuestion(prepared, tuple(generations), predicted)
