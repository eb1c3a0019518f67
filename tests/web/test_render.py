"""What the pages are given to show: only what may be there, and all of the text."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.web.hostile import HOSTILE, HTML, MARKDOWN, NESTED, STRANGE

from prefloop.web.render import MARKDOWN_LIMIT, NESTING, TAGS, render_markdown

CLASSES = {"address", "image", "control", "table", "plain", "empty"}
VOID = {"br", "hr"}


class Allowed(HTMLParser):
    """Fails on any element, attribute or comment that is not on a list written down here, not in `render`."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attributes:
            assert (name == "class" and value in CLASSES) or (tag == "ol" and name == "start"), (tag, name, value)
            assert name != "start" or (value or "").isdigit()
        self.tags.add(tag)
        if tag[0] == "h" and tag[1:].isdigit():
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"comment {data!r}")

    handle_decl = handle_pi = unknown_decl = handle_comment


def read(html: str) -> Allowed:
    parser = Allowed()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("text", HOSTILE + NESTED, ids=lambda text: repr(text[:25]))
def test_nothing_but_the_allowed_comes_out(text: str) -> None:
    read(render_markdown(text))


def test_the_allowed_tags_do_nothing() -> None:
    harmful = {
        "a",
        "img",
        "script",
        "style",
        "svg",
        "math",
        "form",
        "input",
        "button",
        "iframe",
        "link",
        "meta",
        "base",
    }
    assert harmful.isdisjoint(TAGS)


@pytest.mark.parametrize("text", HTML, ids=lambda text: repr(text[:25]))
def test_raw_html_is_shown_as_it_was_written(text: str) -> None:
    if "&" not in text and "*" not in text:
        assert "".join(read(render_markdown(text)).text.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "text", [text for text in MARKDOWN if "evil.example" in text], ids=lambda text: repr(text[:25])
)
def test_addresses_are_there_to_read(text: str) -> None:
    assert "evil.example" in read(render_markdown(text)).text


def test_links_and_images_are_text_and_address() -> None:
    html = render_markdown('[see *this*](https://e.org/a "title") ![a cat](https://e.org/cat.png) <https://e.org/b>')
    assert html == (
        '<p>see <em>this</em> <span class="address">(https://e.org/a)</span> <span class="image">image: a cat</span> '
        '<span class="address">(https://e.org/cat.png)</span> https://e.org/b</p>\n'
    )


def test_markdown_is_rendered() -> None:
    text = "**b** _e_ ~~s~~ `c`\nnext\n\n* x\n\n3. y\n\n> q\n\n---\n\n|a|\n|-|\n|b|\n\n```py\n  code <b>\n```"
    parser = read(render_markdown(text))
    assert parser.tags >= {"strong", "em", "s", "code", "br", "ul", "ol", "li", "blockquote", "hr", "table", "pre"}
    assert "  code <b>\n" in parser.text
    assert 'start="3"' in render_markdown(text)


@pytest.mark.parametrize("text", STRANGE[:4])
def test_no_control_character_is_left(text: str) -> None:
    hidden = [
        c for c in read(render_markdown(text)).text if c != "\n" and not c.isprintable() and c not in "\u200c\u200d"
    ]
    assert hidden == []


def test_controls_become_marks() -> None:
    mark = '<span class="control">{}</span>'
    assert render_markdown("a\u202eb") == f"<p>a{mark.format('U+202E')}b</p>\n"
    assert render_markdown("\u200b" * 3) == f"<p>{mark.format('U+200B ×3')}</p>\n"
    assert render_markdown("\x07") == f"<p>{mark.format('U+0007')}</p>\n"
    assert "\0" not in render_markdown("x\0y")
    assert render_markdown("family 👨\u200d👩\u200d👧") == "<p>family 👨\u200d👩\u200d👧</p>\n"
    for hidden in "\u00ad\u034f\u115f\u180e\u2800\u3164\ufe00\U000e0101":
        assert mark.format(f"U+{ord(hidden):04X}") in render_markdown(f"a{hidden}b")


def test_headings_go_below_the_pages_own_and_skip_no_level() -> None:
    assert read(render_markdown("# a\n\n#### b\n\n## c\n\nd\n---\n\n###### e\n\n# f")).headings == [3, 4, 4, 4, 5, 3]
    assert read(render_markdown("##### a")).headings == [3]
    assert read(render_markdown("\n\n".join("#" * n + " x" for n in range(1, 7)))).headings == [3, 4, 5, 6, 6, 6]


def test_an_empty_answer_says_so() -> None:
    assert render_markdown("") == render_markdown(" \n ") == '<p class="empty">empty</p>'


def test_what_nests_too_deep_is_shown_plain_and_whole() -> None:
    for text in ["> " * (NESTING + 1) + "deep", "\n".join("  " * i + "* x" for i in range(NESTING))]:
        html = render_markdown(text)
        assert html.startswith('<p class="plain">')
        assert read(html).text == text
    assert "blockquote" in render_markdown("> > > shallow")


def test_what_is_too_long_for_markdown_is_shown_plain_and_whole() -> None:
    text = "**b** <i>\n" * (MARKDOWN_LIMIT // 10) + "&"
    assert (
        render_markdown(text)
        == f'<p class="plain">{text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}</p>'
    )
    assert "<strong>" in render_markdown(text[:MARKDOWN_LIMIT])


@pytest.mark.parametrize("text", NESTED, ids=lambda text: repr(text[:12]))
def test_no_text_takes_long(text: str) -> None:
    """A text with the square of its length would take minutes at these lengths."""
    start = time.process_time()
    render_markdown(text)
    assert time.process_time() - start < 3


@given(st.text(alphabet=st.sampled_from("<>&\"'`*_[]()!#|\\-\n\t \u202e\0ax:/"), max_size=60))
def test_any_text_is_safe(text: str) -> None:
    read(render_markdown(text))
