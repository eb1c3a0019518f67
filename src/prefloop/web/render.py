"""Model text → HTML that is safe to show. The text is hostile: a policy writes whatever its reward pays for.

Three layers, each enough by itself against scripts: raw HTML in the text is shown as text, never interpreted
(markdown-it with ``html=False``); what comes out keeps a short list of tags and no attribute that names, styles or
points anywhere (nh3); the server's Content-Security-Policy runs no inline script and loads nothing from outside.

Nothing navigates and nothing is loaded: links and images become their text and address. Control characters that
reorder or hide text become visible marks. Text that Markdown would take too long over is shown as it is. What
Markdown itself leaves out (a link's title, an unused reference) is in the page's plain view.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

MARKDOWN_LIMIT = 40_000
"""Characters. Beyond it text is shown plain: Markdown's worst cases take time with the square of the length."""
NESTING = 20
"""Levels of lists and quotes in each other. Text that nests deeper is shown plain: the parser would drop it."""
FIRST_HEADING = 3
"""The page has h1 for the task and h2 for each answer; headings inside an answer come below."""

CONTROLS = (
    "\u0001-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f"  # C0 and C1 controls but tab and line ends
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of direction
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f"  # without a width
    "\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"  # and blank letters, tags
)
"""Inside a character class. The joiners (200C, 200D) and the emoji's variants (FE0E, FE0F) stay: Persian, Hindi and
emoji need them. static/text.js has the same list for the plain view."""
_CONTROL_RUN = re.compile(f"([{CONTROLS}])\\1*")

TAGS = frozenset(
    {"p", "br", "hr", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s"}
    | {"div", "table", "thead", "tbody", "tr", "th", "td", "span"}
)
_cleaner = nh3.Cleaner(
    tags=set(TAGS),
    attributes={"ol": {"start"}},
    allowed_classes={"span": {"address", "image"}, "div": {"table"}, "p": {"plain", "empty"}},
    url_schemes=set(),
    link_rel=None,
)


def render_markdown(text: str) -> str:
    """Sanitised HTML of a Markdown ``text``; plain paragraphs where it is too long or nests too deep."""
    if not text.strip():
        return '<p class="empty">empty</p>'
    text = text.replace("\0", "\ufffd")  # a parser of HTML may drop it
    made = _markdown_html(text) if len(text) <= MARKDOWN_LIMIT else None
    return _marked(_cleaner.clean(made if made is not None else f'<p class="plain">{escape(text)}</p>'))


def _markdown_html(text: str) -> str | None:
    """None where the text nests deeper than the parser goes."""
    tokens = _parser.parse(text)
    if any(token.level >= NESTING - 1 for token in tokens):
        return None
    _fit_headings(tokens)
    for token in tokens:
        token.info = ""  # the language of a code block
        if token.children:
            token.children = list(_without_links(token.children))
    return str(_parser.renderer.render(tokens, _parser.options, {}))


def _fit_headings(tokens: Sequence[Token]) -> None:
    """Below the page's own headings and without a gap: a screen reader's list of headings stays true."""
    level = FIRST_HEADING - 1
    for opening, closing in zip(tokens, tokens[2:], strict=False):
        if opening.type == "heading_open":
            level = min(int(opening.tag[1]) + FIRST_HEADING - 1, level + 1, 6)
            opening.tag = closing.tag = f"h{level}"


def _without_links(tokens: Sequence[Token]) -> Iterator[Token]:
    """Links → their text, then the address; images → their description and address."""
    address, written = "", ""
    for token in tokens:
        if token.type == "link_open":
            address, written = str(token.attrs.get("href", "")), token.info
        elif token.type == "link_close":
            if written != "auto":  # <https://…> shows its address already
                yield from _address(address)
        elif token.type == "image":
            yield from _span("image", f"image: {token.content}")
            yield from _address(str(token.attrs.get("src", "")))
        else:
            yield token


def _address(address: str) -> Iterator[Token]:
    yield Token("text", "", 0, content=" ")
    yield from _span("address", f"({address})")


def _span(name: str, content: str) -> Iterator[Token]:
    yield Token("span_open", "span", 1, attrs={"class": name})
    yield Token("text", "", 0, content=content)
    yield Token("span_close", "span", -1)


def _marked(html: str) -> str:
    """Visible marks for control characters. After the sanitiser, so only text can hold any: no attribute is free."""
    return _CONTROL_RUN.sub(lambda run: f'<span class="control">{control_name(run[0])}</span>', html)


def control_name(run: str) -> str:
    """U+202E, or U+202E ×3 for a run of the same character."""
    return f"U+{ord(run[0]):04X}" + (f" ×{len(run)}" if len(run) > 1 else "")


def _make_parser() -> MarkdownIt:
    # Line breaks are kept: poems, addresses and lists without marks come out as the model wrote them.
    options = {"html": False, "breaks": True, "maxNesting": NESTING}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


_parser = _make_parser()
