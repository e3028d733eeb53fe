"""Folders of images with labels: a subfolder a class, or a `metadata.jsonl` that names files (as Hugging Face's
ImageFolder has them)."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping

from fmjax.data.splits import heldout_choice, split_of_folder
from fmjax.errors import DataError

log = logging.getLogger("fmjax")

METADATA = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class LabelledFile:
    """An image in a file.

    Attributes:
      name: of the file, relative to the folder.
      path: of the file.
      label: the name of its class.
    """

    name: str
    path: pathlib.Path
    label: str


def labelled_files(folder: pathlib.Path) -> list[LabelledFile]:
    """The images of a folder by name; hidden files, and those of other kinds, are left out.

    Where it has a `metadata.jsonl`, they are what that names, on each line {"file_name": "a.png", "label": "cat"};
    else the name of the subfolder that a file lies in, at any depth, is its class.

    Raises DataError where there is no folder or no image, an image lies in no subfolder, or a line names no file.
    """
    if not folder.is_dir():
        raise DataError(
            f"folder {str(folder)!r} does not exist; expected one of images, with a subfolder for each class"
        )
    metadata = folder / METADATA
    files = _named(folder, metadata) if metadata.is_file() else _in_subfolders(folder)
    if not files:
        raise DataError(
            f"folder {str(folder)!r} has no image ({', '.join(SUFFIXES)}) in a subfolder, and no {METADATA}"
        )
    return sorted(files, key=lambda file: file.name)


def image_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The images of a folder, labelled or not, by their names relative to it, in the order of the alphabet.

    At any depth; hidden files, and those of other kinds, are left out. Raises DataError where there is none.
    """
    if not folder.is_dir():
        raise DataError(f"folder {str(folder)!r} does not exist; expected one of images")
    names = {path.relative_to(folder): path for path in folder.rglob("*")}
    found = {name.as_posix(): path for name, path in names.items() if _is_image(name) and path.is_file()}
    if not found:
        raise DataError(f"folder {str(folder)!r} has no image ({', '.join(SUFFIXES)}), at no depth")
    return dict(sorted(found.items()))


def split_folders(folder: pathlib.Path) -> Mapping[str, pathlib.Path]:
    """{"train": folder, "heldout": folder} where all subfolders are named as splits are, such as "train" and "test";
    {"train": the folder itself} where they are not, or it has a `metadata.jsonl`.

    Raises DataError for splits without "train", and for one split under two names.
    """
    subfolders = [entry for entry in _visible(folder) if entry.is_dir()] if folder.is_dir() else []
    splits = [split_of_folder(entry.name) for entry in subfolders]
    if not any(splits) or (folder / METADATA).is_file():
        return {"train": folder}
    known = ", ".join(entry.name for entry, split in zip(subfolders, splits) if split)
    if not all(splits):
        log.warning(
            "%s: %s are taken for classes, as not all subfolders are splits. If they are splits, move the others away.",
            folder, known,
        )  # fmt: skip
        return {"train": folder}
    remedy = f"choose one folder of classes. If these are classes, name each file's in {folder / METADATA}"
    named: dict[str, pathlib.Path] = {}
    for entry, split in zip(subfolders, splits):
        if split in named:
            both = f"{named[split].name!r} and {entry.name!r}"
            raise DataError(f"folder {str(folder)!r} has {both}, which are one split; merge them, or {remedy}")
        named[split] = entry
    if "train" not in named:
        raise DataError(f"folder {str(folder)!r} has splits ({known}), and 'train' is missing; {remedy}")
    heldout = heldout_choice(sorted(named))
    return {"train": named["train"]} | ({"heldout": named[heldout]} if heldout else {})


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]


def _in_subfolders(folder: pathlib.Path) -> list[LabelledFile]:
    found = []
    for entry in _visible(folder):
        if entry.is_dir():
            paths = [path for path in entry.rglob("*") if _is_image(path.relative_to(folder)) and path.is_file()]
            found += [LabelledFile(path.relative_to(folder).as_posix(), path, entry.name) for path in paths]
        elif _is_image(pathlib.PurePath(entry.name)):
            raise DataError(
                f"{str(entry)!r} lies in no class's subfolder; put it into one, or name labels in {folder / METADATA}"
            )
    return found


def _is_image(name: pathlib.PurePath) -> bool:
    return name.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts)


def _named(folder: pathlib.Path, metadata: pathlib.Path) -> list[LabelledFile]:
    found: dict[str, LabelledFile] = {}
    try:
        lines = metadata.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{metadata} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, label = record["file_name"], record["label"]
            if not isinstance(name, str) or isinstance(label, bool) or not isinstance(label, str | int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{metadata}, line {number}: expected {{"file_name": "a.png", "label": "cat"}}, got {line[:80]!r}'
            ) from None
        if name in found:
            raise DataError(f"{metadata}, line {number}: {name!r} has a label already; leave one of the lines out")
        if not (folder / name).is_file():
            raise DataError(f"{metadata}, line {number}: {str(folder / name)!r} does not exist")
        found[name] = LabelledFile(name, folder / name, str(label))
    return list(found.values())
