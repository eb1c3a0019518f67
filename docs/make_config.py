"""Writes docs/config.md from the recipe's models: ``python docs/make_config.py > docs/config.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from prefloop.config import Section
from prefloop.recipes import Recipe

HEAD = """\
# The recipe

Written from `src/prefloop/config/` by `python docs/make_config.py > docs/config.md`; a test holds the two together.

A recipe is a TOML file. What it does not set keeps its default; `prefloop init` and `prefloop demo` write one to
start from, and every run keeps its whole recipe, defaults included, in `runs/NAME/recipe.toml`. On the command line,
`--set ppo.kl_coef=0.1` changes one field. An unknown key, a wrong type, a value that is not allowed or a pair that
contradicts itself is refused before anything is loaded.
"""
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def page() -> str:
    """The whole of docs/config.md."""
    parts = [HEAD, "## Top level\n", Recipe.__doc__ or "", "", *_table(Recipe)]
    for name, field in Recipe.model_fields.items():
        if _is_section(field):
            parts += [f"\n## `[{name}]`\n", _text(field.annotation.__doc__), "", *_table(field.annotation)]
        elif row := _row_of(field):
            parts += [f"\n## `[[{name}]]`\n", _text(row.__doc__), "", *_table(row)]
    return "\n".join(parts)


def _table(section: type[Section]) -> Iterator[str]:
    yield "| key | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for name, field in section.model_fields.items():
        if not _is_section(field):
            default = "required" if field.is_required() else json.dumps(field.default, ensure_ascii=False)
            yield f"| `{name}` | `{default}` | {_allowed(field)} | {_text(field.description)} |"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _row_of(field: FieldInfo) -> type[Section] | None:
    """The section that a list of tables is made of."""
    inner = get_args(field.annotation)[:1] if get_origin(field.annotation) is tuple else ()
    return inner[0] if inner and isinstance(inner[0], type) and issubclass(inner[0], Section) else None


def _allowed(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(bound, key):g}"
        for bound in field.metadata
        for key, sign in BOUNDS.items()
        if hasattr(bound, key)
    ]
    return " ".join([_type(field.annotation), ", ".join(limits)]).strip()


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_type(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "tables"
    if get_origin(annotation) is dict:
        return f"table of {_type(get_args(annotation)[1])}s"
    if annotation not in NAMES:
        raise TypeError(f"no words for {annotation!r}")
    return NAMES[annotation]


def _text(docstring: str | None) -> str:
    """One paragraph in Markdown; ``code`` in docstrings is `code` here."""
    if not docstring:
        raise ValueError("a section or field has no docstring")
    return " ".join(docstring.split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(page())
