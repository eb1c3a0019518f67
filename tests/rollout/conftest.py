from __future__ import annotations

from typing import Any

import pytest
from tests.rollout.slow import frequent_eos
from tests.toys import MODELS

from prefloop.rollout.decoder import Decoder


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return frequent_eos(MODELS[request.param](16))


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of the cache after each time that rows entered."""
    seen, enter = [], Decoder.enter

    def watched(decoder: Decoder, *given: Any) -> None:
        enter(decoder, *given)
        seen.append((len(decoder.states), decoder._width))

    monkeypatch.setattr(Decoder, "enter", watched)
    return seen
