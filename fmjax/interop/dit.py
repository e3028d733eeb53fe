"""The Diffusion Transformer as diffusers publishes it: alone, or in a pipeline with an autoencoder and a scheduler.

The weights were trained with frequencies of the time that diffusers' class, as it is made, shifts by one, and with 1e-6
in every norm, where the published configs have 1e-5 for one of each block's two. What is computed here is what was
trained; diffusers does it with `norm1.emb.time_proj.downscale_freq_shift = 0` in every block and `norm_eps=1e-6`.
"""

import logging

from fmjax.errors import ConfigError
from fmjax.interop.config_keys import Constant, Expected, Key, Rule, always, ignored
from fmjax.interop.family import Family, part_in_folder
from fmjax.interop.latent_pipeline import BESIDE, OBJECTIVE_KEYS, images, latents, write_stage
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
    channels = values["transformer"].get("in_channels", 4)
    learned = values["transformer"].get("out_channels", channels) == 2 * channels
    return {"condition": "label", "learned_variance": learned} | latents(values, "transformer", side=32)


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
    beside=BESIDE,
    write_beside=write_stage,
    in_folders=True,
    objective={"name": "latent_diffusion"},
    objective_beside=_beside,
    objective_keys=OBJECTIVE_KEYS,
    objective_class="DDIMScheduler",
    objective_part="scheduler",
    read_codec=lambda values, module, source: images(values, module.image_size),
)

FAMILIES = (DIT, DIT_PIPELINE)
