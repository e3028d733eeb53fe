"""The one train step and the one evaluation step, for every model and objective."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fmjax.training.state import TrainState


def make_train_step(
    apply_fn: Callable,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    rules,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    nonfinite: str = "stop",
) -> Callable:
    """A pure function `(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    The loss is the sum over the global batch divided by its total weight, so neither accumulation nor sharding nor
    packing changes it; a loss of several terms is the sum of such quotients. Each step's randomness is
    `fold_in(key, state.step)`.

    Args:
      apply_fn: `module.apply`.
      objective: `(apply_fn, params, batch, key, train) -> {name: (sum, weight)}` with "loss" among the names; or
        {name: ((sum, weight), ...)}, a metric of several terms whose means are added. Weights must not depend on the
        parameters.
      rules: pairs (logical axis, mesh axes) for the activations' sharding constraints.
      accumulate_steps: the batch is computed in this many equal parts, one after another.
      nonfinite: "skip" leaves parameters and optimizer untouched where loss, gradient or update is not finite.

    The metrics are float32 scalars: each name's mean, "grad_norm", "update_norm", "learning_rate", "finite", "skipped".
    """

    def loss_sum(params, batch, key, weights=None):
        sums = objective(apply_fn, params, batch, key, True)
        terms = metric_terms(sums["loss"])
        if len(terms) == 1:
            return terms[0][0], sums  # its weight divides the gradient once all of it is there
        weights = weights or [weight for _, weight in terms]
        return sum(total * _inverse(weight) for (total, _), weight in zip(terms, weights)), sums

    gradient = jax.grad(loss_sum, has_aux=True)

    def loss_weights(params, batch, key):
        """Of the terms of the loss. What else the objective computes, nobody reads: the compiler leaves it out."""
        return [weight for _, weight in metric_terms(objective(apply_fn, params, batch, key, True)["loss"])]

    def accumulate(params, batch, key):
        if accumulate_steps == 1:
            return gradient(params, batch, key)
        parts = jax.tree.map(lambda x: _split(x, accumulate_steps), batch)
        first = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts), key)
        several = len(metric_terms(first[1]["loss"])) > 1
        weights = loss_weights(params, batch, key) if several else None

        def add(total, part):
            index, rows = part
            out = gradient(params, rows, jax.random.fold_in(key, index), weights)
            return jax.tree.map(jnp.add, total, out), None

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate_steps), parts))
        return total

    def train_step(state: TrainState, batch, key):
        with nn.logical_axis_rules(rules):
            grads, sums = accumulate(state.params, batch, jax.random.fold_in(key, state.step))
        terms = metric_terms(sums["loss"])
        if len(terms) == 1:
            scale = _inverse(terms[0][1])
            grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
        grad_norm = optax.tree.norm(grads)
        metrics = _means(sums)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # A finite gradient may still make an update that overflows, and with it every checkpoint from here on.
        update_norm = optax.tree.norm(updates)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
        skipped = state.skipped
        if nonfinite == "skip":
            keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
            params, opt_state, ema = keep((params, opt_state, ema), (state.params, state.opt_state, state.ema))
            skipped = skipped + (1 - finite.astype(jnp.int32))
        metrics |= {
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "learning_rate": schedule(state.step - state.skipped),
            "finite": finite,
            "skipped": skipped,
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, skipped, params, opt_state, ema), metrics

    return train_step


def make_eval_step(apply_fn: Callable, objective: Callable, *, rules) -> Callable:
    """A pure function `(params, batch, key) -> {name: (sum, weight)}`, or several such pairs a name as in
    `make_train_step`; sums of batches may be added up."""

    def eval_step(params, batch, key):
        with nn.logical_axis_rules(rules):
            return objective(apply_fn, params, batch, key, False)

    return eval_step


def _split(x, parts: int):
    """[B, ...] -> [parts, B / parts, ...]; part i takes rows i, i + parts, ..., so each device keeps its own rows."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _inverse(weight):
    """1 / weight, and 0 for a batch without any weight."""
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)


def metric_terms(metric) -> tuple:
    """The (sum, weight) pairs of a metric, which is one pair or a tuple of them."""
    return metric if isinstance(metric[0], tuple) else (metric,)


def _means(sums) -> dict[str, jax.Array]:
    return {
        name: sum(total * _inverse(weight) for total, weight in metric_terms(metric)) for name, metric in sums.items()
    }
