"""Stable Diffusion 1 and 2 as diffusers publishes them, whole: a U-Net that attends to what CLIP's text tower says, the
tokenizer, an autoencoder and a scheduler.

A pipeline fills captions up with the tokenizer's pad token, and the tower and the U-Net read it like any other. Without
a caption they read the empty text. Which numbers these are, the tokenizer says; of the text's config `pad_token_id` is
not read, as published ones have another.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmjax.data.tokenizers.huggingface import why_not_clips
from fmjax.errors import ConfigError, TokenizerError
from fmjax.interop.clip import CLIP_TEXT
from fmjax.interop.config_keys import Rule, ignored
from fmjax.interop.family import Family, part_in_folder
from fmjax.interop.latent_pipeline import BESIDE, OBJECTIVE_KEYS, images, latents, write_stage
from fmjax.interop.unet import UNET_2D_CONDITION
from fmjax.models.text_tower import TextTower
from fmjax.models.unet import UNet

PAD, NULL = "_pad_id", "_null_tokens"
"""Keys of the text's config, which diffusers passes over, and of `model_index.json`: what the tokenizer says."""


def _write_pad(module) -> dict:
    if module.pad_id is None:
        raise ConfigError("its text tower reads padding like any other token: set model.text.pad_id")
    return {PAD: module.pad_id}


def _write_parts(module) -> dict:
    """Raises ConfigError for other parts than those of the class."""
    for field, kind in (("denoiser", UNet), ("text", TextTower)):
        if not isinstance(getattr(module, field), kind):
            found = type(getattr(module, field)).__name__
            raise ConfigError(f"it has a {kind.__name__} as its {field}, not {found}")
    return {}


def _write_stage(model, stage):
    """As `write_stage`. Raises ConfigError where what stands for no caption is not the empty text, as in a pipeline."""
    null, empty = tuple(model.objective.null_tokens), tuple(model.tokenizer.encode_pair("")[0])
    if null != empty:
        raise ConfigError(
            f"objective.null_tokens = {null} of {model} stand for no caption, and a StableDiffusionPipeline has the "
            f"empty text, {empty}; train with these"
        )
    return write_stage(model, stage)


FILLED_TEXT = dataclasses.replace(
    CLIP_TEXT, keys=(*CLIP_TEXT.keys, Rule(lambda config, names, fields: {"pad_id": config.get(PAD, int)}, _write_pad))
)


def _by_tokenizer(values: Mapping[str, Any], tokenizer) -> dict[str, Any]:
    """The values with what the tokenizer says. Raises TokenizerError for one that is not the text tower's."""
    text = values["text_encoder"]
    if tokenizer.vocab_size > text.get("vocab_size", 49408):
        raise TokenizerError(
            f"{tokenizer.source}: the tokenizer has {tokenizer.vocab_size} tokens, the text tower's vocabulary "
            f"{text.get('vocab_size')}; is it another model's?"
        )
    if tokenizer.pad_id is None:
        raise TokenizerError(f"{tokenizer.source} names no pad token, which fills captions up; name one there")
    return {**values, "text_encoder": text | {PAD: tokenizer.pad_id}, NULL: tokenizer.encode_pair("")[0]}


def _check_tokenizer(tokenizer) -> None:
    """Raises TokenizerError for one that is not CLIP's kind: the pipeline's class would read its file as if it were."""
    if reason := why_not_clips(tokenizer):
        raise TokenizerError(
            f"a StableDiffusionPipeline has a CLIPTokenizer, and that of the model ({tokenizer.source}) {reason}. "
            "Expected a BPE whose pieces end words with </w>, over bytes of texts in small letters, that puts BOS and "
            "EOS around a text: train with the tokenizer of a CLIP (data.tokenizer), or save with format='fmjax'"
        )


def _beside(values) -> dict:
    return {"null_tokens": tuple(values[NULL])} | latents(values, "unet", side=64)


STABLE_DIFFUSION = Family(
    architectures=("StableDiffusionPipeline",),
    model_type="",
    model="text_to_image",
    keys=(Rule(lambda config, names, fields: {}, _write_parts), ignored("requires_safety_checker", NULL)),
    parts=(
        part_in_folder("unet", UNET_2D_CONDITION, field="denoiser"),
        part_in_folder("text_encoder", FILLED_TEXT, field="text"),
    ),
    beside=BESIDE,
    write_beside=_write_stage,
    in_folders=True,
    tokenizer_class="CLIPTokenizer",
    check_tokenizer=_check_tokenizer,
    by_tokenizer=_by_tokenizer,
    objective={"name": "latent_diffusion", "condition": "caption"},
    objective_beside=_beside,
    objective_keys=OBJECTIVE_KEYS,
    objective_class="DDIMScheduler",
    objective_part="scheduler",
    read_codec=lambda values, module, source: images(values, module.denoiser.image_size),
)

FAMILIES = (STABLE_DIFFUSION,)
