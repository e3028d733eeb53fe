"""Model families: one short file each, composed of `fmjax.layers`."""

from fmjax.registry import Registry

MODELS = Registry(
    "model",
    {
        "autoencoder_kl": "fmjax.models.autoencoder_kl:AutoencoderKL",
        "bert": "fmjax.models.bert:Bert",
        "brivl": "fmjax.models.brivl:BriVL",
        "clip": "fmjax.models.clip:CLIP",
        "conv_autoencoder": "fmjax.models.conv_autoencoder:ConvAutoencoder",
        "conv_encoder": "fmjax.models.conv_encoder:ConvEncoder",
        "coswin": "fmjax.models.swin:CoSwin",
        "criticised": "fmjax.models.vqgan:Criticised",
        "dit": "fmjax.models.dit:DiT",
        "florence": "fmjax.models.florence:Florence",
        "gemma3": "fmjax.models.gemma:Gemma3",
        "gpt": "fmjax.models.gpt:GPT",
        "image_gpt": "fmjax.models.image_gpt:ImageGPT",
        "internimage": "fmjax.models.internimage:InternImage",
        "llama": "fmjax.models.llama:Llama",
        "mae": "fmjax.models.mae:MAE",
        "magneto": "fmjax.models.magneto:Magneto",
        "magneto_encoder": "fmjax.models.magneto:MagnetoEncoder",
        "qwen3": "fmjax.models.qwen:Qwen3",
        "resnet": "fmjax.models.resnet:ResNet",
        "roberta": "fmjax.models.bert:Roberta",
        "siglip": "fmjax.models.siglip:SigLIP",
        "swin": "fmjax.models.swin:Swin",
        "text_tower": "fmjax.models.text_tower:TextTower",
        "transformer": "fmjax.models.transformer:EncoderDecoder",
        "unet": "fmjax.models.unet:UNet",
        "vit": "fmjax.models.vit:ViT",
        "vqgan": "fmjax.models.vqgan:VQGAN",
    },
    contract="flax.linen:Module",
)
