"""The one place where a question becomes a prompt, for the training rows and for the evaluation alike.

A prompt is the text of one user turn. It ends with the question and its choices, so that shortening it from the left
takes the instruction and the examples first.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from app.core.lawqa import Question

Mode = Literal["direct", "cot"]

_INSTRUCTIONS: dict[Mode, str] = {
    "direct": (
        "日本の法令に関する四択問題です。"
        "問いに当てはまる選択肢を一つ選び、その記号（a、b、c、d）を1文字だけ答えてください。"
    ),
    "cot": (
        "日本の法令に関する四択問題です。根拠を簡潔に述べてから、問いに当てはまる選択肢を一つ選んでください。"
        "「Reasoning: 根拠」の行と「Answer: 記号」の行だけで答えてください。"
    ),
}


class Tokenizer(Protocol):
    """What rendering needs of a tokenizer."""

    chat_template: object

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: object) -> object: ...


@dataclass(frozen=True)
class Example:
    """A worked question that is shown before the real one; written for this pipeline, in no question set."""

    question: str
    choices: str
    reasoning: str
    answer: str


EXAMPLES = (
    Example(
        question="民法第882条によれば、相続はいつ開始しますか。",
        choices="a 遺言書が作成された時\nb 相続人が届け出た時\nc 被相続人が死亡した時\nd 遺産の分割が終わった時",
        reasoning="民法第882条は「相続は、死亡によって開始する。」と定める。",
        answer="c",
    ),
    Example(
        question="会社法第104条によれば、株主の責任について正しいものを教えてください。",
        choices=(
            "a 株式の引受価額を限度とする\nb 会社の債務の全額について責任を負う\n"
            "c 取締役と連帯して責任を負う\nd 議決権の数に応じて責任を負う"
        ),
        reasoning="会社法第104条は、株主の責任はその有する株式の引受価額を限度とすると定める。",
        answer="a",
    ),
)


def answer_text(mode: Mode, answer: str, reasoning: str = "") -> str:
    """What the model should say: the letter alone, or a reasoning line and `Answer: x`."""
    return answer if mode == "direct" else f"Reasoning: {reasoning}\nAnswer: {answer}"


def build_prompt(question: Question, mode: Mode, *, few_shot: bool, passages: tuple[str, ...] = ()) -> str:
    """The user turn for one question; `passages` are retrieved texts, none without retrieval."""
    parts = [_INSTRUCTIONS[mode]]
    if few_shot:
        parts += [_example(number, example, mode) for number, example in enumerate(EXAMPLES, start=1)]
    if passages:
        parts.append("参考条文:\n" + "\n\n".join(passages))
    parts.append(_question("問題", question.text, question.choices_text, question.instruction))
    return "\n\n".join(parts)


def _example(number: int, example: Example, mode: Mode) -> str:
    answer = answer_text(mode, example.answer, example.reasoning)
    separator = " " if mode == "direct" else "\n"
    return _question(f"例{number}", example.question, example.choices) + separator + answer


def _question(title: str, text: str, choices: str, instruction: str = "") -> str:
    return "\n".join(filter(None, (f"【{title}】", instruction, text, choices, "回答:")))


def render_chat(tokenizer: Tokenizer, prompt: str, answer: str | None = None) -> str:
    """The whole text that the model reads: one user turn, opened for the answer, or closed after `answer`.

    Thinking is switched off where the template knows it (Qwen3). Without a template: the prompt and a newline.
    """
    if not tokenizer.chat_template:
        return f"{prompt}\n{answer or ''}"
    turns = [{"role": "user", "content": prompt}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=answer is None, enable_thinking=False
        )
    )
