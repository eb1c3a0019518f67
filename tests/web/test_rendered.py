"""HTML is made once for each text, and not kept for ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from prefloop.web import rendered
from prefloop.web.rendered import Rendered


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were rendered, in order."""
    texts: list[str] = []

    def render(text: str) -> str:
        texts.append(text)
        return f"<p>{text}</p>"

    monkeypatch.setattr(rendered, "render_markdown", render)
    return texts


def test_the_same_text_is_rendered_once(made: list[str]) -> None:
    html = Rendered()
    assert [html("a"), html("b"), html("a")] == ["<p>a</p>", "<p>b</p>", "<p>a</p>"]
    assert made == ["a", "b"]


def test_what_was_not_asked_for_longest_goes_first(made: list[str]) -> None:
    html = Rendered(most_characters=3 * len("<p>0</p>"))
    for text in "0120310":
        assert html(text) == f"<p>{text}</p>"
    assert made == ["0", "1", "2", "3", "1"]
    assert html.characters == 3 * len("<p>0</p>")
    assert html("x" * 100) == f"<p>{'x' * 100}</p>"  # too long to keep, and still rendered
    assert html.characters == 0


def test_many_at_once(made: list[str]) -> None:
    html = Rendered(most_characters=200)
    with ThreadPoolExecutor(8) as pool:
        texts = [str(number % 30) for number in range(2000)]
        assert list(pool.map(html, texts)) == [f"<p>{text}</p>" for text in texts]
    assert 0 < html.characters <= 200


def test_half_of_a_pair_is_no_fault_of_the_cache(made: list[str]) -> None:
    assert Rendered()("\ud800") == "<p>\ud800</p>"
