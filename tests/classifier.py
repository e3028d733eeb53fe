"""A small image classifier with random weights, as a run of it is loaded."""

import flax.linen as nn
import jax
import numpy as np

from fmjax.data.codecs.label import LabelCodec
from fmjax.data.digits import CODEC
from fmjax.load import Model
from fmjax.models.vit import ViT

FIELDS = dict(
    num_layers=2,
    hidden_size=16,
    intermediate_size=32,
    num_heads=4,
    image_size=8,
    num_channels=1,
    num_classes=10,
    patch_size=4,
)
MODULE = ViT(**FIELDS)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)


def _random(key):
    params = nn.unbox(MODULE.init(key, np.zeros((1, 8, 8, 1), np.float32))["params"])
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


MODEL = Model(
    MODULE, jax.jit(_random)(jax.random.key(0)),
    {"model": {"name": "vit"} | FIELDS, "objective": {"name": "classification"}},
    codecs={"image": CODEC, "label": LabelCodec(10)},
)  # fmt: skip


def logits_of(images) -> np.ndarray:
    """float64 [N, 10], straight from the module."""
    arrays = np.stack([CODEC.encode(image)["images"] for image in images])
    return np.asarray(MODULE.apply({"params": MODEL.params}, arrays), np.float64)
