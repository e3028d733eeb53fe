"""The variational autoencoder (Kingma & Welling 2013, https://arxiv.org/abs/1312.6114) of images."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from fmjax.diffusion.bound import LEVELS
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_rate
from fmjax.models.autoencoder_kl import drawn, normal_kl
from fmjax.objectives.adversarial import Autoencoding
from fmjax.objectives.base import Proposal
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class VAE(Autoencoding):
    """Nats of an image, a number of it: those of the image given a draw of its latents, and `beta` times those of the
    latents' distribution given the image to the standard normal. With beta = 1 that is the negative evidence lower
    bound.

    The module has `moments(images)`, `decode(latents)` and `encode`, such as
    `fmjax.models.autoencoder_kl.AutoencoderKL`. Further terms are those of `Autoencoding`.

    Attributes:
      likelihood: of a number of the image given the decoder's: "normal", squared errors, or "laplace", absolute ones.
      scale: the variance of the one, the scale of the other. None: the most likely one, which is the mean squared
        (absolute) error; it is carried, as a moving average (sigma-VAE, Rybkin et al. 2021,
        https://arxiv.org/abs/2006.13202, equation 5, over all images seen).
      scale_decay: of that average.
      beta: weight of the latents' nats (Higgins et al. 2017).
    """

    likelihood: Literal["normal", "laplace"] = "normal"
    scale: float | None = None
    scale_decay: float = 0.99
    beta: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_rate("objective.scale_decay", self.scale_decay)
        if self.likelihood not in ("normal", "laplace"):
            raise ConfigError(f"objective.likelihood = {self.likelihood!r}; known: normal, laplace")
        if self.scale is not None and not self.scale > 0:
            raise ConfigError(f"objective.scale = {self.scale} must be above 0, or None for the most likely one")
        if not self.beta >= 0:
            raise ConfigError(f"objective.beta = {self.beta} must be at least 0")

    def initial(self, module, params, key) -> dict:
        """{"scale": float32 []}, and what the critic needs."""
        if not all(hasattr(module, name) for name in ("moments", "decode")):
            raise ConfigError(
                f"objective vae needs moments(images) and decode(latents), which {type(module).__name__} does not "
                "have; take model.name = 'autoencoder_kl'"
            )
        start = 1.0 if self.scale is None else self.scale
        return {"scale": jnp.float32(start), **self.first_turn(module, params)}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry, models=None):
        """Sums over the batch, rows by `loss_weights` [B]: "loss"; "reconstruction", the mean error of a number; "kl",
        nats of an image's latents; "bits_per_dim", a bound for images of 8 bits from -1 to 1 (`_level_nats`), whatever
        beta is; and others for `reduce`."""
        images, weights = batch["images"], batch["loss_weights"]
        mean, log_variance = apply_fn({"params": params}, images, method="moments")
        latents = drawn(mean, log_variance, batch["keys"])
        made = apply_fn({"params": params}, latents, method="decode")
        errors, kl = self._errors(images, made), normal_kl(mean, log_variance)
        numbers = images[0].size
        nats = self._nats(errors, carry["scale"])
        losses = nats + self.beta * kl / numbers

        fixed = jax.lax.stop_gradient(latents)

        def again(params):
            made = apply_fn({"params": params}, fixed, method="decode")
            return made, self._nats(self._errors(images, made), carry["scale"])

        more, rows, statistics = self.beyond(
            apply_fn, params, images, made, weights, carry, models, again if train else None
        )
        total = weights.sum()
        rows |= {"loss": losses + more, "reconstruction": errors, "kl": kl}
        rows["bits_per_dim"] = (self._level_nats(images, made, carry["scale"]) + kl / numbers) / math.log(2)
        sums = {name: ((value * weights).sum(), total) for name, value in rows.items()}
        moment = lambda x: ((x.reshape(len(x), -1).mean(1) * weights).sum(), total)
        sums |= {"latent_mean": moment(latents), "latent_square": moment(latents**2)}
        errors = (jax.lax.stop_gradient(errors) * weights).sum()
        return sums, Proposal({"errors": errors, "rows": total, "critic": statistics})

    def _errors(self, images, made) -> jax.Array:
        """Mean error of a number of each image, [B]."""
        apart = images - made
        return (apart**2 if self.likelihood == "normal" else jnp.abs(apart)).mean((1, 2, 3))

    def _nats(self, errors, scale) -> jax.Array:
        """-log of the likelihood's density, a number of the image, [B]."""
        if self.likelihood == "normal":
            return 0.5 * (errors / scale + jnp.log(2 * math.pi * scale))
        return errors / scale + jnp.log(2 * scale)

    def _level_nats(self, images, made, scale) -> jax.Array:
        """-log of the probability that the likelihood rounds to the image, a number of it, [B].

        Levels are 2 / `LEVELS` apart, from -1 to 1, and the outer ones have all that lies beyond. Of a density at these
        points no bound follows.
        """
        deviation = jnp.sqrt(scale) if self.likelihood == "normal" else scale
        log_cdf = jax.scipy.stats.norm.logcdf if self.likelihood == "normal" else _laplace_log_cdf
        # Both distributions are symmetric, and a tail's logarithm is exact on the left.
        apart, half = -jnp.abs(images - made), 1 / LEVELS
        above, below = log_cdf((apart + half) / deviation), log_cdf((apart - half) / deviation)
        middle = above + jnp.log(-jnp.expm1(below - above))
        towards = jnp.sign(images) * (made - images)
        ends = log_cdf((towards + half) / deviation)
        return -jnp.where(jnp.abs(images) < 1 - half, middle, ends).mean((1, 2, 3))

    def after(self, carry, proposal, params) -> dict:
        """The scale and the critic's turn after a step."""
        found, scale = proposal.sums, carry["scale"]
        if self.scale is None:
            error = found["errors"] / jnp.maximum(found["rows"], 1e-20)
            scale = jnp.maximum(self.scale_decay * scale + (1 - self.scale_decay) * error, 1e-6)
        return {"scale": scale, **self.next_turn(carry, found["critic"])}

    def reduce(self, sums) -> dict:
        """The means; "latent_deviation" is that of a draw's numbers, which diffusion brings to 1."""
        means = {name: total / jnp.maximum(weight, 1e-20) for name, (total, weight) in sums.items()}
        variance = means.pop("latent_square") - means["latent_mean"] ** 2
        return means | {"latent_deviation": jnp.sqrt(jnp.maximum(variance, 0.0))}

    def reconstruct(self, model, arrays) -> jax.Array:
        """float32 [B, H, W, C]: what the means of the latents of `arrays["images"]` are decoded to."""
        return _reconstructed(model.module, model.variables, arrays["images"])


def _laplace_log_cdf(x) -> jax.Array:
    """log of the probability of less than x, of the Laplace distribution of scale 1."""
    return jnp.where(x < 0, x - math.log(2), jnp.log1p(-0.5 * jnp.exp(-jnp.abs(x))))


@functools.partial(jax.jit, static_argnums=0)
def _reconstructed(module, variables, images) -> jax.Array:
    latents = module.apply(variables, images, method="encode")
    return whole(module.apply(variables, latents, method="decode"))
