"""Records: identifiers follow from content, and a judgement that makes no sense cannot be made."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.feedback.records import Completion, Judgement, Message, Prompt, content_id, content_id_of, dense_ranks

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def judgement(**fields: Any) -> Judgement:
    base: dict[str, Any] = {
        "id": "j",
        "prompt_id": "p",
        "annotator": "ann",
        "source": "human",
        "shown": ("a", "b"),
        "ranks": (1, 2),
        "created": NOON,
    }
    return Judgement(**{**base, **fields})


def test_an_id_follows_from_content_and_nothing_else() -> None:
    one = Prompt.of("Hi", split="train", metadata={"topic": "x"})
    assert one.id == Prompt.of("Hi").id
    assert one.id != Prompt.of("Hi ").id
    assert one.id != Prompt(messages=(Message(role="system", content="Hi"),)).id
    # Written down: an id that changes between versions would orphan every stored judgement.
    assert content_id("prompt", [["user", "Hi"]]) == one.id == "9fb1410b7ad5e76fc2f88db21eef0b8f"


def test_the_origin_tells_equal_texts_apart() -> None:
    assert Completion(prompt_id="p", text="t", origin="a").id != Completion(prompt_id="p", text="t", origin="b").id


def test_an_id_of_other_content_is_refused() -> None:
    with pytest.raises(ValueError, match="does not belong to this content"):
        Prompt(messages=(Message(role="user", content="Hi"),), id="0" * 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shown": ("a",), "ranks": (1,)}, "at least two"),
        ({"shown": ("a", "a")}, "each completion once"),
        ({"ranks": (1, 2, 3)}, "2 completions shown but 3 ranks"),
        ({"ranks": (1, 3)}, "dense from 1"),
        ({"ranks": (2, 2)}, "dense from 1"),
        ({"strength": 5}, "1 to 4"),
        ({"retracted": True}, "names the judgement that it undoes"),
        ({"created": datetime(2026, 1, 1)}, "time zone"),
        ({"id": ""}, "needs an id"),
        ({"rank": (1, 2)}, "Extra inputs"),
    ],
)
def test_a_senseless_judgement_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judgement(**fields)


def test_a_prompt_waits_for_an_answer() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        Prompt(messages=())
    with pytest.raises(ValueError, match="must end with"):
        Prompt(messages=(Message(role="assistant", content="I am done"),))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
def test_dense_ranks_agree_with_counting(values: list[int]) -> None:
    ranks = dense_ranks(values)
    assert ranks == tuple(1 + len({other for other in values if other > value}) for value in values)
    judgement(shown=tuple(str(i) for i in range(len(values))), ranks=ranks)


@given(st.lists(st.lists(st.text() | st.tuples(st.text(), st.text()) | st.integers(), max_size=4), max_size=4))
def test_long_parts_have_the_id_of_their_lists(parts: list[list[Any]]) -> None:
    assert content_id_of(*map(iter, parts)) == content_id(*parts)
    assert content_id_of(iter(["\ud83d", "\ude00"])) == content_id(["\ud83d", "\ude00"])
