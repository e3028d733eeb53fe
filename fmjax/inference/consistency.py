"""Values out of noise in one step or a few, of a model that learned where each path from noise to data ends."""

import dataclasses

from fmjax.diffusion.consistency import Consistency
from fmjax.errors import InputError
from fmjax.inference import denoising


@dataclasses.dataclass(frozen=True)
class ConsistencyOptions(denoising.Options):
    """As `fmjax.inference.denoising.Options`, with another sampler and fewer steps.

    Attributes:
      sampler: "consistency", the only one: others follow what a denoiser says, and this model says where a path ends.
    """

    steps: int = 2
    sampler: str = "consistency"


class Consistent(denoising.Denoising):
    """From noise to data by a consistency model (`fmjax.objectives.consistency.ConsistencyModel`)."""

    Options = ConsistencyOptions

    def _check_sampler(self, options: ConsistencyOptions, sampler) -> None:
        says = f"{self.model} is a run of objective consistency, which says where a path ends, not how it goes"
        if not isinstance(sampler, Consistency):
            raise InputError(f"sampler = {options.sampler!r}: {says}; leave sampler out, or take consistency")
        if options.invert:
            raise InputError(f"invert = {options.invert!r} follows a path back to its noise, and {says}; leave it out")
