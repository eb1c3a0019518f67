"""Recipes read from TOML, checked, changed and written; errors that say what is allowed.

An unknown key, a wrong type or a contradictory pair is refused before anything is loaded, with the key, the value,
what is allowed and the nearest right name.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from prefloop.config import Recipe, Section

S = TypeVar("S", bound=Section)


def load_recipe(path: Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.key=value`` settings on top.

    Raises:
        ValueError: the file is missing or not TOML, or a key or value is not allowed; the message names it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such recipe. `prefloop init` writes one to start from.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; give the recipe itself, a TOML file") from None
    return make_recipe(table, settings, where=str(path))


def make_recipe(table: Mapping[str, Any], settings: Iterable[str] = (), where: str = "recipe") -> Recipe:
    """A checked recipe from a nested table and ``section.key=value`` settings.

    A value is read as TOML; what is not TOML is taken as a string, so ``--set model.path=/data/gpt2`` works.
    """
    merged = copy.deepcopy(dict(table))
    for setting in settings:
        key, value = _parse_setting(setting)
        *sections, last = key.split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {setting}: {section} is a value, not a section")
        target[last] = value
    return check(Recipe, merged, where)


def check(section: type[S], table: Mapping[str, Any], where: str) -> S:
    """Validate ``table`` as ``section``; raise one ValueError that lists every fault and its remedy."""
    try:
        return section.model_validate(_tuples(table))
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(section, dict(fault))}" for fault in error.errors())
        raise ValueError(f"{where}:\n{faults}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML, every field, defaults included."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {setting}: expected SECTION.KEY=VALUE, for example --set ppo.kl_coef=0.1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return key.strip(), value


def _tuples(value: Any) -> Any:
    """TOML has arrays; the frozen sections hold tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _explain(root: type[Section], fault: dict[str, Any]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        allowed = list(_fields(root, path[:-1]))
        nearest = _nearest(root, path, allowed)
        return f"{key}: there is no such key{nearest} Allowed here: {', '.join(allowed)}."
    if fault["type"] == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}."
    return f"{key} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


def _fields(root: type[Section], path: list[str]) -> Iterable[str]:
    for part in path:
        annotation = root.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        root = annotation
    return root.model_fields


def _nearest(root: type[Section], path: list[str], allowed: list[str]) -> str:
    """What was meant, perhaps: look for the misspelt key here first, then in every section."""
    here = difflib.get_close_matches(path[-1], allowed, n=1)
    if here:
        return f"; did you mean {'.'.join([*path[:-1], here[0]])}?"
    elsewhere = {
        field: f"{section}.{field}"
        for section, info in root.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
        for field in info.annotation.model_fields
    }
    close = difflib.get_close_matches(path[-1], elsewhere, n=1, cutoff=0.75)
    return f"; did you mean {elsewhere[close[0]]}?" if close else "."
