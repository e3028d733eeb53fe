"""Writes tests/interop/vision/mmdit*.npz: Stable Diffusion 3's Transformer with random weights, and what PyTorch
computes.

Needs torch and diffusers. Run from anywhere: python make_mmdit_fixtures.py

    mmdit.npz, mmdit_normed.npz
        file/part/config.json, weight/part/NAME: the folder as `save_pretrained` writes it
        inputs [2, C, 8, 8], times [2], memory [2, 3, M], vector [2, V], out [2, C, 8, 8]
        target as out, gradient/NAME: of the sum of out * target (mmdit_normed alone)
"""

import diffusers
import numpy as np
import torch
from make_unet_fixtures import HERE, files_of, spread

SMALL = dict(
    sample_size=8, patch_size=2, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=4,
    num_attention_heads=2, joint_attention_dim=6, caption_projection_dim=8, pooled_projection_dim=5,
)  # fmt: skip
CASES = {"mmdit": dict(pos_embed_max_size=None), "mmdit_normed": dict(pos_embed_max_size=6, qk_norm="rms_norm")}


def case(options) -> dict:
    torch.manual_seed(0)
    model = spread(diffusers.SD3Transformer2DModel(**SMALL, **options))
    found = {"inputs": torch.randn(2, 3, 8, 8), "times": torch.tensor([0, 750])}
    found |= {"memory": torch.randn(2, 3, 6), "vector": torch.randn(2, 5)}
    out = model(found["inputs"], found["memory"], found["vector"], found["times"]).sample
    found["out"] = out
    if "qk_norm" in options:
        found["target"] = torch.randn(out.shape)
        (out * found["target"]).sum().backward()
        found |= {f"gradient/{name}": value.grad for name, value in model.named_parameters()}
    return files_of(model) | {name: value.detach().numpy() for name, value in found.items()}


def main():
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    for name, options in CASES.items():
        np.savez_compressed(HERE / f"{name}.npz", **case(options), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
