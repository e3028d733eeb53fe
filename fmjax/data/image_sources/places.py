"""Where the images lie that captions name: beside the file of captions, in a folder there, or in its one zip."""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

from fmjax.data.image_sources.spans import key_of
from fmjax.data.prepared import build_once, content_hash, fingerprint
from fmjax.errors import DataError, RunError, is_unreachable

FOLDERS = ("", "images", "Images")


@dataclasses.dataclass(frozen=True)
class Folder:
    """Images in files."""

    path: pathlib.Path

    def content(self, name: str) -> pathlib.Path:
        """The file of this name, perhaps one that is not there."""
        return self.path / name

    def keys(self, names: Sequence[str], cache_dir: pathlib.Path) -> list[str]:
        """Hashes of the files' bytes."""
        paths = [self.path / name for name in names]
        return [content_hash(path, cache_dir) if path.is_file() else f"missing:{path.name}" for path in paths]


@dataclasses.dataclass(frozen=True)
class Zip:
    """Images in a zip, read by their offsets.

    Attributes:
      path: of the zip.
      members: by the names in captions those of that name, or of that end where the zip has them in a folder; none of a
        name that is not there.
    """

    path: pathlib.Path
    members: dict[str, zipfile.ZipInfo]

    def content(self, name: str) -> bytes:
        """The bytes of an image. Raises DataError, or RunError where it could be read at another time."""
        if name not in self.members:
            raise DataError(f"{self.path} has no {name!r}, which a caption names")
        info = self.members[name]
        try:
            with self.path.open("rb", buffering=0) as file:
                head = os.pread(file.fileno(), zipfile.sizeFileHeader, info.header_offset)
                lengths = [int.from_bytes(head[i : i + 2], "little") for i in (26, 28)]  # of name and extra field
                start = info.header_offset + zipfile.sizeFileHeader + sum(lengths)
                content = os.pread(file.fileno(), info.compress_size, start)
            if info.compress_type == zipfile.ZIP_DEFLATED:
                content = zlib.decompress(content, -zlib.MAX_WBITS)
            elif info.compress_type != zipfile.ZIP_STORED:
                raise DataError(f"{self.path}: {name!r} is compressed by another method than deflate; zip it anew")
        except (OSError, zlib.error) as error:
            kind = RunError if isinstance(error, OSError) and is_unreachable(error) else DataError
            raise kind(f"{self.path}: {name!r} cannot be read: {error}") from None
        if zlib.crc32(content) != info.CRC:
            raise DataError(f"{self.path}: {name!r} is damaged: its checksum is another; copy the zip again")
        return content

    def keys(self, names: Sequence[str], cache_dir: pathlib.Path) -> list[str]:
        """Hashes of the images' bytes, which are read once for a zip of the same content."""

        def build(folder: pathlib.Path) -> None:
            (folder / "keys.json").write_text(json.dumps([self._key(name) for name in names]))

        key = fingerprint("zip", content_hash(self.path, cache_dir), list(names))
        return json.loads((build_once(cache_dir / "image_lists" / key, build) / "keys.json").read_text())

    def _key(self, name: str) -> str:
        try:
            return key_of(self.content(name))
        except DataError:  # told when images are read
            return f"missing:{name}"


def image_place(folder: pathlib.Path, names: Sequence[str]) -> Folder | Zip:
    """Where the images of these names lie: `folder`, its `images`, or else its one zip; where nothing of this has the
    first of them, `folder`.

    Raises DataError for a zip that cannot be read, or has several files of one of the names, and where there are
    several zips.
    """
    places = [folder / name for name in FOLDERS]
    if found := next((place for place in places if (place / names[0]).is_file()), None):
        return Folder(found)
    archives = sorted(folder.glob("*.zip"))
    if len(archives) > 1:
        raise DataError(
            f"{str(folder / names[0])!r} does not exist, and {str(folder)!r} has {len(archives)} zips; leave one there"
        )
    return _zip(archives[0], names) if archives else Folder(folder)


def _zip(path: pathlib.Path, names: Sequence[str]) -> Zip:
    try:
        with zipfile.ZipFile(path) as archive:
            known = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    ends: dict[str, list[str]] = {}
    for member in known:
        parts = pathlib.PurePosixPath(member).parts
        for first in range(1, len(parts)):
            ends.setdefault("/".join(parts[first:]), []).append(member)
    members = {}
    for name in names:
        fits = [name] if name in known else ends.get(name, [])
        if len(fits) > 1:
            raise DataError(
                f"{path} has {len(fits)} files {name!r}, which a caption names: {', '.join(sorted(fits)[:3])}; write "
                "the path in the archive in the file of captions"
            )
        members |= {name: known[one] for one in fits}
    return Zip(path, members)
