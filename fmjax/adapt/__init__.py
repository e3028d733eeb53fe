"""Adaptation: what becomes of a module's parameters before they are trained, such as low-rank adapters beside them."""

from fmjax.registry import Registry

TABLE = {
    "lora": "fmjax.adapt.lora:LoRA",
    "fake_quantization": "fmjax.adapt.fake:FakeQuantization",
    "packed": "fmjax.adapt.packed:Packed",
    "prefix": "fmjax.adapt.prefix:PrefixTuning",
    "prompt": "fmjax.adapt.prefix:PromptTuning",
    "sparse": "fmjax.adapt.sparse:Sparse",
}
WEIGHTS = Registry("weights", TABLE, contract="fmjax.adapt.base:Weights")
