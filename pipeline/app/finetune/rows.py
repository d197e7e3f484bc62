"""Training rows made from questions: deterministic, so that the same file gives the same bytes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.core.lawqa import LETTERS, Question
from app.core.prompts import Mode, answer_text
from app.core.rag_config import RAGConfig
from app.retrieval.rag_pipeline import RAGPipeline, Retriever

_QUOTE_LIMIT_CHARACTERS = 60
_CHOICE_LIMIT_CHARACTERS = 40


def finetune_rows(
    questions: Sequence[Question],
    mode: Mode,
    *,
    few_shot: bool,
    holdout: int,
    source: Path,
    source_sha256: str,
    retriever: Retriever | None = None,
    top_k: int = 3,
) -> list[dict[str, Any]]:
    """One row a question, the first `holdout` questions left out; keys `input`, `output`, `meta`.

    With a retriever the prompts carry `top_k` passages, uncut: the training shortens what is too long.
    """
    pipeline = RAGPipeline(
        RAGConfig(rag_enabled=retriever is not None, top_k=top_k, few_shot_enabled=few_shot, use_cot=mode == "cot"),
        retriever,
    )
    shared = {
        "dataset": dataset_name(source),
        "mode": mode,
        "use_context": retriever is not None,
        "few_shot": few_shot,
        "source_file": str(source),
        "source_sha256": source_sha256,
        "holdout": holdout,
    }
    return [
        {
            "input": pipeline.prepare(question).prompt,
            "output": answer_text(mode, question.answer, reasoning(question) if mode == "cot" else ""),
            "meta": {
                "id": question.file_name,
                "correct": question.answer,
                "question": question.text,
                "choices": question.choices_text,
                **shared,
            },
        }
        for question in questions[holdout:]
    ]


def dataset_name(path: Path) -> str:
    """The set's name from its path: `datasets/lawqa_jp/data/selection.json` is `lawqa_jp`."""
    parent = path.absolute().parent
    return parent.parent.name if parent.name == "data" else parent.name


def reasoning(question: Question) -> str:
    """Two short sentences: what the first article of the context says, and the choice it leads to."""
    choice = _shortened(question.choices[LETTERS.index(question.answer)], _CHOICE_LIMIT_CHARACTERS)
    verdict = f"これを各選択肢と照らし合わせると、問いに当てはまるのは{question.answer}「{choice}」である。"
    headings, body = _first_article(question.context)
    if not body:
        return verdict
    return f"{headings or '関係する条文'}は「{_shortened(body, _QUOTE_LIMIT_CHARACTERS)}」と定める。{verdict}"


def _first_article(context: str) -> tuple[str, str]:
    """The heading path of the first passage (law, article, paragraph) and its first line of text."""
    headings: list[str] = []
    for line in filter(None, map(str.strip, context.splitlines())):
        heading = re.match(r"#+\s*(.+)", line)
        if not heading:
            return "".join(headings), line
        headings.append(heading[1])
    return "".join(headings), ""


def _shortened(text: str, limit_characters: int) -> str:
    text = text.rstrip("。")
    return text if len(text) <= limit_characters else text[: limit_characters - 1] + "…"
