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
over devices (`per_row` draws so); `batch["strata"]` float32 [B] are numbers in [0, 1), spread evenly over the rows.
`key` is one key for the part at hand, for dropout. An evaluation's last batch is filled up with rows of zeros, whose
`loss_weights` are 0: an objective whose rows meet each other (negatives within the batch) must leave rows of weight 0
out.

Where what a row adds to the sums depends on that row alone, the class says so with `ROWS_APART: ClassVar[bool] = True`:
a run may then resume with another `train.accumulate_steps`.

Optional parts, each there if the method is:

    initial(self, module, params, key) -> carry
        What the objective needs from step to step and no gradient trains: momentum encoders, queues, codebooks,
        counters;
        a dict or a dataclass of arrays, perhaps nested.
        A leaf may be boxed with logical axis names (`nn.LogicallyPartitioned(value, names)`); one whose path ends as a
        parameter's does, with its shape, is split as the parameter is; any other is whole on every device.
    after(self, carry, proposal, params) -> carry
        Once per update, with the new parameters; shapes and dtypes stay. With `initial`, `__call__` takes `carry=` and
        returns (sums, `Proposal`). Evaluation reads the carry and drops the proposal. What a module itself keeps
        besides parameters, such as batch statistics, joins the carry of any objective (`fmjax.objectives.stateful`).
    over(self, steps) -> objective
        The objective of a run of so many steps, where parts of it begin or end within a run.
    bounded(self, params) -> params
        Once per update, before `after` and the moving average see them: the new parameters, each within the bounds that
        it may have; shapes and dtypes stay. Those that do not train stay as they are, whatever it says.
    sides(self) -> (name, ...) and moves(self, carry) -> {name: bool []}
        Parameters that take turns, by the first name of their paths, and whether they move in this update. Of those
        that do not, the parameters and what the optimizer keeps of them stay as they are, but for the place in the
        learning rate's schedule; those not named always move. Each side, and what is of none, is optimised as if it
        were alone, with a clipping norm and counts of its own (`fmjax.training.turns`).
    models(self) -> {name: path}
        Other models in the step, loaded as `fmjax.load` does on the run's mesh; `__call__` takes
        `models={name: OtherModel}`. They are neither trained nor saved with the run; their content is compared at
        resume. Those that the class attribute `CUT_ALIKE` names are given the data's tokens, and have to have its
        tokenizer; fields that `OPENED` names are paths that a generator opens too, when the run is loaded.
    contents(self) -> {name: hash}
        Of files that the objective reads besides; they are compared at resume.
    resume_free(self) -> (field, ...)
        As the class attribute `RESUME_FREE` of any plugin, fields that may change between a run and its resumption, of
        the objective as it is configured.
    check_models(self, module, models) -> None
        Raises ConfigError where these models ({name: OtherModel}, perhaps of shapes alone) do not fit the module.
    check_objectives(self, objectives) -> None
        Raises ConfigError where what these models were trained with ({name: objective, or None where nothing says it})
        does not fit.
    collect(self, model, prompts, key) -> rows and collected(self, prompt) -> row
        On-policy training: every `rollout_steps` steps (a field) `collect` makes the rows that these steps train on,
        with the model as it then is (`fmjax.inference.model.Model`), from `num_prompts(rows)` rows of the data a step;
        it may compute on the host. Rows are dicts of arrays [rollout_steps * batch size, ...], a pure function of the
        arguments; where `epochs` (a field) divides `rollout_steps`, each row is trained on in so many of these steps,
        and only rollout_steps / epochs batches are made. `num_prompts` raises ConfigError for a batch that cannot be
        made. `collected` tells the arrays of one row, as `jax.ShapeDtypeStruct`s, from those of a prompt. Of several
        processes all collect the same; what code of the user computes on the host, process 0 tells the others
        (`fmjax.parallel.hosts.from_first_process`).
    score(self, apply_fn, params, batch) -> {name: array}
        Float arrays [B, ...] of the batch's collected rows that are added to them, computed with the parameters that
        made them as a train step computes, in its parts and on its mesh: log-probabilities, values. `collect` leaves
        them out, `collected` has them. It takes `carry=` and `models=` where `__call__` does.
    complete(self, model, rows, batch_size) -> rows
        The rows with what takes all of them, and what `score` found, computed on the host: advantages, say. Step i of
        the rollout has rows i * batch_size to (i + 1) * batch_size - 1.
    assess(self, model, prompts, key) -> {name: (sum, weight)}
        On-policy training: the evaluation, of held-out prompts; without it there is none.
    reduce(self, sums) -> {name: value}
        Metrics that are no means of their sums: all of the objective's metrics from its summed (sum, weight) pairs.
    check(self, module, data) -> None
        Raises ConfigError where the objective does not fit the module or the data.
    can_sample(self, module, data) -> bool and sample(self, model, key) -> list
        Values drawn from the model on the way: texts, or those of the modality that the attribute `makes` names.
    num_shown(self) -> int
        `sample` takes `rows=` too: {name: array [num_shown, ...]}, the first rows of the first evaluation set.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from fmjax.errors import ConfigError

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
    """A model in the step that is not trained: `other.apply(tokens=..., method=...)`.

    Attributes:
      state: of the module (`fmjax.models.state`).
      carry: what its own objective carried besides, such as a codebook, by name.
    """

    module: Any = struct.field(pytree_node=False)
    params: Any = None
    state: Any = struct.field(default_factory=dict)
    carry: Any = struct.field(default_factory=dict)

    def apply(self, *args, **kwargs):
        """The module applied to its parameters and state (`fmjax.models.state`)."""
        return self.module.apply({"params": self.params, **self.state}, *args, **kwargs)


class Objective(Protocol):
    """What every objective has; the module's docstring tells all parts."""

    # Of `__call__`: further arguments, by the method that they come with.
    BRINGS = {"__call__": {"initial": "carry", "models": "models"}}

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the module is called with, by keyword."""

    def __call__(self, apply_fn: Callable, params, batch: Mapping[str, Any], key, train: bool) -> Sums:
        """The metrics as {name: (sum, weight)}, "loss" among them."""


def objective_over(objective, steps: int):
    """The objective of a run of so many steps; the same where that makes no difference."""
    return objective.over(steps) if hasattr(objective, "over") else objective


def has_carry(objective) -> bool:
    """Whether an objective carries something from step to step."""
    return hasattr(objective, "initial")


def sides_of(objective) -> tuple[str, ...]:
    """The first names of the parameters that take turns; none where none do.

    Raises ConfigError for an objective that says when they move, and not which.
    """
    if not hasattr(objective, "moves"):
        return ()
    if not hasattr(objective, "sides"):
        raise ConfigError(f"objective {type(objective).__name__} has `moves` and no `sides`; give it both")
    return tuple(objective.sides())


def call_objective(
    objective, apply_fn, params, batch, key, train: bool, carry=None, models=None
) -> tuple[Sums, Proposal]:
    """(sums, proposal) of a call with what the objective takes; the proposal of one without a carry is empty."""
    taken = taken_by(objective, carry, models)
    out = _told(objective, batch, lambda: objective(apply_fn, params, batch, key, train, **taken))
    sums, proposal = out if has_carry(objective) else (out, Proposal())
    _check_sums(objective, sums, train)
    return sums, proposal


def taken_by(objective, carry, models) -> dict[str, Any]:
    """Of a carry and other models those that the objective's functions take, by keyword."""
    taken = {"carry": carry} if has_carry(objective) else {}
    return taken | ({"models": models} if hasattr(objective, "models") else {})


def module_inputs(objective, batch) -> dict[str, Any]:
    """What the module is called with. Raises ConfigError for an array that the objective reads and the data lack."""
    return _told(objective, batch, lambda: objective.inputs(batch))


def _told(objective, batch, call: Callable):
    """What `call` gives; a key that the batch has not got becomes a ConfigError that says what it has."""
    try:
        return call()
    except KeyError as error:
        name = error.args[0] if error.args else None
        if not isinstance(name, str) or name in batch:
            raise
        raise ConfigError(
            f"objective {type(objective).__name__} reads batch[{name!r}], which the rows of these data do not have; "
            f"they have {', '.join(sorted(batch.keys() - {'keys', 'strata'}))}"
        ) from error


def need_features(objective, module) -> None:
    """Raises ConfigError for a module without the method that the objectives of texts call."""
    if not hasattr(module, "features"):
        raise ConfigError(
            f"objective {type(objective).__name__} calls model.features(tokens, ...), which gives (hidden, head) and "
            f"which {type(module).__name__} does not have; derive it from fmjax.models.decoder.Decoder, or take an "
            "objective that calls the model itself"
        )


def check_reads_alike(objective, name: str, other, module) -> None:
    """Raises ConfigError where another model, the objective's `name`, gives no logits for texts, or has another
    vocabulary than the module that is trained."""
    need_features(objective, other)
    if other.vocab_size != module.vocab_size:
        path = getattr(objective, name)
        raise ConfigError(
            f"objective.{name} = {path!r} has a vocabulary of {other.vocab_size} tokens, the model one of "
            f"{module.vocab_size}; they have to be cut by the same tokenizer: set data.tokenizer = {path!r}"
        )


def check_labels(module, data, low: int = 0) -> None:
    """Raises ConfigError where `labels` of the data are no classes of the module: below `low`, or not below its
    `num_classes`. Of data without a codec for them the first rows are looked at."""
    classes, codec = getattr(module, "num_classes", None), data.codecs.get("label")
    if not classes:
        return
    if hasattr(codec, "num_classes"):
        found = [codec.num_classes - 1]
    else:
        found = [int(data.train[index].get("labels", 0)) for index in range(min(64, len(data.train)))]
    wrong = next((label for label in found if not low <= label < classes), None)
    if wrong is not None:
        raise ConfigError(
            f"model.num_classes = {classes}, so labels are 0 to {classes - 1}, and these data have the label {wrong}; "
            "leave num_classes out where the data tell it, or set it to their number of classes"
        )


def _check_sums(objective, sums, train: bool) -> None:
    """Raises ConfigError where a call returned anything but scalar (sum, weight) pairs, with "loss" among them in
    training. What is not the loss may be of another shape where the objective reduces it itself."""
    name = f"objective {type(objective).__name__}"
    expected = 'expected {"loss": (sum over the batch, weight to divide it by), ...}'
    if not isinstance(sums, Mapping):
        raise ConfigError(f"{name} returned {_shown(sums)}; {expected}")
    if train and "loss" not in sums:
        raise ConfigError(f"{name} returned no 'loss', but {', '.join(map(str, sums)) or 'nothing'}; {expected}")
    for metric, value in sums.items():
        if metric != "loss" and hasattr(objective, "reduce"):
            continue
        pairs = value if isinstance(value, tuple) and value and isinstance(value[0], tuple) else (value,)
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or any(jnp.ndim(one) for one in pair):
                raise ConfigError(f"{name} returned {_shown(pair)} as {metric!r}; {expected}, of numbers")


def _shown(value) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))})"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {list(shape)}"


BESIDE = 2**31 - 1
"""What a row's key is folded with for draws beside those of a base class, which splits the key: `fold_in(key, i)` is
`split(key, n)[i]` for i below n, so that a small number would draw the same again."""


def is_on_policy(objective) -> bool:
    """Whether an objective makes the rows that it trains on."""
    return hasattr(objective, "collect")


def per_row(draw: Callable, keys: jax.Array, *arguments) -> Any:
    """`draw(key, *arguments of the row)` for every row: leading axes are those of the batch."""
    return jax.vmap(draw)(keys, *arguments)
