"""A learned prompt (`fmjax.adapt.prefix.PromptTuning`) as what every token attends: keys and values of each layer.

Nothing that stands before the text sees the text, so its keys and values are computed once for all rows and segments.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from fmjax.layers.weights import value_of

PROMPT = "prompt"


def has_prompt(params: Mapping[str, Any]) -> bool:
    """Whether a decoder's parameters have a learned prompt."""
    return PROMPT in params


def prompt_as_prefix(module: nn.Module, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters with a prefix in each layer in place of the prompt; without a prompt as they are."""
    if not has_prompt(params):
        return params
    module = module.clone(parent=None)
    prompt = params[PROMPT]["embedding"]
    own = {name: part for name, part in params.items() if name != PROMPT}
    table = value_of(own["token_embedding"]["embedding"])
    # Looked up as the first tokens of the vocabulary, so that they are scaled and placed as tokens are.
    begun = {**own, "token_embedding": {"embedding": table.at[: len(prompt)].set(prompt.astype(table.dtype))}}
    tokens = jnp.arange(len(prompt), dtype=jnp.int32)[None]
    _, state = module.apply({"params": begun}, tokens, mutable=["reads"], method="features")
    return {**own, "stack": _with_prefix(own["stack"], state["reads"]["stack"])}


def _with_prefix(stack: Mapping[str, Any], reads: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(stack)
    for name, part in stack.items():
        if name.startswith("blocks"):
            read = reads[name]["attention"]
            # [layers, 1, N, K, D], or [1, N, K, D] of a layer by itself
            prefix = {kind: _rows(read[short], name == "blocks") for kind, short in (("key", "k"), ("value", "v"))}
            found[name] = {**part, "attention": {**part["attention"], "prefix": prefix}}
    return found


def _rows(read, stacked: bool):
    """[layers, N, K * D] or [N, K * D]."""
    read = read[:, 0] if stacked else read[0]
    return read.reshape(*read.shape[:-2], -1)
