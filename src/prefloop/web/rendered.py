"""Markdown once made into safe HTML is kept for the next one who is shown it, in bounded memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from .render import render_markdown

MOST_CHARACTERS = 32 << 20


class Rendered:
    """HTML by the hash of the text it was made from; what was not asked for longest goes first."""

    def __init__(self, most_characters: int = MOST_CHARACTERS) -> None:
        self._most = most_characters
        self._kept = 0
        self._lock = threading.Lock()
        self._pages: OrderedDict[bytes, str] = OrderedDict()

    def __call__(self, text: str) -> str:
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            if (html := self._pages.get(key)) is not None:
                self._pages.move_to_end(key)
                return html
        html = render_markdown(text)  # without the lock: it may take a while
        with self._lock:
            if key not in self._pages:
                self._pages[key] = html
                self._kept += len(html)
            while self._kept > self._most:
                self._kept -= len(self._pages.popitem(last=False)[1])
        return html

    @property
    def characters(self) -> int:
        return self._kept
