"""SigLIP 2 (Tschannen et al. 2025): SigLIP's towers, a decoder of captions, and heads for self-distillation."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.projection_head import ProjectionHead
from fmjax.models import MODELS
from fmjax.models.siglip import SigLIP


class SigLIP2(SigLIP):
    """A SigLIP with what the objective "siglip2" trains beside it. Vectors and probabilities are SigLIP's.

    Attributes:
      vision: the image tower, a "vit" as SigLIP's, with {"use_mask_token": True} for masked prediction.
      text: the text tower, as SigLIP's.
      decoder: a "captioner", whose cross attention reads the image tower's tokens before they are pooled.
      num_prototypes: of the heads of self-distillation, one for images and one for patches: what student and teacher
        are compared over.
      head_size, bottleneck_size: of the inner products of these heads.
    """

    TOWERS = {**SigLIP.TOWERS, "vision": ("pool", "one vector a row of the last layer's output", "vit")}

    decoder: Annotated[dict, MODELS] | None = None
    num_prototypes: int = 65536
    head_size: int = 2048
    bottleneck_size: int = 256

    def __post_init__(self):
        super().__post_init__()
        if not hasattr(self.decoder, "states"):
            found = "missing" if self.decoder is None else f"a {type(self.decoder).__name__}"
            raise ConfigError(
                f"model.decoder is {found}: a SigLIP 2 has one with states(tokens, memory, ...), such as "
                "{'name': 'captioner', ...}"
            )
        for name in ("num_prototypes", "head_size", "bottleneck_size"):
            check_positive(**{f"model.{name}": getattr(self, name)})
        lengths = [tower.max_length for tower in (self.decoder, self.text)]
        if None not in lengths and lengths[0] < lengths[1]:
            raise ConfigError(
                f"model.decoder.max_length = {lengths[0]} is less than model.text.max_length = {lengths[1]}: it writes "
                "the texts that the text tower reads"
            )

    def setup(self):
        super().setup()
        sizes = (self.num_prototypes, self.head_size, self.bottleneck_size, self.dtype)
        self.image_head, self.patch_head = ProjectionHead(*sizes), ProjectionHead(*sizes)

    def __call__(self, images, tokens, segment_ids=None, train: bool = False) -> dict[str, jax.Array]:
        """Images and texts in one space, as `DualEncoder`."""
        if self.is_initializing():  # all that there is, so that it gets its parameters
            self.with_captions(images, tokens, segment_ids)
            self.prototypes(images, jax.random.split(jax.random.key(0), len(images)))
        return super().__call__(images, tokens, segment_ids, train)

    def with_captions(
        self, images, tokens, segment_ids=None, written=None, parallel=None, train: bool = False
    ) -> tuple[dict[str, jax.Array], tuple[jax.Array, dict]]:
        """(what `__call__` gives, the decoder's states), the image tower having seen each image once.

        Args:
          images, tokens, segment_ids, train: as `__call__`; an image and its text a row.
          written: int32 [B, T], what the decoder is to write; None is `tokens`.
          parallel: bool [B], as `fmjax.models.captioner.Captioner.states`, which tells the second of the two.
        """
        seen = self.vision.hidden(images, train=train)
        pair = {
            "image": self.image_vectors(self.vision.pool(seen, train=train)),
            "text": self.encode_texts(tokens, segment_ids, train),
            "scale": jnp.exp(self.log_scale),
            "bias": self.bias,
        }
        written = tokens if written is None else written
        return pair, self.decoder.states(written, seen, parallel=parallel, train=train)

    def caption_logits(self, seen, tokens) -> jax.Array:
        """float32 [B, T, vocab_size + 2]: of each token of texts int32 [B, T], of what comes before it and the image
        tower's tokens [B, S, D] (`seen`)."""
        return self.decoder(tokens, seen)

    def seen(self, images) -> jax.Array:
        """The image tower's tokens before they are pooled, float [B, S, D]."""
        return self.vision.hidden(images)

    def prototypes(self, images, keys=None, mask_ratio: float = 0.0, hides: bool = False, train: bool = False):
        """Logits over prototypes of images float32 [B, H, W, C] of any size, whose positions are interpolated.

        Args:
          keys: [B], random keys by which that share of the patches, `mask_ratio`, is chosen; None for none.
          hides: whether the image tower does not see these.

        Returns: {"image": float32 [B, num_prototypes], of the pooled vector, "patches": [B, M, num_prototypes], of the
          M chosen patches, where there are keys}.
        """
        places = masked = None
        if keys is not None:
            patches = math.prod(side // self.vision.patch_size for side in images.shape[1:3])
            noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
            places = jnp.argsort(noise, axis=1)[:, : max(1, round(mask_ratio * patches))]
        if hides:
            # Of each row by itself, so that rows may be split over devices.
            masked = jax.vmap(lambda at: jnp.zeros(patches, bool).at[at].set(True))(places)
        seen = self.vision.hidden(images, train=train, masked=masked, interpolate=True)
        found = {"image": self.image_head(self.vision.pool(seen, train=train))}
        if places is not None:
            seen = seen[:, int(self.vision.use_class_token) :]
            found["patches"] = self.patch_head(jnp.take_along_axis(seen, places[..., None], axis=1))
        return found

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one pair, or one of its sides, by the convention of `fmjax.layers.flops`:
        towers and decoder. Self-distillation, which only a part of a run has, is left out."""
        total = super().flops_per_example(shapes)
        if "images" not in shapes or "tokens" not in shapes:
            return total
        patches = (self.vision.image_size // self.vision.patch_size) ** 2 + self.vision.use_class_token
        return total + self.decoder.flops_per_example({"tokens": shapes["tokens"], "memory": (patches,)})
