"""How a model makes values: from prompts and options to values, one kind of generator a file."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from fmjax.errors import InputError
from fmjax.inference.checks import check_options
from fmjax.registry import Registry

GENERATORS = Registry(
    "generator",
    {
        "autoregressive": "fmjax.inference.autoregressive:Autoregressive",
        "captions": "fmjax.inference.captioning:Captions",
        "consistency": "fmjax.inference.consistency:Consistent",
        "denoising": "fmjax.inference.denoising:Denoising",
        "drawn_codes": "fmjax.inference.drawn_codes:DrawnCodes",
        "embedded_images": "fmjax.inference.unclip:EmbeddedImages",
        "embeddings": "fmjax.inference.unclip:Embeddings",
        "pixels": "fmjax.inference.pixels:Pixels",
        "reconstruction": "fmjax.inference.reconstruction:Reconstruction",
        "unmasked_images": "fmjax.inference.unmasked_images:UnmaskedImages",
        "unmasking": "fmjax.inference.unmasking:Filling",
        "upsampled_images": "fmjax.inference.unclip:UpsampledImages",
    },
)
"""An objective names its models' generator in the attribute `generator`, by such a name or an import path; a model
without is autoregressive."""


class Generator(Protocol):
    """Made of a `fmjax.inference.model.Model`: `Generator(model)`, of one that lacks nothing.

    Attributes:
      Options: a dataclass, whose fields are the options of `Model.generate` and the flags of the command; its docstring
        says what they mean.
      takes: where a prompt holds media: its parts in order, each once, "text" or a modality that the model reads.
        `prompts.by_part` reads such prompts, and the command makes them of --prompt, --image and --audio.
    """

    Options: ClassVar[type]

    @staticmethod
    def lacks(model) -> str | None:
        """What a model lacks for this generator, in a few words; None for nothing."""

    def default_prompts(self) -> Sequence[Any]:
        """What is made where no prompt is given. Raises InputError where one is needed."""

    def run(self, prompts: Sequence[Any], options: Any) -> Iterator[tuple[int, Any]]:
        """(index, value) as the values come: `options.num_samples` for each prompt (one where the options have no such
        field), in order of the prompts.

        The same prompt and seed give the same value, up to rounding, whatever else is among the prompts; copies differ.
        Raises InputError for a prompt of another kind.

        One that also takes `only`, indices of the values that are made (None is all), completes a folder of them, and
        makes a task's images one by one (`fmjax.inference.copies`).
        """


def kind_of(model) -> type:
    """The generator that the model's objective names."""
    return GENERATORS.get(getattr(model.objective, "generator", "autoregressive"))


def lacks(model) -> str | None:
    """What a model lacks to make values by the generator of its objective."""
    return kind_of(model).lacks(model)


def makes_images(model) -> bool:
    """Whether the model makes images, and not of an image alone, as an autoencoder does."""
    if getattr(model.objective, "makes", None) != "image" or lacks(model) is not None:
        return False
    kind = kind_of(model)
    if "image" not in getattr(kind, "takes", ()):
        return True
    try:
        kind(model).default_prompts()
    except InputError:
        return False
    return True


def generate(model, prompts: Sequence[Any] | None = None, **options) -> list:
    """Values in order of the prompts; for None the generator's own.

    Raises InputError for an option that the generator does not have, naming the nearest.
    """
    kind = kind_of(model)
    check_options("generate", options, [field.name for field in dataclasses.fields(kind.Options)])
    generator, options = kind(model), kind.Options(**options)
    prompts = generator.default_prompts() if prompts is None else prompts
    return [value for _, value in sorted(generator.run(prompts, options), key=lambda made: made[0])]
