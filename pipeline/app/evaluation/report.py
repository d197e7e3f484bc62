"""The evaluation's lines on stdout and its JSON file, in the wording that other programs read."""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from app.core.rag_config import RAGConfig
from app.evaluation.answers import ERROR, UNKNOWN
from app.evaluation.run import AnsweredQuestion
from app.evaluation.settings import EvaluationSettings
from app.fast.ranks import rank_count

RULE = "=" * 50


def configuration_lines(settings: EvaluationSettings, model_name: str) -> list[str]:
    """What is about to run; both model lines name the model that answers."""
    config = settings.rag_config
    return [
        f"RAG Mode: {'Enabled' if config.rag_enabled else 'Disabled (LLM only)'}",
        f"Retriever Type: {config.retriever_type}",
        f"LLM Model: {model_name}",
        f"LLM Backend: {settings.llm_backend}",
        f"  HF Model: {model_name}",
        f"  LoRA Path: {settings.hf_lora_path}",
        f"Few-shot Prompt: {_enabled(config.few_shot_enabled)}",
        f"Chain-of-Thought: {_enabled(config.use_cot)}",
        f"Reranker: {_enabled(config.use_reranker)}",
        f"Ensemble: {f'Enabled ({config.ensemble_runs} runs)' if config.ensemble_runs > 1 else 'Disabled'}",
        f"Top-K: {config.top_k}",
        "",
    ]


def result_lines(answered: Sequence[AnsweredQuestion]) -> list[str]:
    """Each failure, then the counts."""
    correct = sum(item.is_correct for item in answered)
    failures = [error for item in answered for error in item.failures]
    timeouts = sum(any(isinstance(error, TimeoutError) for error in item.failures) for item in answered)
    unknown = sum(item.predicted == UNKNOWN for item in answered)
    errors = sum(item.predicted == ERROR for item in answered)
    return [
        *(f"Error during LLM invocation: {failure_text(error)}" for error in failures),
        RULE,
        "EVALUATION RESULTS",
        RULE,
        f"Total Samples: {len(answered)}",
        f"Correct: {correct}",
        f"Incorrect: {len(answered) - correct}",
        f"Accuracy: {correct / len(answered):.2%}",
        "",
        "Error Analysis:",
        f"  Timeout Errors: {timeouts}",
        f"  Parse Errors (unknown): {unknown}",
        f"  Other Errors: {errors - timeouts}",
        RULE,
        "",
    ]


def evaluation_json(
    settings: EvaluationSettings, model_name: str, answered: Sequence[AnsweredQuestion]
) -> dict[str, Any]:
    """The file's content: `config`, `summary`, `results`."""
    correct = sum(item.is_correct for item in answered)
    return {
        "config": {
            **_rag_keys(settings.rag_config),
            **_model_keys(settings, model_name),
            "total_samples": len(answered),
        },
        "summary": {"accuracy": correct / len(answered), "correct_count": correct, "total_count": len(answered)},
        "results": [_row(item) for item in answered],
    }


def _rag_keys(config: RAGConfig) -> dict[str, Any]:
    return {
        "rag_enabled": config.rag_enabled,
        "retriever_type": config.retriever_type,
        "few_shot_enabled": config.few_shot_enabled,
        "cot_enabled": config.use_cot,
        "reranker_enabled": config.use_reranker,
        "reranker_model": config.reranker_model,
        "rerank_top_n": config.rerank_top_n,
        "ensemble_runs": config.ensemble_runs,
        "top_k": config.top_k,
    }


def _model_keys(settings: EvaluationSettings, model_name: str) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "llm_model": model_name,
        "backend": settings.llm_backend,
        "hf_model_name": model_name,
        "lora_path": str(settings.hf_lora_path) if settings.hf_lora_path else None,
        "load_in_4bit": settings.hf_load_in_4bit,
        "max_new_tokens": settings.new_token_limit,
        "batch_size": settings.batch_size,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "ranks": rank_count(),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def _row(item: AnsweredQuestion) -> dict[str, Any]:
    question, first = item.prepared.question, item.generations[0]
    return {
        "question": question.text,
        "choices": question.choices_text,
        "correct_answer": question.answer,
        "predicted_answer": item.predicted,
        "is_correct": item.is_correct,
        "response": failure_text(item.failures[0]) if item.failures else first.text,
        "retrieved_docs_count": len(item.prepared.passages),
        "retrieved_sources": [passage.source for passage in item.prepared.passages],
        "dropped_context_characters": item.prepared.dropped_characters,
        "file_name": question.file_name,
        "references": list(question.references),
        "prompt": item.prepared.prompt,
        "seconds": sum(generation.seconds for generation in item.generations),
        "new_tokens": sum(generation.new_tokens for generation in item.generations),
        "finish_reason": "error" if item.failures else first.finish_reason,
        "votes": [generation.text for generation in item.generations],
    }


def failure_text(error: Exception) -> str:
    """The exception's message, or its type where it has none."""
    return str(error) or repr(error)


def _enabled(on: bool) -> str:
    return "Enabled" if on else "Disabled"
