"""A source of local files: one file, a glob, or a folder, with the split names and shards that datasets use."""

import dataclasses
import glob
import logging
import pathlib
import re
from collections.abc import Iterator

from fmjax.data import formats
from fmjax.data.prepared import content_hash, fingerprint
from fmjax.data.splits import heldout_choice, split_of
from fmjax.errors import DataError
from fmjax.registry import nearest

_GLOB = re.compile(r"[*?\[]")
log = logging.getLogger("fmjax")

_SHARD = re.compile(r"(?P<of>.*)-(?P<index>\d+)-of-(?P<total>\d+)(?P<rest>\..*)?$")


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Documents of local files.

    Attributes:
      name: the path or glob as given.
      fingerprint: hash of the files' names, contents and how they are read; the folder they lie in does not matter.
      files: (split, name, path) by name, split "train" or "heldout".
      has_heldout: whether the files' names say which are held out.
      num_documents: where it is known without reading: plain text without a separator.
      options: the reading options that these files use.
    """

    name: str
    fingerprint: str
    files: tuple[tuple[str, str, pathlib.Path], ...]
    reading: formats.Reading
    has_heldout: bool
    num_documents: int | None
    options: frozenset[str]

    @classmethod
    def open(cls, path: str, reading: formats.Reading, cache_dir: pathlib.Path) -> "FileSource":
        """Finds the files. Raises DataError when there are none, or when what they are is not clear."""
        found = list_files(path)
        kinds = {formats.file_kind(file) for _, file in found}
        files, has_heldout = _assign_splits(path, found)
        is_whole = kinds == {"text"} and reading.document_separator is None
        contents = [(split, name, content_hash(file, cache_dir)) for split, name, file in files]
        return cls(
            name=path,
            fingerprint=fingerprint("files", contents, dataclasses.asdict(reading)),
            files=files,
            reading=reading,
            has_heldout=has_heldout,
            num_documents=len(files) if is_whole else None,
            options=formats.OPTIONS[kinds.pop()],
        )

    @property
    def label(self) -> str:
        return f"{len(self.files)} files" if len(self.files) > 1 else self.files[0][1]

    def read(self) -> Iterator[tuple[str, str, str]]:
        """(split, record name, text) of every document."""
        count = 0
        for split, name, path in self.files:
            for number, text in formats.read_file(path, self.reading):
                yield split, f"{name}:{number}", text
                count += 1
        if self.reading.document_separator is not None and count == len(self.files):
            raise DataError(
                f"data.document_separator {self.reading.document_separator!r} occurs nowhere in {self.name}; "
                "leave it at None for one document a file"
            )


def list_files(path: str) -> list[tuple[str, pathlib.Path]]:
    """(name, path) of the files behind a path, a folder or a glob, sorted; names are relative to the folder."""
    place = pathlib.Path(path).expanduser()
    if place.is_file():
        files = [(place.name, place)]
    elif place.is_dir():
        files = _files_of_folder(place)
    elif _GLOB.search(path):
        base = pathlib.Path(*_before_glob(place.parts))
        matches = sorted(pathlib.Path(match) for match in glob.glob(str(place), recursive=True))
        files = [(file.relative_to(base).as_posix(), file) for file in matches if file.is_file()]
        if not files:
            raise DataError(f"data source {path!r} matches no file")
    else:
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        where = nearest(place.name, beside) if place.parent.is_dir() else f"; there is no folder {place.parent} either"
        raise DataError(f"data source {path!r}: no such file or folder{where}")
    for _, file in files:
        if formats.file_kind(file) is None:
            raise DataError(f"{file}: unsupported kind of file; supported are {formats.SUPPORTED}")
    kinds = sorted({formats.file_kind(file) for _, file in files})
    if len(kinds) > 1:
        examples = ", ".join(next(n for n, f in files if formats.file_kind(f) == kind) for kind in kinds)
        raise DataError(
            f"data source {path!r} mixes kinds of files ({examples}); choose one kind with a glob such as '*.jsonl'"
        )
    return files


def _before_glob(parts: tuple[str, ...]) -> list[str]:
    plain = []
    for part in parts:
        if _GLOB.search(part):
            break
        plain.append(part)
    return plain


def _files_of_folder(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """The supported files anywhere under a folder; hidden ones (download caches, version control) left out, and so are
    the README.md or prepare.py of a folder of other files."""
    files = []
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        # Names of Python source begin with an underscore without being hidden: __init__.py.
        marks = (".",) if file.suffix == ".py" else (".", "_")
        hidden = any(part.startswith(marks) for part in relative.parts)
        if file.is_file() and not hidden and formats.file_kind(file) is not None:
            files.append((relative.as_posix(), file))
    if not files:
        raise DataError(f"folder {folder} has no file of a supported kind: {formats.SUPPORTED}")
    companions = [entry for entry in files if formats.is_companion(entry[1])]
    if 0 < len(companions) < len(files):
        files = [entry for entry in files if not formats.is_companion(entry[1])]
        log.warning(
            "Of folder %s, %d files beside its %d documents are left out (%s): beside other kinds, %s files are not "
            "documents. A glob takes those that it names.",
            folder, len(companions), len(files), companions[0][0], ", ".join(formats.COMPANIONS),
        )  # fmt: skip
    shards: dict[tuple[str, int], set[int]] = {}
    for name, _ in files:
        if match := _SHARD.match(name):
            shards.setdefault((match["of"], int(match["total"])), set()).add(int(match["index"]))
    for (of, total), present in shards.items():
        missing = sorted(set(range(total)) - present)
        if missing:
            raise DataError(
                f"folder {folder}: shard {missing[0]:05d} of {total} of {of!r} is missing ({len(missing)} in all)"
            )
    return files


def _assign_splits(path: str, found: list[tuple[str, pathlib.Path]]):
    """((split, name, path), ...) and whether held-out files are among them.

    Files that all carry the same split's name, or none, are one set of training documents; so are those of a glob
    that matches files without a split's name.
    """
    named = {name: split_of(name) for name, _ in found}
    splits = sorted({split for split in named.values() if split})
    unnamed = [name for name, split in named.items() if split is None]
    chosen_by_hand = not pathlib.Path(path).expanduser().is_dir()
    if splits and unnamed and chosen_by_hand:
        other = next(name for name, split in named.items() if split)
        log.warning(
            "All %d files of %s are training documents, %s too: a split's name counts only where all files have one.",
            len(found), path, other,
        )  # fmt: skip
    if not splits or (len(splits) == 1 and not unnamed) or (unnamed and chosen_by_hand):
        return tuple(("train", name, file) for name, file in found), False
    if unnamed:
        other = next(name for name, split in named.items() if split)
        raise DataError(
            f"data source {path!r}: some files are named by their split ({other}) and some are not ({unnamed[0]}); "
            "choose with a glob: all the files that such a glob matches are training documents"
        )
    if "train" not in splits:
        raise DataError(f"data source {path!r} has files for {' and '.join(splits)} but none for train")
    heldout = heldout_choice(splits)
    role = {"train": "train", heldout: "heldout"}
    return tuple((role[named[n]], n, file) for n, file in found if named[n] in role), heldout is not None
