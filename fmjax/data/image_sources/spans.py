"""Images as stretches of large files: listed once, read by offset."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

from fmjax.data.image_set import ImageSet
from fmjax.data.prepared import build_once, fingerprint
from fmjax.errors import DataError, RunError, is_unreachable

_LAYOUT = 1  # part of the cache key: raise it when a list holds something else
_LIST = "images.json"


@dataclasses.dataclass(frozen=True)
class Listed:
    """An image in a list.

    Attributes:
      name: in its file.
      offset, size: where its bytes are.
      key: hash of its bytes.
      label: of its class; None where there is none.
      captions: perhaps none.
    """

    name: str
    offset: int
    size: int
    key: str
    label: str | None = None
    captions: tuple[str, ...] = ()


def key_of(content: bytes) -> str:
    """What equal images have equal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def listed(
    key: object, cache_dir: pathlib.Path, make: Callable[[pathlib.Path], Iterable[Listed]]
) -> tuple[pathlib.Path, list[Listed]]:
    """A folder of the cache and its list, made once by `make(folder)`, which may put further files there.

    key: JSON-able values that name the content.
    """

    def build(folder: pathlib.Path) -> None:
        records = [dataclasses.astuple(one) for one in make(folder)]
        (folder / _LIST).write_text(json.dumps(records))

    folder = build_once(cache_dir / "image_lists" / fingerprint(_LAYOUT, key), build)
    records = json.loads((folder / _LIST).read_text())
    return folder, [Listed(*record[:-1], captions=tuple(record[-1])) for record in records]


def image_set(where: str, files: Sequence[tuple[pathlib.Path, Sequence[Listed]]]) -> ImageSet:
    """The images listed of some files. Raises DataError where only some have a label, or only some a caption."""
    spans = [(path, one) for path, records in files for one in records]
    for what, has in (("label", lambda one: one.label is not None), ("caption", lambda one: bool(one.captions))):
        without = [f"{path.name}/{one.name}" for path, one in spans if not has(one)]
        if without and len(without) < len(spans):
            raise DataError(
                f"{where}: {len(without)} of {len(spans)} images have no {what}, such as {without[0]!r}; add it, or "
                "leave them out"
            )
    return ImageSet(
        where=where,
        names=[f"{path.name}/{one.name}" for path, one in spans],
        keys=[one.key for _, one in spans],
        content=lambda index: _read(*spans[index]),
        labels=[one.label for _, one in spans] if spans and spans[0][1].label is not None else (),
        captions=[one.captions for _, one in spans] if spans and spans[0][1].captions else (),
    )


def _read(path: pathlib.Path, one: Listed) -> bytes:
    """The bytes of an image. Raises DataError, or RunError where the file could be read at another time."""
    try:
        with path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), one.size, one.offset)
    except OSError as error:
        kind = RunError if is_unreachable(error) else DataError
        raise kind(f"{str(path)!r} cannot be read: {error.strerror}") from None
    if len(content) != one.size:
        raise DataError(f"{str(path)!r} ends within {one.name!r}: it has changed since it was listed")
    return content
