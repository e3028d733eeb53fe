"""Sums over pixels at learnt places: the operation of deformable convolutions (Dai et al. 2017; Wang et al. 2023).

Bilinear interpolation weighs a pixel at distance (u, v) with hat(u) hat(v), hat(t) = max(0, 1 - |t|). So where no
offset is longer than `reach` pixels along an axis, all that a place reads lies in a window of 2 (reach + size // 2) + 1
pixels a side, and the sum over taps is one over the window,

    y(p) = sum_q kernel(p, q) x(p + q),    kernel(p, q) = sum_k weight_k hat(q_x - p_kx - dx_k) hat(q_y - p_ky - dy_k),

of shifted arrays: no gather, and no scatter for the gradient, which are what is slow on CPUs and TPUs. It is exact.
Where an offset is longer, the four pixels of each tap are gathered instead.

Inside, an image is one row of numbers: [B, groups, channels of a group, rows x (W + margin)] with `margin` zeros
between rows and around all, so that a shift by (u, v) is one by v (W + margin) + u, and the innermost axis is long.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.layers.derivatives import with_backward


@functools.partial(jax.jit, static_argnames=("size", "reach"))  # blocks of one shape are traced once
def deformed_sum(
    x: jax.Array, offsets: jax.Array, weights: jax.Array, size: int = 3, reach: int | None = 2
) -> jax.Array:
    """y_g(p) = sum_k weights_gk x_g(p + p_k + offsets_gk): bilinear between pixels, zero outside of the image.

    Args:
      x: float [B, H, W, G, C]: G groups of channels.
      offsets: float [B, H, W, G, size**2, 2]: (x, y) in pixels; the taps p_k go through x first: k = i * size + j is
        the tap at x = i - size // 2, y = j - size // 2.
      weights: float [B, H, W, G, size**2].
      size: side of the square of taps, odd.
      reach: offsets of at most so many pixels are computed in windows, of the least of the sizes up to it that does,
        for all of the batch; None gathers always.

    Returns: float32 [B, H, W, G, C].
    """
    arrays = tuple(array.astype(jnp.float32) for array in (x, offsets, weights))
    if reach is None:
        return gathered(*arrays, size)
    return _windowed(size, reach)(*arrays)[0]


def taps(size: int) -> np.ndarray:
    """float32 [size**2, 2]: (x, y) of the taps, x-major."""
    side = np.arange(size, dtype=np.float32) - size // 2
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)


def gathered(x: jax.Array, offsets: jax.Array, weights: jax.Array, size: int) -> jax.Array:
    """`deformed_sum` of any offsets: the four pixels around each tap's place are gathered."""
    batch, height, width, groups, _ = x.shape
    places = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1)[:, :, None, None]
    places = places + taps(size) + offsets
    first = lax.stop_gradient(jnp.floor(places))
    rows = x.reshape(batch, height * width, groups, -1)
    take = jax.vmap(jax.vmap(lambda values, at: values[at], (1, 1), 1))
    total = 0.0
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = first + np.array(corner, np.float32)
        inside = ((pixel >= 0) & (pixel < np.array([width, height]))).all(-1)
        share = jnp.where(inside, weights * _hat(places - pixel).prod(-1), 0.0)
        column, row = (jnp.clip(pixel[..., i], 0, side - 1).astype(jnp.int32) for i, side in enumerate((width, height)))
        found = take(rows, (row * width + column).reshape(batch, height * width, groups, -1))
        total = total + (found.reshape(*share.shape, -1) * share[..., None]).sum(-2)
    return total


def _hat(t: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - jnp.abs(t), 0.0)


def _slope(t: jax.Array) -> jax.Array:
    """Derivative of `_hat`."""
    return jnp.where(jnp.abs(t) < 1.0, -jnp.sign(t), 0.0)


@functools.cache
def _windowed(size: int, reach: int) -> Callable:
    """(x, offsets, weights) -> (`deformed_sum`,), in the smallest windows that hold the offsets, and its derivative."""
    reaches = range(1, reach + 1)
    function = lambda *args: (_forward(size, reaches, args),)
    return with_backward(function, lambda args, outs, cotangents: _backward(size, reaches, args, cotangents[0]))


def _forward(size: int, reaches: Sequence[int], args) -> jax.Array:
    if not reaches:
        return gathered(*args, size)
    fits, window = _fits(args[1], reaches[0]), Window(args[0].shape, size, reaches[0])

    def inside(fits, args):
        rows, of, by = _staged(fits, window.lay_all, *args)
        kernel = _staged(fits, window.kernel, of, by)
        return window.lift(_staged(fits, window.summed, kernel, rows))

    return lax.cond(fits, inside, lambda fits, args: _forward(size, reaches[1:], args), fits, args)


def _backward(size: int, reaches: Sequence[int], args, dy) -> tuple[jax.Array, ...]:
    """The gradients of x, offsets and weights."""
    if not reaches:
        return jax.vjp(lambda *args: gathered(*args, size), *args)[1](dy)
    fits, window = _fits(args[1], reaches[0]), Window(args[0].shape, size, reaches[0])

    def inside(fits, args, dy):
        rows, of, by = _staged(fits, window.lay_all, *args)
        kernel = _staged(fits, window.kernel, of, by)
        dy, kernel = _staged(fits, lambda dy, kernel: (window.lay(dy), window.widen(kernel)), dy, kernel)
        dx = _staged(fits, window.spread, kernel, dy)
        dkernel = _staged(fits, window.correlated, dy, _staged(fits, window.shifted, rows))
        dhats = _staged(fits, window.back_to_hats, dkernel, of, by)
        dtaps = _staged(fits, window.back_to_taps, *dhats, of, by)
        return window.lifted_back(dx, *dtaps)

    outside = lambda fits, args, dy: _backward(size, reaches[1:], args, dy)
    return lax.cond(fits, inside, outside, fits, args, dy)


def _fits(offsets: jax.Array, reach: int) -> jax.Array:
    return jnp.abs(offsets).max(initial=0.0) <= reach


def _staged(fits: jax.Array, function: Callable, *args):
    """function(*args) where it `fits`, or else zeros.

    A branch is computed once. XLA for CPUs would otherwise compute the kernel again for every channel that it is for.
    """
    zeros = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *args))
    return lax.cond(fits, function, zeros, *args)


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps of a sum over windows; arrays of images have the shape `shape` [B, H, W, G, C]."""

    shape: tuple[int, ...]
    size: int
    reach: int

    @property
    def margin(self) -> int:
        """Pixels that a window reaches beyond its middle."""
        return self.reach + self.size // 2

    @property
    def side(self) -> int:
        return 2 * self.margin + 1

    @property
    def stride(self) -> int:
        """From a row of the image to the next."""
        return self.shape[2] + self.margin

    @property
    def length(self) -> int:
        """Of an image's rows, the zeros between them among it."""
        return self.shape[1] * self.stride

    @property
    def shifts(self) -> list[tuple[int, int, int]]:
        """(row, column, shift) of each place of the window."""
        return [(v, u, v * self.stride + u) for v in range(self.side) for u in range(self.side)]

    def lay(self, x: jax.Array) -> jax.Array:
        """[B, H, W, G, n] as rows [B, G, n, length]."""
        batch, _, _, groups, count = x.shape
        x = jnp.pad(x, [(0, 0), (0, 0), (0, self.margin), (0, 0), (0, 0)])
        return x.transpose(0, 3, 4, 1, 2).reshape(batch, groups, count, self.length)

    def lift(self, rows: jax.Array) -> jax.Array:
        """The inverse of `lay`."""
        batch, groups, count, _ = rows.shape
        x = rows.reshape(batch, groups, count, self.shape[1], self.stride)[..., : self.shape[2]]
        return x.transpose(0, 3, 4, 1, 2)

    def lay_all(self, x, offsets, weights):
        """(rows of x with zeros around them, (rows of the offsets along x, along y), rows of the weights)."""
        around = self.margin * (self.stride + 1)
        rows = jnp.pad(self.lay(x), [(0, 0)] * 3 + [(around, around)])
        return rows, (self.lay(offsets[..., 0]), self.lay(offsets[..., 1])), self.lay(weights)

    def distances(self, offsets) -> tuple[jax.Array, jax.Array]:
        """[B, G, taps, side, length]: from each tap's place to the window's pixels, along x and along y."""
        pixels = (np.arange(self.side, dtype=np.float32) - self.margin)[:, None]
        at = taps(self.size)
        return tuple(pixels - (offsets[i] + at[:, i, None])[:, :, :, None] for i in (0, 1))

    def kernel(self, offsets, weights) -> jax.Array:
        """[B, G, side (along y), side (along x), length]."""
        along_x, along_y = map(_hat, self.distances(offsets))
        along_y = along_y * weights[:, :, :, None]
        return sum(along_y[:, :, k, :, None] * along_x[:, :, k, None] for k in range(self.size**2))

    def summed(self, kernel, rows) -> jax.Array:
        """Rows of y."""
        part = lambda shift: rows[..., shift : shift + self.length]
        return sum(kernel[:, :, None, v, u] * part(shift) for v, u, shift in self.shifts)

    def widen(self, kernel) -> jax.Array:
        """The kernel with zeros before and after its rows, for `spread`."""
        return jnp.pad(kernel, [(0, 0)] * 4 + [(self.shifts[-1][2],) * 2])

    def spread(self, kernel, dy) -> jax.Array:
        """Rows of the gradient of x, with what falls around it: the transpose of `summed`."""
        last = self.shifts[-1][2]
        dy = jnp.pad(dy, [(0, 0)] * 3 + [(last, last)])
        part = lambda x, shift: x[..., last - shift : 2 * last - shift + self.length]
        return sum(part(kernel[:, :, None, v, u], shift) * part(dy, shift) for v, u, shift in self.shifts)

    def shifted(self, rows) -> jax.Array:
        """[B, G, C, side, length + side - 1]: the rows of x that lie at each row of the window."""
        starts = range(0, self.side * self.stride, self.stride)
        return jnp.stack([rows[..., start : start + self.length + self.side - 1] for start in starts], 3)

    def correlated(self, dy, shifted) -> jax.Array:
        """The gradient of the kernel."""
        # Channels one by one: XLA for CPUs does not vectorise a reduction over them.
        count = range(dy.shape[2])
        one = lambda u: sum(dy[:, :, c, None] * shifted[:, :, c, :, u : u + self.length] for c in count)
        return jnp.stack([one(u) for u in range(self.side)], 3)

    def back_to_hats(self, dkernel, offsets, weights) -> tuple[jax.Array, jax.Array]:
        """[B, G, taps, side, length]: gradients of the hats along x, with their weights, and of those along y, without.
        """
        along_x, along_y = map(_hat, self.distances(offsets))
        along_y = along_y * weights[:, :, :, None]
        places = range(self.side)
        of_y = sum(dkernel[:, :, None, :, u] * along_x[:, :, :, u, None] for u in places)
        of_x = sum(dkernel[:, :, None, v] * along_y[:, :, :, v, None] for v in places)
        return of_x, of_y

    def back_to_taps(self, of_x, of_y, offsets, weights) -> tuple[jax.Array, ...]:
        """Rows of the gradients of the offsets along x, along y, and of the weights."""
        along_x, along_y = self.distances(offsets)
        total = lambda array: sum(array[:, :, :, i] for i in range(self.side))
        return -total(of_x * _slope(along_x)), -weights * total(of_y * _slope(along_y)), total(of_y * _hat(along_y))

    def lifted_back(self, dx, doffset_x, doffset_y, dweights) -> tuple[jax.Array, ...]:
        """The gradients in the shapes of x, offsets and weights."""
        around = self.margin * (self.stride + 1)
        dx = self.lift(dx[..., around : around + self.length])
        return dx, jnp.stack([self.lift(doffset_x), self.lift(doffset_y)], -1), self.lift(dweights)
