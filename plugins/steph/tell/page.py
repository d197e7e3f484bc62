"""What is to be sent: the report as one page of HTML, and a mask for what tells who and where.

The page has its pictures inside, no script and no request. Pure: the Markdown of the report and its pictures in, a page
out. Of HTML in the Markdown only the report's own tags are markup; everything else is shown as the text that it is.

The mask covers names of users and hosts, home folders, and the secrets that `redact` knows. A home folder becomes `~`,
so that a command can still be pasted; a name becomes `***`.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from steph.base.messages import LANGUAGES, catalog, language, text
from steph.base.text import redact

GENERATOR = '<meta name="generator" content="StepH">'  # by which a page is known as one that may be replaced
_OWN_TAG = r"</?(?:details|summary|code)>|<details open>|<br ?/?>"
_TAGS = re.compile(rf"(<!--.*?-->|{_OWN_TAG})", re.S)


def as_page(title: str, markdown: str, pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are SVG texts by the path that the Markdown has for them, others are left out."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    mask = mask_for(markdown)
    environment = Environment(loader=PackageLoader("steph.tell"), autoescape=True, trim_blocks=True)
    shown = {}
    for name, svg in pictures.items():
        plain = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
        masked = re.sub(r"(?<=>)[^<>]+(?=<)", lambda words: mask(words[0]), plain)
        shown[name] = f"data:image/svg+xml;base64,{b64encode(masked.encode('utf-8', 'replace')).decode()}"
    body = _renderer(mask, shown).render(markdown)
    return environment.get_template("page.html.j2").render(
        body=Markup(body),  # noqa: S704 - every text in it was escaped by the renderer
        generator=Markup(GENERATOR),  # noqa: S704
        language=language(),
        title=mask(title),
        clean=text("html.clean"),
    )


def _renderer(mask: Callable[[str], str], pictures: Mapping[str, str]) -> MarkdownIt:
    """The renderer of the report's dialect, every text masked before it becomes HTML."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")

    def masked(state: StateCore) -> None:
        for token in _texts(state.tokens):
            token.content = mask(token.content)
            token.info = mask(token.info)  # the first word of a fence's is its class
            for name in ("href", "title"):
                if name in token.attrs:
                    token.attrs[name] = mask(str(token.attrs[name]))

    def html(_: RendererProtocol, tokens: Sequence[Token], at: int, *__: Any) -> str:  # noqa: ANN401 - as markdown-it has it
        shown = []
        for n, part in enumerate(_TAGS.split(tokens[at].content)):
            if n % 2:
                shown.append("" if part.startswith("<!--") else part)
            elif tokens[at].type == "html_block":  # what stands between tags is Markdown, too
                shown.append(renderer.renderInline(part))
            else:
                shown.append(escape(mask(part)))
        return "".join(shown)

    def image(_: RendererProtocol, tokens: Sequence[Token], at: int, *__: Any) -> str:  # noqa: ANN401
        picture = pictures.get(str(tokens[at].attrs["src"]))
        shown = escape("".join(token.content for token in tokens[at].children or ()))
        return shown if picture is None else f'<span class="scroll"><img src="{picture}" alt="{shown}"></span>'

    renderer.core.ruler.push("mask", masked)
    for name, rule in {
        "html_block": html,
        "html_inline": html,
        "image": image,
        "table_open": lambda *_: '<div class="scroll" tabindex="0"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }.items():
        renderer.add_render_rule(name, rule)
    return renderer


def _texts(tokens: Sequence[Token]) -> list[Token]:
    """Every token at any depth whose content is shown, but for HTML, which is masked when it is taken apart."""
    inner = [found for token in tokens for found in _texts(token.children or ())]
    return inner + [token for token in tokens if token.type not in ("html_block", "html_inline", "inline", "image")]


NAME_MASK = "***"
_SEPARATOR = r"(?:\\?/|\\{1,4}|%2F|%5C)"  # of a path, also in JSON and in an address
_NAME = r"""((?:[^\\/\s"'`<>:,;()|%&]|%(?!2F|5C)[0-9A-F]{2})+)"""
# below any folders of a path (/nfs/home/NAME, \\wsl$\Ubuntu\home\NAME); /home of a site's address is none
_HOME = re.compile(
    rf"(?:(?<![\w./\\%])|(?<=file://)|(?<=file:///)|(?<![\w./\\])(?=%2F|%5C))(?:[a-z](?::|%3A))?"
    rf"(?:\\\\)?(?:{_SEPARATOR}[\w$.-]{{1,40}}){{0,4}}?{_SEPARATOR}(?:home|Users){_SEPARATOR}{_NAME}",
    re.I,
)
_ROOT_HOME = re.compile(r"(?<![\w./\\-])/root(?![\w.-])")
_WHO = r"(?<![\w.+-])[\w.+-]{1,64}@[\w.-]{1,253}"
_PROMPT = re.compile(rf"{_WHO}(?=:[~/])|(?<=\[){_WHO}(?= [~/\w.-]{{1,99}}\][$#])")  # of a shell: user@host:~/folder$
_REMOTE = re.compile(rf"(?<=\bssh ){_WHO}|(?<=://)(?!git@)[\w.%+-]{{1,64}}@(?=[\w.-])")
_ADDRESS = re.compile(r"(?<![\w.+-])(?!git@)[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,6}[a-z]{2,63}\b(?!@)", re.I)
_VARIABLE = re.compile(r"\b((?:SUDO_USER|USER|LOGNAME|USERNAME|HOSTNAME|COMPUTERNAME|SLURMD_NODENAME)=)([\w.-]+)")
# accounts and hosts of images, runners and handbooks: they tell nobody, and are words of any log
_SHARED_NAMES = frozenset(
    (
        *("root", "user", "users", "home", "nobody", "default", "guest", "public", "shared", "admin", "administrator"),
        *("app", "docker", "ubuntu", "debian", "ec2-user", "runner", "jovyan", "vscode", "localhost"),
    )
)
_LEAST_CHARACTERS = 3  # a shorter name is part of any text


def mask_for(whole: str) -> Callable[[str], str]:
    """The function that masks a text; names of other users are taken from the home folders in `whole`.

    A name that is also a word of the suite (`max`, `gpu`) is masked where it stands as a name of user, host or folder.
    """
    own = {name for name in _own_names() if name.lower() not in _SHARED_NAMES}
    found = {*_HOME.findall(whole), *(value for _, value in _VARIABLE.findall(whole))}
    theirs = {name for name in found if name.lower() not in _SHARED_NAMES and not _is_common(name)}
    theirs |= _hosts(whole, own | theirs)
    names = sorted(own | theirs | {unquote(name) for name in theirs}, key=len, reverse=True)
    patterns = [re.compile(_whole(name), re.I) for name in names]
    own_home = _own_home()
    spellings = {own_home, quote(own_home), quote(own_home, safe=""), own_home.replace("/", r"\/")} - {""}
    homes = [re.compile(rf"(?<![\w.]){re.escape(one)}(?![\w.-])", re.I) for one in spellings]

    def masked(text: str) -> str:
        text = redact(text)
        for home in homes:
            text = home.sub("~", text)
        text = _ROOT_HOME.sub("~", _HOME.sub("~", text))
        text = _PROMPT.sub(f"{NAME_MASK}@{NAME_MASK}", text)
        text = _REMOTE.sub(lambda found: f"{NAME_MASK}@{NAME_MASK if found[0][-1] != '@' else ''}", text)
        text = _ADDRESS.sub(f"{NAME_MASK}@{NAME_MASK}", text)
        text = _VARIABLE.sub(
            lambda found: found[0] if found[2].lower() in _SHARED_NAMES else found[1] + NAME_MASK, text
        )
        for pattern in patterns:
            text = pattern.sub(NAME_MASK, text)
        return text

    return masked


def _hosts(whole: str, users: Iterable[str]) -> set[str]:
    """The hosts that stand behind a shell's prompt or behind a known user's name, with and without their domain."""
    known = "|".join(map(re.escape, sorted(users, key=len, reverse=True)))
    told = {found.partition("@")[2] for found in _PROMPT.findall(whole)}
    if known:
        told |= set(re.findall(rf"(?<![\w.-])(?:{known})@([\w-]{{1,64}}(?:\.[\w-]{{1,64}}){{0,6}})", whole, re.I))
    hosts = {name for host in told for name in (host, host.partition(".")[0])}
    return {host for host in hosts if host.lower() not in _SHARED_NAMES and not _is_common(host)}


def _is_common(name: str) -> bool:
    return len(name) < _LEAST_CHARACTERS or name.lower() in _suite_words()


def _whole(name: str) -> str:
    """Where a name stands alone; of one that is a common word, where what is beside it says that it is a name."""
    if not _is_common(name):
        return rf"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-F][0-9A-F])){re.escape(name)}(?![A-Za-z0-9])"
    said = r"(?<=[/\\@])|(?<=user )|(?<=user=)|(?<=users )|(?<=host )|(?<=host=)|(?<=node )|(?<=by )"
    return rf"(?:{said}){re.escape(name)}(?![A-Za-z0-9_-])|(?<![\w-]){re.escape(name)}(?=@[\w-])"


@functools.cache
def _suite_words() -> frozenset[str]:
    words = " ".join(" ".join(catalog(language).values()) for language in LANGUAGES)
    return frozenset(re.findall("[a-z0-9]+", words.lower()))


def _own_names() -> Iterator[str]:
    """Who runs this, and on which host, with and without its domain; nothing where the system does not say."""
    with contextlib.suppress(OSError, KeyError):  # a user id without a name; OSError since Python 3.13
        yield getpass.getuser()
    if host := socket.gethostname():
        yield host
        yield host.partition(".")[0]
    if home := _own_home():
        yield Path(home).name


def _own_home() -> str:
    """The home folder, empty where there is none or it is the root of the disk."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return ""
    return home if len(home) > 1 else ""
