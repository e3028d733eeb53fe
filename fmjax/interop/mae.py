"""Masked autoencoders: a Vision Transformer that sees a part of an image, and the decoder that draws the rest."""

import dataclasses

import numpy as np

from fmjax.interop.config_keys import Key, Rule, read_keys, write_keys
from fmjax.interop.family import Family
from fmjax.interop.vit import KEYS, blocks, encoder
from fmjax.interop.weights import Fixed, Layout, Weight, linear, norm
from fmjax.layers.image_positions import grid_sinusoids

TOKEN = Layout(lambda shape: (1, 1, *shape), lambda x: x[0, 0])


def _positions(module, width: int) -> np.ndarray:
    """[1, 1 + N, D]: those of the patches, and zeros of the class token."""
    side = module.encoder.image_size // module.encoder.patch_size
    return np.pad(np.asarray(grid_sinusoids(side, side, width)), [(1, 0), (0, 0)])[None]


def _read_encoder(config, names, fields):
    found = read_keys(KEYS, config, names)
    return {"encoder": {"name": "vit", **found, "num_classes": 0, "positions": "sincos"}}


MAE = Family(
    architectures=("ViTMAEForPreTraining",),
    model_type="vit_mae",
    model="mae",
    table=(
        *(dataclasses.replace(weight, path=f"encoder/{weight.path}") for weight in encoder("vit.")),
        *linear("embedding", "decoder.decoder_embed"),
        Weight("mask_token", "decoder.mask_token", TOKEN),
        *blocks("stack", "decoder.decoder_layers.{layer}"),
        *norm("stack/final_norm", "decoder.decoder_norm"),
        *linear("head", "decoder.decoder_pred"),
    ),
    keys=(
        Rule(_read_encoder, lambda module: write_keys(KEYS, module.encoder)),
        Key("mask_ratio", "mask_ratio", float, 0.75),
        Key("decoder_num_hidden_layers", "num_layers", default=8),
        Key("decoder_hidden_size", "hidden_size", default=512),
        Key("decoder_intermediate_size", "intermediate_size", default=2048),
        Key("decoder_num_attention_heads", "num_heads", default=16),
    ),
    respelt=(("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),),  # transformers 5.24 writes so
    fixed=(
        Fixed("vit.embeddings.position_embeddings", lambda module: _positions(module, module.encoder.hidden_size)),
        Fixed("decoder.decoder_pos_embed", lambda module: _positions(module, module.hidden_size)),
    ),
    objective={"name": "mae"},
    objective_keys=(Key("norm_pix_loss", "normalise_pixels", bool, False),),
    processor="ViTImageProcessor",
)
FAMILIES = (MAE,)
