"""--image=FILE, --audio=FILE: files that a model is given in its prompts, read by the codecs of its run."""

import pathlib
from collections.abc import Sequence
from typing import Any

from fmjax.data.codecs.media import Media
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


def prompts(flags, model, texts: Sequence[str], takes: Sequence[str]) -> list[Any]:
    """What is made of --prompt and the files: one prompt of each text and file where a prompt has one part, else tuples
    of the first ones, of the second ones, and so on.

    Args:
      texts: of --prompt.
      takes: the parts of a prompt (`fmjax.inference.generators.Generator`); none for a generator of texts alone.

    Raises InputError for a modality that the model does not read or its prompts do not hold, for parts that are not
    equally many, and for a file that cannot be read.
    """
    files = given(flags)
    for modality, (file, *_) in files.items():
        if modality in takes:
            continue
        what = ", ".join(takes or model.reads) or "tokens alone"
        does = f"reads no {modality}; it reads {what}"
        if modality in model.reads:
            does = f"takes no {modality} in a prompt, which is of {' and '.join(takes) or 'text'}"
        raise InputError(f"--{modality}={file}: {model} {does}. Leave the flag out")
    if not takes:
        return list(texts)
    if texts and "text" not in takes:
        raise InputError(f"--prompt={texts[0]}: a prompt of {model} is {' and '.join(takes)}; leave --prompt out")
    parts = [texts if part == "text" else _media(part, files.get(part, [])) for part in takes]
    if len(takes) == 1:
        return list(parts[0])
    if len({len(part) for part in parts}) > 1:
        counts = ", ".join(f"{len(part)} of {kind}" for kind, part in zip(takes, parts))
        raise InputError(f"a prompt of {model} is {' and '.join(takes)}; give as many of each, got {counts}")
    return list(zip(*parts))


def _media(modality: str, files: Sequence[str]) -> list[Media]:
    return [Media(modality, pathlib.Path(file).expanduser(), file) for file in files]
