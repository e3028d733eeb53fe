"""What only this lab makes: images retouched as a text says, by a generator whose prompts are (text, image)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import InputError
from fmjax.inference import prompts as encoding


class Brightness(nn.Module):
    """Images float32 [B, 2, 2, 1], as bright as one parameter says."""

    @nn.compact
    def __call__(self, images):
        return images * self.param("scale", nn.initializers.ones, ())

    @nn.nowrap
    def example(self):
        return {"images": jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Retouching:
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "my_lab.retouched:Retouch"

    def inputs(self, batch):
        return {"images": batch["images"]}


@dataclasses.dataclass(frozen=True)
class Describing(Retouching):
    """Makes texts: how bright an image is, in the words of the prompt."""

    makes: ClassVar[None] = None


class Retouch:
    @dataclasses.dataclass(frozen=True)
    class Options:
        """How images are retouched."""

    takes: ClassVar[tuple[str, ...]] = ("text", "image")

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        return None

    def default_prompts(self):
        raise InputError("what shall be done to which image?")

    def run(self, prompts, options) -> Iterator[tuple[int, Any]]:
        model = self.model
        texts, arrays = encoding.by_part(model, prompts, self.takes)
        made = model.apply(**arrays)
        for place, (text, image) in enumerate(zip(texts, made)):
            if model.codec is None:
                yield place, f"{text} {float(image.mean()):.1f}"
            else:
                yield place, model.codec.decode({"images": -image if text == "invert" else image})
