"""Flow matching: a velocity that carries noise to data along straight lines."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError, DataError
from fmjax.layers.modulation import NO_LABEL
from fmjax.objectives.base import check_labels, per_row


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """Mean squared error of the velocity d x_t / d t = noise - x of x_t = (1 - t) x + t noise (rectified flow, Liu et
    al. 2022, https://arxiv.org/abs/2209.03003, eq. 1; t = 0 is data, t = 1 noise).

    The module is called with `inputs` x_t, `times` float32 [B] and, where the batch has them, `labels` int32 [B], in
    whose place a share of the rows has `NO_LABEL` (classifier-free guidance, Ho & Salimans 2022). It returns the
    velocity, shaped as x.

    Attributes:
      input_name: the batch's array x; a codec of its modality is `makes`.
      time_sampling: how t is drawn: uniformly, or as the logistic function of a normal number (Esser et al. 2024,
        https://arxiv.org/abs/2403.03206, section 3.1), which is oftenest in the middle.
      label_dropout: share of the rows that learn without their label.
      sample_prompts: classes that `samples/` shows, by number or by name where they have names; none: each class.
      sample_copies: how often each of them.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("sample_prompts", "sample_copies")
    ROWS_APART: ClassVar[bool] = True
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "denoising"

    input_name: str = "images"
    time_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    label_dropout: float = 0.1
    sample_prompts: tuple[int | str, ...] = ()
    sample_copies: int = 8

    def __post_init__(self):
        if not 0.0 <= self.label_dropout < 1.0:
            raise ConfigError(f"objective.label_dropout = {self.label_dropout} must be in [0, 1)")
        if self.sample_copies < 1:
            raise ConfigError(f"objective.sample_copies = {self.sample_copies} must be at least 1")

    def inputs(self, batch) -> dict:
        """What the module is initialised with."""
        x = batch[self.input_name]
        labels = {"labels": batch["labels"]} if "labels" in batch else {}
        return {"inputs": x, "times": jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)} | labels

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch: "loss", the squared error a number of x, and its parts by thirds of t, "loss_t0" (near
        the data) to "loss_t2"; rows count by `loss_weights` [B]."""
        x, weights = batch[self.input_name], batch["loss_weights"]
        times, noise, dropped = per_row(self._draw, batch["keys"], x)
        inputs = {"inputs": interpolate(x, noise, times), "times": times}
        if "labels" in batch:
            inputs["labels"] = jnp.where(dropped & train, NO_LABEL, batch["labels"])
        rngs = {"dropout": key} if train else None
        velocity = apply_fn({"params": params}, **inputs, train=train, rngs=rngs).astype(jnp.float32)
        if velocity.shape != x.shape:
            raise ConfigError(
                f"the module returns {velocity.shape} for {self.input_name} of shape {x.shape}; a velocity has their "
                "shape: leave model.out_channels out"
            )
        errors = jnp.mean(jnp.square(velocity - (noise - x)).reshape(len(x), -1), axis=1)
        sums = {"loss": (jnp.sum(errors * weights), weights.sum())}
        for third in range(3):
            inside = weights * (jnp.floor(3 * times) == third)
            sums[f"loss_t{third}"] = (jnp.sum(errors * inside), inside.sum())
        return sums

    def _draw(self, key, x):
        """(t, noise, whether the label is dropped) of one row."""
        time_key, noise_key, label_key = jax.random.split(key, 3)
        if self.time_sampling == "uniform":
            time = jax.random.uniform(time_key)
        else:
            time = jax.nn.sigmoid(jax.random.normal(time_key))
        return time, jax.random.normal(noise_key, x.shape), jax.random.bernoulli(label_key, self.label_dropout)

    def check(self, module, data) -> None:
        """Raises ConfigError where the data lack x or a class that samples are of, or the model a class of theirs."""
        row = data.train[0]
        if self.input_name not in row:
            raise ConfigError(f"objective.input_name = {self.input_name!r} is not in the data: {', '.join(row)}")
        check_labels(module, data, low=NO_LABEL)
        for prompt in self.sample_prompts:
            try:
                data.codecs["label"].encode(prompt)
            except (KeyError, DataError) as error:
                reason = "the data have no codec for 'label'" if isinstance(error, KeyError) else error
                raise ConfigError(f"objective.sample_prompts has {prompt!r}: {reason}") from None

    def sample(self, model, key) -> list:
        """Values of the modality, a row of `sample_copies` for each prompt."""
        seed = int(jax.random.bits(key) >> 1)
        return model.generate(self.sample_prompts or None, num_samples=self.sample_copies, seed=seed)


def interpolate(x, noise, times):
    """x_t = (1 - t) x + t noise of each row, times [B]."""
    times = times.reshape(-1, *(1,) * (x.ndim - 1))
    return (1 - times) * x + times * noise
