"""The one train step and the one evaluation step, for every model and objective."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fmjax.errors import ConfigError
from fmjax.objectives.base import call_objective, has_carry, sides_of, taken_by
from fmjax.parallel.placement import whole
from fmjax.power_average import share
from fmjax.training.gradients import inverse, join_rows, make_gradient, metric_terms, split_rows
from fmjax.training.state import TrainState
from fmjax.training.trainable import ALL, Trainable

ROWS, STRATA = 2**31 - 1, 2**31 - 2
"""Of a step's key, what the rows' keys and their strata are drawn from."""


def make_train_step(
    apply_fn: Callable,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    rules,
    trainable: Trainable = ALL,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    ema_exponents: Sequence[float] = (),
    nonfinite: str = "stop",
) -> Callable:
    """A pure function `(state, batch, key, models=None) -> (state, metrics)`, to be jitted with the state donated.

    The loss is that of the global batch (`make_gradient`), so neither accumulation nor sharding nor packing changes it.
    Each step's randomness is `fold_in(key, state.step)`; of it every row of the batch gets a key of its own.

    Args:
      apply_fn: `module.apply`.
      objective: see `fmjax.objectives.base`; "loss" must be among its metrics.
      optimizer: of the parameters that train; `fmjax.training.turns.by_turns` of it where the objective has sides.
      rules: pairs (logical axis, mesh axes) for the activations' sharding constraints.
      trainable: which parameters train.
      accumulate_steps: the batch is computed in this many equal parts, one after another.
      ema_decay: of the moving average, reached by a ramp (`_ramp`).
      ema_exponents: in its place, those of two averages by power functions, over all steps (`fmjax.power_average`).
      nonfinite: "skip" leaves parameters, optimizer and carry untouched where loss, gradient, update or carry is not
        finite.

    `models` are those that the objective names, as `fmjax.objectives.base.OtherModel`s by name.

    The metrics are float32 scalars: each name's mean, "grad_norm", "update_norm", "learning_rate", "finite", "skipped".
    """
    gradient = make_gradient(apply_fn, objective, trainable, accumulate_steps)

    def update(state: TrainState, grads, proposal):
        """(parameters, optimizer state, average, carry) after the step, its norm, and whether all of it is finite."""
        trained, rest = trainable.split(state.params)
        turns = {"moves": objective.moves(state.carry)} if sides_of(objective) else {}
        updates, opt_state = optimizer.update(grads, state.opt_state, trained, **turns)
        # A finite gradient may still make an update that overflows, and with it every checkpoint from here on.
        norm = optax.tree.norm(updates)
        trained = optax.apply_updates(trained, updates)
        params, carry, ema, finite = trainable.merge(trained, rest), state.carry, state.ema, jnp.isfinite(norm)
        if hasattr(objective, "bounded"):
            trained, _ = trainable.split(objective.bounded(params))
            params = trainable.merge(trained, rest)
        if has_carry(objective):
            carry = objective.after(carry, proposal, params)
            for leaf in jax.tree.leaves(carry):
                if jnp.issubdtype(leaf.dtype, jnp.floating):
                    finite &= jnp.isfinite(leaf).all()
        if ema is not None and not ema_exponents:
            ema = optax.incremental_update(trained, ema, 1.0 - _ramp(ema_decay, state.step - state.skipped))
        return (params, opt_state, ema, carry), norm, finite

    def train_step(state: TrainState, batch, key, models=None):
        key = jax.random.fold_in(key, state.step)
        with nn.logical_axis_rules(rules):
            batch = with_keys(batch, key)
            grads, sums, proposal = gradient(state.params, batch, key, carry=state.carry, models=models)
            new, update_norm, finite = update(state, grads, proposal)
        metrics, grad_norm, skipped = reduced(objective, sums), optax.tree.norm(grads), state.skipped
        finite &= jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        if nonfinite == "skip":
            old = (state.params, state.opt_state, state.ema, state.carry)
            new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
            skipped = skipped + (1 - finite.astype(jnp.int32))
        params, opt_state, ema, carry = new
        wide_ema = state.wide_ema
        if ema_exponents:
            # Of a step that was left out it is what the parameters stayed.
            trained, _ = trainable.split(params)
            ema, wide_ema = (
                optax.incremental_update(trained, average, share(state.step + 1, gamma))
                for average, gamma in zip((ema, wide_ema), ema_exponents)
            )
        metrics |= {
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "learning_rate": schedule(state.step - state.skipped),
            "finite": finite,
            "skipped": skipped,
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, skipped, params, opt_state, ema, carry, wide_ema), metrics

    return train_step


def make_eval_step(apply_fn: Callable, objective: Callable, *, rules) -> Callable:
    """A pure function `(params, batch, key, carry=None, models=None) -> {name: (sum, weight)}`, or several such pairs a
    name as in `make_train_step`; sums of batches may be added up."""

    def eval_step(params, batch, key, carry=None, models=None):
        with nn.logical_axis_rules(rules):
            batch = with_keys(batch, key)
            sums, _ = call_objective(objective, apply_fn, params, batch, key, False, carry=carry, models=models)
            return sums

    return eval_step


def make_score_step(
    apply_fn: Callable, objective, *, rules, trainable: Trainable = ALL, accumulate_steps: int = 1
) -> Callable:
    """A pure function `(params, batch, carry=None, models=None) -> (what the objective's `score` makes, float32 [])`,
    whole on every device.

    It computes a gradient, whose norm is the number, and goes through the batch in the parts of a train step: XLA fuses
    a forward pass otherwise where a backward pass reads its values, and rounds otherwise. So on one device a train step
    with the same parameters finds the same numbers, bit by bit; without the gradient they are 1e-6 apart in float32.
    """

    def score_step(params, batch, carry=None, models=None):
        trained, rest = trainable.split(params)
        taken = taken_by(objective, carry, models)

        def part(rows):
            score = lambda trained: objective.score(apply_fn, trainable.merge(trained, rest), rows, **taken)
            arrays, pull = jax.vjp(score, trained)
            return arrays, optax.tree.norm(pull(arrays))

        with nn.logical_axis_rules(rules):
            if accumulate_steps == 1:
                return whole(part(batch))
            arrays, norms = jax.lax.map(part, jax.tree.map(lambda x: split_rows(x, accumulate_steps), batch))
            return whole((jax.tree.map(join_rows, arrays), norms.sum()))

    return score_step


def with_keys(batch: dict, key) -> dict:
    """The batch with `keys` [B], one a row, drawn from `key`, and `strata` float32 [B], numbers in [0, 1) that are
    spread evenly over the rows; without a key as it is."""
    if key is None:
        return batch
    rows = len(next(iter(batch.values())))
    # The parts of the batch have keys 0, 1, ...
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, ROWS), jnp.arange(rows))
    # The golden ratio's multiples: evenly spread whatever the number of rows.
    strata = jnp.mod(jax.random.uniform(jax.random.fold_in(key, STRATA)) + jnp.arange(rows) * 0.6180339887498949, 1.0)
    return batch | {"keys": keys, "strata": strata}


def _ramp(decay: float, updates):
    """The moving average's decay after so many updates: min(decay, (1 + t) / (10 + t)), float32 [].

    So the average forgets the initialisation early, whatever the decay. It is the rule of TensorFlow's
    `tf.train.ExponentialMovingAverage` (`num_updates`).
    """
    count = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(decay, (1.0 + count) / (10.0 + count))


def reduced(objective, sums) -> dict[str, jax.Array]:
    """The metrics of summed pairs: each name's mean, or what the objective's own `reduce` makes of them.

    Raises ConfigError where that is no number a name, or "loss" is not among them.
    """
    if hasattr(objective, "reduce"):
        metrics = dict(objective.reduce(sums))
        wrong = [name for name, value in metrics.items() if jnp.shape(value)]
        if wrong or "loss" not in metrics:
            found = f"an array of shape {jnp.shape(metrics[wrong[0]])} as {wrong[0]!r}" if wrong else "no 'loss'"
            raise ConfigError(f"objective {type(objective).__name__}: `reduce` made {found}; expected a number a name")
        return metrics
    means = {}
    for name, metric in sums.items():
        terms = metric_terms(metric)
        mean = sum(total * inverse(weight) for total, weight in terms)
        # A loss without any weight has nothing to learn from; of anything else the mean of nothing is not known.
        means[name] = mean if name == "loss" else jnp.where(sum(weight for _, weight in terms) > 0, mean, jnp.nan)
    return means
