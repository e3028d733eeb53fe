"""A Vision Transformer as a well-known PyTorch code base of 2020 writes it: a model and a family from outside fmjax."""

import dataclasses

import jax
import numpy as np

from fmjax.interop.config_keys import Key, always
from fmjax.interop.family import Family
from fmjax.interop.weights import ROW, Layout, Weight, linear, norm
from fmjax.layers.dense import Init, Linear
from fmjax.layers.transformer import TransformerConfig
from fmjax.models.vit import ViT


class MnistViT(ViT):
    """Scores are scaled by the model's width, not a head's; there is no norm after the stack, and a head of two layers.

    Attributes:
      head_size: between the layers of the head.
    """

    head_size: int = 128

    @property
    def transformer(self) -> TransformerConfig:
        return dataclasses.replace(super().transformer, query_scale=self.hidden_size**-0.5, final_norm=False)

    def setup(self):
        super().setup()
        self.head_inner = Linear(self.head_size, ("embed", None), True, Init(scale=self.init_std), "float32")

    def __call__(self, images, train: bool = False) -> jax.Array:
        """Logits, float32 [B, num_classes]."""
        return self.head(jax.nn.gelu(self.head_inner(self.pooled(images, train)), approximate=False))


def third(index: int) -> Layout:
    """Queries, keys or values of one product, whose rows lie one after the other."""

    def view(x: np.ndarray) -> np.ndarray:
        rows = len(x) // 3
        return x[index * rows : (index + 1) * rows].T

    return Layout(lambda shape: (3 * shape[1], shape[0]), view)


LAYER = "transformer.layers.{layer}"
FAMILY = Family(
    architectures=("MnistViT",),
    model_type="mnist_vit",
    model="mnist_vit:MnistViT",
    table=(
        Weight("class_token", "cls_token", Layout(lambda shape: (1, 1, *shape), lambda x: x[0, 0])),
        Weight("position_embedding/embedding", "pos_embedding", ROW),
        *linear("patch_embedding", "patch_to_embedding"),
        Weight("stack/blocks/attention/query/kernel", f"{LAYER}.0.fn.fn.to_qkv.weight", third(0)),
        Weight("stack/blocks/attention/key/kernel", f"{LAYER}.0.fn.fn.to_qkv.weight", third(1)),
        Weight("stack/blocks/attention/value/kernel", f"{LAYER}.0.fn.fn.to_qkv.weight", third(2)),
        *linear("stack/blocks/attention/out", f"{LAYER}.0.fn.fn.to_out"),
        *norm("stack/blocks/attention_norm", f"{LAYER}.0.fn.norm"),
        *linear("stack/blocks/mlp/up", f"{LAYER}.1.fn.fn.net.0"),
        *linear("stack/blocks/mlp/down", f"{LAYER}.1.fn.fn.net.2"),
        *norm("stack/blocks/mlp_norm", f"{LAYER}.1.fn.norm"),
        *linear("head_inner", "mlp_head.0"),
        *linear("head", "mlp_head.2"),
    ),
    keys=(
        Key("depth", "num_layers"),
        Key("dim", "hidden_size"),
        Key("heads", "num_heads"),
        Key("mlp_dim", ("intermediate_size", "head_size")),
        Key("image_size", "image_size"),
        Key("patch_size", "patch_size"),
        Key("channels", "num_channels"),
        Key("num_classes", "num_classes"),
        always(qkv_bias=False, norm_eps=1e-5),
    ),
    objective={"name": "classification"},
    processor="ViTImageProcessor",
)
