"""A model of two parts, each of which is a family of fmjax, and how this lab publishes it."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.interop.family import Family, Part
from fmjax.interop.gpt import GPT2
from fmjax.interop.vit import VIT_HEADLESS
from fmjax.interop.weights import Weight
from fmjax.models import MODELS


class Towers(nn.Module):
    """How well images fit texts."""

    vision: Annotated[dict, MODELS]
    text: Annotated[dict, MODELS]

    @nn.compact
    def __call__(self, tokens, images):
        """float32 [images, texts] of tokens int32 [N, T] and images [B, H, W, C]."""
        scale = self.param("scale", nn.initializers.zeros, ())
        return jnp.exp(scale) * self.vision(images) @ self.text.hidden(tokens)[:, -1].T

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {**self.vision.example(), **self.text.example()}


TOWERS = Family(
    architectures=("LabTowers",),
    model_type="lab_towers",
    model="my_lab.towers:Towers",
    table=(Weight("scale", "logit_scale"),),
    parts=(
        Part("vision", VIT_HEADLESS, key="vision_config", prefix="vision_model.", field="vision"),
        Part("text", GPT2, key="text_config", prefix="text_model.", field="text"),
    ),
)
