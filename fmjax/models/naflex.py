"""SigLIP 2's NaFlex image tower (Tschannen et al. 2025, section 2.5): images of any proportions, as rows of patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.attention_pooling import AttentionPooling, pooling_flops
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.embed import Embedding
from fmjax.layers.flops import transformer_flops
from fmjax.layers.image_positions import fitted_positions
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.stack import LAYER_NORM, Stacked, stack_config
from fmjax.parallel.logical import constrain


class NaFlexViT(Stacked):
    """A ViT with attention pooling over an image's patches, as many as there are; the defaults are of B/16.

    An image keeps its proportions: it is cut into rows x columns patches (`fmjax.data.codecs.patches.PatchCodec`), and
    the learned positions of a square grid are resized to its own. It is the image tower of a "siglip".

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads: as in TransformerConfig.
      patch_size: side of a patch in pixels.
      num_channels: of an image.
      num_patches: learned positions, a square number. An image may have more or fewer patches.
      activation: "gelu_tanh", or another of `fmjax.layers.mlp.ACTIVATIONS` with one input.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of the kernels' initialisation.
      dropout: rate after the embedding and on the output of each half of a block.
      attention_dropout: rate on attention probabilities; None is `dropout`.
    """

    FREE_AXES = {"images": 1}  # of an input's leading axes without the batch: as many patches as a codec makes
    image_size = None

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_heads: int = 12
    patch_size: int = 16
    num_channels: int = 3
    num_patches: int = 256
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    init_std: float = 0.02
    dropout: float = 0.0
    attention_dropout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive(patch_size=self.patch_size, num_channels=self.num_channels, num_patches=self.num_patches)

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, causal=False, qkv_bias=True, **LAYER_NORM)

    def setup(self):
        init = Init(scale=self.init_std)
        self.patch_embedding = Linear(self.hidden_size, (None, "embed"), True, init, self.dtype)
        self.position_embedding = Embedding(
            self.num_patches, self.hidden_size, ("position", "embed"), self.init_std, self.dtype
        )
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)
        self.attention_pooling = AttentionPooling(self.transformer)

    def __call__(self, images, image_ids=None, image_grids=None, train: bool = False) -> jax.Array:
        """An image's vector, float32 [B, D].

        Args:
          images: float32 [B, P, p * p * C], patches row by row, and behind them padding.
          image_ids: int32 [B, P], 1 for patches and 0 for padding.
          image_grids: int32 [B, 2], rows and columns of patches.
          train: whether dropout is on.

        Raises ConfigError for images alone.
        """
        if image_ids is None or image_grids is None:
            raise ConfigError(
                "model 'naflex_vit' reads images as patches with image_ids and image_grids, which the codec 'patches' "
                "makes and these data do not; take the image tower 'vit'"
            )
        x = self.hidden(images, image_ids, image_grids, train)
        return self.attention_pooling(x, train, image_ids).astype(jnp.float32)

    pooled = __call__

    def hidden(self, images, image_ids, image_grids, train: bool = False) -> jax.Array:
        """The last layer's output, float [B, P, D]; at padding it means nothing."""
        table = self.position_embedding(jnp.arange(self.num_patches))
        x = self.patch_embedding(images)
        x = x + fitted_positions(table, image_grids, images.shape[1]).astype(x.dtype)
        x = tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))
        x = constrain(x, ("batch", None, "act_embed"))
        return self.stack(x, segment_ids=image_ids, train=train)[0]

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name."""
        pixels = self.patch_size**2 * self.num_channels
        return {
            "images": jax.ShapeDtypeStruct((1, self.num_patches, pixels), jnp.float32),
            "image_ids": jax.ShapeDtypeStruct((1, self.num_patches), jnp.int32),
            "image_grids": jax.ShapeDtypeStruct((1, 2), jnp.int32),
        }

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image with no padding, by the convention of `fmjax.layers.flops`."""
        patches, pixels = shapes["images"]
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=patches)
        return 6.0 * patches * pixels * self.hidden_size + stack + pooling_flops(self.transformer, patches)
