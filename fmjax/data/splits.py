"""Which documents are held out: by the names that files and datasets use for splits, or by a hash of the name."""

import hashlib
import pathlib
import re

HELDOUT_FRACTION = 0.02  # of the documents, where neither their source nor the config says

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "heldout": "validation",
    "test": "test",
}  # fmt: skip


def is_heldout(name: str, fraction: float) -> bool:
    """Whether the document of this name is among the held-out `fraction`; never depends on the other documents."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def cut_tail(text: str, fraction: float) -> tuple[str, str]:
    """Cuts off about the last `fraction` of a text, at the start of a line where there is one near."""
    place = round(len(text) * (1 - fraction))
    newline = text.find("\n", place)
    if newline != -1 and newline + 1 < len(text):
        place = newline + 1
    return text[:place], text[place:]


def split_of(name: str) -> str | None:
    """ "train", "validation" or "test" as a file's or split's name says; None where it says nothing.

    Recognised are the names alone or first in the file's name (`train-00000-of-00002.parquet`, `valid.jsonl`,
    `test_en.txt`), or as the name of the folder that holds it (`validation/0000.parquet`).
    """
    path = pathlib.PurePosixPath(name)
    first = re.split(r"[-_.]", path.name.lower(), maxsplit=1)[0]
    return _SPLIT_NAMES.get(first) or _SPLIT_NAMES.get(path.parent.name.lower())


def split_of_folder(name: str) -> str | None:
    """ "train", "validation" or "test" where that, or another word for it, is a folder's whole name."""
    return _SPLIT_NAMES.get(name.lower())


def heldout_choice(splits: list[str]) -> str | None:
    """Which of the splits a dataset has serves as held-out: its validation, else its test split."""
    for wanted in ("validation", "test"):
        for split in splits:
            if split_of(split) == wanted:
                return split
    return None
