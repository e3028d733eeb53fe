"""InternImage against a ViT and a ResNet at equal FLOPs on image files of CIFAR-10: see README.md."""

import argparse
import json
import pathlib
import sys
import zipfile

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import cifar  # noqa: E402
import runs  # noqa: E402

from fmjax.config import build  # noqa: E402
from fmjax.models import MODELS  # noqa: E402


def unpacked(archives: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A folder train and a folder test of images, from the zips SPLIT/CLASS/NUMBER.jpg."""
    for archive in sorted(archives.glob("*.zip")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    return folder


def trained(name: str, workdir: pathlib.Path, source: pathlib.Path, images: int, steps: int) -> dict:
    """What a run on so many images says of the test images along its way and at its end."""
    options = {"data__source": source, "data__train_images": images, "train__steps": steps}
    metrics = runs.train(f"{HERE / 'cifar.py'}:{name}", workdir, **options)
    return {
        "accuracy": runs.last(metrics, "eval/accuracy"),
        "loss": runs.last(metrics, "eval/loss"),
        "train_loss": runs.last(metrics, "train/loss"),
        "curve": runs.curve(metrics, "eval/accuracy"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=pathlib.Path, required=True, help="folder of zips: SPLIT/CLASS/NUMBER.jpg")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="finished runs in it are not run again")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 500], help="numbers of training images")
    parser.add_argument("--steps", type=int, default=250)
    flags = parser.parse_args()
    workdir = flags.workdir.absolute()
    source = unpacked(flags.images, workdir / "images")
    found = {
        f"{name}, {size} images": trained(name, workdir / f"{name}_{size}", source, size, flags.steps)
        for size in flags.sizes
        for name in cifar.MODELS
    }
    modules = {
        name: build(fields | {"image_size": 32, "num_channels": 3, "num_classes": 10}, MODELS)
        for name, fields in cifar.MODELS.items()
    }
    costs = {name: module.flops_per_example({}) / 1e9 for name, module in modules.items()}
    runs.plot(HERE / "accuracy.png", {name: one["curve"] for name, one in found.items()}, "test accuracy")
    runs.save(HERE, {"steps": flags.steps, "gigaflops_per_image": costs, "runs": found})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
