"""The protocol of a codec, and how a run's codecs are kept.

A codec is a frozen dataclass whose fields, plain values, say all there is to know of it: sizes, statistics, names. A
run writes them to `codecs.json`; what is loaded from there is that very codec, and preprocessing cannot differ. Text
has the tokenizer, which is kept in files of its own.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fmjax.config_values import json_copy
from fmjax.data.codecs import CODECS
from fmjax.errors import ConfigError, DataError
from fmjax.small_files import read_json, write_whole

FILE = "codecs.json"


class Codec(Protocol):
    """Values of one modality (images as uint8 [H, W, C], waveforms, labels, ...) and their arrays.

    Attributes:
      suffix: of the files that `write` makes, such as ".png".
      array: name of the array that modules read or make.
      shape: of that array, without a batch axis.
      fitted, normalised: where values come in several sizes or are changed in between, the two halves of `encode`: the
        value in the model's size, and the arrays of that.
      shown: where there is one, the kind of summary ("image") by which TensorBoard shows a file of values.
    """

    suffix: str
    array: str
    shape: tuple[int, ...]

    def encode(self, value: Any) -> dict[str, np.ndarray]:
        """The arrays of one value, without a batch axis. Raises DataError for a value of another kind or shape."""

    def decode(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The value of arrays such as `encode` makes; what the encoding lost stays lost."""

    def read(self, path: pathlib.Path) -> Any:
        """The value in a file. Raises DataError naming a file that cannot be read."""

    def write(self, value: Any, path: pathlib.Path) -> None:
        """Writes a value to a file."""

    def write_all(self, values: Sequence[Any], path: pathlib.Path) -> None:
        """Writes several values to one file, to be looked at together: a grid of images, say."""


def fingerprint(codec: Codec) -> str:
    """32 hexadecimal digits that change with the codec's kind and any of its fields."""
    return hashlib.sha256(json.dumps(_section(codec), sort_keys=True).encode()).hexdigest()[:32]


def save_codecs(codecs: Mapping[str, Codec], folder: pathlib.Path) -> None:
    """Writes `codecs.json`, whole or not at all; no file where there are none.

    Raises DataError for a codec whose fields are not plain values.
    """
    if codecs:
        sections = {modality: _section(codec) for modality, codec in codecs.items()}
        write_whole(folder / FILE, json.dumps(sections, indent=2) + "\n")


def load_codecs(folder: pathlib.Path) -> dict[str, Codec]:
    """The codecs by modality that `save_codecs` wrote to a folder; none where there is no file.

    Raises DataError for a torn file, ConfigError for a codec that is not known or has other fields.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    return {modality: _made(section, path) for modality, section in read_json(path, error=DataError).items()}


def _made(section: dict, path: pathlib.Path) -> Codec:
    if not isinstance(section, dict):
        raise DataError(f"{path} holds {section!r}, expected the name of a codec and its fields")
    fields = {key: _frozen(value) for key, value in section.items()}
    try:
        return CODECS.get(fields.pop("name", None))(**fields)
    except TypeError as error:
        raise DataError(f"{path}: {error}; is it of another version?") from None


def _frozen(value):
    """A value of JSON as a frozen dataclass has it: lists are tuples."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _section(codec: Codec) -> dict:
    path = f"{type(codec).__module__}:{type(codec).__qualname__}"
    if not dataclasses.is_dataclass(codec) or isinstance(codec, type):
        raise ConfigError(
            f"codec {codec if isinstance(codec, type) else path} is no instance of a dataclass; a codec is a frozen "
            "dataclass, by whose fields a run keeps it"
        )
    names = {path: name for name, path in CODECS.table.items()}
    section = json_copy({"name": names.get(path, path)} | dataclasses.asdict(codec))
    try:
        json.dumps(section)
    except TypeError as error:
        raise DataError(f"codec {path}: its fields must be plain values ({error})") from None
    return section
