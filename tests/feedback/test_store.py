"""The store: what goes in comes out, nothing else goes in, and nothing that was said is ever changed."""

import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.databases import Server
from tests.feedback.threads import in_threads

from prefloop.feedback.records import Completion, Demonstration, Judgement, Message, Prompt, dense_ranks
from prefloop.feedback.store import AnyRecord, Counts, Store

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PROMPT = Prompt.of("Why is the sky blue?")
ANSWERS = tuple(Completion(prompt_id=PROMPT.id, text=text, origin="test") for text in ("Air.", "Sea.", ""))


def judgement(id: str, **fields: Any) -> Judgement:
    base: dict[str, Any] = {
        "id": id,
        "prompt_id": PROMPT.id,
        "annotator": "ann",
        "source": "human",
        "shown": (ANSWERS[0].id, ANSWERS[1].id),
        "ranks": (1, 2),
        "created": NOON,
    }
    return Judgement(**{**base, **fields})


@pytest.fixture
def store(store: Store) -> Store:
    store.add([PROMPT, *ANSWERS])
    return store


def ids(store: Store, **how: Any) -> list[str]:
    return [judgement.id for judgement in store.judgements(**how)]


# What goes in comes out

TEXT = st.text(max_size=20)
METADATA = st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | TEXT | st.lists(st.booleans()), max_size=2)


@st.composite
def record_sets(draw: st.DrawFn) -> list[AnyRecord]:
    messages = draw(st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXT), min_size=1))
    prompt = Prompt(
        messages=tuple(messages),
        split=draw(st.sampled_from([None, "train", "heldout"])),
        metadata=draw(METADATA),
    )
    texts = draw(st.lists(TEXT, min_size=2, max_size=5, unique=True))
    answers = [Completion(prompt_id=prompt.id, text=t, origin=draw(TEXT), metadata=draw(METADATA)) for t in texts]
    values = draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    return [
        prompt,
        *answers,
        Demonstration(prompt_id=prompt.id, text=draw(TEXT), origin=draw(TEXT)),
        Judgement(
            id=draw(st.text(min_size=1, max_size=9)),
            prompt_id=prompt.id,
            annotator=draw(TEXT),
            source="ai",
            shown=tuple(answer.id for answer in draw(st.permutations(answers))),
            ranks=dense_ranks(values),
            strength=draw(st.none() | st.integers(1, 4)),
            criterion=draw(TEXT),
            flags=tuple(draw(st.lists(TEXT, max_size=2))),
            reason=draw(TEXT),
            seconds=draw(st.none() | st.floats(0, 1e6)),
            created=NOON + timedelta(microseconds=draw(st.integers(0, 10**12))),
        ),
    ]


@contextmanager
def sqlite_store(server: Server, template: Path) -> Iterator[Store]:
    with TemporaryDirectory() as folder, Store.open(shutil.copy(template, folder)) as store:
        yield store


@contextmanager
def postgres_store(server: Server, template: Path) -> Iterator[Store]:
    with server.lend() as url, Store.open(url) as store:
        yield store


@pytest.mark.parametrize("fresh", [sqlite_store, postgres_store])
@settings(max_examples=40, deadline=None)
@given(records=record_sets())
def test_round_trip(fresh: Any, postgres: Server, empty_sqlite: Path, records: list[AnyRecord]) -> None:
    with fresh(postgres, empty_sqlite) as store:
        added = store.add(records)
        assert added == store.counts() == Counts(1, len(records) - 3, 1, 1)
        read = [*store.prompts(), *store.completions(), *store.demonstrations(), *store.judgements()]
        assert read == records
        assert store.add(records) == Counts(), "adding again adds nothing"
        assert store.counts() == added


@pytest.mark.parametrize("text", ["\0", "\x1a", "\x1a0", "\0\x1a1\0", "\U0010ffff\ufffe", "ä\u0301\u202e"])
def test_odd_texts(store: Store, text: str) -> None:
    prompt = Prompt.of(text, metadata={text: text})
    answers = [Completion(prompt_id=prompt.id, text=t, origin=text) for t in (text, text + text)]
    odd = judgement(text, prompt_id=prompt.id, shown=tuple(a.id for a in answers), reason=text, flags=(text,))
    later = odd.model_copy(update={"id": "later", "supersedes": text})
    store.add([prompt, *answers, odd, later])
    assert next(store.judgements(effective=False)) == odd
    assert list(store.judgements()) == [later]
    assert list(store.completions([prompt.id])) == answers


def test_order_of_insertion_across_pages(store: Store) -> None:
    many = [judgement(f"{i * 7919 % 2501:04}") for i in range(2501)]
    store.add(many)
    assert list(store.judgements()) == many
    prompts = [Prompt.of(str(i), split="heldout" if i % 3 else "train") for i in range(30)]
    store.add(prompts)
    assert list(store.prompts("train")) == prompts[::3]
    answers = [Completion(prompt_id=p.id, text=t, origin="o") for t in "xy" for p in prompts]
    store.add(answers)
    wanted = [prompts[5].id, prompts[2].id]
    assert list(store.completions(wanted)) == [answers[5], answers[35], answers[2], answers[32]]


def test_readers_see_one_moment_and_may_stop_half_way(store: Store) -> None:
    store.add(judgement(str(i)) for i in range(1500))  # more than a page, so that the end is read later
    reading = store.judgements()
    next(reading)
    store.add([judgement("new"), judgement("correction", supersedes="1499")])
    now = store.judgements()
    assert [j.id for j in reading] == [str(i) for i in range(1, 1500)]
    assert [j.id for j in now][-2:] == ["new", "correction"]
    next(store.completions())  # left half way: warnings are errors in tests, so a leaked connection would show


# What counts


def test_effective_follows_corrections_and_retractions(store: Store) -> None:
    store.add([judgement("a"), judgement("b", criterion="harm"), judgement("c")])
    store.add([judgement("a2", supersedes="a", ranks=(2, 1)), judgement("a3", supersedes="a2", ranks=(1, 1))])
    store.add([judgement("c-undo", supersedes="c", retracted=True)])
    assert ids(store) == ["b", "a3"]
    assert ids(store, criterion="overall") == ["a3"]
    assert ids(store, effective=False) == ["a", "b", "c", "a2", "a3", "c-undo"]
    store.add([judgement("c-again", supersedes="c-undo")])
    assert ids(store) == ["b", "a3", "c-again"]


def test_a_correction_in_the_batch_of_what_it_corrects(store: Store) -> None:
    store.add([judgement("a"), judgement("b", supersedes="a")])
    assert ids(store) == ["b"]


# What is refused

OTHER = Prompt.of("Another")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([judgement("x", prompt_id=OTHER.id)], "which is not in the store; add the prompt first"),
        (
            [judgement("x", shown=(ANSWERS[0].id, "f" * 32))],
            "shows completion 'f+', which is not in the store",
        ),
        ([OTHER, judgement("x", prompt_id=OTHER.id)], "answers prompt"),
        ([Completion(prompt_id=OTHER.id, text="t", origin="o")], "completion .* belongs to prompt"),
        ([Demonstration(prompt_id=OTHER.id, text="t", origin="o")], "demonstration .* belongs to prompt"),
        ([judgement("known", ranks=(2, 1))], "here already with other content"),
        ([judgement("x"), judgement("x", reason="more")], "here already with other content"),
        ([judgement("x", supersedes="y")], "'y', which is not in the store"),
        ([judgement("x", supersedes="x")], "'x', which is not in the store"),
        ([judgement("x", supersedes="known"), judgement("y", supersedes="known")], "has superseded already"),
        ([Prompt.of("s", split="train"), Prompt.of("s", split="heldout")], "split 'heldout' too"),
        ([Prompt.of("half a pair: \ud800")], "lone surrogate"),
        ([judgement("x\udfff")], "lone surrogate"),
        ([Prompt.of("x", metadata={"deep": ["\udc00"]})], "lone surrogate"),
    ],
)
def test_refused_with_nothing_written(store: Store, records: list[AnyRecord], message: str) -> None:
    store.add([judgement("known")])
    before = store.counts()
    with pytest.raises(ValueError, match=message):
        store.add([Prompt.of("comes before the fault"), *records])
    assert store.counts() == before


def test_a_correction_stays_with_its_prompt(store: Store) -> None:
    answers = [Completion(prompt_id=OTHER.id, text=t, origin="o") for t in "xy"]
    store.add([judgement("a"), OTHER, *answers])
    wrong = judgement("b", prompt_id=OTHER.id, shown=tuple(a.id for a in answers), supersedes="a")
    with pytest.raises(ValueError, match="about another prompt"):
        store.add([wrong])


def test_a_second_correction_of_a_stored_one_is_refused(store: Store) -> None:
    store.add([judgement("a"), judgement("b", supersedes="a")])
    with pytest.raises(ValueError, match="'b' has superseded already; supersede that one"):
        store.add([judgement("c", supersedes="a")])


def test_a_repeated_send_has_its_own_clock(store: Store) -> None:
    store.add([judgement("a")])
    assert store.add([judgement("a", created=NOON + timedelta(seconds=9))]) == Counts()
    assert next(store.judgements()).created == NOON


def test_a_prompt_without_a_split_does_not_contradict(store: Store) -> None:
    store.add([Prompt.of("x", split="train")])
    assert store.add([Prompt.of("x")]) == Counts()


def test_what_is_not_a_record_is_refused(store: Store) -> None:
    with pytest.raises(TypeError, match="not 'text'"):
        store.add(["text"])  # type: ignore[list-item]


def test_a_failure_half_way_leaves_nothing(store: Store) -> None:
    def records() -> Iterator[AnyRecord]:
        yield from (Prompt.of(str(i)) for i in range(2500))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.add(records())
    assert store.counts() == Counts(1, 3, 0, 0)
    assert store.add([Prompt.of("0")]) == Counts(prompts=1), "the lock was let go"


def test_a_killed_writer_leaves_nothing(place: str | Path) -> None:
    program = textwrap.dedent("""
        import os, sys
        from prefloop.feedback.records import Prompt
        from prefloop.feedback.store import Store
        def records():
            yield from (Prompt.of(str(i)) for i in range(2500))
            os._exit(9)
        Store.open(sys.argv[1]).add(records())
    """)
    assert subprocess.run([sys.executable, "-c", program, str(place)], check=False).returncode == 9
    with Store.open(place, create=False) as store:
        assert store.counts() == Counts()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE judgements SET ranks = '[2,1]'",
        "DELETE FROM judgements",
        "INSERT OR REPLACE INTO judgements SELECT * FROM judgements",
        "UPDATE completions SET text = 'changed'",
        "DELETE FROM completions",
        "INSERT OR REPLACE INTO completions SELECT * FROM completions",
        "UPDATE guidelines SET text = 'changed'",
        "DELETE FROM guidelines",
        "INSERT OR REPLACE INTO guidelines SELECT * FROM guidelines",
    ],
)
def test_the_file_itself_refuses_changes(tmp_path: Path, statement: str) -> None:
    with Store.open(path := tmp_path / "feedback.db") as store:
        store.add([PROMPT, *ANSWERS, judgement("a")])
        told = store.add_guidelines("Be kind.", "ann")
        with closing(sqlite3.connect(path)) as other, pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)
        assert list(store.judgements()) == [judgement("a")]
        assert tuple(store.completions()) == ANSWERS
        assert store.guidelines() == [told]


@pytest.mark.parametrize("table", ["judgements", "completions", "guidelines"])
@pytest.mark.parametrize("change", ["UPDATE {} SET seq = seq", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_the_server_itself_refuses_changes(postgres: Server, table: str, change: str) -> None:
    with Store.open(url := postgres.create()) as store:
        store.add([PROMPT, *ANSWERS, judgement("a")])
        told = store.add_guidelines("Be kind.", "ann")
        column = "version = version" if table == "guidelines" else "seq = seq"
        statement = change.format(table).replace("seq = seq", column)
        with psycopg.connect(url) as other, pytest.raises(psycopg.Error, match="append-only"):
            other.execute(statement)
        assert list(store.judgements()) == [judgement("a")]
        assert tuple(store.completions()) == ANSWERS
        assert store.guidelines() == [told]


# Several at once


def test_two_writers_wait_for_each_other(place: str | Path, store: Store) -> None:
    def write(name: str) -> None:
        with Store.open(place) as mine:
            for i in range(40):
                mine.add([judgement(f"{name}{i}"), judgement(f"both{i}")])

    in_threads(["a", "b"], write)
    assert sorted(ids(store)) == sorted(f"{name}{i}" for name in ("a", "b", "both") for i in range(40))
