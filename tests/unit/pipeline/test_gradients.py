"""One optimizer step's gradients, however it is run: trimmed logits, fused micro-batches, recompute, chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

Rows = Sequence[dict[str, list[int]]]
Collator = Callable[[Rows], dict[str, Any]]
# uneven prompts and answers, two micro-batches of two rows
SIZES = ((40, 2), (23, 5), (31, 1), (12, 3))


@dataclass(frozen=True)
class Step:
    """All LoRA gradients of the first optimizer step, its loss, and the rows that went into it."""

    gradients: "torch.Tensor"
    loss: float
    first_tokens: frozenset[int]

    def distance(self, other: "Step") -> float:
        """The relative difference of the gradients."""
        return float((self.gradients - other.gradients).norm() / other.gradients.norm())


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Random ids, the last few of each row being its answer."""
    import torch

    generator = torch.Generator().manual_seed(1)
    made = []
    for tokens, answer in SIZES:
        ids = torch.randint(3, 300, (tokens,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (tokens - answer) + ids[tokens - answer :]})
    return made


@pytest.fixture(scope="module")
def run_step(tiny_model: Path, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Step]:
    """Run one optimizer step in fp32 without dropout, and catch its gradients before they are used."""
    import torch
    from app.fast.lora import shorten_lora
    from app.fast.loss import keep_to_answers
    from app.fast.model import attend_without_masks, fuse_norms, walk_once
    from app.fast.recompute import set_recompute
    from app.training.metrics import RecordingTrainer, StepRecorder
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    caught: list[torch.Tensor] = []

    class Catch(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: object, model: torch.nn.Module, **__: object) -> None:
            gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
            caught.append(torch.cat(gradients).clone())

    class TrainingMode(TrainerCallback):  # type: ignore[misc]
        def on_substep_end(self, *_: object, model: torch.nn.Module, **__: object) -> None:
            self.on_pre_optimizer_step(model=model)

        def on_pre_optimizer_step(self, *_: object, model: torch.nn.Module, **__: object) -> None:
            still = [name for name, module in model.named_modules() if not module.training]
            assert not still, f"dropout and recompute are off in {still}"

    def run(
        collator: Collator,
        batch: int,
        accumulation: int,
        *,
        recompute: bool = False,
        plain: bool = False,
        on_host: bool = False,
    ) -> Step:
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if not plain:
            fuse_norms(base)
            assert keep_to_answers(base)
            assert attend_without_masks(base, 40)
            assert sum(len(group.adapted) for group in shorten_lora(model)) == 2 * base.config.num_hidden_layers
        set_recompute(model, recompute, on_host=on_host)
        seen: set[int] = set()

        def collate(batch_rows: Rows) -> dict[str, Any]:
            seen.update(row["input_ids"][0] for row in batch_rows)
            return collator(batch_rows)

        options: dict[str, Any] = {
            "model": model,
            "train_dataset": rows,
            "data_collator": collate,
            "args": TrainingArguments(
                output_dir=str(tmp_path_factory.mktemp("step")),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                max_steps=1,
                max_grad_norm=1e9,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                remove_unused_columns=False,
                train_sampling_strategy="group_by_length",
            ),
        }
        trainer = Trainer(**options) if plain else RecordingTrainer(StepRecorder(), **options)
        if not plain:
            walk_once(trainer)
        trainer.add_callback(Catch())
        trainer.add_callback(TrainingMode())
        trainer.train()
        return Step(caught.pop(), trainer.state.log_history[0]["loss"], frozenset(seen))

    return run


@pytest.fixture(scope="module")
def ours() -> Collator:
    """The pipeline's collator."""
    from app.training.collator import AnswerCollator

    return AnswerCollator(pad_token_id=0)


@pytest.fixture(scope="module")
def full(run_step: Callable[..., Step]) -> Step:
    """The reference: padded on the right, logits at every position, the plain Trainer."""
    import torch

    def collate(batch: Rows) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in batch)

        def padded(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (width - len(values))

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in batch]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in batch]),
            "labels": torch.tensor([padded(row["labels"], -100) for row in batch]),
        }

    return run_step(collate, 2, 2, plain=True)


def test_answers_alone_give_the_full_trainers_gradients(
    run_step: Callable[..., Step], ours: Collator, full: Step
) -> None:
    """Positions before labels alone, no mask, one function a LoRA layer: neither loss nor gradients change."""
    step = run_step(ours, 2, 2)
    assert step.distance(full) <= 1e-5
    assert step.loss == pytest.approx(full.loss, rel=1e-5)


def test_one_position_less_would_lose_gradients(run_step: Callable[..., Step], ours: Collator, full: Step) -> None:
    """Without the position before an answer the gradients are far off: the comparison above can fail."""

    def one_less(batch: Rows) -> dict[str, Any]:
        made = ours(batch)
        return {**made, "answer_positions": made["answer_positions"][1:]}

    assert run_step(one_less, 2, 2).distance(full) > 0.1


def test_padding_on_the_left_would_be_seen(run_step: Callable[..., Step], ours: Collator, full: Step) -> None:
    """Without masks padding must stand behind the row: in front of it the gradients are others."""

    def before(batch: Rows) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in batch)
        short = [width - len(row["input_ids"]) for row in batch]
        return ours(
            [
                {"input_ids": [7] * missing + row["input_ids"], "labels": [-100] * missing + row["labels"]}
                for missing, row in zip(short, batch, strict=True)
            ]
        )

    assert run_step(before, 2, 2).distance(full) > 0.01


def test_every_norm_is_torchs_own_kernel(tiny_model: Path) -> None:
    """Both norms of each layer and the last one are replaced: the comparison above runs with them."""
    import torch
    from app.fast.model import fuse_norms
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    fuse_norms(model)
    replaced = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert len(replaced) == 2 * model.config.num_hidden_layers + 1


def test_fused_micro_batches_give_the_same_step(run_step: Callable[..., Step], ours: Collator, full: Step) -> None:
    """Two micro-batches run as one see the same rows and give the same gradients to rounding."""
    accumulated, fused = run_step(ours, 2, 2), run_step(ours, 4, 1)
    assert fused.first_tokens == accumulated.first_tokens
    assert fused.distance(accumulated) <= 1e-5
    assert fused.distance(full) <= 1e-5


@pytest.mark.parametrize("on_host", [False, True])
def test_recompute_gives_the_same_step(
    run_step: Callable[..., Step], ours: Collator, full: Step, on_host: bool
) -> None:
    """Gradient checkpointing changes memory and time only, wherever it begins from."""
    assert run_step(ours, 2, 2, recompute=True, on_host=on_host).distance(full) <= 1e-5


@pytest.mark.parametrize(("batch", "recompute"), [(2, False), (2, True), (4, True)])
def test_a_loss_in_chunks_gives_the_same_step(
    run_step: Callable[..., Step],
    ours: Collator,
    full: Step,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    recompute: bool,
) -> None:
    """Through the Trainer, whose micro-batches share one count of labels; with checkpoints in host memory too."""
    monkeypatch.setattr("app.fast.loss.CHUNK_POSITIONS", 3)
    step = run_step(ours, batch, 4 // batch, recompute=recompute, on_host=recompute)
    assert step.distance(full) <= 1e-5
    assert step.loss == pytest.approx(full.loss, rel=1e-5)


def test_the_head_sees_only_the_answers_positions(rows: Rows, ours: Collator) -> None:
    """Each position stands before a label of its own row, and there are as many as labels."""
    batch = ours(rows)
    width = max(tokens for tokens, _ in SIZES)
    expected = [
        row * width + place - 1
        for row, (tokens, answer) in enumerate(SIZES)
        for place in range(tokens - answer, tokens)
    ]
    assert batch["answer_positions"].tolist() == expected


def test_rows_are_padded_to_their_batch_only(rows: Rows, ours: Collator) -> None:
    """A batch is as wide as its longest row; tokens stand on the left, and the mask says which they are."""
    batch = ours(rows[1:3])
    assert tuple(batch["input_ids"].shape) == (2, 31)
    assert batch["input_ids"][0].tolist() == [*rows[1]["input_ids"], *[0] * 8]
    assert batch["attention_mask"].sum(-1).tolist() == [23, 31]
    assert batch["labels"][0, 23:].tolist() == [-100] * 8


def test_full_labels_keep_every_position_but_the_last(ours: Collator) -> None:
    """With the prompt as label nothing is left out; the last position predicts nothing."""
    ids = [5, 6, 7]
    batch = ours([{"input_ids": ids, "labels": ids}])
    assert batch["labels"].tolist() == [ids]
    assert batch["answer_positions"].tolist() == [0, 1]
