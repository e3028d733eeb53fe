"""Writes tests/interop/vision/dit_pipeline.npz: a DiTPipeline of random weights, and what it makes of given noise.

Needs torch and diffusers. Run from anywhere: python make_dit_pipeline_fixture.py

    file/NAME, weight/PART/NAME: the folder as `save_pretrained` writes it
    noise [2, 4, 4, 4], labels [2], images [2, 8, 8, 3] from 0 to 1: of five steps of DDIM
    guided: the same with a guidance of 4
"""

import pathlib
import tempfile

import diffusers
import numpy as np
import torch
from make_unet_fixtures import HERE, spread
from make_vision_fixtures import as_trained, files_of


def none_of_three(module, arguments, named):
    """The pipeline's label for none is 1000, that of a model of 1000 classes; of one of three it is 3."""
    return arguments, named | {"class_labels": named["class_labels"].clamp(max=3)}


def main():
    torch.manual_seed(0)
    model = spread(diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
        patch_size=2, num_embeds_ada_norm=3,
    ))  # fmt: skip
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    vae = spread(diffusers.AutoencoderKL(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    ))  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    pipeline = diffusers.DiTPipeline(transformer=model, vae=vae, scheduler=scheduler)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        found = files_of(pathlib.Path(folder))
    as_trained(model)
    model.register_forward_pre_hook(none_of_three, with_kwargs=True)
    labels = [2, 0]
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    found |= dict(noise=noise.numpy(), labels=np.int32(labels))
    for name, scale in (("images", 1.0), ("guided", 4.0)):
        own = torch.Generator().manual_seed(1)
        made = pipeline(labels, guidance_scale=scale, generator=own, num_inference_steps=5, output_type="np")
        found[name] = made.images
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    np.savez_compressed(HERE / "dit_pipeline.npz", **found, versions=versions)
    print((HERE / "dit_pipeline.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
