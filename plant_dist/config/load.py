"""YAML files and `--set` words to a checked `Config`, and back.

A file may say `extends: other.yaml`, or list several (relative to itself); what comes later wins.
`--set extends=variant.yaml` lays a file over the config, so that a variant (an encoder, a schedule)
is written once for all corpora.
Text is read by PyYAML; this module only merges mappings and turns them into dataclasses, naming
the nearest key where one is unknown.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import ConstructorError

from plant_dist.config.schema import Config
from plant_dist.config.settings import Section
from plant_dist.errors import ConfigError

Settings = TypeVar("Settings", bound=Section)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `key=value` words.

    Args:
        path: a YAML file; None starts from the defaults.
        overrides: words such as `train.epochs=3`; the value is YAML, and null empties a mapping
            (`data.expected=null`). `extends=FILE` lays a file over what came before, and, where it
            names no run, adds its own name to the run's.

    Raises:
        ConfigError: a file is missing or unreadable, a key unknown, a value of the wrong type
            or out of range.
    """
    merged = _read_yaml(path, ()) if path else {}
    for word in overrides:
        merged = _merge(merged, *_override(word, merged))
    return build_section(Config, merged)


def build_section(kind: type[Settings], content: Mapping[str, Any], where: str = "") -> Settings:
    """Make a section of plain values, such as those `as_plain` gave.

    Raises:
        ConfigError: as `load_config`.
    """
    section: Settings = _build(kind, content, where)
    return section


def run_folder(config: Config) -> Path:
    """Return the folder of a run: `output`, or runs/NAME."""
    return Path(config.output) if config.output else Path("runs", config.name)


def resolved_yaml(config: Config) -> str:
    """Return the config as YAML, every key present, in the order of the schema."""
    return yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True)


def as_plain(section: Section) -> dict[str, Any]:
    """Return a section as JSON-able mappings and lists."""
    return {key: _plain(value) for key, value in asdict(section).items()}


def identity_of(section: Section) -> dict[str, Any]:
    """Return the settings of a section that can change a result; what manifests record."""
    plain: dict[str, Any] = {}
    for entry in fields(section):
        value = getattr(section, entry.name)
        # A change of speed or comfort must not make a finished artifact out of date.
        if not entry.metadata.get("inert"):
            plain[entry.name] = identity_of(value) if isinstance(value, Section) else _plain(value)
    return plain


def differences(before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """Return what differs between two configs, as `section.key: before → now`."""
    found = []
    for key in {**before, **now}:
        old, new, name = before.get(key), now.get(key), f"{inside}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name}: {old} → {new}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's.

        Raises:
            ConstructorError: a key stands twice; names both lines.
        """
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, line) != line:
                raise ConstructorError(
                    None, None, f"{key.value} stands in line {seen[key.value]} and in line {line}; "
                    "keep one"
                )  # fmt: skip
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    # Resolved paths, so that two spellings of one file are still a circle.
    if path in seen:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    # A date of 30 February is well-formed YAML; building it raises Python's own error.
    except (yaml.YAMLError, ValueError) as error:
        place = str(error).replace("\n", " ")
        raise ConfigError(f"config file {path} is not YAML: {place}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} must hold a mapping, found {_kind(content)}")
    base = content.pop("extends", None)
    merged: dict[str, Any] = {}
    for one in base if isinstance(base, list) else [base] * (base is not None):
        if not isinstance(one, str):
            raise ConfigError(f"config file {path}: extends must name a file, found {one!r}")
        merged = _merge(merged, _read_yaml(path.parent / one, (*seen, path)))
    return _merge(merged, content)


def _override(word: str, merged: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return what a `--set` word says, in the nested form of a file, and whether null is said."""
    content = _parse_override(word)
    if "extends" not in content:
        return content, True
    if not isinstance(content["extends"], str):
        raise ConfigError(f"--set {word!r}: extends must name one file; repeat --set for several")
    path = Path(content["extends"])
    # Otherwise every variant of a corpus would want the same run folder.
    name = {"name": f"{merged.get('name', Config().name)}-{path.stem}"}
    return name | _read_yaml(path, ()), False


def _parse_override(word: str) -> dict[str, Any]:
    key, sign, text = word.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {word!r} must look like section.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {word!r}: the value is not YAML; quote it") from None
    # The nested form of the YAML file, so that one merge and one check serve both.
    *sections, last = key.strip().split(".")
    if "extends" in (*sections, last) and sections:
        raise ConfigError(f"--set {word!r}: only a whole config extends a file; say extends=FILE")
    nested: dict[str, Any] = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], null_empties: bool = False
) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None and null_empties and isinstance(merged.get(key), Mapping):
            merged[key] = {}
        elif isinstance(merged.get(key), Mapping) and isinstance(value, Mapping | None):
            # YAML reads a section whose keys are all commented out as null: it says nothing.
            merged[key] = _merge(merged[key], value or {}, null_empties)
        else:
            merged[key] = value
    return merged


def _build(kind: type[Any], content: Any, where: str) -> Any:
    if not isinstance(content, Mapping):
        section = where.rstrip(".") or "the config"
        raise ConfigError(f"{section} must be a mapping, found {_kind(content)}")
    # Annotations are strings under `from __future__ import annotations`.
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ConfigError(f"unknown key {where}{key}; did you mean {where}{near[0]}?")
    values = {key: _convert(hints[key], one, f"{where}{key}") for key, one in content.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return a YAML value as the type a field declares; ConfigError when it is another."""
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value if value is not None else {}, f"{where}.")
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        # One value for a list of one: `--set evaluate.ks=5` needs no brackets.
        many = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(args[0], one, where) for one in many)
    if origin is dict:
        if isinstance(value, Mapping | None):
            return dict(value or {})
    elif hint is str and isinstance(value, str):
        # Paths differ between machines; a committed config can say $DATA, or ~/data.
        value = os.path.expandvars(value)
        return os.path.expanduser(value) if value.startswith("~/") else value
    elif hint is float:
        return _to_float(value, where)
    # Not `isinstance`: true is an int in Python, and not a number of epochs.
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} must be {_kind(hint)}, found {value!r} ({_kind(value)})")


def _to_float(value: Any, where: str) -> float:
    """YAML 1.1 reads `1e-4` as a string; a person who writes it means a number."""
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise ConfigError(f"{where} must be a number, found {value!r}")


def _kind(value: Any) -> str:
    names = {int: "an integer", str: "a string", bool: "true or false", dict: "a mapping"}
    kind = value if isinstance(value, type) else type(value)
    return names.get(get_origin(value) or kind, f"a {kind.__name__}")
