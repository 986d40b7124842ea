"""What a setting is: a default, one sentence, and the values it may take.

`Section` is the base of every config section; `setting` declares a field. The sentence and the
bounds travel in the field's metadata, so the documentation of every key is made from the code
that checks it. Knows nothing of any particular key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from plant_dist.errors import ConfigError


def setting(
    default: Any,
    doc: str,
    *,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    inert: bool = False,
) -> Any:
    """Declare a config field.

    Args:
        default: the value when no file sets it; a dict is copied for each section.
        doc: one sentence, printed by `plant-dist config --keys`.
        choices: the only values allowed.
        minimum, maximum: inclusive bounds.
        above: exclusive lower bound.
        inert: the value changes speed or comfort, never a result, so artifacts do not record it.
    """
    metadata = {
        "doc": doc, "choices": choices, "minimum": minimum, "maximum": maximum, "above": above,
        "inert": inert,
    }  # fmt: skip
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(entry: Field[Any]) -> Any:
    """Return the default of a dataclass field, made by its factory where it has one."""
    if entry.default is not MISSING:
        return entry.default
    return entry.default_factory() if entry.default_factory is not MISSING else None


@dataclass(frozen=True)
class Section:
    """A group of settings; checks every value against its bounds when it is made.

    Raises:
        ConfigError: a value is outside its choices or bounds; names section, key, value, bound.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and not isinstance(value, Section):
                for one in value if isinstance(value, tuple) else (value,):
                    self._check(entry, one)

    def _check(self, entry: Field[Any], value: Any) -> None:
        rules = entry.metadata
        name = f"{type(self).__name__.removesuffix('Config').lower()}.{entry.name}"
        if rules.get("choices") and value not in rules["choices"]:
            allowed = ", ".join(map(str, rules["choices"]))
            raise ConfigError(f"{name} is {value!r}; choose one of: {allowed}")
        if rules.get("minimum") is not None and value < rules["minimum"]:
            raise ConfigError(f"{name} is {value}; it must be at least {rules['minimum']}")
        if rules.get("maximum") is not None and value > rules["maximum"]:
            raise ConfigError(f"{name} is {value}; it must be at most {rules['maximum']}")
        if rules.get("above") is not None and value <= rules["above"]:
            raise ConfigError(f"{name} is {value}; it must be greater than {rules['above']}")
