"""Keys of a config.json beside the fields of ours that they are: each stated once, for reading and for writing.

A family's keys are a list of entries. `entry.read(config, names, fields)` gives fields of a config's section `model`,
from a `PublishedConfig`, the names of the tensors, and the fields that entries before it gave; `entry.write(module)`
gives keys of config.json.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fmjax.errors import ConfigError
from fmjax.interop.published_config import REQUIRED, PublishedConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """A key that is one field.

    Attributes:
      theirs, ours: its name in config.json, and the field's. Where several keys are one field, the first is read, and
        the others may be absent or have its value; where one key is several fields, the first is written.
      kind: type of the value in config.json.
      default: what an absent key is; without one the key is required.
      null: whether null is allowed; it is None.
      words: our word for each of theirs; of several for one of ours the first is written.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    kind: type = int
    default: Any = REQUIRED
    null: bool = False
    words: Mapping[str, str] | None = None

    def read(self, config: PublishedConfig, names, fields) -> dict[str, Any]:
        first, *others = _all(self.theirs)
        if self.words is not None:
            value = config.choice(first, self.words, self.default)
        else:
            value = config.get(first, self.kind, self.default, self.null)
        config.fixed(**dict.fromkeys(others, value))
        return dict.fromkeys(_all(self.ours), value)

    def write(self, module) -> dict[str, Any]:
        name = _all(self.ours)[0]
        value = _value(module, name)
        if self.words is not None:
            words = {ours: theirs for theirs, ours in reversed(self.words.items())}
            if value not in words:
                raise ConfigError(
                    f"it has no {name} {value!r} (it has {', '.join(dict.fromkeys(self.words.values()))})"
                )
            value = words[value]
        return dict.fromkeys(_all(self.theirs), value)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Several rates of dropout where we have one: the first, with a warning where they differ."""

    theirs: tuple[str, ...]
    ours: str
    default: float

    def read(self, config: PublishedConfig, names, fields) -> dict[str, Any]:
        return {self.ours: config.one_rate({key: config.get(key, float, self.default) for key in self.theirs})}

    def write(self, module) -> dict[str, Any]:
        return dict.fromkeys(self.theirs, _value(module, self.ours))


class Constant:
    """Keys that have one value, or one of a tuple, of which the first is written; they may be absent."""

    def __init__(self, **values: Any):
        self.values = values

    def read(self, config: PublishedConfig, names, fields) -> dict[str, Any]:
        config.fixed(**self.values)
        return {}

    def write(self, module) -> dict[str, Any]:
        return {key: value[0] if isinstance(value, tuple) else value for key, value in self.values.items()}


class Expected(Constant):
    """As `Constant`, of keys that are not written: absent, they have that value."""

    def write(self, module) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is no single key: two functions, as an entry's. Without the second nothing is written."""

    read: Callable[[PublishedConfig, Collection[str], Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]] = lambda module: {}


def always(**fields: Any) -> Rule:
    """Fields that all models of a family have, which no key says."""
    return Rule(lambda config, names, known: fields)


def ignored(*keys: str) -> Rule:
    """Keys that say nothing of what a model computes."""

    def read(config, names, fields):
        for key in keys:
            config.raw(key)
        return {}

    return Rule(read)


# Some writers have null or 0 there; it is no part of what a trained model computes.
INIT_STD = Rule(
    lambda config, names, fields: {"init_std": config.raw("initializer_range") or 0.02},
    lambda module: {"initializer_range": module.init_std},
)


def read_keys(entries: Sequence, config: PublishedConfig, names: Collection[str]) -> dict[str, Any]:
    """The fields of the section `model`, those of later entries before those of earlier ones."""
    fields: dict[str, Any] = {}
    for entry in entries:
        fields |= entry.read(config, names, fields)
    return fields


def write_keys(entries: Sequence, module) -> dict[str, Any]:
    """The keys of config.json, likewise. Raises ConfigError for a word that the family does not have."""
    return {key: value for entry in entries for key, value in entry.write(module).items()}


def _all(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _value(module, name: str) -> Any:
    """A field as the module's stack has it, rules for None applied, or, where the stack has none, the module's own."""
    stack = getattr(module, "transformer", module)
    return getattr(stack, name) if hasattr(stack, name) else getattr(module, name)
