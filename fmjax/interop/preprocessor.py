"""What published folders say of values: `preprocessor_config.json` as the image codec, `id2label` as that of labels."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.data.codecs.base import Codec
from fmjax.data.codecs.image import FILTERS, ImageCodec, ResizedImageCodec, UnscaledImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.errors import ConfigError
from fmjax.interop.published_config import PublishedConfig
from fmjax.small_files import read_json

PREPROCESSOR = "preprocessor_config.json"


def read_codecs(folder: pathlib.Path, values: Mapping[str, Any], module, source: str) -> dict[str, Codec]:
    """The codecs of a published model that reads images or tells classes, by modality.

    Args:
      folder: it may have a preprocessor_config.json; without one there is no codec of images.
      values: the config.json, which may have `id2label`.
      source: of `values`, for messages.

    Raises ConfigError for what the codecs do not do.
    """
    found: dict[str, Codec] = {}
    if (folder / PREPROCESSOR).is_file() and (channels := getattr(module, "num_channels", None)):
        found["image"] = _read_image_codec(folder / PREPROCESSOR, channels)
    if classes := getattr(module, "num_classes", None):
        found["label"] = LabelCodec(classes, _names(values.get("id2label"), classes, source))
    return found


def _read_image_codec(path: pathlib.Path, channels: int) -> ImageCodec:
    config = PublishedConfig(read_json(path), str(path))
    for key in (
        "image_processor_type", "feature_extractor_type", "processor_class", "crop_size", "do_convert_rgb",
        "data_format", "input_data_format", "default_to_square", "device", "return_tensors", "disable_grouping",
    ):  # fmt: skip
        config.raw(key)
    config.fixed(do_center_crop=(False, None), do_pad=(False, None))
    size = config.raw("size")
    size = {"height": size, "width": size} if isinstance(size, int) else size
    if not isinstance(size, dict) or set(size) != {"height", "width"}:
        config.refuse("size", size, 'expected {"height": H, "width": W}')
    # (value * factor - mean) / std, as the codec has it: of the values between 0 and 1.
    factor = config.get("rescale_factor", float, 1 / 255) if config.get("do_rescale", bool, True) else 1.0
    mean, std = ((0.0,), (1.0,))
    if config.get("do_normalize", bool, True):
        mean, std = (tuple(config.get(key, list, [0.5] * channels)) for key in ("image_mean", "image_std"))
    span = factor * 255
    options = dict(
        height=size["height"], width=size["width"], channels=channels, mean=tuple(m / span for m in mean),
        std=tuple(s / span for s in std),
    )  # fmt: skip
    resample, resized = config.get("resample", int, 2), config.get("do_resize", bool, True)
    if resample not in range(len(FILTERS)):
        config.refuse("resample", resample, f"Pillow's filters are 0 to {len(FILTERS) - 1}")
    config.finish()
    return ResizedImageCodec(**options, resample=FILTERS[resample]) if resized else UnscaledImageCodec(**options)


def write_preprocessor(codec: ImageCodec, processor: str) -> dict[str, Any]:
    """The preprocessor_config.json of an image codec, for the class `processor` of transformers."""
    numbers = {name: list(getattr(codec, name)) for name in ("mean", "std")}
    return {
        "image_processor_type": processor,
        "do_resize": codec.scales,
        "size": {"height": codec.height, "width": codec.width},
        "resample": FILTERS.index(codec.resample),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **{f"image_{name}": row * (codec.channels // len(row)) for name, row in numbers.items()},
    }


def _names(id2label: Any, classes: int, source: str) -> tuple[str, ...]:
    """The classes' names, in order; none where the config has none but the default ones.

    A name that several classes share, as ImageNet's two cranes do, gets their numbers: "crane (134)", "crane (517)".
    """
    if id2label is None:
        return ()
    if not isinstance(id2label, dict) or set(id2label) != {str(i) for i in range(classes)}:
        found = repr(id2label)[:300]
        raise ConfigError(f"{source}: id2label does not name the classes 0 to {classes - 1}, each once: {found}")
    names = {str(i): str(id2label[str(i)]) for i in range(classes)}
    return () if names == default_labels(classes)["id2label"] else _distinct(tuple(names.values()))


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    while len(set(names)) < len(names):  # again where a name with a number is one that another class has
        counts = collections.Counter(names)
        names = tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names))
    return names


def default_labels(classes: int) -> dict[str, Any]:
    """What transformers writes of classes without names."""
    return labels([f"LABEL_{i}" for i in range(classes)])


def labels(names: Sequence[str]) -> dict[str, Any]:
    """The keys of a config.json for classes of these names."""
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
