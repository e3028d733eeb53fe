"""Images of whatever source a config names, by split."""

import dataclasses
import glob
import pathlib
from collections.abc import Callable, Mapping, Sequence

from fmjax.data.image_files import labelled_files, split_folders
from fmjax.data.image_set import ImageSet
from fmjax.data.image_sources import caption_files, idx
from fmjax.data.image_sources.archives import tar_set
from fmjax.data.image_sources.parquet import parquet_set
from fmjax.data.image_sources.records import Fields
from fmjax.data.prepared import content_hash
from fmjax.data.splits import heldout_choice, split_of
from fmjax.errors import ConfigError, DataError


def open_image_sets(
    source: str, fields: Fields, cache_dir: pathlib.Path, captions: bool = False
) -> Mapping[str, ImageSet]:
    """{"train": images} of a source, and "heldout" where it has such ones of its own.

    Args:
      source: tfds:NAME; a folder, file or glob of tars, of Parquet or of IDX files; a caption file, or a folder with
        one; a folder of images in subfolders by class, or with a metadata.jsonl of labels.
      captions: whether captions are looked for, and a folder's caption file before its classes.

    Raises DataError for a source that is not there, is nothing of this, or cannot be read; ConfigError as `tfds_sets`.
    """
    if source.startswith("tfds:"):
        _refuse_unread(fields, ("image", "label", "caption", "tfds_data_dir"), source)
        from fmjax.data.image_sources.tfds import tfds_sets  # TFDS takes a second to import

        return tfds_sets(source, fields, cache_dir)
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return _folder(path, fields, cache_dir, captions)
    if path.is_file():
        return _files(source, [path], fields, cache_dir)
    found = [pathlib.Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise DataError(
            f"data.source {source!r} does not exist; expected a folder of images in subfolders by class, a caption "
            "file (.csv, .tsv, .jsonl), .tar, .parquet or IDX files, or tfds:NAME"
        )
    return _files(source, found, fields, cache_dir)


def _folder(folder: pathlib.Path, fields: Fields, cache_dir: pathlib.Path, captions: bool) -> Mapping[str, ImageSet]:
    within = [folder, folder / "data"] if (folder / "data").is_dir() else [folder]
    visible = [path for one in within for path in sorted(one.iterdir()) if not path.name.startswith(".")]
    for kind in (lambda path: path.suffix == ".tar", lambda path: path.suffix == ".parquet", idx.is_images):
        if files := [path for path in visible if kind(path) and path.is_file()]:
            return _files(str(folder), files, fields, cache_dir)
    tables = [folder / name for name in caption_files.NAMES if (folder / name).is_file()]
    if captions and tables:
        _refuse_unread(fields, ("image", "caption", "image_folder"), str(folder))
        return caption_files.caption_sets(tables[0], fields, cache_dir)
    _refuse_unread(fields, (), str(folder))
    return {split: _labelled(one, cache_dir) for split, one in split_folders(folder).items()}


def _labelled(folder: pathlib.Path, cache_dir: pathlib.Path) -> ImageSet:
    files = labelled_files(folder)
    paths = [file.path for file in files]
    return ImageSet(
        where=str(folder),
        names=[file.name for file in files],
        keys=[content_hash(path, cache_dir) for path in paths],
        content=paths.__getitem__,
        labels=[file.label for file in files],
    )


def _files(source: str, files: Sequence[pathlib.Path], fields: Fields, cache_dir) -> Mapping[str, ImageSet]:
    for suffix, make, read in (
        (".tar", tar_set, ("label", "caption")),
        (".parquet", parquet_set, ("image", "label", "caption")),
    ):
        if all(path.suffix == suffix for path in files):
            _refuse_unread(fields, read, source)
            return _by_split(source, files, lambda part: make(source, part, fields, cache_dir))
    if all(map(idx.is_images, files)):
        _refuse_unread(fields, (), source)
        return idx.idx_sets(list(files))
    if len(files) == 1 and files[0].suffix in caption_files.SUFFIXES:
        _refuse_unread(fields, ("image", "caption", "image_folder"), source)
        return caption_files.caption_sets(files[0], fields, cache_dir)
    raise DataError(
        f"data.source {source!r}: {files[0].name!r} is no source of images; expected .tar, .parquet, IDX files "
        "(...images-idx3-ubyte), or one caption file (.csv, .tsv, .jsonl)"
    )


def _refuse_unread(fields: Fields, read: Sequence[str], source: str) -> None:
    """Raises ConfigError for the name of a field that such a source has no use for."""
    for name, value in dataclasses.asdict(fields).items():
        if value is not None and name not in read:
            key = name if name in ("tfds_data_dir", "image_folder") else f"{name}_field"
            raise ConfigError(f"data.{key} is never read: source {source} has no use for it")


def _by_split(source: str, files: Sequence[pathlib.Path], make: Callable) -> Mapping[str, ImageSet]:
    """Files by the splits that their names tell; all to train on where they tell none."""
    parts: dict[str | None, list[pathlib.Path]] = {}
    for path in files:
        parts.setdefault(split_of(path.as_posix()), []).append(path)
    if set(parts) == {None}:
        return {"train": make(files)}
    if "train" not in parts:
        raise DataError(f"data.source {source!r} has files of {sorted(map(str, parts))}, and none named train...")
    if None in parts:
        raise DataError(
            f"data.source {source!r}: {len(parts[None])} of {len(files)} files name no split, such as "
            f"{parts[None][0].name!r}, and others do; name them train..., or leave them out"
        )
    heldout = heldout_choice(sorted(filter(None, parts)))
    return {"train": make(parts["train"])} | ({"heldout": make(parts[heldout])} if heldout else {})
