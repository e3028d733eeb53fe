"""Files that a model's own run trained on are left out of what it is evaluated on."""

import glob
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fmjax.data.image_sources.spans import key_of
from fmjax.errors import DataError
from fmjax.tasks.protocol import Media, TaskContext

log = logging.getLogger("fmjax")

T = TypeVar("T")


def source_of(config: Mapping[str, Any]) -> str:
    """The `data.source` of a run's config, which data of pixels have among their images'; "" where there is none."""
    section = config.get("data") or {}
    found = section.get("source") or (section.get("images") or {}).get("source")
    return found if isinstance(found, str) else ""


def without_trained_on(
    context: TaskContext, folder: pathlib.Path, found: Sequence[T], image_of: Callable[[T], Media], name: str
) -> Sequence[T]:
    """Those of what was found in a folder whose images the model's run did not train on, told by their files' content.

    Looked at where the folder, or one around or in it, is the `data.source` of the run; a copy elsewhere is not known.

    Args:
      image_of: the image of one that was found, in a file or as the bytes of one.
      name: under which `context.read` says how many are left out, for messages too.

    Raises DataError where no image is left, or the run's data cannot be opened.
    """
    if not _overlap(folder, context.run_source):
        return found
    seen = set(context.open_data().trained_on)
    kept = [one for one in found if not seen or key_of(_content(image_of(one))) not in seen]
    if not kept:
        raise DataError(
            f"the model's run trained on all {len(found)} images of {str(folder)!r}, so they say nothing of others; "
            "evaluate on images of its own, or, of images with classes, on those that the run held out: images_heldout"
        )
    if left := len(found) - len(kept):
        log.warning(
            "%s: the model's run trained on %d of its %d images, which are left out; the %d others are evaluated",
            name, left, len(found), len(kept),
        )  # fmt: skip
        context.read[name] = context.read.get(name, {}) | {"trained_on_left_out": left}
    return kept


def _overlap(folder: pathlib.Path, source: str) -> bool:
    """Whether a folder, or one around or in it, holds the files of a `data.source`."""
    if not source or source.startswith("tfds:"):
        return False
    place = pathlib.Path(source).expanduser()
    while glob.has_magic(str(place)) or place.is_file():
        place = place.parent
    place, folder = place.resolve(), folder.resolve()
    return folder.is_relative_to(place) or place.is_relative_to(folder)


def _content(image: Media) -> bytes:
    return image.value if isinstance(image.value, bytes) else image.value.read_bytes()
