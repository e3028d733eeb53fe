"""Which weights of a kernel stay: patterns of zeros, and what a weight is worth (magnitude, Wanda)."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How many weights of a kernel [in, out] become zero, and among which the least are looked for.

    Attributes:
      sparsity: the share that becomes zero.
      group: None, or m of a pattern n:m: along the inputs of each output, of every m in a row the same number stays.
    """

    sparsity: float
    group: int | None = None

    def __post_init__(self):
        if not 0.0 < self.sparsity < 1.0:
            raise ConfigError(f"sparsity = {self.sparsity} must lie between 0 and 1, such as 0.5")
        if self.group is not None and abs(self.group * self.sparsity - round(self.group * self.sparsity)) > 1e-9:
            raise ConfigError(f"sparsity = {self.sparsity} of {self.group} weights is no whole number; write it as n:m")

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Of "0.5", or "2:4": two of every four stay. Raises ConfigError for anything else."""
        if (found := re.fullmatch(r"(\d+):(\d+)", str(text))) is not None:
            stay, group = int(found[1]), int(found[2])
            if not 0 < stay < group:
                raise ConfigError(f"pattern {text!r}: of n:m, n must lie between 0 and m, such as 2:4")
            return cls(1 - stay / group, group)
        try:
            share = float(text)
        except ValueError:
            raise ConfigError(f"pattern {text!r} is neither a share such as 0.5 nor n:m such as 2:4") from None
        return cls(share)

    def check(self, rows: int, what: str) -> None:
        """Raises ConfigError, naming the kernel, where its inputs do not divide into groups."""
        if self.group is not None and rows % self.group:
            raise ConfigError(
                f"{what} has {rows} inputs, which do not divide into groups of {self.group}; leave it out, or take a "
                "pattern without groups, such as 0.5"
            )

    def kept(self, scores: jax.Array, across: bool = False) -> jax.Array:
        """bool [in, out]: where the weights stay.

        Args:
          scores: [in, out], what each weight is worth; of equals the later inputs (outputs, where `across`) stay.
          across: whether outputs are compared with one another; else each loses as many inputs as the next. Of n:m
            they never are.

        The number of zeros is exact: sparsity times the number compared, rounded to the nearest whole number.
        """
        rows, out = scores.shape
        if self.group is not None:
            return self._least_kept(scores.reshape(rows // self.group, self.group, out)).reshape(rows, out)
        if across:
            return self._least_kept(scores.reshape(1, rows * out, 1)).reshape(rows, out)
        return self._least_kept(scores[None])[0]

    def _least_kept(self, scores):
        """Of [groups, n, out], along the middle axis."""
        number = round(self.sparsity * scores.shape[1])
        order = jnp.argsort(jnp.argsort(scores, axis=1, stable=True), axis=1, stable=True)
        return order >= number


def wanda(kernel: jax.Array, squares: jax.Array) -> jax.Array:
    """|w| times the norm of its input over calibration (Sun et al. 2023, https://arxiv.org/abs/2306.11695, equation 1),
    float32 [in, out]; compared among the inputs of an output.

    Args:
      squares: float32 [in], the sum of x^2.
    """
    return jnp.abs(kernel.astype(jnp.float32)) * jnp.sqrt(squares)[:, None]


def magnitude(kernel: jax.Array) -> jax.Array:
    """|w|, float32 [in, out] (Han et al. 2015, https://arxiv.org/abs/1506.02626); compared over the kernel."""
    return jnp.abs(kernel.astype(jnp.float32))
