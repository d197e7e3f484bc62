"""Training rows as token ids: whole answers, valid templates, labels where the loss should be."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from app.core.errors import PipelineError
from app.core.lawqa import load_questions
from app.core.prompts import build_prompt
from app.llm.chat_tokens import encode_prompt, end_of_turn_id, load_tokenizer
from app.training.rows import IGNORED, TrainingRow, encode_rows, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> "PreTrainedTokenizerFast":
    """The tiny model's tokenizer."""
    return load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def prompt(questions_file: Path) -> str:
    """A prompt with worked examples, several hundred tokens long."""
    return build_prompt(load_questions(questions_file, "--data")[0], "direct", few_shot=True)


def encoded(tokenizer: "PreTrainedTokenizerFast", prompt: str, limit: int, **options: bool) -> dict[str, list[int]]:
    """One row with a short answer, cut at `limit` tokens."""
    row = TrainingRow(prompt, "b", "direct", "rows.jsonl line 1")
    options = {"loss_on_output_only": True, **options}
    return encode_rows(tokenizer, [row], max_seq_length=limit, **options).rows[0]


@pytest.mark.parametrize("limit", [1000, 128, 64, 48])
def test_the_answer_is_never_cut(tokenizer: "PreTrainedTokenizerFast", prompt: str, limit: int) -> None:
    """At any length the row ends with the letter and the end of the turn, and both are labels."""
    row = encoded(tokenizer, prompt, limit)
    tail = [*tokenizer("b", add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert len(row["input_ids"]) <= limit
    assert row["input_ids"][-2:] == tail
    assert [label for label in row["labels"] if label != IGNORED] == tail


@pytest.mark.parametrize("limit", [130, 129, 128, 127, 64, 48])
def test_a_shortened_prompt_keeps_template_and_choices(
    tokenizer: "PreTrainedTokenizerFast", prompt: str, limit: int
) -> None:
    """What goes is the left end of the user's text, at a character's border; markup and choices stay whole."""
    text = tokenizer.decode(encoded(tokenizer, prompt, limit)["input_ids"])
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("d 河川登録\n回答:<|im_end|>\n<|im_start|>assistant\nb<|im_end|>")
    assert "\ufffd" not in text
    kept = text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
    assert prompt.endswith(kept)


def test_an_answer_that_leaves_no_room_is_named(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> None:
    """Where template and answer fill the length, the row's line and the flag are named."""
    with pytest.raises(PipelineError, match=r"rows\.jsonl line 1: .*raise --max-seq-length"):
        encoded(tokenizer, prompt, 16)


def test_without_output_only_the_prompt_is_learned_too(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> None:
    """`--no-loss-on-output-only` makes every token a label."""
    row = encoded(tokenizer, prompt, 1000, loss_on_output_only=False)
    assert row["labels"] == row["input_ids"]


def test_a_twins_template_marks_what_the_assistant_says(tokenizer: "PreTrainedTokenizerFast") -> None:
    """The text is plain ChatML; the marks are where `trl sft --assistant_only_loss` looks for labels."""
    turns = [{"role": role, "content": said} for role, said in (("user", "質問"), ("assistant", "b"), ("user", "a"))]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in turns) + (
        "<|im_start|>assistant\n"
    )
    row = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, is_marked in zip(row["input_ids"], row["assistant_masks"], strict=True) if is_marked]
    assert tokenizer.decode(marked) == "b<|im_end|>"


def test_training_and_generation_read_the_same_prompt(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> None:
    """The ids before the answer are exactly those that the evaluation gives the model."""
    row = encoded(tokenizer, prompt, 1000)
    asked = encode_prompt(tokenizer, prompt).ids
    assert row["input_ids"][: len(asked)] == asked
    assert len(row["input_ids"]) == len(asked) + 2


def test_without_a_template_prompt_and_answer_are_plain_text(tiny_model: Path, prompt: str) -> None:
    """A tokenizer that has no chat template still trains: prompt, newline, answer, EOS; and shortens from the left."""
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = None
    assert tokenizer.decode(encoded(tokenizer, prompt, 1000)["input_ids"]) == f"{prompt}\nb<|im_end|>"
    assert tokenizer.decode(encoded(tokenizer, prompt, 64)["input_ids"]).endswith("d 河川登録\n回答:\nb<|im_end|>")


def test_thinking_is_off_and_the_turns_end_is_found(tiny_model: Path) -> None:
    """A template in Qwen3's manner opens with an empty thought; the token after an answer is what has to be learned."""
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template += (
        "{% if add_generation_prompt and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    )
    ids = encode_prompt(tokenizer, "質問").ids
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": "q", "output": "a"}\n{"input": ', r"rows\.jsonl line 2 is not valid JSON"),
        ('{"input": "q"}', r"rows\.jsonl line 1 has no text under the key 'output'"),
        ('{"input": "q", "output": " "}', r"rows\.jsonl line 1 has no text under the key 'output'"),
        ('["q"]', r"rows\.jsonl line 1 is not an object"),
        ("\n", r"rows\.jsonl has no row"),
        (
            '{"input": "q", "output": "a", "meta": {"mode": "cot"}}',
            r"line 1 has meta\.mode 'cot', but --train-mode is direct",
        ),
    ],
)
def test_a_broken_row_is_named_with_file_line_key_and_remedy(tmp_path: Path, content: str, message: str) -> None:
    """A bad training file is one clear message that says how to build a good one."""
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PipelineError, match=message + r".*build_finetune_dataset\.py"):
        read_rows(path, "direct")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_a_line_separator_inside_a_row_is_text(tmp_path: Path, separator: str) -> None:
    """Statutes hold characters that Python calls the end of a line and JSON Lines does not."""
    path = tmp_path / "rows.jsonl"
    rows = [{"input": f"第一条{separator}第二条", "output": "a"}, {"input": "q", "output": "b"}]
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert [(row.prompt, row.answer) for row in read_rows(path, "direct")] == [
        (f"第一条{separator}第二条", "a"),
        ("q", "b"),
    ]
