"""Token sequences on disk: they come back to the bit, are made once, and never half."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.memory import peak
from tests.toys import CHATML, byte_tokenizer
from transformers import AutoTokenizer

from prefloop import tokens
from prefloop.chat import Rendered
from prefloop.runs import read_json
from prefloop.tokens import ENDS, MANIFEST, TOKENS, Make, Tokens, cached_tokens, tokenizer_hash


def drawn(seed: int, count: int) -> list[Rendered]:
    """Sequences of any length, none included, with any ids and masks."""
    draw = random.Random(seed)
    lengths = [draw.randrange(30) for _ in range(count)]
    return [
        Rendered([draw.choice((0, 1, 300, 2**31 - 1)) for _ in range(n)], [draw.random() < 0.5 for _ in range(n)])
        for n in lengths
    ]


class Maker:
    """Gives sequences, and remembers how often it was asked."""

    def __init__(self, sequences: list[Rendered], **counts: int) -> None:
        self.sequences, self.counts, self.asked = sequences, counts, 0

    def __call__(self, counts: Counter[str]) -> Iterator[Rendered]:
        self.asked += 1
        yield from self.sequences
        counts.update(self.counts)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def only(folder: Path) -> Path:
    (place,) = folder.iterdir()
    return place


@pytest.mark.parametrize("seed", range(4))
def test_sequences_come_back_to_the_bit(tmp_path: Path, seed: int) -> None:
    made = drawn(seed, 50)
    found = cached_tokens(tmp_path, {}, Maker(made))
    assert list(found) == made
    assert len(found) == 50
    assert [found[i] for i in range(-50, 50)] == [*made, *made]
    assert found[7:31:3] == made[7:31:3]
    assert {type(value) for one in found for value in one.ids} == {int}
    assert {type(value) for one in found for value in one.mask} == {bool}
    for place in (50, -51):
        with pytest.raises(IndexError):
            found[place]


@pytest.mark.parametrize("at_once", [1, 7, 50, 1000])
@pytest.mark.parametrize("seed", range(2))
def test_trained_tokens_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int) -> None:
    monkeypatch.setattr(tokens, "AT_ONCE", at_once)
    made = [*drawn(seed, 50), Rendered([], [])]
    assert cached_tokens(tmp_path, {}, Maker(made)).response_tokens().tolist() == [sum(one.mask) for one in made]
    assert cached_tokens(tmp_path, {"none": 1}, Maker([])).response_tokens().tolist() == []


@pytest.mark.parametrize("made", [[], [Rendered([], [])]], ids=["none", "an empty one"])
def test_nothing_comes_back_too(tmp_path: Path, made: list[Rendered]) -> None:
    assert list(cached_tokens(tmp_path, {}, Maker(made))) == made


def test_what_is_there_is_not_made_again_and_says_the_same(tmp_path: Path) -> None:
    make = Maker(drawn(0, 20), cut=3)
    first, second = (cached_tokens(tmp_path, {"data": "x"}, make) for _ in range(2))
    assert make.asked == 1
    assert list(first) == list(second) == make.sequences
    assert first.counts == second.counts == {"cut": 3}
    assert files(tmp_path) == {TOKENS, ENDS, MANIFEST}
    assert read_json(only(tmp_path) / MANIFEST)["made_from"]["data"] == "x"


@pytest.mark.parametrize(
    ("name", "value"),
    [("FORMAT", 0), ("versions", lambda: dict.fromkeys(("prefloop", "transformers", "tokenizers")))],
)
def test_whatever_they_depend_on_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    make = Maker(drawn(0, 5))
    for made_from in ({"limit": 1}, {"limit": 2}, {"limit": 1, "part": "x"}):
        cached_tokens(tmp_path, made_from, make)
    assert make.asked == 3
    monkeypatch.setattr(tokens, name, value)
    cached_tokens(tmp_path, {"limit": 1}, make)
    assert make.asked == 4


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _empty])
@pytest.mark.parametrize("name", [TOKENS, ENDS, MANIFEST])
def test_damage_is_noticed_and_mended(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    make = Maker(drawn(1, 20), cut=1)
    cached_tokens(tmp_path, {}, make)
    harm(only(tmp_path) / name)
    for _ in range(2):
        found = cached_tokens(tmp_path, {}, make)
        assert (list(found), found.counts, make.asked) == (make.sequences, {"cut": 1}, 2)


@pytest.mark.parametrize("name", [TOKENS, ENDS])
def test_a_single_bit_is_noticed(tmp_path: Path, name: str) -> None:
    make = Maker(drawn(2, 20))
    cached_tokens(tmp_path, {}, make)
    _flip(only(tmp_path) / name)
    assert list(cached_tokens(tmp_path, {}, make)) == make.sequences
    assert make.asked == 2


@pytest.mark.parametrize("content", ["[]", "{}", '{"counts": 1, "checksums": {}}', "null"])
def test_another_manifest_is_damage(tmp_path: Path, content: str) -> None:
    make = Maker(drawn(3, 20))
    cached_tokens(tmp_path, {}, make)
    (only(tmp_path) / MANIFEST).write_text(content, encoding="utf-8")
    assert list(cached_tokens(tmp_path, {}, make)) == make.sequences
    assert make.asked == 2


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    whole = drawn(4, 20)

    def fails(_: Counter[str]) -> Iterator[Rendered]:
        yield from whole[:10]
        raise ValueError("a prompt is too long")

    with pytest.raises(ValueError, match="a prompt is too long"):
        cached_tokens(tmp_path, {}, fails)
    assert files(tmp_path) == set()
    assert list(cached_tokens(tmp_path, {}, Maker(whole))) == whole


def test_a_process_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from prefloop.chat import Rendered
from prefloop.tokens import cached_tokens

def make(counts):
    yield Rendered([1] * 10**6, [True] * 10**6)
    os._exit(9)

cached_tokens(Path(sys.argv[1]), {}, make)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert files(tmp_path)
    make = Maker(drawn(5, 20))
    assert list(cached_tokens(tmp_path, {}, make)) == make.sequences
    assert files(tmp_path) == {TOKENS, ENDS, MANIFEST}


def test_of_two_at_once_one_makes_and_both_have_it(tmp_path: Path) -> None:
    whole, begun, go_on = drawn(6, 20), threading.Event(), threading.Event()
    asked: list[int] = []
    found: list[Tokens] = []

    def slow(_: Counter[str]) -> Iterator[Rendered]:
        asked.append(1)
        yield whole[0]
        begun.set()
        assert go_on.wait(10)
        yield from whole[1:]

    workers = [threading.Thread(target=lambda: found.append(cached_tokens(tmp_path, {}, slow))) for _ in range(2)]
    workers[0].start()
    assert begun.wait(10)
    workers[1].start()
    workers[1].join(0.2)
    assert found == []
    go_on.set()
    for worker in workers:
        worker.join(10)
    assert [list(one) for one in found] == [whole, whole]
    assert asked == [1]


def test_who_reads_goes_on_reading_while_they_are_made_again(tmp_path: Path) -> None:
    before, after = drawn(7, 20), drawn(8, 20)
    found = cached_tokens(tmp_path, {}, Maker(before))
    (only(tmp_path) / MANIFEST).unlink()
    assert list(cached_tokens(tmp_path, {}, Maker(after))) == after
    assert list(found) == before


def test_memory_does_not_grow_with_the_number_of_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 1 << 10)
    one = Rendered(list(range(1000, 1020)), [False] * 10 + [True] * 10)

    def make(count: int) -> Make:
        return lambda _: (one for _ in range(count))

    cached_tokens(tmp_path, {}, make(1))  # what is imported and remembered the first time
    few, many = (peak(lambda n=n: cached_tokens(tmp_path, {"n": n}, make(n))) for n in (200, 20_000))
    assert many < few + 10_000
    kept = cached_tokens(tmp_path, {"n": 20_000}, make(0))
    assert len(kept) == 20_000
    assert peak(lambda: sum(map(len, kept))) < 20_000


# The tokenizer's fingerprint


def test_equal_tokenizers_have_one_fingerprint(tmp_path: Path) -> None:
    made = byte_tokenizer(bos="<|bos|>", template=CHATML)
    before = tokenizer_hash(made)
    assert before == tokenizer_hash(byte_tokenizer(bos="<|bos|>", template=CHATML))
    made("some text")
    assert tokenizer_hash(made) == before
    hashes = []
    for name in ("a", "b"):
        made.save_pretrained(tmp_path / name)
        hashes.append(tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / name)))
    assert hashes[0] == hashes[1]


def test_whatever_changes_the_ids_changes_the_fingerprint() -> None:
    options: list[dict[str, Any]] = [
        {},
        {"eos": "</s>"},
        {"pad": None},
        {"bos": "<|bos|>"},
        {"template": CHATML},
        {"template": CHATML + " "},
        {"merges": [("a", "b")]},
    ]
    made = [byte_tokenizer(**option) for option in options]
    made.append(byte_tokenizer())
    made[-1].add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert len({tokenizer_hash(one) for one in made}) == len(made)
