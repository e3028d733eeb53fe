"""Next-pixel prediction: the likelihood of images, colour after colour."""

import dataclasses
from typing import ClassVar

import jax

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import check_chunk_size, target_sums


@dataclasses.dataclass(frozen=True)
class CausalPixels:
    """Mean negative log-likelihood of the pixels' colours, in nats a pixel (Chen et al. 2020, section 2.2).

    Attributes:
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
      num_samples: images drawn for `samples/`.
      sample_temperature: their temperature.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", "num_samples", "sample_temperature")
    ROWS_APART: ClassVar[bool] = True
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "pixels"

    chunk_size: int | None = None
    num_samples: int = 16
    sample_temperature: float = 1.0

    def __post_init__(self):
        check_chunk_size(self.chunk_size)
        check_positive(num_samples=self.num_samples)
        if not self.sample_temperature >= 0:
            raise ConfigError(f"objective.sample_temperature = {self.sample_temperature!r} must be at least 0")

    def inputs(self, batch: dict) -> dict:
        """What the module is called with."""
        return {"tokens": batch["tokens"]}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch's pixels, each with the total of `loss_weights` [B, T]: "loss" in nats, and when not
        training "accuracy" of the likeliest colour.

        Args:
          batch: tokens, targets int32 [B, T], loss_weights float32 [B, T].
        """
        return target_sums(apply_fn, params, batch, self.inputs(batch), key, train, chunk_size=self.chunk_size)

    def check(self, module, data) -> None:
        """Raises ConfigError for a module that is no decoder."""
        need_features(self, module)

    def can_sample(self, module, data) -> bool:
        """Whether the module can generate, and the data have images to make."""
        return hasattr(module, "init_cache") and self.makes in data.codecs

    def sample(self, model, key) -> list:
        """Images from nothing."""
        seed = int(jax.random.bits(key) >> 1)
        return model.generate([None], num_samples=self.num_samples, temperature=self.sample_temperature, seed=seed)
