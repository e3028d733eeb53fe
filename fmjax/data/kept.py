"""Rows of arrays that were computed once and are kept: latents of images, states of texts, labels.

A folder SPLIT for each of "train" and those that are evaluated holds a file NAME.npy an array, [rows, ...]; beside them
may lie the `codecs.json` and the tokenizer of what they were made of, in `made_by.json` the content of the models that
made them, by the name that an objective has for each, and in `made_of.json` the config's section of the data that they
were made of, and in `stop_ids.json` the tokens that end a reply in them. `python -m fmjax.commands.keep` and `teach`
write such.
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from fmjax.data.base import OpenData, Row
from fmjax.data.codecs.base import load_codecs
from fmjax.data.prepared import content_hash, fingerprint
from fmjax.data.run_tokenizer import check_max_length, check_vocabulary
from fmjax.data.shuffle import shuffled_indices
from fmjax.data.tokenizers.loading import has_tokenizer, load_tokenizer
from fmjax.errors import ConfigError, DataError
from fmjax.small_files import read_json

log = logging.getLogger("fmjax")

TRAIN = "train"
MADE_BY = "made_by.json"
MADE_OF = "made_of.json"
STOP_IDS = "stop_ids.json"


@dataclasses.dataclass(frozen=True)
class Kept:
    """Rows of arrays in files, and, where they have none, `loss_weights` float32 [], 1.

    Attributes:
      source: the folder.
      arrays: what a row has, as "latents:float16[32x32x4]" or "labels:int32[]", checked against the files, which is
        known before they are there; none: what the files have.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("source",)

    source: str
    arrays: tuple[str, ...] = ()

    def __post_init__(self):
        self.declared  # checks them

    @property
    def declared(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a row, by name, that the config tells."""
        found = {}
        for text in self.arrays:
            match = re.fullmatch(r"(\w+):(\w+)\[([\dx]*)\]", text)
            if match is None:
                raise ConfigError(f"data.arrays has {text!r}; expected a text such as 'latents:float16[32x32x4]'")
            name, dtype, shape = match.groups()
            try:
                dtype = np.dtype(dtype)
            except TypeError:
                raise ConfigError(f"data.arrays has {text!r}: numpy knows no dtype {dtype!r}") from None
            found[name] = jax.ShapeDtypeStruct(tuple(int(n) for n in shape.split("x") if n), dtype)
        return found

    @property
    def example(self) -> dict[str, Any] | None:
        """The arrays of a row, known without reading any data; None where the config tells none."""
        return {"loss_weights": jax.ShapeDtypeStruct((), np.float32)} | self.declared if self.arrays else None

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The rows, shuffled anew each epoch by `seed`. Raises DataError for a folder without them, or with others."""
        folder = pathlib.Path(self.source).expanduser()
        splits = sorted(path.parent.name for path in folder.glob("*/*.npy"))
        if TRAIN not in splits:
            raise DataError(
                f"data.source = {self.source!r} has no folder {TRAIN!r} with files NAME.npy; python -m "
                "fmjax.commands.keep writes one"
            )
        rows = {split: _Rows(folder / split, self.declared) for split in dict.fromkeys(splits)}
        train = rows.pop(TRAIN)
        hashes = [content_hash(path, pathlib.Path(cache_dir)) for path in sorted(folder.glob("*/*.npy"))]
        made_by = self._made_by(folder)
        codecs = load_codecs(folder)
        tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
        fields = {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size}
        row = train[0]
        if "tokens" in row:
            fields["max_length"] = row["tokens"].shape[-1]

        def check(module) -> None:
            if tokenizer is not None:
                check_vocabulary(module, tokenizer, str(folder))
            if "tokens" in row:
                check_max_length(module, row["tokens"].shape[-1])

        classes = getattr(codecs.get("label"), "num_classes", None)
        return OpenData(
            train=shuffled_indices(len(train), [seed, "kept"]).map(train.__getitem__),
            evaluation=rows,
            num_train=len(train),
            tokenizer=tokenizer,
            codecs=codecs,
            model_fields=fields | ({} if classes is None else {"num_classes": classes}),
            check=check,
            identity={**made_by, "dataset": f"kept:{fingerprint(hashes)}"},
            stop_ids=read_json(stops, list, DataError) if (stops := folder / STOP_IDS).is_file() else (),
        )

    @staticmethod
    def _made_by(folder: pathlib.Path) -> dict[str, str]:
        """The content of the models that encoded the rows, by name; {} with a warning where nothing says it."""
        if (folder / MADE_BY).is_file():
            return read_json(folder / MADE_BY, error=DataError)
        log.warning(
            "%s has no %s: nothing says which models encoded its rows, so that what decodes them is taken on trust",
            folder, MADE_BY,
        )  # fmt: skip
        return {}


def made_of(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section `data` of what rows were made of, where a section is of kept ones and its folder says so; or else
    the section itself."""
    if section.get("name") != "kept":
        return section
    file = pathlib.Path(section["source"]).expanduser() / MADE_OF
    return read_json(file, error=DataError) if file.is_file() else section


class _Rows(Sequence):
    """The rows of a folder of files, read as they are asked for."""

    def __init__(self, folder: pathlib.Path, declared: dict[str, jax.ShapeDtypeStruct]):
        self._files = {path.stem: self._opened(path) for path in sorted(folder.glob("*.npy"))}
        lengths = {name: len(file) for name, file in self._files.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise DataError(f"{folder}: its files have {lengths} rows; each array needs as many, and at least one")
        found = {name: (file.shape[1:], file.dtype) for name, file in self._files.items()}
        wanted = {name: (one.shape, one.dtype) for name, one in declared.items()}
        for name in wanted:
            if found.get(name) != wanted[name]:
                has = "is not there" if name not in found else "is {1}{0}".format(*found[name])
                shape, dtype = wanted[name]
                raise DataError(f"{folder}: data.arrays says that {name!r} is {dtype}{list(shape)}, and it {has}")
        if wanted:
            self._files = {name: file for name, file in self._files.items() if name in wanted}

    @staticmethod
    def _opened(path: pathlib.Path) -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as an array of numpy: {error}") from None

    def __len__(self) -> int:
        return len(next(iter(self._files.values())))

    def __getitem__(self, index: int) -> Row:
        index = range(len(self))[int(index)]
        row = {name: np.array(file[index]) for name, file in self._files.items()}
        return {"loss_weights": np.ones((), np.float32)} | row
