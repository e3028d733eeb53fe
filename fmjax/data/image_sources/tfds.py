"""TFDS datasets of images with classes (MNIST, CIFAR-10, ImageNet) or captions (COCO), without TensorFlow."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from fmjax.data.image_set import ImageSet
from fmjax.data.image_sources.records import IMAGE_FIELDS, LABEL_FIELDS, Fields, captions_of, field_of, label_of
from fmjax.data.image_sources.spans import Listed, key_of, listed
from fmjax.data.splits import heldout_choice
from fmjax.data.tfds_source import open_builder, parse, prepared_content
from fmjax.errors import ConfigError, DataError
from fmjax.registry import nearest


def tfds_sets(words: str, fields: Fields, cache_dir: pathlib.Path) -> Mapping[str, ImageSet]:
    """The images of "tfds:NAME[/CONFIG][:VERSION][:SPLIT]": of its split "train" and, where it has one, its validation
    or else its test split held out; of a split that is named, all to train on.

    Each image is read once, to list classes and captions; the list is kept in the cache.

    Raises:
      ConfigError: no dataset or split of that name.
      DataError: it cannot be prepared or read, or has no images.
    """
    name, split = parse(words)
    builder = open_builder(words, name, fields.tfds_data_dir or str(cache_dir / "tfds"))
    known = list(builder.info.splits)
    chosen = {
        "train": split or "train",
        "heldout": None if split else heldout_choice([s for s in known if s != "train"]),
    }
    if re.split(r"[\[+]", chosen["train"])[0] not in known:
        hint = nearest(chosen["train"], known)
        raise ConfigError(f"data source {words!r} has no split {chosen['train']!r}{hint} Known: {known}")
    features = builder.info.features
    try:
        image = field_of(list(features), fields.image, IMAGE_FIELDS)
    except KeyError:
        image = None
    if image is None or not isinstance(features[image], tfds.features.Image):
        kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise DataError(f"data source {words!r} has no image {fields.image or 'image'!r}; its features: {kinds}")
    content = prepared_content(builder, cache_dir)
    return {
        role: _split(words, builder, wanted, image, fields, [content, wanted], cache_dir)
        for role, wanted in chosen.items()
        if wanted is not None
    }


def _split(words: str, builder, split: str, image: str, fields: Fields, key: list, cache_dir) -> ImageSet:
    source = _data_source(words, builder, split, image)
    label = field_of(list(builder.info.features), fields.label, LABEL_FIELDS)
    names = getattr(builder.info.features[label], "names", None) if label else None

    def describe(folder: pathlib.Path):
        for index in range(len(source)):
            where = f"{words} {split} record {index}"
            record = dict(source[index])
            content = record.pop(image)
            found = label_of(record, fields, where)
            if found is not None and names and found.isdecimal():
                found = names[int(found)]
            yield Listed(str(index), 0, 0, key_of(content), found, captions_of(record, fields, where))

    _, records = listed(["tfds", key, image, fields.label, fields.caption], cache_dir, describe)
    return ImageSet(
        where=f"{words} {split}",
        names=[one.name for one in records],
        keys=[one.key for one in records],
        content=lambda index: source[index][image],
        labels=[one.label for one in records] if records and records[0].label is not None else (),
        captions=[one.captions for one in records] if records and records[0].captions else (),
    )


def _data_source(words: str, builder, split: str, image: str) -> Sequence[Mapping]:
    """The records of a split, their images as the bytes of files."""
    try:
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except (NotImplementedError, ValueError) as error:
        raise DataError(
            f"data source {words!r}: prepared at {builder.data_dir} in a format without random access; "
            f"prepare it with file_format='array_record' ({str(error).splitlines()[0]})"
        ) from None
