"""Optimizers by name: dataclasses of hyperparameters that make an `optax.GradientTransformation`."""

import dataclasses
import re
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp
import optax

from fmjax.errors import ConfigError
from fmjax.parallel.sharding import path_name
from fmjax.training import SCHEDULES
from fmjax.training.layer_decay import scale_by_layer
from fmjax.training.schedule import Constant

# Axes along which a parameter is a stack of independent tensors, so not one of a matrix's two.
STACK_AXES = ("layers",)

# Fields of the optimizers that weight the past in a moving average.
DECAY_RATES = ("b1", "b2", "beta", "adam_b1", "adam_b2", "momentum")


class OptimizerPlugin(Protocol):
    """What every optimizer has."""

    def make_schedule(self, total_steps: int) -> optax.Schedule:
        """The learning rate as a function of the update count."""

    def make(self, total_steps: int, axes: Any) -> optax.GradientTransformation:
        """The update rule.

        Args:
          total_steps: updates in the whole run, for the schedule.
          axes: tree of logical axis names of the parameters (`parallel.sharding.logical_axes`).
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What the optimizers here share: the schedule, clipping, and which parameters decay.

    Weight decay applies to matrices (two or more axes besides the stacked layers), so not to biases and norms.
    """

    learning_rate: float  # peak of the schedule
    schedule: Annotated[dict, SCHEDULES] | None = None  # how the rate goes over the run; None = constant
    clip_norm: float = 1.0  # gradients are scaled down to this global norm; 0 = no clipping
    weight_decay: float = 0.0  # share of a decaying parameter taken off per update, times the learning rate
    no_decay: tuple[str, ...] = ()  # regular expressions on parameter names that do not decay either
    # A layer's updates are this times those of the layer above it (`fmjax.training.layer_decay`); 1 = none.
    layer_decay: float = 1.0
    layer_inputs: tuple[str, ...] = ("embedding|class_",)  # with layer_decay: patterns of what is below layer 0

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate = {self.learning_rate} must be positive")
        for name in DECAY_RATES:
            value = getattr(self, name, None)
            if value is not None and not 0.0 <= value < 1.0:
                raise ConfigError(f"optimizer.{name} = {value} must be in [0, 1)")
        for field in ("no_decay", "layer_inputs"):
            for pattern in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(f"optimizer.{field}: {pattern!r} is not a regular expression ({error})") from None
        if not 0.0 < self.layer_decay <= 1.0:
            raise ConfigError(f"optimizer.layer_decay = {self.layer_decay} must be above 0 and at most 1")
        for name in ("clip_norm", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optimizer.{name} = {getattr(self, name)} must not be negative")

    def make_schedule(self, total_steps: int) -> optax.Schedule:
        """See `OptimizerPlugin`."""
        return (self.schedule or Constant()).make(self.learning_rate, total_steps)

    def make(self, total_steps: int, axes) -> optax.GradientTransformation:
        """See `OptimizerPlugin`."""
        rule = self._rule(self.make_schedule(total_steps), decay_mask(axes, self.no_decay), axes)
        if self.layer_decay != 1.0:
            rule = optax.chain(rule, scale_by_layer(self.layer_decay, self.layer_inputs))
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), rule) if self.clip_norm else rule

    def _rule(self, schedule, mask, axes) -> optax.GradientTransformation:
        raise TypeError(f"{type(self).__name__} defines no update rule")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    b1: float = 0.9  # decay of the first moment's average
    b2: float = 0.95  # decay of the second moment's average
    eps: float = 1e-8  # added to the root of the second moment
    mu_dtype: str | None = None  # type of the first moment; None = that of the parameters

    def __post_init__(self):
        super().__post_init__()
        try:
            known = self.mu_dtype is None or jnp.issubdtype(jnp.dtype(self.mu_dtype), jnp.floating)
        except TypeError:
            known = False
        if not known:
            raise ConfigError(f"optimizer.mu_dtype = {self.mu_dtype!r} must be a float type such as 'bfloat16'")

    def _rule(self, schedule, mask, axes):
        return optax.adamw(
            schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=mask, mu_dtype=self.mu_dtype
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Sign of an interpolated momentum (Chen et al. 2023)."""

    b1: float = 0.9  # weight of the momentum in the update's sign
    b2: float = 0.99  # decay of the momentum

    def _rule(self, schedule, mask, axes):
        return optax.lion(schedule, self.b1, self.b2, weight_decay=self.weight_decay, mask=mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Second moments factored into row and column means (Shazeer & Stern 2018), of each layer by itself."""

    decay_rate: float = 0.8  # exponent of the second moment's decay, 1 - count**-decay_rate
    momentum: float | None = None  # decay of a first moment; None = none is kept
    min_dim_size_to_factor: int = 128  # matrices with a smaller side are not factored
    multiply_by_parameter_scale: bool = True  # whether updates are relative to a parameter's own size

    def _rule(self, schedule, mask, axes):
        # The parts and the state of `optax.adafactor`, which takes a stack of layers for one parameter.
        steps = [
            _factored_rms(axes, decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor),
            _each_layer(optax.clip_by_block_rms(1.0), axes),
        ]
        if self.multiply_by_parameter_scale:
            steps.append(_each_layer(optax.scale_by_param_block_rms(), axes))
        if self.momentum is not None:
            steps.append(optax.ema(self.momentum, debias=False))
        # optax decays by weight_decay_rate alone; scaling with the learning rate keeps the meaning of AdamW's.
        decay = optax.add_decayed_weights(self.weight_decay, mask) if self.weight_decay else optax.identity()
        return optax.chain(
            optax.chain(*steps, optax.scale(-1.0)),
            optax.scale(-1.0),
            decay,
            optax.scale_by_learning_rate(schedule),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices, AdamW for the rest (Jordan et al. 2024).

    A hidden matrix has two axes besides the stacked layers, both named and none of them `vocab` or `position`. So
    embeddings, heads, the embedding of patches, and whatever a module does not annotate count as the rest. Both kinds
    of momentum look ahead (Nesterov).

    Raises ConfigError where no parameter is a hidden matrix.
    """

    beta: float = 0.95  # decay of the momentum
    ns_steps: int = 5  # iterations of Newton-Schulz
    # Scales updates to AdamW's usual size (Liu et al. 2025); None: by sqrt(max(1, out / in)).
    consistent_rms: float | None = 0.2
    adam_learning_rate: float | None = None  # peak for the rest; None = learning_rate
    adam_b1: float = 0.9  # b1 of AdamW, for the rest
    adam_b2: float = 0.95  # b2 of AdamW, for the rest

    def _rule(self, schedule, mask, axes):
        dimensions = muon_dimensions(axes)
        ratio = (self.adam_learning_rate or self.learning_rate) / self.learning_rate
        return optax.contrib.muon(
            schedule,
            ns_steps=self.ns_steps,
            beta=self.beta,
            weight_decay=self.weight_decay,
            weight_decay_mask=mask,
            adam_b1=self.adam_b1,
            adam_b2=self.adam_b2,
            adam_weight_decay=self.weight_decay,
            adam_learning_rate=lambda count: ratio * schedule(count),
            muon_weight_dimension_numbers=lambda params: dimensions,
            consistent_rms=self.consistent_rms,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9  # decay of the momentum; 0 = none
    nesterov: bool = False  # whether the momentum looks ahead

    def _rule(self, schedule, mask, axes):
        decay = optax.add_decayed_weights(self.weight_decay, mask) if self.weight_decay else optax.identity()
        return optax.chain(decay, optax.sgd(schedule, self.momentum or None, self.nesterov))


def decay_mask(axes, no_decay: tuple[str, ...] = ()) -> Any:
    """True for parameters that decay: at least two axes besides stacked layers, and no pattern of `no_decay` matches.

    Raises ConfigError when a pattern matches no parameter, so that a misspelt one is not silently ignored.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(axes, is_leaf=_is_names)
    names = [path_name(path) for path, _ in flat]
    for pattern in no_decay:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(f"optimizer.no_decay: {pattern!r} matches no parameter; there are: {', '.join(names)}")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: len(_own_axes(leaf)) >= 2 and not any(re.search(p, path_name(path)) for p in no_decay),
        axes,
        is_leaf=_is_names,
    )


def _is_names(leaf) -> bool:
    return isinstance(leaf, tuple)


def _own_axes(names) -> list:
    return [n for n in names if n not in STACK_AXES]


def muon_dimensions(axes) -> Any:
    """For a tree of logical axis names: which dimensions make a hidden matrix, or None for what is none (see `Muon`).

    Raises ConfigError where there is no hidden matrix.
    """

    def dimensions(names):
        own = _own_axes(names)
        hidden = len(own) == 2 and not {None, "vocab", "position"} & set(own)
        return optax.contrib.MuonDimensionNumbers(len(names) - 2, len(names) - 1) if hidden else None

    found = jax.tree.map(dimensions, axes, is_leaf=_is_names)
    if not jax.tree.leaves(found):
        raise ConfigError(
            "optimizer.name = 'muon', but no parameter is a hidden matrix: name both of its axes with "
            "nn.with_logical_partitioning, or take 'adamw'"
        )
    return found


def _map_layers(function, names, in_axes=0, out_axes=0):
    """`function` of one layer, mapped over the stacked axes that lead `names`."""
    for name in names:
        if name not in STACK_AXES:
            break
        function = jax.vmap(function, in_axes, out_axes)
    return function


def _each_layer(rule: optax.GradientTransformation, axes) -> optax.GradientTransformation:
    """A rule without state, applied to each layer of a stacked parameter by itself."""

    def update(updates, state, params):
        one = lambda u, p: rule.update(u, state, p)[0]
        return jax.tree.map(lambda u, p, names: _map_layers(one, names)(u, p), updates, params, axes), state

    return optax.GradientTransformation(rule.init, update)


def _factored_rms(axes, **options) -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms` of each layer by itself; its statistics have the stacked axes in front."""
    rule = optax.scale_by_factored_rms(**options)

    def stacked(param, names):
        """Which parts of a parameter's state have stacked axes: the others are optax's placeholders of one element."""
        layer = jax.ShapeDtypeStruct(param.shape[len(names) - len(_own_axes(names)) :], param.dtype)
        factored = jax.eval_shape(rule.init, layer).v.shape != layer.shape
        return optax.FactoredState(None, 0 if factored else None, 0 if factored else None, None if factored else 0)

    def init(params):
        one = lambda p, names: _map_layers(rule.init, names, 0, stacked(p, names))(p)
        return gather(jax.tree.map(one, params, axes), jnp.zeros([], jnp.int32))

    def update(updates, state, params):
        def one(update, v_row, v_col, v, param, names):
            layout = stacked(param, names)
            return _map_layers(rule.update, names, (0, layout, 0), (0, layout))(
                update, optax.FactoredState(state.count, v_row, v_col, v), param
            )

        pairs = jax.tree.map(one, updates, state.v_row, state.v_col, state.v, params, axes)
        is_pair = lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], optax.FactoredState)
        first, states = (jax.tree.map(lambda pair: pair[i], pairs, is_leaf=is_pair) for i in (0, 1))
        return first, gather(states, optax.safe_increment(state.count))

    def gather(states, count):
        part = lambda name: jax.tree.map(lambda s: getattr(s, name), states, is_leaf=_is_factored)
        return optax.FactoredState(count, part("v_row"), part("v_col"), part("v"))

    return optax.GradientTransformation(init, update)


def _is_factored(x) -> bool:
    return isinstance(x, optax.FactoredState)
