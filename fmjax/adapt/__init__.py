"""Adaptation: what becomes of a module's parameters before they are trained, such as low-rank adapters beside them."""

from fmjax.registry import Registry

WEIGHTS = Registry("weights", {"lora": "fmjax.adapt.lora:LoRA"}, contract="fmjax.adapt.base:Weights")
