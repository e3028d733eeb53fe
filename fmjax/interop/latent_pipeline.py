"""What pipelines of latents have in common as diffusers publishes them: a denoiser, an autoencoder and a scheduler."""

from collections.abc import Mapping
from typing import Any

from fmjax.data.codecs.image import ImageCodec
from fmjax.errors import ConfigError
from fmjax.interop import scheduler
from fmjax.interop.autoencoder_kl import AUTOENCODER_KL
from fmjax.interop.config_keys import Rule
from fmjax.interop.family import part_in_folder

BESIDE = {"first_stage": part_in_folder("vae", AUTOENCODER_KL)}


def latents(values: Mapping[str, Any], denoiser: str, side: int) -> dict[str, Any]:
    """What an objective says of latents: those of the folder's autoencoder; {} without one.

    Args:
      denoiser: the part whose config says of how many channels they are.
      side: of them, where its config does not say it.
    """
    net, stage = values[denoiser], values.get("vae")
    if stage is None:
        return {}
    side = net.get("sample_size", side)
    return {
        "first_stage": "vae", "latent_shape": (side, side, net.get("in_channels", 4)),
        "latent_scale": stage.get("scaling_factor", 0.18215),
    }  # fmt: skip


def images(values: Mapping[str, Any], side: int | None) -> ImageCodec | None:
    """Of the images that are made of latents of this side; None without an autoencoder."""
    if (stage := values.get("vae")) is None or side is None:
        return None
    side = side * 2 ** (len(stage.get("block_out_channels", (64,))) - 1)
    return ImageCodec(side, side, stage.get("out_channels", 3))


def write_stage(model, stage):
    """The autoencoder with the scale that the model's latents have: a pipeline knows no other."""
    found = model.objective.scaling(model.carry)
    if shift := float(found["shift"]):
        raise ConfigError(
            f"latents of {model} were shifted by {shift:.4g}, and a pipeline has a scale of latents alone; train "
            "with objective.latent_scale = 1 / their deviation, which shifts nothing"
        )
    if not hasattr(stage, "scaling_factor"):
        return stage  # which no AutoencoderKL is
    # As the config has it, where it does: a carry has rounded it.
    return stage.clone(scaling_factor=model.objective.latent_scale or float(found["scale"]))


def _read_target(config, names, fields) -> dict:
    config.raw("variance_type")  # of how it draws
    return {"target": {"name": config.choice("prediction_type", scheduler.TARGETS, "epsilon")}}


def _write_target(section) -> dict:
    """A pipeline takes a variance off before its scheduler sees it."""
    target = getattr(section, "target", "eps")
    name = target if isinstance(target, str) else target["name"]
    words = {own: word for word, own in scheduler.TARGETS.items()}
    if name not in words:
        raise ConfigError(f"a scheduler of diffusers has no target {name!r} (it has {', '.join(words)})")
    shift = getattr(section, "latent_shift", 0.0)
    if shift:
        raise ConfigError(f"objective.latent_shift = {shift}: a pipeline has a scale of latents alone")
    # Where a file says nothing, x0 is cut off at 1, which latents are not within, and the first step is not at noise.
    return {"prediction_type": words[name], "clip_sample": False, "timestep_spacing": "trailing"}


OBJECTIVE_KEYS = (scheduler.KEYS[0], Rule(_read_target, _write_target), scheduler.KEYS[-1])
