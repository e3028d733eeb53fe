"""Methods that quantize by what the model is given: GPTQ, AWQ, SmoothQuant."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.compress.awq import awq_scaled
from fmjax.compress.base import is_table, of_kernel, replaced
from fmjax.compress.calibrate import by_block, gather
from fmjax.compress.gptq import check_options, gptq
from fmjax.compress.kernels import batches_of, changed_kernels, check_sound, kept_blocks, progress_log
from fmjax.compress.pruning import was_pruned
from fmjax.compress.rounding import Int8, Rounding
from fmjax.compress.smoothquant import smoothed
from fmjax.compress.stacks import find_stacks
from fmjax.errors import ConfigError
from fmjax.inference.model import Model
from fmjax.layers.checks import check_choice, check_positive
from fmjax.layers.codes import BITS
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import is_weight
from fmjax.layers.whole_product import TOP
from fmjax.parallel.sharding import path_name

log = logging.getLogger("fmjax")
MANY_ZEROS = 0.25
"""A share of weights that no rounding leaves behind. Models that come from files of few bits have less."""


@dataclasses.dataclass(frozen=True)
class FewBits(Rounding):
    """Kernels of few bits that go by calibration.

    Attributes:
      format: of the kernels: "int2" to "int8", "nf4", "fp4", "fp8", or "uint2" to "uint8", which have offsets.
      block: numbers along a kernel's inputs that share a scale (the papers' group); 0: all.
      half: of "int2" to "int8": the least level is used too, as in the authors' code.
      rows_at_once: rows of calibration that go through the model at a time.
    """

    needs_calibration: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    name: ClassVar[str]

    format: str = "int4"
    block: int = 64
    half: bool = False
    rows_at_once: int = 8

    def __post_init__(self):
        check_choice("format", self.format, BITS)
        check_positive(rows_at_once=self.rows_at_once)
        super().__post_init__()

    @property
    def quantization(self):
        """See `Rounding`."""
        return dataclasses.replace(super().quantization, half=self.half)


@dataclasses.dataclass(frozen=True)
class GPTQ(FewBits):
    """Kernels rounded an input at a time, what rounding loses made up for by the inputs that come later (Frantar et al.
    2022, https://arxiv.org/abs/2210.17323), block by block: each is calibrated on what the rounded ones before make.

    Attributes:
      damping: of the mean of the squares of inputs, what is added to each.
      act_order: inputs are rounded in the order of their squares, the largest first; with `static` or `block` = 0.
      static: scales are those of the kernel as it is, rather than as it is when their block begins.
      keep_zeros: which models keep weights that are exactly 0: "pruned", those of which their config says that they
        were (by a method before, or in training that keeps zeros); "all"; or "none".
    """

    name: ClassVar[str] = "gptq"

    damping: float = 0.01
    act_order: bool = False
    static: bool = False
    keep_zeros: str = "pruned"

    def __post_init__(self):
        check_choice("keep_zeros", self.keep_zeros, ("pruned", "all", "none"))
        if not self.damping >= 0:
            raise ConfigError(f"damping = {self.damping} must not be negative")
        super().__post_init__()

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False,
        folder: str | pathlib.Path | None = None,
    ) -> Model:  # fmt: skip
        """See `fmjax.compress.base.Method`. Tables of tokens are rounded to the nearest level.

        Raises ConfigError, naming the kernel, where one does not divide.
        """
        kernels = self.kernels(model)
        tables = {name: x for name, x in kernels.items() if is_table(name) or x.ndim == 2 and not _is_kernel(name)}
        names = [name for name in kernels if name not in tables]
        for name in names:
            block, _ = of_kernel(name, self.quantization.cut, kernels[name].shape)
            options = block, kernels[name].shape[-2], self.act_order, self.static
            of_kernel(name, check_options, self.quantization, *options)
        for name, table in tables.items():
            of_kernel(name, self._of_table(name).cut, table.shape)
        become = lambda name: self.quantization.quantize if name in kernels else None
        keeps = self.keep_zeros == "all" or self.keep_zeros == "pruned" and was_pruned(model.config)
        if self.keep_zeros == "pruned" and not keeps:
            _warn_of_zeros({name: kernels[name] for name in names})
        options = dataclasses.asdict(self)
        batches = batches_of(model, calibration, self.rows_at_once)
        with model.inference():
            kept = kept_blocks(model, folder, self.name, options, calibration, become)
            made = changed_kernels(model, names, batches, partial(self._one, keeps), ("gram",), kept)
            for name, table in tables.items():
                made[name] = self._of_table(name).quantize(table)
        return replaced(model, made, {"method": self.name, **options})

    def _of_table(self, name):
        """How a table, or a head, is quantized."""
        return dataclasses.replace(self.quantization, is_table=is_table(name))

    def _one(self, keeps, name, kernel, sums):
        options = self.damping, self.act_order, self.static, keeps
        weight, lost = gptq(kernel, sums["gram"], self.quantization, *options)
        check_sound(name, lost, self.damping)
        return weight, lost


def _warn_of_zeros(kernels: Mapping[str, jax.Array]) -> None:
    """Says so where many weights are exactly 0, and GPTQ is about to fill them."""
    zeros = sum(int(jnp.sum(x == 0)) for x in kernels.values())
    share = zeros / max(1, sum(x.size for x in kernels.values()))
    if share > MANY_ZEROS:
        log.warning(
            f"{share:.0%} of the weights are 0 and the model does not say that it was pruned: they become what makes "
            "up for other weights' rounding; to keep them give keep_zeros = 'all' (--keep_zeros=all)"
        )


@dataclasses.dataclass(frozen=True)
class AWQ(FewBits):
    """Channels that are large in calibration get larger weights, which what makes the channels makes up for, and
    kernels are rounded (Lin et al. 2023, https://arxiv.org/abs/2306.00978). How much larger is searched for in steps of
    1 / 20 of an exponent, by what is lost of the products.

    Attributes:
      clip: the largest weights of a block are then clipped, down to 0.55 of the largest, where less is lost so.
    """

    name: ClassVar[str] = "awq"

    clip: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.clip and self.scales == "super":
            raise ConfigError(
                "clip = True with scales = 'super': blocks whose scales go together are not searched for; take other "
                "scales, or leave clip out"
            )

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False,
        folder: str | pathlib.Path | None = None,
    ) -> Model:  # fmt: skip
        """See `fmjax.compress.base.Method`. Raises ConfigError, naming the kernel, where one does not divide."""
        kernels = self.kernels(model)
        for name, kernel in kernels.items():
            quantization = dataclasses.replace(self.quantization, is_table=is_table(name))
            of_kernel(name, quantization.cut, kernel.shape)

        def change(config, block, sums, chosen):
            return awq_scaled(block, config, sums, self.quantization, chosen, self.clip)

        scaled = _folded(self, model, calibration, kernels, change, ("gram", "channels"), folder)
        return super().compress(scaled, None, progress)


@dataclasses.dataclass(frozen=True)
class SmoothQuant(Int8):
    """Kernels and activations in eight bits, once what is large in activations has been moved into kernels (Xiao et al.
    2022, https://arxiv.org/abs/2211.10438).

    Attributes:
      activations: "int8", whole numbers of -127 to 127; or "float".
      alpha: how much is moved, 0 to 1.
      static: activations of a product have one scale, that of the largest in calibration, instead of one a row.
      rows_at_once: rows of calibration that go through the model at a time.
    """

    needs_calibration: ClassVar[bool] = True
    name: ClassVar[str] = "smoothquant"

    activations: str = "int8"
    alpha: float = 0.5
    static: bool = False
    rows_at_once: int = 8

    def __post_init__(self):
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha = {self.alpha} must lie between 0, nothing is moved into kernels, and 1")
        check_positive(rows_at_once=self.rows_at_once)
        if self.static and self.tables:
            raise ConfigError(
                "static = True with tables = True: what an output head is given is not observed; leave one of them out"
            )
        super().__post_init__()

    @property
    def quantization(self):
        """See `Rounding`."""
        return dataclasses.replace(super().quantization, static=self.static)

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """See `fmjax.compress.base.Method`. Raises ConfigError, naming the kernel, where one does not divide."""

        def change(config, block, sums, chosen):
            return smoothed(block, config, sums, self.alpha)

        kernels = self.kernels(model)
        smooth = _folded(self, model, calibration, kernels, change, ("channels",))
        made = super().compress(smooth, None, progress)
        return self._with_input_scales(smooth, made, calibration, kernels) if self.static else made

    def _with_input_scales(self, smooth, made, calibration, kernels):
        """The quantized model with what its products are given in calibration at most."""
        layers = [name.removesuffix("/kernel") for name in kernels if name.endswith("/kernel")]
        with smooth.inference():
            batches = batches_of(smooth, calibration, self.rows_at_once)
            sums = gather(smooth.module, smooth.variables, batches, ("channels",), layers)

        def one(path, x):
            name = path_name(path)
            told = sums.get(name.removesuffix("/kernel"))
            if not isinstance(x, QTensor):
                return x
            if told is None:
                raise ConfigError(f"static = True: what {name!r} is given was not observed; leave it out with keep")
            return x.replace(input_scale=told["channels"]["largest"].max(-1) / TOP)

        params = jax.tree_util.tree_map_with_path(one, made.params, is_leaf=is_weight)
        return dataclasses.replace(made, params=params)


def _folded(method, model, calibration, kernels, change, wanted, folder=None) -> Model:
    """The model of the same function whose blocks are what `change(config, block, sums, chosen)` makes of them; chosen:
    paths of the layers inside the block whose kernels are compressed."""
    batches = batches_of(model, calibration, method.rows_at_once)
    with model.inference():
        stacks = find_stacks(model.module, model.variables, batches[0])

        def of_block(path, layer, block, sums):
            inside = lambda inner: {f"{path}/blocks/{inner}/kernel", f"{path}/blocks_{layer}/{inner}/kernel"}
            chosen = [inner for inner in sums if kernels.keys() & inside(inner)]
            return change(stacks[path], block, sums, chosen)

        kept = kept_blocks(model, folder, method.name, dataclasses.asdict(method), calibration, lambda name: None)
        params = by_block(
            model.module, model.variables, batches, of_block, wanted, kept=kept, done=progress_log(),
            placement=model.placement,
        )  # fmt: skip
    return dataclasses.replace(model, params=params, kept={})


def _is_kernel(name: str) -> bool:
    return name.rpartition("/")[2] == "kernel"
