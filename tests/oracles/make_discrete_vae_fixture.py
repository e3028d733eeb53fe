"""Writes tests/models/discrete_vae.npz: DALL-E's discrete autoencoder with random weights, and what PyTorch computes.

The encoder is transformers' FlavaImageCodebook, which computes what the published one does; the decoder is written with
torch.nn.functional from the paper's appendix A.2. Needs torch and transformers. Run from anywhere:
python make_discrete_vae_fixture.py

    images [2, 16, 16, 3] in [-1, 1], logits [2, 4, 12] of the codes, row by row of the grid
    shares [2, 4, 12], out [2, 16, 16, 6]: of the decoder

Weights are those of `weight`, which the test draws too.
"""

import pathlib
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

HERE = pathlib.Path(__file__).parent.parent / "models"
WIDTH, CODES, FIRST = 4, 12, 5


def weight(name, shape):
    """A kernel [H, W, in, out] or bias of the module, by its path in the parameters."""
    scale = 1.0 if len(shape) == 1 else 2 * float(np.prod(shape[:3])) ** -0.5
    return (scale * np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)).astype(np.float32)


def kernel_and_bias(name, features, inputs, size):
    kernel = torch.tensor(weight(f"{name}/kernel", (size, size, inputs, features))).permute(3, 2, 0, 1)
    return kernel, torch.tensor(weight(f"{name}/bias", (features,)))


def encoder(images):
    config = FlavaImageCodebookConfig(
        num_groups=4, input_channels=3, num_blocks_per_group=2, hidden_size=WIDTH, vocab_size=CODES
    )
    model = FlavaImageCodebook(config).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            parts = name.split(".")
            if parts[1] == "input":
                place = "first"
            elif parts[1] == "output":
                place = "to_codes"
            else:
                place = f"encoder_{int(parts[1][-1]) - 1}_{int(parts[3][-1]) - 1}/"
                place += "skip" if parts[4] == "id_path" else f"inner_{int(parts[6][-1]) - 1}"
            features, inputs, size, _ = module.weight.shape
            for own, drawn in zip((module.weight, module.bias), kernel_and_bias(place, features, inputs, size)):
                own.copy_(drawn)
    return model(0.8 * (images + 1) / 2 + 0.1)


def decoder(shares):
    def conv(name, x, features, size):
        return F.conv2d(x, *kernel_and_bias(name, features, x.shape[1], size), padding=(size - 1) // 2)

    x = conv("from_codes", shares, FIRST, 1)
    for level, width in enumerate((8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH)):
        for i in range(2):
            name, y = f"decoder_{level}_{i}", x
            for j, size in enumerate((1, 3, 3, 3)):
                y = conv(f"{name}/inner_{j}", F.relu(y), width if j == 3 else width // 4, size)
            x = (conv(f"{name}/skip", x, width, 1) if x.shape[1] != width else x) + y / 64
        x = F.interpolate(x, scale_factor=2, mode="nearest") if level < 3 else x
    return conv("last", F.relu(x), 6, 1)


def main():
    torch.manual_seed(0)
    with torch.no_grad():
        images = 2 * torch.rand(2, 3, 16, 16) - 1
        shares = torch.softmax(torch.randn(2, CODES, 2, 2), 1)
        found = {"logits": encoder(images), "out": decoder(shares)}
    found |= {"images": images, "shares": shares}
    found = {name: x.permute(0, 2, 3, 1).numpy() for name, x in found.items()}
    found |= {name: found[name].reshape(2, -1, CODES) for name in ("logits", "shares")}
    np.savez_compressed(HERE / "discrete_vae.npz", **found)


if __name__ == "__main__":
    main()
