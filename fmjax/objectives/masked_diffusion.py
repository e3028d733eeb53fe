"""Masked diffusion of tokens: the bound on their likelihood, or MaskGIT's loss (`fmjax.diffusion.masked`)."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from fmjax.diffusion import PROCESSES
from fmjax.diffusion.masked import check_of_tokens, hide
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import need_features, per_row
from fmjax.objectives.cross_entropy import check_chunk_size, cross_entropy, head_size

INPUTS = ("segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion:
    """Cross-entropy of the tokens that are hidden at a time t, of rows of text: their `targets`.

    The module reads whole rows (an encoder, such as `bert`) and is not told t, which the hidden tokens tell (Sahoo et
    al. 2024, section 3.5).

    Attributes:
      mask_id: the token that hides others: one of the module's vocabulary, model.vocab_size = mask_id + 1 say, that the
        data do not have.
      process: how many are hidden at t.
      weighting: "elbo": the bound on the negative log-likelihood, nats a token, which compares with that of a causal
        model (Sahoo et al. 2024, eq. 10); "simple": the mean over the hidden ones (MaskGIT, Chang et al. 2022, eq. 2).
      stratified: times are spread over the rows of a batch, not drawn independently.
      num_samples, sample_length: texts that `samples/` shows, and their tokens.
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", "num_samples", "sample_length")
    ROWS_APART: ClassVar[bool] = True
    generator: ClassVar[str] = "unmasking"

    mask_id: int
    process: Annotated[dict, PROCESSES] = "masked"
    weighting: Literal["elbo", "simple"] = "elbo"
    stratified: bool = True
    num_samples: int = 4
    sample_length: int = 64
    chunk_size: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "process", check_of_tokens(self.process, "masked_diffusion"))
        check_chunk_size(self.chunk_size)
        check_positive(**{"objective.num_samples": self.num_samples, "objective.sample_length": self.sample_length})
        if self.mask_id < 0:
            raise ConfigError(f"objective.mask_id = {self.mask_id} must be at least 0")

    def inputs(self, batch) -> dict:
        """What the module is initialised with."""
        return {"tokens": batch["targets"]} | {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict:
        """Sums over the batch: "loss", and when not training "accuracy" of the likeliest token where one is hidden.

        batch: targets int32 [B, T], loss_weights float32 [B, T] (0: neither hidden nor counted); perhaps segment_ids,
        positions.
        """
        rngs = {"dropout": key} if train and key is not None else None

        def features(tokens):
            inputs = self.inputs(batch) | {"tokens": tokens}
            found, head = apply_fn({"params": params}, **inputs, train=train, rngs=rngs, method="features")
            return found, without(head, self.mask_id)  # a mask is no token (section 3.2.3)

        return hidden_sums(self, features, batch["targets"], batch["loss_weights"], batch, self.mask_id, train)

    def sample(self, model, key) -> list[str]:
        """Texts of `sample_length` tokens from masks alone."""
        seed = int(jax.random.bits(key) >> 1)
        return model.generate([""], num_samples=self.num_samples, length=self.sample_length, seed=seed)

    def check(self, module, data) -> None:
        """Raises ConfigError for a module that reads no whole rows, or a mask that is no token of its own."""
        need_features(self, module)
        if getattr(module, "CAUSAL", True):
            raise ConfigError(
                f"objective masked_diffusion needs a model that reads whole rows, and {type(module).__name__} sees "
                "nothing of what comes after a token; take model.name = 'bert'"
            )
        size, known = module.vocab_size, getattr(data.tokenizer, "vocab_size", None)
        if self.mask_id >= size:
            raise ConfigError(
                f"objective.mask_id = {self.mask_id} is no token of the model, which has 0 to {size - 1}; set "
                f"model.vocab_size = {self.mask_id + 1}"
            )
        own = getattr(data.tokenizer, "mask_id", None)
        if known is not None and self.mask_id < known and self.mask_id != own:
            raise ConfigError(
                f"objective.mask_id = {self.mask_id} is a token of the data, which have 0 to {known - 1}; set it to "
                f"{known} and model.vocab_size to {known + 1}"
            )


def hidden_sums(objective, features, targets, counted, batch, mask_id: int, train: bool) -> dict:
    """Sums over the hidden ones of tokens, at times that the rows' keys draw: "loss", and when not training "accuracy".

    Args:
      objective: whose process, weighting, stratified and chunk_size they are by.
      features: tokens int32 [B, T], some of them `mask_id`, to (hidden [B, T, D], head).
      targets: int32 [B, T].
      counted: float32 [B, T]; where 0 a token is neither hidden nor counted.
      batch: with `keys` and `strata`.
    """
    process = objective.process

    def draw(key, targets, stratum):
        """(u that the time is made of, x_t, where it is hidden) of one row."""
        time_key, hide_key = jax.random.split(key)
        u = stratum if objective.stratified else jax.random.uniform(time_key)
        return (u, *hide(hide_key, targets, process.spread(u), process, mask_id))

    u, hidden_tokens, is_hidden = per_row(draw, batch["keys"], targets, batch["strata"])
    is_hidden &= counted > 0
    found, head = features(jnp.where(is_hidden, hidden_tokens, targets))
    weights = asked = counted * is_hidden
    if objective.weighting == "elbo":
        weights = asked * process.bound_weight(process.spread(u))[:, None]
    sums = cross_entropy(found, head, targets, weights, chunk_size=objective.chunk_size)
    named = {"loss": (sums["loss"], counted.sum() if objective.weighting == "elbo" else asked.sum())}
    if not train:
        correct = cross_entropy(found, head, targets, asked, chunk_size=objective.chunk_size, count_correct=True)
        named["accuracy"] = (correct["correct"], asked.sum())
    return named


def without(head: dict, token: int) -> dict:
    """An output head (`fmjax.layers.embed.output_logits`) that gives a token no probability."""
    size = head_size(head)
    bias = head.get("bias", jnp.zeros(size, jnp.float32))
    return head | {"bias": jnp.where(jnp.arange(size) == token, -1e9, bias)}
