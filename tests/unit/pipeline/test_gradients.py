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
    from app.fast.host_memory import set_recompute
    from app.llm.loading import fuse_norms
    from app.training.answer_loss import chunk_long_answers
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
        chunked: bool = False,
    ) -> Step:
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        if not plain:
            fuse_norms(base)
        assert not chunked or chunk_long_answers(base)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        set_recompute(model, recompute, on_host=chunked)
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
        trainer.add_callback(Catch())
        trainer.add_callback(TrainingMode())
        trainer.train()
        return Step(caught.pop(), trainer.state.log_history[0]["loss"], frozenset(seen))

    return run


@pytest.fixture(scope="module")
def trimmed() -> Collator:
    """The pipeline's collator."""
    import torch
    from app.training.collator import AnswerCollator

    return AnswerCollator(pad_token_id=0, mask_dtype=torch.float32)


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


def test_trimmed_logits_give_the_full_trainers_gradients(
    run_step: Callable[..., Step], trimmed: Collator, full: Step
) -> None:
    """Keeping the longest answer plus one position changes neither loss nor gradients."""
    step = run_step(trimmed, 2, 2)
    assert step.distance(full) <= 1e-5
    assert step.loss == pytest.approx(full.loss, rel=1e-5)


def test_one_position_less_would_lose_gradients(run_step: Callable[..., Step], trimmed: Collator, full: Step) -> None:
    """Without the position before the answer the gradients are far off: the comparison above can fail."""

    def one_less(batch: Rows) -> dict[str, Any]:
        made = trimmed(batch)
        return {**made, "labels": made["labels"][:, 1:], "logits_to_keep": made["logits_to_keep"] - 1}

    assert run_step(one_less, 2, 2).distance(full) > 0.1


def test_every_norm_is_torchs_own_kernel(tiny_model: Path) -> None:
    """Both norms of each layer and the last one are replaced: the comparison above runs with them."""
    import torch
    from app.llm.loading import fuse_norms
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    fuse_norms(model)
    replaced = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert len(replaced) == 2 * model.config.num_hidden_layers + 1


def test_fused_micro_batches_give_the_same_step(run_step: Callable[..., Step], trimmed: Collator, full: Step) -> None:
    """Two micro-batches run as one see the same rows and give the same gradients to rounding."""
    accumulated, fused = run_step(trimmed, 2, 2), run_step(trimmed, 4, 1)
    assert fused.first_tokens == accumulated.first_tokens
    assert fused.distance(accumulated) <= 1e-5
    assert fused.distance(full) <= 1e-5


def test_recompute_gives_the_same_step(run_step: Callable[..., Step], trimmed: Collator, full: Step) -> None:
    """Gradient checkpointing changes memory and time only."""
    assert run_step(trimmed, 2, 2, recompute=True).distance(full) <= 1e-5


@pytest.mark.parametrize(("batch", "recompute"), [(2, False), (2, True), (4, True)])
def test_a_loss_in_chunks_gives_the_same_step(
    run_step: Callable[..., Step],
    trimmed: Collator,
    full: Step,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    recompute: bool,
) -> None:
    """Through the Trainer, whose micro-batches share one count of labels; with checkpoints in host memory too."""
    monkeypatch.setattr("app.training.answer_loss.CHUNK_POSITIONS", 3)
    step = run_step(trimmed, batch, 4 // batch, recompute=recompute, chunked=True)
    assert step.distance(full) <= 1e-5
    assert step.loss == pytest.approx(full.loss, rel=1e-5)


def test_the_head_sees_only_the_answers_positions(rows: Rows, trimmed: Collator) -> None:
    """Labels are as narrow as the longest answer plus one, and the first of them is none."""
    batch = trimmed(rows)
    longest_answer = max(answer for _, answer in SIZES)
    assert batch["logits_to_keep"] == longest_answer + 1
    assert tuple(batch["labels"].shape) == (len(SIZES), longest_answer + 1)
    assert (batch["labels"][:, 0] == -100).all()


def test_rows_are_padded_to_their_batch_only(rows: Rows, trimmed: Collator) -> None:
    """A batch is as wide as its longest row, rounded up to eight, and positions start at each row's first token."""
    batch = trimmed(rows[1:3])
    assert tuple(batch["input_ids"].shape) == (2, 32)
    assert batch["position_ids"][0].tolist() == [0] * 9 + list(range(23))


def test_full_labels_keep_every_position(trimmed: Collator) -> None:
    """With the prompt as label nothing is trimmed."""
    ids = [5, 6, 7]
    batch = trimmed([{"input_ids": ids, "labels": ids}])
    assert batch["labels"].tolist() == [[-100, *ids]]
    assert batch["logits_to_keep"] == 4


def test_every_position_sees_itself_and_no_padding_but_its_own() -> None:
    """Tokens see the tokens before them; a padding position sees itself, or some attention kernels give NaN."""
    import torch
    from app.training.collator import visible_positions

    seen = visible_positions(torch.tensor([[False, True, True], [True, True, True]]))
    assert seen[:, 0].int().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ]
