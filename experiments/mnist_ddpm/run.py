"""A trained DDPM of another code base, read by a family of its own: its noise error and its images; see README.md."""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import jax
import mnist_ddpm
import numpy as np

import fmjax
from fmjax.data.codecs.image import ImageCodec, grid
from fmjax.interop.family import register
from fmjax.tasks.images import read_idx
from fmjax.training.step import make_eval_step

HERE = pathlib.Path(__file__).parent
CODEC = ImageCodec(height=28, width=28, channels=1, mean=(0.5,), std=(1.0,))
SAMPLERS = {
    "dpmpp_2m": dict(steps=20),
    "heun": dict(steps=20),
    "ddim": dict(steps=50),
    "euler_ancestral": dict(steps=50),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="the file ddpm_mnist.safetensors")
    parser.add_argument("--data_dir", type=pathlib.Path, required=True, help="folder with vision_mnist")
    parser.add_argument("--limit", type=int, default=2000, help="test images that are asked about")
    flags = parser.parse_args()
    register(mnist_ddpm.FAMILY)
    with tempfile.TemporaryDirectory() as folder:
        # The weights came alone: what they are is said here.
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(
            json.dumps({"architectures": ["MnistDenoiser"], "image_size": 28, "channels": 1})
        )
        (folder / "model.safetensors").symlink_to(flags.weights.resolve())
        model = dataclasses.replace(fmjax.load(folder), codecs={"image": CODEC})
    images = read_idx(flags.data_dir / "vision_mnist" / "t10k-images-idx3-ubyte.gz")[: flags.limit, ..., None]
    found = {"images": len(images)} | noise_error(model, images)
    rows = [model.generate(num_samples=12, seed=0, sampler=name, **more) for name, more in SAMPLERS.items()]
    CODEC.write(grid([image for row in rows for image in row], columns=12), HERE / "samples.png")
    (HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def noise_error(model, images: np.ndarray, size: int = 100) -> dict[str, float]:
    """Mean squared error of the noise, a number a pixel, at random steps; the same by quarters of the steps."""
    step, sums = jax.jit(make_eval_step(model.module.apply, model.objective, rules=())), {}
    for index, first in enumerate(range(0, len(images), size)):
        part = np.stack([CODEC.encode(image)["images"] for image in images[first : first + size]])
        batch = {"images": part, "loss_weights": np.ones(len(part), np.float32)}
        for name, pair in step(model.params, batch, jax.random.key(index)).items():
            sums[name] = sums.get(name, 0) + np.array(pair, np.float64)
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


if __name__ == "__main__":
    main()
