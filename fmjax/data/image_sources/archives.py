"""Tars as WebDataset writes them: files of one name belong together, a picture with its caption or class."""

import dataclasses
import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence

from fmjax.data.image_files import SUFFIXES
from fmjax.data.image_set import ImageSet
from fmjax.data.image_sources.records import captions_of, label_of
from fmjax.data.image_sources.spans import Listed, image_set, key_of, listed
from fmjax.data.prepared import content_hash
from fmjax.errors import DataError

_TEXTS = ("txt", "cls", "json")


def tar_set(where: str, tars: Sequence[pathlib.Path], fields, cache_dir: pathlib.Path) -> ImageSet:
    """The images of tars. 0001.jpg has its caption in 0001.txt, its class in 0001.cls, or both in 0001.json.

    Each tar is read once, to list what lies where; then images are read by their offsets.

    fields: an `fmjax.data.image_sources.records.Fields`, of the JSON files.

    Raises DataError for a tar that is compressed, torn or without images, and for files beside images that cannot be
    understood.
    """
    files = []
    for path in tars:
        key = ["tar", content_hash(path, cache_dir), fields.label, fields.caption]
        files.append((path, listed(key, cache_dir, lambda folder, path=path: _members(path, fields))[1]))
        if not files[-1][1]:
            raise DataError(f"{str(path)!r} has no image ({', '.join(SUFFIXES)})")
    return image_set(where, files)


def _members(path: pathlib.Path, fields) -> Iterator[Listed]:
    """The images of a tar, with what lies beside them."""
    groups: dict[str, dict[str, Listed | bytes]] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or pathlib.PurePosixPath(member.name).name.startswith("."):
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{str(path)!r} ends within {member.name!r}: it is torn; copy it again")
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                group = groups.setdefault(f"{folder}/{stem}", {})
                if suffix in _TEXTS:
                    group[suffix] = tar.extractfile(member).read()
                elif f".{suffix.lower()}" in SUFFIXES:
                    key = key_of(tar.extractfile(member).read())
                    group["image"] = Listed(member.name, member.offset_data, member.size, key)
    except tarfile.TarError as error:
        raise DataError(
            f"{str(path)!r} cannot be read as a tar ({error}); one that is compressed has no random access: unpack it"
        ) from None
    for group in groups.values():
        if image := group.pop("image", None):
            label, captions = _beside(group, f"{path}/{image.name}", fields)
            yield dataclasses.replace(image, label=label, captions=captions)


def _beside(group: Mapping[str, bytes], where: str, fields) -> tuple[str | None, tuple[str, ...]]:
    """(label, captions) in the files that lie beside an image."""
    texts = {}
    for suffix, content in group.items():
        try:
            texts[suffix] = content.decode()
        except UnicodeDecodeError:
            raise DataError(f"{where}: the .{suffix} beside it is not valid UTF-8") from None
    record = {}
    if "json" in texts:
        try:
            record = json.loads(texts["json"])
        except ValueError as error:
            raise DataError(f"{where}: the .json beside it cannot be read: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: the .json beside it holds {texts['json'][:60]!r}, expected an object with keys")
    label, captions = label_of(record, fields, where), captions_of(record, fields, where)
    if "cls" in texts:
        label = texts["cls"].strip()
    if "txt" in texts:
        captions = (texts["txt"].strip(),)
    return label, captions
