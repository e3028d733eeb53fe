"""Pretraining as a masked autoencoder against none with few labels of Fashion-MNIST: see README.md."""

import argparse
import json
import pathlib
import statistics
import sys

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

CONFIG = HERE / "fashion.py"
LABELS = (100, 1000, 10000)


def ways(pretrained: pathlib.Path) -> dict[str, dict]:
    """How a classifier begins and what of it trains, by name, as options of `runs.train_here`."""
    probe = {"train__trainable": "^head/", "optimizer__learning_rate": 0.03, "optimizer__weight_decay": 0.0}
    return {
        "from nothing": {},
        "fine-tuned": {"train__init_from": pretrained, "optimizer__layer_decay": 0.75},
        "linear probe": {"train__init_from": pretrained, **probe},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="folder of IDX files train*-images... and t10k-images...")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="finished runs in it are not run again")
    parser.add_argument("--pretraining", type=int, default=1000, help="steps of the masked autoencoder")
    parser.add_argument("--steps", type=int, default=120, help="of each classifier")
    parser.add_argument("--seeds", type=int, nargs=3, default=[3, 2, 1], help="runs with 1%%, 10%% and all labels")
    flags = parser.parse_args()
    workdir, source = flags.workdir.absolute(), {"data__source": flags.images}
    pretrained = workdir / f"mae_{flags.pretraining}"
    drawn = runs.train_here(f"{CONFIG}:mae", pretrained, train__steps=flags.pretraining, **source)
    found = {way: {} for way in ways(pretrained)}
    times = {"train__steps": flags.steps, "train__eval_every": flags.steps, "train__eval_batches": 40}
    for seed in range(max(flags.seeds)):
        for labels, seeds in zip(LABELS, flags.seeds):
            for way, options in ways(pretrained).items() if seed < seeds else ():
                place = workdir / f"{way.replace(' ', '_')}_{labels}_{seed}"
                of = {"data__train_images": labels, "seed": seed, **source, **times, **options}
                metrics = runs.train_here(f"{CONFIG}:vit", place, **of)
                found[way].setdefault(labels, []).append(runs.last(metrics, "eval/accuracy"))
                print(seed, labels, way, found[way][labels][-1], flush=True)
    means = {way: ([*rows], [statistics.mean(row) for row in rows.values()]) for way, rows in found.items()}
    axis = {"xlabel": "labelled images", "xscale": "log"}
    runs.plot(HERE / "accuracy.png", means, "test accuracy, mean of the seeds", **axis)
    pretraining = {"steps": flags.pretraining, "eval_loss": runs.last(drawn, "eval/loss")}
    runs.save(HERE, {"pretraining": pretraining, "steps": flags.steps, "accuracy": found})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
