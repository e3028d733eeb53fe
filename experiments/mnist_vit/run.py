"""Trained weights of another code base, read by a family of its own and asked on MNIST's test images: see README.md."""

import argparse
import json
import pathlib
import tempfile

import mnist_vit
import numpy as np
from safetensors.numpy import load_file

import fmjax
from fmjax.data.codecs.image import ImageCodec
from fmjax.interop.family import register
from fmjax.interop.preprocessor import write_preprocessor

SIZES = dict(depth=6, dim=64, heads=8, mlp_dim=128, image_size=28, patch_size=7, channels=1, num_classes=10)
CODEC = ImageCodec(height=28, width=28, channels=1, mean=(0.1307,), std=(0.3081,))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="the file vit_mnist.safetensors")
    parser.add_argument("--data_dir", type=pathlib.Path, required=True, help="folder with vision_mnist")
    flags = parser.parse_args()
    register(mnist_vit.FAMILY)
    with tempfile.TemporaryDirectory() as folder:
        # The weights came alone: what they are, and how images are prepared, is said here.
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps({"architectures": ["MnistViT"], **SIZES}))
        (folder / "preprocessor_config.json").write_text(json.dumps(write_preprocessor(CODEC, "ViTImageProcessor")))
        (folder / "model.safetensors").symlink_to(flags.weights.resolve())
        model = fmjax.load(folder)
        found = fmjax.evaluate(model, tasks=["mnist"], data_dir=flags.data_dir)["results"]["mnist"]
        model.save(folder / "again", format="hf")
        written, weights = load_file(folder / "again" / "model.safetensors"), load_file(flags.weights)
    equal = [np.array_equal(written.get(name), value) for name, value in weights.items()]
    found = {**found, "tensors": len(weights), "written_back_equal": sum(equal)}
    (pathlib.Path(__file__).parent / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
