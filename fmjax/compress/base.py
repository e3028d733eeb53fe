"""The protocol of a method of compression, and which parameters methods are for."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from fmjax.assemble import param_spec
from fmjax.compress.placing import as_the_model
from fmjax.errors import ConfigError, InputError
from fmjax.inference.model import Model
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import is_weight
from fmjax.parallel.sharding import path_name

TABLE = re.compile(r"(^|/)(token_embedding/embedding|head)$")
"""Names of the tables of tokens: the embedding, which may be the output head too, and the output head."""


class Method(Protocol):
    """A frozen dataclass whose fields are the method's options, documented under `Attributes:`; they are the command's
    flags. One registers a name in `fmjax.compress.METHODS`, or is named by its import path.

    Attributes:
      needs_calibration: whether `compress` reads what the model is given (`fmjax.compress.calibration`).
      resumes: where True, `compress` takes `folder=` too, where it keeps what is done until the model is saved and from
        where it goes on; it may be left out.
    """

    needs_calibration: bool

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """The model, of the same module, with some of its parameters of few bits, or zero.

        Args:
          model: its parameters stacked, as `fmjax.load` gives it; it is not changed.
          calibration: the module's inputs by name, each [N, ...]; None of a method that needs none.
          progress: whether to show a bar.

        Raises InputError where the model has no parameter that the method is for, or calibration does not suffice.
        """


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which parameters are compressed: the options that methods share.

    Attributes:
      patterns: a kernel of a dense layer is compressed if one of these regular expressions is found in its name, such
        as "stack/blocks/mlp/up/kernel"; convolutions, norms and biases never are. Those of the blocks where nothing
        else is asked for: not of heads, embeddings of patches, and projections.
      keep: one in whose name one of these is found stays as it is.
      tables: the token embedding and the output head are compressed too.
    """

    patterns: tuple[str, ...] = ("blocks.*kernel$",)
    keep: tuple[str, ...] = ()
    tables: bool = False

    def __post_init__(self):
        for field in ("patterns", "keep"):
            for pattern in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(f"{field}: {pattern!r} is not a regular expression ({error})") from None

    def kernels(self, model: Model) -> dict[str, jax.Array]:
        """The arrays [..., in, out] that are compressed, by name, tables ([tokens, features]) among them.

        Raises InputError for a pattern that is found in no kernel, for a `keep` that is found in no name, where nothing
        is left, and where one is compressed already.
        """
        leaves = named(model.params)
        kernels, tables = dense_kernels(model), {name for name in leaves if TABLE.search(name)}
        chosen = set(tables) if self.tables else set()
        if self.tables and not tables:
            raise InputError(f"{model} has no table of tokens; leave tables out")
        for pattern in self.patterns:
            found = {name for name in kernels if re.search(pattern, name)}
            if not found:
                listed = ", ".join(sorted(kernels)[:8]) or "none"
                raise InputError(f"patterns: {pattern!r} is found in no kernel of {model}; there are: {listed}")
            chosen |= found
        for pattern in self.keep:
            if not any(re.search(pattern, name) for name in leaves):
                listed = ", ".join(list(leaves)[:8])
                raise InputError(f"keep: {pattern!r} is found in no parameter of {model}; there are: {listed}")
            chosen = {name for name in chosen if not re.search(pattern, name)}
        if not chosen:
            given = f"patterns = {self.patterns}, keep = {self.keep} and tables = {self.tables}"
            raise InputError(f"{given} leave nothing of {model} to compress")
        for name in sorted(chosen):
            if isinstance(leaves[name], QTensor):
                raise InputError(f"{name!r} of {model} is of {leaves[name].format} already; compress the model it was")
            if is_weight(leaves[name]):
                raise InputError(f"{name!r} of {model} has an adapter beside it; save the model with it merged first")
        return {name: leaf for name, leaf in leaves.items() if name in chosen}


def is_table(name: str) -> bool:
    """Whether a parameter of this name is a table [tokens, features], whose rows are looked up."""
    return name.endswith("token_embedding/embedding")


def dense_kernels(model: Model) -> set[str]:
    """Names of the kernels of dense layers, by their names and axes. Not inside of `Model.inference`."""
    _, axes = param_spec(model.module, model.module.example())
    leaves = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))[0]
    found = {path_name(path): names for path, names in leaves}
    return {
        name for name, names in found.items()
        if name.rpartition("/")[2] == "kernel" and len(names) - (names[0] == "layers") == 2
    }  # fmt: skip


def named(params: Any) -> dict[str, Any]:
    """The parameters by name, weights whole."""
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def replaced(model: Model, weights: Mapping[str, Any], told: Mapping[str, Any]) -> Model:
    """The model with these parameters in place of those of the same names, split as its others are.

    told: what was done, for its config.json: section "compression".
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=is_weight)
    params = structure.unflatten([weights.get(path_name(path), leaf) for path, leaf in leaves])
    params = as_the_model(model.module, params, model.placement)
    return dataclasses.replace(model, params=params, config=noted(model, told), kept={})


def noted(model: Model, told: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what a model has become; what was done to it before is kept beside that.

    told: what was done, for section "compression".
    """
    before = model.config.get("compression")
    return {**model.config, "compression": {"of": model.source, **told, **({"after": before} if before else {})}}


def of_kernel(name: str, function: Callable, *arguments) -> Any:
    """What a function gives. Raises ConfigError as it does, naming the kernel that it is of."""
    try:
        return function(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{name!r}: {error}, or leave it out with keep") from None


def each(weights: Mapping[str, Any], one: Callable[[str, Any], Any], progress: bool) -> dict[str, Any]:
    """What `one(name, kernel)` makes of each, with a bar."""
    from tqdm import tqdm

    return {name: one(name, x) for name, x in tqdm(weights.items(), desc="compressing", disable=not progress)}
