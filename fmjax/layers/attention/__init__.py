"""Scaled dot-product attention: one contract, a file a backend."""

from fmjax.layers.attention.dispatch import BACKENDS, attention

__all__ = ["BACKENDS", "attention"]
