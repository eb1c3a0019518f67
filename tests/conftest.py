"""Settings that every test runs under: one thread, no network, annotations checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports transformers: a test that asks the hub for a model fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from tests.databases import Server, running_server

from prefloop.feedback.store import Store

if TYPE_CHECKING:
    from tests.commands import Call

# Shapes are checked on every call, under pytest only; an int is good enough where a float is asked for.
install_import_hook(
    ["prefloop.algorithms", "prefloop.rollout"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# The same examples on every run, however slow the machine is.
settings.register_profile("prefloop", deadline=None, derandomize=True)
settings.load_profile("prefloop")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with today's tables; copied, which is quicker than the migrations."""
    path = tmp_path_factory.mktemp("template") / "feedback.db"
    Store.open(path).close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | Path]:
    """Where an empty store is: a test that asks for it runs on both kinds of database."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("empty_sqlite")
        yield Path(shutil.copy(template, tmp_path / "feedback.db"))
        return
    server: Server = request.getfixturevalue("postgres")
    with server.lend() as url:
        yield url


@pytest.fixture
def store(place: str | Path) -> Iterator[Store]:
    """An empty store, on both kinds of database."""
    with Store.open(place) as store:
        yield store


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a recipe and its finished run. Look, but do not touch: see ``project``."""
    from tests.runs import STAGES, run, tiny

    from prefloop.recipes import dump_recipe

    folder = tmp_path_factory.mktemp("finished")
    (folder / "prefloop.toml").write_text(dump_recipe(tiny()), encoding="utf-8")
    recorder = run(tiny(), folder)
    assert tuple(recorder.ran) == tuple(recorder.done) == STAGES
    assert recorder.kept == []
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to change."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs ``prefloop ARGUMENTS`` in an empty folder."""
    from tests.commands import caller

    monkeypatch.chdir(tmp_path)
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of these sizes are slower on many threads, and their sums differ from machine to machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def float32() -> Iterator[None]:
    """Formulas are compared to float32's rounding; what bfloat16 makes of them has tests of its own."""
    from prefloop.models.precision import computing_in

    with computing_in("float32"):
        yield
