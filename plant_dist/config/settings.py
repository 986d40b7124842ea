"""What a setting is: a default, one sentence, and the values it may take.

`Section` is the base of every config section; `setting` declares a field. The sentence and the
bounds travel in the field's metadata, so the documentation of every key is made from the code
that checks it. Knows nothing of any particular key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from plant_dist.errors import ConfigError


def setting(
    default: Any,
    doc: str,
    *,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    least: int = 0,
    inert: bool = False,
) -> Any:
    """Declare a config field.

    Args:
        default: the value when no file sets it; a dict is copied for each section.
        doc: one sentence, printed by `plant-dist config --keys`.
        choices: the only values allowed.
        minimum, maximum: inclusive bounds.
        above: exclusive lower bound.
        least: entries that a list needs.
        inert: the value changes speed or comfort, never a result, so artifacts do not record it.
    """
    metadata = {
        "doc": doc, "choices": choices, "minimum": minimum, "maximum": maximum, "above": above,
        "least": least, "inert": inert,
    }  # fmt: skip
    # A mutable default would be shared by all sections; `dataclass` refuses it.
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

    inside: ClassVar[str] = ""
    """The section that this one is a part of."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            # None is "unset" and has no bounds; an inner section has checked itself.
            if value is None or isinstance(value, Section):
                continue
            if isinstance(value, tuple):
                self._check_list(entry, value)
            for one in value if isinstance(value, tuple) else (value,):
                self._check(entry, one)

    def _name(self, entry: Field[Any]) -> str:
        section = type(self).__name__.removesuffix("Config").lower()
        return ".".join(filter(None, (self.inside, section, entry.name)))

    def _check_list(self, entry: Field[Any], values: tuple[Any, ...]) -> None:
        rules, name = entry.metadata, self._name(entry)
        if len(values) < rules.get("least", 0):
            raise ConfigError(f"{name} has {len(values)} entries; give at least {rules['least']}")
        # Where one chooses from a few, a repetition is a slip; among numbers it may be meant.
        if rules.get("choices") and len(set(values)) < len(values):
            raise ConfigError(f"{name} is {list(values)}; name each of its entries once")

    def _check(self, entry: Field[Any], value: Any) -> None:
        rules, name = entry.metadata, self._name(entry)
        # Every comparison with NaN is false, so it would pass all bounds.
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; it must be a finite number")
        if rules.get("choices") and value not in rules["choices"]:
            allowed = ", ".join(map(str, rules["choices"]))
            raise ConfigError(f"{name} is {value!r}; choose one of: {allowed}")
        if rules.get("minimum") is not None and value < rules["minimum"]:
            raise ConfigError(f"{name} is {value}; it must be at least {rules['minimum']}")
        if rules.get("maximum") is not None and value > rules["maximum"]:
            raise ConfigError(f"{name} is {value}; it must be at most {rules['maximum']}")
        if rules.get("above") is not None and value <= rules["above"]:
            raise ConfigError(f"{name} is {value}; it must be greater than {rules['above']}")
