"""Methods that set weights to zero: by magnitude, Wanda, SparseGPT; a share of them, or n of every m."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.compress.base import Chosen, each, replaced
from fmjax.compress.importance import Pattern, magnitude, wanda
from fmjax.compress.kernels import batches_of, changed_kernels, check_sound, kept_blocks
from fmjax.compress.sparsegpt import sparsegpt
from fmjax.errors import ConfigError
from fmjax.inference.model import Model
from fmjax.layers.checks import check_positive


def was_pruned(config: Mapping[str, Any]) -> bool:
    """Whether a model has zeros on purpose, by its config: a method of pruning made them, or a run kept them."""
    if (config.get("weights") or {}).get("name") == "sparse":
        return True
    told = config.get("compression")
    while told:
        # "pattern" and "remove" are fields of `Pruned` and `fmjax.compress.smaller.Heads`; "sparse" is what
        # `Model.save` writes of a run that kept zeros.
        if "pattern" in told or told.get("remove") is False or told.get("method") == "sparse":
            return True
        told = told.get("after")
    return False


@dataclasses.dataclass(frozen=True)
class Pruned(Chosen):
    """What these methods share.

    Attributes:
      pattern: a share that becomes zero, such as 0.5; or n:m: of every m weights in a row along the inputs of an output
        n stay, such as 2:4.
    """

    resumes: ClassVar[bool] = False
    name: ClassVar[str]

    pattern: str = "0.5"

    def __post_init__(self):
        super().__post_init__()
        self.zeros  # checks the pattern
        if self.tables:
            raise ConfigError("tables = True: a table of tokens is looked up, not multiplied, and is not pruned")

    @property
    def zeros(self) -> Pattern:
        """The pattern of the zeros."""
        return Pattern.parse(self.pattern)

    def chosen(self, model: Model) -> dict[str, jax.Array]:
        """The kernels that are pruned, by name. Raises ConfigError, naming one, where it does not divide."""
        found = self.kernels(model)
        for name, kernel in found.items():
            self.zeros.check(kernel.shape[-2], repr(name))
        return found

    def told(self) -> dict:
        """What the model says of this in its config.json."""
        return {"method": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Magnitude(Pruned):
    """The weights of the least magnitude of each kernel become zero (Han et al. 2015,
    https://arxiv.org/abs/1506.02626)."""

    needs_calibration: ClassVar[bool] = False
    name: ClassVar[str] = "magnitude"

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """See `fmjax.compress.base.Method`."""

        def one(name, kernel):
            if kernel.ndim == 2:
                return _least(kernel, self.zeros)
            return jnp.stack([_least(layer, self.zeros) for layer in kernel])

        chosen = self.chosen(model)
        with model.inference():
            made = each(chosen, one, progress)
        return replaced(model, made, self.told())


@functools.partial(jax.jit, static_argnums=1)
def _least(kernel, pattern):
    return jnp.where(pattern.kept(magnitude(kernel), across=True), kernel, 0)


@dataclasses.dataclass(frozen=True)
class Calibrated(Pruned):
    """What those share that go by what products are given, block by block: all kernels of a block are calibrated before
    one is pruned, and the next block on what the pruned one makes.

    Attributes:
      rows_at_once: rows of calibration that go through the model at a time.
    """

    needs_calibration: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    wanted: ClassVar[tuple[str, ...]]

    rows_at_once: int = 8

    def __post_init__(self):
        super().__post_init__()
        check_positive(rows_at_once=self.rows_at_once)

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False,
        folder: str | pathlib.Path | None = None,
    ) -> Model:  # fmt: skip
        """See `fmjax.compress.base.Method`."""
        names = list(self.chosen(model))
        with model.inference():
            kept = kept_blocks(model, folder, self.name, dataclasses.asdict(self), calibration, lambda name: None)
            batches = batches_of(model, calibration, self.rows_at_once)
            made = changed_kernels(model, names, batches, self.one, self.wanted, kept)
        return replaced(model, made, self.told())

    def one(self, name: str, kernel: jax.Array, sums: Mapping):
        """A kernel [in, out] pruned; see `fmjax.compress.kernels.Change`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Wanda(Calibrated):
    """Of each output the weights become zero whose magnitude times the norm of their input is least (Sun et al. 2023,
    https://arxiv.org/abs/2306.11695)."""

    name: ClassVar[str] = "wanda"
    wanted: ClassVar[tuple[str, ...]] = ("channels",)

    def one(self, name: str, kernel: jax.Array, sums: Mapping):
        """See `Calibrated`."""
        return _least_given(kernel, sums["channels"]["square"], self.zeros), None


@functools.partial(jax.jit, static_argnums=2)
def _least_given(kernel, squares, pattern):
    return jnp.where(pattern.kept(wanda(kernel, squares)), kernel, 0)


@dataclasses.dataclass(frozen=True)
class SparseGPT(Calibrated):
    """The weights become zero whose loss costs the products least, and the inputs that come later make up for them
    (Frantar & Alistarh 2023, https://arxiv.org/abs/2301.00774).

    Attributes:
      block: inputs among which the least are looked for at a time, of a pattern that is a share.
      damping: of the mean of the squares of inputs, what is added to each.
    """

    name: ClassVar[str] = "sparsegpt"
    wanted: ClassVar[tuple[str, ...]] = ("gram",)

    block: int = 128
    damping: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_positive(block=self.block)
        if not self.damping >= 0:
            raise ConfigError(f"damping = {self.damping} must not be negative")

    def one(self, name: str, kernel: jax.Array, sums: Mapping):
        """See `Calibrated`."""
        pruned, lost = sparsegpt(kernel, sums["gram"], self.zeros, self.block, self.damping)
        check_sound(name, lost, self.damping)
        return pruned.astype(kernel.dtype), lost


@dataclasses.dataclass(frozen=True)
class TwoOfFour(SparseGPT):
    """Two of every four weights in a row along the inputs of an output stay, the pattern that sparse tensor cores
    multiply: by SparseGPT."""

    name: ClassVar[str] = "2:4"

    pattern: str = "2:4"

    def __post_init__(self):
        if self.pattern != "2:4":
            raise ConfigError(f"pattern = {self.pattern!r} of the method 2:4 can only be '2:4'; others: sparsegpt")
        super().__post_init__()
