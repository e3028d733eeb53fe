"""Codes of few bits: what they stand for, and how they lie in bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NormalFloat4 (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E)."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of the four-bit float by their bits (OCP Microscaling Formats 1.0, section 5.3.3)."""
FP8_MAX = 448.0
"""The largest number of the eight-bit float e4m3 (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433)."""


@dataclasses.dataclass(frozen=True)
class Format:
    """What the codes of a format stand for.

    Attributes:
      bits: of a code.
      top: the level that a block's largest absolute value is given.
      low, high: of whole numbers, the least and the largest that a code can be.
      levels: of formats that are no whole numbers, the level of each code; none of "fp8", whose codes are floats.
      exponent: of floats, that of the largest number: the largest power of two below it.
      fraction: of floats, bits of the fraction.
    """

    bits: int
    top: float
    low: int = 0
    high: int = 0
    levels: tuple[float, ...] = ()
    exponent: int = 0
    fraction: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether codes are whole numbers."""
        return self.high > 0

    @property
    def numbers(self) -> int:
        """How many along `in` share bytes."""
        return 8 // min(PLANES[self.bits])


PLANES = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}
"""Of so many bits: into which parts, the upper bits first, a code is cut, so that each part fills bytes."""
FORMATS = {f"int{bits}": Format(bits, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in PLANES}
FORMATS |= {f"uint{bits}": Format(bits, 2**bits - 1, 0, 2**bits - 1) for bits in PLANES}
FORMATS |= {
    "nf4": Format(4, 1.0, levels=NF4),
    "fp4": Format(4, 6.0, levels=E2M1, exponent=2, fraction=1),
    "fp8": Format(8, FP8_MAX, exponent=8, fraction=3),
}
"""By name: "int2" to "int8", symmetric; "uint2" to "uint8", which need an offset; "nf4"; "fp4" (e2m1), "fp8" (e4m3)."""
BITS = {name: format.bits for name, format in FORMATS.items()}


def pack(codes, bits: int):
    """uint8 [..., in * bits / 8, out] from codes uint8 [..., in, out] below 2 ** bits, of jax or numpy.

    Numbers beside each other along `in` share bytes, the first of them in the upper bits. Of 3, 5 and 6 bits the upper
    4 or 2 of the numbers that share bytes come first, then what is left of them.
    """
    if bits == 8:
        return codes
    xp = jnp if isinstance(codes, jax.Array) else np
    *stack, rows, out = codes.shape
    group, left, parts = 8 // min(PLANES[bits]), bits, []
    for part in PLANES[bits]:
        left -= part
        piece = (codes >> left) & (2**part - 1)
        piece = piece.reshape(*stack, rows // group, group * part // 8, 8 // part, out)
        parts.append(sum(piece[..., i, :] << (8 - part * (i + 1)) for i in range(8 // part)))
    return xp.concatenate(parts, axis=-2).astype(np.uint8).reshape(*stack, rows * bits // 8, out)


def unpack(packed, bits: int):
    """uint8 [..., in, out]: the codes that `pack` has packed."""
    if bits == 8:
        return packed
    xp = jnp if isinstance(packed, jax.Array) else np
    *stack, size, out = packed.shape
    group, begin, codes = 8 // min(PLANES[bits]), 0, 0
    cut = packed.reshape(*stack, size * 8 // bits // group, group * bits // 8, out)
    for part in PLANES[bits]:
        piece = cut[..., begin : begin + group * part // 8, :]
        begin += group * part // 8
        pieces = [(piece >> (8 - part * (i + 1))) & (2**part - 1) for i in range(8 // part)]
        codes = (codes << part) | xp.stack(pieces, axis=-2).reshape(*cut.shape[:-2], group, out)
    return codes.astype(np.uint8).reshape(*stack, size * 8 // bits, out)


def to_levels(packed: jax.Array, format: str) -> jax.Array:
    """float32 [..., in, out]: what packed codes stand for."""
    kind = FORMATS[format]
    if kind.is_whole:
        return whole_numbers(packed, format).astype(jnp.float32)
    codes = unpack(packed, kind.bits)
    if not kind.levels:
        return codes.astype(jnp.float32)
    # Bit by bit: a gather from a table of 16 is slower everywhere.
    chosen = [jnp.float32(level) for level in kind.levels]
    for bit in range(kind.bits):
        is_set = (codes >> bit) & 1 == 1
        chosen = [jnp.where(is_set, high, low) for low, high in zip(chosen[::2], chosen[1::2])]
    return chosen[0]


def whole_numbers(packed: jax.Array, format: str) -> jax.Array:
    """int8 [..., in, out], or uint8 of "uint8": the levels of a format of whole numbers."""
    kind = FORMATS[format]
    if kind.bits == 8:
        return packed
    return unpack(packed, kind.bits).astype(jnp.int8) + np.int8(kind.low)


def to_codes(x: jax.Array, format: str) -> jax.Array:
    """Packed codes of the levels nearest to x [..., in, out], which is in units of levels: of two that are as near the
    even one (the lower one of "nf4"); what lies beyond the outermost levels becomes these."""
    kind = FORMATS[format]
    if format == "fp8":
        return jnp.clip(x, -FP8_MAX, FP8_MAX).astype(jnp.float8_e4m3fn)
    if format == "fp4":
        codes = _fp4_codes(x)
    elif kind.levels:
        codes = nearest(x, np.asarray(kind.levels, np.float32))
    else:
        whole = jnp.clip(jnp.round(x), kind.low, kind.high)
        if kind.bits == 8:
            return whole.astype(jnp.int8 if kind.low else jnp.uint8)
        codes = (whole - kind.low).astype(jnp.uint8)
    return pack(codes, kind.bits)


def _fp4_codes(x: jax.Array) -> jax.Array:
    size, code = jnp.abs(x), jnp.signbit(x).astype(jnp.uint8) << 3
    for place, (low, high) in enumerate(zip(E2M1[:7], E2M1[1:8])):
        edge = (low + high) / 2
        code += (size >= edge if place % 2 else size > edge).astype(jnp.uint8)
    return code


def nearest(x: jax.Array, levels: np.ndarray) -> jax.Array:
    """uint8, the place of the nearest of ascending levels."""
    edges = jnp.asarray((levels[1:] + levels[:-1]) / 2)
    return jnp.searchsorted(edges, x, method="compare_all" if len(levels) <= 16 else "scan").astype(jnp.uint8)
