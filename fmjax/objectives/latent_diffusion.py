"""Diffusion of latents, told in words (Rombach et al. 2022, https://arxiv.org/abs/2112.10752); or of pixels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.captions import CaptionRows
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice
from fmjax.models.text_to_image import check_encoder, check_widths
from fmjax.objectives.base import BESIDE, Proposal
from fmjax.objectives.diffusion import Diffusion

CONDITIONS = ("caption", "states", "label", "none")
STATES = ("memory", "memory_mask", "vector")


@dataclasses.dataclass(frozen=True)
class LatentDiffusion(Diffusion):
    """Diffusion of what a frozen autoencoder makes of images, by captions or classes.

    With captions the module is `fmjax.models.text_to_image.TextToImage`; a share `label_dropout` of the rows has
    `null_tokens` in the place of its caption, which guidance needs. Other attributes are those of `Diffusion`.

    Attributes:
      first_stage: a run, a published folder or a hub id of an autoencoder with `encode(images, keys)` and
        `decode(latents)`, such as `autoencoder_kl`; None is without: x0 is the images themselves. It is not saved with
        the run.
      latent_shape: of its latents: (height, width, channels).
      latent_scale, latent_shift: x0 is (latents - latent_shift) * latent_scale. A scale of None: both are measured, so
        that the latents of the first batch have mean 0 and variance 1; the first step itself sees them as they are.
        What a published first stage says of it (`scaling_factor`, `shift_factor`) has to be given here to hold.
      condition: what the module is told: "caption", "states" (what an encoder said of captions, kept in the rows:
        `memory` and, where there are, `memory_mask` and `vector`; zeros in their place for none), "label" or "none".
      text: a frozen encoder of captions with `text_states`, such as a run of CLIP, whose tokenizer `data.tokenizer` has
        to be; None is the module's own, which trains with it. It is not saved with the run.
      null_tokens: what stands in the place of a caption for none; empty, of captions that a frozen encoder tells:
        zeros stand in the place of what it says, as they do of "states".
      input_name: "images", which the first stage encodes in each step; or an array of latents that are kept, unscaled,
        which a first stage has only to decode.
      sample_prompts: captions, or classes, that `samples/` shows.
    """

    OPENED: ClassVar[tuple[str, ...]] = ("first_stage", "text")
    CUT_ALIKE: ClassVar[tuple[str, ...]] = ("text",)

    first_stage: str | None = None
    latent_shape: tuple[int, int, int] | None = None
    latent_scale: float | None = None
    latent_shift: float = 0.0
    condition: str = "caption"
    text: str | None = None
    null_tokens: tuple[int, ...] = (0,)

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.condition", self.condition, CONDITIONS)
        if (self.first_stage is None) != (self.latent_shape is None):
            raise ConfigError(
                f"objective.first_stage = {self.first_stage!r} and latent_shape = {self.latent_shape} do not fit: one "
                "needs the other"
            )
        if not self.of_latents and (self.latent_scale is not None or self.latent_shift):
            raise ConfigError(
                "objective.latent_scale and latent_shift are about latents: name objective.first_stage, or an "
                "input_name other than 'images'"
            )
        if self.latent_scale is None and self.latent_shift:
            raise ConfigError("objective.latent_shift is measured where latent_scale is None; give both or neither")
        if self.latent_scale is not None and not self.latent_scale > 0:
            raise ConfigError(f"objective.latent_scale = {self.latent_scale} must be above 0, or None to be measured")
        if self.text is not None and self.condition not in ("caption", "states"):
            raise ConfigError(f"objective.text = {self.text!r} is never read with condition = {self.condition!r}")
        if not self.null_tokens and self.condition == "caption" and self.text is None:
            raise ConfigError(
                "objective.null_tokens is empty, and what the model's own encoder says is not known here; give at "
                "least one token, such as (0,)"
            )

    @property
    def keeps(self) -> bool:
        """Whether the rows hold latents, encoded before."""
        return self.input_name != "images"

    @property
    def of_latents(self) -> bool:
        """Whether x0 is latents."""
        return self.keeps or self.first_stage is not None

    @property
    def drops_states(self) -> bool:
        """Whether zeros in the place of an encoder's states are what is said without a condition."""
        return self.condition == "states" or (self.condition == "caption" and not self.null_tokens)

    def prompt_names(self, batch) -> tuple[str, ...]:
        """The arrays of a row that are its condition."""
        if self.condition == "states":
            return ("memory", *(name for name in STATES[1:] if name in batch))
        return {"caption": ("tokens", "segment_ids"), "label": ("labels",), "none": ()}[self.condition]

    def resume_free(self) -> tuple[str, ...]:
        """Of latents that are kept: what they are decoded by, which no step asks for."""
        return ("first_stage", "latent_shape") if self.keeps else ()

    def scaling(self, carry) -> dict[str, Any]:
        """{"shift", "scale"} of latents: as the config says, or as a run has carried what it measured.

        Raises ConfigError where neither is there.
        """
        if self.latent_scale is not None:
            return {"shift": np.float32(self.latent_shift), "scale": np.float32(self.latent_scale)}
        if "scale" not in (carry or {}):
            raise ConfigError(
                "objective.latent_scale = None, and no run has carried the scale of its latents; set it to 1 / their "
                "deviation"
            )
        return {name: carry[name] for name in ("shift", "scale")}

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        in_step = (not self.keeps, self.condition == "caption")
        named = {"first_stage": self.first_stage if in_step[0] else None, "text": self.text if in_step[1] else None}
        return {name: path for name, path in named.items() if path is not None}

    def inputs(self, batch) -> dict:
        """What the module is initialised with."""
        x = batch[self.input_name]
        if self.first_stage is not None:
            x = jax.ShapeDtypeStruct((x.shape[0], *self.latent_shape), jnp.float32)
        made = {"inputs": x, "times": jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)}
        return made | {name: batch[name] for name in self.prompt_names(batch)}

    def initial(self, module, params, key) -> dict:
        """{"shift", "scale": float32 [], "measured": int32 []}: how latents are scaled, and whether that is known."""
        known = not self.of_latents or self.latent_scale is not None
        return {
            "shift": jnp.float32(self.latent_shift), "scale": jnp.float32(self.latent_scale or 1.0),
            "measured": jnp.int32(known),
        }  # fmt: skip

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry, models=None):
        """Sums as of `Diffusion`, and "latent_square", the mean square of x0; and what is measured of latents."""
        latents, weights = self._latents(batch, models), batch["loss_weights"]
        x0 = (latents - carry["shift"]) * carry["scale"]

        arrays, text = {name: batch[name] for name in self.prompt_names(batch)}, (models or {}).get("text")

        def told(dropped):
            if self.drops_states:
                return self._dropped(self.told(arrays, text), dropped & train)
            return self.told(self._dropped(arrays, dropped & train), text)

        sums = self.sums(apply_fn, params, batch, x0, told, key, train)
        rows = lambda x: (x.reshape(len(x), -1).mean(1) * weights).sum()
        sums["latent_square"] = (rows(x0**2), weights.sum())
        measured = {"mean": rows(latents), "square": rows(latents**2), "rows": weights.sum()}
        return sums, Proposal(jax.lax.stop_gradient(measured))

    def after(self, carry, proposal, params) -> dict:
        """How latents are scaled from here on: as they are after the first update."""
        found, unknown = proposal.sums, carry["measured"] == 0
        rows = jnp.maximum(found["rows"], 1e-20)
        mean = found["mean"] / rows
        deviation = jnp.sqrt(jnp.maximum(found["square"] / rows - mean**2, 1e-12))
        return {
            "shift": jnp.where(unknown, mean, carry["shift"]),
            "scale": jnp.where(unknown, 1 / deviation, carry["scale"]),
            "measured": jnp.ones_like(carry["measured"]),
        }

    def _latents(self, batch, models) -> jax.Array:
        x = batch[self.input_name].astype(jnp.float32)
        if self.first_stage is None:
            return x
        if not self.keeps:
            stage = models["first_stage"]
            check_images(stage.module, self.first_stage, x.shape[1:])
            keys = jax.vmap(jax.random.fold_in, (0, None))(batch["keys"], BESIDE)
            x = jax.lax.stop_gradient(stage.apply(x, keys, method="encode"))
        if x.shape[1:] != tuple(self.latent_shape):
            raise ConfigError(
                f"objective.latent_shape = {self.latent_shape}, and the latents are {x.shape[1:]}; set it to that, and "
                "image_size and num_channels of the model's denoiser"
            )
        return x

    def _dropped(self, arrays, dropped) -> dict:
        """Arrays of prompts, or states of them: where a row is dropped those without a condition."""
        arrays = {name: array for name, array in arrays.items() if array is not None}
        null = self.without(arrays)
        where = lambda x, other: jnp.where(dropped.reshape(-1, *(1,) * (x.ndim - 1)), other, x)
        return {name: where(array, null[name]) for name, array in arrays.items()}

    def without(self, arrays) -> dict[str, np.ndarray]:
        """Arrays of a row without a condition, as long as those of prompts, [B, ...]."""
        if self.drops_states:
            null = {name: np.zeros(array.shape[1:], array.dtype) for name, array in arrays.items()}
            if "memory_mask" in null:  # attention needs a token
                null["memory_mask"][0] = 1
            return null
        if self.condition != "caption":
            return super().without(arrays)
        tokens, ids = np.zeros((2, arrays["tokens"].shape[-1]), np.int32)
        count = len(self.null_tokens)
        tokens[:count], ids[:count] = self.null_tokens, 1
        return {"tokens": tokens, "segment_ids": ids}

    def told(self, arrays, text=None) -> dict:
        """What the module is called with of a prompt's arrays: what the frozen encoder `text` says of a caption, or
        the arrays themselves."""
        if text is None or "tokens" not in arrays:
            return arrays
        return jax.lax.stop_gradient(text.apply(**arrays, method="text_states"))

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the first stage or the encoder does not fit the module."""
        if (stage := models.get("first_stage")) is not None:
            self._check_stage(module, stage.module)
        if (text := models.get("text")) is not None:
            check_encoder(text.module, "objective.text")
            check_widths(module.denoiser, text.module, "objective.text")

    def _check_stage(self, module, stage) -> None:
        for method in ("encode", "decode"):
            if not hasattr(stage, method):
                raise ConfigError(
                    f"objective.first_stage = {self.first_stage!r} is {type(stage).__name__}, which has no method "
                    f"{method}; name an autoencoder, such as a run of configs/vae_shapes.py"
                )
        shape, denoiser = tuple(self.latent_shape), getattr(module, "denoiser", module)
        found = getattr(stage, "latent_shape", shape)
        if tuple(found) != shape:
            raise ConfigError(
                f"objective.latent_shape = {shape}, and the latents of {self.first_stage!r} are {tuple(found)}; set it "
                "to that, and image_size and num_channels of the model's denoiser"
            )
        for field, wanted in (("image_size", shape[0]), ("num_channels", shape[2])):
            if (has := getattr(denoiser, field, wanted)) != wanted:
                raise ConfigError(f"model.denoiser.{field} = {has}, and latents of {shape} have {wanted}")

    def check(self, module, data) -> None:
        """Raises ConfigError where the data lack what is read of them, or a caption of samples does not fit."""
        row = data.train[0]
        for name in (self.input_name, *self.prompt_names(row)):
            if name not in row:
                raise ConfigError(
                    f"objective latent_diffusion reads {name!r} of a row, and these data have {', '.join(row)}"
                )
        if self.condition in ("label", "none"):
            return super().check(module, data)
        if self.condition == "caption":
            self._check_captions(module, data, len(row["tokens"]))

    def _check_captions(self, module, data, length: int) -> None:
        if not hasattr(module, "denoise"):
            raise ConfigError(
                f"objective.condition = 'caption', and {type(module).__name__} is told no captions; take model.name = "
                "'text_to_image', with it as its denoiser"
            )
        if (getattr(module, "text", None) is None) == (self.text is None):
            raise ConfigError(
                f"objective.text = {self.text!r}, and model.text is {'not ' if module.text is None else ''}set: "
                "captions are encoded by one of them"
            )
        if len(self.null_tokens) > length:
            raise ConfigError(f"objective.null_tokens = {self.null_tokens} do not fit into {length} tokens")
        if module.text is not None:
            CaptionRows(data.tokenizer, length).check(module.text, "data.tokenizer")
        for prompt in self.sample_prompts:
            try:
                CaptionRows(data.tokenizer, length, "error")(str(prompt))
            except DataError as error:
                raise ConfigError(f"objective.sample_prompts has {prompt!r}: {error}") from None

    def can_sample(self, module, data) -> bool:
        """Whether it is known what to draw, and by which first stage."""
        return not self.keeps and (bool(self.sample_prompts) or self.condition in ("label", "none"))


def check_images(stage, path: str, shape: tuple[int, ...]) -> None:
    """Raises ConfigError where the first stage of this path encodes images of another size than [H, W, C]."""
    size = getattr(stage, "image_size", None)
    if size is not None and tuple(shape[:2]) != (size, size):
        raise ConfigError(
            f"objective.first_stage = {path!r} encodes images of {size}x{size} pixels, and the data have "
            f"{shape[0]}x{shape[1]}; set data.image_size = {size}"
        )
