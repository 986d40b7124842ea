"""The documentation of every key, made from the schema that checks it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from plant_dist.config.schema import Config
from plant_dist.config.settings import Section, default_of


def key_reference() -> str:
    """Return Markdown: a heading and a table for each section, a row for each key."""
    lines = ["# Every setting", "", "Written by `plant-dist config --keys`.", ""]
    lines += _section(Config, "")
    return "\n".join(lines).rstrip() + "\n"


def _section(kind: type[Section], prefix: str) -> list[str]:
    hints = get_type_hints(kind)
    title = prefix.rstrip(".") or "top level"
    summary = (kind.__doc__ or "").strip().splitlines()[0]
    lines = [f"## {title}", "", summary, "", "| key | type | default | meaning |"]
    lines += ["|---|---|---|---|"]
    inner: list[str] = []
    for entry in fields(kind):
        hint = hints[entry.name]
        # Inner sections follow their parent's table; Markdown has no tables within tables.
        if isinstance(hint, type) and issubclass(hint, Section):
            inner += _section(hint, f"{prefix}{entry.name}.")
        else:
            meaning = _meaning(entry.metadata)
            shown = _shown(default_of(entry))
            lines.append(f"| `{prefix}{entry.name}` | {_type(hint)} | {shown} | {meaning} |")
    return [*lines, "", *inner]


def _meaning(rules: Any) -> str:
    parts = [rules["doc"]]
    if rules["choices"]:
        parts.append("One of: " + ", ".join(f"`{c}`" for c in rules["choices"]) + ".")
    bounds = [("minimum", "at least"), ("maximum", "at most"), ("above", "above")]
    said = [f"{words} {rules[key]:g}" for key, words in bounds if rules[key] is not None]
    if said:
        parts.append(f"({', '.join(said)})")
    return " ".join(parts).replace("|", "\\|")


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    # As a writer of YAML knows the types, not as Python spells them.
    for long, plain in (("tuple[", "list["), (", ...]", "]"), ("dict[str, typing.Any]", "mapping")):
        text = text.replace(long, plain)
    return text.replace(" | None", ", optional").replace("|", "\\|")


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"
