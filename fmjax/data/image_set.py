"""Images with labels or captions wherever they lie, and which of them cannot be read."""

import concurrent.futures
import dataclasses
import io
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.prepared import build_once, fingerprint
from fmjax.errors import DataError

log = logging.getLogger("fmjax")

READING = "oriented"  # how files become pixels; another word for another way: what was made of the same files differs
BAD_IMAGES = ("refuse", "skip")
REMEDY = "Mend or remove them, or leave them out with data.bad_images = 'skip'"
_AT_ONCE = 4096  # images that are handed to the threads together
_TOLD = 10  # bad images that the log names; the list of all lies in the cache


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images with random access.

    Attributes:
      where: the folder, archive or dataset, for messages.
      names: of the images there.
      keys: hashes of their content; equal images have equal ones.
      content: `content(i)` is image i: a file's path or bytes, or pixels uint8 [H, W, C].
      labels: the names of their classes, or () for none.
      captions: of each image, at least one, or () for none.
    """

    where: str
    names: Sequence[str]
    keys: Sequence[str]
    content: Callable[[int], pathlib.Path | bytes | np.ndarray]
    labels: Sequence[str] = ()
    captions: Sequence[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int, codec: ImageCodec) -> np.ndarray:
        """Image uint8 [H, W, C], not scaled yet. Raises DataError naming an image that the codec cannot hold."""
        content = self.content(index)
        if isinstance(content, np.ndarray):
            if content.shape[-1] == 1 < codec.channels:  # a grey image has equal channels
                content = np.repeat(content, codec.channels, axis=-1)
            if content.shape[-1] != codec.channels:
                raise DataError(
                    f"{self.place(index)!r} has {content.shape[-1]} channels, and images here {codec.channels}; set "
                    "data.channels"
                )
            return content
        file = content if isinstance(content, pathlib.Path) else io.BytesIO(content)
        return codec.pixels(file, self.place(index))

    def place(self, index: int) -> str:
        return f"{self.where}/{self.names[index]}"

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """The images of these numbers, as 0, 1, ..."""
        chosen = [int(i) for i in indices]
        pick = lambda values: [values[i] for i in chosen] if len(values) else ()
        return ImageSet(
            self.where, pick(self.names), pick(self.keys), lambda i: self.content(chosen[i]), pick(self.labels),
            pick(self.captions),
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Changes with names, contents, labels and captions, not with the place."""
        return fingerprint(
            READING, [list(self.names), list(self.keys), list(self.labels), [list(one) for one in self.captions]]
        )


def readable(
    images: ImageSet, codec: ImageCodec, policy: str, cache_dir: pathlib.Path, progress: bool, remedy: str = REMEDY
) -> ImageSet:
    """The images that can be read. Each is read once, whatever is left of it in the cache being the list of bad ones.

    Args:
      policy: of those that cannot: "refuse" is DataError with the first of them and their number; "skip" leaves them
        out, and tells how many and which.
      remedy: what the error of "refuse" says that one does.
    """

    def check(folder: pathlib.Path) -> None:
        (folder / "bad.json").write_text(json.dumps(_bad(images, codec, progress)))

    key = [images.fingerprint, codec.decoding]
    folder = build_once(cache_dir / "images" / fingerprint(*key), check)
    bad = {int(index): reason for index, reason in json.loads((folder / "bad.json").read_text()).items()}
    if not bad:
        return images
    found = f"{images.where}: {len(bad)} of {len(images)} images cannot be read"
    first = next(iter(bad.values()))
    if policy == "refuse":
        raise DataError(f"{found}; {first}. {remedy}")
    if len(bad) == len(images):
        raise DataError(f"{found}; {first}")
    told = "\n".join(f"  {reason}" for reason in list(bad.values())[:_TOLD])
    rest = f"\n  and {len(bad) - _TOLD} more; all of them: {folder / 'bad.json'}" if len(bad) > _TOLD else ""
    log.warning("%s and are left out:\n%s%s", found, told, rest)
    return images.subset([index for index in range(len(images)) if index not in bad])


def _bad(images: ImageSet, codec: ImageCodec, progress: bool) -> dict[int, str]:
    """What is wrong with each image that cannot be read; they are read on all cores."""

    def problem(index: int) -> str | None:
        try:
            images.pixels(index, codec)
        except DataError as error:
            return str(error)
        return None

    started, workers, found = time.perf_counter(), os.cpu_count() or 1, []
    bar = tqdm(
        total=len(images), desc="checking images", disable=not progress, unit=" images", dynamic_ncols=True
    )  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, bar:
        for start in range(0, len(images), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(images)))
            found += pool.map(problem, part)
            bar.update(len(part))
    rate = len(images) / max(time.perf_counter() - started, 1e-9)
    log.info("%s: %d images read and decoded, %.0f a second on %d cores", images.where, len(images), rate, workers)
    return {index: reason for index, reason in enumerate(found) if reason}
