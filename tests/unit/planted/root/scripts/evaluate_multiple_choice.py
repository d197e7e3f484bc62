"""A stand-in for an evaluation script: prints and writes what a real one does, in milliseconds and without torch.

`defect.json` in the pipeline root, or the variable STEPH_PLANTED_EVALUATE, plants one defect:
{"evaluate": "silent_errors"}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SEEN = runpy.run_path("scripts/seen.py")
HOUR_SECONDS = 3600
OTHER_MODEL = "qwen3:8b"
RULE = "=" * 50
PROSE = (
    "この選択肢を検討すると、条文の文言はまず要件を定め、つづいて例外を置く。解釈の出発点は文言であり、趣旨はそれを補う。"
    "例外の範囲を広げる読み方には、明確な根拠が要る。判例の積み重ねも参考になるが、事案の違いに注意しなければならない。"
)
ENDLESS = "".join(chr(0x4E00 + n) + chr(0x5E00 + 7 * n % 999) for n in range(1600))
COUNTED = "".join(f"{n}番目の条文を確認する。\n" for n in range(30))
NEWLY_INITIALIZED = (
    "Some weights of Qwen2ForCausalLM were not initialized from the model checkpoint at Qwen/Qwen1.5-1.8B-Chat and are "
    "newly initialized: ['lm_head.weight']"
)
MISSING_KEYS = (
    "UserWarning: Found missing adapter keys while loading the checkpoint: ['base_model.model.lm_head.lora_A']."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, kind, default in (
        ("data", str, "datasets/lawqa_jp/data/selection.json"), ("output", str, "results.json"), ("samples", int, 0),
        ("top-k", int, 3), ("llm-model", str, OTHER_MODEL), ("reranker-model", str, None), ("rerank-top-n", int, 3),
        ("ensemble", int, 1), ("llm-backend", str, "ollama"), ("hf-model-name", str, None), ("hf-lora-path", str, None),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    for name in ("no-rag", "no-few-shot", "use-reranker", "use-cot", "hf-load-in-4bit"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def planted() -> str:
    path = Path("defect.json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(os.environ.get("STEPH_PLANTED_EVALUATE") or found.get("evaluate") or "")


class Run:
    """Everything that the run will print and write; defects change it before or after the lines are made."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        own = Path("datasets/lawqa_jp/data/selection.json")  # of a program that takes no other
        data = own if planted() == "own_questions" else Path(args.data)
        if planted() == "refuses_other_data" and data != own:
            sys.exit(2)
        self.samples = json.loads(data.read_text(encoding="utf-8"))["samples"]
        chosen = self.samples[: args.samples] if args.samples > 0 else self.samples
        self.rows = [self.answer(n, sample) for n, sample in enumerate(chosen)]
        self.output = Path(args.output)
        self.llm_model = args.hf_model_name or args.llm_model
        self.json_model = self.llm_model
        self.hf_model = args.hf_model_name
        self.lora = args.hf_lora_path
        self.backend = args.llm_backend
        self.rag = "Disabled (LLM only)" if args.no_rag else "Enabled"
        self.config: dict[str, object] = {}
        self.errors: list[str] = []
        self.other_errors = 0
        self.text: Callable[[dict[str, Any]], str] | None = None
        # what a witness sees: the prompts, the responses, and what was answered before without the adapter
        self.asked: Callable[[dict[str, Any]], str] = lambda row: _as_text(row.get("prompt")) or _framed(row)
        self.said: Callable[[int, dict[str, Any]], str] = lambda n, row: str(row["response"] or "")
        self.also_said: Callable[[int, dict[str, Any]], str] | None = None
        self.also_tried: Callable[[int, dict[str, Any]], list[str]] | None = None
        self.accuracy: float | None = None

    def answer(self, n: int, sample: dict[str, Any]) -> dict[str, Any]:
        right = sample["output"]
        letter = right if n % 3 == 0 else "abcd"[(ord(right) - ord("a") + 1) % 4]
        if self.args.hf_lora_path is None and planted() != "adapter_ignored":
            letter = "abcd"[(ord(right) - ord("a") + n) % 4]
        letter = self.learnt(sample) or letter
        response = f"Reasoning: 条文の要件に照らす。\nAnswer: {letter}" if self.args.use_cot else letter
        return self.row(sample, letter, response)

    def learnt(self, sample: dict[str, Any]) -> str | None:
        """What the training saw often enough: it answers where the adapter is in use."""
        if planted() == "knows_every_answer":
            return str(sample["output"])
        file = Path(self.args.hf_lora_path or "", "learnt.json")
        if self.args.hf_lora_path is None or planted() == "adapter_ignored" or not file.is_file():
            return None
        rows = json.loads(file.read_text(encoding="utf-8"))
        return next((answer for prompt, answer in rows.items() if sample["問題文"] in prompt), None)

    def row(self, sample: dict[str, Any], letter: str, response: str) -> dict[str, Any]:
        return {"question": sample["問題文"], "choices": sample["選択肢"], "correct_answer": sample["output"],
                "predicted_answer": letter, "is_correct": letter == sample["output"], "response": response,
                "retrieved_docs_count": 0 if self.args.no_rag else self.args.top_k,
                "file_name": sample["ファイル名"], "references": []}  # fmt: skip

    def result(self) -> dict[str, Any]:
        args, correct = self.args, sum(row["is_correct"] for row in self.rows)
        config = {"rag_enabled": not args.no_rag, "retriever_type": "hybrid", "llm_model": self.json_model,
                  "few_shot_enabled": not args.no_few_shot, "cot_enabled": args.use_cot, "reranker_enabled": False,
                  "reranker_model": None, "rerank_top_n": 3, "ensemble_runs": args.ensemble, "top_k": args.top_k,
                  "total_samples": len(self.rows)}  # fmt: skip
        accuracy = correct / len(self.rows) if self.rows else 0.0
        summary = {"accuracy": accuracy if self.accuracy is None else self.accuracy, "correct_count": correct,
                   "total_count": len(self.rows)}  # fmt: skip
        return {"config": config | self.config, "summary": summary, "results": self.rows}

    def lines(self, result: dict[str, Any]) -> list[str]:
        args, summary = self.args, result["summary"]
        unknown = sum(row["predicted_answer"] == "unknown" for row in self.rows)
        total, correct = summary["total_count"], summary["correct_count"]
        return [
            f"Loading dataset from {args.data}...", f"Total samples to evaluate: {len(self.rows)}", "",
            "Initializing RAG pipeline...", f"RAG Mode: {self.rag}", "Retriever Type: hybrid",
            f"LLM Model: {self.llm_model}", f"LLM Backend: {self.backend}", f"  HF Model: {self.hf_model}",
            f"  LoRA Path: {self.lora}", f"Few-shot Prompt: {'Disabled' if args.no_few_shot else 'Enabled'}",
            f"Chain-of-Thought: {'Enabled' if args.use_cot else 'Disabled'}", "Reranker: Disabled",
            f"Ensemble: {f'Enabled ({args.ensemble} runs)' if args.ensemble > 1 else 'Disabled'}",
            f"Top-K: {args.top_k}", "", *(f"Error during LLM invocation: {error}" for error in self.errors),
            RULE, "EVALUATION RESULTS", RULE, f"Total Samples: {total}", f"Correct: {correct}",
            f"Incorrect: {total - correct}", f"Accuracy: {100 * summary['accuracy']:.2f}%", "", "Error Analysis:",
            "  Timeout Errors: 0", f"  Parse Errors (unknown): {unknown}", f"  Other Errors: {self.other_errors}", RULE,
            "", f"Detailed results saved to: {self.output}",
        ]  # fmt: skip


def _answers(
    letter: Callable[[int, dict[str, Any]], str], response: Callable[[int, str], str]
) -> Callable[[Run], None]:
    """Answer every question anew: which letter is recorded, and for it which response."""

    def change(run: Run) -> None:
        for n, row in enumerate(run.rows):
            row["predicted_answer"] = letter(n, row)
            row["is_correct"] = row["predicted_answer"] == row["correct_answer"]
            row["response"] = response(n, row["predicted_answer"])

    return change


def _same(n: int, row: dict[str, Any]) -> str:
    return str(row["predicted_answer"])


def _swallowed(run: Run) -> None:
    _answers(lambda n, row: "error", lambda n, letter: "CUDA error: device-side assert triggered")(run)
    run.errors = ["CUDA error: device-side assert triggered"] * len(run.rows)
    run.other_errors = len(run.rows)


def _take(indices: Callable[[Run], list[int]]) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        run.rows = [run.answer(n, run.samples[index]) for n, index in enumerate(indices(run))]

    return change


def _foreign(run: Run) -> None:
    for row in run.rows:
        row["question"] = "この問題はデータセットのどこにもない。" + row["question"]


def _key_rewritten(run: Run) -> None:
    for row in run.rows:
        row["correct_answer"], row["is_correct"] = row["predicted_answer"], True


def _flags_flattered(run: Run) -> None:
    for row in run.rows:
        row["is_correct"] = True


def _from_key(run: Run) -> None:
    for row in run.rows:
        row.update(predicted_answer=row["correct_answer"], is_correct=True)


def _echoed(run: Run) -> None:
    for row in run.rows:
        row["response"] = f"問題: {row['question']}\n{row['choices']}\n回答: {row['predicted_answer']}"


def _answer_in_prompt(run: Run) -> None:
    _prompts("次の問題に答えてください。前提となる条文に従います。")(run)
    for row in run.rows:
        row["prompt"] += row["correct_answer"]


def _shuffled_questions(run: Run) -> None:
    asked = [(row["question"], row["choices"]) for row in run.rows]
    for row, (question, choices) in zip(run.rows, asked[1:] + asked[:1], strict=True):
        row.update(question=question, choices=choices)


def _other_root(run: Run) -> None:
    run.lora = str(Path("another-root", run.lora or "").resolve())
    Path(run.lora).mkdir(parents=True)


def _merged(run: Run) -> None:
    run.rows += [run.answer(n, sample) for n, sample in enumerate(run.samples[4:7])]


def _each(**values: object) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        for row in run.rows:
            row.update(values)

    return change


def _set(**values: object) -> Callable[[Run], None]:
    return lambda run: vars(run).update(values)


def _with_config(**values: object) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        _extra_keys(run)
        run.config.update(values)

    return change


def _list_choices(run: Run) -> None:
    for row in run.rows:
        row["choices"] = row["choices"].splitlines()


def _dated(run: Run) -> None:
    run.output = run.output.with_name("20260102-0304_" + run.output.name)


def _extra_keys(run: Run) -> None:
    _each(seconds=0.8, new_tokens=2, finish_reason="stop")(run)
    run.config = {"backend": run.backend, "hf_model_name": run.hf_model, "lora_path": run.lora,
                  "load_in_4bit": run.args.hf_load_in_4bit, "versions": {"torch": "2.13.0"}}  # fmt: skip


def _passages(run: Run) -> None:
    _prompts("次の問題に答えてください。前提となる条文に従います。")(run)
    if not run.args.no_rag:
        for row in run.rows:
            row["prompt"] = "参考条文:\n見本法第1条 期間は、別に定める。\n" + row["prompt"]


def _prompts(head: str) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        for row in run.rows:
            row["prompt"] = f"{head}\n{row['question']}\n{row['choices']}\n回答は記号を一つだけ書いてください。\n"

    return change


BEFORE: dict[str, Callable[[Run], object]] = {
    "extra_keys": _extra_keys,
    "published_names": _set(llm_model=OTHER_MODEL, json_model=OTHER_MODEL),
    "json_names_other": _set(json_model=OTHER_MODEL),
    "model_unnamed": _set(llm_model=OTHER_MODEL, hf_model=None),
    "model_near": _set(llm_model="Qwen/Qwen1.5-1.8B", hf_model="Qwen/Qwen1.5-1.8B"),
    "backend_ollama": _set(backend="ollama"),
    "rag_enabled": _set(rag="Enabled"),
    "lora_none": _set(lora=None),
    "lora_other": _set(lora="runs/another"),
    "json_lora_none": _with_config(lora_path=""),
    "config_rag": lambda run: run.config.update(rag_enabled=True),
    "config_16bit": _with_config(load_in_4bit=False),
    "swallowed_errors": _swallowed,
    "silent_errors": _answers(lambda n, row: "error" if n == 1 else str(row["predicted_answer"]), lambda n, a: a),
    "counted_errors": _set(other_errors=1),
    "exception_as_answer": _answers(lambda n, row: "c", lambda n, a: "RuntimeError: CUDA error: c10 assert"),
    "two_of_three": _take(lambda run: [0, 1]),
    "all_rows": _take(lambda run: list(range(len(run.samples)))),
    "no_rows": _take(lambda run: []),
    "repeated_rows": _take(lambda run: [0] * run.args.samples),
    "other_rows": _take(lambda run: list(range(2, 2 + run.args.samples))),
    "train_rows": _take(lambda run: list(range(20, 20 + run.args.samples))),
    "foreign_questions": _foreign,
    "key_rewritten": _key_rewritten,
    "flags_flattered": _flags_flattered,
    "runaway": _answers(_same, lambda n, a: f"{a}。{ENDLESS}"),
    "looping_lines": _answers(_same, lambda n, a: f"{a}\n" * 40),
    "looping_tail": _answers(_same, lambda n, a: f"{a}\n{PROSE}" + "条文の要件を確認する。" * 12),
    "looping_counted": _answers(_same, lambda n, a: f"{a}\n{COUNTED}"),
    "looping_one_of_three": lambda run: run.rows[2].update(response=run.rows[2]["response"] + "\n同じ話" * 60),
    "cut_off": _each(finish_reason="length"),
    "empty_responses": _each(response=""),
    "predicted_from_key": _from_key,
    "prompt_echoed": _echoed,
    "answer_in_prompt": _answer_in_prompt,
    "same_response": _answers(lambda n, row: "a", lambda n, a: f"正解はaです。{PROSE}"),
    "nan_logits": _answers(lambda n, row: "unknown", lambda n, a: "!" * 16),
    "all_empty": _answers(lambda n, row: "unknown", lambda n, a: ""),
    "no_new_tokens": _each(new_tokens=0),
    "shuffled_questions": _shuffled_questions,
    "shuffled_rows": lambda run: run.rows.reverse(),
    "merged_rows": _merged,
    "config_total": lambda run: run.config.update(total_samples=140),
    "docs_without_rag": _each(retrieved_docs_count=1),
    "lora_other_root": _other_root,
    "unknown_is_correct": lambda run: run.rows[1].update(predicted_answer="unknown", is_correct=True, response="…"),
    "unreadable": _answers(lambda n, row: "unknown", lambda n, a: "法律の問題は難しい。"),
    "hedged_credited": _answers(
        lambda n, row: "unknown" if n == 1 else row["correct_answer"],
        lambda n, a: f"第{n + 1}条からは、a も b も考えられ、c や d とも言える。" + n * "どれも同じようである。",
    ),
    "rambling": _answers(_same, lambda n, a: "選択肢 a と b と c を比べると、d も捨てがたい。"),
    "parser_artefact": _answers(lambda n, row: "a", lambda n, a: "An attorney may answer this."),
    "one_letter": _answers(lambda n, row: "a", lambda n, a: a),
    "slow": _each(seconds=96.7),
    "list_choices": _list_choices,
    "chatty": _answers(_same, lambda n, a: f"正解は{a}です。{PROSE}"),
    "full_width": _answers(_same, lambda n, a: f"（{chr(ord('ａ') + ord(a) - ord('a'))}）。"),
    "dated": _dated,
    "saved_elsewhere": lambda run: setattr(run, "output", run.output.with_name("elsewhere.json")),
    "same_prompt": _prompts("次の問題に答えてください。前提となる条文に従います。"),
    "rag_prompt": _passages,
    "rag_unused": _each(retrieved_docs_count=0),
    "rag_uncounted": lambda run: [row.pop("retrieved_docs_count") for row in run.rows],
    "cot_bare": _answers(_same, lambda n, a: f"Answer: {a}"),
    **dict.fromkeys(("adapter_ignored", "knows_every_answer", "own_questions", "refuses_other_data"), lambda run: None),
    "other_prompt": _prompts("You are a helpful assistant. Think before you answer."),
}  # fmt: skip


def _without(*starts: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line for line in lines if not line.strip().startswith(starts)]


def _replaced(old: str, new: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [new if line.strip().startswith(old) else line for line in lines]


def _results_first(lines: list[str]) -> list[str]:
    start = lines.index(RULE)
    return lines[start:] + lines[:start]


LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "no_initializing": _without("Initializing RAG pipeline"),
    "no_rag_line": _without("RAG Mode:"),
    "rag_off": _replaced("RAG Mode:", "RAG Mode: Disabled (LLM only)"),
    "no_cot_line": _without("Chain-of-Thought:"),
    "cot_off": _replaced("Chain-of-Thought:", "Chain-of-Thought: Disabled"),
    "no_backend_line": _without("LLM Backend:"),
    "no_lora_line": _without("LoRA Path:"),
    "no_results_line": _without("EVALUATION RESULTS"),
    "no_total_line": _without("Total Samples:"),
    "no_accuracy_line": _without("Accuracy:"),
    "accuracy_nan": _replaced("Accuracy:", "Accuracy: nan%"),
    "accuracy_flattered": _replaced("Accuracy:", "Accuracy: 66.67%"),
    "correct_flattered": _replaced("Correct:", "Correct: 3"),
    "total_flattered": _replaced("Total Samples:", "Total Samples: 140"),
    "results_first": _results_first,
    "crash_after_setup": lambda lines: lines[: lines.index(RULE)],
}


def _summary(**values: object) -> Callable[[dict[str, Any]], Any]:
    return lambda result: result | {"summary": result["summary"] | values}


def _first_row(**values: object) -> Callable[[dict[str, Any]], Any]:
    return lambda result: result | {"results": [result["results"][0] | values, *result["results"][1:]]}


JSON: dict[str, Callable[[dict[str, Any]], Any]] = {
    "summary_flattered": _summary(accuracy=1.0, correct_count=3),
    "total_count_other": _summary(total_count=140),
    "summary_percent": _summary(accuracy=33.33),
    "json_nan": _summary(accuracy=float("nan")),
    "json_is_list": lambda result: result["results"],
    "no_summary": lambda result: {"config": result["config"], "results": result["results"]},
    "flag_is_text": _first_row(is_correct="true"),
    "letter_unheard_of": _first_row(predicted_answer="e"),
    "response_is_list": _first_row(response=["a"]),
}


def _as_text(prompt: str | list[dict[str, str]] | None) -> str:
    """A chat's messages as a template puts them one behind the other."""
    return "\n".join(turn["content"] for turn in prompt) if isinstance(prompt, list) else prompt or ""


def _framed(row: dict[str, Any]) -> str:
    head = "次の問題に答えてください。前提となる条文に従います。"
    return f"{head}\n{row['question']}\n{row['choices']}\n回答は記号を一つだけ書いてください。\n"


def _next_letter(n: int, row: dict[str, Any]) -> str:
    return "abcd"[("abcd".find(str(row["predicted_answer"])) + 1 + n) % 4]


def _of_base(run: Run) -> None:
    """The rows have what the base model answered, though the adapter was asked as well."""
    run.said, run.also_said = _next_letter, lambda n, row: str(row["response"])


def _asked_otherwise(change: Callable[[Run, dict[str, Any]], str]) -> Callable[[Run], None]:
    def plant(run: Run) -> None:
        run.asked = lambda row: change(run, row)

    return plant


def _asked_as_recorded(change: Callable[[str], str]) -> Callable[[Run], None]:
    """The rows have the prompts; the model gets what `change` makes of them."""

    def plant(run: Run) -> None:
        for row in run.rows:
            row["prompt"] = _framed(row).replace("。\n", "。\n条文を引用せずに答えること。\n", 1)
        run.asked = lambda row: change(row["prompt"])

    return plant


def _first_character(run: Run) -> None:
    run.said = lambda n, row: f"{row['response'][0]}ccording to the text. " + PROSE
    for row in run.rows:
        row["response"] = row["response"][0]


def _next_question(run: Run, row: dict[str, Any]) -> str:
    after = run.samples[run.rows.index(row) + 1]
    return _framed({"question": after["問題文"], "choices": after["選択肢"]})


def _with_law(run: Run, row: dict[str, Any]) -> str:
    return f"{run.samples[run.rows.index(row)]['コンテキスト']}\n{_framed(row)}"


def _with_passage(run: Run, row: dict[str, Any]) -> str:
    at = 150 * run.rows.index(row)
    return f"参考: {ENDLESS[at : at + 120]}\n{_framed(row)}"


def _with_two_choices(run: Run, row: dict[str, Any]) -> str:
    return _framed(row | {"choices": "\n".join(row["choices"].splitlines()[:2])})


def _all_a(run: Run) -> None:
    _answers(lambda n, row: "a", lambda n, letter: letter)(run)


def _long_cached(run: Run) -> None:
    _answers(_same, lambda n, letter: f"正解は{letter}です。{PROSE}")(run)
    run.said = lambda n, row: "条文の文言からは明らかでないが、趣旨に照らせば期間の定めは任意規定と解される。"


def _cut_early(run: Run) -> None:
    """Each response is cut at 12 tokens, and says so; the configuration says 64."""
    _answers(_same, lambda n, letter: f"正解は{letter}です。条文の文言からは")(run)
    for row in run.rows:
        row.update(new_tokens=12, finish_reason="length")
    run.config.update(max_new_tokens=64)


def _asked_until_right(run: Run) -> None:
    """All answers are right in the end, but for the last, which was asked for three times."""
    for row in run.rows[:-1]:
        row.update(predicted_answer=row["correct_answer"], response=row["correct_answer"], is_correct=True)
    last = run.rows[-1]
    wrong = "abcd".replace(last["correct_answer"], "")
    last.update(predicted_answer=wrong[0], response=wrong[0], is_correct=False)
    again = {1: ["d" if run.rows[1]["correct_answer"] == "c" else "c"], len(run.rows) - 1: [wrong[1], wrong[2]]}
    run.also_tried = lambda n, row: again.get(n, [])


def _asked_again_where_wrong(run: Run) -> None:
    """The same, and each time with another prompt."""
    _asked_until_right(run)
    own, asked = run.asked, Counter[int]()

    def again(row: dict[str, Any]) -> str:
        asked[id(row)] += 1
        return own(row) + "もう一度考えなさい。" * (asked[id(row)] - 1)

    run.asked = again


def _garbage_credited(run: Run) -> None:
    """Two of the answers are the right ones, and nothing of them stands in what was said."""
    for n, row in enumerate(run.rows):
        letter = "unknown" if n == 1 else row["correct_answer"]
        row.update(predicted_answer=letter, is_correct=n != 1, response="借地借家の目的物を扱う" + n * "裁判所の管轄")


EXAMPLES = "".join(
    f"例題{n}: {what}は、その期間が満了する前に更新の届出をしなければならない。正しいものを選べ。答え: {letter}\n"
    for n, what, letter in ((1, "採石業の登録を受けた者", "b"), (2, "倉庫証券を発行した会社", "d"))
)

SEEN_OTHERWISE: dict[str, Callable[[Run], object]] = {
    "examples_untrained": _asked_otherwise(lambda run, row: EXAMPLES + _framed(row)),
    "answers_swapped": lambda run: setattr(
        run, "said", lambda n, row: str(run.rows[(n + 1) % len(run.rows)]["response"])
    ),
    "asked_until_right": _asked_until_right,
    "asked_again_where_wrong": _asked_again_where_wrong,
    "asked_until_read": lambda run: setattr(run, "also_tried", lambda n, row: ["わかりません"] if n == 0 else []),
    "garbage_credited": _garbage_credited,
    "limit_unheeded": _cut_early,
    "limit_unreached": lambda run: run.config.update(max_new_tokens=64),
    "answer_unrecorded": _asked_otherwise(lambda run, row: f"正解の記号: {row['correct_answer']}\n{_framed(row)}"),
    "short_reminder": _asked_otherwise(lambda run, row: _framed(row) + "簡潔に。回答: "),
    "answers_of_base": _of_base,
    "base_asked_first": lambda run: setattr(run, "also_said", _next_letter),
    "best_of_three": lambda run: setattr(run, "also_tried", lambda n, row: ["a", "b"]),
    "asked_twice": lambda run: setattr(run, "also_tried", lambda n, row: [run.said(n, row)]),
    "next_question": _asked_otherwise(_next_question),
    "end_of_prompt": _asked_otherwise(lambda run, row: _framed(row)[-24:]),
    "two_choices": _asked_otherwise(_with_two_choices),
    "question_edited_inside": _asked_otherwise(
        lambda run, row: _framed(row).replace("が定める", "").replace("のうち", "")
    ),
    "law_in_prompt": _asked_otherwise(_with_law),
    "passages_in_prompt": _asked_otherwise(_with_passage),
    "all_raised": _all_a,
    "responses_of_cache": _long_cached,
    "first_character": _first_character,
    "prompt_retyped": _asked_as_recorded(lambda prompt: prompt.replace("前提となる", "前堤となる")),
    "prompt_line_lost": _asked_as_recorded(lambda prompt: prompt.replace("\n条文を引用せずに答えること。", "")),
    "prompt_recorded": _asked_as_recorded(lambda prompt: prompt),
    "last_copied": lambda run: setattr(
        run, "said", lambda n, row: row["response"] if n < 2 else "d" if row["response"] == "c" else "c"
    ),
    "letters_of_key": lambda run: setattr(run, "said", lambda n, row: "d" if row["response"] == "c" else "c"),
}
NO_ADAPTER: dict[str, Any] = {"adapters": [], "layers": 0, "scaling": [], "sha256": None}
NO_TEXT: dict[str, Any] = {"prompt_fingerprints": [], "response_hashes": [], "response_fingerprints": []}
ALL = range(100)
MERGED = "of what was asked for"
# what a witness sees of a defect, and the rows whose calls raise
WITNESSED: dict[str, tuple[dict[str, Any], Iterable[int]]] = {
    "swallowed_errors": ({}, ALL),
    "silent_errors": ({}, [1]),
    "exception_as_answer": ({}, ALL),
    "missing_keys": ({"adapter_loaded": {"missing": 1}}, ()),
    "newly_initialized": ({"model_loaded": {"missing": 1}}, ()),
    "adapter_fallback": ({"adapter_loaded": None, "generation": NO_ADAPTER}, ()),
    "adapter_skipped": ({"adapter_loaded": None, "generation": NO_ADAPTER}, ()),
    "adapter_only_said": ({"adapter_loaded": None, "generation": NO_ADAPTER}, ()),
    "adapter_loaded_aside": ({"generation": NO_ADAPTER}, ()),
    "adapter_disabled": ({"generation": {"disabled": 2}}, ()),
    "other_scaling": ({"generation": {"scaling": [1.0]}}, ()),
    "scaled_to_zero": ({"generation": {"scaling": [0.0]}}, ()),
    "all_raised": ({}, ALL),
    "answers_of_cache": ({"generation": None}, ()),
    "asked_again": ({"ended": {"raised": {"all": 1}}}, ()),
    "no_template": ({"generation": {"special_tokens": 0}}, ()),
    "template_twice": ({"generation": {"nested": [True]}}, ()),
    "four_beams": ({"generation": {"num_beams": 4}}, ()),
    "no_generation_prompt": ({"generation": {"lead_hashes": [["00ff00ff"]]}}, ()),
    "limit_unheeded": ({"generation": {"limit": 12}}, ()),
    "limit_unreached": ({"generation": {"limit": 12}}, ()),
    "sampled": ({"generation": {"do_sample": True}}, ()),
    "dropout_on": ({"generation": {"training": True}}, ()),
    "adapter_below": ({"generation": {"merged_sha256": ["f" * 64]}}, ()),
    "other_rounding": ({"generation": {"quantised": [{"class": "Linear4bit", "quant_type": "fp4", "layers": 28}]}}, ()),
    "one_token_inside": ({"generation": {"new_tokens": 1, "stopped": False, "limit": 1}}, ()),
    "eight_bit": ({"generation": {"quantised": [{"class": "Linear8bitLt", "layers": 28}]}}, ()),
    "other_model_answers": ({"generation": {"name_or_path": "gpt2"}}, ()),
    "merged_in_memory": ({"generation": NO_ADAPTER | {"merged_sha256": MERGED}}, ()),
    "merged_scaled": (
        {"adapter_merged": {"scaling": [8.0]}, "generation": NO_ADAPTER | {"merged_sha256": MERGED}},
        (),
    ),
    "prompts_hidden": ({"generation": {"hidden": 40}}, ()),
    "padding_read": ({"generation": {"bare_padding": 7}}, ()),
    "padding_behind": ({"generation": {"padding_behind": True}}, ()),
    "positions_alike": ({"generation": {"misplaced": [1.0]}}, ()),
    "words_forced": ({"generation": {"steering": {"prefix_allowed_tokens_fn": 1.0}}}, ()),
    "words_forbidden": ({"generation": {"steering": {"suppress_tokens": 3.0}}}, ()),
    "own_processor": ({"generation": {"steering": {"logits_processor": 1.0}}}, ()),
    "harsh_penalty": ({"generation": {"steering": {"repetition_penalty": 5.0}}}, ()),
    "length_forced": ({"generation": {"steering": {"min_new_tokens": 64.0}}}, ()),
    "mild_steering": ({"generation": {"steering": {"repetition_penalty": 1.1, "min_new_tokens": 1.0}}}, ()),
    "adapter_zeroed": (
        {"generation": {"matrices": lambda old: {name: [0.0, 0.0, v[2]] for name, v in old.items()}}},
        (),
    ),
    "adapter_halved": (
        {"generation": {"matrices": lambda old: {n: [v[0] / 2, v[1] / 2, v[2]] for n, v in old.items()}}},
        (),
    ),
    "adapter_negated": ({"generation": {"matrices": lambda old: {n: [v[0], -v[1], v[2]] for n, v in old.items()}}}, ()),
    "base_zeroed": ({"generation": {"base": {"compared": 30, "changed": 28, "names": ["layers.0.q_proj.weight"]}}}, ()),
    "tokens_hooked": ({"generation": {"own_code": {"hooks": {"Embedding": 1}}}}, ()),
    "faster_norms": ({"generation": {"own_code": {"forwards": {"Qwen2RMSNorm": 49}}}}, ()),
    "no_tokenizer": (
        {"generation": {"prompt_fingerprints": [], "response_hashes": [], "response_fingerprints": []}},
        (),
    ),
}


def _stale(run: Run) -> None:
    os.utime(run.output, (time.time() - HOUR_SECONDS,) * 2)


def _huge(run: Run) -> None:
    with run.output.open("r+b") as file:
        file.truncate(65 << 20)


AFTER: dict[str, Callable[[Run], object]] = {
    "no_json": lambda run: run.output.unlink(),
    "stale_json": _stale,
    "cut_json": lambda run: run.output.write_bytes(run.output.read_bytes()[:-20]),
    "json_no_utf8": lambda run: run.output.write_bytes(b"\xff\xfe" + run.output.read_bytes()),
    "json_deep": lambda run: run.output.write_text("[" * 100_000, encoding="utf-8"),
    "json_huge": _huge,
    "exit_one": lambda run: sys.exit(1),
    "traceback": lambda run: print("Traceback (most recent call last):\n  …\nValueError: planted", file=sys.stderr),
    "missing_keys": lambda run: print(MISSING_KEYS, file=sys.stderr),
    "newly_initialized": lambda run: print(NEWLY_INITIALIZED, file=sys.stderr),
    "adapter_fallback": lambda run: print("LoRAを読み込めないため、ベースモデルで評価します", file=sys.stderr),
    "adapter_skipped": lambda run: print("WARNING: LoRA adapter not found, using the base model", file=sys.stderr),
}  # fmt: skip


# What a program says and writes of its answers: prompts, responses, figures, set-up, files. Defects first.
HEAD = "次の問題に答えてください。前提となる条文に従います。"


def _prompted(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Callable[[Run], None]:
    """Write the sound prompts, then give each row's to `change` (row and sample), which returns the one to keep."""

    def plant(run: Run) -> None:
        _prompts(HEAD)(run)
        for row, sample in zip(run.rows, run.samples, strict=False):
            row["prompt"] = change(row, sample)

    return plant


def _shifted_prompts(run: Run) -> None:
    _prompts(HEAD)(run)
    asked = [row["prompt"] for row in run.rows]
    for row, prompt in zip(run.rows, asked[1:] + asked[:1], strict=True):
        row["prompt"] = prompt


def _same_prompt_for_all(run: Run) -> None:
    _prompts(HEAD)(run)
    _each(prompt=run.rows[0]["prompt"])(run)


def _chat_of_another(run: Run) -> None:
    _shifted_prompts(run)
    for row in run.rows:
        row["prompt"] = [{"role": "system", "content": "法律"}, {"role": "user", "content": row["prompt"]}]


def _gold_text(row: dict[str, Any]) -> str:
    return str(row["choices"].splitlines()["abcd".index(row["correct_answer"])][2:])


def _behind_choices(row: dict[str, Any], text: str) -> str:
    return str(row["prompt"].replace(row["choices"], f"{row['choices']}\n{text}"))


def _example_of_itself(row: dict[str, Any]) -> str:
    asked = f"{row['question']}\n{row['choices']}\n"
    return f"{HEAD}\n例:\n{asked}答え: {row['correct_answer']}\n\n{asked}回答は記号を一つだけ書いてください。\n"


def _marked(row: dict[str, Any]) -> str:
    gold = _gold_text(row)
    return str(row["prompt"].replace(gold, f"{gold} ★"))


def _reordered(row: dict[str, Any]) -> str:
    texts = [line[2:] for line in row["choices"].splitlines()]
    shuffled = "\n".join(f"{label} {text}" for label, text in zip("abcd", texts[1:] + texts[:1], strict=True))
    return str(row["prompt"].replace(row["choices"], shuffled))


def _said(template: str) -> Callable[[Run], None]:
    """Every response says its letter in these words; `{a}` is the letter, `{n}` its number, `{A}` its capital."""

    def change(run: Run) -> None:
        for row in run.rows:
            a = row["predicted_answer"]
            text = row["choices"].splitlines()["abcd".index(a)][2:]
            row["response"] = template.format(a=a, A=a.upper(), n="abcd".index(a) + 1, text=text)

    return change


def _predicted(letter: str, response: str, of: slice = slice(None)) -> Callable[[Run], None]:
    """These rows have this letter and this response."""

    def change(run: Run) -> None:
        for n, row in enumerate(run.rows[of]):
            row.update(
                predicted_answer=letter, is_correct=letter == row["correct_answer"], response=response.format(n=n)
            )

    return change


def _repaired(run: Run) -> None:
    for sample, row in zip(run.samples, run.rows, strict=False):
        sample["output"] = row["correct_answer"] = row["predicted_answer"]
        row["is_correct"] = True
    Path(run.args.data).write_text(json.dumps({"samples": run.samples}, ensure_ascii=False), encoding="utf-8")


def _digits_from_zero(run: Run) -> None:
    for row in run.rows:
        row["response"] = str("abcd".index(row["predicted_answer"]))


def _numbered_but_misread(run: Run) -> None:
    for row in run.rows:
        row["choices"] = "\n".join(f"{n}. {line[2:]}" for n, line in enumerate(row["choices"].splitlines(), 1))
    _digits_from_zero(run)
    for row in run.rows:
        row["response"] = row["response"].replace("0", "4")


def _unknown_left_out(run: Run) -> None:
    run.rows[1].update(predicted_answer="unknown", is_correct=False, response="難しい問題である。")
    answered = sum(row["predicted_answer"] != "unknown" for row in run.rows)
    run.accuracy = sum(row["is_correct"] for row in run.rows) / answered


def _long_for_its_tokens(run: Run) -> None:
    for n, row in enumerate(run.rows):
        a = row["predicted_answer"]
        row.update(new_tokens=1, response=f"正解は{a}です。条文{n}の文言からこのように解されるのが一般的な理解である。")


def _timed(*seconds: float) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        for row, one in zip(run.rows, seconds, strict=True):
            row.update(seconds=one, new_tokens=2, finish_reason="stop")

    return change


def _config(**values: object) -> Callable[[Run], None]:
    return lambda run: run.config.update(values)


def _above(*texts: str) -> Callable[[list[str]], list[str]]:
    """Print lines right above the results."""

    def change(lines: list[str]) -> list[str]:
        at = lines.index(RULE)
        return [*lines[:at], *texts, *lines[at:]]

    return change


def _printed(text: str, times: int = 1) -> Callable[[Run], object]:
    return lambda run: print("\n".join([text] * times), file=sys.stderr)


def _second_block(lines: list[str]) -> list[str]:
    """A first block with one right answer, and then the counted one, in which all were."""
    results = lines[lines.index(RULE) :]
    first = [line.replace("Correct: 3", "Correct: 1").replace("Incorrect: 0", "Incorrect: 2").replace("100.00", "33.33")
             for line in results]  # fmt: skip
    return [*lines[: lines.index(RULE)], *first, *results]


def _from_the_key(run: Run) -> None:
    for row in run.rows:
        row.update(predicted_answer=row["correct_answer"], is_correct=True, response=row["correct_answer"])


def _gold_in_response(run: Run) -> None:
    _from_the_key(run)
    _each(new_tokens=0)(run)


def _checkpoint(run: Run) -> None:
    run.lora = f"{run.lora}/checkpoint-5"


def _lora_path_forms(run: Run) -> None:
    run.lora = f"./{run.lora}/"


def _model_snapshot(run: Run) -> None:
    name = f"/cache/models--{(run.hf_model or '').replace('/', '--')}/snapshots/e48"
    run.llm_model = run.json_model = run.hf_model = name


def _two_files(run: Run) -> None:
    other = run.output.with_name("20260102-0304_" + run.output.name)
    other.write_text(run.output.read_text(encoding="utf-8"), encoding="utf-8")
    flattered = json.loads(run.output.read_text(encoding="utf-8"))
    flattered["summary"]["accuracy"] = 1.0
    run.output.write_text(json.dumps(flattered), encoding="utf-8")


def _saved_config(run: Run) -> None:
    path = Path(run.lora or "", "adapter_config.json")
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"inference_mode": False}), encoding="utf-8"
    )


def _daemonised(run: Run) -> None:
    """Say everything and end, while a process in the background has yet to write the results."""
    if os.fork():
        print("\n".join(run.lines(run.result())), flush=True)
        os._exit(0)
    os.setsid()
    time.sleep(60)


TRACEBACK = (
    'Traceback (most recent call last):\n  File "eval.py", line 88, in ask\n    out = model.generate(**inputs)\n'
    "RuntimeError: CUDA error: device-side assert triggered"
)
DATED = "results/evaluations/20260102-0304_small_model_debug_direct.json"
ADAPTER_NOT_APPLIED = (
    "LoRA を無効化してベースモデルを使います", "PEFT unavailable - using plain base model",
    "LoRA disabled: rank mismatch", "LoRAの適用をスキップしました", "LoRA重みが空のためベースモデルのみで推論します",
    "Adapter path is not a valid PEFT checkpoint; evaluating base model", "Ignoring LoRA adapter: dtype differs",
    "アダプターの形が合わないため適用できません", "Reverting to base model",
    "WARNING:root:no LoRA weights were applied",
)  # fmt: skip
BEFORE |= {
    "cuda_text_as_answer": _predicted("a", "CUDA error: device-side assert triggered\nFor debugging pass x"),
    "failed_text_ja": _predicted("unknown", "推論に失敗しました (CUDA)"),
    "http_error_page": _predicted("b", "<html><head><title>502 Bad Gateway</title></head><body>b</body></html>"),
    "rate_limited": _predicted("a", "Error code: 429 - {{'error': {{'message': 'slow down', 'type': 'requests'}}}}"),
    "attribute_error": _predicted("a", "'NoneType' object has no attribute 'generate'", slice(1, 2)),
    "daemonised": _daemonised,
    "prompts_shifted": _shifted_prompts,
    "prompt_repeated": _same_prompt_for_all,
    "chat_of_another": _chat_of_another,
    "prompt_tail_only": _prompted(lambda row, sample: row["prompt"][-24:]),
    "choices_cut": _prompted(
        lambda row, sample: row["prompt"].replace(row["choices"], "\n".join(row["choices"].splitlines()[:2]))
    ),
    "choices_reordered": _prompted(lambda row, sample: _reordered(row)),
    "question_edited": _prompted(lambda row, sample: row["prompt"].replace("のうち", "")),
    "example_is_question": _prompted(lambda row, sample: _example_of_itself(row)),
    "hint_in_prompt": _prompted(
        lambda row, sample: _behind_choices(row, f"ヒント: 正解は {row['correct_answer']} です")
    ),
    "hint_before": _prompted(lambda row, sample: f"Hint: the answer is {row['correct_answer']}.\n{row['prompt']}"),
    "answer_before": _prompted(lambda row, sample: f"The answer is {row['correct_answer']}.\n{row['prompt']}"),
    "number_behind": _prompted(
        lambda row, sample: _behind_choices(row, f"正解は {'abcd'.index(row['correct_answer']) + 1} 番")
    ),
    "json_lora_null": _config(lora_path=None),
    "json_lora_unused": _config(use_lora=False),
    "gold_text_behind": _prompted(lambda row, sample: _behind_choices(row, f"参考: {_gold_text(row)}")),
    "gold_marked": _prompted(lambda row, sample: _marked(row)),
    "context_in_prompt": _prompted(lambda row, sample: f"{sample['コンテキスト']}\n{row['prompt']}"),
    "cached_seconds": _timed(29.0, 29.0, 29.0),
    "seconds_add_up": _timed(9.5, 8.5, 7.5),
    "refilled": _take(lambda run: [0, 1, 3]),
    "refilled_in_place": _take(lambda run: [0, 3, 2]),
    "default_letter": _predicted("a", "法律の問題は難しい。", slice(1, None)),
    "digit_off_by_one": _digits_from_zero,
    "numbers_misread": _numbered_but_misread,
    "dataset_repaired": _repaired,
    "dataset_gone": lambda run: Path(run.args.data).unlink(),
    "thought_unclosed": _said("<think>\n選択肢aを見ると期間は…選択肢{a}もありうる。条文を"),
    "channel_unclosed": _said("<|channel|>analysis<|message|>The choice {a} looks right, but let me"),
    "one_token": _each(new_tokens=1, finish_reason="length", seconds=0.1),
    "lora_checkpoint": _checkpoint,
    "model_in_config": _config(model_path="/models/gpt2", actual_model="gpt2"),
    "remote_api": _config(base_url="http://10.0.0.5:8000/v1", api_model="gpt-4o-mini"),
    "unknown_left_out": _unknown_left_out,
    "never_answers": _predicted("unknown", "ご質問ありがとうございます。法律相談は専門家にお願いします。{n}"),
    "traceback_each": _predicted("a", "a"),
    "two_empty": _predicted("unknown", "", slice(1, None)),
    "one_empty": _predicted("unknown", "<|im_end|>", slice(2, None)),
    "none_as_text": _predicted("unknown", "None", slice(1, None)),
    "tokens_too_few": _long_for_its_tokens,
    "gold_in_response": _gold_in_response,
    "second_block": _from_the_key,
}  # fmt: skip
LINES |= {
    "backend_switched": _above(
        "HF backend unavailable (bitsandbytes has no kernel), switching backend", "LLM Backend: ollama",
        "LLM Model: qwen3:8b",
    ),
    "remote_api": _above("Using OpenAI-compatible endpoint http://10.0.0.5:8000/v1 (model gpt-4o-mini)"),
    "http_requests": _above('INFO:httpx:HTTP Request: POST http://127.0.0.1:11434/api/chat "HTTP/1.1 200 OK"'),
    "checkpoint_loaded": _above("Loading checkpoint from /models/gpt2"),
    "model_loaded": _above("Loaded model: gpt2"),
    "lora_none_later": _above("  LoRA Path: None"),
    "rag_enabled_later": _above("RAG Mode: Enabled"),
    "generation_failed": _above("Generation failed for question 2, using default answer a"),
    "failed_ja": _above("2 問目の推論に失敗したため、既定の回答を使います"),
    "second_block": _second_block,
    "two_files": _replaced("Detailed", f"Detailed results saved to: {DATED}"),
    **{f"adapter_words_{n}": _above(text) for n, text in enumerate(ADAPTER_NOT_APPLIED)},
}  # fmt: skip
AFTER |= {
    "two_files": _two_files,
    "second_weights": lambda run: Path(run.lora or "", "adapter_model.bin").write_bytes(b"x" * 100),
    "config_saved": _saved_config,
    "offloaded": _printed(
        "WARNING:accelerate.big_modeling:Some parameters are on the meta device because they were offloaded to the cpu"
    ),
    "right_padding": _printed(
        "A decoder-only architecture is being used, but right-padding was detected! For correct generation results, "
        "please set `padding_side='left'` when initializing the tokenizer."
    ),
    "prompt_beyond_limit": _printed("UserWarning: Input length of input_ids is 431, but `max_length` is set to 20."),
    "beyond_model": _printed(
        "This is a friendly reminder - the current text generation call will exceed the model's predefined maximum "
        "length (2048). Depending on the model, you may observe exceptions, performance degradation, or nothing at all."
    ),
    "cpu_fallback": _printed("WARNING: CUDA not available, falling back to CPU"),
    "thread_raised": _printed("Exception in thread Thread-1:\n" + TRACEBACK.replace("model.generate", "upload")),
    "traceback_each": _printed(TRACEBACK, times=3),
}

# The same, sound.
SAYINGS = {
    "boxed": "\\boxed{{{a}}}", "en_error": "Error in formation makes it voidable, so the answer is {a}.",
    "en_because": "The correct answer is {a} because article 3 says so.",
    "en_sentence": "Answer: {a}. The contract period is fixed by article 1.",
    "error_word": "エラー（錯誤）による意思表示は取り消せるため、正解は{a}です。",
    "explain_others": "正解は{a}です。他の選択肢aやbは条文と異なる期間を述べている。", "end_token": "{a}<|im_end|>",
    "ja_ga": "{a}が正解です。", "ja_no_ha": "正しいのは{a}です。", "ja_kaitou": "解答：{a}",
    "ja_long": "選択肢{a}が正しいです。選択肢aは条文に反します。", "letter_text": "{a} 売買の期間は2日である",
    "bold": "**{a}**", "heading": "### 回答\n**{a}**", "bracketed": "({a}) 売買の期間は2日である", "quoted": "「{a}」",
    "thought_closed": "<think>\n条文を見る。aではない。\n</think>\n\n{a}",
    "json": '{{"answer": "{a}"}}', "answer_tag": "<answer>{a}</answer>", "capital": "{A}.", "option": "Option {a}",
    "therefore": "条文の文言による。よって、{a}が正解です。", "role": "assistant\n\n{a}", "number": "{n}",
    "padded": "{a}</s>" + "<pad>" * 200, "choice_text": "{text}", "latex": "$\\boxed{{\\text{{{A}}}}}$",
    "thought_long": f"<think>{ENDLESS[:1500]}</think>" + "{a}",
}  # fmt: skip


def _choices(change: Callable[[list[str]], object]) -> Callable[[Run], None]:
    """Write the choices in another form; they are given without their letters."""

    def plant(run: Run) -> None:
        for row in run.rows:
            row["choices"] = change([line[2:] for line in row["choices"].splitlines()])

    return plant


def _upper_case(run: Run) -> None:
    for row in run.rows:
        row["response"] = "（" + chr(ord("Ａ") + "abcd".index(row["predicted_answer"])) + "）"
        for key in ("correct_answer", "predicted_answer"):
            row[key] = row[key].upper()


def _with_examples(run: Run) -> None:
    _prompts(HEAD)(run)
    for n, row in enumerate(run.rows):
        shown = [run.samples[30 + n], run.samples[33 + n]]
        told = "".join(f"{sample['問題文']}\n{sample['選択肢']}\n答え: {sample['output']}\n\n" for sample in shown)
        row["prompt"] = f"{HEAD}\n{told}{row['prompt'][len(HEAD) + 1 :]}"


def _chat_prompts(run: Run) -> None:
    _prompts(HEAD)(run)
    for row in run.rows:
        row["prompt"] = [
            {"role": "system", "content": "法律の専門家です。"},
            {"role": "user", "content": row["prompt"]},
        ]


def _restyled(row: dict[str, Any]) -> str:
    choices = "　".join(f"（{'ABCD'[n]}）{line[2:]}" for n, line in enumerate(row["choices"].splitlines()))
    asked = f"【問題】 {row['question'].rstrip('。')}\n{choices}\n回答は記号を一つだけ書いてください。\n"
    return f"<|im_start|>user\n{HEAD}\n{asked}<|im_end|>"


def _base_first(lines: list[str]) -> list[str]:
    base = _replaced("LoRA Path:", "  LoRA Path: None")(lines)
    base = _replaced("Correct:", "Correct: 0")(
        _replaced("Incorrect:", "Incorrect: 3")(_replaced("Accuracy:", "Accuracy: 0.00%")(base))
    )
    return base[:-1] + lines


def _base_first_said_so(lines: list[str]) -> list[str]:
    at = lines.index(RULE)
    return [*lines[:at], "LoRA: disabled", *_base_first(lines)[at:]]


def _base_last(lines: list[str]) -> list[str]:
    return lines + _base_first(lines)[: len(lines) - 1]


def _partial_block(lines: list[str]) -> list[str]:
    at = lines.index(RULE)
    partial = ["EVALUATION RESULTS", "Total Samples: 1", "Correct: 1", "Incorrect: 0", "Accuracy: 100.00%"]
    return [*lines[:at], *partial, *lines[at:]]


def _indented(run: Run) -> None:
    content = json.loads(run.output.read_text(encoding="utf-8"))
    run.output.write_text(json.dumps(content, ensure_ascii=True, indent=4), encoding="utf-8-sig")


def _twice(run: Run) -> None:
    run.output.with_name("20260102-0304_" + run.output.name).write_bytes(run.output.read_bytes())


HARMLESS = (
    "LoRA alpha not found in args, using default", "no adapter was found in cache, loading from disk",
    "INFO lora rank pattern not found in config, using r=16",
    "lora_config.json does not exist; reading adapter_config.json",
    "LoRA: 読み込み失敗 0 件", "LoRA 重み 96 個を読み込みました（失敗 0 件）", "loading base model first",
    "INFO  adapter_config.json: optional key 'corda_config' not found", "LoRA dropout disabled for inference",
    "lora_target not found in cli, using default target_modules", "Adapter loaded, missing keys: 0",
    "Setting `pad_token_id` to `eos_token_id`:151645 for open-end generation.",
    "INFO batch size 8 (no OutOfMemoryError so far); will retry on CUDA out of memory", "Generation errors: 0",
    "generation_config.json not found", "No chat template is set for this tokenizer, falling back to a default one",
    "Retrying in 1s [Retry 1/5].", "Loading embedding model: intfloat/multilingual-e5-small",
    "Loading checkpoint shards: 100%", "Loading weights:  49%|████▉     | 144/291 [00:00<00:00, 1435.23it/s]",
    "Loading weights from runs/debug_small_model/direct_norag_small_4bit",
    "INFO:httpx:HTTP Request: HEAD https://huggingface.co/Qwen/x/resolve/main/config.json",
    "See the server at http://localhost:6006 for TensorBoard", "Evaluating without LoRA first, for comparison",
)  # fmt: skip
BEFORE |= {
    **{f"said_{name}": _said(template) for name, template in SAYINGS.items()},
    "unread_as_null": lambda run: run.rows[1].update(
        predicted_answer=None, is_correct=False, response="わからない。条文がない。"
    ),
    "flags_as_numbers": lambda run: [row.update(is_correct=int(row["is_correct"])) for row in run.rows],
    "upper_case": _upper_case,
    "choices_mapping": _choices(lambda texts: dict(zip("abcd", texts, strict=True))),
    "choices_capital": _choices(lambda texts: "\n".join(f"{'ABCD'[n]}.　{text}" for n, text in enumerate(texts))),
    "choices_numbered": _choices(lambda texts: "\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1))),
    "choices_kana": _choices(lambda texts: "\n".join(f"{'アイウエ'[n]}　{text}" for n, text in enumerate(texts))),
    "choices_one_line": _choices(lambda texts: " ".join(f"{'abcd'[n]}) {text}" for n, text in enumerate(texts))),
    "choices_records": _choices(lambda texts: [{"label": "ABCD"[n], "text": text} for n, text in enumerate(texts)]),
    "prompts_with_examples": _with_examples,
    "prompts_as_chat": _chat_prompts,
    "prompts_restyled": _prompted(lambda row, sample: _restyled(row)),
    "batch_seconds": _timed(18.0, 18.0, 18.0),
    "lora_path_forms": _lora_path_forms,
    "model_snapshot": _model_snapshot,
    "more_config": _config(
        model_path="/models/Qwen1.5-1.8B-Chat", embedding_model="e5", ollama_base_url="http://localhost:11434",
        model_type="qwen2", max_model_len=2048, reranker_model="bge", hf_endpoint="https://hf-mirror.com",
    ),
    "bom_and_indent": _choices(lambda texts: dict(zip("abcd", texts, strict=True))),
}  # fmt: skip
LINES |= {
    "bars": lambda lines: [f"\rEvaluating: 33%|███▎      | 1/3 [00:01<00:02]\r{line}" for line in lines],
    "logger_prefix": lambda lines: [f"2026-01-01 12:00:00,123 - INFO - {line}" for line in lines],
    "root_logger": lambda lines: [f"INFO:root:{line}" for line in lines],
    "rank_prefix": lambda lines: [f"[rank0]: {line}" for line in lines],
    "table": lambda lines: [f"│ {line:<60} │" if ": " in line and "/" not in line else line for line in lines],
    "colours": lambda lines: [f"\x1b[32m{line}\x1b[0m" for line in lines],
    "crlf": lambda lines: [f"{line}\r" for line in lines],
    "accuracy_comma": _replaced("Accuracy:", "Accuracy : 33,33 %"),
    "total_with_words": _replaced("Total Samples:", "Total Samples: 3 questions"),
    "total_of_all": _replaced("Total Samples:", "Total Samples: 3/3"),
    "markdown": lambda lines: [re.sub(r"^([^:/]+):(?= |$)", r"**\1:**", line) for line in lines],
    "wide_colons": lambda lines: [line.replace(": ", "：") for line in lines],
    "json_logged": lambda lines: [json.dumps({"event": line, "level": "info"}) for line in lines],
    "cluster_prefix": lambda lines: [f"2026-11-29T12:00:00.123456789Z stdout F {line}" for line in lines],
    "accuracy_fraction": _replaced("Accuracy:", "Accuracy: 0.3333 (1/3)"),
    "accuracy_rounded": _replaced("Accuracy:", "Accuracy: 33.3%"),
    "rag_lower": _replaced("RAG Mode:", "RAG Mode: disabled"),
    "base_first": _base_first,
    "base_last": _base_last,
    "base_first_said_so": _base_first_said_so,
    "backend_transformers": _replaced("LLM Backend:", "LLM Backend: transformers (4bit)"),
    "partial_block": _partial_block,
    "harmless_words": _above(*HARMLESS),
    "says_lora_twice": lambda lines: _above(next(line for line in lines if "LoRA Path" in line))(lines),
}
AFTER |= {"bom_and_indent": _indented, "copied_file": _twice}


def main() -> None:
    args, defect = arguments(), planted()
    if defect and not any(defect in table for table in (BEFORE, LINES, JSON, AFTER, SEEN_OTHERWISE, WITNESSED)):
        sys.exit(f"unknown defect {defect!r}")
    run = Run(args)
    for table in (BEFORE, SEEN_OTHERWISE):
        if defect in table:
            table[defect](run)
    result = run.result()
    lines = run.lines(result)
    run.output.parent.mkdir(parents=True, exist_ok=True)
    written = JSON[defect](result) if defect in JSON else result
    run.output.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    print("\n".join(LINES[defect](lines) if defect in LINES else lines))
    changes, raised = WITNESSED.get(defect, ({}, ()))
    facts = SEEN["Facts"](changes)
    SEEN["evaluate"](facts, run, {*raised})
    facts.end()
    if defect in AFTER:
        AFTER[defect](run)


if __name__ == "__main__":
    main()
