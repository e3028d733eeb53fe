"""What denoises images that are told in words: a denoiser, and, where it is trained with it, the text's encoder."""

import inspect
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.models import MODELS

TOLD = ("memory", "memory_mask", "vector")
"""What an encoder says of texts (`text_states`), and a denoiser may be told, by name."""


class TextToImage(nn.Module):
    """A denoiser that is told what an encoder says of a text: `encode_text`, then `denoise`, as often as there are
    steps; or both in one call.

    Attributes:
      denoiser: a model called with `inputs`, `times` and some of `TOLD`, such as {"name": "unet", ...} with attention
        "cross", or {"name": "mmdit", ...}; its images may be latents, whose `image_size` and `num_channels` it is
        then given.
      text: an encoder with `text_states(tokens, segment_ids, train=)`, such as {"name": "text_tower", ...}, which
        trains with the denoiser; None where the objective names a frozen one.
    """

    CAUSAL = False  # reads whole texts: no log-likelihoods of texts, and nothing to continue them with

    denoiser: Annotated[dict, MODELS]
    text: Annotated[dict, MODELS] | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.told:
            raise ConfigError(
                f"model.denoiser = {type(self.denoiser).__name__} takes none of {', '.join(TOLD)}, so no text would "
                "tell it anything; take 'mmdit', or 'unet' with attention 'cross'"
            )
        if getattr(self.denoiser, "num_classes", 0) is None:
            raise ConfigError("model.denoiser.num_classes = None; set it to 0: it is told in words, not by a class")
        if self.text is not None:
            check_encoder(self.text, "model.text")
            check_widths(self.denoiser, self.text, "model.text")

    @property
    def told(self) -> tuple[str, ...]:
        """What the denoiser takes of `TOLD`."""
        taken = inspect.signature(type(self.denoiser).__call__).parameters
        return tuple(name for name in TOLD if name in taken)

    def __call__(
        self, inputs, times, tokens=None, segment_ids=None, train: bool = False, **told
    ) -> jax.Array:  # fmt: skip
        """What the denoiser predicts of noisy images, float32 [B, H, W, C].

        Args:
          inputs: float32 [B, H, W, C].
          times: float32 [B] in [0, 1].
          tokens, segment_ids: int32 [B, T], one text a row; 0 is padding.
          train: whether dropout is on.
          told: in place of tokens what an encoder says of them, by the names of `TOLD`.
        """
        if not told and self.text is not None:
            told = self.encode_text(tokens, segment_ids, train)
        elif not told and self.is_initializing():  # of the widths that the denoiser says
            example = self.denoiser.example()
            told = {name: jnp.zeros((len(inputs), *example[name].shape[1:])) for name in self.told if name in example}
        return self.denoise(inputs, times, train=train, **told)

    def encode_text(self, tokens, segment_ids=None, train: bool = False) -> dict[str, jax.Array | None]:
        """What the encoder says of texts, by the names of `TOLD`."""
        return self.text.text_states(tokens, segment_ids, train)

    def denoise(self, inputs, times, train: bool = False, **told) -> jax.Array:
        """The denoiser's prediction; `told` may hold more of `TOLD` than it takes."""
        return self.denoiser(inputs, times, train=train, **{name: told.get(name) for name in self.told})

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        found = self.denoiser.example()
        if self.text is None:
            return found
        return {name: one for name, one in found.items() if name not in TOLD} | self.text.example()

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image and its text, by the convention of `fmjax.layers.flops`; what
        frozen models compute is not counted."""
        length = shapes["memory" if "memory" in shapes else "tokens"][0]  # of states, where rows hold those
        length = length if getattr(self.text, "pad_id", None) is None else self.text.max_length
        own = 0.0 if self.text is None else self.text.flops_per_example(shapes)
        return own + self.denoiser.flops_per_example(dict(shapes) | {"memory": (length,)})


def check_encoder(encoder, name: str) -> None:
    """Raises ConfigError for an encoder, called `name`, that does not say what a denoiser may attend to."""
    if not hasattr(encoder, "text_states"):
        raise ConfigError(
            f"{name} = {type(encoder).__name__} has no method text_states(tokens, segment_ids, train), which gives "
            "what a denoiser attends to; take 'text_tower', or a model of images and texts such as 'clip'"
        )


def check_widths(denoiser, encoder, name: str) -> None:
    """Raises ConfigError where what an encoder, called `name`, says has other widths than the denoiser takes."""
    tower = getattr(encoder, "text", encoder)
    projected = getattr(encoder, "projection_size", None) or tower.hidden_size
    for field, found in (("memory_size", tower.hidden_size), ("vector_size", projected)):
        wanted = getattr(denoiser, field, None)
        if wanted and wanted != found:
            raise ConfigError(
                f"model.denoiser.{field} = {wanted}, and what {name} = {type(encoder).__name__} says is {found} wide; "
                "set it to that"
            )
