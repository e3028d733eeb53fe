"""The gradient of a batch, computed whole or in equal parts, one after another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fmjax.objectives.base import Proposal, call_objective
from fmjax.training.trainable import ALL, Trainable


def make_gradient(apply_fn: Callable, objective: Callable, trainable: Trainable = ALL, parts: int = 1) -> Callable:
    """A pure function `(params, batch, key, **fixed) -> (gradient of what trains, sums, proposal)` of a whole batch.

    The loss is the sum over the batch divided by its total weight, or the sum of such quotients where it has several
    terms, however many parts the batch is computed in. `fixed`: carry and other models.
    """
    split, merge = trainable.split, trainable.merge

    def loss_sum(trained, rest, batch, key, fixed, weights=None):
        sums, proposal = call_objective(objective, apply_fn, merge(trained, rest), batch, key, True, **fixed)
        terms = metric_terms(sums["loss"])
        if len(terms) == 1:
            return terms[0][0], (sums, proposal)  # its weight divides the gradient once all of it is there
        weights = weights or [weight for _, weight in terms]
        return sum(total * inverse(weight) for (total, _), weight in zip(terms, weights)), (sums, proposal)

    gradient = jax.grad(loss_sum, has_aux=True)

    def loss_weights(params, batch, key, fixed):
        """Of the terms of the loss. What else the objective computes, nobody reads: the compiler leaves it out."""
        sums, _ = call_objective(objective, apply_fn, params, batch, key, True, **fixed)
        return [weight for _, weight in metric_terms(sums["loss"])]

    def in_parts(trained, rest, batch, key, fixed):
        numbered = (jnp.arange(parts), jax.tree.map(lambda x: split_rows(x, parts), batch))
        first = jax.eval_shape(gradient, trained, rest, jax.tree.map(lambda x: x[0], numbered[1]), key, fixed)
        weights = None
        if len(metric_terms(first[1][0]["loss"])) > 1:
            one = lambda part: loss_weights(merge(trained, rest), part[1], jax.random.fold_in(key, part[0]), fixed)
            weights = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(one, numbered))

        def add(total, part):
            index, rows = part
            grads, (sums, proposal) = gradient(trained, rest, rows, jax.random.fold_in(key, index), fixed, weights)
            return jax.tree.map(jnp.add, total, (grads, sums, proposal.sums)), proposal.rows

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (first[0], first[1][0], first[1][1].sums))
        (grads, sums, statistics), rows = jax.lax.scan(add, zeros, numbered)
        return grads, (sums, Proposal(statistics, jax.tree.map(join_rows, rows)))

    def of_batch(params, batch, key, **fixed):
        whole = gradient if parts == 1 else in_parts
        grads, (sums, proposal) = whole(*split(params), batch, key, fixed)
        terms = metric_terms(sums["loss"])
        if len(terms) == 1:
            scale = inverse(terms[0][1])
            grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
        return grads, sums, proposal

    return of_batch


def split_rows(x, parts: int):
    """[B, ...] -> [parts, B / parts, ...]; part i takes rows i, i + parts, ..., so each device keeps its own rows."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def join_rows(x):
    """What `split_rows` cut, in the order of the batch: [parts, B / parts, ...] -> [B, ...]."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def inverse(weight):
    """1 / weight, and 0 for a batch without any weight."""
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)


def metric_terms(metric) -> tuple:
    """The (sum, weight) pairs of a metric, which is one pair or a tuple of them."""
    return metric if isinstance(metric[0], tuple) else (metric,)
