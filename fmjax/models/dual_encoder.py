"""What every model of images and texts in one space shares: two towers, one vector of length 1 each, and a scale."""

import inspect
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.dense import Init, Linear
from fmjax.layers.norm import unit
from fmjax.models import MODELS


class DualEncoder(nn.Module):
    """Base of the families of image-text pairs.

    The towers are models of the registry: whatever has `pooled(images, train=)` and `pooled(tokens, segment_ids,
    train=)`, [B, D] each. A family has the fields

    - `projection_size`: of the space, in which each tower has a product without bias; None where their own vectors are
      in one space;
    - `initial_scale`: the logarithm of what similarities are multiplied by, as it starts;
    - `initial_bias`: what is added to them, as it starts; None for no bias.

    Attributes:
      vision: the image tower, such as {"name": "vit", "num_classes": 0, ...}.
      text: the text tower, such as {"name": "text_tower", ...}.
      dtype: of the projections' products; the vectors are float32.
    """

    CAUSAL = False  # reads whole texts: no log-likelihoods of texts, and nothing to continue them with
    TOWERS = {"vision": ("pooled", "one vector a row", "vit"), "text": ("pooled", "one vector a row", "text_tower")}
    """Of each tower the method that is called, what it gives, and a model that has it."""

    vision: Annotated[dict, MODELS]
    text: Annotated[dict, MODELS]
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        for name, (method, gives, known) in self.TOWERS.items():
            tower = getattr(self, name)
            if "train" not in inspect.signature(getattr(type(tower), method, object)).parameters:
                raise ConfigError(
                    f"model.{name} = {type(tower).__name__} has no method `{method}(..., train)`, which gives {gives}; "
                    f"take {known!r}, or another with that method"
                )
            if not hasattr(tower, "hidden_size"):
                raise ConfigError(
                    f"model.{name} = {type(tower).__name__} has no `hidden_size`, the length of its vectors; give the "
                    "class that field or property"
                )
        if getattr(self.vision, "num_classes", 0) != 0:
            raise ConfigError(
                f"model.vision.num_classes = {self.vision.num_classes}: an image tower has no classes of its own; set "
                "it to 0"
            )

    def setup(self):
        if self.projection_size is not None:
            for name, tower in (("image_projection", self.vision), ("text_projection", self.text)):
                init = Init(scale=tower.hidden_size**-0.5)
                setattr(self, name, Linear(self.projection_size, ("embed", None), False, init, self.dtype))
        constant = lambda value: nn.with_logical_partitioning(nn.initializers.constant(value), ())
        self.log_scale = self.param("log_scale", constant(self.initial_scale), (), jnp.float32)
        if self.initial_bias is not None:
            self.bias = self.param("bias", constant(self.initial_bias), (), jnp.float32)

    def __call__(self, images, tokens, segment_ids=None, train: bool = False, **more) -> dict[str, jax.Array]:
        """Images and texts in one space.

        Args:
          images: float32 [B, H, W, C], or another array that the image tower reads.
          tokens, segment_ids: int32 [N, T], one text a row; 0 is padding.
          train: whether dropout is on.
          more: further arrays of the image tower's.

        Returns: "image" float32 [B, E] and "text" [N, E], of length 1, and "scale" and "bias" float32 []: how well they
          fit is scale * image @ text.T + bias.
        """
        return {
            "image": self.encode_images(images, train, **more),
            "text": self.encode_texts(tokens, segment_ids, train),
            "scale": jnp.exp(self.log_scale),
            "bias": jnp.zeros(()) if self.initial_bias is None else self.bias,
        }

    def encode_images(self, images, train: bool = False, **more) -> jax.Array:
        """Vectors of length 1, float32 [B, E], of images float32 [B, H, W, C] and what else their tower reads."""
        return self.image_vectors(self.vision.pooled(images, train=train, **more))

    def image_vectors(self, pooled) -> jax.Array:
        """Vectors of length 1, float32 [B, E], of what the image tower gives, [B, D]."""
        return unit(pooled if self.projection_size is None else self.image_projection(pooled))

    def encode_texts(self, tokens, segment_ids=None, train: bool = False) -> jax.Array:
        """Vectors of length 1, float32 [B, E], of texts int32 [B, T], whose padding has the segment id 0."""
        x = self.text.pooled(tokens, segment_ids, train=train)
        return unit(x if self.projection_size is None else self.text_projection(x))

    def text_states(self, tokens, segment_ids=None, train: bool = False) -> dict[str, jax.Array | None]:
        """What a text tower of this kind says of texts (`fmjax.models.text_tower.TextTower.text_states`); "vector" is
        in the common space, of any length."""
        states = self.text.text_states(tokens, segment_ids, train)
        vector = states["vector"]
        return states | {"vector": vector if self.projection_size is None else self.text_projection(vector)}

    def probabilities(self, image: jax.Array, text: jax.Array) -> jax.Array:
        """How likely it is that vectors of images float32 [B, E] belong to those of texts [N, E]: float32 [B, N], each
        row a distribution over the texts, or, of a family with a bias, each pair by itself."""
        logits = jnp.exp(self.log_scale) * image @ text.T
        return jax.nn.softmax(logits) if self.initial_bias is None else jax.nn.sigmoid(logits + self.bias)

    def probabilities_of_any(self, image: jax.Array, texts: jax.Array) -> jax.Array:
        """How likely it is that some of each class's texts, vectors [C, N, E], belongs to vectors of images [B, E]:
        float32 [B, C], each row a distribution, or, of a family with a bias, each class by itself as if its texts were
        independent."""
        found = self.probabilities(image, texts.reshape(-1, texts.shape[-1])).reshape(len(image), *texts.shape[:2])
        return found.sum(-1) if self.initial_bias is None else 1 - jnp.prod(1 - found, axis=-1)

    @property
    def FREE_AXES(self) -> dict[str, int]:
        return getattr(self.vision, "FREE_AXES", {})

    @property
    def image_size(self) -> int | None:
        return self.vision.image_size

    @property
    def num_channels(self) -> int | None:
        return self.vision.num_channels

    @property
    def vocab_size(self) -> int | None:
        return self.text.vocab_size

    @property
    def max_length(self) -> int:
        return self.text.max_length

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        return {**self.vision.example(), **self.text.example()}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one pair, or over that one of its sides whose array is there, by the
        convention of `fmjax.layers.flops`; the product of all images with all texts, which grows with the batch, is
        left out."""
        towers = [tower for name, tower in (("images", self.vision), ("tokens", self.text)) if name in shapes]
        projections = [6.0 * tower.hidden_size * (self.projection_size or 0) for tower in towers]
        return sum(tower.flops_per_example(shapes) for tower in towers) + sum(projections)


def other_padding(module, tokenizer) -> str | None:
    """Where a text tower reads padding as another token than the tokenizer fills rows up with: what is wrong."""
    ours, theirs = getattr(getattr(module, "text", None), "pad_id", None), getattr(tokenizer, "pad_id", None)
    if None in (ours, theirs) or ours == theirs:
        return None
    return (
        f"model.text.pad_id = {ours}, and the tokenizer ({tokenizer.source}) fills texts up with {theirs}, which the "
        "model reads: make pad_id that number (in a published folder: text_config.pad_token_id of its config.json)"
    )
