"""Values out of values: what an autoencoder makes of them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from fmjax.errors import InputError
from fmjax.inference import prompts as encoding
from fmjax.inference import values
from fmjax.inference.checks import check_whole
from fmjax.objectives.base import has_carry


@dataclasses.dataclass(frozen=True)
class Options:
    """How values are reconstructed.

    Attributes:
      batch_size: values at once.
    """

    batch_size: int = 64

    def __post_init__(self):
        check_whole(1, batch_size=self.batch_size)


class Reconstruction:
    """Images through the run's `objective.reconstruct(model, {name: [B, ...]})`; a prompt is an image."""

    Options = Options
    takes: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        if has_carry(model.objective) and model.carry is None:
            return "it lacks what its objective carries, such as a codebook; was it saved without?"
        if missing := [modality for modality in Reconstruction.takes if modality not in model.reads]:
            return f"it has no codec {missing[0]!r} of what it reads; was it saved without codecs.json?"
        return None

    def default_prompts(self) -> Sequence[Any]:
        raise InputError(f"{self.model} reconstructs images: give it some")

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[tuple[int, Any]]:
        """(index, value): see `fmjax.inference.generators.Generator`."""
        model = self.model
        (arrays,) = encoding.by_part(model, prompts, self.takes)
        forward = lambda part: model.objective.reconstruct(model, part)
        made = values.in_batches(model, arrays, forward, "reconstruct", options.batch_size)
        for index, array in enumerate(itertools.chain.from_iterable(made)):
            yield index, model.codec.decode({model.codec.array: array})
