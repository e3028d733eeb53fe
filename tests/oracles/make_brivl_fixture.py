"""Writes brivl_head.npz, which test_brivl_parity.py reads: random weights, and what PyTorch's layers make of them.

Needs torch. The head is as in section "Methods" of Fei et al. 2022: L2 normalisation, post-norm encoder layers, the
mean over what is no padding, two products with a ReLU between them. Patches are PyTorch's adaptive average pooling.
"""

import pathlib

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
WIDTH, HEADS, INNER, LAYERS, OUT = 8, 2, 12, 2, 6


def main():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, batch_first=True)
    parts = nn.ModuleDict({
        "block": nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False),
        "mlp": nn.Sequential(nn.Linear(WIDTH, OUT), nn.ReLU(), nn.Linear(OUT, OUT)),
    })  # fmt: skip
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    x, target = 3 * torch.randn(3, 5, WIDTH), torch.randn(3, OUT)
    x.requires_grad_()
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    states = parts["block"](nn.functional.normalize(x, dim=-1), src_key_padding_mask=keep == 0)
    mean = (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    out = parts["mlp"](mean)
    (out * target).sum().backward()
    named = dict(parts.named_parameters())
    arrays = {f"weight/{name}": value.detach().numpy() for name, value in named.items()}
    arrays |= {f"gradient/{name}": value.grad.numpy() for name, value in named.items()}
    arrays |= {"x": x.detach().numpy(), "x_gradient": x.grad.numpy(), "keep": keep.numpy().astype(np.int32)}
    arrays |= {"target": target.numpy(), "out": out.detach().numpy()}
    places = torch.randn(2, 3, 5, 7)
    arrays["places"] = places.permute(0, 2, 3, 1).numpy()
    for grid in (1, 2, 3, 5):
        pooled = nn.functional.adaptive_avg_pool2d(places, grid)
        arrays[f"pooled/{grid}"] = pooled.flatten(2).transpose(1, 2).numpy()
    np.savez_compressed(HERE / "brivl_head.npz", versions=f"torch {torch.__version__}", **arrays)


if __name__ == "__main__":
    main()
