"""A trained ResNet-20 of another code base, read by a family of its own and asked on images of CIFAR-10: see README.md.
"""

import argparse
import json
import pathlib
import tempfile
import zipfile

import cifar_resnet
import numpy as np
from safetensors.numpy import load_file

import fmjax
from fmjax.data.codecs.image import ImageCodec
from fmjax.interop.family import register
from fmjax.interop.preprocessor import labels, write_preprocessor

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CODEC = ImageCodec(32, 32, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def measured(model, archive: pathlib.Path, folder: pathlib.Path) -> dict:
    """The model's accuracy on a zip of SPLIT/CLASS/NUMBER.jpg, on all images and on the first 60 of each class."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    files = sorted(folder.rglob("*.jpg"))
    answers = model.classify([model.codecs["image"].read(file) for file in files], top_k=1, batch_size=250)
    right = np.array([best[0][0] == file.parent.name for best, file in zip(answers, files)])
    of_class = {name: np.array([r for r, file in zip(right, files) if file.parent.name == name]) for name in NAMES}
    return {
        "images": len(files),
        "accuracy": round(float(right.mean()), 4),
        "stderr": round(float(right.std() / len(right) ** 0.5), 4),
        "first_60_per_class": round(float(np.mean([found[:60] for found in of_class.values()])), 4),
        "by_class": {name: round(float(found.mean()), 3) for name, found in of_class.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="the file resnet20.safetensors")
    parser.add_argument("--images", type=pathlib.Path, required=True, help="folder of zips: SPLIT/CLASS/NUMBER.jpg")
    flags = parser.parse_args()
    register(cifar_resnet.FAMILY)
    with tempfile.TemporaryDirectory() as folder:
        # The weights came alone: what they are, and how images are prepared, is said here.
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(
            json.dumps({"architectures": ["CifarResNet"], "num_blocks": 3, "num_classes": 10} | labels(NAMES))
        )
        (folder / "preprocessor_config.json").write_text(json.dumps(write_preprocessor(CODEC, "ViTImageProcessor")))
        (folder / "model.safetensors").symlink_to(flags.weights.resolve())
        model = fmjax.load(folder)
        model.save(folder / "again", format="hf")
        written, weights = load_file(folder / "again" / "model.safetensors"), load_file(flags.weights)
        archives = sorted(flags.images.glob("*.zip"))
        found = {archive.stem: measured(model, archive, folder / archive.stem) for archive in archives}
    equal = [np.array_equal(written.get(name), value) for name, value in weights.items()]
    found |= {"tensors": len(weights), "written_back_equal": sum(equal)}
    (pathlib.Path(__file__).parent / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
