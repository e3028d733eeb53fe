"""Writes tests/interop/vision/unet_*.npz and autoencoder_kl.npz: parts of diffusers' pipelines with random weights, and
what PyTorch computes.

Needs torch and diffusers. Run from anywhere: python make_unet_fixtures.py

    unet_ddpm.npz, unet_adm.npz, unet_text.npz
        file/part/NAME, weight/part/NAME: the folder as `save_pretrained` writes it
        inputs [2, C, 8, 8], times [2], out [2, C', 8, 8]; labels [2], memory [2, 3, M], mask [2, 3] where there are
        target as out, gradient/NAME: of the sum of out * target (unet_text alone)
        sampled as inputs: what DDIM makes of them as noise in five steps (unet_ddpm alone)
    autoencoder_kl.npz
        images [2, 3, 8, 8], moments [2, 2 L, 4, 4], latents [2, L, 4, 4], decoded [2, 3, 8, 8]
        kl [2]: nats of each image's posterior to the standard normal
"""

import pathlib
import tempfile

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent.parent / "interop" / "vision"
SMALL = dict(sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, norm_eps=1e-2)
UNETS = {
    "unet_ddpm": (diffusers.UNet2DModel, dict(
        **SMALL, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, attention_head_dim=None, dropout=0.1,
    )),
    "unet_adm": (diffusers.UNet2DModel, dict(
        **SMALL, out_channels=6, down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), downsample_type="resnet", upsample_type="resnet",
        resnet_time_scale_shift="scale_shift", attention_head_dim=4, num_class_embeds=3,
    )),
    "unet_text": (diffusers.UNet2DConditionModel, dict(
        **SMALL, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=6,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=(2, 4),
        transformer_layers_per_block=(2, 1), use_linear_projection=True,
    )),
}  # fmt: skip


def spread(model):
    """The model with weights at which every one matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def files_of(model) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = {"file/part/config.json": (pathlib.Path(folder) / "config.json").read_text()}
        tensors = load_file(pathlib.Path(folder) / "diffusion_pytorch_model.safetensors")
    return found | {f"weight/part/{name}": value.numpy() for name, value in tensors.items()}


def unet(model_class, options) -> dict:
    torch.manual_seed(0)
    model = spread(model_class(**options))
    channels = model.config.in_channels
    found = {"inputs": torch.randn(2, channels, 8, 8), "times": torch.tensor([0, 750])}
    given = {}
    if "cross_attention_dim" in options:
        found |= {"memory": torch.randn(2, 3, 6), "mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
        given = dict(encoder_hidden_states=found["memory"], encoder_attention_mask=found["mask"])
    elif "num_class_embeds" in options:
        found["labels"] = torch.tensor([2, 0])
        given = dict(class_labels=found["labels"])
    out = model(found["inputs"], found["times"], **given).sample
    found["out"] = out
    if not given:
        found["sampled"] = ddim(model, found["inputs"])
    if "memory" in found:
        found["target"] = torch.randn(out.shape)
        (out * found["target"]).sum().backward()
        found |= {f"gradient/{name}": value.grad for name, value in model.named_parameters()}
    return files_of(model) | {name: value.detach().numpy() for name, value in found.items()}


@torch.no_grad()
def ddim(model, x):
    """The images that DDIMPipeline makes of noise, without cutting them off."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    for time in scheduler.timesteps:
        x = scheduler.step(model(x, time).sample, time, x).prev_sample
    return x


def autoencoder() -> dict:
    torch.manual_seed(0)
    model = spread(diffusers.AutoencoderKL(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
        shift_factor=0.25,
    ))  # fmt: skip
    images = torch.randn(2, 3, 8, 8)
    posterior = model.encode(images).latent_dist
    latents = posterior.mode()
    found = dict(
        images=images, moments=posterior.parameters, latents=latents, decoded=model.decode(latents).sample,
        kl=posterior.kl(),
    )  # fmt: skip
    return files_of(model) | {name: value.detach().numpy() for name, value in found.items()}


def main():
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    made = {name: unet(*case) for name, case in UNETS.items()} | {"autoencoder_kl": autoencoder()}
    for name, arrays in made.items():
        np.savez_compressed(HERE / f"{name}.npz", **arrays, versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
