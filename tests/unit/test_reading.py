"""What a response gives as its answer, what of it is an excuse, and how choices may be written."""

from __future__ import annotations

import pytest
from steph.contract.questions import choices_of, question_key
from steph.judge.reading import is_exception_text, spoken, stated_labels, strict_letter, thought_is_open

B = (
    "\\boxed{b}", "\\boxed{\\text{b}}", "Error in formation makes it voidable, so the answer is b.", "b<|im_end|>",
    "The correct answer is b because article 3 says so.", "Answer: b. The contract period is fixed by article 1.",
    "エラー（錯誤）による意思表示は取り消せるため、正解はbです。", "bが正解です。", "正しいのはbです。", "（Ｂ）",
    "選択肢bが正しいです。選択肢aは条文に反します。", "(b) 売買の期間は2日である", "### 回答\n**b**", "B. The period",
    "b<|im_end|>\n<|im_start|>user\n次はaですか", '{"answer": "b"}', "<answer>b</answer>", "Option b", "[b]", "【b】",
    "条文を読む</think>b", "<thinking>aではない</thinking>\n答え: b", "assistant\n\nb", "よって、bが正解です。",
    "<|channel|>analysis<|message|>a?<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "I choose b",
    "b、理由は第3条。", "正解は、bです", "最終回答: **b**", "The right answer is option b, since it says so",
    "答案是B", "答案：B", "选B", "正确答案为 B", "因此，答案为选项 B。", "B是正确的", "故选：B。", "不正确的一项是B",
    "정답은 B", "답: B", "따라서 정답은 B입니다.", "B가 정답입니다", "Die Antwort ist B", "Antwort: B",
    "B ist richtig.", "Die richtige Antwort lautet **B**.", "Antwort B.", "La réponse est B", "Réponse : B",
    "C'est la réponse B.",
    "La bonne réponse est la B.", "La respuesta es B", "Respuesta correcta: B) Madrid", "La opción correcta es la B.",
    "La risposta è B", "Risposta corretta: B", "A resposta é B", "Resposta: B", "A alternativa correta é a B.",
    "Ответ: B", "Правильный ответ — B", "Правильный ответ B.", "**Answer: B**", "**答案：B**", "**Réponse :** B",
    "### Antwort: B", "Darum geht es hier.\nAntwort: B",
    "The wrong answer is a. The correct answer is b.", "a is wrong. The answer is b.", "The answer is b, not a.",
    "a is not the answer; the answer is b", "Wrong? No: the answer is b.", "b is the correct answer, and not a matter",
    "No doubt: the answer is b", "誤りはaで、正解はb", "不正解はa、正解はb", "正解はbであり、aではない",
    "誤っているものはb", "誤っているのはbです", "bを選択しなければならない", "bだと考えられる", "b is not liable",
    "答えはb（aではない）",
    "Ans. b", '{"choice": "b"}', '{"reasoning": "a is wrong", "final_answer": "b"}', "B（売主）", "Bですね",
    "Bでしょう",
    "肢b", "My own choice: b",
)  # fmt: skip
NONE = (
    "The answer is a matter of law", "正解はaではない", "a or b", "答えはaかb", "回答はa〜dの記号",
    "選択肢a、b、c、dの中から",
    "<think>\n選択肢aを見ると…選択肢bもありうる。条文を", "the answer is not a", "aは誤り",
    "Option a is wrong", "a は誤り",
    "<|channel|>analysis<|message|>The answer is b", "a model of law",
    "答案不是B", "答案是A还是B", "错误的答案是B", "我不选B", "选项B错误", "请选择A、B、C或D", "정답은 B가 아닙니다",
    "오답은 B", "정답은 A 또는 B", "Die falsche Antwort ist B", "Die Antwort ist nicht B", "Antwort: A oder B",
    "Antwort B ist falsch", "La réponse est d'abord juste", "La réponse n'est pas B", "Réponse : A ou B",
    "C'est une année", "La respuesta es a veces distinta", "Respuesta: A o B", "C'è un errore", "La risposta non è B",
    "A resposta é a única", "A resposta: B está errada", "Ответ не B", "Ответ B неверен", "Ответ: A или B",
    "The wrong answer is b", "Incorrect answer: b", "An incorrect final answer: b", "b is not the answer",
    "b isn't correct", "b is wrong", "b is the wrong answer", "b cannot be the answer", "I don't choose b",
    "do not select b", "I don't think the answer is b", "It is not true that the answer is b", "not the answer: b",
    "The answer is b? No.", "The answer isn't b", 'The answer is "b" or "c"',
    "答えはbではない", "答えはbでない", "答えはbでありません", "答えはb以外である", "誤りはb", "誤答はb", "不正解はb",
    "誤った答えはb", "正しくない答えはb", "答えはbが誤り", "bを選びません", "bを選択しない", "bだと考えない",
    "bと判断できません", "The option that is wrong: b", "選択肢の誤り: b", "bが正解ではない", "該当するものはbでない",
)  # fmt: skip
EXCUSES = (
    "CUDA error: device-side assert triggered\nFor debugging consider passing", "推論に失敗しました (CUDA)",
    "<html><head><title>502 Bad Gateway</title></head><body>b</body></html>", "502 Bad Gateway", "HTTP 503",
    "Error code: 429 - {'error': 'b'}", "[ERROR] generation failed", "エラーが発生しました",
    "エラー: 推論に失敗",
    "応答の生成に失敗しました", '{"error": {"message": "model not found"}}',
    "'NoneType' object has no attribute 'x'",
    "Expected all tensors to be on the same device", "An error occurred while generating", "list index out of range",
    "[推論エラー]", "API接続がタイムアウトしました", "Request timed out.", "例外: CUDA", "timeout",
    "生成できませんでした",
    "HTTPConnectionPool(host='x', port=80): Max retries exceeded", "APIError(502)", "torch.cuda.OutOfMemoryError: x",
)  # fmt: skip
ANSWERS = (
    "Error in formation makes it voidable", "エラー（錯誤）による意思表示", "契約の履行に失敗した場合は",
    "登記の申請に失敗しました",
    "処理の期間は3日", "生成物の権利は", "モデル条項を使うことはできません", "The error was fatal",
    "Forbidden acts are void.",
    "応答がない場合は失敗とみなす", "The request timed out? No: the answer is b.",
)  # fmt: skip


@pytest.mark.parametrize("response", B)
def test_an_answer_is_read_in_whatever_form_it_is_given(response: str) -> None:
    """A box, a tag, an end token, a closed thought, a sentence of any of ten languages: the letter is beyond doubt."""
    assert strict_letter(response, cot=False) == "b"
    assert not is_exception_text(response)


@pytest.mark.parametrize("response", NONE)
def test_what_is_denied_listed_or_only_thought_is_no_answer(response: str) -> None:
    """A letter that is refused, one of several, an English article, or within a thought that never ended."""
    assert strict_letter(response, cot=False) is None


@pytest.mark.parametrize("response", EXCUSES)
def test_an_excuse_is_told_from_an_answer_without_a_type_name(response: str) -> None:
    """CUDA's, Python's and a server's own texts, and a program's words for them."""
    assert is_exception_text(response)


@pytest.mark.parametrize("response", ANSWERS)
def test_words_about_errors_are_no_excuse(response: str) -> None:
    """Law knows errors, failures and what is forbidden."""
    assert not is_exception_text(response)


def test_labels_may_be_other_than_letters() -> None:
    """Digits and kana are read by the same rules, as whole words."""
    assert strict_letter("正解は２です。", cot=False, labels=("1", "2", "3", "4")) == "2"
    assert strict_letter("答え：イ", cot=False, labels=("ア", "イ", "ウ", "エ")) == "イ"
    assert strict_letter("12", cot=False, labels=("1", "2")) is None
    assert strict_letter("2番です", cot=False, labels=("1", "2")) == "2"
    tones = ("positive", "negative")
    assert strict_letter("The sentiment of this review is positive.", cot=False, labels=tones) == "positive"
    assert strict_letter("The sentiment of this review is not positive.", cot=False, labels=tones) is None
    assert strict_letter("This is a negative.", cot=False, labels=tones) == "negative"
    assert strict_letter("The statement is false.", cot=False, labels=("true", "false")) == "false"
    assert stated_labels("ヒント: 正解は c です\n回答: a、b、c、d のいずれか") == {"c"}


def test_a_thought_is_open_until_it_ends() -> None:
    """What is said begins behind the last end of a thought, and before one that is cut."""
    assert thought_is_open("<think>aか")
    assert not thought_is_open("<think>aか</think>b")
    assert spoken("<think>aか</think>b<|im_end|>c") == "b"
    assert spoken("b <think>なぜなら</think>") == "b"


TEXTS = ("売買の期間は2日", "売買の期間は5日", "売買の期間は8日", "3 日である")


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        ("\n".join(f"{'abcd'[n]} {text}" for n, text in enumerate(TEXTS)), tuple("abcd")),
        ("\n".join(f"{'ABCD'[n]}.　{text}" for n, text in enumerate(TEXTS)), tuple("abcd")),
        ("\n".join(f"{n}. {text}" for n, text in enumerate(TEXTS, 1)), tuple("1234")),
        ("\n".join(f"{'①②③④'[n]} {text}" for n, text in enumerate(TEXTS)), tuple("1234")),
        ("\n".join(f"{'アイウエ'[n]}　{text}" for n, text in enumerate(TEXTS)), tuple("アイウエ")),
        (" ".join(f"{'abcd'[n]}) {text}" for n, text in enumerate(TEXTS)), tuple("abcd")),
        ([f"({'ABCD'[n]}) {text}" for n, text in enumerate(TEXTS)], tuple("abcd")),
        (list(TEXTS), ()),
        (dict(zip("abcd", TEXTS, strict=True)), tuple("abcd")),
        ([{"label": "ABCD"[n], "text": text} for n, text in enumerate(TEXTS)], tuple("abcd")),
        ({"text": list(TEXTS), "label": ["A", "B", "C", "D"]}, tuple("abcd")),
    ],
)
def test_choices_are_the_same_in_every_form(choices: object, labels: tuple[str, ...]) -> None:
    """Lines, one line, lists, mappings and records, numbered by anything; a number within one choice is its own."""
    found = choices_of(choices)
    assert found.labels == labels
    assert question_key("問", choices) == question_key("問", list(TEXTS))
