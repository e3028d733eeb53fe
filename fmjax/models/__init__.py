"""Model families: one short file each, composed of `fmjax.layers`."""

from fmjax.registry import Registry

MODELS = Registry(
    "model", {"gpt": "fmjax.models.gpt:GPT", "llama": "fmjax.models.llama:Llama", "vit": "fmjax.models.vit:ViT"}
)
