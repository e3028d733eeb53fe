"""Captions in a table beside a folder of images: .csv, .tsv, .jsonl, one or several for each image."""

import csv
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmjax.data.image_set import ImageSet
from fmjax.data.image_sources.places import Folder, Zip, image_place
from fmjax.data.image_sources.records import CAPTION_FIELDS, IMAGE_FIELDS, Fields, captions_of, field_of
from fmjax.data.splits import heldout_choice, split_of_folder
from fmjax.errors import DataError

NAMES = ("captions.csv", "captions.tsv", "captions.txt", "captions.jsonl", "metadata.jsonl", "metadata.csv")
"""What a folder's caption file is called; the first that is there."""
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
_DELIMITERS = (",", "\t", "|", ";")
_SPLIT = "split"


def caption_sets(table: pathlib.Path, fields: Fields, cache_dir: pathlib.Path) -> Mapping[str, ImageSet]:
    """The images of a caption file, by split where it has a column "split".

    A line names an image and a caption of it; a line of JSON may have a list of them. Images named that are not there
    are found when they are read.

    Raises DataError for a table that cannot be read, names no image, or has no such columns.
    """
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for where, record in _records(table):
        name, found = _line(record, fields, where)
        captions.setdefault(name, []).extend(found)
        if _SPLIT in record:
            split = split_of_folder(str(record[_SPLIT]))
            if split is None or splits.setdefault(name, split) != split:
                raise DataError(f"{where}: the split of {name!r} is {record[_SPLIT]!r}; expected one of train, "
                                "validation, test, the same on each of its lines")  # fmt: skip
    if not captions:
        raise DataError(f"{str(table)!r} names no image")
    if splits and (without := [name for name in captions if name not in splits]):
        raise DataError(
            f"{str(table)!r}: {len(without)} of {len(captions)} images have no split, such as {without[0]!r}, and "
            "others have one; give each line its split, or none"
        )
    place = _place(table, fields, list(captions))
    chosen = {"train": "train", heldout_choice(sorted(set(splits.values()))): "heldout"} if splits else {None: "train"}
    sets = {}
    for split, role in chosen.items():
        names = sorted(name for name in captions if splits.get(name) == split)
        if split is not None and names or not splits:
            sets[role] = ImageSet(
                where=str(place.path),
                names=names,
                keys=place.keys(names, cache_dir),
                content=lambda index, names=names: place.content(names[index]),
                captions=[tuple(captions[name]) for name in names],
            )
    if "train" not in sets:
        raise DataError(f"{str(table)!r} has splits {sorted(set(splits.values()))}, and 'train' is missing")
    return sets


def caption_lines(table: pathlib.Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(image's name, captions) of each line of a caption file whose fields have usual names. Raises DataError."""
    return (_line(record, Fields(), where) for where, record in _records(table))


def _line(record: Mapping[str, Any], fields: Fields, where: str) -> tuple[str, tuple[str, ...]]:
    """The image's name and the captions on a line."""
    try:
        name_field = field_of(list(record), fields.image, IMAGE_FIELDS)
        caption_field = field_of(list(record), fields.caption, CAPTION_FIELDS)
    except KeyError as error:
        raise DataError(f"{where}: no field {error}; its fields: {', '.join(record)}") from None
    if name_field is None or caption_field is None:
        raise DataError(
            f"{where}: expected a field with the image's name ({', '.join(IMAGE_FIELDS)}) and one with its caption "
            f"({', '.join(CAPTION_FIELDS)}), got {', '.join(map(str, record))}; name them with data.image_field and "
            "data.caption_field"
        )
    name = record[name_field]
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: the image's name is {name!r}, expected that of a file")
    return name.strip(), captions_of(record, fields, where)


def _records(table: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, fields) of each line."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(table)!r} cannot be read: {error}") from None
    if table.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{table}, line {number}"
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where} is no JSON: {error}") from None
                if not isinstance(record, dict):
                    raise DataError(f"{where}: expected an object with keys, got {line[:60]!r}")
                yield where, record
        return
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        for row in rows:
            where = f"{table}, line {rows.line_num}"
            if row and len(row) != len(names):
                raise DataError(f"{where} has {len(row)} fields, and the first line {len(names)}; put text with "
                                f"{delimiter!r} between quotes")  # fmt: skip
            if row:
                yield where, dict(zip(names, row))
    except csv.Error as error:
        raise DataError(f"{table}, line {rows.line_num}: {error}") from None


def _place(table: pathlib.Path, fields: Fields, names: Sequence[str]) -> Folder | Zip:
    """Where the images lie that a table names."""
    if fields.image_folder is None:
        return image_place(table.parent, names)
    folder = pathlib.Path(fields.image_folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.image_folder {str(folder)!r} does not exist")
    return Folder(folder)
