"""Averages of parameters over training by power functions, and any width of them afterwards (Karras et al. 2024,
https://arxiv.org/abs/2312.02696, section 3).

The average at step t weighs the parameters of step s by a density proportional to s^gamma, from 0 to t: the more of the
past, the smaller gamma. Its width is the density's standard deviation over t, sigma_rel.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

WIDEST = 0.25
"""Of the sigma_rel that are taken: that of gamma = 0 is 0.289."""
MOST = 0.1
"""How far from the density that is wanted a mixture may be."""


def exponent(sigma_rel: float) -> float:
    """gamma of a width, from sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Raises ValueError for a width that is not above 0 and at most WIDEST.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel = {sigma_rel} must be above 0 and at most {WIDEST}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def share(step, gamma: float):
    """float32 []: of the parameters of step number `step`, from 1, in the average after it, 1 - (1 - 1 / step)^(gamma +
    1). So the average is exactly that of parameters that stay as they are from one step to the next."""
    count = jnp.asarray(step, jnp.float32)
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / count))


def products(steps_a, gammas_a, steps_b, gammas_b) -> np.ndarray:
    """float64, broadcast: integrals of the products of the densities of averages at steps a and b."""
    steps_a, gammas_a, steps_b, gammas_b = (np.asarray(x, float) for x in (steps_a, gammas_a, steps_b, gammas_b))
    power = gammas_a + gammas_b + 1
    logs = power * np.log(np.minimum(steps_a, steps_b))
    logs -= (gammas_a + 1) * np.log(steps_a) + (gammas_b + 1) * np.log(steps_b)
    return (gammas_a + 1) * (gammas_b + 1) / power * np.exp(logs)


def mixture(steps: Sequence[int], widths: Sequence[float], step: int, sigma_rel: float) -> np.ndarray:
    """float64 [N]: how much of each of N kept averages makes that of another width at `step`, by least squares of the
    densities (section 3.2); then made to add up to 1.

    Args:
      steps, widths: of the kept averages, [N] each: when, and which sigma_rel.

    Raises ValueError for a width that is not possible, or that they do not make: where the densities are apart by more
    than MOST of the one that is wanted, as root mean squares.
    """
    gammas = np.array([exponent(width) for width in widths])
    times = np.asarray(steps, float)
    gram = products(times[:, None], gammas[:, None], times, gammas)
    wanted = products(times, gammas, step, exponent(sigma_rel))
    # Neighbouring averages are nearly the same, so what tells them apart is far below rounding: it is left out.
    scale = 1 / np.sqrt(np.diag(gram))
    found = scale * np.linalg.lstsq(gram * scale[:, None] * scale, scale * wanted, rcond=1e-12)[0]
    size = products(step, exponent(sigma_rel), step, exponent(sigma_rel))
    apart = np.sqrt(max(0.0, 1 - (2 * found @ wanted - found @ gram @ found) / size))
    if apart > MOST:
        raise ValueError(
            f"sigma_rel = {sigma_rel}: the averages of widths {', '.join(map(str, sorted(set(widths))))} at steps "
            f"{', '.join(map(str, sorted(set(steps))))} make its density up to {apart:.0%}, and at most {MOST:.0%} is "
            "taken; ask for one nearer to these, or keep more checkpoints with train.keep_every"
        )
    return found / found.sum()
