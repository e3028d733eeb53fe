"""Batch normalisation (Ioffe & Szegedy 2015), whose running statistics are state of the module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fmjax.layers.checks import check_rate

BATCH_STATS = ("batch_stats",)
"""`STATE` of a module with batch normalisation (`fmjax.models.state`)."""


class BatchNorm(nn.Module):
    """Channels with the mean and variance of the batch and all places of an image taken out; computed in float32.

    Parameters `scale` [C], initially 1 or 0, and `bias` [C]; state `batch_stats`: `mean` [C] and `var` [C]. Training
    normalises by the statistics of the rows at hand, with the variance divided by their number n, and moves the running
    ones towards them, the variance then divided by n - 1 (as PyTorch does). Rows that lie on several devices are one
    batch. Otherwise the running statistics normalise.

    Attributes:
      epsilon: added to the variance.
      decay: of the running statistics; PyTorch's momentum is 1 - decay.
      zero: the scale is 0 at the start, so that a residual branch that ends here adds nothing (Goyal et al. 2017).
    """

    epsilon: float = 1e-5
    decay: float = 0.9
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """float [B, ..., C] to the same, in x's dtype."""
        check_rate("decay", self.decay)
        shape, ones = (x.shape[-1],), nn.initializers.ones
        init = nn.with_logical_partitioning(nn.initializers.zeros if self.zero else ones, ("norm",))
        scale = self.param("scale", init, shape, jnp.float32)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        bias = self.param("bias", init, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        y, mean, var = x.astype(jnp.float32), running_mean.value, running_var.value
        if train:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean = y.mean(axes)
            var = ((y - mean) ** 2).mean(axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                moved = lambda old, new: self.decay * old + (1.0 - self.decay) * lax.stop_gradient(new)
                running_mean.value = moved(running_mean.value, mean)
                running_var.value = moved(running_var.value, var * (count / max(count - 1, 1)))
        factor = lax.rsqrt(var + self.epsilon) * scale
        return ((y - mean) * factor + bias).astype(x.dtype)
