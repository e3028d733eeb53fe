"""Codecs: the values of a modality as arrays, and back; saved with a run, so that its models use the very same ones."""

from fmjax.registry import Registry

CODECS = Registry(
    "codec",
    {
        "cropped_image": "fmjax.data.codecs.image:CroppedImageCodec",
        "image": "fmjax.data.codecs.image:ImageCodec",
        "label": "fmjax.data.codecs.label:LabelCodec",
        "patches": "fmjax.data.codecs.patches:PatchCodec",
        "pixels": "fmjax.data.codecs.pixels:PixelCodec",
        "resized_image": "fmjax.data.codecs.image:ResizedImageCodec",
        "unscaled_image": "fmjax.data.codecs.image:UnscaledImageCodec",
    },
)
