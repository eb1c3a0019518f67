"""The run folder: stages written whole or not at all, and what was written from what.

See docs/run-folder.md for the files. A stage is written into ``.NAME.partial`` and renamed into its place, so a
run that is cut off at any moment leaves whole stages only.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@dataclass
class StageWriter:
    """A stage that is being written."""

    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)
    """What the stage adds to its manifest."""


class RunFolder:
    """``runs/NAME``: which stages are there, and the writing of new ones."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing the same run."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another prefloop is writing {self.path}. Wait for it, or give this run another name"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """What is known about a finished stage; None when it is not there."""
        path = self.path / stage / "manifest.json"
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}. Delete {path.parent} to run the stage again") from None
        return content

    def is_current(self, stage: str, key: str) -> bool:
        """Whether the stage is there and was made from the same things."""
        manifest = self.manifest(stage)
        return manifest is not None and manifest["key"] == key

    @contextmanager
    def writing(self, stage: str, key: str, inputs: Mapping[str, str], seed: int) -> Iterator[StageWriter]:
        """A folder to write the stage into; it takes its place when the block ends without an error."""
        partial, place, old = self.path / f".{stage}.partial", self.path / stage, self.path / f".{stage}.old"
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        started, writer = time.perf_counter(), StageWriter(partial)
        yield writer
        manifest = {
            "stage": stage,
            "key": key,
            "inputs": dict(inputs),
            "outputs": {str(p.relative_to(partial)): file_hash(p) for p in _files(partial)},
            "versions": versions(),
            "seed": seed,
            "seconds": time.perf_counter() - started,
            "peak_memory_mb": peak_memory_mb(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **writer.extra,
        }
        write_json(partial / "manifest.json", manifest)
        if place.exists():
            place.rename(old)
        partial.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity, which JSON does not have, are refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a damaged one is a ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[Any]:
    """Read JSON lines."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def file_hash(path: Path) -> str:
    """128-bit hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def folder_hash(folder: Path) -> str:
    """48-bit hash of the content of a model folder, such as a completion's origin names."""
    names = "".join(f"{path.relative_to(folder)} {file_hash(path)}\n" for path in _files(folder))
    return hashlib.blake2b(names.encode(), digest_size=6).hexdigest()


def versions() -> dict[str, str]:
    """Of everything that may change a result."""
    packages = ("prefloop", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, MiB."""
    status = Path("/proc/self/status")
    # Linux's getrusage would count what the process held that started this one.
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
