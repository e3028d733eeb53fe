"""What autoencoders of images are trained by beside their reconstruction: another network's features, and a critic that
learns against them (Esser et al. 2021, https://arxiv.org/abs/2012.09841, section 3.1)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from fmjax.errors import ConfigError
from fmjax.objectives.reconstructing import Reconstructing

MOST = 1e4
"""What the critic's share is at most."""


@dataclasses.dataclass(frozen=True)
class Autoencoding(Reconstructing):
    """Base of the objectives of autoencoders that such terms may train.

    **Perceptual**: the squared distance of features, of length 1 in each place, of an image and what is made of it
    (Zhang et al. 2018, https://arxiv.org/abs/1801.03924, without learned weights).

    **Adversarial**: the module has a critic (`fmjax.models.vqgan.Criticised`). What the autoencoder minimises is
    -critic(made); what the critic minimises, the hinge loss 1/2 max(0, 1 - critic(true)) + 1/2 max(0, 1 +
    critic(made)). One gradient holds both, since neither side's loss reaches the other's parameters, and the optimizer
    takes each side by itself. With `adaptive` the autoencoder's is multiplied by |gradient of the reconstruction| /
    |gradient of -critic(made)|, both by the decoder's last kernel and of the step before, hence the same however a
    batch is cut. Carried are that ratio, which nothing reads before `adversarial_start`, and the number of steps.

    Attributes:
      perceptual: a run, a published folder or a hub id of a model of images; empty for none.
      perceptual_weight: of its term in the loss.
      perceptual_method: of its module, features [B, H, W, D] of images.
      adversarial_weight: 0 for no critic.
      adversarial_start: from which step on; until then the critic stays as it is.
      adaptive: see above.
      alternate: from then on every second step is the critic's, and the other ones the autoencoder's; or else each step
        moves both.
      last_kernel: the decoder's last, a parameter's name.
    """

    perceptual: str = ""
    perceptual_weight: float = 1.0
    perceptual_method: str = "feature_map"
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    adaptive: bool = True
    alternate: bool = False
    last_kernel: str = "autoencoder/decoder/head/kernel"

    def __post_init__(self):
        super().__post_init__()
        for name in ("perceptual_weight", "adversarial_weight", "adversarial_start"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be at least 0")

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"perceptual": self.perceptual} if self.perceptual else {}

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the perceptual network has no such method, or it makes no maps of the images."""
        if not self.perceptual:
            return
        network, method = models["perceptual"], self.perceptual_method
        told = f"objective.perceptual_method = {method!r}: {type(network.module).__name__} at {self.perceptual!r}"
        if not hasattr(network.module, method):
            raise ConfigError(f"{told} has no such method; a conv_encoder has 'feature_map', a resnet 'last_map'")
        images = module.example()["images"]
        try:
            found = jax.eval_shape(lambda network, images: network.apply(images, method=method), network, images)
        except (FlaxError, TypeError, ValueError) as error:
            raise ConfigError(f"{told} does not read images of shape {images.shape[1:]} ({error})") from error
        if getattr(found, "ndim", None) != 4:
            shape = getattr(found, "shape", type(found).__name__)
            raise ConfigError(f"{told} makes {shape}; expected features [B, H, W, D] of images [B, H, W, C]")

    def first_turn(self, module, params) -> dict:
        """What is carried for the critic: {"critic": {"step": int32 [], "ratio": float32 []}}, or nothing.

        Raises ConfigError for a module without a critic, or without the decoder's last kernel.
        """
        if not self.adversarial_weight:
            return {}
        if not hasattr(module, "criticise"):
            raise ConfigError(
                f"objective.adversarial_weight = {self.adversarial_weight}, but {type(module).__name__} has no critic; "
                "take model.name = 'criticised'"
            )
        try:
            _at(params, self.last_kernel)
        except (KeyError, TypeError):
            raise ConfigError(
                f"objective.last_kernel = {self.last_kernel!r} is no parameter of {type(module).__name__}"
            ) from None
        return {"critic": {"step": jnp.int32(0), "ratio": jnp.float32(1.0)}}

    def next_turn(self, carry, statistics) -> dict:
        """What `first_turn` gave, after a step with these summed `statistics`."""
        if not self.adversarial_weight:
            return {}
        ratio = jnp.float32(1.0)
        if self.adaptive:
            norm = lambda name: jnp.linalg.norm(statistics[name] / jnp.maximum(statistics["rows"], 1e-20))
            ratio = jnp.clip(norm("reconstruction") / (norm("adversarial") + 1e-4), 0.0, MOST)
        return {"critic": {"step": carry["critic"]["step"] + 1, "ratio": ratio}}

    def sides(self) -> tuple[str, ...]:
        """See `fmjax.objectives.base`."""
        if not self.adversarial_weight:
            return ()
        return ("autoencoder", "critic") if self.alternate else ("critic",)

    def moves(self, carry) -> dict[str, jax.Array]:
        """See `fmjax.objectives.base`."""
        past = carry["critic"]["step"] - self.adversarial_start
        if not self.alternate:
            return {"critic": past >= 0}
        return {"critic": (past >= 0) & (past % 2 == 1), "autoencoder": (past < 0) | (past % 2 == 0)}

    def beyond(self, apply_fn, params, images, made, weights, carry, models, again):
        """What the loss has beside the reconstruction: (losses [B], {name: numbers [B]}, statistics for `next_turn`).

        Args:
          made: images of the decoder.
          again: `(params) -> (made, distances [B])`, for which nothing but the parameters is differentiated; None
            where no statistics are needed.
        """
        losses, rows, statistics = jnp.zeros(len(images)), {}, {}
        if self.perceptual:
            rows["perceptual"] = self._perceptual(models, images, made)
            losses += self.perceptual_weight * rows["perceptual"]
        if not self.adversarial_weight:
            return losses, rows, statistics
        judge = lambda params, images: apply_fn({"params": params}, images, method="criticise")
        fixed = jax.lax.stop_gradient(params)
        fooled = lambda images: -judge(fixed, images).mean((1, 2))
        true, false = jnp.split(judge(params, jnp.concatenate([images, jax.lax.stop_gradient(made)])), 2)
        rows["critic"] = 0.5 * (jax.nn.relu(1 - true) + jax.nn.relu(1 + false)).mean((1, 2))
        rows["adversarial"] = fooled(made)
        step = carry["critic"]["step"]
        share = self.adversarial_weight * carry["critic"]["ratio"]
        losses += jnp.where(step >= self.adversarial_start, share * rows["adversarial"] + rows["critic"], 0.0)
        if again is not None and self.adaptive:
            found = lambda: self._gradients(fixed, again, fooled, images, weights, models)
            none = jnp.zeros_like(_at(params, self.last_kernel))
            nothing = lambda: {"reconstruction": none, "adversarial": none, "rows": jnp.zeros_like(weights.sum())}
            # The step after reads them.
            statistics = jax.lax.cond(step + 1 >= self.adversarial_start, found, nothing)
        return losses, rows, statistics

    def _gradients(self, params, again, fooled, images, weights, models) -> dict[str, jax.Array]:
        """Sums over rows of both gradients by the decoder's last kernel, and of the rows."""

        def terms(kernel):
            made, distances = again(_put(params, self.last_kernel, kernel))
            if self.perceptual:
                distances += self.perceptual_weight * self._perceptual(models, images, made)
            return (distances * weights).sum(), (fooled(made) * weights).sum()

        _, pull = jax.vjp(terms, _at(params, self.last_kernel))
        one, none = jnp.float32(1.0), jnp.float32(0.0)
        found = {"reconstruction": pull((one, none))[0], "adversarial": pull((none, one))[0], "rows": weights.sum()}
        return jax.lax.stop_gradient(found)

    def _perceptual(self, models, images, made) -> jax.Array:
        """[B]: the mean over places of the squared distance of features of length 1."""

        def features(x):
            x = models["perceptual"].apply(x, method=self.perceptual_method).astype(jnp.float32)
            return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-10)

        return ((features(made) - features(images)) ** 2).sum(-1).mean((1, 2))


def _at(tree, name: str):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def _put(tree, name: str, leaf):
    """The tree with another leaf at that name."""
    first, _, rest = name.partition("/")
    return {**tree, first: _put(tree[first], rest, leaf) if rest else leaf}
