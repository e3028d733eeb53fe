"""A policy that is kept near to a reference, whose log-probabilities a rollout keeps."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.base import check_reads_alike
from fmjax.objectives.on_policy import OnPolicy


@dataclasses.dataclass(frozen=True)
class ReferencePolicy(OnPolicy):
    """`OnPolicy` with a reference.

    Attributes:
      reference: a run, a published folder or a hub id, usually what the run begins with (`train.init_from`); "": none.
        It is not saved with the run.
      kl_weight: of the KL to the reference; with 0 it is measured alone.
    """

    reference: str = ""
    kl_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not (self.kl_weight >= 0 and math.isfinite(self.kl_weight)):
            raise ConfigError(f"objective.kl_weight = {self.kl_weight}: expected a number of at least 0")
        if self.kl_weight and not self.reference:
            raise ConfigError(
                f"objective.kl_weight = {self.kl_weight}, and there is no objective.reference to stay near to; name "
                "one, such as what the run begins with"
            )

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return super().models() | ({"reference": self.reference} if self.reference else {})

    def check_models(self, module, models) -> None:
        """As of `OnPolicy`; ConfigError also where the reference gives no logits for texts, or has another
        vocabulary."""
        super().check_models(module, models)
        if self.reference:
            check_reads_alike(self, "reference", models["reference"].module, module)

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """`reference_logprobs` float32 [T], where there is a reference."""
        kinds = super().further(prompt, length)
        return kinds | ({"reference_logprobs": ((length,), jnp.float32)} if self.reference else {})

    def score(self, apply_fn, params, batch, *, models=None) -> dict[str, jax.Array]:
        """{"logprobs": float32 [B, T]} of the targets, and "reference_logprobs" where there is a reference."""
        found = {"logprobs": self.logprobs(self.policy(apply_fn, params), batch)}
        if self.reference:
            reference = lambda **given: models["reference"].apply(**given, method="features")
            found["reference_logprobs"] = self.logprobs(reference, batch)
        return found
