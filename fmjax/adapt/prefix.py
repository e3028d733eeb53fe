"""Learned beginnings that every text has, beside parameters that stay: keys and values of each layer, or embeddings.

They stand before the first token of every document, packed or not. The positions of rotary embeddings count them;
learned positions do not.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive


@dataclasses.dataclass(frozen=True)
class PrefixTuning:
    """Keys and values in front of those of the tokens, in every layer, which train alone (Li & Liang 2021,
    https://arxiv.org/abs/2101.00190; without its reparametrisation, as PEFT's `prefix_projection=False`).

    Attributes:
      length: of the prefix.
      init_std: of the normal numbers that it begins as.
    """

    trainable: ClassVar[tuple[str, ...]] = ("attention/prefix/(key|value)$",)

    length: int = 20
    init_std: float = 0.02

    def __post_init__(self):
        check_positive(length=self.length)
        if not self.init_std > 0:
            raise ConfigError(f"weights.init_std = {self.init_std} must be positive")

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`. Raises ConfigError for a module without a Transformer's decoder."""
        _check_decoder(params, "prefix")
        stack = dict(params["stack"])
        for number, name in enumerate(sorted(stack)):
            if name.startswith("blocks"):
                own = jax.random.fold_in(key, number)
                attention = {**stack[name]["attention"], "prefix": self._prefix(stack[name]["attention"], own)}
                stack[name] = {**stack[name], "attention": attention}
        return {**params, "stack": stack}

    def _prefix(self, attention, key) -> dict[str, Any]:
        found = {}
        for name, own in zip(("key", "value"), jax.random.split(key)):
            kernel = attention[name]["kernel"]
            *layers, _, size = nn.unbox(kernel).shape
            drawn = self.init_std * jax.random.normal(own, (*layers, self.length, size), jnp.float32)
            if isinstance(kernel, nn.Partitioned):
                *stacked, _, axis = kernel.names
                drawn = kernel.replace(value=drawn, names=(*stacked, None, axis))
            found[name] = drawn
        return found


@dataclasses.dataclass(frozen=True)
class PromptTuning:
    """Embeddings in front of those of the tokens, which train alone (Lester et al. 2021,
    https://arxiv.org/abs/2104.08691); they begin as those of random tokens (section 3.2, "sampled vocab").

    Attributes:
      length: how many.
    """

    trainable: ClassVar[tuple[str, ...]] = ("^prompt/embedding$",)

    length: int = 20

    def __post_init__(self):
        check_positive(length=self.length)

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`. Raises ConfigError for a module without a Transformer's decoder, and for a
        vocabulary of fewer tokens than `length`."""
        _check_decoder(params, "prompt")
        box = params["token_embedding"]["embedding"]
        table = nn.unbox(box)
        if self.length > len(table):
            raise ConfigError(f"weights.length = {self.length} is more than the {len(table)} tokens of the vocabulary")
        drawn = table[jax.random.permutation(key, len(table))[: self.length]]
        if isinstance(box, nn.Partitioned):
            drawn = box.replace(value=drawn, names=(None, box.names[1]))
        return {**params, "prompt": {"embedding": drawn}}


def _check_decoder(params: Any, name: str) -> None:
    """Raises ConfigError for parameters that are not those of a `fmjax.models.decoder.Decoder`."""
    if "token_embedding" not in params or not any(part.startswith("blocks") for part in params.get("stack", ())):
        raise ConfigError(
            f"weights.name = {name!r} is for decoders (gpt, llama, qwen3, gemma3), whose parameters have "
            f"'token_embedding' and 'stack'; here they have {', '.join(map(repr, params))}"
        )
