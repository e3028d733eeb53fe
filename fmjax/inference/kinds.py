"""What a module is, told by what it takes and defines: asked here, and nowhere by a family's name."""

import inspect

import flax.linen as nn


def inputs(module: nn.Module) -> tuple[str, ...]:
    """Names of what the module takes: those of its `example()`, or else the arguments of its `__call__`."""
    if hasattr(module, "example"):
        return tuple(module.example())
    call = getattr(type(module), "__call__", None)
    return tuple(inspect.signature(call).parameters)[1:] if call is not None else ()


def reads_tokens(module: nn.Module) -> bool:
    return "tokens" in inputs(module)


def is_bidirectional(module: nn.Module) -> bool:
    """Whether it reads whole texts: an encoder, or an encoder-decoder's encoder (`CAUSAL = False`)."""
    return not getattr(module, "CAUSAL", True)


def reads_source(module: nn.Module) -> bool:
    """Whether prompts are sources to an encoder."""
    return hasattr(module, "prefill")


def has_cache(module: nn.Module) -> bool:
    """Whether it decodes token by token (`fmjax.inference.decoding`)."""
    return hasattr(module, "init_cache")


def can_rewind(module: nn.Module) -> bool:
    """Whether its cache takes several tokens a row, and gives back what is not wanted (`fmjax.inference.decoding`)."""
    return hasattr(module, "rewound") and hasattr(module, "features")


def drafts(module: nn.Module) -> bool:
    """Whether it drafts tokens from what another model's last layer gives, `drafted` [B, H, D]."""
    return hasattr(module, "drafted")


def has_hidden(module: nn.Module) -> bool:
    """Whether it gives its last layer's output, `hidden` [B, T, D]."""
    return hasattr(module, "hidden")


def has_pooled(module: nn.Module) -> bool:
    """Whether it gives one vector a value by itself, `pooled` [B, D]."""
    return hasattr(module, "pooled")


def fills_masks(module: nn.Module) -> bool:
    """Whether it is a masked language model: logits of each token of a whole text."""
    return is_bidirectional(module) and hasattr(module, "features") and not reads_source(module)


def has_two_towers(module: nn.Module) -> bool:
    """Whether it has images and texts in one space (`encode_images`, `encode_texts`)."""
    return hasattr(module, "encode_images") and hasattr(module, "encode_texts")
