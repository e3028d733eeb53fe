"""The Diffusion Transformer as diffusers publishes it: alone, or in a pipeline with an autoencoder and a scheduler.

The weights were trained with frequencies of the time that diffusers' class, as it is made, shifts by one, and with 1e-6
in every norm, where the published configs have 1e-5 for one of each block's two. What is computed here is what was
trained; diffusers does it with `norm1.emb.time_proj.downscale_freq_shift = 0` in every block and `norm_eps=1e-6`.
"""

import logging

from fmjax.data.codecs.image import ImageCodec
from fmjax.errors import ConfigError
from fmjax.interop import scheduler
from fmjax.interop.autoencoder_kl import AUTOENCODER_KL
from fmjax.interop.config_keys import Constant, Expected, Key, Rule, always, ignored
from fmjax.interop.family import Family, part_in_folder
from fmjax.interop.preprocessor import default_labels
from fmjax.interop.weights import Weight, conv, linear, patches

log = logging.getLogger("fmjax")

BLOCK = "transformer_blocks.{layer}"
CONDITION = "transformer_blocks.{copy}.norm1.emb"
EACH_BLOCK = dict(copies=lambda module: module.num_layers)  # has the embedding of the condition once more

TABLE = (
    *conv("patch_embedding", "pos_embed.proj", lambda module: patches(module.patch_size)),
    *linear("time/inner", f"{CONDITION}.timestep_embedder.linear_1", **EACH_BLOCK),
    *linear("time/outer", f"{CONDITION}.timestep_embedder.linear_2", **EACH_BLOCK),
    Weight("label/embedding", f"{CONDITION}.class_embedder.embedding_table.weight", **EACH_BLOCK),
    *linear("stack/blocks/modulation/linear", f"{BLOCK}.norm1.linear"),
    *linear("stack/blocks/attention/query", f"{BLOCK}.attn1.to_q"),
    *linear("stack/blocks/attention/key", f"{BLOCK}.attn1.to_k"),
    *linear("stack/blocks/attention/value", f"{BLOCK}.attn1.to_v"),
    *linear("stack/blocks/attention/out", f"{BLOCK}.attn1.to_out.0"),
    *linear("stack/blocks/mlp/up", f"{BLOCK}.ff.net.0.proj"),
    *linear("stack/blocks/mlp/down", f"{BLOCK}.ff.net.2"),
    *linear("final_modulation/linear", "proj_out_1"),
    *linear("head", "proj_out_2"),
)


def _read_heads(config, names, fields):
    heads, width = config.get("num_attention_heads", int, 16), config.get("attention_head_dim", int, 72)
    return {"num_heads": heads, "hidden_size": heads * width}


def _write_heads(module):
    return {"num_attention_heads": module.num_heads, "attention_head_dim": module.hidden_size // module.num_heads}


def _read_classes(config, names, fields):
    return {"num_classes": config.get("num_embeds_ada_norm", int, 1000)}


def _write_classes(module):
    if not module.num_classes:
        raise ConfigError("it has no model without classes (num_classes = 0)")
    return {"num_embeds_ada_norm": module.num_classes}


def _read_epsilon(config, names, fields):
    config.fixed(norm_eps=(1e-6, 1e-5))
    if config.raw("norm_eps") != 1e-6:
        log.warning("%s: computed as the weights were trained, with norm_eps = 1e-06", config.source)
    return {}


DIT = Family(
    architectures=("DiTTransformer2DModel",),
    model_type="",
    model="dit",
    table=TABLE,
    keys=(
        Rule(_read_heads, _write_heads),
        Key("num_layers", "num_layers", default=28),
        Key("in_channels", "num_channels", default=4),
        Key("out_channels", "out_channels", default=None),
        Key("sample_size", "image_size", default=32),
        Key("patch_size", "patch_size", default=2),
        Rule(_read_classes, _write_classes),
        Key("dropout", "dropout", float, 0.0),
        Constant(activation_fn="gelu-approximate", attention_bias=True, norm_type="ada_norm_zero"),
        Constant(norm_elementwise_affine=False),
        Expected(upcast_attention=(False, True)),  # about precision
        Rule(_read_epsilon, lambda module: {"norm_eps": 1e-6}),
        ignored("norm_num_groups"),
        always(intermediate_size=None),
    ),
    ignored=(r"pos_embed\.pos_embed",),
)


def _beside(values) -> dict:
    """What else the objective is: latents of the folder's autoencoder, of which a class is told."""
    net, stage = values["transformer"], values.get("vae")
    channels = net.get("in_channels", 4)
    found = {"condition": "label", "learned_variance": net.get("out_channels", channels) == 2 * channels}
    if stage is None:
        return found
    side = net.get("sample_size", 32)
    return found | {
        "first_stage": "vae", "latent_shape": (side, side, channels),
        "latent_scale": stage.get("scaling_factor", 0.18215),
    }  # fmt: skip


def _images(values, module, source) -> ImageCodec | None:
    """Of the images that a pipeline makes; None without an autoencoder."""
    if (stage := values.get("vae")) is None:
        return None
    side = module.image_size * 2 ** (len(stage.get("block_out_channels", (64,))) - 1)
    return ImageCodec(side, side, stage.get("out_channels", 3))


def _write_target(section) -> dict:
    """A pipeline takes the variance off before its scheduler sees it."""
    target = getattr(section, "target", "eps")
    name = target if isinstance(target, str) else target["name"]
    words = {own: word for word, own in scheduler.TARGETS.items()}
    if name not in words:
        raise ConfigError(f"a scheduler of diffusers has no target {name!r} (it has {', '.join(words)})")
    shift = getattr(section, "latent_shift", 0.0)
    if shift:
        raise ConfigError(f"objective.latent_shift = {shift}: a DiTPipeline has a scale of latents alone")
    return {"prediction_type": words[name]}


def _write_stage(model, stage):
    """The autoencoder with the scale that the model's latents have: a pipeline knows no other."""
    found = model.objective.scaling(model.carry)
    if shift := float(found["shift"]):
        raise ConfigError(
            f"latents of {model} were shifted by {shift:.4g}, and a DiTPipeline has a scale of latents alone; train "
            "with objective.latent_scale = 1 / their deviation, which shifts nothing"
        )
    if not hasattr(stage, "scaling_factor"):
        return stage  # which no AutoencoderKL is
    # As the config has it, where it does: a carry has rounded it.
    return stage.clone(scaling_factor=model.objective.latent_scale or float(found["scale"]))


def _read_target(config, names, fields) -> dict:
    return {"target": {"name": config.choice("prediction_type", scheduler.TARGETS, "epsilon")}}


DIT_PIPELINE = Family(
    architectures=("DiTPipeline",),
    model_type="",
    model="dit",
    keys=(
        Rule(
            lambda config, names, fields: {},
            lambda module: {"id2label": default_labels(module.num_classes)["id2label"]},
        ),
    ),
    parts=(part_in_folder("transformer", DIT, field=""),),
    beside={"first_stage": part_in_folder("vae", AUTOENCODER_KL)},
    write_beside=_write_stage,
    in_folders=True,
    objective={"name": "latent_diffusion"},
    objective_beside=_beside,
    objective_keys=(scheduler.KEYS[0], Rule(_read_target, _write_target), scheduler.KEYS[-1]),
    objective_class="DDIMScheduler",
    objective_part="scheduler",
    read_codec=_images,
)

FAMILIES = (DIT, DIT_PIPELINE)
