"""Labels: a class by its number or its name."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fmjax.data.codecs.media import described
from fmjax.errors import DataError
from fmjax.registry import nearest
from fmjax.small_files import write_whole


@dataclasses.dataclass(frozen=True)
class LabelCodec:
    """A class as `labels` int32 []: its number, from 0.

    Attributes:
      num_classes: how many there are.
      names: of the classes, in order; none: they have only numbers.
    """

    suffix: ClassVar[str] = ".txt"
    array: ClassVar[str] = "labels"
    shape: ClassVar[tuple[int, ...]] = ()

    num_classes: int
    names: tuple[str, ...] = ()

    def encode(self, value: int | str) -> dict[str, np.ndarray]:
        """{"labels": int32 []} of a number or a name."""
        if isinstance(value, str):
            if value in self.names:
                value = self.names.index(value)
            elif value.strip().isdigit():
                value = int(value)
            else:
                known = ", ".join(self.names) or f"the numbers 0 to {self.num_classes - 1}"
                raise DataError(f"no class {value!r}{nearest(value, self.names) if self.names else ';'} Known: {known}")
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < self.num_classes:
            raise DataError(
                f"a label is a whole number from 0 to {self.num_classes - 1} or a name, got {described(value)}"
            )
        return {"labels": np.int32(value)}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> int | str:
        """The name, or the number where there are no names."""
        number = int(arrays["labels"])
        return self.names[number] if self.names else number

    def read(self, path: pathlib.Path) -> str:
        return path.read_text(encoding="utf-8").strip()

    def write(self, value: int | str, path: pathlib.Path) -> None:
        write_whole(path, f"{value}\n")

    def write_all(self, values: Sequence[int | str], path: pathlib.Path) -> None:
        write_whole(path, "".join(f"{value}\n" for value in values))
