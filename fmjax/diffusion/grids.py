"""Grids: the times that a sampler goes through, from noise to data; made on the host in float64."""

import dataclasses

import numpy as np

from fmjax.errors import InputError
from fmjax.registry import nearest

SPACINGS = ("trailing", "leading", "linspace", "karras")


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where a model is asked, and what the process is there.

    Attributes:
      times: [N], what the model is told.
      alphas, sigmas: [N + 1], of the process at these times and at the end, which is data (1 and 0) or, of a grid that
        goes from data to noise, the last time.
      next_times: [N], the time after each; the last is of no meaning where the end is data.
    """

    times: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray
    next_times: np.ndarray

    def __len__(self) -> int:
        return len(self.times)

    def last(self, strength: float) -> "Grid":
        """The last share `strength` of the steps, at least one."""
        first = len(self) - max(1, round(strength * len(self)))
        return Grid(self.times[first:], self.alphas[first:], self.sigmas[first:], self.next_times[first:])


def make_grid(process, num_steps: int, spacing: str | None = None, shift: float = 1.0) -> Grid:
    """From the process's noise to data in so many steps.

    Args:
      spacing: of the times. "trailing" begins at the greatest, in equal steps to data; "leading" ends one step before
        data; "linspace" goes from the greatest to the least (these three as diffusers names them); "karras" is linear
        in (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5). None: the process's own.
      shift: times t become shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23): more of them near noise.

    Raises InputError for another spacing, more steps than the process has, steps that "leading" does not divide into,
    a shift of Karras' levels, or times that fall together.
    """
    spacing = spacing or process.spacing
    if spacing not in SPACINGS:
        raise InputError(f"spacing = {spacing!r}{nearest(spacing, SPACINGS)} Known: {', '.join(SPACINGS)}")
    if not shift > 0:
        raise InputError(f"shift = {shift} must be above 0")
    if process.num_steps is not None and num_steps > process.num_steps:
        raise InputError(f"steps = {num_steps}: the process of the model has {process.num_steps} steps; ask for fewer")
    if spacing == "karras" and shift != 1.0:
        raise InputError(
            f"shift = {shift} has no meaning with spacing = 'karras', which says its noise levels; leave it out"
        )
    (low, high), index = process.ends, np.arange(num_steps)
    if spacing == "karras":
        if process.alpha(np.array(high)) < 1e-8:
            raise InputError("spacing = 'karras' needs data left in the noise, of which this process has none")
        ends = [(process.sigma(t) / process.alpha(t)) ** (1 / 7) for t in np.array([high, low])]
        exact = process.time_at(np.linspace(*ends, num_steps) ** 7)
    elif spacing == "linspace":
        exact = np.linspace(high, low, num_steps)
    elif spacing == "leading":
        stride = 1 / num_steps
        if process.num_steps is not None:
            if process.num_steps % num_steps:
                raise InputError(
                    f"steps = {num_steps} does not divide the process's {process.num_steps} steps, which spacing = "
                    "'leading' needs; take 'trailing', or a number that does"
                )
            stride = (process.num_steps // num_steps) / process.num_steps
        exact = index[::-1] * stride
    else:
        exact = high - index / num_steps
    exact = shift * exact / (1 + (shift - 1) * exact)
    times = process.snap(exact)
    # Also where Karras' own are asked at the nearest step: a step to the same time would be of no length.
    if spacing != "karras" and np.any(np.diff(times) > -1e-9):
        raise InputError(
            f"steps = {num_steps}, with spacing = {spacing!r} and shift = {shift}, ask at the same time twice: the "
            f"process's times are {'steps' if process.num_steps else f'at least {low}'}; ask for fewer steps"
        )
    # What no model is asked at is still a noise level: Karras' are taken as they are.
    nodes = np.clip(exact, low, high) if spacing == "karras" else times
    return Grid(
        times, np.append(process.alpha(nodes), 1.0), np.append(process.sigma(nodes), 0.0), np.append(times[1:], low)
    )


def inverted(grid: Grid, process) -> Grid:
    """The times of a grid from data to noise: of Euler's method, backwards (DDIM inversion, Dhariwal & Nichol 2021,
    https://arxiv.org/abs/2105.05233, section F)."""
    low = np.array(process.ends[0])
    times, alphas, sigmas = grid.times[::-1], grid.alphas[-2::-1], grid.sigmas[-2::-1]
    if times[0] > low:  # of which the model knows most of the data
        times = np.append(low, times)
        alphas, sigmas = np.append(process.alpha(low), alphas), np.append(process.sigma(low), sigmas)
    return Grid(times[:-1], alphas, sigmas, times[1:])
