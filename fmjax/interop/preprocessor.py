"""What published folders say of values: `preprocessor_config.json` as the image codec, `id2label` as that of labels."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.data.codecs.base import Codec
from fmjax.data.codecs.image import FILTERS, CroppedImageCodec, ImageCodec, ResizedImageCodec, UnscaledImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.codecs.patches import PatchCodec
from fmjax.data.codecs.pixels import PixelCodec
from fmjax.errors import ConfigError
from fmjax.interop.published_config import PublishedConfig
from fmjax.small_files import read_json

PREPROCESSOR = "preprocessor_config.json"
CLUSTERS = "clusters"
"""The key of a palette there."""


def read_codecs(folder: pathlib.Path, values: Mapping[str, Any], module, source: str) -> dict[str, Codec]:
    """The codecs of a published model that reads images or tells classes, by modality.

    Args:
      folder: it may have a preprocessor_config.json; without one there is no codec of images.
      values: the config.json, which may have `id2label`.
      source: of `values`, for messages.

    Raises ConfigError for what the codecs do not do.
    """
    found: dict[str, Codec] = {}
    path = folder / PREPROCESSOR
    if path.is_file() and (channels := getattr(module, "num_channels", None)):
        is_naflex = str(read_json(path).get("image_processor_type")).startswith(_NAFLEX)
        found["image"] = (_read_patch_codec if is_naflex else _read_image_codec)(path, channels)
    elif path.is_file() and CLUSTERS in read_json(path):
        found["image"] = _read_pixel_codec(path)
    if classes := getattr(module, "num_classes", None):
        found["label"] = LabelCodec(classes, _names(values.get("id2label"), classes, source))
    return found


def image_side(folder: pathlib.Path, channels: int) -> int | None:
    """The side in pixels of the images that a folder's codec makes; None without one, or where they are no squares."""
    path = folder / PREPROCESSOR
    codec = _read_image_codec(path, channels) if path.is_file() else None
    return codec.height if codec is not None and codec.height == codec.width else None


@dataclasses.dataclass(frozen=True)
class _Class:
    """What a class of processors does where its file does not say: Pillow's filter, statistics, and whether it scales
    by the shorter side and cuts out the middle."""

    resample: int = 2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crops: bool = False


_CLASSES = {
    "CLIP": _Class(3, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), crops=True),
    "ConvNext": _Class(3),
    "ImageGPT": _Class(),
    "Siglip": _Class(3),
    "ViT": _Class(),
}
"""By what the class's name begins with; a file without a class is read as of a ViT."""
_CONVNEXT = "ConvNext"
_NAFLEX = "Siglip2"
_WHOLE = 384
"""Pixels of a side from which on a ConvNext's images are scaled without their proportions, and nothing is cut off."""
_CROPPED = 224  # pixels, where the file of a class that crops does not say


def _read_image_codec(path: pathlib.Path, channels: int) -> ImageCodec:
    config = PublishedConfig(read_json(path), str(path))
    key = "image_processor_type" if config.raw("image_processor_type") else "feature_extractor_type"
    named = config.raw(key) or "ViT"
    family = next((name for name in _CLASSES if named.startswith(name)), None)
    if family is None:
        config.refuse(key, named, f"known are classes that begin with {', '.join(_CLASSES)}")
    kind = _CLASSES[family]
    for key in (
        "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format",
        "input_data_format", "default_to_square", "device", "return_tensors", "disable_grouping", CLUSTERS,
        "do_color_quantize", "do_reduce_labels", "image_seq_length", "rescale_factor", "image_mean", "image_std",
    ):  # fmt: skip
        config.raw(key)
    config.fixed(do_pad=(False, None), pad_size=None)
    mean, std = _read_numbers(config, channels, kind)
    shape = _read_convnext_shape(config) if family == _CONVNEXT else _read_shape(config, kind)
    options = dict(channels=channels, mean=mean, std=std, **shape)
    resample, resized = config.get("resample", int, kind.resample), config.get("do_resize", bool, True)
    if resample not in range(len(FILTERS)):
        config.refuse("resample", resample, f"Pillow's filters are 0 to {len(FILTERS) - 1}")
    config.finish(strict=True)
    if not resized:
        if "shortest_edge" in shape:
            config.refuse("do_resize", False, "an image whose middle is cut out is scaled before")
        return UnscaledImageCodec(**options)
    codec = CroppedImageCodec if "shortest_edge" in shape else ResizedImageCodec
    return codec(**options, resample=FILTERS[resample])


def _read_numbers(config: PublishedConfig, channels: int, kind: _Class) -> tuple[tuple[float, ...], ...]:
    """(mean, std) of the values between 0 and 1, where a class has (value * factor - mean) / std of those up to 255."""
    factor = config.get("rescale_factor", float, 1 / 255) if config.get("do_rescale", bool, True) else 1.0
    mean, std = ((0.0,), (1.0,))
    if config.get("do_normalize", bool, True):
        defaults = {"image_mean": kind.mean, "image_std": kind.std}
        mean, std = (tuple(config.get(key, list, list(row) * (channels // len(row)))) for key, row in defaults.items())
    return tuple(m / (factor * 255) for m in mean), tuple(s / (factor * 255) for s in std)


def _read_patch_codec(path: pathlib.Path, channels: int) -> PatchCodec:
    """That of `Siglip2ImageProcessor`."""
    config = PublishedConfig(read_json(path), str(path))
    for key in (
        "image_processor_type", "processor_class", "do_convert_rgb", "data_format", "input_data_format", "device",
        "return_tensors", "disable_grouping", "default_to_square", "size", "image_seq_length",
    ):  # fmt: skip
        config.raw(key)
    config.fixed(do_resize=(True, None))
    mean, std = _read_numbers(config, channels, _Class())
    resample = config.get("resample", int, _Class().resample)
    if resample not in range(len(FILTERS)):
        config.refuse("resample", resample, f"Pillow's filters are 0 to {len(FILTERS) - 1}")
    sizes = {key: config.get(key, int, default) for key, default in (("patch_size", 16), ("max_num_patches", 256))}
    config.finish(strict=True)
    return PatchCodec(**sizes, channels=channels, mean=mean, std=std, resample=FILTERS[resample])


def _read_shape(config: PublishedConfig, kind: _Class) -> dict[str, int]:
    """height and width, and shortest_edge where an image is scaled by its shorter side and its middle cut out."""
    size, cut = (config.raw(key) for key in ("size", "crop_size"))
    crops = config.get("do_center_crop", bool, kind.crops, null=True)
    if kind.crops:
        size, cut = (_CROPPED if x is None else x for x in (size, cut))
    if isinstance(size, int):  # of older files
        size = {"shortest_edge": size} if kind.crops else {"height": size, "width": size}
    cut = {"height": cut, "width": cut} if isinstance(cut, int) else cut
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        if crops and cut != size:
            config.refuse("do_center_crop", crops, f"of images scaled to {size}, crop_size = {cut} cuts out another")
        return size
    if not isinstance(size, dict) or set(size) != {"shortest_edge"}:
        config.refuse("size", size, 'expected {"height": H, "width": W}, or {"shortest_edge": N} with do_center_crop')
    if not crops or not isinstance(cut, dict) or set(cut) != {"height", "width"}:
        why = 'expected {"height": H, "width": W}, or do_center_crop with a crop_size, so that images have one size'
        config.refuse("size", size, why)
    return {**cut, "shortest_edge": size["shortest_edge"]}


def _read_convnext_shape(config: PublishedConfig) -> dict[str, int]:
    """As `_read_shape`, of a class that cuts the share `crop_pct` out of an image's middle, or nothing."""
    size, share = config.raw("size") or {"shortest_edge": _WHOLE}, config.get("crop_pct", float, 224 / 256)
    config.fixed(do_center_crop=(False, None))
    config.raw("crop_size")
    side = size.get("shortest_edge") if isinstance(size, dict) and len(size) == 1 else size
    if type(side) is not int or side < 1:
        config.refuse("size", size, 'expected {"shortest_edge": N}')
    if not 0 < share <= 1:
        config.refuse("crop_pct", share, "expected a share above 0, at most 1")
    shape = {"height": side, "width": side}
    return shape if side >= _WHOLE else shape | {"shortest_edge": int(side / share)}


def _write_convnext_shape(codec: ImageCodec) -> dict[str, Any] | None:
    """The keys that `_read_convnext_shape` reads; None for a codec that they cannot say."""
    side, edge = codec.height, getattr(codec, "shortest_edge", None)
    if codec.width != side or not codec.scales or (edge is None) != (side >= _WHOLE):
        return None
    if edge is None:
        return {"size": {"shortest_edge": side}}
    # Readers round down, and a quotient of quotients may be a hair below what it should be.
    share = side / edge if int(side / (side / edge)) == edge else side / (edge + 0.5)
    return {"size": {"shortest_edge": side}, "crop_pct": share} if share <= 1 else None


def _read_pixel_codec(path: pathlib.Path) -> PixelCodec:
    """That of an image GPT: its clusters are the palette, of values between -1 and 1."""
    image, clusters = _read_image_codec(path, 3), read_json(path)[CLUSTERS]
    if set(image.mean) | set(image.std) != {0.5} or not isinstance(image, ResizedImageCodec):
        raise ConfigError(
            f"{path}: mean {image.mean} and deviation {image.std}, or images that are not resized, are not supported "
            f"beside {CLUSTERS}; expected 0.5 of each, and do_resize"
        )
    palette = tuple(tuple((float(number) + 1) / 2 for number in colour) for colour in clusters)
    return PixelCodec(image.height, image.width, 3, palette, image.resample)


def write_preprocessor(codec: Codec, processor: str) -> dict[str, Any]:
    """The preprocessor_config.json of a codec of images, for the class `processor` of transformers, or, where a
    ConvNext's cannot say what the codec does, for one that can."""
    if isinstance(codec, PixelCodec):
        clusters = [[2 * number - 1 for number in colour] for colour in codec.palette]
        return write_preprocessor(codec.image, processor) | {CLUSTERS: clusters, "do_color_quantize": True}
    numbers = {name: list(getattr(codec, name)) for name in ("mean", "std")}
    common = {
        "resample": FILTERS.index(codec.resample),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **{f"image_{name}": row * (codec.channels // len(row)) for name, row in numbers.items()},
    }
    if isinstance(codec, PatchCodec):
        sizes = {"patch_size": codec.patch_size, "max_num_patches": codec.max_num_patches}
        return {"image_processor_type": processor, "do_resize": True, **sizes, **common}
    shape, edge = {"height": codec.height, "width": codec.width}, getattr(codec, "shortest_edge", None)
    cuts = {"do_center_crop": False} if edge is None else {"do_center_crop": True, "crop_size": shape}
    sizes = _write_convnext_shape(codec) if processor.startswith(_CONVNEXT) else None
    if sizes is None and processor.startswith(_CONVNEXT):
        processor = "ViTImageProcessor" if edge is None else "CLIPImageProcessor"
    crops = any(kind.crops and processor.startswith(name) for name, kind in _CLASSES.items())
    return {
        "image_processor_type": processor,
        "do_resize": codec.scales,
        **(sizes or {"size": shape if edge is None else {"shortest_edge": edge}}),
        **(cuts if sizes is None and (crops or edge is not None) else {}),
        **common,
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
