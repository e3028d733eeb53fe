"""--image=FILE, --audio=FILE: files that a model is given in its prompts, read by the codecs of its run."""

import pathlib
from typing import Any

from fmjax.errors import InputError

MODALITIES = ("image", "audio")


def add_flags(parser) -> None:
    """Adds the flags to a parser whose flags that are not given are left out."""
    for modality in MODALITIES:
        told = f"a file for a model that reads {modality}; repeatable"
        parser.add_argument(f"--{modality}", action="append", help=told)


def given(flags) -> dict[str, list[str]]:
    """Files by modality."""
    return {modality: getattr(flags, modality) for modality in MODALITIES if modality in flags}


def read(flags, model) -> list[Any]:
    """The values in the files, in the order of modalities and flags.

    Raises InputError for a model that does not read the modality, or a file that its codec cannot read.
    """
    values = []
    for modality, files in given(flags).items():
        if modality not in model.reads:
            known = ", ".join(model.reads) or "tokens alone"
            raise InputError(
                f"--{modality}={files[0]}: {model} reads no {modality}; it reads {known}. Leave the flag out"
            )
        values += [model.reads[modality].read(pathlib.Path(file).expanduser()) for file in files]
    return values
