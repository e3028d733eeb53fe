"""A decoder that gives a text one number: a reward model."""

import inspect
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.dense import Init, Linear
from fmjax.models import MODELS


class RewardModel(nn.Module):
    """The last layer's output of a decoder times one vector, read at the last token of a text (Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325, section 3.4; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).

    With `train.init_from` a decoder's run or a published one its parameters are the decoder's here; the vector is new.

    Attributes:
      decoder: a model with a method `hidden(tokens, segment_ids, positions, train)`, such as {"name": "llama", ...}.
      init_std: standard deviation of the vector; None is 1 / sqrt(hidden_size + 1), as in Stiennon et al.
      offset: added to every score, such that demonstrations score 0, say; nothing learns it, as no difference has it.
      dtype: of the product with the vector; scores are float32.
    """

    CAUSAL = False  # of a text there is one number alone: no log-likelihoods, and nothing to continue
    RESUME_FREE = ("offset",)

    decoder: Annotated[dict, MODELS]
    init_std: float | None = None
    offset: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        hidden = getattr(type(self.decoder), "hidden", None)
        if hidden is None or "train" not in inspect.signature(hidden).parameters:
            raise ConfigError(
                f"model.decoder = {type(self.decoder).__name__} has no method hidden(tokens, ..., train); take "
                "'llama', or another decoder"
            )

    def setup(self):
        size = self.decoder.hidden_size
        std = self.init_std if self.init_std is not None else 1.0 / math.sqrt(size + 1)
        self.head = Linear(1, ("embed", None), False, Init(scale=std), self.dtype)

    @property
    def vocab_size(self) -> int | None:
        return self.decoder.vocab_size

    @property
    def max_length(self) -> int | None:
        return self.decoder.max_length

    def __call__(self, tokens, segment_ids=None, positions=None, train: bool = False) -> jax.Array:
        """Scores of texts, float32 [B].

        Args:
          tokens: int32 [B, T], one text a row.
          segment_ids: int32 [B, T], 1 for the text and 0 for padding behind it; None: no padding.
          positions: int32 [B, T]; None: from 0.
          train: whether dropout is on.
        """
        scores = self.all_scores(tokens, segment_ids, positions, train)
        if segment_ids is None:
            return scores[:, -1]
        last = jnp.maximum(jnp.sum(segment_ids > 0, axis=1) - 1, 0)
        return jnp.take_along_axis(scores, last[:, None], axis=1)[:, 0]

    def all_scores(self, tokens, segment_ids=None, positions=None, train: bool = False) -> jax.Array:
        """The score after each token, float32 [B, T]; arguments as `__call__`."""
        hidden = self.decoder.hidden(tokens, segment_ids, positions, train)
        return self.head(hidden)[..., 0].astype(jnp.float32) + self.offset

    @nn.nowrap
    def place_of(self, other: nn.Module) -> str | None:
        """Where the parameters of another model belong with which this one begins; None for another reward model's."""
        return None if isinstance(other, RewardModel) else "decoder"

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be."""
        return self.decoder.example()

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one example's texts, by the convention of `fmjax.layers.flops`."""
        head = 6 * math.prod(shapes["tokens"]) * self.decoder.hidden_size * self.decoder.vocab_size
        return self.decoder.flops_per_example(shapes) - head  # which scores do without
