"""What goes out comes back in equal, as far as a format can carry it; and what it cannot is counted."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.feedback.formats.files import HH

from prefloop.feedback.formats import ExportFormat, ExportReport, export_file, import_file
from prefloop.feedback.records import (
    BEST_ONLY,
    Completion,
    Demonstration,
    Judgement,
    Message,
    Prompt,
    dense_ranks,
)
from prefloop.feedback.store import AnyRecord, Counts, Store

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", "")

# Random stores. The texts are those that a careless writer gets wrong.

HARD = ("=1+1", "'=", "''[x", "[1]", '[{"role": "user", "content": "x"}]', '{"a": 1}', "-", "@a", "\tt", "\rr", " s ")
HARD += (
    "\n\nHuman: x",
    "Human: x",
    "Assistant:",
    "a,b",
    'quo"te',
    "\u2028",
    "l1\nl2\r\nl3",
    "null",
    "é\U0001f600",
    "",
)
TEXT = st.sampled_from(HARD) | st.text("ab =\n", max_size=4)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    said = draw(
        st.lists(st.tuples(st.sampled_from(["system", "user", "user", "assistant"]), TEXT), max_size=3)
        | st.just([("user", "a"), ("assistant", "b")])
    )
    messages = [Message(role=role, content=text) for role, text in said]  # type: ignore[arg-type]
    split = draw(st.sampled_from([None, "train", "heldout"]))
    return Prompt(messages=(*messages, Message(role="user", content=draw(TEXT))), split=split)


@st.composite
def stores(draw: st.DrawFn) -> list[AnyRecord]:
    made: list[AnyRecord] = []
    for prompt in draw(st.lists(prompts(), min_size=1, max_size=3, unique_by=lambda prompt: prompt.id)):
        texts = draw(st.lists(TEXT, min_size=2, max_size=4, unique=True))
        answers = [Completion(prompt_id=prompt.id, text=text, origin=draw(TEXT)) for text in texts]
        made += [prompt, *answers]
        made += draw(
            st.lists(st.builds(Demonstration, prompt_id=st.just(prompt.id), text=TEXT, origin=TEXT), max_size=2)
        )
        for _ in range(draw(st.integers(0, 3))):
            made.append(draw(judgements(len(made), answers)))
    return made


@st.composite
def judgements(draw: st.DrawFn, number: int, answers: list[Completion]) -> Judgement:
    shown = draw(st.permutations(answers))[: draw(st.integers(2, len(answers)))]
    values = draw(st.lists(st.integers(0, 3), min_size=len(shown), max_size=len(shown)))
    best_only = draw(st.booleans()) and len(shown) > 2
    return Judgement(
        id=f"j{number}",
        prompt_id=answers[0].prompt_id,
        annotator=draw(TEXT.filter(str.strip)),
        source="human",
        shown=tuple(answer.id for answer in shown),
        ranks=(1, *[2] * (len(shown) - 1)) if best_only else dense_ranks(values),
        flags=(BEST_ONLY,) if best_only else (),
        strength=draw(st.sampled_from([None, 1, 4])),
        criterion=draw(st.sampled_from(["overall", "overall", "harm"])),
        seconds=draw(st.sampled_from([None, 1.5])),
    )


@pytest.fixture
def stored(empty_sqlite: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copy(empty_sqlite, tmp_path / "stored.db")
    with Store.open(tmp_path / "stored.db") as store:
        yield store


# One pair as (conversation, better, worse, strength, split), counted by hand from the records.

Said = tuple[Any, ...]


def turns(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content) for message in prompt.messages)


def pairs(store: Store, criterion: str = "overall") -> tuple[Counter[Said], int]:
    """Pairs in which one answer is better, and the number of ties."""
    texts = {answer.id: answer.text for answer in store.completions()}
    asked = {prompt.id: prompt for prompt in store.prompts()}
    found, ties = Counter[Said](), 0
    for judgement in store.judgements(criterion):
        prompt = asked[judgement.prompt_id]
        ranked = list(zip(judgement.ranks, judgement.shown, strict=True))
        for place, (rank, key) in enumerate(ranked):
            for other_rank, other in ranked[place + 1 :]:
                if rank == other_rank:
                    ties += BEST_ONLY not in judgement.flags
                    continue
                better, worse = (key, other) if rank < other_rank else (other, key)
                found[turns(prompt), texts[better], texts[worse], judgement.strength, prompt.split] += 1
    return found, ties


def round_trip(
    empty_sqlite: Path, records: list[AnyRecord], format: ExportFormat, ending: str, **how: Any
) -> Iterator[tuple[Store, Store, ExportReport]]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(empty_sqlite, folder / "one.db")
        shutil.copy(empty_sqlite, folder / "other.db")
        with Store.open(folder / "one.db") as one, Store.open(folder / "other.db") as other:
            one.add(records)
            report = export_file(one, format, folder / f"out{ending}", **how)
            if report.rows:
                layout = format.split("-")[0]
                imported = import_file(other, folder / f"out{ending}", layout)  # type: ignore[arg-type]
                assert imported.rows - (format == "prefloop") == report.rows - (format == "prefloop")
                assert not imported.skipped
            yield one, other, report


ALTERNATE = [[("user", "assistant")[i % 2] for i in range(2 * n + 1)] for n in range(3)]


def everything(_: Said) -> bool:
    return True


def dialogue_carries(said: Said) -> bool:
    texts = [text for _, text in said[0]] + [said[1], said[2]]
    plain = all(text == text.strip() and "Human:" not in text and "Assistant:" not in text for text in texts)
    return plain and [role for role, _ in said[0]] in ALTERNATE


def alpaca_carries(said: Said) -> bool:
    roles = [role for role, _ in said[0]]
    if roles[0] == "system":
        return bool(said[0][0][1]) and roles[1:] in ALTERNATE and bool(said[0][-1][1].strip())
    return roles in ALTERNATE and bool(said[0][-1][1].strip())


CARRIES = {
    "comparison": everything,
    "sharegpt-comparison": everything,
    "alpaca-comparison": alpaca_carries,
    "dialogue": dialogue_carries,
    "alpacaeval": lambda said: [role for role, _ in said[0]] == ["user"] and bool(said[0][0][1].strip()),
}
quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("format", CARRIES)
@quick
@given(records=stores(), ending=st.sampled_from(ENDINGS))
def test_comparisons_come_back(empty_sqlite: Path, format: Any, records: list[AnyRecord], ending: str) -> None:
    for one, other, report in round_trip(empty_sqlite, records, format, ending):
        said, ties = pairs(one)
        carried = Counter({key: count for key, count in said.items() if CARRIES[format](key)})
        came, came_ties = pairs(other)
        if format == "dialogue":  # what happens to read the same is carried, too
            assert carried <= came <= said
        else:
            assert came == carried
        own = sum(count for why, count in report.left_out.items() if not why.startswith("by the criterion"))
        assert report.rows + own == said.total() + ties
        assert report.rows == came.total() + came_ties
        harm = sum(judgement.criterion == "harm" for judgement in one.judgements())
        assert report.left_out.total() - own == harm


@quick
@given(records=stores())
def test_a_criterion_is_exported_by_its_name(empty_sqlite: Path, records: list[AnyRecord]) -> None:
    for one, other, _ in round_trip(empty_sqlite, records, "comparison", ".csv", criterion="harm"):
        assert pairs(other, "harm") == (pairs(one, "harm")[0], 0)
        assert {judgement.criterion for judgement in other.judgements()} <= {"harm"}


@quick
@given(records=stores(), ending=st.sampled_from([".jsonl", ".json"]))
def test_rankings_come_back_as_trees(empty_sqlite: Path, records: list[AnyRecord], ending: str) -> None:
    def rankings(store: Store) -> Counter[Said]:
        # An author without a name is the file.
        texts = {answer.id: (answer.text, answer.origin or f"file:out{ending}") for answer in store.completions()}
        asked = {prompt.id: prompt for prompt in store.prompts()}
        return Counter(
            (
                turns(asked[judgement.prompt_id]),
                frozenset((*texts[key], rank) for key, rank in zip(judgement.shown, judgement.ranks, strict=True)),
                judgement.strength,
                asked[judgement.prompt_id].split,
            )
            for judgement in store.judgements("overall")
            if BEST_ONLY not in judgement.flags
            and [role for role, _ in turns(asked[judgement.prompt_id])] in ALTERNATE
        )

    for one, other, report in round_trip(empty_sqlite, records, "oasst", ending):
        assert rankings(other) == rankings(one)
        assert report.rows + report.left_out.total() == len(list(one.judgements()))


@pytest.mark.parametrize("format", ["demonstration", "sharegpt-demonstration", "alpaca-demonstration"])
@quick
@given(records=stores(), ending=st.sampled_from(ENDINGS))
def test_demonstrations_come_back(empty_sqlite: Path, format: Any, records: list[AnyRecord], ending: str) -> None:
    def shown(store: Store) -> list[Said]:
        asked = {prompt.id: prompt for prompt in store.prompts()}
        found = [(turns(asked[d.prompt_id]), d.text, asked[d.prompt_id].split) for d in store.demonstrations()]
        keep = alpaca_carries if format.startswith("alpaca") else everything
        return list(dict.fromkeys(said for said in found if said[1].strip() and keep(said)))

    for one, other, report in round_trip(empty_sqlite, records, format, ending):
        assert shown(other) == shown(one)
        assert report.rows + report.left_out.total() == len(list(one.demonstrations()))


@pytest.mark.parametrize("format", ["unpaired", "sharegpt-unpaired", "alpaca-unpaired"])
@quick
@given(records=stores(), ending=st.sampled_from(ENDINGS))
def test_labels_come_back_and_pairs_with_them(
    empty_sqlite: Path, format: Any, records: list[AnyRecord], ending: str
) -> None:
    for one, other, report in round_trip(empty_sqlite, records, format, ending):
        said, ties = pairs(one)
        keep = alpaca_carries if format.startswith("alpaca") else everything
        carried = Counter({(*key[:3], None, key[4]): 0 for key in said})
        for key, count in said.items():
            carried[(*key[:3], None, key[4])] += count if keep(key) else 0
        came, _ = pairs(other)
        assert came == +carried
        assert report.rows == 2 * came.total()
        others = sum(count for why, count in report.left_out.items() if why.startswith("by the criterion"))
        assert report.rows + report.left_out.total() - others == 2 * said.total() + ties


@quick
@given(records=stores(), ending=st.sampled_from(ENDINGS))
def test_prompts_come_back(empty_sqlite: Path, records: list[AnyRecord], ending: str) -> None:
    for one, other, report in round_trip(empty_sqlite, records, "prompt", ending):
        assert list(other.prompts()) == list(one.prompts())
        assert not report.left_out


@quick
@given(records=stores())
def test_a_whole_store_comes_back(empty_sqlite: Path, records: list[AnyRecord]) -> None:
    said = [record for record in records if isinstance(record, Judgement)]
    events: list[AnyRecord] = [
        said[i].model_copy(update={"id": f"later{i}", "supersedes": said[i].id, "retracted": i % 3 == 1})
        for i in range(0, len(said), 2)
    ]
    for one, other, report in round_trip(empty_sqlite, [*records, *events], "prefloop", ".jsonl"):
        for read in (
            lambda store: list(store.prompts()),
            lambda store: list(store.completions()),
            lambda store: list(store.demonstrations(effective=False)),
            lambda store: list(store.judgements(effective=False)),
        ):
            assert read(other) == read(one)
        counts = one.counts()
        assert report.rows == 1 + counts.prompts + counts.completions + counts.demonstrations + counts.judgements


# Labels


def test_labels_are_written_again_as_they_came(stored: Store, tmp_path: Path) -> None:
    """Repeated and contradictory ones too; a pair that they make is not written a second time."""
    said = [("Q", "a", True), ("Q", "b", False), ("Q", "a", False), ("R", "c", True), ("Q", "a", True)]
    rows = [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in said]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = import_file(stored, path)
    assert (report.format, report.added.completions, report.added.judgements) == ("unpaired", 5, 1)
    assert sum(report.noted.values()) == 3, "without an opposite: a again (false), c, and a again (true)"
    assert import_file(stored, path).added == Counts()
    export_file(stored, "unpaired", tmp_path / "out.jsonl")
    assert rows_of(tmp_path / "out.jsonl") == rows
    # For those who take pairs, it is one.
    assert export_file(stored, "comparison", tmp_path / "pairs.jsonl").rows == 1


# Files


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def one_pair(store: Store, **fields: Any) -> None:
    prompt = Prompt.of("Q")
    answers = [Completion(prompt_id=prompt.id, text=text, origin="test") for text in ("=A", "B")]
    shown = tuple(answer.id for answer in answers)
    said = Judgement(id="1", prompt_id=prompt.id, annotator="a", source="human", shown=shown, ranks=(1, 2), **fields)
    store.add([prompt, *answers, said])


def test_formulas_are_escaped_in_csv_only(stored: Store, tmp_path: Path) -> None:
    one_pair(stored)
    for ending in (".csv", ".jsonl"):
        export_file(stored, "comparison", tmp_path / f"out{ending}")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert [row["chosen"] for row in csv.DictReader(file)] == ["'=A"]
    assert rows_of(tmp_path / "out.jsonl")[0]["chosen"] == "=A"


def test_the_datasets_library_loads_the_folder(stored: Store, tmp_path: Path) -> None:
    one_pair(stored, strength=3)
    export_file(stored, "comparison", tmp_path / "folder")
    loaded = datasets.load_from_disk(str(tmp_path / "folder"))
    row = {"prompt": "Q", "chosen": "=A", "rejected": "B", "strength": 3, "criterion": None, "split": None}
    assert loaded.to_list() == [row]
    assert loaded.features["strength"].dtype == "int64"


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_overwritten_and_nothing_half_written(stored: Store, tmp_path: Path, ending: str) -> None:
    one_pair(stored)
    out = tmp_path / f"out{ending}"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is there already and was left as it is"):
        export_file(stored, "comparison", out)
    assert out.read_text(encoding="utf-8") == "mine"
    out.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefloop.feedback.formats.exports.trl.write_comparison", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_file(stored, "comparison", out)
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".db", ".db-wal", ".db-shm")] == []


def test_what_cannot_be_written_is_told(stored: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.xlsx is no ending of a file that can be written; expected \.jsonl"):
        export_file(stored, "comparison", tmp_path / "out.xlsx")
    with pytest.raises(ValueError, match=r"has no columns; name a \.jsonl or \.json file"):
        export_file(stored, "prefloop", tmp_path / "out.csv")
    with pytest.raises(ValueError, match="there is no folder"):
        export_file(stored, "prompt", tmp_path / "no" / "out.csv")
    with pytest.raises(ValueError, match="unknown format 'chat'; expected one of prefloop, comparison"):
        export_file(stored, "chat", tmp_path / "out.csv")  # type: ignore[arg-type]


def test_guidelines_go_with_the_judgements_that_name_them(stored: Store, empty_sqlite: Path, tmp_path: Path) -> None:
    stored.add_guidelines("Be *kind*.", "mia")
    one_pair(stored, guidelines=1)
    export_file(stored, "prefloop", tmp_path / "all.jsonl")
    shutil.copy(empty_sqlite, tmp_path / "other.db")
    with Store.open(tmp_path / "other.db") as other:
        import_file(other, tmp_path / "all.jsonl")
        assert other.guidelines() == stored.guidelines()
        assert list(other.judgements()) == list(stored.judgements())
        assert import_file(other, tmp_path / "all.jsonl").added == Counts()
    with Store.open(tmp_path / "third.db") as third:
        third.add_guidelines("Be *brief*.", "mia")
        with pytest.raises(ValueError, match="guidelines 1 are here already with another text"):
            import_file(third, tmp_path / "all.jsonl")
        assert third.counts() == Counts()


def test_every_format_has_a_round_trip() -> None:
    tested = {*CARRIES, "oasst", "prompt", "prefloop", "demonstration", "sharegpt-demonstration"}
    tested |= {"alpaca-demonstration", "unpaired", "sharegpt-unpaired", "alpaca-unpaired"}
    assert tested == set(get_args(ExportFormat))


# The real file, and one that is not as regular


def test_dialogues_go_in_and_out_unchanged(tmp_path: Path) -> None:
    """Made ones; and the real file's 2,312 rows, where it lies beside the project."""
    made = tmp_path / "made.jsonl"
    begin = "\n\nHuman: Hi  \n\nAssistant: Yes?\n\n\n\nHuman: What of "
    made.write_text(
        "".join(
            json.dumps(
                {"chosen": f"{begin}{i}?\n\nAssistant: A{' ' * (i % 3)}", "rejected": f"{begin}{i}?\n\nAssistant:"}
            )
            + "\n"
            for i in range(40)
        ),
        encoding="utf-8",
    )
    for path, count in [(made, 40), *([(HH, 2312)] if HH.exists() else [])]:
        with Store.open(tmp_path / f"{count}.db") as store:
            import_file(store, path)
            report = export_file(store, "dialogue", tmp_path / f"{count}.jsonl")
        assert (report.rows, report.left_out) == (count, {})
        rows = zip(rows_of(tmp_path / f"{count}.jsonl"), rows_of(path), strict=True)
        assert sum(row != old for row, old in rows) == 0


SPACE = st.text(" \n\t", max_size=3)


@quick
@given(spaces=st.lists(SPACE, min_size=9, max_size=9), lead=st.sampled_from(["", "\n\n", " \n"]))
def test_odd_spacing_of_a_dialogue_is_kept(empty_sqlite: Path, spaces: list[str], lead: str) -> None:
    a, b, c, d, e, f, g, h, i = spaces
    begin = f"{lead}Human:{a}Hi{b}\n\nAssistant:{c}Yes?{d}\n\nHuman:{e}So{f}"
    row = {"chosen": f"{begin}\n\nAssistant:{g}Good{h}", "rejected": f"{begin}\n\nAssistant:{i}Bad"}
    with TemporaryDirectory() as name:
        shutil.copy(empty_sqlite, Path(name) / "one.db")
        (Path(name) / "in.jsonl").write_text(json.dumps(row), encoding="utf-8")
        with Store.open(Path(name) / "one.db") as store:
            import_file(store, Path(name) / "in.jsonl")
            export_file(store, "dialogue", Path(name) / "out.jsonl")
            assert {answer.text for answer in store.completions()} == {"Good", "Bad"}
        assert rows_of(Path(name) / "out.jsonl") == [row]
