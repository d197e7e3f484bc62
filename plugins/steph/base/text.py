"""Text from elsewhere: freed of secrets, decoded, freed of terminal codes, brought into one line; printable streams.

Secrets are tokens, keys, Authorization headers and passwords in URLs, in text and byte streams. Names that only look
alike (`eos_token='<|im_end|>'`, `tokens per second`, `hf_lora_path`) stay readable. Redacting twice changes nothing.
Standard library only and no import from the suite, so that a script under `python -I -S` can load it by path.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache

MASK = b"***"

# Without a line end a stream is held back to this size; a secret longer than that is masked piece by piece.
HOLD_BYTES = 16_384
_LONGEST_NAME_BYTES = 64  # of a keyword with its separator
_MARGIN_BYTES = 1024  # longest name and separator before a value, and the shortest value that tells

_SEPARATOR = rb"""(?P<sep>\\?["']?\]?[ \t]{0,8}(?:=>|:=|[=:,]|[ \t])[ \t]{0,8}b?)"""
_KEYED = re.compile(
    rb"""(?P<word>(?i:token|secret|api[-_]?key|passw(?:or)?d|(?:access|secret|private)[-_]key))"""
    + _SEPARATOR
    + rb"""(?:\\?["'](?P<quoted>[^"'\\\r\n]{0,256})|(?P<bare>[^\s"',;&(){}\[\]<>|]{1,256}))"""
)
# what follows the first 256 bytes of such a value, which tell whether it is a secret
_REST_OF = {"quoted": re.compile(rb"""[^"'\\\r\n]*"""), "bare": re.compile(rb"""[^\s"',;&(){}\[\]<>|]*""")}
_HEADER = re.compile(
    rb"""(?i:authorization)\\?["']?[ \t]{0,8}[=:,][ \t]{0,8}b?(?:\\?["'])?(?:(?i:bearer|basic|token|digest)[ \t]+)?"""
    rb"""(?P<value>[^\s"',;&)}\]]+)"""
)
_BEARER = re.compile(rb"(?i:bearer)[ \t]{1,8}(?P<value>[A-Za-z0-9_\-.~+/]{8,}=*)")
_HF = re.compile(rb"hf_(?:oauth_)?(?P<value>[A-Za-z0-9]{10,})")
_ISSUED = re.compile(rb"(?:api_org_|sk-(?=[A-Za-z0-9_-]{20}))(?P<value>[A-Za-z0-9_-]{10,})")
# what issuers of tokens begin them with, and what follows
_BY_PREFIX: tuple[tuple[bytes, bytes], ...] = (
    (b"gh[opurs]_", b"[A-Za-z0-9]{20,}"),
    (b"xox[abeprs]-", rb"[\w-]{10,}"),
    *((prefix, b"[A-Za-z0-9]{20,}") for prefix in (b"npm_", b"gsk_", b"r8_")),
    *(
        (prefix, rb"[\w-]{16,}")
        for prefix in (b"github_pat_", b"glpat-", b"nvapi-", b"dckr_pat_", b"dop_v1_", b"lsv2_")
    ),
    *((prefix, rb"[\w-]{20,}") for prefix in (b"wandb_v1_", b"xai-", b"tvly-", b"pypi-", rb"ya29\.")),
    *((prefix, b"[A-Z0-9]{16}(?![A-Za-z0-9])") for prefix in (b"AKIA", b"ASIA")),
    (b"AIza", rb"[\w-]{35}(?![\w-])"),
    (b"eyJ", rb"[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"),  # a JSON web token
)
_SAS = re.compile(rb"""[?&;]sig=(?P<value>[^&\s"'<>]{16,})""")  # of an Azure storage address
_URL = re.compile(rb"""://(?P<value>[^\s/?#"'<>@:]{16,}|[^\s/?#"'<>@:]*:[^\s/?#"'<>]*)@""")  # a short user is no secret
_SIGNATURE = re.compile(rb"""(?i:signature)=(?P<value>[^&\s"'<>]+)""")

# a name that ends in `token` and means a piece of text
_TEXT_TOKEN = re.compile(
    rb"(?:^|[-_.])(?:eos|bos|pad|unk|mask|sep|cls|sos|eot|eod|boi|eoi|special|image|video|audio|vision|object|start|end|stop"
    rb"|next|first|last|prefix|suffix|middle|fill|per|by|num|n|max|min|total|new|input|output|generated|label|word|char|prompt"
    rb"|system|assistant|tool|think|placeholder|control|blank|byte|add|remove|this|each|one|single)s?$",
    re.I,
)
_NAME_BEFORE = re.compile(rb"[A-Za-z0-9_.\-]*$")
_PLAIN_VALUE = re.compile(
    rb"(?i:none|null|nil|true|false|undefined|unset|empty|required|missing|invalid)$|\d{1,9}(?:\.\d*)?$|<[^>]*>?$|\.{3}"
    rb"|\$\{?[A-Z_][A-Z0-9_]*\}?$|(?:os|self|args|config|cfg|settings|env|secrets|get_token|getenv|getpass)[.(\[]"
)
# `/etc/passwd: no folder`: a path with a folder in it, a colon and a blank, and words that say what is the matter with
# it. One word behind it may be a secret that was filed under this path, and `user/password: x` is no path
_FOLDERS_BEFORE = re.compile(rb"""(?:^|[\s"'(=])(?:~|\.\.?|[A-Za-z]:)?(?:[/\\][^\s/\\:;"'?&=<>|]+)+[/\\]$""")
_PATH_ENDS = re.compile(rb"""["']?:[ \t]+$""")
_LONGEST_PATH_BYTES = 256
_WORD = re.compile(rb"[A-Za-z.-]+$")
_NEXT_WORD = re.compile(rb"(?:'[a-z])?[ \t][A-Za-z\x80-\xff]")
_TELLS = re.compile(rb"(?=.*\d)(?=.*[A-Za-z]).{8,}", re.S)

_Span = tuple[int, int]


def _keyed(data: bytes, at: int) -> _Span | None:
    match = _word_at(data, at)
    if match is None:
        return None
    group = "quoted" if match["bare"] is None else "bare"
    value = match[group]
    if not value or _PLAIN_VALUE.match(value) or not _names_a_secret(match, value):
        return None
    return match.start(group), _REST_OF[group].match(data, match.end(group)).end()  # type: ignore[union-attr]


def _word_at(data: bytes, at: int) -> re.Match[bytes] | None:
    """The keyword whose last part was found at `at`: for `key`, the word before it belongs to it."""
    if data[at : at + 3].lower() != b"key":
        return _KEYED.match(data, at)
    for length in (4, 3, 7, 8):  # api_, api, access_ / secret_, private_
        if at >= length and (match := _KEYED.match(data, at - length)):
            return match
    return None


def _names_a_secret(match: re.Match[bytes], value: bytes) -> bool:
    before = _NAME_BEFORE.search(match.string[max(0, match.start() - 80) : match.start()])
    name = before[0] if before else b""
    word = match["word"].lower()
    if word == b"token" and _TEXT_TOKEN.search(name.rstrip(b"-_.")):
        return False
    if b"--" in name:
        return True
    if _ends_a_path(match, match.start() - len(name)):
        return False
    separator = match["sep"].strip(b" \t\\\"']b")
    if separator not in (b"=", b":", b"=>", b":="):
        return False
    if b"=" in separator or name or word not in (b"token", b"secret"):
        return True
    return len(value) >= 16 or bool(_TELLS.match(value))


def _ends_a_path(match: re.Match[bytes], start: int) -> bool:
    """Whether the keyword's name, from `start`, is the last part of a path, of which a sentence follows."""
    value, data = match["bare"], match.string
    if value is None or not _PATH_ENDS.match(match["sep"]):
        return False
    if not _FOLDERS_BEFORE.search(data, max(0, start - _LONGEST_PATH_BYTES), start):
        return False
    return value[0] >= 0x80 or bool(_WORD.match(value) and _NEXT_WORD.match(data, match.end()))


def _hf(data: bytes, at: int) -> _Span | None:
    match = _HF.match(data, at)
    if match is None:
        return None
    value = match["value"]
    is_word = data[max(0, at - 1) : at].isalnum() or (value.isalpha() and (value.islower() or value.isupper()))
    return None if is_word and len(value) < 20 else match.span("value")


def _by(expression: re.Pattern[bytes]) -> Callable[[bytes, int], _Span | None]:
    def find(data: bytes, at: int) -> _Span | None:
        match = expression.match(data, at)
        return match.span("value") if match else None

    return find


# Each literal is searched in the lower-cased data, which is many times faster than one expression for them all;
# only where it is found is the data itself looked at.
_ROWS: tuple[tuple[re.Pattern[bytes], Callable[[bytes, int], _Span | None]], ...] = (
    (re.compile(rb"authorization"), _by(_HEADER)),
    (re.compile(rb"bearer"), _by(_BEARER)),
    (re.compile(rb"hf_(?=(?:oauth_)?[a-z0-9]{10})"), _hf),
    (re.compile(rb"api_org_"), _by(_ISSUED)),
    (re.compile(rb"sk-(?=[a-z0-9])"), _by(_ISSUED)),
    (re.compile(rb"signature="), _by(_SIGNATURE)),
    (re.compile(rb"[?&;]sig="), _by(_SAS)),
    (re.compile(rb"://"), _by(_URL)),
    *(
        (re.compile(prefix.lower()), _by(re.compile(b"(?<![A-Za-z0-9])%b(?P<value>%b)" % (prefix, rest))))
        for prefix, rest in _BY_PREFIX
    ),
    (re.compile(rb"""token(?=[\\"'\]\s=:,])"""), _keyed),
    (re.compile(rb"""secret(?=[\\"'\]\s=:,])"""), _keyed),
    (re.compile(rb"""key(?=[\\"'\]\s=:,])"""), _keyed),
    (re.compile(rb"passw"), _keyed),
)
_REST_OF_QUOTED = re.compile(rb"""[^"'\\\r\n]*""")
_REST_OF_BARE = re.compile(rb"""[^\s"']*""")
_WORD_CHARS = 64


def redact(text: str) -> str:
    """The text with every secret replaced by `***`; what names the secret stays."""
    return _redacted_word(text) if len(text) <= _WORD_CHARS else _redacted(text)


def _redacted(text: str) -> str:
    return redact_bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


_redacted_word = lru_cache(4096)(_redacted)  # a record's keys and values: some 8,000 a run, most of them the same


def redact_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without secrets, which their names may tell."""
    return {name: redact(f"{name}={value}").partition("=")[2] for name, value in env.items()}


def redact_tree(value: object) -> object:
    """A value of JSON, each secret in its strings and keys masked; half a character, never writable, becomes `?`."""
    if isinstance(value, str):
        return redact(value).encode(errors="replace").decode()
    if isinstance(value, dict):
        return {redact_tree(key): redact_tree(item) for key, item in value.items()}
    return [redact_tree(item) for item in value] if isinstance(value, list) else value


def redact_bytes(data: bytes) -> bytes:
    """The same for bytes in any encoding that keeps ASCII."""
    spans = _secrets(data)
    if not spans:
        return data
    parts, done = [], 0
    for start, end in spans:
        parts += [data[done:start], MASK]
        done = end
    return b"".join((*parts, data[done:]))


class StreamRedactor:
    """Redacts a stream chunk by chunk; a secret that is cut across chunks never gets through.

    Lines are let out when they end (`\\n` or `\\r`); of an unfinished line at most `HOLD_BYTES` are held back.
    """

    def __init__(self) -> None:
        self._held = b""
        self._rest_of_secret: re.Pattern[bytes] | None = None  # while inside a value that is too long to hold

    def feed(self, data: bytes) -> bytes:
        """The bytes that may be let out now, redacted."""
        if self._rest_of_secret is not None:
            end = self._rest_of_secret.match(data).end()  # type: ignore[union-attr]  # it matches nothing as well
            self._rest_of_secret = self._rest_of_secret if end == len(data) else None
            data = data[end:]
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        ready, self._held = (self._held + data[:end], data[end:]) if end else (b"", self._held + data)
        return redact_bytes(ready) + (self._overflow() if len(self._held) > HOLD_BYTES else b"")

    def flush(self) -> bytes:
        """The rest, redacted; the stream has ended."""
        rest, self._held, self._rest_of_secret = self._held, b"", None
        return redact_bytes(rest)

    def _overflow(self) -> bytes:
        """Lets out the front of a line that is too long to hold, up to a place where no secret can be cut."""
        spans = _secrets(self._held)
        if spans and spans[-1][1] == len(self._held) and spans[-1][0] < len(self._held) - _MARGIN_BYTES:
            is_quoted = self._held[spans[-1][0] - 1 : spans[-1][0]] in (b'"', b"'")
            ready, self._held = self._held, b""
            self._rest_of_secret = _REST_OF_QUOTED if is_quoted else _REST_OF_BARE
            return redact_bytes(ready)
        cut = len(self._held) - _MARGIN_BYTES
        ended = 0
        for start, end in spans:
            if start - _MARGIN_BYTES < cut < end:
                cut = max(ended, start - _MARGIN_BYTES)
                break
            ended = end
        ready, self._held = self._held[:cut], self._held[cut:]
        return redact_bytes(ready)


def _secrets(data: bytes) -> list[_Span]:
    """Where the secrets are, in order, none overlapping another."""
    lowered = data.lower()
    found = [span for literal, find in _ROWS for span in _found_by(literal, find, data, lowered)]
    merged: list[_Span] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:  # two masks side by side would be one the next time
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _found_by(
    literal: re.Pattern[bytes], find: Callable[[bytes, int], _Span | None], data: bytes, lowered: bytes
) -> list[_Span]:
    """One row's secrets.

    A name well inside a value without quotes leads to the end of that same value: it is passed over, or each of
    `token=token=token=…` would read all that follows.
    """
    found: list[_Span] = []
    passed_to = 0
    for hit in literal.finditer(lowered):
        if hit.start() < passed_to:
            continue
        span = find(data, hit.start())
        if span is not None:
            found.append(span)
            if data[span[0] - 1 : span[0]] not in (b'"', b"'"):
                passed_to = span[1] - _LONGEST_NAME_BYTES
    return found


# --- decoding, terminals, lines

LINE_CHARS = 300
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# ECMA-48: a CSI sequence with its parameters, an OSC string with or without its end, any other two characters
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text that begins so: by its byte order mark, else UTF-8, UTF-16 or cp932.

    PowerShell writes UTF-16, Japanese Windows cp932. UTF-8 that is cut within a character or damaged stays UTF-8.
    """
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return encoding
    sample = start[:4096]
    if sample.count(0) * 3 > len(sample) and sample.strip(b"\0"):
        return "utf-16-be" if sample[::2].count(0) > sample[1::2].count(0) else "utf-16-le"
    text = start.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if damaged == 0 or sum(character > "\x7f" for character in text) > 2 * damaged:
        return "utf-8"
    try:
        codecs.getincrementaldecoder("cp932")().decode(start)  # which takes a last character that is cut
    except UnicodeDecodeError:
        return "utf-8"
    return "cp932"


def without_ansi(text: str) -> str:
    """Return the text without a terminal's escape sequences (colours, cursor, titles, links)."""
    return _ANSI.sub("", text) if "\x1b" in text or "\x9b" in text else text


def printable(text: str) -> str:
    """Return the text without terminal codes, invisible and direction-changing characters, its lines ending in `\n`."""
    text = without_ansi(text).replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace("\u2028", "\n").replace("\u2029", "\n").replace("\x85", "\n")
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or " " <= character <= "~":
        return character
    category = unicodedata.category(character)
    if category in ("Cc", "Cf"):
        return ""
    return "\ufffd" if category == "Cs" else character


def one_line(text: object, limit: int = LINE_CHARS) -> str:
    """Return printable text in one line of at most `limit` characters, without secrets and runs of whitespace."""
    line = redact(" ".join(printable(str(text)[: 4 * limit]).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def make_printable(*streams: object) -> None:
    """Let these streams write Japanese: UTF-8 instead of ASCII, else a mark for what their encoding can't spell.

    Under `LC_ALL=C` Python itself does so unless it is told not to, and pytest would write escapes, of line ends too.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            if codecs.lookup(stream.encoding).name == "ascii":
                stream.reconfigure(encoding="utf-8", errors="replace")
            elif stream.errors == "strict":
                stream.reconfigure(errors="replace")
