"""A source that is any TFDS dataset, read with random access and without TensorFlow."""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

import fmjax.data.python_stdlib  # noqa: F401 (registers the builder, so that tfds:python_stdlib is known too)
import fmjax.data.shapes.builder  # noqa: F401 (registers shapes_world)
from fmjax.data import formats
from fmjax.data.prepared import content_hash, fingerprint
from fmjax.data.reachable import TIMEOUT, unreachable_hosts
from fmjax.data.splits import heldout_choice
from fmjax.errors import ConfigError, DataError
from fmjax.registry import nearest

_VERSION = re.compile(r"\d+\.\d+\.\d+$|\d+\.\d+\.\*$|\d+\.\*\.\*$")

SERVERS = ("https://storage.googleapis.com", "https://github.com", "https://huggingface.co")
"""Where most datasets are downloaded from; stands for those of TFDS that do not list their URLs."""


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Documents of a TFDS dataset.

    Attributes:
      name: as the config words it.
      label: its full name, with config and version.
      fingerprint: hash of the dataset's name, version and files, and of how it is read.
      splits: the documents of "train" and, where it has one of its own, "heldout".
    """

    name: str
    label: str
    fingerprint: str
    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    field: str
    num_documents: int
    options: frozenset[str] = frozenset({"text_field", "tfds_data_dir"})

    @classmethod
    def open(cls, words: str, reading: formats.Reading, data_dir: str | None, cache_dir: pathlib.Path) -> "TfdsSource":
        """Opens "tfds:NAME[/CONFIG][:VERSION][:SPLIT]", preparing it if that is not done yet.

        Raises:
          ConfigError: no dataset or split of that name.
          DataError: it cannot be prepared or read, or has no such text feature.
        """
        name, split = parse(words)
        builder = open_builder(words, name, data_dir or str(cache_dir / "tfds"))
        known = list(builder.info.splits)
        if split is None:
            if "train" not in known:
                raise ConfigError(f"data source {words!r} has no split 'train'; add one of {known} as ':SPLIT'")
            chosen = {"train": "train", "heldout": heldout_choice([s for s in known if s != "train"])}
        else:
            if re.split(r"[\[+]", split)[0] not in known:
                hint = nearest(split, known) or "."
                raise ConfigError(f"data source {words!r} has no split {split!r}{hint} Known: {known}")
            chosen = {"train": split, "heldout": None}
        if reading.field not in builder.info.features:
            missing = formats.missing_field(reading.field, sorted(builder.info.features))
            raise DataError(f"data source {words!r}: {missing}")
        splits = {}
        for role, wanted in chosen.items():
            if wanted is not None:
                try:
                    splits[role] = builder.as_data_source(wanted)
                except (NotImplementedError, ValueError) as error:
                    raise DataError(
                        f"data source {words!r}: prepared at {builder.data_dir} in a format without random access; "
                        f"prepare it with file_format='array_record' ({str(error).splitlines()[0]})"
                    ) from None
        return cls(
            name=words,
            label=builder.info.full_name,
            fingerprint=fingerprint(
                "tfds", builder.info.full_name, chosen, reading.field, prepared_content(builder, cache_dir)
            ),
            splits=splits,
            field=reading.field,
            num_documents=len(splits["train"]),
        )

    @property
    def has_heldout(self) -> bool:
        return "heldout" in self.splits

    def read(self) -> Iterator[tuple[str, str, str]]:
        for split, documents in self.splits.items():
            for index in range(len(documents)):
                where = f"{self.name} {split} record {index}"
                try:
                    value = documents[index][self.field]
                except Exception as error:  # TFDS, ArrayRecord and the features raise of every kind
                    raise DataError(f"{where} cannot be read: {error}") from error
                if isinstance(value, bytes):
                    try:
                        value = value.decode()
                    except UnicodeDecodeError as error:
                        raise DataError(f"{where}: feature {self.field!r} is not valid UTF-8: {error}") from None
                yield split, str(index), formats.text_of({self.field: value}, self.field, where)


def parse(words: str) -> tuple[str, str | None]:
    """Of "tfds:NAME[/CONFIG][:VERSION][:SPLIT]": the name, with config and version as TFDS writes them; the split."""
    name, *rest = words.removeprefix("tfds:").split(":")
    if rest and _VERSION.match(rest[0]):
        name = f"{name}:{rest.pop(0)}"
    split = ":".join(rest)  # a split may hold a colon itself, as in train[:1000]
    if not name or (rest and not split):
        raise ConfigError(f"data source {words!r}: expected tfds:NAME[/CONFIG][:VERSION][:SPLIT]")
    return name, split or None


def open_builder(words: str, name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The dataset prepared in `data_dir`, after preparing it where that is not done yet; `words` name it in errors.

    Raises ConfigError for an unknown dataset, DataError where it cannot be prepared; at once where none of its servers
    can be reached, or its code needs a package that is not installed.
    """
    data_dir = str(pathlib.Path(data_dir).expanduser())
    try:
        builder = _builder(name, data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        raise ConfigError(
            f"data source {words!r}: TFDS knows no dataset {name!r} and none is prepared in {data_dir}"
            f"{nearest(name, tfds.list_builders(with_community_datasets=False)) or '.'} "
            "Set data.tfds_data_dir to the folder of prepared datasets."
        ) from None
    except ImportError as error:
        raise DataError(
            f"data source {words!r}: TFDS's code for it needs the package {_missing(error)!r}, which is not installed; "
            f"install it, or put the prepared dataset into {data_dir}"
        ) from None
    if not builder.is_prepared():
        if hosts := unreachable_hosts(_urls(builder)):
            raise DataError(
                f"data source {words!r} is not prepared in {data_dir} and cannot be downloaded: {', '.join(hosts)} "
                f"cannot be reached within {TIMEOUT:g} s; prepare it where there is a network, and copy the folder"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:  # whatever a builder's own code, or the network, raises
            raise DataError(f"data source {words!r} cannot be prepared in {data_dir}: {error}") from error
    return builder


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        # Some datasets register themselves only when their part of TFDS is imported, which it puts off.
        for part in ("text", "question_answering", "summarization", "translate"):
            importlib.import_module(f"tensorflow_datasets.{part}")
        builder = tfds.builder(name, data_dir=data_dir)
    if builder.is_prepared():
        return builder
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")


def _urls(builder: tfds.core.DatasetBuilder) -> Collection[str]:
    """What it downloads, as far as that is known; a builder of somebody else may well need no network."""
    known = builder.url_infos or ()
    if known or not type(builder).__module__.startswith("tensorflow_datasets."):
        return known
    return () if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else SERVERS


def _missing(error: BaseException | None) -> str | None:
    """The package that is not there, by the first of the errors that names one."""
    if error is None:
        return None
    return getattr(error, "name", None) or _missing(error.__cause__ or error.__context__)


def prepared_content(builder: tfds.core.DatasetBuilder, cache_dir: pathlib.Path) -> list:
    """Names and hashes of the files of a prepared dataset."""
    files = sorted(pathlib.Path(builder.data_dir).iterdir())
    return [[file.name, content_hash(file, cache_dir)] for file in files if file.is_file()]
