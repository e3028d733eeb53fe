"""How far a student's distributions are from a teacher's: over the whole vocabulary, or over what is kept of them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmjax.layers.embed import output_logits
from fmjax.objectives.chunks import cut, joined, positions_at_once
from fmjax.parallel.logical import constrain

FORMS = ("continuous", "paper")

LEAST = -1e30
"""Of what has no probability: finite, as files of logarithms are to be."""


class Likeliest(NamedTuple):
    """What is kept of a teacher's distributions over V classes: the K likeliest, and how much the others have together.

    Attributes:
      ids: whole numbers [..., K].
      logprobs: float [..., K], theirs at the temperature that the divergence is taken at.
      rest: float32 [...], the logarithm of what the others have; where K is V nobody reads it.
    """

    ids: jax.Array
    logprobs: jax.Array
    rest: jax.Array


class Divergence(NamedTuple):
    """Which one is meant, of the softmax of logits / temperature.

    Attributes:
      beta: 0 is KL(teacher || student), 1 is KL(student || teacher).
      form: of what lies between (`jensen_shannon`).
      temperature: of both.
    """

    beta: float = 0.0
    form: str = "continuous"
    temperature: float = 1.0

    def of(self, teacher, student) -> jax.Array:
        """float32 [...] of a student's logits [..., V] and a teacher's, or what is kept of them.

        Of a `Likeliest` it is the divergence of both distributions once all other classes are one: never more than the
        whole divergence (an f-divergence falls where classes are joined), and the whole one where K is V. What is left
        out is how they differ in the rest, weighed by the teacher's share of it in KL(teacher || student), by the
        student's in KL(student || teacher), and by both between.
        """
        student = student / self.temperature
        if isinstance(teacher, Likeliest):
            logs = _as_one(teacher, student)
        else:
            logs = jax.nn.log_softmax(teacher / self.temperature), jax.nn.log_softmax(student)
        return jensen_shannon(*logs, self.beta, self.form)

    def total(self, teacher, student, weights, chunk_size: int | None = None) -> jax.Array:
        """float32 []: the sum over positions of weights times the divergence there.

        A chunk of positions at a time, with the gradient to the student's hidden states and head while the logits are
        at hand: no [B, T, V] array exists, and no product is computed twice. Nothing else has a gradient.

        Args:
          teacher: (hidden [B, T, D'], head), or a `Likeliest` of [B, T].
          student: (hidden [B, T, D], head).
          weights: float32 [B, T].
          chunk_size: positions of each row in a chunk; None goes by the platform.
        """
        size = positions_at_once(*weights.shape, chunk_size)
        hidden, head = student
        told, other = (teacher, None) if isinstance(teacher, Likeliest) else teacher
        return _total(self, cut(hidden, size), head, jax.tree.map(lambda x: cut(x, size), (told, weights)), other)


def _of_chunk(kind: Divergence, hidden, head, told, weights, other) -> jax.Array:
    """Of one chunk [B, C, ...] the weighted sum."""
    logits = lambda x, weights: constrain(output_logits(x, weights), ("batch", "length", "act_vocab"))
    teacher = told if isinstance(told, Likeliest) else logits(told, other)
    return jnp.sum(kind.of(teacher, logits(hidden, head)) * weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(kind: Divergence, hidden, head, fixed, other) -> jax.Array:
    """The sum over chunks [N, B, C, ...] of hidden states and of what is `fixed`."""
    add = lambda total, part: (total + _of_chunk(kind, part[0], head, *part[1], other), None)
    return jax.lax.scan(add, jnp.zeros(()), (hidden, fixed))[0]


def _forward(kind: Divergence, hidden, head, fixed, other) -> tuple[jax.Array, Any]:
    def add(carry, part):
        total, d_head = carry
        value, pull = jax.vjp(lambda x, head: _of_chunk(kind, x, head, *part[1], other), part[0], head)
        d_hidden, more = pull(jnp.ones(()))
        return (total + value, jax.tree.map(lambda a, b: a + b.astype(a.dtype), d_head, more)), d_hidden

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), head)
    (total, d_head), d_hidden = jax.lax.scan(add, (jnp.zeros(()), zeros), (hidden, fixed))
    return total, (d_hidden, jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, head))


def _backward(kind: Divergence, gradients, cotangent):
    return (*jax.tree.map(lambda x: (x * cotangent).astype(x.dtype), gradients), None, None)


_total.defvjp(_forward, _backward)


def jensen_shannon(teacher, student, beta: float, form: str = "continuous") -> jax.Array:
    """A divergence between KL(teacher || student), at beta = 0, and KL(student || teacher), at beta = 1: [...] of
    log-probabilities [..., V].

    form:
      "continuous": (1 - beta) KL(teacher || M) + beta KL(student || M) with M = (1 - beta) student + beta teacher,
        which has these two at its ends;
      "paper": beta KL(teacher || M) + (1 - beta) KL(student || M) with M = beta teacher + (1 - beta) student (Agarwal
        et al. 2024, equation 1; TRL's `generalized_jsd_loss`), which vanishes towards its ends: at 0 and 1 it is taken
        to be these two all the same, so that it jumps there.
    """
    kl = lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    if beta in (0, 1):  # the mixture is one of the two, and the logarithm of the other's share is -inf
        return kl(student, teacher) if beta else kl(teacher, student)
    mixed = jnp.logaddexp(jnp.log1p(-beta) + student, jnp.log(beta) + teacher)
    of_teacher = 1 - beta if form == "continuous" else beta
    return of_teacher * kl(teacher, mixed) + (1 - of_teacher) * kl(student, mixed)


def likeliest_of(logits, count: int, temperature: float = 1.0) -> Likeliest:
    """The `count` likeliest classes of logits [..., V] / temperature."""
    logits = logits.astype(jnp.float32) / temperature
    log_z = jax.nn.logsumexp(logits, axis=-1)
    found, ids = jax.lax.top_k(logits, count)
    if count == logits.shape[-1]:
        rest = jnp.full(log_z.shape, LEAST)
    else:
        rest = _of_others(logits, ids) - log_z
    return Likeliest(ids, found - log_z[..., None], rest)


def likeliest(hidden, head, count: int, temperature: float = 1.0, chunk_size: int | None = None) -> Likeliest:
    """`likeliest_of` the logits of hidden states [B, T, D], a chunk of positions at a time."""
    length = hidden.shape[1]
    parts = cut(hidden, positions_at_once(hidden.shape[0], length, chunk_size))
    found = jax.lax.map(lambda x: likeliest_of(output_logits(x, head), count, temperature), parts)
    return jax.tree.map(lambda x: joined(x, length), found)


def _of_others(logits, ids) -> jax.Array:
    """log sum exp [...] of the logits [..., V] of all but these classes [..., K]."""
    return jax.nn.logsumexp(jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False), axis=-1)


def _as_one(teacher: Likeliest, student) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [..., K + 1] of both, the last of all other classes together; [..., K] where these are all."""
    ids, known = teacher.ids.astype(jnp.int32), teacher.logprobs.astype(jnp.float32)
    chosen = jnp.take_along_axis(student, ids, axis=-1)
    if ids.shape[-1] < student.shape[-1]:
        known = jnp.concatenate([known, teacher.rest[..., None]], axis=-1)
        chosen = jnp.concatenate([chosen, _of_others(student, ids)[..., None]], axis=-1)
    # Of the teacher what was rounded for files adds up to 1 again.
    return jax.nn.log_softmax(known), jax.nn.log_softmax(chosen)
