"""Masked diffusion of tokens: a process that hides each token by itself, alpha(t) of them still seen at t, from tokens
at t = 0 to masks at t = 1. What a model says of x_t is x0 itself, as logits of each hidden token.

Of the same algebra as the processes of numbers: hidden is hidden for good (absorbing), so the bound on -log p(x) is a
weighted cross-entropy (Sahoo et al. 2024, https://arxiv.org/abs/2406.07524, eq. 10), and its weight -alpha' / (1 -
alpha) the only part that the schedule has in it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion import PROCESSES, member
from fmjax.diffusion.processes import Process
from fmjax.errors import ConfigError, InputError


@dataclasses.dataclass(frozen=True)
class Masking(Process):
    """How many tokens are hidden at a time.

    Attributes:
      schedule: "linear": t are hidden (MDLM); "cosine": sin(pi t / 2), by which equal steps show few tokens at the
        beginning of sampling and many at its end (MaskGIT, Chang et al. 2022, https://arxiv.org/abs/2202.04200, section
        3.3).
      min_time: the least time that a model is asked at.
    """

    is_of_tokens: ClassVar[bool] = True

    schedule: Literal["linear", "cosine"] = "linear"
    min_time: float = 1e-3

    def __post_init__(self):
        if self.schedule not in ("linear", "cosine"):
            raise ConfigError(f"process.schedule = {self.schedule!r}; known: linear, cosine")
        if not 0 < self.min_time < 0.5:
            raise ConfigError(f"process.min_time = {self.min_time} must be above 0 and below 0.5")

    def hidden(self, t):
        """The share of the tokens that are hidden at t: 1 - alpha(t)."""
        xp = jnp if isinstance(t, jax.Array) else np
        return t if self.schedule == "linear" else xp.sin(0.5 * math.pi * t)

    def alpha(self, t):
        return 1 - self.hidden(t)

    @property
    def ends(self) -> tuple[float, float]:
        return self.min_time, 1.0

    def bound_weight(self, t: jax.Array) -> jax.Array:
        """-alpha'(t) / (1 - alpha(t)): of the cross-entropy of the hidden tokens in the bound, in nats."""
        rate = jax.jvp(self.hidden, (t,), (jnp.ones_like(t),))[1]
        return rate / self.hidden(t)


def check_of_tokens(process, objective: str) -> Process:
    """The process, a member or the name of one. Raises ConfigError, naming the objective, for one of numbers."""
    process = member(PROCESSES, process)
    if not process.is_of_tokens:
        raise ConfigError(
            f"objective.process = {process} is of numbers, and objective {objective} of tokens; take 'masked', or "
            "objective.name = 'diffusion'"
        )
    return process


def hide(key, tokens, t, process: Masking, mask_id: int):
    """(x_t, where it is hidden) of one row of tokens int32 [...]: each by itself."""
    is_hidden = jax.random.uniform(key, tokens.shape) < process.hidden(t)
    return jnp.where(is_hidden, mask_id, tokens), is_hidden


@dataclasses.dataclass(frozen=True)
class Unmasking:
    """How tokens are seen again, from masks to tokens.

    Attributes:
      order: "random": each hidden token is seen with the posterior's probability, the exact reverse of the process
        (MDLM's ancestral sampling); "confidence": as many as the schedule says, those that the model is surest of
        (MaskGIT, section 3.2).
      steps: in which nothing is hidden at the end.
      temperature: divides the logits.
      choice_temperature: of "confidence": Gumbel noise in the order, less with each step (MaskGIT's code).
    """

    order: Literal["random", "confidence"] = "random"
    steps: int = 16
    temperature: float = 1.0
    choice_temperature: float = 4.5

    def __post_init__(self):
        if self.order not in ("random", "confidence"):
            raise InputError(f"order = {self.order!r}; known: random, confidence")
        if self.steps < 1 or not self.temperature > 0 or not self.choice_temperature >= 0:
            raise InputError(
                f"steps = {self.steps} must be at least 1, temperature = {self.temperature} above 0 and "
                f"choice_temperature = {self.choice_temperature} at least 0"
            )


def unmask(logits_of: Callable, tokens, keys, process: Masking, unmasking: Unmasking, mask_id: int):
    """Tokens int32 [B, T] in which every `mask_id` has become a token; the others stay (infilling). Arguments as those
    of `unmask_between`."""
    places = jnp.sum(tokens == mask_id, axis=-1)
    return unmask_between(0, unmasking.steps, logits_of, tokens, places, keys, process, unmasking, mask_id)


def unmask_between(
    first, last, logits_of: Callable, tokens, places, keys, process: Masking, unmasking: Unmasking, mask_id: int
):
    """Tokens int32 [B, T] behind the steps from `first` to before `last`, which may be traced.

    Args:
      logits_of: (tokens [B, T], times float32 [B]) -> float32 [B, T, V].
      tokens: before these steps.
      places: int [B], how many of each row's are to be filled in all steps.
      keys: [B], what each row is drawn with.
    """
    grid = np.linspace(1, 0, unmasking.steps + 1)
    shares = np.asarray(process.hidden(grid), np.float32)
    along = {
        "time": grid[:-1].astype(np.float32),
        "stay": shares[1:] / shares[:-1],  # the chance that what is hidden remains so
        "share": shares[1:], "noise": unmasking.choice_temperature * grid[1:].astype(np.float32),
    }  # fmt: skip
    along = {name: jnp.asarray(column) for name, column in along.items()}

    def step(index, tokens):
        c = {name: jax.lax.dynamic_index_in_dim(column, index, keepdims=False) for name, column in along.items()}
        logits = logits_of(tokens, jnp.full(len(tokens), c["time"])) / unmasking.temperature
        logits = jnp.where(jnp.arange(logits.shape[-1]) == mask_id, -jnp.inf, logits)  # a mask is no token
        draw = lambda key, row, one, count: _seen(
            jax.random.fold_in(key, index), row, one, count, c, unmasking, mask_id
        )
        return jax.vmap(draw)(keys, tokens, logits, places)

    return jax.lax.fori_loop(first, last, step, tokens)


def _seen(key, tokens, logits, places, c, unmasking: Unmasking, mask_id: int):
    """One row [T] after a step."""
    token_key, order_key = jax.random.split(key)
    drawn = jax.random.categorical(token_key, logits)
    is_hidden = tokens == mask_id
    if unmasking.order == "random":
        remains = jax.random.uniform(order_key, tokens.shape) < c["stay"]
    else:
        sure = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[:, None], axis=-1)[:, 0]
        sure = sure + c["noise"] * jax.random.gumbel(order_key, tokens.shape)
        rank = jnp.argsort(jnp.argsort(jnp.where(is_hidden, sure, jnp.inf)))  # the least sure come first
        # At least one is seen a step, while there are any.
        remains = rank < jnp.minimum(jnp.floor(c["share"] * places), is_hidden.sum() - 1)
    return jnp.where(is_hidden & ~remains, drawn, tokens)
