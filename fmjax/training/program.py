"""The pure parts of a run on a mesh: objective, optimizer, state, steps; from a config, a module and an example."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from fmjax.assemble import build_weights, param_spec
from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import (
    OtherModel,
    call_objective,
    has_carry,
    is_on_policy,
    module_inputs,
    objective_over,
    sides_of,
)
from fmjax.objectives.stateful import with_state
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.parallel.placement import Placement, inference_context
from fmjax.parallel.sharding import batch_sharding, check_batch, path_name
from fmjax.training import OPTIMIZERS
from fmjax.training.other_models import open_models
from fmjax.training.settings import TrainConfig
from fmjax.training.state import StateSpec, TrainState, draw_params, init_state, make_spec
from fmjax.training.step import make_eval_step, make_score_step, make_train_step, with_keys
from fmjax.training.turns import by_turns

log = logging.getLogger("fmjax")

# What a run's random key is folded with, by purpose. Step n of the training takes n itself, which is less than these.
INITIALISATION, EVALUATION, SAMPLES, CARRY, ROLLOUTS = (2**31 - n for n in (1, 2, 3, 4, 5))


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure parts of a run on a mesh: what training, planning, benchmarks and notebooks share.

    Attributes:
      train_step: `(state, batch, key, *others) -> (state, metrics)`, jitted, its state donated.
      eval_step: `(params, batch, key, carry, models) -> sums`, jitted.
      batch_spec: the global batch as `jax.ShapeDtypeStruct`s with shardings.
      score_step: `(params, batch, carry, models) -> (scores, norm)`, jitted, of an on-policy objective with `score`;
        else None.
      rules: pairs (logical axis, mesh axes).
      key: the run's random key; step n uses `fold_in(key, n)`, anything else a key of its own (`key_for`).
      models: those that the objective names, by name; None where it names none.
      weights: what the config makes of the parameters, or None.
      placement: the mesh with its config.
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
    models: dict[str, OtherModel] | None = None
    weights: Any = None
    placement: Placement | None = None
    score_step: Callable | None = None

    @property
    def others(self) -> tuple:
        """Further arguments of the train step: the models, where there are any."""
        return () if self.models is None else (self.models,)

    @property
    def row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of one row of the batch."""
        return {name: jax.ShapeDtypeStruct(one.shape[1:], one.dtype) for name, one in self.batch_spec.items()}

    def key_for(self, purpose: int, number: int | None = None) -> jax.Array:
        """The key of a purpose, of its `number` where it has several."""
        key = jax.random.fold_in(self.key, purpose)
        return key if number is None else jax.random.fold_in(key, number)

    def init(self, params=None) -> TrainState:
        """A fresh state in its shards, with these parameters of the module or drawn from the run's seed."""
        with jax.set_mesh(self.mesh):
            return init_state(
                self.module,
                module_inputs(self.objective, self.batch_spec),
                self.optimizer,
                self.key_for(INITIALISATION),
                self.spec,
                params,
                _initial_carry(self.objective, self.module, self.key),
                self.weights,
            )

    def plain(self) -> tuple[Any, Any, Callable[[], Any]]:
        """(shapes, shardings, a function that draws them) of the module's parameters as they are before `weights`, or
        with what lies beneath these (`fmjax.adapt.lora.LoRA`)."""
        inputs, beneath = module_inputs(self.objective, self.batch_spec), getattr(self.weights, "beneath", None)
        with jax.set_mesh(self.mesh):
            shapes, axes = param_spec(self.module, inputs, beneath)
            shardings = self.placement.shardings(shapes, axes)

        def draw():
            with jax.set_mesh(self.mesh):
                return draw_params(self.module, inputs, self.key_for(INITIALISATION), shardings, beneath)

        return shapes, shardings, draw

    def average(self, state: TrainState):
        """The parameters that evaluation and samples use: the moving average where the run keeps one."""
        if state.ema is None:
            return state.params
        return self.spec.trainable.merge(state.ema, self.spec.trainable.split(state.params)[1])

    def inference(self):
        """The context for generation and scoring with the run's parameters (`inference_context`)."""
        return inference_context(self.mesh, dict(self.rules))

    def lower_train_step(self):
        """The train step lowered for this mesh and batch."""
        with jax.set_mesh(self.mesh):
            key = jax.eval_shape(lambda: self.key)
            return self.train_step.lower(self.spec.shapes, self.batch_spec, key, *self.others)

    def compile_train_step(self):
        """The train step compiled for this mesh and batch, ahead of its first call."""
        with jax.set_mesh(self.mesh):
            return self.lower_train_step().compile()


def make_program(config, module: nn.Module, example: dict[str, Any], devices=None, abstract: bool = False) -> Program:
    """Assembles the steps for `devices` (default: all).

    Args:
      config: a resolved config.
      module: from `fmjax.assemble.build_module`.
      example: one row of data, arrays or `jax.ShapeDtypeStruct`s without a batch axis; of an on-policy objective a
        prompt.
      abstract: only shapes of other models in the step, for devices that are not there.

    Raises ConfigError where batch or parameters do not divide over the mesh, or the objective breaks its protocol.
    """
    train, mesh_config = TrainConfig(**config["train"]), MeshConfig(**config["mesh"])
    objective, optimizer = _objective(config), build(config["optimizer"], OPTIMIZERS)
    weights = build_weights(config)
    if is_on_policy(objective):
        example = objective.collected(example)
    mesh = make_mesh(mesh_config, devices)
    sharding = batch_sharding(mesh, mesh_config.table)
    batch_spec = _batch_spec(train, example, mesh, mesh_config.table, sharding)
    inputs = module_inputs(objective, batch_spec)
    _check_call(module, inputs, objective, example)
    placement = Placement(mesh, mesh_config)
    models = open_models(objective, module, placement, abstract)
    objective = with_state(objective, module)
    key = jax.random.key(config["seed"])
    patterns = train.trainable or (() if weights is None else weights.trainable)
    with jax.set_mesh(mesh):
        spec = make_spec(
            module, inputs, lambda axes: by_turns(optimizer.make(train.steps, axes), sides_of(objective)), mesh,
            mesh_config, train.ema_decay > 0 or bool(train.ema_sigma_rel), patterns,
            _initial_carry(objective, module, key), weights, bool(train.ema_sigma_rel), train.frozen_layers,
        )  # fmt: skip
    rules = tuple(mesh_config.table.items())
    transformation, train_step = _update(config, module.apply, objective, spec, rules)
    score_step = None
    if is_on_policy(objective) and hasattr(objective, "score"):
        options = dict(rules=rules, trainable=spec.trainable, accumulate_steps=train.accumulate_steps)
        score_step = jax.jit(make_score_step(module.apply, objective, **options))
    program = Program(
        module=module,
        objective=objective,
        optimizer=transformation,
        mesh=mesh,
        spec=spec,
        batch_spec=batch_spec,
        batch_sharding=sharding,
        train_step=train_step,
        eval_step=jax.jit(make_eval_step(module.apply, objective, rules=rules)),
        rules=rules,
        key=key,
        models=models,
        weights=weights,
        placement=placement,
        score_step=score_step,
    )
    if has_carry(objective):
        _check_carry(program)
    return program


def _batch_spec(train: TrainConfig, example: dict, mesh: Mesh, table, sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of rows such as `example`. Raises ConfigError where it does not divide over the mesh."""
    check_batch(train.batch_size, mesh, table, "train.batch_size")
    if train.accumulate_steps > 1:
        part = train.batch_size // train.accumulate_steps
        check_batch(part, mesh, table, "train.batch_size / train.accumulate_steps")
    shape = lambda array: jax.ShapeDtypeStruct((train.batch_size, *array.shape), array.dtype, sharding=sharding)
    return {name: shape(array) for name, array in example.items()}


def with_steps(program: Program, config) -> Program:
    """The program of the same config but for `train.steps`: only the schedule differs, and what of the objective goes
    by it, and the step with them."""
    module, objective = program.module, with_state(_objective(config), program.module)
    optimizer, train_step = _update(config, module.apply, objective, program.spec, program.rules)
    return dataclasses.replace(program, objective=objective, optimizer=optimizer, train_step=train_step)


def _objective(config):
    return objective_over(build(config["objective"], OBJECTIVES), TrainConfig(**config["train"]).steps)


def _update(config, apply_fn, objective, spec: StateSpec, rules):
    """(the optimizer's update rule, the jitted train step) of a config."""
    train, optimizer = TrainConfig(**config["train"]), build(config["optimizer"], OPTIMIZERS)
    transformation = by_turns(optimizer.make(train.steps, spec.axes), sides_of(objective))
    train_step = make_train_step(
        apply_fn,
        objective,
        transformation,
        optimizer.make_schedule(train.steps),
        rules=rules,
        trainable=spec.trainable,
        accumulate_steps=train.accumulate_steps,
        ema_decay=train.ema_decay,
        ema_exponents=train.ema_exponents,
        nonfinite=train.nonfinite,
    )
    # Models that this step does not read, but a rollout's scores do, lie in memory all the same: plans count them.
    options = dict(donate_argnums=0, out_shardings=(spec.shardings, None), keep_unused=True)
    return transformation, jax.jit(train_step, **options)


def _check_call(module: nn.Module, inputs: dict[str, Any], objective, row: Mapping[str, Any]) -> None:
    """Raises ConfigError where the module does not take what the objective calls it with; says what of a row it takes
    and is not given, such as what keeps packed documents apart."""
    if not isinstance(inputs, Mapping):
        raise ConfigError(
            f"objective {type(objective).__name__}: `inputs` gives {type(inputs).__name__}; expected a dict of what "
            "the model is called with, by keyword"
        )
    model, taken = type(module).__name__, inspect.signature(type(module).__call__)
    try:
        taken.bind(module, **inputs)
    except TypeError as error:
        raise ConfigError(
            f"objective {type(objective).__name__} calls the model with {', '.join(inputs) or 'nothing'}, and {model} "
            f"takes {', '.join(list(taken.parameters)[1:]) or 'nothing'} ({error}); `train` needs a default"
        ) from None
    if unused := sorted((row.keys() & taken.parameters.keys()) - inputs.keys()):
        name, unused = type(objective).__name__, ", ".join(unused)
        log.warning("objective %s does not give %s what it takes and rows have: %s", name, model, unused)


def _initial_carry(objective, module, key):
    """From parameters to the carry, drawn with the run's key; None where nothing is carried."""
    if not has_carry(objective):
        return None
    return lambda params: objective.initial(module, params, jax.random.fold_in(key, CARRY))


def _check_carry(program: Program) -> None:
    """Raises ConfigError for a carry that cannot be saved, or whose structure, shape or dtype a step would change."""
    name = type(program.objective).__name__
    carry = program.spec.shapes.carry
    named = isinstance(carry, Mapping) or dataclasses.is_dataclass(carry) or hasattr(carry, "_fields")
    if not named or not jax.tree.leaves(carry):
        found = type(carry).__name__ + ("" if jax.tree.leaves(carry) else " of no array")
        raise ConfigError(
            f"objective {name}: `initial` makes a {found}; a carry is a dict or a dataclass of arrays, by whose names "
            "a checkpoint keeps them"
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(carry)[0]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ConfigError(
                f"objective {name}: {path_name(path)!r} of the carry is a random key, which a checkpoint does not "
                "keep; carry its jax.random.key_data, or draw with the key of each call"
            )

    def after(state, batch, key, models):
        with nn.logical_axis_rules(program.rules):
            batch = with_keys(batch, key)
            apply_fn, objective = program.module.apply, program.objective
            _, proposal = call_objective(objective, apply_fn, state.params, batch, key, True, state.carry, models)
            return objective.after(state.carry, proposal, state.params)

    with jax.set_mesh(program.mesh):
        spec = program.spec.shapes
        found = jax.eval_shape(after, spec, program.batch_spec, program.key, program.models)
    before, now = (jax.tree_util.tree_flatten_with_path(tree) for tree in (spec.carry, found))
    if before[1] != now[1]:
        raise ConfigError(f"objective {name}: `after` returns another tree than `initial`: {now[1]}, was {before[1]}")
    for (path, old), (_, new) in zip(before[0], now[0]):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ConfigError(
                f"objective {name}: `after` makes {path_name(path)!r} of the carry {new.dtype} {new.shape}, it was "
                f"{old.dtype} {old.shape}; shapes and dtypes of a carry stay as `initial` makes them"
            )
