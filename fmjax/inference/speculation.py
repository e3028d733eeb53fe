"""Which tokens of a draft are taken, such that what is drawn has the law of the model alone.

A draft proposes tokens, and one pass of the model reads them all. Those that were drawn from laws of the draft's own
are taken or replaced by rejection sampling (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1; Chen
et al. 2023, https://arxiv.org/abs/2302.01318, algorithm 2). The law of a draft that proposes one token for certain is 1
there: the model draws as it does without a draft, and the draft's token is taken where it is the same, with the same
probability, and with the text that would have come without it.
"""

import jax
import jax.numpy as jnp

from fmjax.inference.sampler import pick

ACCEPT, REPLACE, DRAFT = 1, 2, 3
"""What the random key of a drawn token's number is folded with: to take a proposal, for another in its place, and to
propose. Each is drawn anew for a number until it is decided, from what no earlier decision has looked at."""


def folded(keys: jax.Array, purpose: int) -> jax.Array:
    """Keys of any shape, each folded with a purpose."""
    flat = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), purpose)
    return flat.reshape(keys.shape)


def uniform(keys: jax.Array) -> jax.Array:
    """A number in [0, 1) for each of keys of any shape."""
    return jax.vmap(jax.random.uniform)(keys.reshape(-1)).reshape(keys.shape)


def agreed(proposed: jax.Array, count: jax.Array, drawn: jax.Array) -> jax.Array:
    """int32 [B]: how many of a row's first `count` proposals [B, k] are what the model drew there, drawn [B, k + 1]."""
    same = (proposed == drawn[:, :-1]) & _made(proposed, count)
    return _leading(same)


def rejection(
    target: jax.Array, draft: jax.Array, proposed: jax.Array, count: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Takes proposals one after the other with probability min(1, target / draft); in place of the first that is not
    taken draws from what the target has beyond the draft, and after the last from the target.

    Args:
      target: float32 [B, k + 1, V], the model's law of each token, after the proposals before it.
      draft: float32 [B, k, V], the laws that proposed int32 [B, k] were drawn from.
      count: int32 [B], so many of a row's proposals were made, whatever they are.
      keys: [B, k + 1] typed random keys of the tokens.

    Returns: (tokens int32 [B, k + 1], number of proposals taken int32 [B]): the first `taken` + 1 tokens are drawn.
    """
    number = proposed.shape[1]
    p, q = (jnp.take_along_axis(x, proposed[..., None], axis=-1)[..., 0] for x in (target[:, :-1], draft))
    # Never a token without probability: q is positive where it was drawn from.
    takes = (uniform(folded(keys[:, :-1], ACCEPT)) * q < p) & _made(proposed, count)
    taken = _leading(takes)
    rows = jnp.arange(len(taken))
    own, other, key = target[rows, taken], draft[rows, jnp.minimum(taken, number - 1)], keys[rows, taken]
    rejected = taken < count
    left = jnp.where(rejected[:, None], jnp.maximum(own - other, 0.0), own)
    # Laws that differ by rounding alone may leave nothing.
    left = jnp.where(jnp.sum(left, axis=-1, keepdims=True) > 0, left, own)
    last = pick(left, jnp.where(rejected, uniform(folded(key, REPLACE)), uniform(key)))
    tokens = jnp.where(jnp.arange(number)[None] < taken[:, None], proposed, last[:, None])
    return jnp.concatenate([tokens, last[:, None]], axis=1), taken


def _made(proposed: jax.Array, count: jax.Array) -> jax.Array:
    return jnp.arange(proposed.shape[1])[None] < count[:, None]


def _leading(takes: jax.Array) -> jax.Array:
    """int32 [B]: how many are true before the first that is not."""
    return jnp.sum(jnp.cumprod(takes.astype(jnp.int32), axis=1), axis=1)
