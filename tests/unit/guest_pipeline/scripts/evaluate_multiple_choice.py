"""A stand-in for somebody else's evaluation script, with its habits.

It prints the Ollama default as the model whatever answers, writes its JSON under a dated name beside the asked one,
prompts otherwise than the training data did, takes any letter out of rambling text, and lets the model ramble.
"""

import argparse
import json
import re
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.core.rag_config import RAGConfig
from app.retrieval.rag_pipeline import RAGPipeline


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate the RAG pipeline on four-choice questions")
    parser.add_argument("--data", type=str, default="datasets/lawqa_jp/data/selection.json")
    parser.add_argument("--output", type=str, default="evaluation_results.json")
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--no-rag", action="store_true")
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--llm-model", type=str, default="qwen3:8b")
    parser.add_argument("--no-few-shot", action="store_true")
    parser.add_argument("--use-reranker", action="store_true")
    parser.add_argument("--reranker-model", type=str, default=None)
    parser.add_argument("--rerank-top-n", type=int, default=3)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--use-cot", action="store_true")
    parser.add_argument("--llm-backend", choices=["ollama", "hf"], default="ollama")
    parser.add_argument("--hf-model-name", type=str, default=None)
    parser.add_argument("--hf-lora-path", type=str, default=None)
    parser.add_argument("--hf-load-in-4bit", action="store_true")
    return parser.parse_args()


def parse_answer(response: str) -> str:
    if response.startswith("Error:"):
        return "error"
    found = re.search(r"[a-d]", response.lower())
    return found.group(0) if found else "unknown"


def print_configuration(config: RAGConfig) -> None:
    print(f"RAG Mode: {'Enabled' if config.use_rag else 'Disabled (LLM only)'}")
    print(f"Retriever Type: {config.retriever_type}")
    print(f"LLM Model: {config.llm_model}")
    print(f"LLM Backend: {config.llm_backend}")
    print(f"  HF Model: {config.hf_model_name}")
    print(f"  LoRA Path: {config.hf_lora_path}")
    print(f"Few-shot Prompt: {'Enabled' if config.few_shot else 'Disabled'}")
    print(f"Chain-of-Thought: {'Enabled' if config.use_cot else 'Disabled'}")
    print(f"Reranker: {'Enabled' if config.use_reranker else 'Disabled'}")
    print(f"Ensemble: {f'Enabled ({config.ensemble} runs)' if config.ensemble > 1 else 'Disabled'}")
    print(f"Top-K: {config.top_k}")
    print()


def main() -> None:
    args = parse_args()
    print(f"Loading dataset from {args.data}...")
    try:
        with open(args.data, encoding="utf-8") as f:
            samples = json.load(f)["samples"]
    except (OSError, ValueError, KeyError) as e:
        print(f"Error: {e}")
        sys.exit(1)
    if args.samples and args.samples > 0:
        samples = samples[: args.samples]
    print(f"Total samples to evaluate: {len(samples)}\n")

    config = RAGConfig(
        use_rag=not args.no_rag,
        llm_model=args.llm_model,
        llm_backend=args.llm_backend,
        hf_model_name=args.hf_model_name,
        hf_lora_path=args.hf_lora_path,
        hf_load_in_4bit=args.hf_load_in_4bit,
        few_shot=not args.no_few_shot,
        use_cot=args.use_cot,
        use_reranker=args.use_reranker,
        reranker_model=args.reranker_model,
        rerank_top_n=args.rerank_top_n,
        ensemble=args.ensemble,
        top_k=args.top_k,
    )
    print("Initializing RAG pipeline...")
    pipeline = RAGPipeline(config)
    print_configuration(config)

    results = []
    for sample in samples:
        response = pipeline.query(sample["問題文"], sample["選択肢"])
        predicted = parse_answer(response)
        results.append(
            {
                "question": sample["問題文"],
                "choices": sample["選択肢"],
                "correct_answer": sample["output"],
                "predicted_answer": predicted,
                "is_correct": predicted == sample["output"],
                "response": response,
                "retrieved_docs_count": 0,
                "file_name": sample["ファイル名"],
                "references": sample.get("references", []),
            }
        )

    total, correct = len(results), sum(r["is_correct"] for r in results)
    accuracy = correct / total if total else 0.0
    print("=" * 50)
    print("EVALUATION RESULTS")
    print("=" * 50)
    print(f"Total Samples: {total}")
    print(f"Correct: {correct}")
    print(f"Incorrect: {total - correct}")
    print(f"Accuracy: {accuracy:.2%}")
    print("\nError Analysis:")
    print("  Timeout Errors: 0")
    print(f"  Parse Errors (unknown): {sum(r['predicted_answer'] == 'unknown' for r in results)}")
    print(f"  Other Errors: {sum(r['predicted_answer'] == 'error' for r in results)}")
    print("=" * 50)

    asked = Path(args.output)
    output = asked.with_name(f"{datetime.now():%Y%m%d-%H%M}_{asked.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "config": {
            "rag_enabled": config.use_rag,
            "retriever_type": config.retriever_type,
            "llm_model": config.llm_model,
            "few_shot_enabled": config.few_shot,
            "cot_enabled": config.use_cot,
            "reranker_enabled": config.use_reranker,
            "reranker_model": config.reranker_model,
            "rerank_top_n": config.rerank_top_n,
            "ensemble_runs": config.ensemble,
            "top_k": config.top_k,
            "total_samples": total,
        },
        "summary": {"accuracy": accuracy, "correct_count": correct, "total_count": total},
        "results": results,
    }
    with open(output, "w", encoding="utf-8") as f:
        json.dump(content, f, ensure_ascii=False, indent=2)
    print(f"\nDetailed results saved to: {output}")


if __name__ == "__main__":
    main()
