"""Training for few bits: kernels that are rounded in every step, and whose gradients go past the rounding (Jacob et al.
2017, https://arxiv.org/abs/1712.05877, section 3; Bengio et al. 2013, https://arxiv.org/abs/1308.3432)."""

import dataclasses
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax

from fmjax.adapt.kernels import is_box, is_kernel, matching
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.layers.quantized import Quantization
from fmjax.layers.scales import FLOATS
from fmjax.layers.weights import FakeQuantized
from fmjax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True)
class FakeQuantization:
    """Kernels [..., in, out] are floats that train, and products take what they would be in few bits.

    What is loaded of such a run has the rounded kernels. `fmjax.compress` of the same format and the same options keeps
    their values, so options under which rounding what is rounded changes it are refused: scales of a largest level +
    0.5 (`half`), scales that are themselves of few bits, and for "uint4" and "uint8" those of 16 bits.

    Attributes:
      format, block, tile, rounding, activations: as in `Quantization`.
      scales: "float32", "float16", "bfloat16"; or "power", of two.
      half: False alone, which a config.json may say.
      patterns: regular expressions of the kernels that are rounded, such as "stack/blocks/mlp/up/kernel".
      keep: those in whose names one of these is found stay as they are.
    """

    trainable: ClassVar[tuple[str, ...]] = ()

    format: str = "int4"
    block: int = 32
    tile: int = 1
    scales: str = "float32"
    rounding: str = "floor"
    activations: str = "float"
    half: bool = False
    patterns: tuple[str, ...] = ("blocks.*kernel$",)
    keep: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice("scales", self.scales, (*FLOATS, "power"))
        if self.half:
            raise ConfigError("half = True: a kernel that is rounded twice would change again; leave it out")
        if self.format.startswith("uint") and self.scales in ("float16", "bfloat16"):
            raise ConfigError(
                f"scales = {self.scales!r} with format = {self.format!r}: a kernel that is rounded twice would change "
                "again; take scales = 'float32'"
            )
        self.quantization  # checks the options

    @property
    def quantization(self) -> Quantization:
        """How kernels are rounded."""
        names = ("format", "block", "tile", "scales", "rounding", "activations")
        return Quantization(**{name: getattr(self, name) for name in names})

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`. Raises ConfigError for a pattern that matches nothing, or something that is
        not the kernel of a dense layer, and for a kernel that does not divide into blocks."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
        names = [path_name(path) for path, _ in leaves]
        kernels = {name for name, (_, leaf) in zip(names, leaves) if is_kernel(name, leaf)}
        rounded = matching("weights.patterns", self.patterns, names, kernels, "quantized")
        for pattern in self.keep:
            if not any(re.search(pattern, name) for name in names):
                raise ConfigError(f"weights.keep: {pattern!r} matches no parameter; there are: {', '.join(names[:6])}")
            rounded = {name for name in rounded if not re.search(pattern, name)}
        return structure.unflatten([
            self._rounded(name, leaf) if name in rounded else leaf for name, (_, leaf) in zip(names, leaves)
        ])  # fmt: skip

    def _rounded(self, name: str, leaf) -> FakeQuantized:
        try:
            self.quantization.cut(nn.unbox(leaf).shape)
        except ConfigError as error:
            raise ConfigError(f"weights.block = {self.block}: {name!r}: {error}") from None
        return FakeQuantized(leaf, self.quantization)
