"""A stranger's program: trains with a loop of its own, then by the Trainer, compiles, generates, merges, and fails.

`python own_loop.py MODEL FOLDER`. It knows nothing of the suite; a test compares what it prints with hooks and without.
"""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

TEXTS = ["河川と森林について", "鉱業と漁業について", "道路と航空について", "電波と温泉について"]
ENDING = 2


class Rows(Dataset):  # type: ignore[misc]
    """Makes each row when it is asked for, from a random number that nobody else may draw."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - any tokenizer
        self.tokenizer, self.asked = tokenizer, 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked += 1
        ids = torch.tensor([*(self.tokenizer(TEXTS[index % 4])["input_ids"] * 6)[:6], ENDING])
        return {"input_ids": ids, "labels": torch.where(torch.rand(7) < 0.1, -100, ids)}


def batch(tokenizer: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - any tokenizer
    """Four rows, whose answers are their second halves."""
    ids = torch.tensor([[*(tokenizer(text)["input_ids"] * 6)[:6], ENDING] for text in TEXTS])
    labels = ids.clone()
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def own_loop(model: PeftModel, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401 - any tokenizer
    """A loop that a person wrote: a probe first, then three steps."""
    model.train()
    model(**batch(tokenizer)).loss.backward()  # a probe of the memory: no training yet
    model.zero_grad()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        loss = model(**batch(tokenizer)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(repr(loss.item()))
    model.save_pretrained(folder)


def by_trainer(model: PeftModel, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401 - any tokenizer
    """Two steps by the Trainer, over rows that are made when asked for."""
    rows = Rows(tokenizer)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, report_to=[], logging_steps=1,
        learning_rate=1e-2, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    print(rows.asked, [entry.get("loss") for entry in trainer.state.log_history])


def compiled(model: PeftModel, tokenizer: Any) -> None:  # noqa: ANN401 - any tokenizer
    """The model compiled whole, and compiled within something else: no graph may break."""
    torch._dynamo.config.suppress_errors = False
    fast = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        print(repr(fast(**batch(tokenizer)).loss.item()))
    print(torch._dynamo.utils.counters["stats"]["unique_graphs"], dict(torch._dynamo.utils.counters["graph_break"]))
    inside = torch.compile(lambda **given: model(**given).loss * 2, backend="eager", fullgraph=True)
    print(repr(inside(**batch(tokenizer)).item()))


def answers(model: Any, tokenizer: Any, **options: object) -> None:  # noqa: ANN401 - any model
    """Generate, and score once."""
    ids = batch(tokenizer)["input_ids"][:, :5]
    model.eval()
    with torch.inference_mode():
        said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, **options)
        print(said.tolist(), repr(model(input_ids=ids).logits.float().sum().item()))


def main() -> None:
    """All of it in one process, which ends with an exception."""
    path, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(3)
    random.seed(3)
    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    own_loop(model, tokenizer, folder / "loop")
    by_trainer(model, tokenizer, folder / "trainer")
    compiled(model, tokenizer)
    answers(model, tokenizer, do_sample=True)
    with model.disable_adapter():
        answers(model, tokenizer, do_sample=False)
    for bad in ({"max_new_tokens": -1}, {"input_ids": torch.tensor([[10**6]])}):
        try:
            model.generate(**{"input_ids": torch.tensor([[5, 6]]), **bad})
        except Exception:
            traceback.print_exc(file=sys.stdout)
    again = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    loaded = PeftModel.from_pretrained(again, str(folder / "loop"))
    answers(loaded, tokenizer, do_sample=False)
    merged = loaded.merge_and_unload()
    answers(merged, tokenizer, do_sample=False)
    merged.save_pretrained(folder / "merged")
    warnings.warn("at the end", stacklevel=1)
    print(torch.rand(3).tolist(), random.random(), model.generate.__func__.__name__)  # noqa: S311 - the state it is in
    model.train()
    model(input_ids=torch.tensor([[10**6]]), labels=torch.tensor([[1]]))


if __name__ == "__main__":
    main()
