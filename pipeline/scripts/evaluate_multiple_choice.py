"""Ask a model four-choice legal questions and count: `python scripts/evaluate_multiple_choice.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.core.errors import PipelineError, exit_code_of
from app.core.files import require_writable_place, write_json_atomically
from app.core.lawqa import Question, load_questions
from app.core.model_source import require_adapter, require_model
from app.evaluation.settings import EvaluationSettings, parse_settings
from app.fast.ranks import is_first, joined_ranks
from app.fast.startup import lean_imports
from app.retrieval.bm25 import load_retriever
from app.retrieval.rag_pipeline import RAGPipeline


def require_hf_model(settings: EvaluationSettings) -> str:
    """The base model's name, after checking backend, model and adapter without loading them."""
    if settings.llm_backend != "hf" or settings.hf_model_name is None:
        raise PipelineError(
            "--llm-backend ollama is not part of this pipeline; pass --llm-backend hf --hf-model-name NAME"
        )
    require_model(settings.hf_model_name, "--hf-model-name")
    if settings.hf_lora_path is not None:
        require_adapter(settings.hf_lora_path, settings.hf_model_name, "--hf-lora-path")
    return settings.hf_model_name


def load_samples(settings: EvaluationSettings) -> list[Question]:
    """The questions to ask, announced on stdout."""
    print(f"Loading dataset from {settings.data}...")
    questions = load_questions(settings.data, "--data")[: settings.samples]
    print(f"Total samples to evaluate: {len(questions)}\n", flush=True)
    return questions


def prepare_retrieval(settings: EvaluationSettings) -> RAGPipeline:
    """The pipeline with its index, or without one where --no-rag says so."""
    config = settings.rag_config
    return RAGPipeline(config, load_retriever(settings.index_dir, settings.data) if config.rag_enabled else None)


def main() -> int:
    """Check every input first, then import the large libraries and evaluate; 1 where any question failed."""
    settings = parse_settings()
    questions = load_samples(settings)
    print("Initializing RAG pipeline...", flush=True)
    pipeline = prepare_retrieval(settings)
    model_name = require_hf_model(settings)
    require_writable_place(settings.output, "--output", folder=False)
    with lean_imports():
        from app.evaluation import report, run
    with joined_ranks():
        llm = run.load_model(settings, model_name)
        print("\n".join(report.configuration_lines(settings, model_name)), flush=True)
        answered = run.answer_questions(llm, pipeline, questions)
    print("\n".join(report.result_lines(answered)))
    if is_first():
        write_json_atomically(settings.output, report.evaluation_json(settings, model_name, answered))
    print(f"Detailed results saved to: {settings.output}")
    return 1 if any(item.failures for item in answered) else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
