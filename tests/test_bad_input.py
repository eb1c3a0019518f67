"""What people get wrong: exit status 2, one clear message without a traceback, and nothing half written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests import toys
from tests.commands import Call, names, ok, settings
from tests.runs import dialogues

from prefloop.feedback.store import Counts, Store
from prefloop.policy import Policy, load_policy

GOOD = {"prompt": "What?", "chosen": "This.", "rejected": "No."}


@pytest.fixture
def refused(call: Call, tmp_path: Path) -> Any:
    """Calls prefloop, expects a refusal that leaves the folder as it was, and returns the message."""

    def files() -> set[Path]:
        return {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}

    def run(*arguments: object, left: tuple[str, ...] = ()) -> str:
        before = files()
        outcome = call(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert {path for path in files() - before if path.parts[0] not in left} == set()
        assert before <= files()
        if outcome.err.startswith("error: "):
            assert outcome.err.count("error: ") == 1
        return outcome.err

    return run


def rows(path: Path, *lines: Any) -> Path:
    text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in text))
    return path


def recipe(path: Path, **tables: Any) -> Path:
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in tables.items())
    path.write_text(text, encoding="utf-8")
    return path


# The recipe


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ppo.kl_coeff=0.1", ["ppo.kl_coeff: there is no such key; did you mean ppo.kl_coef?", "Allowed here: "]),
        ("pp.kl_coef=0.1", ["pp: there is no such key; did you mean ppo?"]),
        ('ppo.kl_coef="high"', ["ppo.kl_coef = 'high'", "valid number"]),
        ("ppo.episodes=33", ["ppo: episodes (33) must be a multiple of minibatch_episodes (32)"]),
        ("label.by=simulated", ['label.by = "simulated" needs data.world']),
        ("nonsense", ["--set nonsense: expected SECTION.KEY=VALUE, for example --set ppo.kl_coef=0.1"]),
        ("=1", ["--set =1: expected SECTION.KEY=VALUE"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "demo", "evaluate"])
def test_settings(refused: Any, tmp_path: Path, command: str, setting: str, words: list[str]) -> None:
    if command == "demo" and setting.startswith("label"):
        setting, words = "data.world=", ['label.by = "simulated" needs data.world']
    arguments = {
        "run": ["run", recipe(tmp_path / "r.toml", seed=1)],
        "demo": ["demo"],
        "evaluate": ["evaluate", "a", "b", "--recipe", recipe(tmp_path / "r.toml", seed=1)],
    }[command]
    told = refused(*arguments, "--set", setting)
    for word in words:
        assert word in told


def test_a_wrong_key_in_the_file_names_the_file(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[ppo]\nkl_coeff = 0.1\n[dpo]\nbeta = 0\n", encoding="utf-8")
    told = refused("run", "r.toml")
    assert told.startswith("error: r.toml:\n  ppo.kl_coeff: there is no such key; did you mean ppo.kl_coef?")
    assert "\n  dpo.beta = 0: input should be greater than 0" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such recipe. `prefloop init` writes one to start from"),
        (b"seed: 3", "is not a TOML file: "),
        (b"seed = 3\nseed = 4", "is not a TOML file: "),
        ("# ä".encode("latin-1"), "is not a TOML file: 'utf-8' codec can't decode byte 0xe4"),
    ],
    ids=["missing", "not TOML", "twice", "not UTF-8"],
)
def test_a_recipe_that_cannot_be_read(refused: Any, tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "r.toml").write_bytes(content)
    told = refused("run", "r.toml")
    assert told.startswith("error: r.toml")
    assert words in told


def test_a_recipe_that_is_a_folder(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert "r is a folder; give the recipe itself" in refused("run", "r")


# Data


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt": "a", "chosen": ', "not valid JSON: "),
        (b"\xff\xfe", "not UTF-8 text: byte 1 is 0xff"),
        (b'"a text"', "the line is a JSON text: expected one object per line"),
        ({"prompt": "a", "chosen": "b"}, "field 'rejected' is missing"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "field 'prompt' is a number"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "field 'prompt' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "split": "test"}, "field 'split' is not a split"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "field 'rejected' is a null"),
    ],
)
def test_a_bad_line_names_file_line_and_fault_and_nothing_is_imported(
    refused: Any, tmp_path: Path, line: Any, words: str
) -> None:
    rows(tmp_path / "x.jsonl", GOOD, GOOD | {"prompt": "b"}, line, GOOD | {"prompt": "c"})
    told = refused("import", "x.jsonl", left=("feedback.db",))
    assert told.startswith("error: x.jsonl, line 3: ")
    assert words in told
    with Store.open(tmp_path / "feedback.db") as store:
        assert store.counts() == Counts()


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(refused: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    assert "x.jsonl is empty; expected one JSON object per line" in refused(
        "import", "x.jsonl", left=("feedback.db",)
    )


def test_rows_of_no_known_format(refused: Any, tmp_path: Path) -> None:
    rows(tmp_path / "x.jsonl", {"text": "a"})
    told = refused("import", "x.jsonl", left=("feedback.db",))
    assert "x.jsonl, line 1: not in a known format" in told
    assert "chosen and rejected" in told
    assert "found 'text'" in told


def test_files_that_are_none(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    rows(tmp_path / "x.jsonl", GOOD)
    assert "error: folder: is a folder; name the files in it\n" in refused("import", "x.jsonl", "folder")
    assert "error: none.jsonl: there is no such file\n" in refused("import", "x.jsonl", "none.jsonl")


def test_a_format_that_there_is_not(refused: Any, tmp_path: Path) -> None:
    rows(tmp_path / "x.jsonl", GOOD)
    assert "'sheets' is not one of" in re.sub(r"[│\s]+", " ", refused("import", "--format", "sheets", "x.jsonl"))


def test_a_sheet_whose_choice_is_none(refused: Any, tmp_path: Path) -> None:
    answers = [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]
    rows(tmp_path / "x.jsonl", {"prompt_id": "p", "answers": answers, "choice": "left", "annotator": "me"})
    told = refused("import", "x.jsonl", left=("feedback.db",))
    assert "x.jsonl, line 1: field 'choice' is not understood: 'left'; expected a number from 1 to 2, tie" in told


def test_a_store_that_is_something_else(refused: Any, tmp_path: Path) -> None:
    rows(tmp_path / "x.jsonl", GOOD)
    (tmp_path / "feedback.db").write_bytes(b"no database, but a text of some length" * 100)
    assert "feedback.db" in refused("import", "x.jsonl")


def test_a_run_without_data(refused: Any, tmp_path: Path) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    told = refused("run", left=("feedback.db",))
    assert "the store has no prompts. Import some (`prefloop import FILE`)" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("file", "words"), [("none.jsonl", "none.jsonl"), ("bad.jsonl", "bad.jsonl, line 2: not valid JSON")]
)
def test_a_run_with_bad_files(refused: Any, tmp_path: Path, file: str, words: str) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    rows(tmp_path / "bad.jsonl", GOOD, b"{")
    told = refused("run", "--set", f'data.files=["{file}"]', left=("feedback.db",))
    assert words in told
    assert not (tmp_path / "runs").exists()


def test_a_run_without_judgements_or_demonstrations(refused: Any, tmp_path: Path) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    demonstrations = [{"prompt": f"p{i}", "response": "r"} for i in range(20)]
    rows(tmp_path / "demonstrations.jsonl", *demonstrations)
    options = settings('data.files=["demonstrations.jsonl"]', "data.heldout_fraction=0.3")
    assert (
        "the store has no judgements by the criterion 'overall' (data.criterion, reward.criteria). Import"
        in _fails(refused, *options)
    )
    assert names(tmp_path / "runs" / "run") == [".label.partial", ".lock", "pretrain", "recipe.toml", "sft"]
    told = _fails(refused, *options, "--set", "sft.demonstrations=preferred")
    assert "there are no demonstrations to learn from" in told


def _fails(refused: Any, *options: str) -> str:
    """A refusal in the middle of a run, whose finished stages are told of and stay."""
    with pytest.MonkeyPatch.context() as patch:
        from prefloop.console import RunDisplay

        patch.setattr(RunDisplay, "_tell", lambda *_: None)
        patch.setattr(RunDisplay, "note", lambda *_: None)
        return str(refused("run", *options, left=("cache", "feedback.db", "runs")))


def test_a_prompt_longer_than_the_context(refused: Any, tmp_path: Path) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    dialogues(tmp_path / "d.jsonl")
    long = "\n\nHuman: " + "unbroken " * 200 + "\n\nAssistant:"
    with (tmp_path / "d.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"chosen": f"{long} yes", "rejected": f"{long} no"}) + "\n")
    options = settings('data.files=["d.jsonl"]', "data.heldout_fraction=0.3", "sft.demonstrations=preferred")
    told = _fails(refused, *options)
    assert re.search(r"the prompt 'unbroken .*'… \(id [0-9a-f]{32}\) needs \d+ tokens for its last line", told)
    assert "data.max_prompt_tokens allows 128. Raise the limit" in told
    assert "sft" not in names(tmp_path / "runs" / "run")


# Models


def saved(path: Path, **options: Any) -> Path:
    tokenizer = toys.byte_tokenizer(**options)
    model = toys.llama(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def store(folder: Path) -> None:
    with Store.open(folder / "feedback.db") as opened:
        opened.add(toys.prompts(20))


@pytest.mark.parametrize(
    "command", [("chat", "M"), ("inspect", "M"), ("sample", "M"), ("evaluate", "M", "M", "--recipe", "r.toml")]
)
@pytest.mark.parametrize("fault", ["missing", "empty", "no weights", "damaged", "no eos"])
def test_a_model_folder_that_cannot_be_used(
    refused: Any, tmp_path: Path, command: tuple[str, ...], fault: str
) -> None:
    recipe(tmp_path / "r.toml", seed=1)
    store(tmp_path)
    folder = tmp_path / "M"
    words = "cannot load a model from 'M': the folder is there and holds"
    if fault == "missing":
        words = "cannot load a model from 'M': there is no such folder"
    elif fault == "empty":
        folder.mkdir()
        words += " nothing. A model folder needs config.json"
    elif fault == "no eos":
        saved(folder, eos=None)
        words = "has no eos token, so the model could never end an answer. Set eos_token in its tokenizer_config.json"
    else:
        saved(folder)
        weights = folder / "model.safetensors"
        weights.unlink() if fault == "no weights" else weights.write_bytes(b"\0" * 7)
    if command[0] == "inspect" and fault in ("no weights", "damaged"):
        return  # it needs the tokenizer alone
    assert words in refused(*command)


def test_a_run_from_a_model_that_cannot_be_used(refused: Any, tmp_path: Path) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    dialogues(tmp_path / "d.jsonl")
    data = ["--set", 'data.files=["d.jsonl"]', "--set", "sft.demonstrations=preferred"]
    assert "cannot load a model from 'none'" in _fails(refused, *data, "--set", "model.path=none")
    saved(tmp_path / "model")
    told = _fails(refused, *data, "--set", "model.path=model")
    assert "the model reads at most 128 tokens; data.max_prompt_tokens (256) and data.max_response_tokens" in told
    assert "together need 384" in told
    assert not list((tmp_path / "runs" / "run").glob("*/manifest.json"))


def test_a_tokenizer_without_a_pad_token_is_given_one(tmp_path: Path) -> None:
    policy = load_policy(saved(tmp_path / "model", pad=None))
    assert isinstance(policy, Policy)
    assert policy.tokenizer.pad_token_id not in (None, policy.tokenizer.eos_token_id)
    assert policy.model.get_input_embeddings().num_embeddings == len(policy.tokenizer)
    assert isinstance(policy.generate("Hi", max_response_tokens=3), str)


def test_a_judge_that_is_no_reward_model(refused: Any, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    shutil.copy(finished / "prefloop.toml", tmp_path)
    model = "runs/tiny/sft/model"
    shutil.copy(finished / "feedback.db", tmp_path)
    told = refused("evaluate", model, model, "--judge", "none")
    assert "cannot load a model from 'none'" in told


def test_policies_that_cannot_be_compared(refused: Any, tmp_path: Path) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    saved(tmp_path / "a")
    saved(tmp_path / "b", merges=[("y", "e")])
    assert "a and b have different tokenizers" in refused("evaluate", "a", "b")
    Store.open(tmp_path / "feedback.db").close()
    told = refused("evaluate", "a", "a")
    assert "the models read at most 128 tokens; data.max_prompt_tokens and evaluate.max_response_tokens" in told
    assert "together need 320" in told


def test_longer_answers_than_the_model_can_read(refused: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    store(tmp_path)
    told = refused("sample", "a", "--max-response-tokens", 128)
    assert "max_response_tokens = 128 leaves no room for a prompt; the model reads 128 tokens in all" in told


# Folders


def test_commands_outside_a_project(refused: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    assert "prefloop.toml: no such recipe" in refused("run")
    assert "feedback.db does not exist; is this the project's folder?" in refused("sample", "a")
    assert "feedback.db does not exist; is this the project's folder?" in refused("inspect", "a")


def test_a_sheet_that_is_there_is_not_overwritten(refused: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    store(tmp_path)
    sheet = rows(tmp_path / "to-judge.jsonl", {"choice": "1"})
    assert "to-judge.jsonl is there already and may hold judgements; name another with --sheet" in refused(
        "sample", "a", "--sheet", sheet
    )
    assert sheet.read_text(encoding="utf-8") == '{"choice": "1"}\n'


def test_nothing_to_answer(refused: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    Store.open(tmp_path / "feedback.db").close()
    assert "the store has no training prompts. Import some first" in refused("sample", "a")


def test_init_changes_nothing_that_is_there(refused: Any, call: Call, tmp_path: Path) -> None:
    recipe(tmp_path / "prefloop.toml", seed=1)
    assert "prefloop.toml is there already; nothing was changed" in refused("init", ".")
    assert "File exists: 'prefloop.toml'" in refused("init", "prefloop.toml")
    assert (tmp_path / "prefloop.toml").read_text(encoding="utf-8") == "seed = 1\n"


@pytest.mark.parametrize("name", ['my "best" project', "back\\slash", ".hidden", "..."])
def test_init_makes_a_valid_recipe_whatever_the_folder_is_called(call: Call, tmp_path: Path, name: str) -> None:
    from prefloop.recipes import load_recipe

    ok(call("init", name))
    assert load_recipe(tmp_path / name / "prefloop.toml").name


def test_a_report_on_something_else(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    recipe(tmp_path / "file", seed=1)
    assert "folder: this is no run folder" in refused("report", "folder")
    assert "none: there is no such folder" in refused("report", "none")
    refused("report", "file")


def test_a_damaged_stage_says_what_to_do(refused: Any, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "runs" / "tiny" / "sft" / "manifest.json").write_text("{", encoding="utf-8")
    told = _fails(refused)
    assert "manifest.json is damaged" in told
    assert "to run the stage again" in told


def test_a_folder_that_cannot_be_written(refused: Any, finished: Path, tmp_path: Path) -> None:
    recipe(tmp_path / "file", seed=1)
    assert "Not a directory" in refused("init", "file/mine")
    shutil.copy(finished / "prefloop.toml", tmp_path)
    (tmp_path / "runs").write_text("", encoding="utf-8")
    assert "runs" in refused("run", left=("feedback.db",))


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--algorithm", "grpo"),
        ("demo", "--seed", "-1"),
        ("chat",),
        ("sample", "a", "--answers", "1"),
        ("inspect", "a", "--loss-on", "none"),
        ("runn",),
        ("run", "--sett", "a=1"),
    ],
)
def test_arguments_that_there_are_not(refused: Any, arguments: tuple[str, ...]) -> None:
    assert "Usage: prefloop" in refused(*arguments)
