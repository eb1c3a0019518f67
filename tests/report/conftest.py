"""A run's report, to look at; and a copy of the run to change."""

import shutil
from pathlib import Path

import pytest
from tests.report.fixture import write_demo

from prefloop.report import write_report


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Look, but do not touch: see ``copy``."""
    run = write_demo(tmp_path_factory.mktemp("runs") / "demo")
    write_report(run)
    return run


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo, tmp_path / "demo"))
