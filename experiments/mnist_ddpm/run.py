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

HERE = pathlib.Path(__file__).parent
CODEC = ImageCodec(height=28, width=28, channels=1, mean=(0.5,), std=(1.0,))
SAMPLERS = {
    "dpmpp_2m": dict(steps=20),
    "heun": dict(steps=20),
    "ddim": dict(steps=50),
    "euler_ancestral": dict(steps=50),
}

COLLECTED, STATED = 256, 0.0150
"""Draws that those who collected the weights made, and the error that they found."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="the file ddpm_mnist.safetensors")
    parser.add_argument("--data_dir", type=pathlib.Path, required=True, help="folder with vision_mnist")
    parser.add_argument("--limit", type=int, default=10_000, help="test images that are asked about")
    parser.add_argument("--times", type=int, default=2, help="how often each")
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
    found = summary(*noise_errors(model, np.tile(images, (flags.times, 1, 1, 1))))
    rows = [model.generate(num_samples=12, seed=0, sampler=name, **more) for name, more in SAMPLERS.items()]
    CODEC.write(grid([image for row in rows for image in row], columns=12), HERE / "samples.png")
    (HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def noise_errors(model, images: np.ndarray, size: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """(steps, mean squared errors of the noise, a number a pixel), of each image one draw of a step and of noise."""
    process, times_of = model.objective.process, model.objective.times

    @jax.jit
    def errors(params, x0, key):
        keys = jax.random.split(key)
        times = times_of.quantile(process, jax.random.uniform(keys[0], (len(x0),)))
        noise = jax.random.normal(keys[1], x0.shape)
        said = model.module.apply({"params": params}, process.mix(x0, noise, times), times)
        return times * process.num_steps, ((said - noise) ** 2).mean((1, 2, 3))

    found = []
    for index, first in enumerate(range(0, len(images), size)):
        part = np.stack([CODEC.encode(image)["images"] for image in images[first : first + size]])
        found.append(errors(model.params, part, jax.random.key(index)))
    steps, values = (np.concatenate(one).astype(np.float64) for one in zip(*found))
    return np.rint(steps), values


def summary(steps: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """The mean, its standard error, means of quarters of the steps, and how often `COLLECTED` draws have a mean of
    `STATED` or less."""
    draws = np.random.default_rng(0).choice(errors, (20_000, COLLECTED)).mean(axis=1)
    quarters = [errors[(steps - 1) // 250 == quarter] for quarter in range(4)]
    return {
        "draws": len(errors), "error": errors.mean(), "standard_error": errors.std() / np.sqrt(len(errors)),
        "quarters": [float(quarter.mean()) for quarter in quarters],
        "without_the_first_10_steps": errors[steps > 10].mean(),
        f"deviation_of_{COLLECTED}": draws.std(), f"share_of_{COLLECTED}_at_most_{STATED}": (draws <= STATED).mean(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
