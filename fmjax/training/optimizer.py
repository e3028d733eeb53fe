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

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate = {self.learning_rate} must be positive")
        for name in DECAY_RATES:
            value = getattr(self, name, None)
            if value is not None and not 0.0 <= value < 1.0:
                raise ConfigError(f"optimizer.{name} = {value} must be in [0, 1)")
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"optimizer.no_decay: {pattern!r} is not a regular expression ({error})") from None
        for name in ("clip_norm", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optimizer.{name} = {getattr(self, name)} must not be negative")

    def make_schedule(self, total_steps: int) -> optax.Schedule:
        """See `OptimizerPlugin`."""
        return (self.schedule or Constant()).make(self.learning_rate, total_steps)

    def make(self, total_steps: int, axes) -> optax.GradientTransformation:
        """See `OptimizerPlugin`."""
        rule = self._rule(self.make_schedule(total_steps), decay_mask(axes, self.no_decay), axes)
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
    """Second moments factored into row and column means (Shazeer & Stern 2018)."""

    decay_rate: float = 0.8  # exponent of the second moment's decay, 1 - count**-decay_rate
    momentum: float | None = None  # decay of a first moment; None = none is kept
    min_dim_size_to_factor: int = 128  # matrices with a smaller side are not factored
    multiply_by_parameter_scale: bool = True  # whether updates are relative to a parameter's own size

    def _rule(self, schedule, mask, axes):
        # optax decays by weight_decay_rate alone; scaling with the learning rate keeps the meaning of AdamW's.
        decay = optax.add_decayed_weights(self.weight_decay, mask) if self.weight_decay else optax.identity()
        return optax.chain(
            optax.adafactor(
                None,
                min_dim_size_to_factor=self.min_dim_size_to_factor,
                decay_rate=self.decay_rate,
                multiply_by_parameter_scale=self.multiply_by_parameter_scale,
                momentum=self.momentum,
            ),
            optax.scale(-1.0),
            decay,
            optax.scale_by_learning_rate(schedule),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices, AdamW for the rest (Jordan et al. 2024).

    Embeddings and the output head (any parameter with a `vocab` or `position` axis) count as the rest. Both kinds of
    momentum look ahead (Nesterov).
    """

    beta: float = 0.95  # decay of the momentum
    ns_steps: int = 5  # iterations of Newton-Schulz
    # Scales updates to AdamW's usual size (Liu et al. 2025); None: by sqrt(max(1, out / in)).
    consistent_rms: float | None = 0.2
    adam_learning_rate: float | None = None  # peak for the rest; None = learning_rate
    adam_b1: float = 0.9  # b1 of AdamW, for the rest
    adam_b2: float = 0.95  # b2 of AdamW, for the rest

    def _rule(self, schedule, mask, axes):
        dimensions = jax.tree.map(_muon_dimensions, axes, is_leaf=_is_names)
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


def _muon_dimensions(names):
    matrix = len(_own_axes(names)) == 2 and not {"vocab", "position"} & set(names)
    return optax.contrib.MuonDimensionNumbers(len(names) - 2, len(names) - 1) if matrix else None
