"""The Python standard library as a TFDS dataset: no download, no account, no TensorFlow.

Its documents and their held-out split are those of `fmjax.data.stdlib_files`.
"""

import contextlib
import io
import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds

from fmjax.data.prepared import build_once
from fmjax.data.splits import HELDOUT_FRACTION, is_heldout
from fmjax.data.stdlib_files import PYTHON_VERSION, library_fingerprint, read_documents, stdlib_folder


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """Source and documentation of the Python standard library; the version is the interpreter's."""

    name = "python_stdlib"
    VERSION = tfds.core.Version(PYTHON_VERSION)
    RELEASE_NOTES = {PYTHON_VERSION: f"The standard library of Python {PYTHON_VERSION}."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Source and documentation text of the Python standard library.",
            features=tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()}),
            homepage="https://docs.python.org/3/library/",
            license="PSF-2.0",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(False), "heldout": self._generate_examples(True)}

    def _generate_examples(self, heldout: bool):
        for name, text in read_documents(stdlib_folder()):
            if is_heldout(name, HELDOUT_FRACTION) == heldout:
                yield name, {"name": name, "text": text}


def prepare(cache_dir: pathlib.Path) -> pathlib.Path:
    """Writes the dataset as ArrayRecord under `cache_dir` unless it is there; returns the TFDS data_dir."""

    def build(folder: pathlib.Path) -> None:
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download here, and there is none
            PythonStdlib(data_dir=str(folder), file_format="array_record").download_and_prepare()

    return build_once(cache_dir / "python_stdlib" / library_fingerprint(), build)


def open_split(cache_dir: pathlib.Path, split: str) -> Sequence[dict[str, bytes]]:
    """The documents of "train" or "heldout" with random access: `[i]` gives {"name": bytes, "text": bytes}."""
    return PythonStdlib(data_dir=str(prepare(cache_dir)), file_format="array_record").as_data_source(split)
