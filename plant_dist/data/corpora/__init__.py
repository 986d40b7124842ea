"""The corpus readers: one file a corpus family, found by its module name.

A reader is a module here with a function `open(data: DataConfig) -> Corpus`. To add a corpus,
add such a file and name it in `data.reader`; nothing else changes. This file must not know any
reader.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from plant_dist.config.schema import DataConfig
from plant_dist.data.records import Corpus
from plant_dist.errors import ConfigError

Options = TypeVar("Options")


def readers() -> list[str]:
    """Return the names that `data.reader` may take."""
    # From the file names, without importing: one reader's missing package is no other's trouble.
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_corpus(data: DataConfig) -> Corpus:
    """Open the corpus that the configuration describes; nothing is read yet.

    Raises:
        ConfigError: there is no such reader, or it is given an option that it does not know.
        RuntimeSetupError: the reader needs a package that is not installed.
    """
    known = readers()
    if data.reader not in known:
        near = difflib.get_close_matches(data.reader, known, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"data.reader is {data.reader!r}; did you mean {near!r}? Readers: {', '.join(known)}"
        )
    corpus: Corpus = importlib.import_module(f"{__name__}.{data.reader}").open(data)
    return corpus


def parse_options(kind: type[Options], given: Mapping[str, Any], reader: str) -> Options:
    """Turn `data.reader_options` into a reader's dataclass of options.

    Args:
        kind: dataclass; a field's type is one of bool, int, float, str, list[...] or such | None.
        given: the mapping of the configuration.
        reader: the reader's name, for errors.

    Raises:
        ConfigError: an unknown option (the nearest is named), or a value of the wrong type.
    """
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key, value in given.items():
        if not names:
            raise ConfigError(
                f"data.reader_options.{key}: reader {reader} has no options; unset it"
            )
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"unknown option data.reader_options.{key} of reader {reader}; "
                f"did you mean {near}? Options: {', '.join(names)}"
            )
        allowed = _plain_types(hints[key])
        # The class itself: `isinstance` would let true pass for a number.
        if type(value) not in allowed:
            wanted = " or ".join(one.__name__ for one in allowed).replace("NoneType", "null")
            quoted = f"; in quotes, '{key}=\"{value}\"', it is text" if str in allowed else ""
            raise ConfigError(
                f"data.reader_options.{key} must be {wanted}, found {value!r}{quoted}"
            )
    return kind(**given)


def _plain_types(hint: Any) -> tuple[type, ...]:
    """Return the classes that a simple type hint allows, an int passing for a float."""
    # A union has arguments and no origin attribute; list[str] has both.
    parts = getattr(hint, "__args__", ()) if not hasattr(hint, "__origin__") else (hint,)
    kinds = [getattr(part, "__origin__", part) for part in parts or (hint,)]
    return tuple(kinds) + ((int,) if float in kinds else ())
