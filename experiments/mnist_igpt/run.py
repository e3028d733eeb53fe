"""Trained weights of an image GPT of another code base, asked how likely MNIST's test images are: see README.md."""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import mnist_igpt
import numpy as np
from safetensors.numpy import load_file

import fmjax
from fmjax.data.codecs.pixels import PixelCodec
from fmjax.interop.family import register
from fmjax.tasks.images import read_idx

HERE = pathlib.Path(__file__).parent
SIZES = dict(n_layer=8, n_embd=16, n_head=2, vocab_size=17, n_positions=784)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="the file model.safetensors")
    parser.add_argument("--data_dir", type=pathlib.Path, required=True, help="folder with vision_mnist")
    parser.add_argument("--limit", type=int, default=None, help="images that are asked about; all where not given")
    flags = parser.parse_args()
    register(mnist_igpt.FAMILY)
    weights = load_file(flags.weights)
    palette = tuple((float(grey),) for (grey,) in weights["centroids"])
    with tempfile.TemporaryDirectory() as folder:
        # The weights came alone: what they are is said here.
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps({"architectures": ["MnistImageGPT"], **SIZES}))
        (folder / "model.safetensors").symlink_to(flags.weights.resolve())
        model = dataclasses.replace(fmjax.load(folder), codecs={"image": PixelCodec(28, 28, 1, palette)})
        found = fmjax.evaluate(model, tasks=["mnist_pixels"], data_dir=flags.data_dir, limit=flags.limit)
    found = found["results"]["mnist_pixels"]
    (HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    draw(model, read_idx(flags.data_dir / "vision_mnist" / "t10k-images-idx3-ubyte.gz"))


def draw(model, images: np.ndarray, count: int = 8) -> None:
    """completed.png: `count` test images, their upper halves completed three times, and images from nothing."""
    chosen = [image[..., None] for image in images[:count]]
    codec = model.codec
    shown = [codec.decode(codec.encode(image)) for image in chosen]
    made = model.generate(chosen, num_samples=3, seed=0)
    rows = [shown, *(made[i::3] for i in range(3)), model.generate([None], num_samples=count, seed=0)]
    from fmjax.data.codecs.image import grid

    codec.write(grid([image for row in rows for image in row], columns=count), HERE / "completed.png")


if __name__ == "__main__":
    main()
