"""Multimodal Diffusion Transformer (Esser et al. 2024, Stable Diffusion 3): patches of a noisy image and tokens of a
text attend to each other, each with weights of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.image_positions import centred_sinusoids, grid_sinusoids
from fmjax.layers.joint import JointTransformer, joint_flops
from fmjax.layers.modulation import Modulation, TimeEmbedding, modulated_norm
from fmjax.layers.patchify import check_patches, patchify, unpatchify
from fmjax.layers.tap import tap
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.images import ImageModule
from fmjax.models.stack import Stacked, stack_config
from fmjax.parallel.logical import constrain


class MMDiT(Stacked, ImageModule):
    """What denoises an image that a text tells of; the defaults are Stable Diffusion 3 medium's without its image size.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLPs; None is 4 * hidden_size.
      memory_size: width of a text's tokens, `memory`.
      vector_size: width of a text's one vector, `vector`, which is part of the condition; 0 for none.
      qk_norm: whether queries and keys have an RMSNorm over each head (Stable Diffusion 3.5).
      out_channels: of what it returns; None is as many as the images have.
      patch_size: side of a patch in pixels; must divide image_size.
      position_grid: None: positions are those of the image's own patches. A number: of a square of so many patches,
        in whose middle the image is cut out, and which is as wide as images of image_size are (Stable Diffusion 3).
      dropout: rate on the output of each half of a block.
    """

    num_layers: int = 24
    hidden_size: int = 1536
    intermediate_size: int | None = None
    num_heads: int = 24
    memory_size: int = 4096
    vector_size: int = 2048
    qk_norm: bool = False
    out_channels: int | None = None
    patch_size: int = 2
    position_grid: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(patch_size=self.patch_size, memory_size=self.memory_size)
        if self.image_size is not None:
            check_patches(self.image_size, self.image_size, self.patch_size)
            if self.position_grid is not None and self.image_size // self.patch_size > self.position_grid:
                raise ConfigError(
                    f"model.position_grid = {self.position_grid}, and images have {self.image_size // self.patch_size} "
                    "patches a side; make it at least that"
                )
        if self.hidden_size % 4:
            raise ConfigError(f"model.hidden_size = {self.hidden_size} is no multiple of 4, for positions on two axes")
        if not self.scan_layers:
            raise ConfigError("model.scan_layers = False is for models that decode with a cache; leave it out")

    @property
    def transformer(self) -> TransformerConfig:
        init = Init("glorot_uniform", 1.0)
        return stack_config(
            self, placement="adaln", norm="rmsnorm", norm_epsilon=1e-6, activation="gelu_tanh", causal=False,
            qkv_bias=True, out_bias=True, mlp_bias=True, attention_dropout=0.0,
            qk_init=init, value_init=init, residual_init=init,
        )  # fmt: skip

    @nn.compact
    def __call__(
        self, inputs, times, memory=None, memory_mask=None, vector=None, train: bool = False
    ) -> jax.Array:  # fmt: skip
        """float32 [B, H, W, out_channels] from images float32 [B, H, W, C]. Zero at the start.

        Args:
          inputs: float32 [B, H, W, C].
          times: float32 [B] in [0, 1], of which 1 counts as 1,000 steps.
          memory: float [B, T, memory_size], a text's tokens.
          memory_mask: int32 [B, T], 0 for padding; None is 1 everywhere.
          vector: float [B, vector_size], of a whole text.
          train: whether dropout is on.

        Raises ConfigError where memory or vector is missing, or has another width.
        """
        self._check(memory, vector)
        height, width, channels = inputs.shape[1:]
        rows, columns = height // self.patch_size, width // self.patch_size
        init = Init("glorot_uniform", 1.0)
        linear = lambda features, name: Linear(features, (None, "embed"), True, init, self.dtype, name=name)
        x = linear(self.hidden_size, "patch_embedding")(patchify(inputs, self.patch_size))
        x = x + self._positions(rows, columns).astype(x.dtype)
        x = constrain(tap(self, "embedded", x), ("batch", None, "act_embed"))
        condition = TimeEmbedding(self.hidden_size, dtype=self.dtype, name="time")(times)
        if self.vector_size:
            hidden = nn.silu(linear(self.hidden_size, "vector_inner")(vector))
            outer = Linear(self.hidden_size, ("embed", None), True, Init(scale=0.02), self.dtype, name="vector_outer")
            condition = condition + outer(hidden)
        text = linear(self.hidden_size, "text_embedding")(memory)
        x = JointTransformer(self.transformer, name="stack")(x, text, condition, text_mask=memory_mask, train=train)
        scale, shift = Modulation(2, self.dtype, name="final_modulation")(condition)
        x = modulated_norm(x, shift, scale, 1e-6)
        outputs = self.patch_size**2 * (self.out_channels or channels)
        head = Linear(outputs, ("embed", None), True, Init(scale=0.0), "float32", name="head")
        return unpatchify(head(x.astype(jnp.float32)), self.patch_size, height, width)

    @nn.nowrap
    def _positions(self, rows: int, columns: int) -> jax.Array:
        if self.position_grid is None:
            return grid_sinusoids(rows, columns, self.hidden_size)
        base = self.image_size // self.patch_size
        return centred_sinusoids(rows, columns, self.hidden_size, self.position_grid, base)

    @nn.nowrap
    def _check(self, memory, vector) -> None:
        for name, value, wanted in (("memory", memory, self.memory_size), ("vector", vector, self.vector_size)):
            if wanted and (value is None or value.shape[-1] != wanted):
                given = "there is none" if value is None else f"it has the shape {value.shape}"
                raise ConfigError(f"model.{name}_size = {wanted} is the width of `{name}`, but {given}")

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        found = {"inputs": super().example()["images"], "times": struct(1), "memory": struct(1, 1, self.memory_size)}
        return found | ({"vector": struct(1, self.vector_size)} if self.vector_size else {})

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image and its text, by the convention of `fmjax.layers.flops`."""
        tokens, length, width = (self.image_size // self.patch_size) ** 2, shapes["memory"][0], self.hidden_size
        pixels = self.patch_size**2 * (self.num_channels + (self.out_channels or self.num_channels))
        condition = 256 + width + ((self.vector_size + width) if self.vector_size else 0)
        condition += (12 * (self.num_layers - 1) + 8 + 2) * width
        ends = tokens * pixels * width + length * self.memory_size * width
        return 6.0 * (ends + condition * width) + joint_flops(self.transformer, tokens, length)
