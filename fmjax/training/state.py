"""The training state, its shapes, its shardings, and its initialisation straight into the shards."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.assemble import init_params, param_spec
from fmjax.parallel.mesh import MeshConfig
from fmjax.parallel.sharding import carry_shardings, like_params, param_shardings
from fmjax.training.trainable import Trainable


@struct.dataclass
class TrainState:
    """Everything that changes from step to step.

    Attributes:
      step: int32 [], batches consumed so far; the next batch is number `step`.
      skipped: int32 [], updates left out because loss, gradient or update was not finite.
      params: tree of float32 arrays.
      opt_state: the optimizer's state.
      ema: moving average of the parameters that train, or None.
      carry: what the objective carries from step to step, or None.
      wide_ema: where `ema` is by a power function, the second, wider one (`fmjax.power_average`), or None.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    carry: Any = None
    wide_ema: Any = None


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """Shapes, logical axes and shardings of a run's state, known without computing anything."""

    shapes: TrainState  # of jax.ShapeDtypeStruct with sharding
    axes: Any  # logical axis names of the parameters that train
    shardings: TrainState
    trainable: Trainable


def make_spec(
    module: nn.Module, inputs: dict, optimizer, mesh: Mesh, config: MeshConfig, ema: bool,
    patterns: Sequence[str] = (), initial_carry=None, weights=None, wide_ema: bool = False, frozen_layers: int = 0,
) -> StateSpec:  # fmt: skip
    """Plans the state for `mesh`.

    Args:
      inputs: keyword arguments of `module.init`, arrays or ShapeDtypeStructs.
      optimizer: function from the tree of logical axes, of what trains, to an `optax.GradientTransformation`.
      ema: whether a moving average is kept.
      patterns: `train.trainable`.
      initial_carry: function from parameters to the carry, or None.
      weights: what becomes of the parameters (`fmjax.assemble.build_weights`), or None.
      wide_ema: whether a second average is kept.
      frozen_layers: `train.frozen_layers`.

    Raises ConfigError where a parameter or a part of the carry cannot be sharded as the table says, or a pattern
    matches nothing.
    """
    param_shapes, axes = param_spec(module, inputs, weights)
    shardings = param_shardings(param_shapes, axes, mesh, config.table, config.replicate)
    trainable = Trainable(patterns, param_shapes, frozen_layers)
    trained, trained_shardings = trainable.split(param_shapes)[0], trainable.split(shardings)[0]
    trained_axes = trainable.split(axes)[0]
    whole = NamedSharding(mesh, PartitionSpec())
    opt_shapes = jax.eval_shape(optimizer(trained_axes).init, trained)
    counter = jax.ShapeDtypeStruct((), jnp.int32)
    carry = split = None
    if initial_carry is not None:
        boxed = jax.eval_shape(initial_carry, param_shapes)
        carry, split = nn.unbox(boxed), carry_shardings(boxed, param_shapes, shardings, mesh, config.table)
    average = lambda tree, kept: tree if kept else None
    shapes = TrainState(
        counter, counter, param_shapes, opt_shapes, average(trained, ema), carry, average(trained, wide_ema)
    )
    state_shardings = TrainState(
        whole, whole, shardings, like_params(opt_shapes, trained, trained_shardings, whole),
        average(trained_shardings, ema), split, average(trained_shardings, wide_ema),
    )  # fmt: skip
    shapes = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, state_shardings)
    return StateSpec(shapes, trained_axes, state_shardings, trainable)


def init_state(
    module: nn.Module, inputs: dict, optimizer: optax.GradientTransformation, key: jax.Array, spec: StateSpec,
    params=None, initial_carry=None, weights=None,
) -> TrainState:  # fmt: skip
    """A fresh state, each shard computed on the device that keeps it: no device ever holds a whole parameter.

    Args:
      params: the module's, to begin with, in their shards, which the state takes over; None draws them with `key`. Of
        those that `weights` keeps in few bits they may be that already.
      initial_carry, weights: as for `make_spec`.
    """

    def draw(key):
        return begin(_drawn(module, inputs, key, weights))

    def begin(params):
        zero = jnp.zeros((), jnp.int32)
        trained, _ = spec.trainable.split(params)
        copied = lambda shapes: None if shapes is None else jax.tree.map(jnp.copy, trained)
        ema, wide_ema = copied(spec.shapes.ema), copied(spec.shapes.wide_ema)
        carry = None if initial_carry is None else nn.unbox(initial_carry(params))
        return TrainState(zero, zero, params, optimizer.init(trained), ema, carry, wide_ema)

    if params is None:
        return jax.jit(draw, out_shardings=spec.shardings)(key)
    if weights is not None:
        attach = jax.jit(weights.attach, out_shardings=spec.shardings.params, donate_argnums=0)
        params = attach(params, jax.random.fold_in(key, 1))
    return jax.jit(begin, out_shardings=spec.shardings, donate_argnums=0)(params)


def draw_params(module: nn.Module, inputs: dict, key: jax.Array, shardings, beneath=None):
    """A module's parameters as `init_state` draws them, before they become weights but for those `beneath` them, in
    their shards."""
    return jax.jit(lambda key: _drawn(module, inputs, key, beneath), out_shardings=shardings)(key)


def _drawn(module, inputs, key, weights):
    arrays = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
    return nn.unbox(init_params(module, key, arrays, weights))
