"""Rows out of every kind of file, and the faults that each kind can have."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.feedback.formats import containers
from prefloop.feedback.formats.containers import open_rows
from prefloop.feedback.formats.rows import RowError

ROWS: list[Any] = [
    {"prompt": "Q\n\u2028", "chosen": [{"role": "assistant", "content": "é"}], "strength": 3},
    {"prompt": '"a,b"', "chosen": [{"role": "assistant", "content": ""}], "strength": 1},
]


def rows(path: Path) -> list[Any]:
    return [str(row) if isinstance(row, RowError) else row for _, row in open_rows(path).rows]


def write(path: Path, rows: list[Any]) -> Path:
    if path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0])
            writer.writerows(
                [value if isinstance(value, str) else json.dumps(value) for value in row.values()] for row in rows
            )
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x"])
def test_every_kind_of_file_has_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    assert rows(path) == ROWS
    if path.is_file():
        zipped = tmp_path / f"{name}.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        if path.suffix != ".parquet":
            assert rows(zipped) == ROWS


def test_the_kind_is_found_by_looking(tmp_path: Path) -> None:
    array = tmp_path / "rows.txt"
    array.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode())
    assert (rows(array), open_rows(array).unit) == (ROWS, "item")
    lines = tmp_path / "rows.json"
    lines.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    assert (rows(lines), open_rows(lines).unit) == (ROWS, "line")


# JSON arrays are read in pieces, which may end anywhere.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(made=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), piece=st.integers(1, 9))
def test_an_array_in_pieces(tmp_path_factory: Any, made: list[Any], piece: int) -> None:
    path = tmp_path_factory.mktemp("array") / "rows.json"
    path.write_text(json.dumps(made, ensure_ascii=False, indent=piece % 3), encoding="utf-8", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "_CHUNK", piece)
        assert [row for _, row in containers._array(path)] == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": }, {"a": 3}]', "item 2: not valid JSON: Expecting value; what follows cannot be read"),
        ('[{"a": 1} {"a": 2}]', "item 2: not valid JSON: there is no comma before it"),
        ('[{"a": 1}, {"a": 2}', "item 3: not valid JSON: the array is not closed"),
        ('[{"a": 1}, {"a": "2', "item 2: not valid JSON: Unterminated string"),
        ("[" * 100_000, "item 1: not valid JSON: a number is too long, or it is nested too deeply"),
        ('[{"a": 1}] {"a": 2}', "something follows the JSON array's end"),
        ('[{"a": "' + "x" * 200 + '"}]', "item 1: not valid JSON: it is longer than 0 MiB"),
    ],
)
def test_an_array_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(containers, "_CHUNK", 32)
    monkeypatch.setattr(containers, "LARGEST", 2**20 if len(text) > 1000 else 100)
    with pytest.raises(ValueError, match=rf"rows\.json.*{message}"):
        rows(path)


def test_items_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, 3, {"b": 1, "b": 2}, {"a": 4}]', encoding="utf-8")
    assert rows(path) == [
        {"a": 1},
        "the item is a JSON number: expected one object per item: {...}",
        "field 'b' is there twice",
        {"a": 4},
    ]


def test_an_array_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(ValueError, match=r"rows\.json: not UTF-8 text: invalid start byte; save as UTF-8"):
        rows(tmp_path / "rows.json")


# CSV

CELL = st.sampled_from(["=1", "'=1", "''@", "[1]", "[[1]]", "{}", "\t", "+", "-1", "'", "a"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=5
)


def test_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,chosen,label,strength,preference,split\r\n"
        "'=1,[x],TRUE,3,1.5,\r\n"
        '\'a,"{""a"": 1}",false,,2,train\r\n'
        "''=1,\"line\nbreak\",maybe,much,,\r\n",
        encoding="utf-8",
    )
    assert rows(path) == [
        {"prompt": "=1", "chosen": "[x]", "label": True, "strength": 3, "preference": 1.5},
        {"prompt": "'a", "chosen": {"a": 1}, "label": False, "preference": 2, "split": "train"},
        {"prompt": "'=1", "chosen": "line\nbreak", "label": "maybe", "strength": "much"},
    ]


def test_rows_of_csv_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\r\n1,2,3\r\n\r\n"x\ny",\xff\r\n"x"y,1\r\nend,1\r\n')
    numbered = list(open_rows(path).rows)
    assert [number for number, _ in numbered] == [2, 4, 6, 7]
    assert rows(path) == [
        "another number of cells than in the header: 3, not 2",
        "not UTF-8 text: save as UTF-8",
        "not valid CSV: ',' expected after '\"'",
        {"a": "end", "b": "1"},
    ]
    path.write_text("a,a\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: two columns have the same name"):
        rows(path)


# Parquet and folders


def test_what_is_null_in_a_column_is_absent(tmp_path: Path) -> None:
    mixed = [
        {"a": "x", "m": [{"role": "user", "name": "Bo"}], "b": None},
        {"a": None, "m": [{"role": "user"}], "b": 1},
    ]
    expected = [{"a": "x", "m": [{"role": "user", "name": "Bo"}]}, {"m": [{"role": "user"}], "b": 1}]
    assert rows(write(tmp_path / "x.parquet", mixed)) == expected


def test_a_dictionary_of_datasets(tmp_path: Path) -> None:
    part = datasets.Dataset.from_list([{"prompt": "Q"}])
    datasets.DatasetDict({"train_prefs": part, "test": part, "more": part}).save_to_disk(str(tmp_path / "x"))
    assert rows(tmp_path / "x") == [
        {"split": "train", "prompt": "Q"},
        {"split": "heldout", "prompt": "Q"},
        {"prompt": "Q"},
    ]


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", 3])
def test_a_folder_names_only_what_is_in_it(tmp_path: Path, name: Any) -> None:
    folder = write(tmp_path / "x", ROWS)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}), encoding="utf-8")
    with pytest.raises(ValueError, match="is not a name inside the folder"):
        rows(folder)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"x\.parquet is not a Parquet file that can be read"):
        rows(tmp_path / "x.parquet")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz is damaged"):
        rows(tmp_path / "x.jsonl.gz")
    folder = write(tmp_path / "folder", ROWS)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    with pytest.raises(ValueError, match="is not an Arrow file that can be read"):
        rows(folder)
    (folder / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no data is named in it"):
        rows(folder)
    (folder / "state.json").unlink()
    with pytest.raises(ValueError, match="is not a folder that datasets' save_to_disk wrote"):
        rows(folder)
