"""The protocol of an objective: what is minimised, as a pure function, and what else it may bring.

An objective is a frozen dataclass whose fields are the keys of the config's `objective` section, with two methods:

    inputs(self, batch) -> dict
        What the module is called with, by keyword; also for its initialisation.

    __call__(self, apply_fn, params, batch, key, train) -> {name: (sum, weight)}
        A metric is its sum over the batch's rows and the weight to divide it by, once all parts of all batches are
        added up: so neither accumulation nor sharding nor packing changes it. One with several terms of different
        weights is a tuple of such pairs, whose means are added: the masked language model's loss a masked token and
        its next-sentence loss a row, say. "loss" is what training minimises. Weights must not depend on `params`.

`apply_fn` is `module.apply`, `train` a Python bool. `batch` has the arrays of the data, each with a leading batch axis,
and `batch["keys"]` [B], a random key a row: what is drawn with it does not depend on how the batch is cut into parts or
over devices (`per_row` draws so). `key` is one key for the part at hand, for dropout. An evaluation's last batch is
filled up with rows of zeros, whose `loss_weights` are 0: an objective whose rows meet each other (negatives within the
batch) must leave rows of weight 0 out.

Optional parts, each there if the method is:

    initial(self, module, params, key) -> carry
        What the objective needs from step to step and no gradient trains: momentum encoders, queues, codebooks, counters.
        A leaf may be boxed with logical axis names (`nn.LogicallyPartitioned(value, names)`); one whose path ends as a
        parameter's does, with its shape, is split as the parameter is; any other is whole on every device.
    after(self, carry, proposal, params) -> carry
        Once per update, with the new parameters; shapes and dtypes stay. With `initial`, `__call__` takes `carry=` and
        returns (sums, `Proposal`). Evaluation reads the carry and drops the proposal.
    models(self) -> {name: path}
        Other models in the step, loaded as `fmjax.load` does on the run's mesh; `__call__` takes
        `models={name: OtherModel}`. They are neither trained nor saved with the run; their content is compared at resume.
    check_models(self, module, models) -> None
        Raises ConfigError where these models ({name: OtherModel}, perhaps of shapes alone) do not fit the module.
    collect(self, model, prompts, key) -> rows and collected(self, prompt) -> row
        On-policy training: every `rollout_steps` steps (a field) `collect` makes the rows that these steps train on, with
        the model as it then is (`fmjax.inference.model.Model`), from `num_prompts(rows)` rows of the data; it may
        compute on the host. Rows are dicts of arrays [rollout_steps * batch size, ...], a pure function of the arguments.
        `collected` tells the arrays of one row, as `jax.ShapeDtypeStruct`s, from those of a prompt.
    reduce(self, sums) -> {name: value}
        Metrics that are no means of their sums: all of the objective's metrics from its summed (sum, weight) pairs.
    check(self, module, data) -> None
        Raises ConfigError where the objective does not fit the module or the data.
    can_sample(self, module, data) -> bool and sample(self, model, key) -> list
        Values drawn from the model on the way: texts, or those of the modality that the attribute `makes` names.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from flax import struct

Sums = Mapping[str, Any]
"""Name to (sum, weight), or to a tuple of such pairs."""


@struct.dataclass
class Proposal:
    """What a call proposes for the carry.

    Attributes:
      sums: a tree of statistics; those of the parts of a batch are added up.
      rows: a tree of arrays [B, ...]; those of the parts come in the order of the batch's rows.
    """

    sums: Any = None
    rows: Any = None


@struct.dataclass
class OtherModel:
    """A model in the step that is not trained: `other.apply(tokens=..., method=...)`."""

    module: Any = struct.field(pytree_node=False)
    params: Any = None

    def apply(self, *args, **kwargs):
        """The module applied to its parameters."""
        return self.module.apply({"params": self.params}, *args, **kwargs)


class Objective(Protocol):
    """What every objective has; the module's docstring tells all parts."""

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]: ...

    def __call__(self, apply_fn: Callable, params, batch: Mapping[str, Any], key, train: bool) -> Sums: ...


def has_carry(objective) -> bool:
    """Whether an objective carries something from step to step."""
    return hasattr(objective, "initial")


def evaluate(objective, apply_fn, params, batch, key, train: bool, carry=None, models=None) -> tuple[Sums, Proposal]:
    """(sums, proposal) of a call with what the objective takes; the proposal of one without a carry is empty."""
    taken = {}
    if has_carry(objective):
        taken["carry"] = carry
    if hasattr(objective, "models"):
        taken["models"] = models
    out = objective(apply_fn, params, batch, key, train, **taken)
    return out if has_carry(objective) else (out, Proposal())


def is_on_policy(objective) -> bool:
    """Whether an objective makes the rows that it trains on."""
    return hasattr(objective, "collect")


def per_row(draw: Callable, keys: jax.Array, *arguments) -> Any:
    """`draw(key, *arguments of the row)` for every row: leading axes are those of the batch."""
    return jax.vmap(draw)(keys, *arguments)
