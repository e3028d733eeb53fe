"""Methods that round each number to the nearest level, whatever the model is given."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

from fmjax.compress.base import Chosen, each, is_table, of_kernel, replaced
from fmjax.errors import ConfigError
from fmjax.inference.model import Model
from fmjax.layers.quantized import QTensor, Quantization


@dataclasses.dataclass(frozen=True)
class Rounding(Chosen):
    """Round to nearest: what all of these methods share.

    Attributes:
      block: numbers along a kernel's inputs that share a scale; 0: all, so that each output has one. Of a table of
        tokens numbers of a row.
      tile: outputs that share a scale; 0: all.
      scales: how scales are kept: "float32", "float16" or "bfloat16"; or "super", in eight bits, those of 256 inputs
        times a float16 of their own.
    """

    needs_calibration: ClassVar[bool] = False
    format: ClassVar[str]

    block: int = 0
    tile: int = 1
    scales: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        self.quantization  # checks the options

    @property
    def quantization(self) -> Quantization:
        """How kernels are quantized."""
        return Quantization(self.format, self.block, tile=self.tile, scales=self.scales)

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """See `fmjax.compress.base.Method`. Raises InputError, naming the kernel, where one does not divide."""

        def one(name, kernel):
            return of_kernel(name, _quantized, dataclasses.replace(self.quantization, is_table=is_table(name)), kernel)

        kernels = self.kernels(model)
        with model.inference():
            weights = each(kernels, one, progress)
        return replaced(model, weights, {"method": self.name, **dataclasses.asdict(self)})

    @property
    def name(self) -> str:
        """Of the method."""
        return self.format


@functools.partial(jax.jit, static_argnums=0)
def _quantized(quantization: Quantization, kernel: jax.Array) -> QTensor:
    return quantization.quantize(kernel)


@dataclasses.dataclass(frozen=True)
class Int8(Rounding):
    """Whole numbers of -127 to 127 times a scale, the largest value of a block being 127.

    Attributes:
      activations: "float"; or "int8", whole numbers of -127 to 127 too, each row of them by its own largest value.
    """

    format: ClassVar[str] = "int8"

    activations: str = "float"

    @property
    def quantization(self) -> Quantization:
        """See `Rounding`."""
        return dataclasses.replace(super().quantization, activations=self.activations)


@dataclasses.dataclass(frozen=True)
class Int4(Rounding):
    """Whole numbers of -7 to 7 times a scale, the largest value of a block being 7.

    Attributes:
      double: scales are kept in eight bits too (Dettmers et al. 2023, section 3).
      activations: as in `Int8`.
    """

    format: ClassVar[str] = "int4"

    block: int = 64
    double: bool = False
    activations: str = "float"

    @property
    def quantization(self) -> Quantization:
        """See `Rounding`."""
        return dataclasses.replace(super().quantization, double=self.double, activations=self.activations)


@dataclasses.dataclass(frozen=True)
class NF4(Rounding):
    """The 16 levels of NormalFloat4 times a block's largest value (Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314).

    Attributes:
      double: scales are kept in eight bits too (section 3).
    """

    format: ClassVar[str] = "nf4"

    block: int = 64
    double: bool = False

    @property
    def quantization(self) -> Quantization:
        """See `Rounding`."""
        return dataclasses.replace(super().quantization, double=self.double)


@dataclasses.dataclass(frozen=True)
class FP8(Rounding):
    """Floats of eight bits, e4m3 (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433), the largest value of a
    block being 448."""

    format: ClassVar[str] = "fp8"


@dataclasses.dataclass(frozen=True)
class MXFP4(Rounding):
    """Floats of four bits, e2m1, in blocks with a power of two as a scale (OCP Microscaling Formats 1.0).

    Attributes:
      scales: "power": by the exponent alone; another is not of this format.
      rounding: of the scales: "floor" (OCP's), "ceil", "even" or "rceil" (`fmjax.layers.scales.power_scales`).
    """

    format: ClassVar[str] = "fp4"

    block: int = 32
    scales: str = "power"
    rounding: str = "floor"

    def __post_init__(self):
        super().__post_init__()
        if self.scales != "power":
            raise ConfigError(f"scales = {self.scales!r}: those of mxfp4 are powers of two ('power')")

    @property
    def quantization(self) -> Quantization:
        """See `Rounding`."""
        return dataclasses.replace(super().quantization, rounding=self.rounding)

    @property
    def name(self) -> str:
        """Of the method."""
        return "mxfp4"
