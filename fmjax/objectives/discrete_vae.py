"""The discrete variational autoencoder (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, section 2.1): images
through codes that are drawn, softly, while it learns (Jang et al. 2016, https://arxiv.org/abs/1611.01144)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers import logit_laplace, quantizers
from fmjax.objectives.base import Proposal, per_row
from fmjax.objectives.reconstructing import Reconstructing
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class DiscreteVAE(Reconstructing):
    """Nats of an image, a number of it: those of the pixels (`fmjax.layers.logit_laplace`) given a draw of the codes,
    and `beta` times those of the codes' distribution given the image to the uniform one.

    A draw in a place is softmax((logits + Gumbel noise) / temperature), which is a code as the temperature goes to 0.
    Temperature and weight go by half a cosine over the run's first steps; the step is carried. The module has
    `code_logits`, `pixels`, `codes` and `images_of`, such as `fmjax.models.discrete_vae.DiscreteVAE`.

    Attributes:
      beta: weight of the codes' nats once it has grown from 0.
      beta_steps: in how many steps it does.
      temperatures: of the draws, at the first step and in the end.
      temperature_steps: from the one to the other.
    """

    beta: float = 6.6
    beta_steps: int = 5_000
    temperatures: tuple[float, float] = (1.0, 1 / 16)
    temperature_steps: int = 150_000

    def __post_init__(self):
        super().__post_init__()
        for name in ("beta", "beta_steps", "temperature_steps"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be at least 0")
        if len(self.temperatures) != 2 or not all(one > 0 for one in self.temperatures):
            raise ConfigError(f"objective.temperatures = {list(self.temperatures)}: expected two numbers above 0")

    def initial(self, module, params, key) -> dict[str, jax.Array]:
        """{"step": int32 []}."""
        return {"step": jnp.int32(0)}

    def check(self, module, data) -> None:
        """Raises ConfigError for a module without codes, or images that are not prepared as numbers from -1 to 1."""
        if not all(hasattr(module, name) for name in ("code_logits", "pixels", "codes", "images_of")):
            raise ConfigError(
                f"objective discrete_vae needs a module with code_logits, pixels, codes and images_of, which "
                f"{type(module).__name__} is not; take model.name = 'discrete_vae'"
            )
        codec = data.codecs.get(self.makes)
        if codec is None or any(set(getattr(codec, name, ())) != {0.5} for name in ("mean", "std")):
            raise ConfigError(
                f"objective discrete_vae reads images with mean = std = 0.5, numbers from -1 to 1, and these data have "
                f"{codec}; leave mean and std of the data out"
            )

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry):
        """Sums over the batch, rows by `loss_weights` [B]: "loss"; "reconstruction", nats of a number of the image;
        "kl", nats of an image's codes; "temperature" and "beta"; "usage", how often each code was likeliest [K]; and
        when not training "squared_error", of a number of the image made of the likeliest codes."""
        images, weights = batch["images"], batch["loss_weights"]
        logits = apply_fn({"params": params}, images, method="code_logits")
        temperature, beta = self.schedule(carry["step"])
        noise = per_row(lambda key: jax.random.gumbel(key, logits.shape[1:]), batch["keys"])
        location, log_scale = apply_fn({"params": params}, drawn(logits, noise, temperature), method="pixels")
        nats = logit_laplace.nats(logit_laplace.to_open(images), location, log_scale).mean((1, 2, 3))
        kl = uniform_kl(logits).sum(1)
        rows = {"loss": nats + beta * kl / images[0].size, "reconstruction": nats, "kl": kl}
        codes = logits.argmax(-1)
        if not train:
            made = apply_fn({"params": params}, codes, method="images_of")
            rows["squared_error"] = ((made - images) ** 2).mean((1, 2, 3))
        total = weights.sum()
        sums = {name: ((value * weights).sum(), total) for name, value in rows.items()}
        sums |= {"temperature": (temperature * total, total), "beta": (beta * total, total)}
        used = (jax.nn.one_hot(codes, logits.shape[-1]) * weights[:, None, None]).sum((0, 1))
        return sums | {"usage": (used, used.sum())}, Proposal()

    def schedule(self, step) -> tuple[jax.Array, jax.Array]:
        """(temperature, beta) at a step."""
        first, last = self.temperatures
        return by_cosine(step, self.temperature_steps, first, last), by_cosine(step, self.beta_steps, 0.0, self.beta)

    def after(self, carry, proposal, params) -> dict[str, jax.Array]:
        """The step after it."""
        return {"step": carry["step"] + 1}

    def reduce(self, sums) -> dict:
        """The means, and of the codes' use the perplexity and the share of codes that were likeliest anywhere."""
        return quantizers.reduced(sums)

    def reconstruct(self, model, arrays) -> jax.Array:
        """float32 [B, H, W, C]: the images of the likeliest codes of `arrays["images"]`."""
        return _reconstructed(model.module, model.variables, arrays["images"])


def drawn(logits: jax.Array, noise: jax.Array, temperature) -> jax.Array:
    """Shares of codes, float32 [..., K]: a draw from the Gumbel-softmax distribution, where the noise is Gumbel's."""
    return jax.nn.softmax((logits + noise) / temperature)


def uniform_kl(logits: jax.Array) -> jax.Array:
    """Nats of the distribution that logits [..., K] are of to the uniform one, float32 [...]."""
    logs = jax.nn.log_softmax(logits)
    return (jnp.exp(logs) * logs).sum(-1) + math.log(logits.shape[-1])


def by_cosine(step, steps: int, first: float, last: float) -> jax.Array:
    """From first to last over so many steps by half a cosine, and last from then on."""
    share = jnp.clip(step / steps, 0.0, 1.0) if steps else jnp.float32(1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


@functools.partial(jax.jit, static_argnums=0)
def _reconstructed(module, variables, images) -> jax.Array:
    return whole(module.apply(variables, images))
