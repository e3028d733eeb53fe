"""The training state, its shapes, its shardings, and its initialisation straight into the shards."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.assemble import init_params, param_spec
from fmjax.parallel.mesh import MeshConfig
from fmjax.parallel.sharding import like_params, param_shardings


@struct.dataclass
class TrainState:
    """Everything that changes from step to step.

    Attributes:
      step: int32 [], batches consumed so far; the next batch is number `step`.
      skipped: int32 [], updates left out because loss, gradient or update was not finite.
      params: tree of float32 arrays.
      opt_state: the optimizer's state.
      ema: moving average of `params`, or None.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """Shapes, logical axes and shardings of a run's state, known without computing anything."""

    shapes: TrainState  # of jax.ShapeDtypeStruct with sharding
    axes: Any  # logical axis names of the parameters
    shardings: TrainState


def make_spec(module: nn.Module, inputs: dict, optimizer, mesh: Mesh, config: MeshConfig, ema: bool) -> StateSpec:
    """Plans the state for `mesh`.

    Args:
      inputs: keyword arguments of `module.init`, arrays or ShapeDtypeStructs.
      optimizer: function from the tree of logical axes to an `optax.GradientTransformation`.

    Raises ConfigError where a parameter cannot be sharded as the table says.
    """
    param_shapes, axes = param_spec(module, inputs)
    shardings = param_shardings(param_shapes, axes, mesh, config.table, config.replicate)
    whole = NamedSharding(mesh, PartitionSpec())
    opt_shapes = jax.eval_shape(optimizer(axes).init, param_shapes)
    counter = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(counter, counter, param_shapes, opt_shapes, param_shapes if ema else None)
    state_shardings = TrainState(
        whole, whole, shardings, like_params(opt_shapes, param_shapes, shardings, whole), shardings if ema else None
    )
    shapes = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, state_shardings)
    return StateSpec(shapes, axes, state_shardings)


def init_state(
    module: nn.Module,
    inputs: dict,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    spec: StateSpec,
    params=None,
) -> TrainState:
    """A fresh state, each shard computed on the device that keeps it: no device ever holds a whole parameter.

    Args:
      params: what to begin with, in their shards, which the state takes over; None draws them with `key`.
    """

    def draw(key):
        arrays = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
        return begin(nn.unbox(init_params(module, key, arrays)))

    def begin(params):
        zero = jnp.zeros((), jnp.int32)
        ema = jax.tree.map(jnp.copy, params) if spec.shapes.ema is not None else None
        return TrainState(zero, zero, params, optimizer.init(params), ema)

    if params is None:
        return jax.jit(draw, out_shardings=spec.shardings)(key)
    return jax.jit(begin, out_shardings=spec.shardings, donate_argnums=0)(params)
