"""A large file is read in a process of its own: with the same result, the same errors, and nothing left behind."""

import csv
import gzip
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.formats.files import lines

from prefloop.feedback.formats import ImportReport, apart, export_file, import_file, read_file, write_sheet
from prefloop.feedback.formats.reading import refuse
from prefloop.feedback.records import Completion, Prompt
from prefloop.feedback.store import AnyRecord, Counts, Store

ROWS = [{"prompt": f"Q{i}", "chosen": f"A{i}", "rejected": f"B{i}\0\U0001f600"} for i in range(3000)]
BAD = [*ROWS[:3], {"prompt": "Q", "chosen": "A", "rejected": "A"}, 7, {"prompt": "Q"}, *ROWS[3:5]]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every file is large; these are the processes that were started."""
    started = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            started.append(self)

    monkeypatch.setattr(apart, "_LARGE", 0)
    monkeypatch.setattr(apart.subprocess, "Popen", Popen)
    return started


def sent(path: Path, report: ImportReport) -> list[AnyRecord]:
    return list(apart.records_apart(path, None, report, refuse(path)))


def timeless(records: list[AnyRecord]) -> list[Any]:
    return [(type(record), vars(record) | {"created": None}) for record in records]


def kinds_of_files(folder: Path) -> Iterator[Path]:
    yield lines(folder / "rows.jsonl", *ROWS, {"prompt": "Q1", "chosen": "A1", "rejected": " ", "more": 1})
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    yield lines(folder / "talk.jsonl", {"messages": talk})
    yield lines(folder / "labels.jsonl", {"prompt": "Q", "completion": "A", "label": True})
    prompt = Prompt.of("Q")
    answers = [Completion(prompt_id=prompt.id, text=text, origin="m") for text in "AB"]
    write_sheet(folder / "sheet.jsonl", [(prompt, answers)])
    yield folder / "sheet.jsonl"
    with Store.open(folder / "feedback.db") as store:
        store.add_guidelines("Be kind.", "mia")
        store.add([prompt, *answers])
        export_file(store, "prefloop", folder / "whole.jsonl")
    yield folder / "whole.jsonl"
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress((folder / "rows.jsonl").read_bytes()))
    yield folder / "rows.jsonl.gz"
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], ["Q", "A", "'=B"]])
    yield folder / "rows.csv"


def test_what_is_read_apart_is_what_is_read_here(tmp_path: Path) -> None:
    for path in kinds_of_files(tmp_path):
        here, there = ImportReport(), ImportReport()
        records = list(read_file(path, report=here))
        assert timeless(sent(path, there)) == timeless(records), path.name
        assert vars(there) == vars(here)
        assert here.rows


def test_rejected_rows_come_over(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "rows.jsonl", *BAD)
    here = import_file(store, path, skip_bad=True)
    assert here.rejected is not None
    written = here.rejected.read_bytes()
    assert written.count(b"\n") == 3
    monkeypatch.setattr(apart, "_LARGE", 0)
    with Store.open(tmp_path / "other.db") as other:
        there = import_file(other, path, skip_bad=True)
    assert there == here
    assert there.rejected is not None
    assert there.rejected.read_bytes() == written


def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, store: Store, children: list[Any]) -> None:
    path = lines(tmp_path / "rows.jsonl", *ROWS, *BAD, *ROWS)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3004: chosen and rejected are the same"):
        import_file(store, path)
    with pytest.raises(FileNotFoundError):
        sent(tmp_path / "gone.jsonl", ImportReport())
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        import_file(store, lines(tmp_path / "empty.jsonl"))
    assert store.counts() == Counts()
    assert [child.poll() is not None for child in children] == [True] * 3


def test_what_the_store_refuses_ends_the_child(tmp_path: Path, store: Store, children: list[Any]) -> None:
    store.add([Prompt.of("Q1", split="heldout")])
    path = lines(tmp_path / "rows.jsonl", ROWS[0], ROWS[1] | {"split": "train"}, *ROWS * 5)
    with pytest.raises(ValueError, match="cannot be put in the split 'train' too"):
        import_file(store, path)
    assert store.counts() == Counts(prompts=1)
    assert children[0].poll() == -9, "it had more to say than anybody read"


def test_a_child_that_is_killed_is_no_end_of_the_file(tmp_path: Path, store: Store, children: list[Any]) -> None:
    path = lines(tmp_path / "rows.jsonl", *ROWS * 5)

    def killed() -> Iterator[AnyRecord]:
        with closing(apart.records_apart(path, None, ImportReport(), refuse(path))) as records:
            yield from islice(records, 10)
            children[0].kill()
            yield from records

    with pytest.raises(
        RuntimeError, match=r"the process that read .*rows\.jsonl was ended from outside \(status -9\)"
    ):
        store.add(killed())
    assert store.counts() == Counts()


def test_an_interrupt_ends_the_child(
    tmp_path: Path, store: Store, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Store, records: Iterator[AnyRecord]) -> Counts:
        next(records)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", interrupted)
    with pytest.raises(KeyboardInterrupt) as held:  # a traceback keeps generators alive, but not the child
        import_file(store, lines(tmp_path / "rows.jsonl", *ROWS * 5))
    assert children[0].poll() == -9
    assert held.tb is not None


def test_a_script_without_a_main_guard_imports_once(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", *ROWS[:10])
    script = tmp_path / "script.py"
    script.write_text(
        "from prefloop.feedback.formats import apart, import_file\n"
        "from prefloop.feedback.store import Store\n"
        "apart._LARGE = 0\n"
        "with Store.open('feedback.db') as store:\n"
        "    print(import_file(store, 'rows.jsonl').added)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{Counts(prompts=10, completions=20, judgements=10)}\n", "")


def test_a_small_file_is_read_here(
    tmp_path: Path, store: Store, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "_LARGE", 2**20)
    import_file(store, lines(tmp_path / "rows.jsonl", *ROWS))
    assert not children


def test_a_sheet_that_comes_again_corrects(tmp_path: Path, store: Store, children: list[Any]) -> None:
    rows, records = [], list[AnyRecord]()
    for number in range(600):  # the first of them are taken before the last ones are sent
        prompt = Prompt.of(f"Q{number}")
        answers = [Completion(prompt_id=prompt.id, text=text, origin="m") for text in "AB"]
        records += [prompt, *answers]
        shown = [{"id": answer.id, "text": answer.text} for answer in answers]
        rows.append({"prompt_id": prompt.id, "prompt": prompt.text, "answers": shown, "annotator": "mia"})
    store.add(records)
    import_file(store, lines(tmp_path / "sheet.jsonl", *(row | {"choice": "1"} for row in rows)))
    again = import_file(store, lines(tmp_path / "sheet.jsonl", *(row | {"choice": "2"} for row in rows)))
    assert again.corrected == 600
    assert {judgement.ranks for judgement in store.judgements()} == {(2, 1)}
    assert len(children) == 2
