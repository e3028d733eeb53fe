"""The pure parts of a run on a mesh: objective, optimizer, state and steps, made from a config, a module and an example."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh, NamedSharding

from fmjax.config import build
from fmjax.objectives import OBJECTIVES
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.parallel.placement import inference_context
from fmjax.parallel.sharding import batch_sharding, check_batch
from fmjax.training import OPTIMIZERS
from fmjax.training.settings import TrainConfig
from fmjax.training.state import StateSpec, TrainState, init_state, make_spec
from fmjax.training.step import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure parts of a run on a mesh: what training, planning, benchmarks and notebooks share.

    Attributes:
      train_step: `(state, batch, key) -> (state, metrics)`, jitted, its state donated.
      eval_step: `(params, batch, key) -> sums`, jitted.
      batch_spec: the global batch as `jax.ShapeDtypeStruct`s with shardings.
      rules: pairs (logical axis, mesh axes).
      key: the run's random key; step n uses `fold_in(key, n)`.
    """

    module: nn.Module
    objective: Any
    optimizer: optax.GradientTransformation
    mesh: Mesh
    spec: StateSpec
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    batch_sharding: NamedSharding
    train_step: Callable
    eval_step: Callable
    rules: tuple
    key: jax.Array

    def init(self, params=None) -> TrainState:
        """A fresh state in its shards, with these parameters or drawn from the run's seed."""
        with jax.set_mesh(self.mesh):
            inputs, key = self.objective.inputs(self.batch_spec), jax.random.fold_in(self.key, 2**31 - 1)
            return init_state(self.module, inputs, self.optimizer, key, self.spec, params)

    def inference(self):
        """The context for generation and scoring with the run's parameters (`inference_context`)."""
        return inference_context(self.mesh, dict(self.rules))

    def compile_train_step(self):
        """The train step compiled for this mesh and batch, ahead of its first call."""
        with jax.set_mesh(self.mesh):
            key = jax.ShapeDtypeStruct(self.key.shape, self.key.dtype)
            return self.train_step.lower(self.spec.shapes, self.batch_spec, key).compile()


def make_program(config, module: nn.Module, example: dict[str, Any], devices=None) -> Program:
    """Assembles the steps for `devices` (default: all).

    Args:
      config: a resolved config.
      module: from `fmjax.assemble.build_module`.
      example: one row of data, arrays or `jax.ShapeDtypeStruct`s without a batch axis.

    Raises ConfigError where batch or parameters do not divide over the mesh.
    """
    train, mesh_config = TrainConfig(**config["train"]), MeshConfig(**config["mesh"])
    objective, optimizer = build(config["objective"], OBJECTIVES), build(config["optimizer"], OPTIMIZERS)
    mesh, table = make_mesh(mesh_config, devices), mesh_config.table
    check_batch(train.batch_size, mesh, table, "train.batch_size")
    if train.accumulate_steps > 1:
        part = train.batch_size // train.accumulate_steps
        check_batch(part, mesh, table, "train.batch_size / train.accumulate_steps")
    sharding = batch_sharding(mesh, table)
    batch_spec = {
        name: jax.ShapeDtypeStruct((train.batch_size, *array.shape), array.dtype, sharding=sharding)
        for name, array in example.items()
    }
    inputs = objective.inputs(batch_spec)
    with jax.set_mesh(mesh):
        spec = make_spec(
            module, inputs, lambda axes: optimizer.make(train.steps, axes), mesh, mesh_config, train.ema_decay > 0
        )
    transformation = optimizer.make(train.steps, spec.axes)
    rules = tuple(table.items())
    train_step = make_train_step(
        module.apply,
        objective,
        transformation,
        optimizer.make_schedule(train.steps),
        rules=rules,
        accumulate_steps=train.accumulate_steps,
        ema_decay=train.ema_decay,
        nonfinite=train.nonfinite,
    )
    return Program(
        module=module,
        objective=objective,
        optimizer=transformation,
        mesh=mesh,
        spec=spec,
        batch_spec=batch_spec,
        batch_sharding=sharding,
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(spec.shardings, None)),
        eval_step=jax.jit(make_eval_step(module.apply, objective, rules=rules)),
        rules=rules,
        key=jax.random.key(config["seed"]),
    )
