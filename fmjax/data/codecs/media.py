"""A value that is no text, such as an image, where texts and numbers stand: in a prompt or an evaluation's request."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fmjax.errors import DataError


class NamedFile(io.BytesIO):
    """A file in memory, which messages call by its name."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self._name = name or "a file in memory"

    def __str__(self) -> str:
        return self._name


@dataclasses.dataclass(frozen=True)
class Media:
    """A value with its modality; equal where modality and content are.

    Attributes:
      modality: the name of the codec that reads it, such as "image".
      value: the array that the codec encodes, a copy, which cannot be written to; or the path of a file that it reads,
        or the bytes of one.
      name: of the file or record that it comes from, for logs.
      change: what becomes of the value as the model would see it, where it is asked for otherwise than it is: a frozen
        dataclass that is called with what the codec's `fitted` gives, told from others by its fields.
      is_fitted: whether the value is what the codec's `fitted` gave, and is not to be fitted again.
      fingerprint: 32 hexadecimal digits of its dtype, shape and numbers, or of the file's bytes, and of the change.

    Raises DataError for a file that cannot be read, or a value that is neither.
    """

    modality: str
    value: Any = dataclasses.field(compare=False, repr=False)
    name: str = dataclasses.field(default="", compare=False, repr=False)
    change: Callable[[Any], Any] | None = dataclasses.field(default=None, compare=False, repr=False)
    is_fitted: bool = dataclasses.field(default=False, compare=False, repr=False)
    fingerprint: str = dataclasses.field(init=False)

    def __post_init__(self):
        if isinstance(self.value, pathlib.Path | bytes):
            try:
                content = self.value if isinstance(self.value, bytes) else self.value.read_bytes()
            except OSError as error:
                raise DataError(f"{str(self.value)!r} cannot be read: {error.strerror}") from None
            self._name(hashlib.sha256(content).hexdigest()[:32])
            return
        array = np.array(self.value)
        if array.dtype.kind not in "biuf":
            raise DataError(f"media of modality {self.modality!r} is an array of numbers, got {described(self.value)}")
        array.flags.writeable = False
        content = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()).hexdigest()[:32]
        object.__setattr__(self, "value", array)
        self._name(content)

    def _name(self, content: str) -> None:
        if self.change is not None:
            content = hashlib.sha256(f"{content} {self.change!r}".encode()).hexdigest()[:32]
        object.__setattr__(self, "fingerprint", content)

    def encode(self, codec) -> dict[str, np.ndarray]:
        """The arrays that a codec of its modality makes of it. Raises DataError for a value that the codec refuses."""
        value = NamedFile(self.value, self.name) if isinstance(self.value, bytes) else self.value
        value = codec.read(value) if isinstance(value, pathlib.Path | NamedFile) else value
        if self.change is None and not self.is_fitted:
            return codec.encode(value)
        if not hasattr(codec, "fitted"):
            raise DataError(f"{type(codec).__name__} has no `fitted` and `normalised`: its values are not changed")
        value = value if self.is_fitted else codec.fitted(value)
        return codec.normalised(value if self.change is None else self.change(value))

    def key(self) -> dict[str, str]:
        """What tells it from another, as JSON holds it."""
        return {"media": self.modality, "fingerprint": self.fingerprint}

    def record(self) -> dict[str, str]:
        """As `key`, with its name where it has one."""
        return self.key() | ({"name": self.name} if self.name else {})


def described(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, Media):
        return f"media of modality {value.modality!r}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, tuple):
        return f"a tuple of {' and '.join(map(described, value)) or 'nothing'}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype} of shape {tuple(value.shape)}"
    return repr(value)[:60]
