"""Weights of few bits: codes in blocks with a scale each, behind `fmjax.layers.dense.dense` as any other weight.

A kernel [..., in, out] is cut along `in`, for each output or for several together, into blocks. A block keeps a scale,
and of each number the nearest of the format's levels (`fmjax.layers.codes.FORMATS`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.layers.codes import BITS, FORMATS, to_codes, to_levels
from fmjax.layers.scales import (
    FLOATS,
    ROUNDINGS,
    SUPER_BLOCK,
    PowerScales,
    QuantizedScales,
    SuperScales,
    power_scales,
    quantize_scales,
    scale_values,
    super_scales,
)

SCALES = (*FLOATS, "power", "super")
OFFSETS = ("zero", "float")
ACTIVATIONS = ("float", "int8")
ARRAYS = ("codes", "scales", "offsets", "input_scale")
"""The fields of a `QTensor` that are arrays, or pytrees of them."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
    """A kernel [..., in, out] of few bits: level * scale + offset. A pytree of the arrays that it has.

    Attributes:
      codes: [..., in * bits / 8, out], uint8 as `fmjax.layers.codes.pack` has packed them: of 4 bits two numbers share
        a byte, the number of the even place in its upper half. Of 8 bits [..., in, out]: int8, uint8 or float8_e4m3fn.
      scales: floats [..., in / block, out / tile], or `QuantizedScales`, `SuperScales` or `PowerScales` of that shape:
        what a level is multiplied with.
      format: one of `fmjax.layers.codes.FORMATS`: "int8" and "int4", whose levels are whole numbers, "nf4", "fp8", ...
      block: numbers along `in` that share a scale.
      offsets: None; or what is added, kept as the scales are; or uint8, the level that stands for 0.
      input_scale: None, or float32 [...]: what whole numbers of the activations are multiplied with.
      tile: numbers along `out` that share a scale.
      activations: "float", or "int8": rows of activations become whole numbers too, of -127 to 127, each row by its own
        largest value unless there is an `input_scale`, and the product of whole numbers is summed in int32.
      parts: the arrays that it has, those of `ARRAYS` that are not None.
      is_table: whether it stands for its transpose [out, in], a table whose rows are looked up, such as that of tokens:
        its blocks lie along its rows.
    """

    codes: jax.Array
    scales: Any
    format: str
    block: int
    offsets: Any = None
    input_scale: Any = None
    tile: int = 1
    activations: str = "float"
    is_table: bool = False
    parts: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.parts:
            object.__setattr__(self, "parts", tuple(name for name in ARRAYS if getattr(self, name) is not None))

    def tree_flatten_with_keys(self):
        """Without a place for an array that it does not have: checkpoints know no more than there is."""
        told = tuple(field.name for field in dataclasses.fields(self) if field.name not in ARRAYS)
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in self.parts]
        return children, tuple((name, getattr(self, name)) for name in told)

    @classmethod
    def tree_unflatten(cls, told, children):
        told = dict(told)
        return cls(**{"codes": None, "scales": None} | dict(zip(told["parts"], children)), **told)

    def replace(self, **changes) -> "QTensor":
        """The same with other fields."""
        return dataclasses.replace(self, **{"parts": ()} | changes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it stands for."""
        *stack, rows, out = self.codes.shape
        rows = rows * 8 // BITS[self.format]
        return (*stack, out, rows) if self.is_table else (*stack, rows, out)

    @property
    def ndim(self) -> int:
        """Of what it stands for."""
        return self.codes.ndim

    def value(self, dtype=jnp.float32) -> jax.Array:
        """What it stands for, computed in float32 and rounded to `dtype`."""
        if self.is_table:
            return self.replace(is_table=False).value(dtype).swapaxes(-1, -2)
        *stack, rows, out = self.shape
        cut = to_levels(self.codes, self.format)
        if self.tile == 1:
            cut = cut.reshape(*stack, rows // self.block, self.block, out)
            spread = lambda x: x[..., :, None, :]
        else:
            cut, spread = cut.reshape(*stack, rows // self.block, self.block, out // self.tile, self.tile), _spread
        cut = cut * spread(scale_values(self.scales))
        if self.offsets is not None:
            cut = cut + spread(self.offset_values())
        return cut.reshape(self.shape).astype(dtype)

    def rows(self, index: jax.Array) -> jax.Array:
        """float32 [..., in]: the rows of a table at `index` [...]; others are not computed. One that is not there gives
        NaN."""
        places = index.reshape(-1)
        pick = lambda x, places, mode: jnp.take(x, places, axis=-1, mode=mode)
        offsets = None if self.offsets is None else pick(self.offset_values(), places // self.tile, "clip")
        codes = pick(self.codes, places, "clip")
        scales = pick(scale_values(self.scales), places // self.tile, "fill")
        found = QTensor(codes, scales, self.format, self.block, offsets).value()
        return found.T.reshape(*index.shape, -1)

    def offset_values(self) -> jax.Array:
        """float32 [..., in / block, out / tile]: what is added, of a weight with offsets."""
        if getattr(self.offsets, "dtype", None) == jnp.uint8:
            return -self.offsets.astype(jnp.float32) * scale_values(self.scales)
        return scale_values(self.offsets)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How kernels are quantized.

    Attributes:
      format: "int2" to "int8", "uint2" to "uint8", which have offsets, "nf4", "fp4" (e2m1) or "fp8" (e4m3).
      block: numbers along `in` that share a scale; 0: all, so that each output has one.
      double: whether the scales are kept in eight bits too (`QuantizedScales`).
      tile: numbers along `out` that share a scale; 0: all.
      half: of "int2" to "int8": a block's scale is its largest value over the largest level + 0.5, as in Qwix and
        compressed-tensors, and the least level is used too; else over the largest level: 127 or 7.
      scales: "float32", "float16", "bfloat16"; "power", of two, by the exponent alone; "super", `SuperScales`.
      rounding: of scales that are powers of two: "floor", "ceil", "even" or "rceil"
        (`fmjax.layers.scales.power_scales`).
      offsets: "zero", the level that stands for 0, so that 0 is exact; or "float": a block's least value, kept as the
        scales are.
      activations: "float", or "int8" (`QTensor.activations`).
      static: whether activations of eight bits have one scale, which is told (`QTensor.input_scale`), instead of one a
        row.
      is_table: whether what is quantized is a table [out, in] (`QTensor.is_table`).
    """

    format: str
    block: int = 64
    double: bool = False
    tile: int = 1
    half: bool = False
    scales: str = "float32"
    rounding: str = "floor"
    offsets: str = "zero"
    activations: str = "float"
    static: bool = False
    is_table: bool = False

    def __post_init__(self):
        check_choice("format", self.format, BITS)
        check_choice("scales", self.scales, SCALES)
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("offsets", self.offsets, OFFSETS)
        check_choice("activations", self.activations, ACTIVATIONS)
        for name in ("block", "tile"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} must be positive, or 0 for all that there are")
        numbers = self.kind.numbers
        if self.block % numbers:
            told = "must be even" if numbers == 2 else f"must be a multiple of {numbers}"
            raise ConfigError(f"block = {self.block} {told}: {numbers} numbers of {self.kind.bits} bits share bytes")
        if self.double and self.scales != "float32":
            raise ConfigError(f"double = True keeps scales in eight bits, and scales = {self.scales!r} otherwise")
        if self.scales == "power" and self.kind.is_whole:
            raise ConfigError("scales = 'power' is for formats of floats, 'fp4' and 'fp8'; take those, or other scales")
        if self.scales == "super" and (self.block == 0 or SUPER_BLOCK % self.block):
            raise ConfigError(f"block = {self.block} must divide {SUPER_BLOCK} with scales = 'super'")
        if self.half and not self.kind.low:
            raise ConfigError(f"half = True is for symmetric whole numbers, 'int2' to 'int8', not {self.format!r}")
        if self.activations == "int8" and (not self.kind.is_whole or self.format == "uint8"):
            raise ConfigError(f"activations of whole numbers need kernels of whole numbers, not {self.format!r}")
        if self.static and self.activations == "float":
            raise ConfigError("static = True is of activations = 'int8'")

    @property
    def kind(self):
        """The format (`fmjax.layers.codes.Format`)."""
        return FORMATS[self.format]

    def cut(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(block, tile) of a kernel of this shape [..., in, out]. Raises ConfigError where it does not divide."""
        *_, rows, out = shape[:-2] + shape[:-3:-1] if self.is_table else shape
        block, tile = self.block or rows, self.tile or out
        if rows % block:
            raise ConfigError(
                f"a kernel [{rows}, {out}] cannot be cut into blocks of {block} along its first axis; take a "
                f"block that divides {rows}{_divisors(rows, block)}"
            )
        if out % tile:
            raise ConfigError(
                f"a kernel [{rows}, {out}] cannot be cut into tiles of {tile} along its last axis; take a tile that "
                f"divides {out}{_divisors(out, tile)}"
            )
        if rows % self.kind.numbers:
            raise ConfigError(
                f"a kernel [{rows}, {out}] has no whole bytes of {self.format}: {self.kind.numbers} numbers along its "
                "first axis share them; leave it out, or take a format of 8 bits"
            )
        if self.scales == "super" and rows % SUPER_BLOCK:
            raise ConfigError(f"scales = 'super' is for kernels of a multiple of {SUPER_BLOCK} inputs, not {rows}")
        return block, tile

    def quantize(self, kernel: jax.Array) -> QTensor:
        """[..., in, out] to the nearest levels. Raises ConfigError where it does not divide into blocks."""
        if self.is_table:
            plain = dataclasses.replace(self, is_table=False)
            return plain.quantize(kernel.swapaxes(-1, -2)).replace(is_table=True)
        block, tile = self.cut(kernel.shape)
        *stack, rows, out = kernel.shape
        cut = kernel.astype(jnp.float32).reshape(*stack, rows // block, block, out // tile, tile)
        if self.format.startswith("uint"):
            return self._with_offsets(cut, kernel.shape, block, tile)
        largest = jnp.max(jnp.abs(cut), axis=(-3, -1))
        if self.scales == "power":
            scales = power_scales(largest, self.kind, self.rounding)
        else:
            scales = self._kept(largest / (self.kind.top + 0.5 * self.half), block)
        # Of scales in eight bits codes are of the scales before that, as bitsandbytes'.
        levels = _over(cut, largest / self.kind.top if self.double else scale_values(scales))
        if self.kind.is_whole and not self.half:  # the least level is not used
            levels = jnp.clip(levels, -self.kind.top, self.kind.top)
        return self._made(levels, kernel.shape, block, tile, scales)

    def _with_offsets(self, cut: jax.Array, shape, block: int, tile: int) -> QTensor:
        """Blocks from their least to their largest value."""
        least, largest = jnp.min(cut, axis=(-3, -1)), jnp.max(cut, axis=(-3, -1))
        if self.offsets == "zero":
            least, largest = jnp.minimum(least, 0.0), jnp.maximum(largest, 0.0)
        scales = self._kept((largest - least) / self.kind.top, block)
        steps = scale_values(scales)
        if self.offsets == "zero":
            zero = jnp.clip(jnp.round(_over(-least, steps)), 0, self.kind.high)
            levels = jnp.round(_over(cut, steps)) + _spread(zero)
            return self._made(levels, shape, block, tile, scales, zero.astype(jnp.uint8))
        offsets = self._kept(least, block)
        levels = _over(cut - _spread(scale_values(offsets)), steps)
        return self._made(levels, shape, block, tile, scales, offsets)

    def _made(self, levels: jax.Array, shape, block: int, tile: int, scales, offsets=None) -> QTensor:
        codes = to_codes(levels.reshape(shape), self.format)
        input_scale = jnp.ones(shape[:-2], jnp.float32) if self.static else None
        return QTensor(codes, scales, self.format, block, offsets, input_scale, tile, self.activations)

    def _kept(self, scales: jax.Array, block: int):
        if self.double:
            return quantize_scales(scales)
        return super_scales(scales, block) if self.scales == "super" else scales.astype(self.scales)


def _spread(scales: jax.Array) -> jax.Array:
    """[..., in / block, out / tile] beside a kernel that is cut into blocks and tiles."""
    return scales[..., :, None, :, None]


def _over(x: jax.Array, scales: jax.Array) -> jax.Array:
    """x / scales, a kernel that is cut or a number a block; 0 where the scale is."""
    scales = scales if x.ndim == scales.ndim else _spread(scales)
    return jnp.where(scales != 0, x / jnp.where(scales != 0, scales, 1.0), 0.0)


def quantization_of(weight: QTensor) -> Quantization:
    """How a kernel is quantized, block and tile as they are: `quantize` of it makes one of the same structure."""
    is_zero = weight.offsets is None or getattr(weight.offsets, "dtype", None) == jnp.uint8
    kinds = {QuantizedScales: "float32", SuperScales: "super", PowerScales: "power"}
    scales = kinds.get(type(weight.scales)) or str(weight.scales.dtype)
    return Quantization(
        weight.format, weight.block, isinstance(weight.scales, QuantizedScales), weight.tile, scales=scales,
        rounding=getattr(weight.scales, "rounding", "floor"), offsets="zero" if is_zero else "float",
        activations=weight.activations, static=weight.input_scale is not None, is_table=weight.is_table,
    )  # fmt: skip


def _divisors(size: int, near: int) -> str:
    """", such as 48 or 96": those of `size` nearest below and above `near`."""
    known = [n for n in range(2, size + 1) if size % n == 0 and n % 2 == 0]
    below, above = [n for n in known if n < near][-1:], [n for n in known if n > near][:1]
    return f", such as {' or '.join(map(str, below + above))}" if below + above else ""
