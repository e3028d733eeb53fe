"""Writes the fixture of test_dit_parity.py: random weights and what diffusers' DiT computes from them.

Needs torch and diffusers. The class as it is made is not the published model: its frequencies are shifted by one, which
is put right here. Run from anywhere.
"""

import pathlib

import diffusers
import numpy as np
import torch
from diffusers import DiTTransformer2DModel

HERE = pathlib.Path(__file__).parent


def main():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5, norm_eps=1e-6,
    ).eval()  # fmt: skip
    first = model.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first.state_dict())  # one embedding of the condition for all blocks
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    images, times = torch.randn(3, 3, 8, 8), torch.tensor([0, 250, 999])
    labels, target = torch.tensor([0, 4, 5]), torch.randn(3, 3, 8, 8)  # 5 stands for no label
    out = model(images, timestep=times, class_labels=labels).sample
    (out * target).sum().backward()
    parameters = {n: p for n, p in model.named_parameters() if "blocks.1.norm1.emb" not in n}
    arrays = {f"weight/{name}": value.detach().numpy() for name, value in parameters.items()}
    # The condition's embedding has a copy a block; its gradient is the sum of theirs.
    copies = dict(model.transformer_blocks[1].norm1.emb.named_parameters())
    for name, value in parameters.items():
        gradient = value.grad
        if "norm1.emb." in name:
            gradient = gradient + copies[name.partition("norm1.emb.")[2]].grad
        arrays[f"gradient/{name}"] = gradient.numpy()
    arrays |= dict(images=images.numpy(), times=times.numpy(), labels=labels.numpy(), target=target.numpy())
    arrays |= dict(out=out.detach().numpy(), versions=f"torch {torch.__version__}, diffusers {diffusers.__version__}")
    np.savez_compressed(HERE / "dit.npz", **arrays)
    print(arrays["versions"], (HERE / "dit.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
