"""What a run learns from: splits that do not leak, demonstrations, text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.memory import peak
from tests.said import judged

from prefloop import dataset
from prefloop.dataset import Dataset, for_judge, judged_pairs, part_of, place, prepare
from prefloop.feedback import elsewhere, freezing, stored
from prefloop.feedback import store as store_module
from prefloop.feedback.aggregate import snapshot
from prefloop.feedback.records import Completion, Demonstration, Prompt, Split, content_id
from prefloop.feedback.store import AnyRecord, Store
from prefloop.recipes import Recipe, make_recipe


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


def prompts(count: int, split: Split | None = None) -> list[Prompt]:
    return [Prompt.of(f"question {i}", split=split) for i in range(count)]


def recipe(*settings: str) -> Recipe:
    return make_recipe({}, ["data.heldout_fraction=0.3", *settings])


def texts(pairs: Iterable[tuple[Prompt, str]]) -> set[str]:
    return {text for _, text in pairs}


def read(data: Dataset) -> dict[str, list[Any]]:
    """All of it, from the store as well."""
    return {field.name: list(getattr(data, field.name)) for field in fields(Dataset)}


# The split


def test_the_owner_of_the_data_decides_and_else_a_hash() -> None:
    assert {place(p, 1.0) for p in prompts(50, "train")} == {"train"}
    assert {place(p, 0.0) for p in prompts(50, "heldout")} == {"heldout"}
    assert {place(p, 0.0) for p in prompts(50)} == {"train"}
    held = {p.id for p in prompts(2000) if place(p, 0.2) == "heldout"}
    assert 320 < len(held) < 480  # 400 ± 4.5 standard deviations
    assert held < {p.id for p in prompts(2000) if place(p, 0.4) == "heldout"}  # a larger share only adds


def test_the_judges_share_does_not_depend_on_the_split() -> None:
    many = prompts(4000)
    heldout = [p for p in many if place(p, 0.5) == "heldout"]
    share = sum(for_judge(p, 0.3) for p in heldout) / len(heldout)
    assert 0.25 < share < 0.35
    assert not any(for_judge(p, 0.0) for p in many)


def test_each_judged_prompt_is_in_one_part(store: Store) -> None:
    asked = prompts(300)
    store.add(asked)
    for prompt in asked:
        store.add(judged(prompt, ("good", 1), ("bad", 2)))
    found = snapshot(store, "overall").comparisons()
    parts = judged_pairs(recipe("judge.fraction=0.3"), found)
    train, heldout, aside = ({c.prompt.id for c in part} for part in parts)
    assert all((train, heldout, aside))
    assert len(train) + len(heldout) + len(aside) == len(train | heldout | aside) == 300
    data = prepare(recipe("judge.fraction=0.3"), store, Path())
    assert train == {p.id for p in data.train}
    assert heldout == {p.id for p in data.heldout}
    assert aside == {p.id for p in data.aside}
    assert judged_pairs(recipe(), found)[2] == []
    assert list(prepare(recipe(), store, Path()).aside) == []


# From the store


def test_an_empty_store_says_how_to_fill_it(store: Store) -> None:
    with pytest.raises(ValueError, match=r"no prompts.*prefloop import FILE.*data\.files.*data\.world"):
        prepare(recipe(), store, Path())


def test_the_first_prompts_are_of_every_file(store: Store) -> None:
    """Whoever imports one file after another must not evaluate on the first alone."""
    for file in ("a", "b"):
        store.add(Prompt.of(f"{file} {i}") for i in range(100))
        store.add(item for i in range(100) for item in judged(Prompt.of(f"{file} {i}"), ("x", 1), ("y", 2)))
    data = prepare(recipe("sft.demonstrations=preferred"), store, Path())
    for part in (data.train, data.heldout):
        first = [prompt.text[0] for prompt in part[:20]]
        assert 4 <= first.count("a") <= 16


def test_what_stays_in_the_store_is_in_the_order_of_hashes_and_has_the_hash_of_its_lists(store: Store) -> None:
    asked = [Prompt.of(f"question {i}", metadata={"gold": 1} if i % 50 == 0 else {}) for i in range(2500)]
    store.add(asked)
    store.add(Demonstration(prompt_id=p.id, text=f"shown {p.text}", origin="me") for p in asked for _ in "x")
    settings = recipe("judge.fraction=0.3", "model.path=x")
    data = prepare(settings, store, Path())
    ordered = sorted((p for p in asked if not p.metadata), key=lambda p: content_id("order", p.id))
    parts = {"train": data.train, "heldout": data.heldout, "judge": data.aside}
    for name, part in parts.items():
        assert list(part) == [p for p in ordered if part_of(settings, p) == name] != []
    shown = {
        name: [(p, f"shown {p.text}") for p in asked if not p.metadata and part_of(settings, p) == name]
        for name in ("train", "heldout")
    }
    assert list(data.demonstrations) == shown["train"]
    assert list(data.heldout_demonstrations) == shown["heldout"]
    pairs = [*shown["train"], *shown["heldout"]]
    assert data.demonstrations_hash == content_id([[p.id, text] for p, text in pairs])
    assert data.prompts_hash == content_id(*([p.id for p in part] for part in parts.values()))


@pytest.mark.parametrize(
    ("split", "counts"), [("train", "9 are for training and 0"), ("heldout", "0 are for training and 9")]
)
def test_both_parts_of_the_data_need_prompts(store: Store, split: Split, counts: str) -> None:
    store.add(prompts(9, split))
    with pytest.raises(ValueError, match=rf"of 9 prompts {counts} held out.*data\.heldout_fraction"):
        prepare(recipe(), store, Path())


def test_written_demonstrations_follow_their_prompts(store: Store) -> None:
    learn, test = Prompt.of("learn", split="train"), Prompt.of("test", split="heldout")
    store.add([learn, test])
    store.add(Demonstration(prompt_id=p.id, text=f"shown {p.text}", origin="me") for p in (learn, test))
    store.add(judged(learn, ("good", 1), ("bad", 2)))
    data = prepare(recipe(), store, Path())
    assert list(data.demonstrations) == [(learn, "shown learn")]
    assert list(data.heldout_demonstrations) == [(test, "shown test")]
    assert len(data.documents) == 3
    assert "\n\nHuman: learn\n\nAssistant: bad" in data.documents
    assert list(data.heldout_documents) == ["\n\nHuman: test\n\nAssistant: shown test"]


@pytest.mark.parametrize("demonstrations", ["written", "preferred"])
@pytest.mark.parametrize("seed", range(3))
def test_text_that_stays_in_the_store_is_that_of_its_records(store: Store, seed: int, demonstrations: str) -> None:
    draw, records = random.Random(seed), list[AnyRecord]()
    for number in range(150):
        asked = Prompt.of(f"question {number}", metadata={"gold": 1} if number % 20 == 0 else {})
        records.append(asked)
        for origin in draw.choices(("file:x", "runs/mine/sft@1", "runs/other/sft@1"), k=draw.randint(0, 2)):
            said = judged(asked, (f"{number} a", 1), (f"{number} b", 2), origin=origin)
            sampled = Completion(prompt_id=asked.id, text="drawn", origin=origin, metadata={"sample": 1})
            edited = Demonstration(prompt_id=asked.id, text="edited", origin="me", judgement_id=said[-1].id)
            records += [*said, *draw.sample([sampled, edited], k=draw.randint(0, 2))]
        if draw.random() < 0.5:
            records.append(Demonstration(prompt_id=asked.id, text=f"shown {number}", origin="me"))
    store.add(records)
    settings = recipe("name=mine", "judge.fraction=0.3", f"sft.demonstrations={demonstrations}")
    data = prepare(settings, store, Path())
    wanted = [_documents(settings, store, part) for part in ("train", "heldout")]
    assert [list(data.documents), list(data.heldout_documents)] == wanted
    assert all(len(part) > 20 for part in wanted)
    assert data.documents_hash == content_id(*wanted)
    later = Prompt.of("later", split="train")
    store.add([later, *judged(later, ("a", 1), ("b", 2)), Demonstration(prompt_id=later.id, text="c", origin="me")])
    assert list(data.documents) == wanted[0]


def _documents(recipe: Recipe, store: Store, part: str) -> list[str]:
    """Of all prompts of a part in the order of their ids the answers of files and people, then all demonstrations."""
    asked = {p.id: p for p in store.prompts() if not p.metadata and part_of(recipe, p) == part}
    own = {c.prompt_id for c in store.completions() if c.origin.startswith("runs/mine/")}
    said = [c for id in sorted(asked) for c in store.completions([id]) if not c.metadata]
    shown = [d for d in store.demonstrations() if d.prompt_id in asked]
    answers = [*said, *(d for d in shown if d.judgement_id is None or d.prompt_id not in own)]
    return [f"\n\nHuman: {asked[one.prompt_id].text}\n\nAssistant: {one.text}" for one in answers]


def test_preferred_demonstrations_are_the_answers_with_most_votes(store: Store) -> None:
    one, other = Prompt.of("one", split="train"), Prompt.of("other", split="heldout")
    store.add([one, other])
    store.add(Demonstration(prompt_id=one.id, text="shown", origin="me") for _ in "x")
    store.add(judged(one, ("a", 1), ("b", 2), ("c", 3)))
    store.add(judged(one, ("b", 1), ("a", 2)))
    store.add(judged(one, ("b", 1), ("c", 2)))
    store.add(judged(other, ("x", 2), ("y", 1)))
    data = prepare(recipe("sft.demonstrations=preferred"), store, Path())
    assert list(data.demonstrations) == [(one, "b")]  # b has 3 votes, a 2
    assert list(data.heldout_demonstrations) == [(other, "y")]
    assert data.demonstrations_hash == content_id([[one.id, "b"], [other.id, "y"]])


def test_preferred_demonstrations_stay_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dataset, elsewhere, freezing, store_module, stored):
        monkeypatch.setattr(module, "AT_ONCE", 50)
    settings, draw, peaks = recipe("sft.demonstrations=preferred"), random.Random(3), list[int]()
    for count in (100, 2000):
        asked, best, records = prompts(count), dict[str, tuple[Prompt, str]](), list[AnyRecord]()
        for prompt in asked:
            answers = draw.sample([f"{letter} {prompt.text} {'and so on ' * 50}" for letter in "ab"], 2)
            best[prompt.id] = (prompt, answers[0])
            records += [prompt, *judged(prompt, (answers[0], 1), (answers[1], 2))]
        with Store.open(tmp_path / f"{count}.db") as store:
            store.add(records)
            peaks.append(peak(lambda store=store: prepare(settings, store, Path()).demonstrations_hash))
            data = prepare(settings, store, Path())
            for name, part in {"train": data.demonstrations, "heldout": data.heldout_demonstrations}.items():
                wanted = [best[id] for id in sorted(best) if part_of(settings, best[id][0]) == name]
                assert [*part] == wanted
                assert [part[7], *part[-2:]] == [wanted[7], *wanted[-2:]]
    assert peaks[1] - peaks[0] < 700 * 1900, "bytes of a judged pair; its two answers have a thousand"


def test_nothing_that_the_judge_knows_is_learnt_from(store: Store) -> None:
    asked = prompts(300)
    store.add(asked)
    for prompt in asked:
        store.add(judged(prompt, (f"good {prompt.text}", 1), ("bad", 2)))
    settings = recipe("judge.fraction=0.4", "sft.demonstrations=preferred")
    data = prepare(settings, store, Path())
    aside = {p.text for p in data.aside}
    assert aside
    assert not aside & {p.text for p in [*data.train, *data.heldout]}
    assert not aside & {p.text for p, _ in [*data.demonstrations, *data.heldout_demonstrations]}
    seen = "".join([*data.documents, *data.heldout_documents])
    assert not any(f"Human: {text}\n" in seen for text in aside)


def test_a_runs_own_answers_are_no_data_of_its_earlier_stages(store: Store) -> None:
    one, other = Prompt.of("one", split="train"), Prompt.of("other", split="heldout")
    store.add([one, other])
    store.add(judged(one, ("a", 1), ("b", 2)))
    settings = recipe("sft.demonstrations=preferred", "name=mine")
    before = prepare(settings, store, Path())
    answer = Completion(prompt_id=one.id, text="sampled", origin="runs/mine/sft@1", metadata={"sample": 0})
    store.add([answer, *judged(one, ("s", 1), ("t", 2), origin="runs/mine/sft@1")])
    after = prepare(settings, store, Path())
    assert list(after.demonstrations) == list(before.demonstrations) == [(one, "a")]
    assert "sampled" not in "".join(after.documents)
    # Another run's answers are data like any other's, once somebody has judged them.
    store.add(judged(one, ("u", 1), ("v", 2), origin="runs/other/sft@1"))
    store.add(judged(one, ("u", 1), ("a", 2), origin="runs/other/sft@1"))
    assert texts(prepare(settings, store, Path()).demonstrations) == {"u"}


def test_what_people_wrote_while_they_judged_this_runs_answers_is_not_shown_to_it(store: Store) -> None:
    one, other = Prompt.of("one", split="train"), Prompt.of("other", split="train")
    store.add([one, other, Prompt.of("third", split="heldout")])
    store.add(judged(one, ("a", 1), ("b", 2), origin="runs/mine/sft@1"))
    store.add(judged(other, ("a", 1), ("b", 2), origin="runs/theirs/sft@1"))
    store.add(
        Demonstration(prompt_id=said.prompt_id, text="edited", origin="me", judgement_id=said.id)
        for said in list(store.judgements())
    )
    store.add([Demonstration(prompt_id=one.id, text="written", origin="me")])
    data = prepare(recipe("name=mine"), store, Path())
    assert list(data.demonstrations) == [(other, "edited"), (one, "written")]


def test_only_judgements_by_the_criterion_count(store: Store) -> None:
    one, other = Prompt.of("one", split="train"), Prompt.of("other", split="heldout")
    store.add([one, other])
    store.add(judged(one, ("a", 1), ("b", 2)))
    settings = recipe("sft.demonstrations=preferred", "data.criterion=tone")
    assert list(prepare(settings, store, Path()).demonstrations) == []


def test_files_of_the_recipe_are_imported_once(store: Store, tmp_path: Path) -> None:
    rows = [f'{{"prompt": "p{i}", "chosen": "a", "rejected": "b"}}\n' for i in range(20)]
    (tmp_path / "x.jsonl").write_text("".join(rows), encoding="utf-8")
    settings = recipe('data.files=["x.jsonl"]')
    first = prepare(settings, store, tmp_path)
    counts = store.counts()
    assert counts.judgements == 20
    assert read(prepare(settings, store, tmp_path)) == read(first)
    assert store.counts() == counts


def test_pretraining_files_replace_the_stores_text(store: Store, tmp_path: Path) -> None:
    store.add([Prompt.of("one", split="train"), Prompt.of("other", split="heldout")])
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    data = prepare(recipe('pretrain.files=["a.txt"]'), store, tmp_path)
    assert (list(data.documents), data.heldout_documents) == (["some text"], [])
    assert data.documents_hash == content_id(["some text"], [])
    model = prepare(recipe('pretrain.files=["a.txt"]', "model.path=x"), store, tmp_path)
    assert list(model.documents) == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not UTF-8"])
def test_pretraining_files_that_cannot_be_read(store: Store, tmp_path: Path, content: bytes | None) -> None:
    store.add([Prompt.of("one", split="train"), Prompt.of("other", split="heldout")])
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"pretrain\.files: cannot read a\.txt as UTF-8 text"):
        prepare(recipe('pretrain.files=["a.txt"]'), store, tmp_path)


# From the world


def world(*settings: str) -> Recipe:
    table = {"data": {"world": "rewriter", "world_prompts": 60, "world_heldout": 30}}
    return make_recipe(table, settings)


def test_a_world_writes_the_same_data_for_the_same_seed(tmp_path: Path) -> None:
    found = []
    for name, settings in (("a.db", ()), ("b.db", ("name=other",)), ("c.db", ("seed=1",))):
        with Store.open(tmp_path / name) as store:
            found.append(prepare(world(*settings), store, Path()))
            assert prepare(world(*settings), store, Path()) == found[-1]
            assert store.counts().prompts == 90
            assert store.counts().demonstrations == 90
    assert found[0] == found[1] != found[2]
    data = found[0]
    assert len(data.train) == len(data.demonstrations) == 60
    assert len(data.heldout) == len(data.heldout_demonstrations) == 30
    assert {p.split for p in data.train} == {"train"}
    assert {p.split for p in data.heldout} == {"heldout"}
    assert [p for p, _ in data.demonstrations] == data.train
    assert data.documents
    assert data.heldout_documents
    assert not set(data.documents) & set(data.heldout_documents)


def test_no_held_out_answer_is_in_the_text(store: Store) -> None:
    data = prepare(world(), store, Path())
    text = "".join(data.documents)
    assert not any(prompt.text in text for prompt in data.heldout)


def test_worlds_of_several_seeds_fit_into_one_store(store: Store) -> None:
    for seed in range(4):
        prepare(world(f"seed={seed}", "data.world_prompts=400", "data.world_heldout=100"), store, Path())


def test_no_text_is_written_for_a_model_that_is_there(store: Store) -> None:
    assert prepare(world("model.path=x"), store, Path()).documents == []


# Fingerprints


def test_every_part_of_the_data_changes_a_fingerprint() -> None:
    one, other = prompts(2)
    empty = Dataset([], [], [], [], [], [])
    changes = {
        "train": [one],
        "heldout": [one],
        "demonstrations": [(one, "a")],
        "heldout_demonstrations": [(one, "a")],
        "documents": ["a"],
        "heldout_documents": ["a"],
        "aside": [one],
    }
    assert changes.keys() == {field.name for field in fields(Dataset)}
    found = {_fingerprints(empty)}
    for name, value in changes.items():
        values = {field.name: getattr(empty, field.name) for field in fields(Dataset)}
        found.add(_fingerprints(Dataset(**(values | {name: value}))))
    assert len(found) == 7  # the two kinds of demonstrations look alike: their prompts tell which they are
    assert _fingerprints(Dataset([one], [], [], [], [], [])) != _fingerprints(Dataset([other], [], [], [], [], []))


def _fingerprints(data: Dataset) -> tuple[str, str, str]:
    return data.prompts_hash, data.demonstrations_hash, data.documents_hash
