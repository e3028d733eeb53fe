"""`AutoencoderKL` as diffusers publishes it, such as the `vae` of Stable Diffusion's folders."""

from fmjax.interop.config_keys import Constant, Expected, Key, Rule, ignored
from fmjax.interop.family import Family
from fmjax.interop.unet import OLD_ATTENTION, middle, place_attention, way
from fmjax.interop.weights import conv, norm


def _coder(path: str, ways: tuple[str, str, str]) -> tuple:
    return (
        *conv(f"{path}/start", f"{path}.conv_in"),
        *way(f"{path}/{ways[0]}", f"{path}.{ways[1]}", ways[2]),
        *middle(f"{path}/mid", f"{path}.mid_block", place_attention),
        *norm(f"{path}/last_norm", f"{path}.conv_norm_out"),
        *conv(f"{path}/head", f"{path}.conv_out"),
    )


TABLE = (
    *_coder("encoder", ("down", "down_blocks", "downsamplers")),
    *_coder("decoder", ("up", "up_blocks", "upsamplers")),
    *conv("to_moments", "quant_conv"),
    *conv("from_latents", "post_quant_conv"),
)


def _read_widths(config, names, fields):
    widths = config.get("block_out_channels", list, [64])
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if (types := config.get(key, list, [name])) != [name] * len(widths):
            config.refuse(key, types, f"supported: {name}, as often as block_out_channels has numbers")
    return {"widths": tuple(widths)}


def _write_widths(module):
    levels = len(module.widths)
    types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return {"block_out_channels": list(module.widths)} | types


def _read_channels(config, names, fields):
    channels = config.get("in_channels", int, 3)
    config.fixed(out_channels=channels)
    if channels != 3 and "out_channels" not in config:
        config.refuse("in_channels", channels, "out_channels = 3, as it is left out, would have to be the same")
    return {"num_channels": channels}


def _write_shift(module):
    return {"shift_factor": module.shift_factor or None}


AUTOENCODER_KL = Family(
    architectures=("AutoencoderKL",),
    model_type="",
    model="autoencoder_kl",
    table=TABLE,
    keys=(
        Rule(
            _read_channels,
            lambda module: {"in_channels": module.num_channels, "out_channels": module.num_channels},
        ),
        Rule(_read_widths, _write_widths),
        Key("layers_per_block", "num_blocks", default=1),
        Key("latent_channels", "latent_channels", default=4),
        Key("norm_num_groups", "norm_groups", default=32),
        Key("sample_size", "image_size", default=32),
        Key("scaling_factor", "scaling_factor", float, 0.18215),
        Rule(
            lambda config, names, fields: {"shift_factor": config.get("shift_factor", float, None) or 0.0},
            _write_shift,
        ),
        Key("use_quant_conv", "moment_conv", bool, True),
        Key("use_post_quant_conv", "latent_conv", bool, True),
        Key("mid_block_add_attention", "mid_attention", bool, True),
        Constant(act_fn=("silu", "swish")),
        Expected(latents_mean=None, latents_std=None),
        ignored("force_upcast"),
    ),
    renamed=OLD_ATTENTION,
)

FAMILIES = (AUTOENCODER_KL,)
