"""DALL-E 2's stages as generators: a CLIP's vectors of captions, images of vectors, larger images of small ones."""

import dataclasses
import zlib
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference import denoising, values
from fmjax.inference.checks import check_list
from fmjax.inference.images import values_of
from fmjax.models.unclip import image_vectors, scaled


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions(denoising.Options):
    """As `fmjax.inference.denoising.Options`, by another sampler where none is named: Heun's method does not begin at
    noise alone."""

    sampler: str = "dpmpp_2m"


@dataclasses.dataclass(frozen=True)
class DecoderOptions(EmbeddingOptions):
    """As `EmbeddingOptions`, and

    Attributes:
      prior: for captions: a run of objective embedding_diffusion, or it loaded, that makes their vectors.
      prior_steps: of its sampler.
      prior_guidance: its guidance.
    """

    prior: Any = None
    prior_steps: int = 50
    prior_guidance: float = 1.0


@dataclasses.dataclass(frozen=True)
class UpsamplerOptions(DecoderOptions):
    """As `DecoderOptions`, and

    Attributes:
      decoder: for captions: a run of objective embedded_images, or it loaded, that makes the small images.
      decoder_steps: of its sampler.
      decoder_guidance: its guidance.
    """

    decoder: Any = None
    decoder_steps: int = 50
    decoder_guidance: float = 1.0


class _VectorCodec:
    """Vectors as values, of length 1."""

    array = "vectors"

    def __init__(self, model):
        self.model, self.shape = model, (model.module.embedding_size,)

    def decode(self, arrays) -> np.ndarray:
        """float32 [E]."""
        model = self.model
        vector = np.asarray(model.module.apply(model.variables, arrays[self.array], method="to_embedding"))
        return vector / np.maximum(np.linalg.norm(vector), 1e-12)


class Embeddings(denoising.Denoising):
    """From captions to a CLIP's vectors of images (`fmjax.objectives.unclip.EmbeddingDiffusion`)."""

    Options = EmbeddingOptions

    def __init__(self, model):
        super().__init__(model)
        self.codec = _VectorCodec(model)

    @staticmethod
    def lacks(model) -> str | None:
        return denoising.prompts_of(model).lacks(model)


class _Told(denoising.Denoising):
    """Base of the generators whose prompts become arrays of their own, a row a value.

    `_values(prompts, options)` gives the arrays {name: [N, ...]} of captions, or of images where they are none.
    """

    known = can_do_without = True

    def __init__(self, model):
        super().__init__(model)
        self.prompts = self

    @staticmethod
    def lacks(model) -> str | None:
        makes = model.objective.makes
        return None if model.codec is not None else f"it has no codec {makes!r} to write its values with"

    def default_prompts(self) -> Sequence[Any]:
        raise InputError(f"{self.model} makes images of captions, by a prior, or of images: give it some")

    def run(
        self, prompts: Sequence[Any], options: Any, only: Container[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(index, image): see `fmjax.inference.denoising.Denoising.run`."""
        check_list("prompts", prompts)
        each = [prompt for prompt in prompts for _ in range(options.num_samples)]
        self._arrays = self._values(each, options) if each else {}
        yield from super().run(each, dataclasses.replace(options, num_samples=1), only)

    def arrays(self, prompts: Sequence[Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(int32 [N], a number of each that noise is drawn with, what `_values` gave)."""
        return np.array([_number(prompt) for prompt in prompts], np.int32), self._arrays

    def _check_guidance(self, options) -> None:
        if options.negative is not None:
            raise InputError(f"negative = {options.negative!r}: {self.model} is guided away from no vector alone")
        super()._check_guidance(options)

    def stages(self, options) -> dict[str, Any]:
        """The loaded models that options name and captions go through, by the options' names."""
        raise NotImplementedError

    def _opened(self, name: str, value: Any, what: str):
        """The stage before: a loaded model, or a path to it."""
        if value is None:
            raise InputError(f"{self.model} makes no images of captions by itself: give {name}, {what}")
        kept = self.model.kept.setdefault("before", {})
        if isinstance(value, str):
            if value not in kept and self.model.open_path is None:
                raise InputError(f"{name} = {value!r}: give the model itself, as {self.model} came from no path")
            value = kept[value] if value in kept else kept.setdefault(value, self.model.open_path(value))
        wanted = {"prior": "embeddings", "decoder": "embedded_images"}[name]
        if getattr(value.objective, "generator", None) != wanted:
            raise InputError(f"{name} is {value}, which is not {what}")
        return value


class EmbeddedImages(_Told):
    """From a CLIP's vectors to images (`fmjax.objectives.unclip.EmbeddedImages`); prompts are captions, whose vectors a
    prior makes, or images, of which variations are made."""

    Options = DecoderOptions

    def stages(self, options) -> dict[str, Any]:
        """See `_Told`."""
        return {} if options.prior is None else {"prior": self._prior(options)}

    def _prior(self, options):
        return self._opened("prior", options.prior, "a run of objective embedding_diffusion")

    def _values(self, prompts, options) -> dict[str, np.ndarray]:
        texts = [_is_caption(prompt) for prompt in prompts]
        if all(texts):
            prior = self._prior(options)
            own = dict(seed=options.seed, steps=options.prior_steps, guidance=options.prior_guidance)
            vectors = np.stack(prior.generate(prompts, **own))
        elif not any(texts):
            images = np.stack([values_of(self.model.codec, prompt, "prompt") for prompt in prompts])
            with self.model.inference():
                vectors = np.asarray(image_vectors(self.model.opened("text"), jnp.asarray(images)))
        else:
            raise InputError("prompts are captions, or images, not some of both")
        return {"vector": np.asarray(scaled(vectors), np.float32)}


class UpsampledImages(_Told):
    """From small images to larger ones (`fmjax.objectives.unclip.Upsampling`); prompts are images, or captions, of
    which a decoder makes the small ones."""

    Options = UpsamplerOptions
    known = False  # it has learnt nothing without a small image

    def stages(self, options) -> dict[str, Any]:
        """See `_Told`."""
        if options.decoder is None:
            return {}
        decoder = self._decoder(options)
        return {"decoder": decoder} | EmbeddedImages(decoder).stages(options)

    def _decoder(self, options):
        return self._opened("decoder", options.decoder, "a run of objective embedded_images")

    def _values(self, prompts, options) -> dict[str, np.ndarray]:
        if all(map(_is_caption, prompts)):
            decoder = self._decoder(options)
            own = dict(prior=options.prior, prior_steps=options.prior_steps, prior_guidance=options.prior_guidance)
            own |= dict(seed=options.seed, steps=options.decoder_steps, guidance=options.decoder_guidance)
            prompts = decoder.generate(prompts, **own)
        side = self.model.module.small_size
        codec = dataclasses.replace(self.model.codec, height=side, width=side)
        return {"small": np.stack([values_of(codec, prompt, "prompt") for prompt in prompts])}


def _is_caption(prompt) -> bool:
    return isinstance(prompt, str) and not values.is_file(prompt)


def _number(prompt) -> int:
    """31 bits that change with a caption or an image."""
    told = prompt if isinstance(prompt, str) else np.asarray(prompt).tobytes()
    return zlib.crc32(told.encode() if isinstance(told, str) else told) >> 1
