"""A store for what is read and written, which does not depend on the kind of database."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefloop.feedback.store import Store


@pytest.fixture
def store(empty_sqlite: Path, tmp_path: Path) -> Iterator[Store]:
    with Store.open(shutil.copy(empty_sqlite, tmp_path / "feedback.db")) as store:
        yield store
