"""Vision Transformer (Dosovitskiy et al. 2021): patches, a class token, learned positions, a bidirectional stack."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.embed import Embedding
from fmjax.layers.flops import transformer_flops
from fmjax.layers.patchify import patchify
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer, TransformerConfig
from fmjax.models.stack import LAYER_NORM, stack_config
from fmjax.parallel.logical import constrain


class ViT(nn.Module):
    """An image classifier; the defaults are ViT-B/16 without its image size and classes.

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads: as in TransformerConfig.
      image_size: side of an image in pixels; None until the data are known.
      num_channels: of an image; None until the data are known.
      num_classes: logits of an image; None until the data are known.
      patch_size: side of a patch in pixels; must divide image_size.
      init_std: standard deviation of the kernels' initialisation.
      dropout: rate after the embedding, on attention probabilities and on the output of each half of a block.
      dtype, remat, attention: as in TransformerConfig.
    """

    RESUME_FREE = ("remat", "attention")  # the same function, computed in another way
    POOLING = "first"  # its class token stands for the image

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_heads: int = 12
    image_size: int | None = None
    num_channels: int | None = None
    num_classes: int | None = None
    patch_size: int = 16
    init_std: float = 0.02
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        check_positive(patch_size=self.patch_size)
        self.transformer  # checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, activation="gelu", qkv_bias=True, norm_epsilon=1e-6, causal=False, **LAYER_NORM)

    def setup(self):
        self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=0.0), "float32")

    def __call__(self, images, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, num_classes] logits, read from the class token."""
        return self.head(self.hidden(images, train)[:, 0].astype(jnp.float32))

    @nn.compact
    def hidden(self, images, train: bool = False) -> jax.Array:
        """The last layer's output, float [B, 1 + patches, D], the class token first."""
        patches = patchify(images, self.patch_size)
        patch_embedding = Linear(
            self.hidden_size, (None, "embed"), True, Init(scale=self.init_std), self.dtype, name="patch_embedding"
        )
        x = patch_embedding(patches)
        class_token = self.param(
            "class_token", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (self.hidden_size,)
        )
        first = jnp.broadcast_to(class_token, (x.shape[0], 1, self.hidden_size)).astype(x.dtype)
        x = jnp.concatenate([first, x], axis=1)
        names, own = ("position", "embed"), dict(dtype=self.dtype, name="position_embedding")
        positions = Embedding(x.shape[1], self.hidden_size, names, **own)
        x = x + positions(jnp.arange(x.shape[1])[None])
        x = tap(self, "embedded", nn.Dropout(self.dropout, deterministic=not train)(x))
        x = constrain(x, ("batch", None, "act_embed"))
        x, _ = Transformer(self.transformer, name="stack")(x, train=train)
        return x

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        size = self.image_size
        return {"images": jax.ShapeDtypeStruct((1, size, size, self.num_channels), jnp.float32)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        tokens = (self.image_size // self.patch_size) ** 2
        embedding = 6.0 * tokens * self.patch_size**2 * self.num_channels * self.hidden_size
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=tokens + 1)
        return embedding + stack + 6.0 * self.hidden_size * self.num_classes
