"""What stands behind a task's name: `NAME:DATA:KEY=VALUE:KEY=VALUE`."""

import dataclasses
from collections.abc import Mapping, Sequence

from fmjax.errors import InputError

REFUSED = ("seed", "num_samples", "init_image", "mask", "invert", "strength", "negative")
"""Options of generators that the tasks set themselves, or that make something else than what is asked for."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Taken apart.

    Attributes:
      words: those in front, which name data.
      own: keys of the task.
      options: (name, value) of the model's generator, sorted; its values are read when the model is known.
    """

    words: tuple[str, ...]
    own: Mapping[str, str]
    options: tuple[tuple[str, str], ...]

    def count(self, key: str, default: int) -> int:
        """A key's whole number of at least 1. Raises InputError for another value."""
        value = self.own.get(key, str(default))
        if not value.isdigit() or int(value) < 1:
            raise InputError(f"{key}={value}: expected a whole number of at least 1")
        return int(value)


def parse(argument: str, keys: Sequence[str], required: Sequence[str] = ()) -> Settings:
    """The settings of an argument.

    Args:
      keys: of the task; all others are options of the generator.
      required: those of them that must be there.

    Raises InputError for a key that is given twice, refused or missing, and for a word behind a key.
    """
    words, own, options = [], {}, {}
    for part in argument.split(":") if argument else ():
        name, is_set, value = part.partition("=")
        if not is_set and (own or options):
            raise InputError(f"{part!r} stands behind settings; data come first: DATA:KEY=VALUE:KEY=VALUE")
        if not is_set:
            words.append(part)
            continue
        if name in own or name in options:
            raise InputError(f"{name!r} is set twice")
        if name in REFUSED:
            remedy = "give --seed" if name == "seed" else "give copies=N" if name == "num_samples" else "leave it out"
            raise InputError(f"{part!r}: {name} is not set here; {remedy}")
        (own if name in keys else options)[name] = value
    for key in required:
        if not own.get(key):
            given = ", ".join(options) or "no setting"
            raise InputError(f"it needs {key}=..., such as {key}=runs/vit_digits; given is {given}")
    return Settings(tuple(words), own, tuple(sorted(options.items())))
