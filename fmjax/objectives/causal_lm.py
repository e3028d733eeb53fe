"""Next-token prediction."""

import dataclasses
import logging
from typing import ClassVar

import jax

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import check_chunk_size, target_sums

log = logging.getLogger("fmjax")

INPUTS = ("tokens", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Mean negative log-likelihood of the targets, over positions weighted by `loss_weights`.

    Attributes:
      z_loss: coefficient of the squared log-partition function, added to the training loss only; 0 for none.
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
      sample_prompts: continued for `samples.txt`; "" starts from BOS or EOS; none: no samples.
      sample_tokens: length of those continuations.
      sample_temperature: their temperature; 0 is greedy.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", "sample_prompts", "sample_tokens", "sample_temperature")
    ROWS_APART: ClassVar[bool] = True

    z_loss: float = 0.0
    chunk_size: int | None = None
    sample_prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 200
    sample_temperature: float = 0.8

    def __post_init__(self):
        check_chunk_size(self.chunk_size)
        check_positive(sample_tokens=self.sample_tokens)
        for name in ("z_loss", "sample_temperature"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a number of at least 0.")

    def inputs(self, batch: dict) -> dict:
        """The arrays of `batch` that the module takes, by keyword."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch.

        Args:
          apply_fn: `module.apply` of a decoder.
          params: its parameters.
          batch: tokens, targets int32 [B, T], loss_weights float32 [B, T], and optionally segment_ids, positions.
          key: for dropout; may be None when not training.
          train: whether dropout and z-loss are on.

        Returns: name to (sum, weight), float32 scalars: "loss"; when training with a z-loss, also "cross_entropy" and
        "z_loss" (its two parts); when not training, "accuracy" of the likeliest token.
        """
        parts = ("cross_entropy", "z_loss") if train and self.z_loss else ()
        options = dict(z_loss=self.z_loss if train else 0.0, chunk_size=self.chunk_size)
        return target_sums(apply_fn, params, batch, self.inputs(batch), key, train, parts, **options)

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model, or `sample_prompts` that could not be continued."""
        need_features(self, module)
        obstacle = self._obstacle(module, data)
        if obstacle and self.sample_prompts != type(self).sample_prompts:
            raise ConfigError(f"objective.sample_prompts: {obstacle}; change them, or set them to () for no samples")

    def can_sample(self, module, data) -> bool:
        """Whether `sample` would work; logs why not."""
        obstacle = self._obstacle(module, data)
        if obstacle:
            log.info("no samples: %s", obstacle)
        return bool(self.sample_prompts) and not obstacle

    def _obstacle(self, module, data) -> str | None:
        if not self.sample_prompts:
            return None
        tokenizer, context = data.tokenizer, getattr(module, "max_length", None)
        if not hasattr(module, "init_cache"):
            return f"{type(module).__name__} cannot generate (it has no init_cache)"
        if tokenizer is None:
            return "the data have no tokenizer"
        for prompt in self.sample_prompts:
            length = len(tokenizer.encode(prompt)) + (tokenizer.bos_id is not None)
            if not length and tokenizer.prefix_id is None:
                return f"{prompt!r} has no tokens, and the tokenizer neither BOS nor EOS to start from"
            if context is not None and length >= context:
                return f"{prompt[:40]!r} has {length} tokens, which fill model.max_length = {context}"
        return None

    def sample(self, model, key) -> list[str]:
        """A text for each of `sample_prompts`, prompt included.

        Args:
          model: a `fmjax.inference.model.Model`.
          key: random key that the continuations depend on.
        """
        seed = int(jax.random.bits(key) >> 1)
        texts = model.generate(
            self.sample_prompts, max_new_tokens=self.sample_tokens, temperature=self.sample_temperature, seed=seed
        )
        return [prompt + text for prompt, text in zip(self.sample_prompts, texts)]
