"""Pretraining: text becomes a tokenizer and blocks, bit by bit as it would in one piece, and a model learns it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.memory import peak
from tests.toys import naive_log_probs, parameters, policy, same

from prefloop.chat import Rendered
from prefloop.config import ModelConfig, PretrainConfig
from prefloop.policy import Policy
from prefloop.training import pretrain
from prefloop.training.loop import Metrics
from prefloop.training.pretrain import blocks_of, make_policy, train_pretrain, train_tokenizer

SPACES = [" ", "  ", "\n", "\n\n ", "\t", "\r", "\u00a0", "\u2028", "\x1c"]
OTHERS = [
    "don't",
    "we'll",
    "'s",
    "_",
    "12",
    "é",
    "e\u0301",
    "🙂",
    "中文",
    ",",
    "<|eos|>",
    "<|pad|>",
    "\0",
    "A",
    "word",
]
SCRAPS = SPACES + OTHERS
"""What a tokenizer that cuts words might stumble over."""
SHAPE = ModelConfig(vocabulary=330, width=16, layers=1, heads=2, context=64)


def written(draw: random.Random, longest: int) -> str:
    return "".join(draw.choices(SCRAPS, k=draw.randint(0, longest)))


def plain_blocks(made: Policy, documents: list[str], length: int) -> list[Rendered]:
    """As it is said: all documents end to end as one list, cut; what is left at the end is left out."""
    stream: list[int] = []
    for document in documents:
        stream += [*made.tokenizer(document, add_special_tokens=False)["input_ids"], made.chat.eos_id]
    whole = [stream[start : start + length] for start in range(0, len(stream), length)]
    kept = [ids for ids in whole if len(ids) == length] or whole[:1]
    return [Rendered(ids, [False] + [True] * (len(ids) - 1)) for ids in kept if len(ids) > 1]


@pytest.mark.parametrize("length", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_those_of_the_whole_text(monkeypatch: pytest.MonkeyPatch, seed: int, length: int) -> None:
    draw = random.Random(seed)
    documents = ["", *(written(draw, 60) for _ in range(40)), written(draw, 2000), ""]
    made = make_policy(documents, SHAPE, seed)
    wanted = plain_blocks(made, documents, length)
    for at_once, piece in ((256, 2048), (1, 1), (7, 10)):
        monkeypatch.setattr(pretrain, "AT_ONCE", at_once)
        monkeypatch.setattr(pretrain, "PIECE", piece)
        assert list(blocks_of(made, iter(documents), length)) == wanted
    assert bool(wanted) == (length > 1)


@pytest.mark.parametrize("documents", [[], [""], ["", ""], ["a"]])
def test_little_text_is_one_short_block_or_none(documents: list[str]) -> None:
    made = policy()
    assert list(blocks_of(made, documents, 8)) == plain_blocks(made, documents, 8)


@pytest.fixture(scope="module")
def tokenizer() -> Policy:
    draw = random.Random(0)
    return make_policy([written(draw, 50) for _ in range(50)], SHAPE, 0)


TEXTS = st.lists(st.sampled_from(SCRAPS) | st.text(max_size=3), max_size=30).map("".join)


@given(text=TEXTS, piece=st.integers(0, 9))
def test_a_text_in_pieces_has_the_tokens_of_the_whole(tokenizer: Policy, text: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "PIECE", piece)
        pieces = list(pretrain._pieces(text))
    assert "".join(part for part, _ in pieces) == text
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    ids = [one for part, _ in pieces for one in tokenizer.tokenizer(part)["input_ids"]]
    assert ids == tokenizer.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("line", ["some words and more ", "Hi.\n", "天气很好，我们走吧。\n\n「是的。」\n"])
def test_long_texts_are_cut_at_once(line: str) -> None:
    text = line * (20_000 // len(line))
    lengths = [len(part) for part, _ in pretrain._pieces(text)]
    assert max(lengths) <= pretrain.PIECE + len(line)
    assert len(lengths) >= len(text) // (pretrain.PIECE + len(line))


def test_a_word_that_does_not_end_is_a_piece() -> None:
    assert list(pretrain._pieces("中" * 10_000)) == [("中" * 10_000, True)]


@pytest.mark.parametrize("seed", range(3))
def test_a_tokenizer_learns_the_same_of_pieces_and_of_the_whole(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    documents = [written(draw, 200) for _ in range(30)]
    found = []
    for piece in (10**9, 0, 17):
        monkeypatch.setattr(pretrain, "PIECE", piece)
        found.append(train_tokenizer(iter(documents), 400).backend_tokenizer.to_str())
    assert found[0] == found[1] == found[2]
    assert len(train_tokenizer(documents, 400)) == 400


def test_memory_does_not_grow_with_the_number_of_documents() -> None:
    made = policy()
    peaks = [peak(lambda count=count: read(made, count)) for count in (10, 500, 10_000)]
    # 9,500 documents more: as a list at least 600,000 bytes. Of garbage there is more or less.
    assert peaks[2] < peaks[1] + 100_000, peaks


def test_a_pretrained_model_learns_its_text() -> None:
    text = ["the cat sat on the mat. "] * 60
    made = make_policy(text, ModelConfig(vocabulary=300, width=16, layers=1, heads=2, context=64), seed=0)
    config = PretrainConfig(tokens=8000, batch_tokens=256, block=32, learning_rate=1e-2)
    lines: list[Metrics] = []
    train, heldout = (list(blocks_of(made, some, config.block)) for some in (text, text[:8]))
    result = train_pretrain(made, train, heldout, config, 0, lines.append)
    assert len(lines) == 8000 // 256
    assert lines[0]["loss"] > 4
    assert result["eval_loss"] < 1
    assert result["eval_loss"] == lines[-1]["eval_loss"]


def test_a_made_policy_depends_on_the_seed_alone() -> None:
    shape = ModelConfig(vocabulary=300, width=16, layers=1, heads=2, context=64)
    first, again, other = (parameters(make_policy(["some text"], shape, seed).model) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_a_made_tokenizer_writes_any_text_and_reads_it_back() -> None:
    tokenizer = train_tokenizer(["aaa bbb", "aaa"], 300)
    for text in ("aaa bbb", "naïve 🙂 \n\t\x00", " two  spaces . "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text to pretrain on"):
        train_pretrain(policy(), [], [], PretrainConfig(), 0, print)


def test_every_pretraining_token_but_the_first_is_learnt_and_documents_end_with_eos() -> None:
    made = policy()
    made.model.double()
    lines: list[Metrics] = []
    config = PretrainConfig(tokens=6, batch_tokens=6, block=6)
    train_pretrain(made, list(blocks_of(made, ["abc", "d"], 6)), [], config, 0, lines.append)
    ids = [*made.tokenizer("abc")["input_ids"], 1, *made.tokenizer("d")["input_ids"], 1]
    expected = -float(naive_log_probs(policy().model, Rendered(ids, [False] + [True] * 5)).mean())
    assert lines[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert math.isfinite(expected)


def read(made: Policy, count: int) -> None:
    cut = sum(1 for _ in blocks_of(made, (f"{number:05d} words" for number in range(count)), 64))
    train_tokenizer((f"{number % 7} {'word ' * 20}" for number in range(count)), 300)
    assert cut == count * 12 // 64
