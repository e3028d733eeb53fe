"""DDPM, DiT and flow matching at equal compute, samplers by their steps, guidance against diversity: see README.md.

    python experiments/images_made/run.py --workdir=runs/images_made [--data_dir=DATA]

The digits of scikit-learn, or with `--data_dir` Fashion-MNIST of `DATA/vision_fashion_mnist`. Trains a classifier and
three models, makes images and judges them by the tasks `made_accuracy`, `made_distance` and `made_coverage`. Finished
runs and images that were made are kept in the workdir. Writes `digits.json` or `fashion_mnist.json`, plots and a grid.
"""

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

DIT = {"name": "dit", "num_layers": 4, "hidden_size": 96, "num_heads": 4}
UNET = {"name": "unet", "widths": (32, 64), "num_blocks": 1, "attention": ("none", "self"), "norm_groups": 8}
DDPM = {
    "name": "diffusion", "process": {"name": "ddpm", "num_steps": 1000}, "target": {"name": "eps"},
    "weighting": {"name": "min_snr"}, "stratified": True, "label_dropout": 0.1,
}  # fmt: skip
FLOW = {"name": "flow_matching", "label_dropout": 0.1}
BEST = {"sampler": "dpmpp_2m", "steps": 20}
SAMPLERS = ("euler", "heun", "dpmpp_2m", "ancestral", "euler_ancestral")
STEPS = (5, 10, 20, 50)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
BATCH = 64
TERA = {"digits": 8.0, "fashion_mnist": 60.0}
BESIDE = ("_real", "_train", "_noise")
"""How names of metrics end that are not of made images."""


def models(patch_size: int) -> dict[str, tuple[dict, dict, float]]:
    """(model, objective, learning rate) by name."""
    dit = DIT | {"patch_size": patch_size}
    return {
        "U-Net, DDPM": (UNET, DDPM, 1e-3),
        "DiT, DDPM": (dit, DDPM, 1.5e-3),
        "DiT, flow matching": (dit, FLOW, 1.5e-3),
    }


def config_of(parts, data: dict, steps: int):
    from fmjax.config import resolve

    model, objective, rate = parts
    return resolve({
        "seed": 0, "mesh": {"data": -1}, "model": model, "objective": objective, "data": data,
        "train": {"steps": steps, "batch_size": BATCH, "log_every": 50, "checkpoint_every": 500, "ema_decay": 0.995},
        "optimizer": {
            "name": "adamw", "learning_rate": rate, "weight_decay": 0.0,
            "schedule": {"name": "cosine", "warmup_steps": max(1, steps // 10)},
        },
    })  # fmt: skip


def classifier(data: dict, workdir: pathlib.Path) -> float:
    """Trains what reads made images, on real ones alone; its test accuracy."""
    from fmjax.config import load_config_file, resolve

    raw = load_config_file(str(runs.ROOT / "configs/resnet_digits.py"))
    if data["name"] != "digits":
        del raw["data"]
        raw["data"] = data
    return runs.last(runs.train_config(resolve(raw), workdir), "eval/accuracy")


def trained(parts, opened, data: dict, tera: float, workdir: pathlib.Path):
    """(the run's model, what it took): as many steps as are `tera` TFLOP."""
    import jax

    import fmjax
    from fmjax.assemble import build_module

    module = build_module(config_of(parts, data, 1), opened.model_fields)
    flops = module.flops_per_example({key: value.shape for key, value in opened.train[0].items()})
    steps = round(tera * 1e12 / (flops * BATCH))
    metrics = runs.train_config(config_of(parts, data, steps), workdir)
    seconds = steps * statistics.median(runs.curve(metrics, "perf/seconds_per_step")[1])
    loaded = fmjax.load(workdir)
    size = sum(x.size for x in jax.tree.leaves(loaded.params))
    return loaded, {"steps": steps, "parameters": size, "seconds": round(seconds, 1)}


class Judge:
    """Measures of made images, each with its standard error; those of real ones beside them are in `real`."""

    def __init__(self, data: str, reader: pathlib.Path, **where):
        self.data, self.reader, self.where = data, reader, where
        self.real: dict[str, float] = {}

    def __call__(self, model, **options) -> dict[str, float]:
        """Of images of the classes of the test images, made by the options of the model's generator."""
        import fmjax

        told = "".join(f":{name}={value}" for name, value in options.items())
        names = [
            f"made_{task}:{self.data}:{key}={self.reader}{told}"
            for task, key in (("accuracy", "classifier"), ("distance", "extractor"), ("coverage", "extractor"))
        ]
        report = fmjax.evaluate(model, names, answers=pathlib.Path(model.source) / "answers", **self.where)
        found = {name: value for metrics in report["results"].values() for name, value in metrics.items()}
        beside = {name for name in found if name.removesuffix("_stderr").endswith(BESIDE)}
        self.real |= {name: found[name] for name in beside}
        return {name: value for name, value in found.items() if name not in beside}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=pathlib.Path, help="folder with vision_fashion_mnist; none: digits")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--tera", type=float, help=f"TFLOP of a run's training; default: {TERA}")
    parser.add_argument("--count", type=int, help="test images beside which as many are made; default: 360")
    flags = parser.parse_args()
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.data.codecs.image import grid
    from fmjax.tasks.images import FashionMNISTData

    use_compilation_cache()
    name = "fashion_mnist" if flags.data_dir else "digits"
    folder = flags.workdir.absolute() / name
    source = {
        "name": "images", "source": f"{flags.data_dir}/vision_fashion_mnist", "image_size": 28, "channels": 1,
        "class_names": list(FashionMNISTData.names),
    }  # fmt: skip
    data = source if flags.data_dir else {"name": "digits", "max_shift": 0}
    tera, count = flags.tera or TERA[name], flags.count or 360
    of_models = models(4 if flags.data_dir else 2)
    opened = open_data(config_of(of_models["DiT, DDPM"], data, 1), cache_dir())
    reader = folder / f"resnet_{name}"
    results = {"tera": tera, "count": count, "classifier": classifier(data, reader), "models": {}}
    judge, loaded = Judge(name, reader, limit=count, data_dir=flags.data_dir), {}
    for kind, parts in of_models.items():
        workdir = folder / kind.lower().replace(", ", "_").replace(" ", "_")
        loaded[kind], took = trained(parts, opened, data, tera, workdir)
        results["models"][kind] = took | judge(loaded[kind], **BEST)
        print(kind, results["models"][kind], flush=True)
    results["samplers"] = {
        f"{kind}, {sampler}": {steps: judge(loaded[f"DiT, {kind}"], sampler=sampler, steps=steps) for steps in STEPS}
        for kind in ("DDPM", "flow matching")
        for sampler in SAMPLERS
        if not (kind == "flow matching" and sampler == "ancestral")
    }
    flow = loaded["DiT, flow matching"]
    results["guidance"] = {scale: judge(flow, **BEST, guidance=scale) for scale in GUIDANCE}
    results["real"] = dict(sorted(judge.real.items()))
    rows = [model.generate(range(10), num_samples=2, seed=0, guidance=1.5, **BEST) for model in loaded.values()]
    import numpy as np

    sheet = grid([image for row in rows for image in row], columns=20)
    flow.codec.write(np.kron(sheet, np.ones((3, 3, 1), np.uint8)), HERE / f"{name}.png")
    (HERE / f"{name}.json").write_text(json.dumps(results | {"setting": runs.setting()}, indent=2) + "\n")
    draw(name, f"fd_{reader.name}", results)
    print(json.dumps(results, indent=2))


def draw(name: str, distance: str, results: dict) -> None:
    """Fréchet distance by evaluations of the model, and accuracy, precision and recall by guidance."""
    curves = {}
    for kind, by in results["samplers"].items():
        each = 2 if kind.endswith("heun") else 1
        curves[kind] = [steps * each for steps in by], [found[distance] for found in by.values()]
    lines = {"training images": results["real"][f"{distance}_train"]}
    axis = dict(xlabel="evaluations of the model", xscale="log", yscale="log")
    runs.plot(HERE / f"{name}_samplers.png", curves, "Fréchet distance", lines, **axis)
    by = results["guidance"]
    parts = {part: (list(by), [found[part] for found in by.values()]) for part in ("acc", "precision", "recall")}
    runs.plot(HERE / f"{name}_guidance.png", parts, "share", xlabel="guidance")


if __name__ == "__main__":
    main()
