"""VQ-VAE (van den Oord et al. 2017): images through the nearest codes of a codebook that moves by averages; with a
critic, VQGAN (Esser et al. 2021)."""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers import quantizers
from fmjax.layers.checks import check_positive, check_rate
from fmjax.objectives.adversarial import Autoencoding
from fmjax.objectives.base import Proposal, per_row
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class VQAutoencoder(Autoencoding):
    """Error of the reconstruction, and `commitment` times the squared one of the vectors to their codes; further terms
    are those of `Autoencoding`.

    No gradient trains the codebook: it is carried, as the paper's appendix A.1 has it. Codes that are hardly used are
    put on vectors of the batch, drawn with the rows' keys (Dhariwal et al. 2020). The module has `encode(images)` to
    [B, N, `code_size`] and `decode`, such as `fmjax.models.conv_autoencoder.ConvAutoencoder`.

    Attributes:
      num_codes: of the codebook.
      commitment: the paper's beta.
      decay: of the codebook's averages, the paper's gamma.
      restart_below: a code that is nearest to fewer vectors of a batch, by the average, is restarted.
      error: of a number of the reconstruction: "squared", or "absolute" as VQGAN has it.
    """

    num_codes: int = 512
    commitment: float = 0.25
    decay: float = 0.99
    restart_below: float = 0.5
    error: Literal["squared", "absolute"] = "squared"

    def __post_init__(self):
        super().__post_init__()
        check_positive(num_codes=self.num_codes)
        if self.error not in ("squared", "absolute"):
            raise ConfigError(f"objective.error = {self.error!r}; known: squared, absolute")
        check_rate("objective.decay", self.decay)
        if self.commitment < 0:
            raise ConfigError(f"objective.commitment = {self.commitment} must be at least 0")
        if not 0 < self.restart_below < 1:
            raise ConfigError(
                f"objective.restart_below = {self.restart_below} must be between 0 and 1, which a restarted code counts"
            )

    def initial(self, module, params, key) -> dict[str, jax.Array]:
        """{"counts": [K], "sums": [K, D]} of a codebook of normal numbers, and what the critic needs."""
        if not all(hasattr(module, name) for name in ("encode", "decode", "code_size")):
            raise ConfigError(
                f"objective vq_autoencoder needs encode(images), decode(vectors) and code_size, which "
                f"{type(module).__name__} does not have; take model.name = 'conv_autoencoder'"
            )
        codebook = jax.random.normal(key, (self.num_codes, module.code_size))
        names = {"counts": ("codes",), "sums": ("codes", None)}
        book = {name: nn.LogicallyPartitioned(x, names[name]) for name, x in quantizers.initial(codebook).items()}
        return book | self.first_turn(module, params)

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry, models=None):
        """Sums over the batch: "loss", "reconstruction" a pixel and "commitment" a number of a vector, each with the
        total of `loss_weights` [B], and "usage", how often each code was nearest [K], of that many vectors."""
        images, weights = batch["images"], batch["loss_weights"]
        vectors = apply_fn({"params": params}, images, method="encode")
        codebook = quantizers.codes(carry)
        indices = quantizers.nearest(jax.lax.stop_gradient(vectors), codebook)
        quantized = codebook[indices]
        decode = lambda params, codes: apply_fn({"params": params}, codes, method="decode")
        made = decode(params, quantizers.straight_through(vectors, quantized))
        reconstruction = self._errors(images, made)
        commitment = ((vectors - quantized) ** 2).mean((1, 2))

        def again(params):
            made = decode(params, quantized)
            return made, self._errors(images, made)

        more, rows, statistics = self.beyond(
            apply_fn, params, images, made, weights, carry, models, again if train else None
        )
        losses, total = reconstruction + self.commitment * commitment + more, weights.sum()
        rows |= {"loss": losses, "reconstruction": reconstruction, "commitment": commitment}
        sums = {name: ((value * weights).sum(), total) for name, value in rows.items()}
        vectors = jax.lax.stop_gradient(vectors)
        used = quantizers.usage(vectors, indices, weights, self.num_codes)
        sums["usage"] = (used["counts"], used["counts"].sum())
        found = {"book": used, "critic": statistics}
        return sums, Proposal(found, self._candidates(batch, vectors) if train else None)

    def _errors(self, images, made) -> jax.Array:
        apart = made - images
        return (apart**2 if self.error == "squared" else jnp.abs(apart)).mean((1, 2, 3))

    def _candidates(self, batch, vectors) -> dict[str, jax.Array]:
        """A vector of each row, and the place of the row in the order in which dead codes take them."""

        def one(key, row, weight):
            key, place = jax.random.split(key)
            order = jnp.where(weight > 0, jax.random.uniform(place), jnp.inf)
            return {"vectors": row[jax.random.randint(key, (), 0, len(row))], "order": order}

        return per_row(one, batch["keys"], vectors, batch["loss_weights"])

    def after(self, carry, proposal, params) -> dict[str, jax.Array]:
        """The codebook's averages after a batch, its dead codes restarted, and the critic's turn."""
        book = {name: carry[name] for name in ("counts", "sums")}
        averages = quantizers.moved(book, proposal.sums["book"], self.decay)
        rows = proposal.rows
        book = quantizers.restarted(averages, rows["vectors"], rows["order"], self.restart_below)
        return book | self.next_turn(carry, proposal.sums["critic"])

    def reduce(self, sums) -> dict:
        """The means, and of the codebook's use the perplexity and the share of codes that were nearest at all."""
        return quantizers.reduced(sums)

    def reconstruct(self, model, arrays) -> jax.Array:
        """float32 [B, H, W, C]: what the codes of `arrays["images"]` are decoded to."""
        return _reconstructed(model.module, model.variables, model.carry, arrays["images"])


@functools.partial(jax.jit, static_argnums=0)
def _reconstructed(module, variables, carry, images) -> jax.Array:
    codebook = quantizers.codes(carry)
    vectors = module.apply(variables, images, method="encode")
    quantized = codebook[quantizers.nearest(vectors, codebook)]
    return whole(module.apply(variables, quantized, method="decode"))
