"""A model that only this lab has."""

import flax.linen as nn
import jax.numpy as jnp


class Bilinear(nn.Module):
    """Rates pairs: x W y, with no logical axes named at all."""

    rank: int = 4
    num_features: int | None = None

    @nn.compact
    def __call__(self, left, right, train: bool = False):
        project = lambda name: self.param(name, nn.initializers.normal(0.1), (self.num_features, self.rank))
        return jnp.sum((left @ project("left")) * (right @ project("right")), axis=-1)
