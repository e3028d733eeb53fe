"""Objectives: pure loss functions, by the protocol of `fmjax.objectives.base`."""

from fmjax.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "brivl": "fmjax.objectives.brivl:BriVL",
        "captioned_codes": "fmjax.objectives.captioned_codes:CaptionedCodes",
        "causal_lm": "fmjax.objectives.causal_lm:CausalLM",
        "causal_pixels": "fmjax.objectives.causal_pixels:CausalPixels",
        "classification": "fmjax.objectives.classification:Classification",
        "consistency": "fmjax.objectives.consistency:ConsistencyModel",
        "contrastive": "fmjax.objectives.contrastive:Contrastive",
        "diffusion": "fmjax.objectives.diffusion:Diffusion",
        "discrete_vae": "fmjax.objectives.discrete_vae:DiscreteVAE",
        "distillation": "fmjax.objectives.distillation:Distillation",
        "embedded_images": "fmjax.objectives.unclip:EmbeddedImages",
        "embedding_diffusion": "fmjax.objectives.unclip:EmbeddingDiffusion",
        "flow_matching": "fmjax.objectives.diffusion:FlowMatching",
        "latent_diffusion": "fmjax.objectives.latent_diffusion:LatentDiffusion",
        "mae": "fmjax.objectives.mae:MaskedAutoencoder",
        "masked_codes": "fmjax.objectives.masked_codes:MaskedCodes",
        "masked_diffusion": "fmjax.objectives.masked_diffusion:MaskedDiffusion",
        "masked_lm": "fmjax.objectives.masked_lm:MaskedLM",
        "moco": "fmjax.objectives.moco:MoCo",
        "reinforce": "fmjax.objectives.reinforce:Reinforce",
        "seq2seq": "fmjax.objectives.seq2seq:Seq2Seq",
        "siglip2": "fmjax.objectives.siglip2:SigLIP2",
        "upsampling": "fmjax.objectives.unclip:Upsampling",
        "vae": "fmjax.objectives.vae:VAE",
        "vq_autoencoder": "fmjax.objectives.vq_autoencoder:VQAutoencoder",
    },
    contract="fmjax.objectives.base:Objective",
)
