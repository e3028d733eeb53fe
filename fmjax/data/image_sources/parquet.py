"""Parquet with images in it, as Hugging Face's data sets are kept: copied once into a file with random access."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from fmjax.data.image_set import ImageSet
from fmjax.data.image_sources.records import IMAGE_FIELDS, LABEL_FIELDS, Fields, captions_of, field_of, label_of
from fmjax.data.image_sources.spans import Listed, image_set, key_of, listed
from fmjax.data.prepared import content_hash
from fmjax.errors import DataError

_BATCH = 64  # rows read at once
_BYTES = "images.bin"


def parquet_set(where: str, files: Sequence[pathlib.Path], fields: Fields, cache_dir: pathlib.Path) -> ImageSet:
    """The images of Parquet files: a column of bytes, or of {"bytes": ..., "path": ...}.

    A row group cannot be read in part, so their bytes are copied into the cache.

    Raises DataError for files that cannot be read, have no such column, or rows without bytes.
    """
    found = []
    for path in files:
        key = ["parquet", content_hash(path, cache_dir), fields.image, fields.label, fields.caption]
        folder, records = listed(key, cache_dir, lambda folder, path=path: _copied(path, fields, folder / _BYTES))
        found.append((folder / _BYTES, records))
    if not any(records for _, records in found):
        raise DataError(f"{where}: no image in {len(files)} Parquet files")
    return image_set(where, found)


def _copied(path: pathlib.Path, fields: Fields, target: pathlib.Path) -> Iterator[Listed]:
    """The images of a file, while their bytes are written one after another to `target`."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{str(path)!r} cannot be read as Parquet: {error}") from None
    try:
        column = field_of(file.schema_arrow.names, fields.image, IMAGE_FIELDS)
    except KeyError:
        column = None
    if column is None:
        raise DataError(
            f"{str(path)!r} has no column {fields.image or 'image'!r}; it has {', '.join(file.schema_arrow.names)}: "
            "name it with data.image_field"
        )
    classes, offset, number = _class_names(file.schema_arrow.metadata), 0, 0
    with open(target, "wb") as out:
        try:
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    content = _bytes_of(row.pop(column), f"{path} row {number}")
                    out.write(content)
                    yield _listed(row, content, offset, number, classes, fields, path)
                    offset, number = offset + len(content), number + 1
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{str(path)!r} cannot be read at row {number}: {error}") from None


def _listed(row, content: bytes, offset: int, number: int, classes, fields: Fields, path) -> Listed:
    where = f"{path} row {number}"
    label, names = label_of(row, fields, where), classes.get(field_of(list(row), fields.label, LABEL_FIELDS))
    if names and label is not None and label.isdecimal():
        if int(label) >= len(names):
            raise DataError(f"{where}: the label is {label}, and there are {len(names)} classes")
        label = names[int(label)]
    return Listed(f"row {number}", offset, len(content), key_of(content), label, captions_of(row, fields, where))


def _bytes_of(value: Any, where: str) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(
            f"{where}: the image is {str(value)[:60]!r}, expected its bytes, or {{'bytes': ..., 'path': ...}}"
        )
    return content


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of classes by column, as `datasets` writes them into a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
