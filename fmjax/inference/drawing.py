"""Options of generators that draw one token, code or colour after the other."""

import dataclasses

from fmjax.inference.checks import check_whole
from fmjax.inference.engine_requests import HIGHEST_SEED
from fmjax.inference.sampler import Sampling


@dataclasses.dataclass(frozen=True)
class DrawingOptions:
    """How they are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest.
      top_k: draw from the k likeliest; 0: all.
      top_p: draw from the likeliest that have this much probability together.
      seed: of the random draws.
      num_samples: values for each prompt.
      batch_size: values drawn at once.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 64

    def __post_init__(self):
        check_whole(1, num_samples=self.num_samples, batch_size=self.batch_size)
        check_whole(0, HIGHEST_SEED, seed=self.seed)
        self.sampling  # which has its own checks

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)
