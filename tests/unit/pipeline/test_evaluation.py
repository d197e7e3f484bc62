"""Asking the model: batches, failures, votes, and adapters that do not fit."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from app.core.errors import PipelineError
from app.core.lawqa import load_questions
from app.core.prompts import build_prompt
from small_run import CallScript, Trained, evaluation_flags

if TYPE_CHECKING:
    from app.llm.hf_llm import Generation, HFLoRALLM


@pytest.fixture(scope="module")
def prompts(questions_file: Path) -> list[str]:
    """The trained questions and the same with worked examples before them: prompts of very different lengths."""
    questions = load_questions(questions_file, "--data")
    return [build_prompt(question, "direct", few_shot=number % 2 == 1) for number, question in enumerate(questions)]


@pytest.fixture
def make_llm(tiny_model: Path, trained: Trained) -> Callable[..., "HFLoRALLM"]:
    """Load the tiny model with the trained adapter."""
    from app.llm.hf_llm import HFLLMConfig, HFLoRALLM

    def make(lora_path: Path | None = trained.adapter, batch_size: int = 8) -> HFLoRALLM:
        return HFLoRALLM(HFLLMConfig(str(tiny_model), lora_path, batch_size=batch_size))

    return make


def told(generations: Sequence["Generation"]) -> list[tuple[str, int, str]]:
    """What must not depend on batching."""
    return [(item.text, item.new_tokens, item.finish_reason) for item in generations]


def test_batched_answers_equal_single_ones(make_llm: Callable[..., "HFLoRALLM"], prompts: list[str]) -> None:
    """Prompts of unequal length, eight at once or one by one, give the same texts in the order asked."""
    batched = make_llm(batch_size=8).generate(prompts)
    single = make_llm(batch_size=1).generate(prompts)
    assert told(batched) == told(single)
    assert len({item.text for item in batched}) > 1


def test_without_its_adapter_the_model_knows_nothing(make_llm: Callable[..., "HFLoRALLM"], prompts: list[str]) -> None:
    """The trained answers come from the adapter: the base model alone gives others, and runs to the limit."""
    with_adapter = make_llm(batch_size=8).generate(prompts[:1])
    without = make_llm(batch_size=8, lora_path=None).generate(prompts[:1])
    assert told(with_adapter) == [("a", 1, "stop")]
    assert told(without)[0][1:] == (16, "length")


def test_running_out_of_memory_falls_back_to_one_prompt(
    make_llm: Callable[..., "HFLoRALLM"],
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A batch that does not fit is asked one by one, once and for all, with the same answers."""
    import torch

    llm, expected = make_llm(batch_size=4), make_llm(batch_size=1).generate(prompts)
    generate, widths = llm._model.generate, []

    def generate_if_it_fits(input_ids: torch.Tensor, **options: object) -> object:
        widths.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(llm._model, "generate", generate_if_it_fits)
    assert told(llm.generate(prompts)) == told(expected)
    assert widths == [4] + [1] * len(prompts)
    assert "going on one by one" in capfd.readouterr().err


def test_a_failing_question_is_an_error_row_and_exit_1(
    call_script: CallScript,
    tiny_model: Path,
    trained: Trained,
    questions_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One question's exception is told, counted, traced on stderr and kept in the file; the others are answered."""
    from app.llm.hf_llm import Generation, HFLoRALLM

    generate_batch = HFLoRALLM._generate_batch

    def fail_for_the_third(llm: HFLoRALLM, batch: list[list[int]], seed: int | None) -> list[Generation]:
        if any("漁業" in llm._tokenizer.decode(ids) for ids in batch):
            raise RuntimeError("device-side assert")
        return generate_batch(llm, batch, seed)

    monkeypatch.setattr(HFLoRALLM, "_generate_batch", fail_for_the_third)
    output = tmp_path / "evaluation.json"
    code = call_script(
        "evaluate_multiple_choice",
        *evaluation_flags(tiny_model, trained.adapter, questions_file, output),
        "--hf-load-in-4bit",  # as it was trained: on the whole base some processors' roundings cost an answer
    )
    printed = capfd.readouterr()
    assert code == 1
    assert printed.out.count("Error during LLM invocation: device-side assert\n=====") == 1
    assert "  Parse Errors (unknown): 0\n  Other Errors: 1\n" in printed.out
    assert "RuntimeError: device-side assert" in printed.err
    content = json.loads(output.read_text(encoding="utf-8"))
    failed = [row for row in content["results"] if row["predicted_answer"] == "error"]
    assert [(row["response"], row["finish_reason"], row["is_correct"]) for row in failed] == [
        ("device-side assert", "error", False)
    ]
    assert content["summary"] == {"accuracy": 7 / 8, "correct_count": 7, "total_count": 8}


def test_three_votes_agree_on_what_was_learned(
    call_script: CallScript,
    tiny_model: Path,
    trained: Trained,
    questions_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An ensemble asks each question as often as told and answers with the majority."""
    output = tmp_path / "evaluation.json"
    flags = evaluation_flags(tiny_model, trained.adapter, questions_file, output)
    flags += ["--hf-load-in-4bit", "--ensemble", 3, "--samples", 3]
    assert call_script("evaluate_multiple_choice", *flags) == 0
    assert "Ensemble: Enabled (3 runs)\n" in capfd.readouterr().out
    content = json.loads(output.read_text(encoding="utf-8"))
    assert [len(row["votes"]) for row in content["results"]] == [3, 3, 3]
    assert content["summary"]["correct_count"] == 3


def test_an_adapter_that_lacks_weights_is_refused(
    make_llm: Callable[..., "HFLoRALLM"], trained: Trained, tmp_path: Path
) -> None:
    """PEFT would fill a missing tensor with fresh ones and go on; here it is an error that names it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained.adapter, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(PipelineError, match=f"missing .*{name}"):
        make_llm(lora_path=tmp_path / "adapter")


def test_an_untrained_adapter_is_noticed(
    make_llm: Callable[..., "HFLoRALLM"], trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An adapter whose second matrices are all zero changes nothing, and a line on stderr says so."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained.adapter, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    zeroed = {name: value * ("lora_B" not in name) for name, value in load_file(path).items()}
    save_file(zeroed, path, metadata={"format": "pt"})
    make_llm(lora_path=tmp_path / "adapter")
    assert "is untrained: every lora_B is zero" in capfd.readouterr().err


def test_the_adapters_4_bit_format_is_used(trained: Trained, tmp_path: Path) -> None:
    """An adapter trained on fp4 is not put on nf4 weights."""
    from app.llm.hf_llm import HFLLMConfig, _quantization
    from app.llm.loading import Quantization

    content = json.loads((trained.adapter / "train_metrics.json").read_text(encoding="utf-8"))
    content["settings"].update(bnb_4bit_quant_type="fp4", bnb_4bit_double_quant=False)
    (tmp_path / "train_metrics.json").write_text(json.dumps(content))
    config = HFLLMConfig("base", lora_path=tmp_path, load_in_4bit=True)
    assert _quantization(config) == Quantization("fp4", double_quant=False)
    assert _quantization(HFLLMConfig("base", lora_path=tmp_path)) is None
