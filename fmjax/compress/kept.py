"""Blocks that are done, in a folder: what was interrupted goes on where it was, to the same result."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fmjax.errors import InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.inference.model import Model
from fmjax.parallel.placement import Placement, put_whole
from fmjax.small_files import read_json, replacing, write_whole


class KeptBlocks:
    """See `fmjax.compress.calibrate.Kept`: a file a block, written whole or not at all.

    Args:
      folder: is made.
      what: strings that say what is computed. A folder of something else is an error, since its blocks are of no use.
      shapes: (path of the stack, a block's parameters) -> the `jax.ShapeDtypeStruct`s of what it becomes.
      placement: the mesh of the model, on which blocks are put whole; None for one device.

    Raises InputError for a folder of something else.
    """

    def __init__(
        self, folder: str | pathlib.Path, what: Mapping[str, str], shapes: Callable[[str, Any], Any],
        placement: Placement | None = None,
    ):  # fmt: skip
        self.folder, self.shapes, self.placement = pathlib.Path(folder), shapes, placement
        about = self.folder / "of.json"
        if about.exists():
            before = read_json(about, error=InputError)
            if different := sorted(key for key in {*what, *before} if what.get(key) != before.get(key)):
                raise InputError(
                    f"{str(self.folder)!r} holds blocks that were computed with another {different[0]}; remove it to "
                    "begin anew, or ask for what it is of"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(about, json.dumps(dict(what), indent=1) + "\n")

    def get(self, stack: str, layer: int, block: Any) -> Any | None:
        """See `Kept`."""
        file = self._file(stack, layer)
        if not file.exists():
            return None
        like = self.shapes(stack, block)
        leaves, structure = jax.tree.flatten(like)
        with np.load(file) as stored:
            found = [np.frombuffer(stored[str(i)].tobytes(), x.dtype).reshape(x.shape) for i, x in enumerate(leaves)]
        return structure.unflatten([put_whole(x, self.placement) for x in found])

    def put(self, stack: str, layer: int, params: Any) -> None:
        """See `Kept`."""
        leaves = jax.device_get(jax.tree.leaves(params))
        with replacing(self._file(stack, layer)) as file:
            np.savez(file, **{str(i): np.frombuffer(np.asarray(x).tobytes(), np.uint8) for i, x in enumerate(leaves)})

    def remove(self) -> None:
        """The folder, whose blocks are in a model by now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, stack: str, layer: int) -> pathlib.Path:
        return self.folder / f"{stack.replace('/', '.')}.{layer}.npz"


def identity(model: Model, method: str, options: Mapping[str, Any], calibration: Mapping[str, np.ndarray]) -> dict:
    """What `KeptBlocks` tells runs apart by."""
    digest = hashlib.sha256()
    for name, array in sorted(calibration.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return {
        "model": model_fingerprint(model),
        "method": f"{method} {json.dumps(dict(options), sort_keys=True)}",
        "calibration": digest.hexdigest()[:32],
    }
