"""Where the server says that it is reached."""

from __future__ import annotations

import pytest

from prefloop.web.settings import Settings, loopback_origins, origin_of


def test_origins() -> None:
    assert loopback_origins("127.0.0.1", 80) == ("http://127.0.0.1", "http://localhost")
    assert loopback_origins("::1", 8765) == ("http://[::1]:8765", "http://localhost:8765")
    assert loopback_origins("localhost", 1)[0] == "http://localhost:1"
    assert origin_of("HTTPS://Label.Example.org:443/") == "https://label.example.org"
    assert origin_of("http://[::1]:80") == "http://[::1]"
    assert origin_of("https://bücher.example") == "https://xn--bcher-kva.example"
    for wrong in (
        "label.example.org",
        "ftp://x.org",
        "https://",
        "https://x.org/sub",
        "https://u@x.org",
        "http://x:99999",
    ):
        with pytest.raises(ValueError, match=r"expected something like https://label\.example\.org"):
            origin_of(wrong)
    for origins in ((), ("http://a", "https://b")):
        with pytest.raises(ValueError, match="all begin with"):
            Settings(origins)
    with pytest.raises(ValueError, match=r"expected 'https://a\.org'"):
        Settings(("https://A.org/",))
