"""Published dialogues: two transcripts that part at the last answer."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.feedback.formats.files import HH, dialogue, lines, one_pair, read, turns

from prefloop.feedback.formats import ImportReport, import_file, read_file
from prefloop.feedback.store import Counts, Store


def test_dialogue(tmp_path: Path) -> None:
    row = {"chosen": dialogue("Hi", "Yes?", "Why?", "So."), "rejected": dialogue("Hi", "Yes?", "Why?", "No.")}
    prompt, better, worse = one_pair(read(tmp_path, row))
    assert turns(prompt) == [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    assert (better, worse) == ("So.", "No.")


def test_dialogue_a_marker_that_the_speaker_wrote_stays_in_the_text(tmp_path: Path) -> None:
    chosen = dialogue("Hi", "A poem:\n\nAssistant: Roses. Human: no")
    prompt, better, worse = one_pair(read(tmp_path, {"chosen": chosen, "rejected": dialogue("Hi", "A poem:")}))
    assert turns(prompt) == [("user", "Hi")]
    assert (better, worse) == ("A poem:\n\nAssistant: Roses. Human: no", "A poem:")


def test_dialogue_an_empty_answer_is_noted(tmp_path: Path) -> None:
    path = lines(tmp_path / "x", {"chosen": "\n\nHuman: Hi\n\nAssistant: ", "rejected": dialogue("Hi", "Boo")})
    report = ImportReport()
    _, better, worse = one_pair(list(read_file(path, report=report)))
    assert (better, worse) == ("", "Boo")
    assert report.noted == {"an answer is empty": 1}


WORDS = st.text("ab \n:é\u2028", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1), WORDS, WORDS)
def test_dialogue_round_trip(tmp_path_factory: Any, shared: list[str], better: str, worse: str) -> None:
    if better == worse:
        return
    path = tmp_path_factory.mktemp("dialogue") / "rows.jsonl"
    lines(path, {"chosen": dialogue(*shared, better), "rejected": dialogue(*shared, worse)})
    prompt, *texts = one_pair(list(read_file(path)))
    assert [message.content for message in prompt.messages] == shared
    assert texts == [better, worse]


def test_every_dialogue_is_read_to_the_letter(tmp_path: Path) -> None:
    """Made ones; and the real file's, where it lies beside the project."""
    made = tmp_path / "made.jsonl"
    begin = "\n\nHuman: Hi \n\nAssistant: Yes?\n\nHuman: What of "
    rows = [
        {"chosen": f"{begin}{i}?\n\nAssistant: A {i}", "rejected": f"{begin}{i}?\n\nAssistant: B"} for i in range(9)
    ]
    made.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with Store.open(tmp_path / "made.db") as store:
        assert import_file(store, made).rows == 9
        check_to_the_letter(store, made)
    if HH.exists():
        with Store.open(tmp_path / "hh.db") as store:
            report = import_file(store, HH)
            assert (report.format, report.rows, report.skipped) == ("dialogue", 2312, {})
            assert report.added == Counts(prompts=2310, completions=4624, judgements=2312)
            assert report.noted == {"an answer is empty": 4}
            check_to_the_letter(store, HH)


def check_to_the_letter(store: Store, path: Path) -> None:
    # Every dialogue is there to the letter, white space around turns aside.
    texts = {completion.id: completion.text for completion in store.completions()}
    prompts = {prompt.id: prompt for prompt in store.prompts()}
    names = {"user": "Human", "assistant": "Assistant"}
    with path.open(encoding="utf-8") as file:
        for line, judgement in zip(file, store.judgements(), strict=True):
            row = json.loads(line)
            context = "".join(f"\n\n{names[r]}: {c}" for r, c in turns(prompts[judgement.prompt_id]))
            for key, rank in zip(judgement.shown, judgement.ranks, strict=True):
                original = row["chosen" if rank == 1 else "rejected"]
                assert squeezed(f"{context}\n\nAssistant: {texts[key]}") == squeezed(original)


def squeezed(text: str) -> str:
    return "".join(text.split())
