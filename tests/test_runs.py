"""A stage is written whole or not at all, whatever happens in between."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from prefloop.runs import RunFolder, file_hash, read_json, read_lines, write_json, write_lines, write_text


def write(runs: RunFolder, key: str, text: str = "content", stage: str = "sft") -> None:
    with runs.writing(stage, key, {"pretrain": "p"}, seed=7) as writer:
        (writer.folder / "model").mkdir()
        (writer.folder / "model" / "weights").write_text(text, encoding="utf-8")
        writer.extra["eval_loss"] = 1.5


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_stage_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path / "runs" / "a")
    with runs.writing("sft", "k", {"pretrain": "p"}, seed=7) as writer:
        (writer.folder / "x").write_text("1", encoding="utf-8")
        assert not (runs.path / "sft").exists()
    assert names(runs.path) == {"sft"}
    assert runs.is_current("sft", "k")
    assert not runs.is_current("sft", "other")
    assert not runs.is_current("ppo", "k")


def test_a_manifest_says_what_was_made_from_what(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    write(runs, "k")
    manifest = runs.manifest("sft")
    assert manifest is not None
    assert (manifest["stage"], manifest["key"], manifest["seed"]) == ("sft", "k", 7)
    assert manifest["inputs"] == {"pretrain": "p"}
    assert manifest["outputs"] == {"model/weights": file_hash(tmp_path / "sft" / "model" / "weights")}
    assert manifest["eval_loss"] == 1.5
    assert manifest["seconds"] >= 0
    assert manifest["peak_memory_mb"] > 10
    assert {"python", "prefloop", "torch", "transformers"} <= manifest["versions"].keys()


def test_peak_memory_is_of_this_process_alone() -> None:
    """Not of a larger one that started it; and what was held and given back counts."""
    child = "held = bytearray(150 << 20); del held; from prefloop.runs import peak_memory_mb; print(peak_memory_mb())"
    parent = f"import subprocess, sys; held = bytearray(400 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 150 < float(done.stdout) < 350


def fail(runs: RunFolder, error: type[BaseException]) -> None:
    with runs.writing("sft", "new", {}, seed=0) as writer:
        (writer.folder / "half").write_text("", encoding="utf-8")
        raise error("boom")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_stage_that_fails_is_not_there(tmp_path: Path, error: type[BaseException]) -> None:
    runs = RunFolder(tmp_path)
    with pytest.raises(error):
        fail(runs, error)
    assert not (tmp_path / "sft").exists()
    write(runs, "k")
    assert names(tmp_path) == {"sft"}
    assert names(tmp_path / "sft") == {"model", "manifest.json"}


def test_a_stage_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    write(runs, "old", "old")
    with pytest.raises(ValueError, match="boom"):
        fail(runs, ValueError)
    assert runs.is_current("sft", "old")
    assert (tmp_path / "sft" / "model" / "weights").read_text(encoding="utf-8") == "old"
    write(runs, "new", "new")
    assert names(tmp_path) == {"sft"}
    assert (tmp_path / "sft" / "model" / "weights").read_text(encoding="utf-8") == "new"


def test_an_end_between_the_two_renames_leaves_no_half_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RunFolder(tmp_path)
    write(runs, "old", "old")
    rename = Path.rename

    def dies(path: Path, target: Path) -> Path:
        if path.name == ".sft.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        write(runs, "new", "new")
    monkeypatch.setattr(Path, "rename", rename)
    assert runs.manifest("sft") is None
    write(runs, "new", "new")
    assert names(tmp_path) == {"sft"}
    assert runs.is_current("sft", "new")


def test_an_end_while_the_old_stage_is_removed_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = RunFolder(tmp_path)
    write(runs, "old")

    remove = shutil.rmtree

    def dies(path: Path, ignore_errors: bool) -> None:
        if (tmp_path / ".sft.old").exists():
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("prefloop.runs.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        write(runs, "new")
    assert runs.is_current("sft", "new")


def test_a_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    write(runs, "k")
    (tmp_path / "sft" / "manifest.json").write_text('{"key": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*Delete .*sft to run the stage again"):
        runs.is_current("sft", "k")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path / "a")
    with runs.lock():
        with pytest.raises(ValueError, match=r"another prefloop is writing .*a\. Wait"), RunFolder(runs.path).lock():
            raise AssertionError("two writers")
        with RunFolder(tmp_path / "b").lock():
            pass
    with pytest.raises(KeyError), runs.lock():
        raise KeyError
    with runs.lock():
        pass


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_nan_and_a_refused_file_stays_as_it_was(tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": value})
    with pytest.raises(ValueError, match="JSON"):
        write_lines(tmp_path / "x.jsonl", [value])
    assert read_json(path) == {"a": 1}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def dies(path: Path, text: str, encoding: str) -> NoReturn:
        path.write_bytes(b"ne")
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", dies)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


def test_lines_hold_any_text(tmp_path: Path) -> None:
    rows = [{"text": "a\nb\r\nc\u2028d\u0085e"}, {"text": "ü"}, 3]
    write_lines(tmp_path / "x.jsonl", rows)
    assert read_lines(tmp_path / "x.jsonl") == rows
    assert "ü" in (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "x.jsonl").read_bytes().split(b"\n")[0]) == rows[0]


def test_a_hash_is_of_the_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"x")
    other.write_bytes(b"x")
    assert file_hash(one) == file_hash(other)
    other.write_bytes(b"y")
    assert file_hash(one) != file_hash(other)
    assert len(file_hash(one)) == 32
