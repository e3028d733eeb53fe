"""Writes tests/interop/vision/prior_transformer.npz: DALL-E 2's prior with random weights, and what PyTorch computes.

Needs torch and diffusers. Run from anywhere: python make_prior_fixture.py

    file/part/config.json, weight/part/NAME: the folder as `save_pretrained` writes it
    inputs [2, E], times [2], memory [2, T, E], mask [2, T], vector [2, E], out [2, E]
    target as out, gradient/NAME: of the sum of out * target
"""

import diffusers
import numpy as np
import torch
from make_unet_fixtures import HERE, files_of, spread

SIZES = dict(num_attention_heads=2, attention_head_dim=4, num_layers=2, embedding_dim=6, num_embeddings=5)


def main():
    torch.manual_seed(0)
    model = spread(diffusers.PriorTransformer(**SIZES))
    found = {"inputs": torch.randn(2, 6), "times": torch.tensor([0, 750]), "memory": torch.randn(2, 5, 6)}
    found |= {
        "mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
        "vector": torch.randn(2, 6),
        "target": torch.randn(2, 6),
    }
    told = dict(encoder_hidden_states=found["memory"], attention_mask=found["mask"].bool())
    found["out"] = model(found["inputs"], found["times"], found["vector"], **told).predicted_image_embedding
    (found["out"] * found["target"]).sum().backward()
    gradients = {f"gradient/{name}": w.grad for name, w in model.named_parameters() if w.grad is not None}
    arrays = files_of(model) | {name: value.detach().numpy() for name, value in (found | gradients).items()}
    np.savez_compressed(HERE / "prior_transformer.npz", **arrays)
    print((HERE / "prior_transformer.npz").stat().st_size, f"bytes; diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
