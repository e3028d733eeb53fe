"""A policy and, beside it, a model of the values of what it writes: two trees of parameters, trained together."""

import math
from typing import Annotated

import flax.linen as nn
import jax

from fmjax.errors import ConfigError
from fmjax.models import MODELS
from fmjax.models.reward import RewardModel


class ActorCritic(nn.Module):
    """What PPO trains: nothing is shared between its two models (InstructGPT, Ouyang et al. 2022, appendix C.4).

    A run begins with a policy in `train.init_from` and a reward model in `train.init_parts`, whose scores after each
    token are the first values. What is loaded, served and exported of such a run is the policy alone.

    Attributes:
      policy: a decoder, such as {"name": "llama", ...}.
      value: a reward model, {"name": "reward", "decoder": {...}}.
    """

    SERVES = "policy"
    """The field whose module, with its parameters, is the model that a run has made."""

    policy: Annotated[dict, MODELS]
    value: Annotated[dict, MODELS]

    def __post_init__(self):
        super().__post_init__()
        for name, module, method in (("policy", self.policy, "features"), ("value", self.value, "all_scores")):
            if not hasattr(module, method):
                raise ConfigError(
                    f"model.{name} = {type(module).__name__} has no method {method}; take "
                    + ("'llama', or another decoder" if name == "policy" else "'reward' with a decoder")
                )

    @property
    def vocab_size(self) -> int | None:
        return self.policy.vocab_size

    @property
    def max_length(self) -> int | None:
        lengths = [one.max_length for one in (self.policy, self.value) if one.max_length is not None]
        return min(lengths, default=None)

    def __call__(self, tokens, segment_ids=None, positions=None, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """(logits float32 [B, T, V], values float32 [B, T]); arguments as of the policy."""
        return self.policy(tokens, segment_ids, positions, train), self.values(tokens, segment_ids, positions, train)

    def features(self, tokens, segment_ids=None, positions=None, train: bool = False):
        """The policy's (hidden, head)."""
        return self.policy.features(tokens, segment_ids, positions, train)

    def values(self, tokens, segment_ids=None, positions=None, train: bool = False) -> jax.Array:
        """What the value model says after each token, float32 [B, T]."""
        return self.value.all_scores(tokens, segment_ids, positions, train)

    @nn.nowrap
    def place_of(self, other: nn.Module) -> str | None:
        """Where the parameters of another model belong with which this one begins; None for another of this kind."""
        if isinstance(other, ActorCritic):
            return None
        return "value" if isinstance(other, RewardModel) else "policy"

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be."""
        return self.policy.example()

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one example's texts, and over those beside it (`ptx_tokens`), which the
        policy alone reads, by the convention of `fmjax.layers.flops`."""
        flops = sum(one.flops_per_example({"tokens": shapes["tokens"]}) for one in (self.policy, self.value))
        if math.prod(shapes.get("ptx_tokens", (0,))):
            flops += self.policy.flops_per_example({"tokens": shapes["ptx_tokens"]})
        return flops
