"""The report as one page of HTML to send: pictures inside, no script, no request, nothing that tells who or where.

Pure: the Markdown of the report and its pictures in, a page out. Of HTML in the Markdown only the report's own tags are
markup; everything else is shown as the text that it is.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from steph.base.messages import language, text
from steph.base.privacy import mask_for

GENERATOR = '<meta name="generator" content="StepH">'  # by which a page is known as one that may be replaced
_OWN_TAG = r"</?(?:details|summary|code)>|<details open>|<br ?/?>"
_TAGS = re.compile(rf"(<!--.*?-->|{_OWN_TAG})", re.S)


def as_page(title: str, markdown: str, pictures: Mapping[str, str]) -> str:
    """Give the page; `pictures` are SVG texts by the path that the Markdown has for them, others are left out."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    mask = mask_for(markdown)
    environment = Environment(loader=PackageLoader("steph.tell"), autoescape=True, trim_blocks=True)
    body = _renderer(mask, {name: _data_uri(svg, mask) for name, svg in pictures.items()}).render(markdown)
    return environment.get_template("page.html.j2").render(
        body=Markup(body),  # noqa: S704 - every text in it was escaped by the renderer
        generator=Markup(GENERATOR),  # noqa: S704
        language=language(),
        title=mask(title),
        clean=text("html.clean"),
    )


def _data_uri(svg: str, mask: Callable[[str], str]) -> str:
    without_comments = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    shown = re.sub(r"(?<=>)[^<>]+(?=<)", lambda words: mask(words[0]), without_comments)
    return f"data:image/svg+xml;base64,{b64encode(shown.encode('utf-8', 'replace')).decode()}"


def _renderer(mask: Callable[[str], str], pictures: Mapping[str, str]) -> MarkdownIt:
    """Give the renderer of the report's dialect, every text masked before it becomes HTML."""
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
