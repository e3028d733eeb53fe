"""DALL-E 2 (Ramesh et al. 2022, https://arxiv.org/abs/2204.06125): diffusion of a CLIP's vector of an image, told its
caption; of the image, told the vector; and of the image, told a smaller one."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion import TARGETS
from fmjax.errors import ConfigError
from fmjax.layers.norm import unit
from fmjax.layers.pooling import average_pool
from fmjax.models.unclip import image_vectors, scaled
from fmjax.objectives.base import BESIDE, per_row
from fmjax.objectives.diffusion import Diffusion


@dataclasses.dataclass(frozen=True)
class ToldByCLIP(Diffusion):
    """Base of the objectives that a frozen CLIP tells something.

    Attributes:
      text: a run, a published folder or a hub id of a CLIP, whose images are prepared as these. It is not saved with
        the run, and what the run makes needs it where it lies.
    """

    OPENED: ClassVar[tuple[str, ...]] = ("text",)

    text: str = ""

    def __post_init__(self):
        super().__post_init__()
        if not self.text:
            raise ConfigError(
                "objective.text is empty: give the path of a CLIP, such as runs/clip_shapes, which "
                "configs/clip_shapes.py makes"
            )

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"text": self.text}

    def check_models(self, module, models) -> None:
        """Raises ConfigError for a model that is no CLIP, or has other widths than the module."""
        clip = models["text"].module
        if not all(hasattr(clip, name) for name in ("encode_images", "encode_texts", "text_states")):
            raise ConfigError(
                f"objective.text = {self.text!r} is {type(clip).__name__}, which has no images and texts in one space; "
                "give a run of configs/clip_shapes.py, say"
            )
        width = clip.projection_size or clip.vision.hidden_size
        if module.embedding_size != width:
            raise ConfigError(
                f"model.embedding_size = {module.embedding_size}, and the vectors of {self.text!r} are {width} wide; "
                "set it to that"
            )


@dataclasses.dataclass(frozen=True)
class EmbeddingDiffusion(ToldByCLIP):
    """The prior: diffusion of a CLIP's vector of an image, told what that CLIP says of its caption.

    The module is as `fmjax.models.prior_transformer.PriorTransformer`. A share `label_dropout` of the rows is told
    zeros, for guidance. Other attributes are those of `Diffusion`.

    Attributes:
      target: the vector itself, in the paper.
    """

    CUT_ALIKE: ClassVar[tuple[str, ...]] = ("text",)
    makes: ClassVar[str | None] = None
    generator: ClassVar[str] = "embeddings"
    condition: ClassVar[str] = "caption"

    target: Annotated[dict, TARGETS] = "x0"

    def inputs(self, batch) -> dict:
        """What the module is initialised with: it knows the rest."""
        return {"times": jax.ShapeDtypeStruct(batch["images"].shape[:1], jnp.float32)}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models) -> dict:
        """Sums as of `Diffusion`. batch: images, tokens, segment_ids, loss_weights."""
        clip = models["text"]
        x0 = apply_fn({"params": params}, image_vectors(clip, batch["images"]), method="from_embedding")
        arrays = {name: batch[name] for name in ("tokens", "segment_ids")}

        def told(dropped):
            kept = jnp.where((dropped & train)[:, None], 0, arrays["segment_ids"])
            return self.told(arrays | {"segment_ids": kept}, clip)

        return self.sums(apply_fn, params, batch, jax.lax.stop_gradient(x0), told, key, train)

    def without(self, arrays) -> dict[str, np.ndarray]:
        """See `Diffusion.without`: a caption of padding alone."""
        return dict.fromkeys(("tokens", "segment_ids"), np.zeros(arrays["tokens"].shape[-1], np.int32))

    def told(self, arrays, text=None) -> dict:
        """What the CLIP says of captions: "memory", "memory_mask" and "vector"; zeros of one of padding alone."""
        states = text.apply(**arrays, method="text_states")
        is_told = (arrays["segment_ids"] > 0).any(1)
        memory = jnp.where(is_told[:, None, None], states["memory"].astype(jnp.float32), 0.0)
        vector = jnp.where(is_told[:, None], scaled(unit(states["vector"])), 0.0)
        mask = states["memory_mask"]
        mask = jnp.ones(memory.shape[:2], jnp.int32) if mask is None else (mask > 0).astype(jnp.int32)
        return jax.lax.stop_gradient({"memory": memory, "memory_mask": mask, "vector": vector})

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the CLIP does not fit the module."""
        super().check_models(module, models)
        tower = models["text"].module.text
        if tower.hidden_size != module.embedding_size:
            raise ConfigError(
                f"model.embedding_size = {module.embedding_size}, and the states of the texts of {self.text!r} are "
                f"{tower.hidden_size} wide; take a CLIP whose text tower is as wide as its projections"
            )
        length = getattr(tower, "max_length", None)
        if length not in (None, module.max_length):  # as many are told where vectors are made
            raise ConfigError(
                f"model.max_length = {module.max_length}, and {self.text!r} reads {length} tokens of a caption; set "
                "it to that, and data.sequence_length"
            )

    def check(self, module, data) -> None:
        """Raises ConfigError for another module, or data without captions."""
        arrays = ("images", "tokens", "segment_ids")
        _need("embedding_diffusion", module, "to_embedding", "prior_transformer", data, arrays)
        length = len(data.train[0]["tokens"])
        if length != module.max_length:
            raise ConfigError(
                f"model.max_length = {module.max_length}, and captions of these data have {length} tokens; set it to "
                "that"
            )

    def can_sample(self, module, data) -> bool:
        """Vectors are nothing to show."""
        return False


class _Shown:
    """Of the objectives whose samples are held-out images, each followed by what is made of it."""

    def can_sample(self, module, data) -> bool:
        """Whether the data have images to show."""
        return self.makes in data.codecs and bool(data.evaluation)

    def num_shown(self) -> int:
        """Of the rows that `sample` takes."""
        return self.sample_copies

    def sample(self, model, key, rows) -> list:
        """Each image of `rows` followed by what is made of it."""
        images = [model.codec.decode({model.codec.array: image}) for image in np.asarray(rows["images"])]
        made = model.generate(images, seed=int(jax.random.bits(key) >> 1), steps=20)
        return [image for pair in zip(images, made) for image in pair]


@dataclasses.dataclass(frozen=True)
class EmbeddedImages(_Shown, ToldByCLIP):
    """The decoder: diffusion of images, told a CLIP's vector of them.

    The module is as `fmjax.models.unclip.EmbeddingToImage`. A share `label_dropout` of the rows is told zeros, for
    guidance. `samples/` has held-out images, each followed by what is made of its vector. Other attributes are those of
    `Diffusion`.
    """

    generator: ClassVar[str] = "embedded_images"
    condition: ClassVar[str] = "vector"

    def inputs(self, batch) -> dict:
        """What the module is initialised with: it knows the rest."""
        x = batch["images"]
        return {"inputs": x, "times": jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models) -> dict:
        """Sums as of `Diffusion`. batch: images, loss_weights."""
        vector = scaled(image_vectors(models["text"], batch["images"]))
        told = lambda dropped: {"vector": jnp.where((dropped & train)[:, None], 0.0, vector)}
        return self.sums(apply_fn, params, batch, batch["images"], told, key, train)

    def without(self, arrays) -> dict[str, np.ndarray]:
        """See `Diffusion.without`."""
        return {"vector": np.zeros(arrays["vector"].shape[-1], np.float32)}

    def check(self, module, data) -> None:
        """Raises ConfigError for another module, or data without images."""
        _need("embedded_images", module, "num_tokens", "embedding_to_image", data, ("images",))


@dataclasses.dataclass(frozen=True)
class Upsampling(_Shown, Diffusion):
    """The upsampler: diffusion of images, told the means of their pixels in the size of smaller ones, with noise.

    The module is as `fmjax.models.unclip.Upsampler`. `samples/` has held-out images, each followed by what is made of
    its small one. Other attributes are those of `Diffusion`.

    Attributes:
      label_dropout: 0, as nothing is learnt without the small image.
      small_noise: deviation of the noise on the small images while it learns, so that it forgives what made images lack
        (the paper blurs them).
    """

    generator: ClassVar[str] = "upsampled_images"
    condition: ClassVar[str] = "small"

    label_dropout: float = 0.0
    small_noise: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not self.small_noise >= 0:
            raise ConfigError(f"objective.small_noise = {self.small_noise} must be at least 0")
        if self.label_dropout:
            raise ConfigError(
                f"objective.label_dropout = {self.label_dropout}: upsampling drops nothing, as each row is told its "
                "small image; leave it out"
            )

    def inputs(self, batch) -> dict:
        """What the module is initialised with: it knows the rest."""
        x = batch["images"]
        return {"inputs": x, "times": jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)}

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict:
        """Sums as of `Diffusion`. batch: images, loss_weights."""
        images = batch["images"]
        # The module alone knows how small: what it is initialised with is not told.
        side = apply_fn({"params": params}, method="side")
        small = average_pool(images, images.shape[1] // side)
        if train:
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, BESIDE), small.shape[1:])
            small = small + self.small_noise * per_row(draw, batch["keys"])
        return self.sums(apply_fn, params, batch, images, lambda _: {"small": small}, key, train)

    def check(self, module, data) -> None:
        """Raises ConfigError for another module, or data without images."""
        _need("upsampling", module, "small_size", "upsampler", data, ("images",))


def _need(name: str, module, attribute: str, known: str, data, arrays) -> None:
    """Raises ConfigError for a module without this attribute, or data without these arrays."""
    if not hasattr(module, attribute):
        raise ConfigError(f"objective {name} is not of {type(module).__name__}; take model.name = {known!r}")
    row = data.train[0]
    if not set(arrays) <= set(row):
        raise ConfigError(f"objective {name} reads {', '.join(arrays)}, and rows of these data have {', '.join(row)}")
