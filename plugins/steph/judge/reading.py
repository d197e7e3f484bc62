"""What a model's response says: which answer it gives beyond doubt, what of it are thoughts, whether it loops."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from steph.base.messages import Message, say

DIRECT_CHARS = 1000  # a direct answer is one letter; a chatty one explains itself in some hundred characters
COT_CHARS = 4000
LOOPED_LINES, LOOPED_SHARE = 5, 0.3
ONE_CHARACTER_CHARS = 5  # "!!!!!": what a model whose figures became NaN says
LOOP_MIN_CHARS, LOOP_TURNS = 48, 4
NGRAM_CHARS, NGRAM_MIN_TEXT, NGRAM_DISTINCT = 8, 300, 0.4
LOOKED_AT_CHARS = 20_000
_TAIL_CHARS = 4000
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DIGITS = re.compile(r"\d+")
LETTERS = ("a", "b", "c", "d")
_EXCEPTION_CHARS = 4000  # a longer text is no exception's message, unless it begins as one
_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|analysis|scratchpad|reflection)"
_THOUGHT_BEGINS = re.compile(rf"<{_THOUGHT}>|<\|channel\|>analysis", re.I)
_THOUGHT_ENDS = re.compile(rf"</{_THOUGHT}>|<\|channel\|>final(?:<\|message\|>)?", re.I)
_TURN_ENDS = re.compile(r"<\|(?:im_end|eot_id|endoftext|end|return|end_of_text)\|>|</s>|<(?:eos|end_of_turn)>|\[EOS\]")
_SPECIAL = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<｜[^<>\n]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    r"|\[(?:BOS|EOS|PAD|SEP|CLS|/?INST)\]"
)
_ROLE = re.compile(r"\A\s*(?:assistant|model|アシスタント)\s*[:：\n]\s*", re.I)
_SAYS_NOTHING = {"", "none", "null", "nan", "[]", "{}", '""', "''", "undefined", "n/a"}
_ANSWER_TAG = re.compile(r"<(?:final_)?answer>\s*([^<>]{1,200}?)\s*(?:</(?:final_)?answer>|\Z)", re.I)
_BOXED = re.compile(r"\\f?boxed\s{0,9}\{{1,9}\s{0,9}(?:\\\w{1,20}\s{0,9}\{{1,9})?\s{0,9}([^{}]{1,200}?)\}{1,9}")
_LAST_LINE = re.compile(r"^####[^\S\n]*([^\n]{1,200})\Z", re.M)  # as the rows of GSM8K end
_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit)\s{0,9}\{{1,9}([^{}]{0,200})\}{1,9}")
_MARKUP = re.compile(r"\*+|`+|~~|__|^[^\S\n]*(?:#+|>)\s*|\\[()\[\]]|\$+", re.M)
_STRONG_JA = r"(?:最終(?:的な)?)?(?:回答|解答|答え|答|正解|正答|結論)"
_WEAK_JA = (
    r"(?:正しい|適切な|適当な|妥当な|該当する|当てはまる|あてはまる|誤っている|間違っている|不適切な)"
    r"(?:もの|選択肢|の|記述|内容)"
)
_STRONG_EN = (
    r"(?:\b(?:the\s+)?(?:correct\s+|final\s+|best\s+|right\s+|gold\s+)?(?:answer|ans\.?)|\bfinal_answer"
    r"|\bcorrect[_ ]?(?:answer|option|choice)|\bgold(?:_answer)?|\boutput|\blabel|\btarget"
    r"|(?<=\")(?:choice|option|prediction|category|class|selected|verdict)(?=\"))"
)
_JOINED = r"[\s\"'”’]*+(?:is|should be|would be|must be|は|が)?[\s:：=→⇒、,\"'“‘]*+"
_NOUN = r"(?:(?:選択肢|肢|option|choice|letter)\s*)?"
_SAID = r"(?:番目?)?(?:です[ねよ]?|でしょう|である|だ|となります|になります|となる|になる)?"
_WRONG = r"(?:wrong|incorrect|false)\b"
_NEITHER = (
    r"(?!\s*(?:(?:では|じゃ|とは)(?:なく|ない|あり|言え)|で(?:なく|ない|ありませ)|以外|(?:は|も|が)(?:誤|間違|不))"
    rf"|\s+(?:is\s+(?:not\b|never\b|(?:the\s+)?{_WRONG})|isn['’]t\b|can(?:not|['’]t)\b)|\?\s*no\b)"
)
_NAME = r"(?!(?:wrong|incorrect|false|not|never|except)\b|[^\W\d_]{0,9}(?:誤|不|間違))[^\W\d_]{1,20}"
_NAMED = rf"{_NAME}(?:[\s_]{_NAME}){{0,5}}"  # `Rating`, `The sentiment`: what a whole response says that its label is
_IS = r"\s(?:is|was|are)\s(?:an?\s|the\s)?"
_NOT_CALLED_RIGHT = (  # `b is not liable` may be a choice that goes on
    r"(?:is|was)(?:n['’]t|\s+(?:not|never))\s+(?:(?:an?|the)\s+)?(?:correct|right|best|final|answer)\b"
    rf"|(?:is|was)\s+(?:(?:an?|the)\s+)?{_WRONG}|can(?:not|['’]t|\s+not)\s+be\s+(?:the\s+)?(?:correct|right|answer)\b"
)
_REFUSED_BEFORE = re.compile(
    r"(?:(?<!\bis )(?<!\bare )(?<!\bbe )\b(?:wrong|incorrect|false|bad|rejected|worst|least\s+likely)"
    r"|(?:\bnot|n['’]t|\bcannot|\bnever)(?:\s+(?:true|think|believe|say|mean))?(?:\s+that)?)"
    r"\s+(?:(?:an?|the|correct|final|right|it\s+is|it['’]s)\s+){0,2}\Z"
    r"|(?:誤(?:った|りの)?|不|間違(?:った|いの)|正しくない|適切でない|正解で(?:は)?ない)\Z",
    re.I,
)
_REFUSED_CHARS = 60
_CONCLUDES = r"(?:よって|したがって|従って|ゆえに|故に|以上より|以上から|therefore|thus|hence)[、,\s]*"
_REASONING_LABEL = re.compile(r"(?<![#*\s])[#*\s]*+(?:reasoning|理由|根拠)[\s*]*+:")
_TYPED_EXCEPTION = re.compile(
    r"[\s\[(<【*]*(?:Traceback \(most recent|(?:\w{1,60}\.){0,6}[A-Z]\w{0,60}(?:Error|Exception)\b['\"]?\s*[:(\]>】])"
)
_FILE = Path(__file__).with_name("exception_words.toml")
_WORDS = {
    name: f"(?:{'|'.join(alternatives)})"
    for name, alternatives in tomllib.loads(_FILE.read_text(encoding="utf-8")).items()
}
_TOLD = tomllib.loads(Path(__file__).with_name("answer_words.toml").read_text(encoding="utf-8"))


def _told(key: str) -> str:
    """What all other languages say for one thing, as alternatives."""
    return f"(?:{'|'.join(one for language in _TOLD.values() for one in language[key])})"


_BEFORE = "".join(f"(?<!{one})" for language in _TOLD.values() for one in language["before"])
_ARTICLE = r"(?:(?:die|der|das|la|le|lo|il|a|o)\s+)?"
_CHOICE = rf"(?:{_told('choice')}\s*)?"
_MARK = r"[:=→⇒—–-]"
# a noun alone joins nothing: `Antwort B` begins many a sentence about that choice
_ANSWER_IS = (
    rf"{_BEFORE}{_told('answer')}\s*+(?:{_told('is')}\s*+{_MARK}?|{_MARK}(?:\s*{_told('is')})?)"
    rf"[\s\"'“‘«„]*+{_ARTICLE}{_CHOICE}"
)
_REASON_WORDS = re.compile(
    rf"\s+(?:because|since|as|for|due|which|according|under|based|by|in|per|given|{_told('because')})\b"
)
_ARTICLE_OF = re.compile(rf"\s{{1,9}}{_told('answer')}", re.I)
_WORD = "A-Za-z0-9À-ÖØ-öø-ÿ"
_ENDS = rf"(?![{_WORD}]|['’][{_WORD}])"  # the c of `c'est` is no label
_OPENS = r"[\s\[(<【*]*"
_MESSAGE, _ERROR_WORD = re.compile(_WORDS["message"], re.I), re.compile(_OPENS + _WORDS["error_word"], re.I)
_FAILED_JA = re.compile(rf"{_OPENS}{_WORDS['failing_ja']}[^。\n]{{0,12}}{_WORDS['failed_ja']}")
_EXCUSE = re.compile(rf"{_OPENS}{_WORDS['excuse']}[\s.。!\])>】*]*", re.I)


def looping(text: str) -> Message | None:
    """How the text repeats itself; None where it does not."""
    bare = "".join(text.split())
    if len(bare) >= ONE_CHARACTER_CHARS and len(set(bare)) == 1:
        return say("loop.character", character=bare[0], characters=len(bare))
    text = _DIGITS.sub("0", text)  # a loop that counts its turns is a loop
    looked_at = text[:LOOKED_AT_CHARS]
    lines = Counter(line.strip() for line in looked_at.splitlines() if any(map(str.isalnum, line)))
    if lines:  # much of the text, since statutes repeat headings
        line, count = lines.most_common(1)[0]
        share = count * len(line) / sum(len(other) * n for other, n in lines.items())
        if count >= LOOPED_LINES and share >= LOOPED_SHARE:
            return say("loop.line", times=count)
    if turns := _tail_turns(text[-_TAIL_CHARS:].rstrip()):
        return say("loop.end", times=turns)
    squeezed = "".join(looked_at.split())
    count = len(squeezed) - NGRAM_CHARS + 1
    distinct = len({squeezed[n : n + NGRAM_CHARS] for n in range(count)}) / max(count, 1)
    if len(squeezed) >= NGRAM_MIN_TEXT and distinct < NGRAM_DISTINCT:
        return say("loop.share", percent=100 * (1 - distinct))
    return None


def _tail_turns(text: str) -> int:
    """How often the end of the text repeats one string (0 below the limits), by the reversed text's prefix function."""
    reverse = text[::-1]
    borders, turns, longest = [0] * len(reverse), 0, 0
    for n in range(1, len(reverse)):
        k = borders[n - 1]
        while k and reverse[n] != reverse[k]:
            k = borders[k - 1]
        borders[n] = k + (reverse[n] == reverse[k])
        length = n + 1
        period = length - borders[n]
        if length >= LOOP_MIN_CHARS and length >= LOOP_TURNS * period and length > longest:
            longest, turns = length, length // period
    return turns


def overlong(text: str, *, cot: bool) -> bool:
    """Whether a response is longer than any honest one: a direct answer needs one letter, CoT one reasoning."""
    return len(text) > (COT_CHARS if cot else DIRECT_CHARS)


def spoken(response: str) -> str:
    """The response without thoughts, special tokens and what follows the end of its turn."""
    text = _outside_thoughts(response)
    ended = _TURN_ENDS.search(text)
    if ended and text[: ended.start()].strip():
        text = text[: ended.start()]
    return _ROLE.sub("", _SPECIAL.sub("", text)).strip()


def without_special(response: str) -> str:
    """The response without special tokens, which a decoder may leave in by the hundred where it pads."""
    return _SPECIAL.sub("", response)


def thought_is_open(response: str) -> bool:
    """Whether the response was cut within its thoughts: they begin and do not end."""
    begins = [found.end() for found in _THOUGHT_BEGINS.finditer(response)]
    ends = [found.start() for found in _THOUGHT_ENDS.finditer(response)]
    return bool(begins) and begins[-1] > max(ends, default=-1)


def _outside_thoughts(response: str) -> str:
    ends = [found.end() for found in _THOUGHT_ENDS.finditer(response)]
    begins = _THOUGHT_BEGINS.search(response)
    rest = response[ends[-1] :] if ends else response
    opened = _THOUGHT_BEGINS.search(rest)
    rest = rest[: opened.start()] if opened else rest
    if ends and begins and not _SPECIAL.sub("", rest).strip():
        return response[: begins.start()]
    return rest


def is_blank(response: str | None) -> bool:
    """Whether a response says nothing: no text, special tokens only, or what a program writes for nothing."""
    return response is None or _SPECIAL.sub("", response).strip().lower() in _SAYS_NOTHING


def strict_letter(response: str, *, cot: bool, labels: Sequence[str] = LETTERS) -> str | None:
    """The label that a response gives as its answer beyond doubt; None where it gives none or several.

    `cot`: the answer must be said to be one; a text that only begins with a label is reasoning.
    """
    text = _plain(response)
    reader = _reader(tuple(labels))
    if whole := reader.alone.fullmatch(text):
        return whole[1].lower()
    stated = reader.stated(text, last_only=cot)
    if stated or cot:
        return stated.pop() if len(stated) == 1 else None
    return reader.leading(text)


def stated_labels(text: str, labels: Sequence[str] = LETTERS) -> set[str]:
    """The labels that a text names as an answer (`答え: b`, `the answer is c`)."""
    return _reader(tuple(labels)).stated(_plain(text))


def names_label(response: str, label: str) -> bool:
    """Whether the label stands in what a response says, as a word of its own."""
    text = _THOUSANDS.sub("", unicodedata.normalize("NFKC", spoken(response[:LOOKED_AT_CHARS])))
    return re.search(_bounded(re.escape(label)), text, re.I) is not None


def named_labels(response: str, labels: Sequence[str] = LETTERS) -> set[str]:
    """The labels that stand in what a response says, the English article left out."""
    return _reader(tuple(labels)).named(_plain(response))


def reasoning_of(response: str) -> str:
    """What a response says beside its answer: its lines without those that only give a letter, without their label."""
    text = unicodedata.normalize("NFKC", response[:LOOKED_AT_CHARS]).lower()
    lines = [line for line in text.splitlines() if not _only_answers(line)]
    return "\n".join(_REASONING_LABEL.sub("", line, count=1).strip() for line in lines).strip()


def _only_answers(line: str) -> bool:
    """Whether a line gives its letter and no more than a choice's text behind it."""
    text = _plain(line)
    reader = _reader(LETTERS)
    return bool(reader.alone.fullmatch(text)) or (len(reader.stated(text)) == 1 and bool(reader.led.match(text)))


def is_exception_text(response: str) -> bool:
    """Whether a response is an exception's message, a server's error page or a program's excuse, and no answer."""
    text = unicodedata.normalize("NFKC", spoken(response[: _EXCEPTION_CHARS + 1]))
    if _TYPED_EXCEPTION.match(text):
        return True
    if len(text) > _EXCEPTION_CHARS or strict_letter(text, cot=True) is not None:
        return False
    first = text[:300]
    hits = (_ERROR_WORD.match(first), _FAILED_JA.match(first), _MESSAGE.search(first), _EXCUSE.fullmatch(text))
    return any(hits)


def bare(text: str) -> str:
    """A text's letters and digits alone, without width and case."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text))).casefold()


def _plain(response: str) -> str:
    """What is said, in NFKC and without markup; boxes and answer tags become lines that say `Answer:`."""
    text = spoken(response[-LOOKED_AT_CHARS:] if _THOUGHT_ENDS.search(response) else response[:LOOKED_AT_CHARS])
    text = unicodedata.normalize("NFKC", text)
    for pattern in (_ANSWER_TAG, _BOXED, _LAST_LINE):
        text = pattern.sub(r"\nAnswer: \1\n", text)
    text = re.sub(r":[*\s]*\n\s*", ": ", _LATEX.sub(r"\1", _THOUSANDS.sub("", text)))
    return _MARKUP.sub("", text).strip()


def _bounded(alternatives: str) -> str:
    return rf"(?<![{_WORD}])(?:{alternatives}){_ENDS}"


@lru_cache(512)  # the choices of each question may be labels
def _reader(labels: tuple[str, ...]) -> _Reader:
    return _Reader(labels)


class _Reader:
    """The patterns for one set of labels."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        group = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
        letter = rf"[「『(\[【{{<\"'“‘]{{0,9}}(?<![{_WORD}])({group}){_ENDS}[」』)\]】}}>\"'”’]*+"
        other = rf"[「『(\[【\"']*+{_bounded(group)}"
        are_words = all(len(label) > 1 for label in labels)
        leads = rf"{_NAMED}\s{{0,9}}(?:{':|' + _IS if are_words else ':'})\s{{0,9}}"
        alone_lead = rf"(?:[{{\"]*(?:{_STRONG_EN}|{_STRONG_JA}|{_WEAK_JA}){_JOINED}|{leads})?"
        end = rf"[\s。．.、,:：]*+{_SAID}[\s。．.!！}}\"]*+"
        ors = rf"か|や|と|または|もしくは|及び|or\b|and\b|{_told('or')}"
        one_of = rf"(?!\s*[、,/・|~〜～-]\s*{other}|\s*(?:{ors})\s*{other})"
        nor = rf"{one_of}(?!{_told('not')})"
        alone = rf"\A\W{{0,9}}(?:[^\W\d_]{{1,12}}\s){{0,2}}{_BEFORE}{_told('answer')}\s+{_CHOICE}{letter}{end}\Z"
        self.label = re.compile(_bounded(group), re.I)
        self.alone = re.compile(rf"\s*{alone_lead}{_NOUN}{letter}{end}", re.I)
        strong = rf"(?:(?:{_STRONG_EN}|{_STRONG_JA}){_JOINED}{_NOUN}|{_ANSWER_IS})"
        self.led = re.compile(rf"{strong}{letter}{nor}{_NEITHER}", re.I)
        self.weak = (
            re.compile(rf"{_WEAK_JA}(?:は|が)?[\s:：、]*{_NOUN}{letter}{one_of}{_NEITHER}", re.I),
            re.compile(
                rf"{letter}\s*(?:が|こそ)\s*(?:最も)?(?:正解|正しい|正答|答え|適切|適当|妥当|該当|当てはま|回答|解答)"
                r"(?!.{0,8}(?:ない|ありません|なく|見え|かもしれ|思われ|思え))",
                re.I,
            ),
            re.compile(rf"{letter}\s*を(?:選び|選択し|回答とし|答えとし)(?!ませ|ない|なか)", re.I),
            re.compile(
                rf"{letter}\s*(?:だ|である)?と(?:思い|思う|考え|判断)(?!(?:られ|でき|し)?(?:ませ|ない|なか))", re.I
            ),
            re.compile(rf"\b(?:it is|it's|i think|it must be)\s+{_NOUN}{letter}{end}\Z", re.I),
            re.compile(rf"{letter}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b", re.I),
            re.compile(rf"\b(?:choose|select|pick|go with)\s+{_NOUN}{letter}{one_of}", re.I),
            re.compile(rf"{_CONCLUDES}{_NOUN}{letter}{end}\Z", re.I),
            re.compile(rf"\A\s*(?:選択肢|option|choice|{_told('choice')})\s*{letter}{end}\Z", re.I),
            re.compile(rf"{_told('weak')}[\s:\"“„«]*+{_ARTICLE}{_CHOICE}{letter}{nor}", re.I),
            re.compile(rf"(?<![{_WORD}])({group}){_ENDS}[」』)\]】}}>\"'”’]{{0,3}}{_told('right')}", re.I),
            re.compile(alone, re.I),
        )
        goes_on = rf"(?:は|が|も|に|では|と|や|か)[^\w]?|{_NOT_CALLED_RIGHT}"
        self.begins = re.compile(rf"\s*{letter}(?:[.、,:)。(]|\s)\s*(?!{goes_on})", re.I)

    def stated(self, text: str, *, last_only: bool = False) -> set[str]:
        """Labels that are said to be the answer; a weaker wording counts in a sentence that names no other label.

        `last_only`: and only in the last sentence, since reasoning weighs one choice after the other.
        """
        found: set[str] = set()
        sentences = [part for part in re.split(r"[\n。]", text) if part.strip()]
        for number, sentence in enumerate(sentences, 1):
            strong = [hit for hit in self.led.finditer(sentence) if self._is_meant(sentence, hit)]
            found |= {hit[1].lower() for hit in strong}
            named = self.named(sentence)
            if not strong and len(named) == 1 and (number == len(sentences) or not last_only):
                weak = (hit for pattern in self.weak for hit in [pattern.search(sentence)] if hit)
                found |= {hit[1].lower() for hit in weak if self._is_meant(sentence, hit)}
        return found

    def named(self, text: str) -> set[str]:
        """The labels that stand in a text, the English article left out."""
        return {hit[0].lower() for hit in self.label.finditer(text) if not self._is_article(text, hit.end())}

    def leading(self, text: str) -> str | None:
        """The label that a text begins with, as `b 株主総会の決議` does, where it names no other one.

        Or that its first sentence is, where no other one is a label: others may be called wrong behind it.
        """
        found = self.begins.match(text)
        if not found or len(text) > DIRECT_CHARS or looping(text) or self._is_article(text, found.end(1)):
            return None
        sentences = map(self.alone.fullmatch, filter(str.strip, re.split(r"[。\n]|\.\s", text)))
        is_first = next(sentences) and not any(sentences)
        return found[1].lower() if is_first or self.named(text) <= {found[1].lower()} else None

    def _is_meant(self, text: str, hit: re.Match[str]) -> bool:
        """Whether what says an answer is not refused by the words before it, and its label is no article."""
        before = text[max(0, hit.start() - _REFUSED_CHARS) : hit.start()]
        return not self._is_article(text, hit.end(1)) and _REFUSED_BEFORE.search(before) is None

    @staticmethod
    def _is_article(text: str, end: int) -> bool:
        """Whether the `a` that ends here is an article: other words follow, and none that gives a reason."""
        follows = text[end : end + 20]
        if text[end - 1] == "A":  # `A resposta`: elsewhere a capital is a label, as in `A Paris`
            return _ARTICLE_OF.match(follows) is not None
        is_word = re.match(r"\s+[a-zà-ÿ]{2}", follows) is not None
        return text[end - 1] == "a" and is_word and not _REASON_WORDS.match(follows)
