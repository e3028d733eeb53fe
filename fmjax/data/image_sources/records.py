"""The label and the captions in a record: a line of a table, a JSON object, a row of Parquet or TFDS."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.errors import DataError

IMAGE_FIELDS = ("image", "file_name", "filename", "image_name", "file", "path", "jpg", "png")
LABEL_FIELDS = ("label", "labels", "class", "fine_label")
CAPTION_FIELDS = ("captions", "caption", "text", "txt", "sentences", "raw", "comment")


@dataclasses.dataclass(frozen=True)
class Fields:
    """The names of fields in records; None is the first of the usual ones that there is.

    Attributes:
      image: an image, or the name of its file.
      label: its class.
      caption: its caption, or a list of them.
      tfds_data_dir: folder of prepared TFDS datasets; None is a folder in the cache.
      image_folder: where files lie that a caption file names; None is beside it, or in its folder "images".
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None
    tfds_data_dir: str | None = None
    image_folder: str | None = None


def field_of(known: Sequence[str], asked: str | None, usual: Sequence[str]) -> str | None:
    """The field that is asked for, or the first usual one that is known; None where there is none of these.

    Raises KeyError for one that is asked for and not known.
    """
    if asked is not None:
        if asked not in known:
            raise KeyError(asked)
        return asked
    return next((name for name in usual if name in known), None)


def label_of(record: Mapping[str, Any], fields: Fields, where: str) -> str | None:
    """A record's label. Raises DataError for one that is neither text nor a whole number, or missing though named."""
    value = _value(record, fields.label, LABEL_FIELDS, where, "label")
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool) or not (isinstance(value, str) or _is_whole(value)):
        raise DataError(f"{where}: the label is {value!r}, expected text or a whole number")
    return str(value)


def captions_of(record: Mapping[str, Any], fields: Fields, where: str) -> tuple[str, ...]:
    """A record's captions, of a text, a list of texts, or a list of records with a text; none where there is no field.

    Raises DataError for something else, and for a caption that is empty.
    """
    value = _value(record, fields.caption, CAPTION_FIELDS, where, "caption")
    if value is None:
        return ()
    if isinstance(value, Mapping):  # TFDS's sequences of records
        value = next((value[name] for name in ("text", "raw", "caption") if name in value), None)
    values = [value] if isinstance(value, str | bytes) else value
    try:
        texts = [one["text"] if isinstance(one, Mapping) else one for one in values]
        texts = [one.decode() if isinstance(one, bytes) else one for one in texts]
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        raise DataError(
            f"{where}: captions are {str(value)[:60]!r}, expected text or a list of texts ({error})"
        ) from None
    if not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise DataError(f"{where}: the caption is {str(value)[:60]!r}, expected text; leave the image out")
    return tuple(one.strip() for one in texts)


def _value(record: Mapping[str, Any], asked: str | None, usual: Sequence[str], where: str, what: str):
    try:
        name = field_of(list(record), asked, usual)
    except KeyError:
        known = ", ".join(record) or "none"
        raise DataError(f"{where}: no field {asked!r} (data.{what}_field); its fields: {known}") from None
    return None if name is None else record[name]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or getattr(getattr(value, "dtype", None), "kind", "") in ("i", "u")
