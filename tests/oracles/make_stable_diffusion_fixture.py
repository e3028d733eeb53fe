"""Writes tests/interop/vision/stable_diffusion.npz: a StableDiffusionPipeline of random weights, and what it makes of
given noise.

Needs torch, transformers and diffusers. Run from anywhere: python make_stable_diffusion_fixture.py

    file/NAME, weight/PART/NAME: the folder as `save_pretrained` writes it
    prompt: a caption; negative: another one
    noise [1, 4, 4, 4], images [1, 8, 8, 3] from 0 to 1: of five steps of DDIM
    guided, away: the same with a guidance of 4, from no caption and from the negative one
"""

import pathlib
import tempfile

import diffusers
import numpy as np
import torch
import transformers
from make_unet_fixtures import HERE, spread
from make_vision_fixtures import files_of

PROMPT, NEGATIVE = "a red circle", "two blue squares"


def tokenizer():
    """CLIP's, of letters and a few words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = ["r e", "re d</w>", "c i", "ci r", "b l", "bl u", "blu e</w>", "s q", "t w", "tw o</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "!", "<|startoftext|>", "<|endoftext|>"])}
    pairs = [tuple(merge.split()) for merge in merges]
    # As of version 2, texts are filled up with another token than ends them.
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token="!", model_max_length=20)


def main():
    torch.manual_seed(0)
    reader = tokenizer()
    text = spread(transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(reader), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=20, eos_token_id=reader.eos_token_id, hidden_act="gelu",
    )))  # fmt: skip
    unet = spread(diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    ))  # fmt: skip
    vae = spread(diffusers.AutoencoderKL(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    ))  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=reader, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        found = files_of(pathlib.Path(folder))
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    found |= dict(noise=noise.numpy(), prompt=PROMPT, negative=NEGATIVE)
    for name, options in {
        "images": dict(guidance_scale=1.0),
        "guided": dict(guidance_scale=4.0),
        "away": dict(guidance_scale=4.0, negative_prompt=NEGATIVE),
    }.items():
        made = pipeline(PROMPT, latents=noise, num_inference_steps=5, output_type="np", height=8, width=8, **options)
        found[name] = made.images
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, diffusers {diffusers.__version__}"
    )
    np.savez_compressed(HERE / "stable_diffusion.npz", **found, versions=versions)
    print((HERE / "stable_diffusion.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
