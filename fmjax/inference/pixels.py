"""Images drawn pixel after pixel, from nothing or from their upper part on, and how likely given ones are."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.codecs.pixels import PixelCodec
from fmjax.errors import InputError
from fmjax.inference import autoregressive, values
from fmjax.inference import prompts as encoding
from fmjax.inference.checks import check_list
from fmjax.inference.drawing import DrawingOptions
from fmjax.layers.checks import check_choice
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class Options(DrawingOptions):
    """How images are drawn: as `DrawingOptions`, and

    Attributes:
      keep: share of the rows of pixels, from the top, that are kept of an image that is given; the rest is drawn anew.
    """

    keep: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.keep < 1:
            raise InputError(f"keep = {self.keep!r} must be at least 0 and below 1, a share of an image's rows")


class Pixels:
    """Prompts are images, whose upper part is kept, or None for an image from nothing."""

    Options = Options
    takes: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        return autoregressive.lacks_decoding(model) or lacks_palette(model)

    def default_prompts(self) -> Sequence[Any]:
        """An image from nothing."""
        return [None]

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[tuple[int, np.ndarray]]:
        """(index, image): see `fmjax.inference.generators.Generator`."""
        check_list("prompts", prompts)
        codec: PixelCodec = self.model.codec
        kept = int(options.keep * codec.height) * codec.width
        begun = [[codec.start] if prompt is None else self._begun(prompt, kept) for prompt in prompts]
        drawn = self.model.complete(
            begun, max_new_tokens=codec.shape[0], temperature=options.temperature, top_k=options.top_k,
            top_p=options.top_p, seed=options.seed, num_samples=options.num_samples, batch_size=options.batch_size,
        )  # fmt: skip
        for index, found in enumerate(drawn):
            colours = [*begun[index // options.num_samples][1:], *found.tokens][: codec.shape[0]]
            yield index, codec.decode({"targets": np.array(colours, np.int32)})

    def _begun(self, prompt: Any, kept: int) -> list[int]:
        (arrays,) = encoding.by_part(self.model, [prompt], self.takes)
        return [int(arrays["tokens"][0, 0]), *arrays["targets"][0, :kept].tolist()]


def lacks_palette(model) -> str | None:
    """What a model lacks to tell images' pixels."""
    if isinstance(model.codecs.get("image"), PixelCodec):
        return None
    return "it has no codec of images as colours of a palette; only models such as 'image_gpt' tell pixel after pixel"


def nats(model, images: Sequence[Any], *, batch_size: int = 32, progress: str | None = None) -> np.ndarray:
    """Negative log-likelihoods of images' colours given those before them, float32 [N, pixels], in nats.

    Args:
      images: uint8 [H, W, C], or `Media`.
      batch_size, progress: as in `fmjax.inference.values.classify`.
    """
    arrays = values.encode(model, images, "image")
    forward = lambda part: _nats(model.module, model.params, part["tokens"], part["targets"])
    parts = list(values.in_batches(model, arrays, forward, "score", batch_size, progress))
    return np.concatenate(parts) if parts else np.zeros((0, *model.codecs["image"].shape), np.float32)


def embed(
    model, images: Sequence[Any], *, pooling: str | None = None, normalize: bool = False, batch_size: int = 32,
    progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Vectors of images, float32 [N, D]: what goes into the attention of the layer in the middle, the mean over pixels,
    as for a linear probe (Chen et al. 2020, section 2.3, where the middle layers' are best).

    Args:
      images: uint8 [H, W, C], files, or `Media`.
      pooling: "mean"; None is that too.
      normalize: whether to scale each vector to length 1.
      batch_size, progress: as in `fmjax.inference.values.classify`.
    """
    check_choice("pooling", pooling or "mean", ("mean",))
    module, params = _half(model.module, model.params)
    arrays = values.encode(model, images, "image")
    forward = lambda part: _means(module, params, part["tokens"])
    parts = list(values.in_batches(model, arrays, forward, "embed", batch_size, progress))
    found = np.concatenate(parts) if parts else np.zeros((0, module.hidden_size), np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) if normalize else found


def _half(module: nn.Module, params) -> tuple[nn.Module, Any]:
    """A decoder's lower half, whose last norm is that in front of the next layer's attention; all of a single layer."""
    kept = (module.num_layers + 1) // 2
    if kept == module.num_layers:
        return module, params
    plain, params = module.unrolled(params) if module.scan_layers else (module, params)
    stack = {f"blocks_{layer}": params["stack"][f"blocks_{layer}"] for layer in range(kept)}
    stack["final_norm"] = params["stack"][f"blocks_{kept}"]["attention_norm"]
    return plain.clone(num_layers=kept), {**params, "stack": stack}


@functools.partial(jax.jit, static_argnames="module")
def _means(module: nn.Module, params, tokens) -> jax.Array:
    return whole(module.apply({"params": params}, tokens, method="hidden").astype(jnp.float32).mean(axis=1))


@functools.partial(jax.jit, static_argnames="module")
def _nats(module: nn.Module, params, tokens, targets) -> jax.Array:
    logits = module.apply({"params": params}, tokens).astype(jnp.float32)
    return whole(-jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0])
