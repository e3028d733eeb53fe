"""An index of the images in a folder, kept on disk: their vectors by a model, found again by nearness.

    DIR/index.json           of which model and folder it is
    DIR/pieces/NUMBER.npz    vectors of images by fingerprints of their files' contents, and why others have none
    DIR/files.json           the folder's files as they were last seen, each with the fingerprint of its contents

A piece is written whole or not at all, and what it says of contents stays true whatever becomes of the files. So work
that is stopped anywhere goes on behind the last piece, a file under another name costs nothing, and of a folder that
changed only new contents are read by the model.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from fmjax.data.codecs.media import Media
from fmjax.data.image_files import image_files
from fmjax.errors import DataError, InputError
from fmjax.inference.checks import check_whole
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.inference.index_folder import check_identity, held, seen_files
from fmjax.inference.index_pieces import Pieces
from fmjax.inference.nearest import nearest
from fmjax.layers.checks import check_choice
from fmjax.small_files import write_whole

log = logging.getLogger("fmjax")

PIECE = 512
"""Images that the model reads between two writes."""
BAD_IMAGES = ("skip", "refuse")
SHOWN = 5
"""Files that a message names; `files.json` has all of them."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
      name: of its file, relative to the folder.
      path: of its file.
      score: cosine of its vector and the query's, from -1 to 1.
    """

    name: str
    path: pathlib.Path
    score: float


@dataclasses.dataclass(frozen=True)
class ImageIndex:
    """The images of a folder and their vectors.

    Attributes:
      folder: of the images.
      names: of the files of each vector, relative to it, in the order of the alphabet: equal images share a vector.
      vectors: float32 [N, D], of length 1, in the order of their first names.
      skipped: why a file has no vector, by name.
    """

    folder: pathlib.Path
    names: list[list[str]]
    vectors: np.ndarray
    skipped: dict[str, str]

    def __len__(self) -> int:
        """How many files can be found."""
        return sum(map(len, self.names))

    def search(self, queries: np.ndarray, top_k: int = 10, neighbours: str = "sklearn") -> list[list[Hit]]:
        """For each query the `top_k` nearest images, nearest first; of equally near ones in the order of their names.

        Args:
          queries: float [Q, D], vectors of the model that the index is of, of any length.
          top_k: how many, or all that there are.
          neighbours: who finds them, see `fmjax.inference.nearest`.

        Raises InputError for queries of another size.
        """
        check_whole(1, top_k=top_k)
        found = []
        for places, scores in zip(*nearest(self.vectors, queries, min(top_k, len(self.vectors)), neighbours)):
            order = sorted(zip(places, scores), key=lambda one: (-one[1], self.names[one[0]]))
            hits = [Hit(n, self.folder / n, float(score)) for place, score in order for n in self.names[place]]
            found.append(hits[:top_k])
        return found


def index_images(
    model, folder: str | pathlib.Path, directory: str | pathlib.Path, *, bad_images: str = "skip", piece: int = PIECE,
    progress: str | None = None,
) -> ImageIndex:  # fmt: skip
    """The index of a folder's images, brought up to date: new and changed files are read, removed ones forgotten.

    Args:
      model: a `fmjax.load.Model` that gives vectors of images (`embed`).
      folder: images at any depth; hidden files and files of other kinds are left out.
      directory: of the index, made where it is not there.
      bad_images: what becomes of a file that the model's codec cannot read: "skip" leaves it out, and says how many
        there are and which; "refuse" is an error.
      piece: images read between two writes.
      progress: label of a progress bar; None shows none.

    Raises:
      DataError: a folder without images, or none that can be read; with "refuse" a bad one.
      InputError: a model that gives no vectors of images, an index of another model or folder.
    """
    check_choice("bad_images", bad_images, BAD_IMAGES)
    check_whole(1, piece=piece)
    codec = image_codec(model)
    folder, directory = pathlib.Path(folder).expanduser(), pathlib.Path(directory).expanduser()
    paths = image_files(folder)
    with held(directory):
        identity = {"model": model_fingerprint(model), "folder": str(folder.resolve()), "source": model.source}
        check_identity(directory, identity)
        files = seen_files(directory, paths, progress)
        pieces = Pieces(directory / "pieces")
        _read_missing(model, codec, pieces, files, paths, bad_images, piece, progress)
        files = {name: one | {"bad": one["bad"] or pieces.bad.get(one["content"])} for name, one in files.items()}
        write_whole(directory / "files.json", json.dumps(files, indent=1) + "\n")
        pieces.tidy({one["content"] for one in files.values()}, piece)
        return _made(folder, files, pieces, bad_images)


def _read_missing(
    model, codec, pieces: Pieces, files: Mapping[str, dict], paths: Mapping[str, pathlib.Path], bad_images: str,
    piece: int, progress: str | None,
) -> None:  # fmt: skip
    """Adds pieces of the contents that none has yet, in the order of the names of their first files."""
    missing: dict[str, pathlib.Path] = {}
    for name, one in files.items():
        if one["content"] and one["content"] not in pieces:
            missing.setdefault(one["content"], paths[name])
    contents, names = list(missing), {path: name for name, path in paths.items()}
    with tqdm(total=len(missing), desc=progress, disable=progress is None, unit=" images", dynamic_ncols=True) as bar:
        for start, read in _read_ahead(list(missing.values()), codec, piece):
            part = contents[start : start + piece]
            bad = {content: str(one) for content, one in zip(part, read) if isinstance(one, DataError)}
            if bad and bad_images == "refuse":
                raise DataError(_bad({names[missing[content]]: reason for content, reason in bad.items()}))
            images = [one for one in read if not isinstance(one, DataError)]
            vectors = model.embed(**{codec.array: images}, normalize=True)
            pieces.add([content for content in part if content not in bad], vectors, bad)
            bar.update(len(part))


def image_codec(model):
    """The codec of the images that a model reads. Raises InputError for one that gives no vectors of images."""
    model.can("embed")
    if "image" not in model.reads:
        raise InputError(f"{model} reads no images; it reads {', '.join(model.reads) or 'tokens alone'}")
    return model.reads["image"]


def default_directory(model, folder: str | pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """Where in a cache the index of a folder by a model lies: one of its own for each of both."""
    folder = pathlib.Path(folder).expanduser().resolve()
    digest = hashlib.sha256(f"{folder} {model_fingerprint(model)}".encode()).hexdigest()[:16]
    return cache / "search" / f"{folder.name}-{digest}"


def query_vectors(model, *, texts: Sequence[str] = (), images: Sequence[pathlib.Path] = ()) -> np.ndarray:
    """float32 [N, D], what an index is searched by: vectors of texts, then of the images in files.

    Raises InputError for texts to a model without a text tower, DataError for a file that is no image of its codec.
    """
    codec, found = image_codec(model), []
    if texts:
        if not callable(getattr(model.module, "encode_texts", None)):
            raise InputError(
                f"{model} has no vectors of texts beside those of images; search by an image, or with a model of both, "
                "such as CLIP"
            )
        found.append(model.embed(texts=list(texts), normalize=True))
    if images:
        found.append(model.embed(**{codec.array: [codec.read(path) for path in images]}, normalize=True))
    return np.concatenate(found)


def _made(folder, files: Mapping[str, dict], pieces: Pieces, bad_images: str) -> ImageIndex:
    """The index of files whose contents are known. Raises DataError where none of them has a vector."""
    skipped = {name: one["bad"] for name, one in files.items() if one["bad"]}
    if skipped and (bad_images == "refuse" or len(skipped) == len(files)):
        raise DataError(_bad(skipped))
    if skipped:
        log.warning("left out: %s", _bad(skipped))
    names: dict[str, list[str]] = {}
    for name, one in files.items():
        if not one["bad"]:
            names.setdefault(one["content"], []).append(name)
    return ImageIndex(folder, list(names.values()), pieces.vectors(names), skipped)


def _bad(reasons: Mapping[str, str]) -> str:
    """How many images cannot be read, which, and why; of many the first."""
    told = [f"{name}: {reason}" for name, reason in list(reasons.items())[:SHOWN]]
    told += [f"and {len(reasons) - SHOWN} more"] * (len(reasons) > SHOWN)
    return f"{len(reasons)} images cannot be read: {'; '.join(told)}"


def _read_ahead(paths: Sequence[pathlib.Path], codec, piece: int) -> Iterator[tuple[int, list[Any]]]:
    """(place of the first, images or why they cannot be read) of `piece` files, the next ones being read meanwhile.

    Files are decoded on threads: Pillow lets others run while it decodes.
    """

    def read(path: pathlib.Path):
        try:
            # In the model's size: what is read ahead is small, however large the files' images are.
            return Media("image", codec.fitted(codec.read(path)), is_fitted=True)
        except DataError as error:  # of these contents, whatever the file is called
            return DataError(str(error).replace(repr(str(path)), "it"))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        submit: Callable = lambda start: [pool.submit(read, path) for path in paths[start : start + piece]]
        ahead = submit(0)
        for start in range(0, len(paths), piece):
            now, ahead = ahead, submit(start + piece)
            try:
                yield start, [one.result() for one in now]
            except GeneratorExit:  # nobody asks for the rest
                pool.shutdown(wait=False, cancel_futures=True)
                raise
