"""How a model makes values: from prompts and options to values, one kind of generator a file."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from fmjax.registry import Registry

GENERATORS = Registry(
    "generator",
    {
        "autoregressive": "fmjax.inference.autoregressive:Autoregressive",
        "denoising": "fmjax.inference.denoising:Denoising",
    },
)
"""An objective names its models' generator in the attribute `generator`; a model without is autoregressive."""


class Generator(Protocol):
    """Made of a `fmjax.inference.model.Model`: `Generator(model)`. Raises InputError for a model that it cannot use.

    Attributes:
      Options: a dataclass, whose fields are the options of `Model.generate` and the flags of the command; its docstring
        says what they mean.
    """

    Options: ClassVar[type]

    def default_prompts(self) -> Sequence[Any]:
        """What is made where no prompt is given. Raises InputError where one is needed."""

    def run(self, prompts: Sequence[Any], options: Any) -> Iterator[tuple[int, Any]]:
        """(index, value) as the values come: `options.num_samples` for each prompt, in order of the prompts.

        The same prompt and seed give the same value whatever else is among the prompts; copies differ.
        Raises InputError for a prompt of another kind.
        """
