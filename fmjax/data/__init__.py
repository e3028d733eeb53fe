"""Data: a batch is a pure function of (config, seed, step)."""

from fmjax.registry import Registry

DATASETS = Registry("data", {"text": "fmjax.data.text:TextData", "digits": "fmjax.data.digits:Digits"})
