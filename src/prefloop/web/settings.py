"""Where the server is reached, who may come in by its key, and how much it takes."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

COOKIE = "prefloop_session"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """What `prefloop.web.app.make_app` needs to know.

    Raises ValueError when the origins are none, or are reached by different schemes.
    """

    origins: tuple[str, ...]
    """Where browsers reach the server (``http://127.0.0.1:8765``); the first is the one that links begin with.
    Requests for any other host, and changes asked for by pages of any other origin, are refused."""
    key: str = ""
    """Whoever has it is signed in as ``owner``; it lives as long as the server. Empty: nobody is."""
    owner: str = "owner"
    session_hours: float = 24 * 30
    sign_ins_per_minute: int = 30
    """From one address."""
    requests_per_second: int = 50
    """Of one person, after a burst of four times as many."""
    import_bytes: int = 4 << 30
    """Largest file that may be imported."""

    def __post_init__(self) -> None:
        if {urlsplit(origin).scheme for origin in self.origins} not in ({"http"}, {"https"}):
            raise ValueError(f"origins all begin with http:// or all with https://; got {list(self.origins)}")
        for origin in self.origins:
            if origin != origin_of(origin):
                raise ValueError(f"{origin!r} is not an origin; expected {origin_of(origin)!r}")

    @property
    def secure(self) -> bool:
        """Whether browsers come over TLS."""
        return self.origins[0].startswith("https://")

    @property
    def cookie(self) -> str:
        """The session cookie's name. With ``__Host-`` no other host of the domain can set it.

        Without TLS it has the port, which cookies do not know: two servers of one machine are two.
        """
        return f"__Host-{COOKIE}" if self.secure else f"{COOKIE}_{urlsplit(self.origins[0]).port or 80}"


def origin_of(url: str) -> str:
    """The origin of an address as a browser writes it: lower case, no path, no port that goes without saying.

    Raises ValueError for what is not the address of a site.
    """
    expected = f"expected something like https://label.example.org; got {url!r:.200}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not a public address ({error}); {expected}") from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise ValueError(f"not a public address; {expected}")
    if parts.path not in ("", "/"):
        raise ValueError(f"the pages must be at the top of their host, not below {parts.path!r}; {expected}")
    if not host.isascii():
        host = host.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, usual) else "")


def loopback_origins(host: str, port: int) -> tuple[str, ...]:
    """The origins of a server that this machine alone can reach; the first is ``host``'s."""
    names = dict.fromkeys([host, *(("127.0.0.1", "localhost") if host != "::1" else ("localhost",))])
    return tuple(origin_of(f"http://{f'[{name}]' if ':' in name else name}:{port}") for name in names)
