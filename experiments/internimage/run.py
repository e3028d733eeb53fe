"""InternImage against a ViT and a ResNet at equal FLOPs on image files of CIFAR-10: see README.md."""

import argparse
import json
import pathlib
import subprocess
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


def trained(name: str, workdir: pathlib.Path, source: pathlib.Path, **settings) -> dict:
    """What a run logged last, with its steps and its curve."""
    flags = [f"--config.train.{key}={value}" for key, value in settings.items()]
    flags += [f"--config={HERE / 'cifar.py'}:{name}", f"--workdir={workdir}", f"--config.data.source={source}"]
    subprocess.run([sys.executable, "-m", "fmjax.train", *flags], cwd=HERE.parents[1], check=True)
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "steps": json.loads((workdir / "config.json").read_text())["train"]["steps"],
        "accuracy": runs.last(metrics, "eval/accuracy"),
        "loss": runs.last(metrics, "eval/loss"),
        "curve": runs.curve(metrics, "eval/accuracy"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=pathlib.Path, required=True, help="folder of zips: SPLIT/CLASS/NUMBER.jpg")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="of InternImage's run; the others take as many steps")
    flags = parser.parse_args()
    workdir = flags.workdir.absolute()
    source, found = unpacked(flags.images, workdir / "images"), {}
    for name, fields in cifar.MODELS.items():
        most = {"steps": found["internimage"]["steps"]} if found else {"steps": 100_000, "max_minutes": flags.minutes}
        found[name] = trained(name, workdir / name, source, **most)
        module = build(fields | {"image_size": 32, "num_channels": 3, "num_classes": 10}, MODELS)
        found[name]["gigaflops_per_image"] = module.flops_per_example({}) / 1e9
    runs.plot(HERE / "accuracy.png", {name: one.pop("curve") for name, one in found.items()}, "test accuracy")
    runs.save(HERE, {"minutes": flags.minutes, "models": found})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
