"""Drawing the next token from logits: repetition penalty, temperature, top-k, top-p, min-p, greedy.

Each row has settings and a random key of its own, so what a row draws depends on its logits, settings and key alone,
never on the rows beside it. The order is that of transformers: penalty, temperature, top-k, top-p, min-p.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference.checks import is_number

CANDIDATES = 128
"""Largest logits that are sorted in search of the border of top-k and top-p; further down it is found by bisection."""

LANES = 128
"""Tokens whose probabilities are added up before one of them is searched for."""


class Uses(NamedTuple):
    """Which parts of the sampler a program has; static under jit, while the numbers are traced."""

    draw: bool = False  # some row has a temperature
    truncate: bool = False  # top-k, top-p or min-p
    penalty: bool = False
    allowed: bool = False  # some row may draw certain tokens alone (`only_these`)

    def __or__(self, other: "Uses") -> "Uses":
        return Uses(*(a or b for a, b in zip(self, other)))


class Settings(NamedTuple):
    """The numbers of `Sampling` for every row, arrays [B]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; checked here, so the jitted code below can trust it.

    Attributes:
      temperature: logits are divided by it; 0 takes the largest logit.
      top_k: keep the k largest logits (and what ties with the k-th); 0 keeps all.
      top_p: then keep the smallest set of most probable tokens whose probability is at least `top_p` (and what ties
        with its last member); 1.0 keeps all. Holtzman et al. 2020, https://arxiv.org/abs/1904.09751.
      min_p: then keep tokens at least `min_p` times as probable as the most probable one; 0.0 keeps all. Nguyen et al.
        2024, https://arxiv.org/abs/2407.01082.
      repetition_penalty: before all that, the logit of every token of the prompt or drawn before is divided by it where
        positive, multiplied where negative; 1.0 changes nothing. Keskar et al. 2019, https://arxiv.org/abs/1909.05858,
        section 4.1, as transformers has it.

    Raises InputError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not (is_number(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be a number at least 0 (0 is greedy), got {self.temperature!r}")
        if not (is_number(self.top_k) and 0 <= self.top_k < 2**31 and self.top_k == int(self.top_k)):
            raise InputError(
                f"top_k must be an integer at least 0 and below 2**31 (0 keeps every token), got {self.top_k!r}"
            )
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p must be above 0 and at most 1 (1 keeps every token), got {self.top_p!r}")
        if not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise InputError(f"min_p must be at least 0 (0 keeps every token) and at most 1, got {self.min_p!r}")
        if not (is_number(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InputError(
                f"repetition_penalty must be a number above 0 (1 changes nothing), got {self.repetition_penalty!r}"
            )

    @property
    def uses(self) -> Uses:
        """The parts of the sampler that it needs."""
        draw = self.temperature > 0
        truncate = draw and bool(self.top_k or self.top_p < 1 or self.min_p)
        return Uses(draw, truncate, self.repetition_penalty != 1)

    @property
    def values(self) -> tuple[float, int, float, float, float]:
        """The numbers in the order of `Settings`."""
        return dataclasses.astuple(self)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """float32 to uint32 such that x < y exactly when bits(x) < bits(y)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _bisect(logits: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """The largest logit v [..., 1] such that logits of at least v have `weights` whose sum reaches `target` [..., 1].

    Radix selection over the bits of v: 32 passes over the vocabulary, exact, and on XLA:CPU ten times faster than
    sorting 32,000 logits. -inf where no v does (a top-p target above what rounding lets probabilities sum to).
    """
    bits = _ordered_bits(logits)

    def refine(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        heavy = jnp.sum(jnp.where(bits >= candidate, weights, 0), axis=-1, keepdims=True)
        return jnp.where(heavy >= target, candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros((*logits.shape[:-1], 1), jnp.uint32))
    return jnp.min(jnp.where(bits >= threshold, logits, jnp.inf), axis=-1, keepdims=True)


def truncate(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """Logits [B, V] float32, already divided by the temperature, with -inf at what is left out.

    Args:
      top_k, top_p, min_p: as in `Sampling`, [B, 1]; 0, 1 and 0 keep everything. top-p looks at the probabilities that
        remain after top-k, renormalised.
    """
    size = min(CANDIDATES, logits.shape[-1])
    best = jax.lax.top_k(logits, size)[0]
    rank = jnp.arange(size)

    # top-k: the k-th largest, among the candidates or by bisection.
    border_k = jnp.take_along_axis(best, jnp.clip(top_k - 1, 0, size - 1), axis=-1)
    border_k = jnp.where(top_k > 0, border_k, -jnp.inf)
    deep = (top_k > size) & (top_k < logits.shape[-1])
    border_k = jnp.where(top_k >= logits.shape[-1], -jnp.inf, border_k)
    ones = jnp.ones_like(logits)
    border_k = _where_deep(deep, lambda: _bisect(logits, ones, top_k.astype(jnp.float32)), border_k)
    kept = jnp.where(logits >= border_k, logits, -jnp.inf)

    # top-p: the first candidate at which the probabilities' sum reaches p, or by bisection.
    weights = jnp.exp(kept - best[:, :1])
    target = jnp.minimum(top_p, 1.0) * jnp.sum(weights, axis=-1, keepdims=True)
    sums = jnp.cumsum(jnp.where(best >= border_k, jnp.exp(best - best[:, :1]), 0.0), axis=-1)
    first = jnp.min(jnp.where(sums >= target, rank, size), axis=-1, keepdims=True)
    border_p = jnp.take_along_axis(best, jnp.minimum(first, size - 1), axis=-1)
    border_p = jnp.where(top_p < 1, border_p, -jnp.inf)
    # With k candidates or fewer kept, what rounding leaves missing of the target is nothing.
    border_p = jnp.where((first == size) & (best[:, -1:] < border_k), -jnp.inf, border_p)
    deep = (top_p < 1) & (first == size) & (best[:, -1:] >= border_k)
    border_p = _where_deep(deep, lambda: _bisect(kept, weights, target), border_p)

    border_min = best[:, :1] + jnp.log(min_p)
    return jnp.where(logits >= jnp.maximum(jnp.maximum(border_k, border_p), border_min), logits, -jnp.inf)


def _where_deep(deep: jax.Array, find, border: jax.Array) -> jax.Array:
    """`border`, but `find()` in rows that are `deep`; computed only where there are any."""
    return jax.lax.cond(jnp.any(deep), lambda: jnp.where(deep, find(), border), lambda: border)


def penalise(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """CTRL's repetition penalty on the logits [B, V] of `seen` tokens (bool [B, V or more: ids that are inputs alone]);
    penalty [B, 1]."""
    seen = seen[:, : logits.shape[-1]]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Inverts the distribution function: int32 [B], token i with probability weights[i] / sum; uniform [B] in [0, 1).

    A token of weight 0 is never picked: sums of floats need not rise with what is added, so the search looks at groups
    and tokens with a weight alone. One random number a row, where Gumbel noise takes one a token (30 times the time at
    a vocabulary of 32,000).
    """
    batch, vocab = weights.shape
    width = min(LANES, vocab)
    groups = -(-vocab // width)
    grouped = jnp.pad(weights, ((0, 0), (0, groups * width - vocab))).reshape(batch, groups, width)
    sums = jnp.cumsum(jnp.sum(grouped, axis=-1), axis=-1)
    # Below the total: `uniform` is at most 1 - 2**-23.
    point = uniform[:, None] * sums[:, -1:]
    group = _first_beyond(sums, point, jnp.any(grouped > 0, axis=-1))
    before = jnp.where(group > 0, jnp.take_along_axis(sums, jnp.maximum(group - 1, 0), axis=-1), 0.0)
    inside = jnp.take_along_axis(grouped, group[:, :, None], axis=1)[:, 0]
    place = _first_beyond(jnp.cumsum(inside, axis=-1), point - before, inside > 0)
    return (group * width + place)[:, 0].astype(jnp.int32)


def _first_beyond(sums: jax.Array, point: jax.Array, allowed: jax.Array) -> jax.Array:
    """The first allowed index [B, 1] whose sum [B, N] is above the point [B, 1]; the last allowed one if none is."""
    index = jnp.arange(sums.shape[-1])
    last = jnp.max(jnp.where(allowed, index, 0), axis=-1, keepdims=True)
    return jnp.min(jnp.where(allowed & (sums > point), index, last), axis=-1, keepdims=True)


def only_allowed(scores: jax.Array, num_tokens: int | None, banned_ids: tuple[int, ...]) -> jax.Array:
    """Scores [..., V] with -inf at tokens from `num_tokens` on (None: none) and at `banned_ids`."""
    allowed = np.ones(scores.shape[-1], bool)
    allowed[num_tokens:] = num_tokens is None
    allowed[list(banned_ids)] = False
    return scores if allowed.all() else jnp.where(allowed, scores, -jnp.inf)


def only_these(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """Scores [B, V] with -inf at tokens that a row may not draw.

    allowed: uint32 [B, W], W * 32 at least V: bit i of word w is token 32 w + i, 1 where it may be drawn.
    """
    bits = (allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return jnp.where(bits.reshape(len(allowed), -1)[:, : scores.shape[-1]] > 0, scores, -jnp.inf)


class Law(NamedTuple):
    """What tokens are drawn by after logits [B, V].

    Attributes:
      scaled: float32 [B, V], logits divided by the temperature.
      top, total: float32 [B, 1], the largest of them, and the sum of exp(scaled - top).
      likeliest: int32 [B], the first of the largest that may be drawn: what a greedy row takes.
      weights: float32 [B, V], in proportion to the probabilities that a row with a temperature draws by; None where no
        row has one.
    """

    scaled: jax.Array
    top: jax.Array
    total: jax.Array
    likeliest: jax.Array
    weights: jax.Array | None

    def logprobs(self, tokens: jax.Array) -> jax.Array:
        """Log-probabilities float32 [B] of tokens int32 [B] as `sample` tells them."""
        chosen = jnp.take_along_axis(self.scaled, tokens[:, None], axis=-1)
        return (chosen - self.top - jnp.log(self.total))[:, 0]

    def probabilities(self, temperature: jax.Array) -> jax.Array:
        """float32 [B, V] that rows of a temperature [B] draw by; of a greedy row 1 at what it takes."""
        greedy = jax.nn.one_hot(self.likeliest, self.scaled.shape[-1])
        if self.weights is None:
            return greedy
        drawn = self.weights / jnp.sum(self.weights, axis=-1, keepdims=True)
        return jnp.where(temperature[:, None] > 0, drawn, greedy)


def law(
    logits: jax.Array, settings: Settings, uses: Uses, num_tokens: int | None = None, seen=None,
    banned_ids: tuple[int, ...] = (), allowed=None,
) -> Law:  # fmt: skip
    """What `sample` draws by; arguments as there."""
    columns = Settings(*(jnp.asarray(x)[..., None] for x in settings))
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[-1]
    index = jnp.arange(vocab)
    scaled = logits
    if uses.draw:
        scaled = logits / jnp.where(columns.temperature > 0, columns.temperature, 1.0)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    exponentials = jnp.exp(scaled - top)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)

    scores = scaled
    if uses.penalty:
        scores = penalise(logits, seen, columns.repetition_penalty)
        scores = scores / jnp.where(columns.temperature > 0, columns.temperature, 1.0)
    scores = only_allowed(scores, num_tokens, banned_ids)
    if uses.allowed:
        scores = only_these(scores, allowed)
    plain = scores is scaled
    best = top if plain else jnp.max(scores, axis=-1, keepdims=True)
    # The first of the largest: two vectorised passes, where argmax compares one by one on a CPU.
    likeliest = jnp.min(jnp.where(scores == best, index, vocab - 1), axis=-1).astype(jnp.int32)
    weights = None
    if uses.draw:
        if uses.truncate:
            scores = truncate(scores, *(columns[i].reshape(-1, 1) for i in (1, 2, 3)))
        weights = exponentials if plain and not uses.truncate else jnp.exp(scores - best)
    return Law(scaled, top, total, likeliest, weights)


def sample(
    logits: jax.Array, keys: jax.Array, settings: Settings, uses: Uses, num_tokens: int | None = None, seen=None,
    banned_ids: tuple[int, ...] = (), allowed=None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Draws one token a row.

    Args:
      logits: [B, V], any float type; computed with in float32.
      keys: [B] typed random keys, one a row.
      settings: numbers or arrays [B].
      uses: the parts that some row needs; a row that does not is not changed by them.
      num_tokens: only tokens below it are drawn (a vocabulary padded beyond its tokenizer's); None = all.
      seen: bool [B, V], the tokens of the prompt and those drawn; read for the penalty alone.
      banned_ids: tokens that are never drawn.
      allowed: what each row may draw (`only_these`); read where `uses.allowed`. The rest has no probability before
        top-k, top-p and min-p look at what there is.

    Returns:
      tokens int32 [B], and log-probabilities float32 [B] of those tokens under softmax(logits / temperature), before
      the penalty, what is allowed, top-k, top-p and min-p (those of softmax(logits) when greedy): the log-probability
      that a later forward pass over the same tokens can recompute. It is not finite where the logits have NaN or +inf,
      or -inf at every token that may be drawn; the token then means nothing.
    """
    found = law(logits, settings, uses, num_tokens, seen, banned_ids, allowed)
    tokens = found.likeliest
    if uses.draw:
        drawn = pick(found.weights, jax.vmap(jax.random.uniform)(keys))
        tokens = jnp.where(jnp.asarray(Settings(*settings).temperature) > 0, drawn, tokens)
    return tokens, found.logprobs(tokens)
