"""`prefloop label`: the server of one project, for one person at this machine or for a team."""

from __future__ import annotations

import atexit
import errno
import ipaddress
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

import uvicorn

from prefloop.feedback.people import People, user_name
from prefloop.feedback.store import Store

from .app import make_app
from .settings import Settings, loopback_origins, origin_of

MOST_CONNECTIONS = 1000
GRACE_SECONDS = 10
"""How long requests that are under way may take when the server is stopped."""


class LabelServer:
    """A server that listens from the start and answers as soon as `run` is called.

    ``host`` other than this machine's own needs ``url``, the address that people's browsers use: it is the one host
    and the one origin that the server answers to. ``port`` 0 takes a free one.

    Raises ValueError for an address that cannot be listened on, or when ``url`` is missing.
    """

    def __init__(self, store: Store, host: str = "127.0.0.1", port: int = 8765, url: str = "") -> None:
        if not url and not _is_loopback(host):
            raise ValueError(
                f"--host {host} lets other machines in: say with --url at which address their browsers reach this "
                "server, for example --url https://label.example.org"
            )
        public = origin_of(url) if url else ""
        self.socket = listen(host, port)
        origins = (public,) if public else loopback_origins(host, self.socket.getsockname()[1])
        self.settings = Settings(origins, key=secrets.token_urlsafe(32), owner=_reserved(store, user_name()))
        self.app = make_app(store, self.settings)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="off",
                # Whose address counts for the limits: a proxy on this machine says; nobody else is believed.
                proxy_headers=bool(public),
                forwarded_allow_ips="127.0.0.1",
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    @property
    def link(self) -> str:
        """Signs whoever opens it in as the owner, as long as the server runs. What follows the ``#`` is not sent."""
        return f"{self.settings.origins[0]}/#key={self.settings.key}"

    def run(self) -> None:
        """Answer until Ctrl-C (KeyboardInterrupt) or `stop`; what is under way then is finished."""
        self._server.run(sockets=[self.socket])

    def stop(self) -> None:
        """From another thread: let `run` return."""
        self._server.should_exit = True


@contextmanager
def serving(folder: Path, port: int = 8765) -> Iterator[str]:
    """A server of the project in ``folder``, in a thread of its own; the link that signs its owner in.

    Where the port is taken, by `prefloop label` perhaps, it listens on another.
    """
    with Store.of_project(folder) as store:
        try:
            server = LabelServer(store, port=port)
        except ValueError:
            server = LabelServer(store, port=0)
        thread = threading.Thread(target=server.run, name="prefloop label", daemon=True)
        thread.start()
        try:
            yield server.link
        finally:
            server.stop()
            thread.join()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; ValueError says why there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio would not switch off Nagle's algorithm: every answer would be 40 ms late.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name != "nt":  # there it would let two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} is in use, perhaps by another `prefloop label`; stop that one, or choose another port "
                f"with --port {port + 1 if port < 65535 else port - 1}"
            ) from None
        if error.errno == errno.EACCES:
            raise ValueError(f"port {port} is not for everybody to use; choose one from 1024 with --port") from None
        raise ValueError(f"cannot listen on --host {host}: {error.strerror or error}") from None
    return made


def open_browser(link: str) -> None:
    """Show the page, where there is a screen to show it on.

    Everybody on this machine can read what a program was started with, so the browser is given a file that only its
    owner can read, and that leads to the link.
    """
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        folder = Path(tempfile.mkdtemp(prefix="prefloop-"))  # nobody else may look into it
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        page = folder / "label.html"
        page.write_text(f'<meta http-equiv="refresh" content="0; url={escape(link)}">', encoding="utf-8")
        threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()


def _reserved(store: Store, name: str) -> str:
    """The administrator of that name, there from the start: nobody who is invited can take it."""
    people = People(store)
    with suppress(ValueError):  # it looks like somebody else's
        if people.ensure(name, "admin").role == "admin":
            return name
    return people.ensure(f"{name}-admin", "admin").name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
