"""DDPM, DiT and flow matching at equal compute, samplers by their steps, guidance against diversity: see README.md.

    python experiments/images_made/run.py [--images=DATA/vision_fashion_mnist] --workdir=runs/images_made

Without `--images` the digits of scikit-learn. Trains three models (a finished run is used as it is), makes images and
measures them. Writes `digits.json` or `fashion.json`, and plots and a grid beside it.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

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
SAMPLERS = ("euler", "heun", "dpmpp_2m", "ancestral", "euler_ancestral")
STEPS = (5, 10, 20, 50)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
BATCH, COMPONENTS, NEIGHBOURS = 64, 32, 3


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


def trained(parts, opened, data: dict, tera: float, workdir: pathlib.Path):
    """(the run's model, what it took): as many steps as are `tera` TFLOP."""
    import jax

    import fmjax
    from fmjax.assemble import build_module
    from fmjax.cache_folder import cache_dir
    from fmjax.training.loop import train

    module = build_module(config_of(parts, data, 1), opened.model_fields)
    flops = module.flops_per_example({key: np.shape(value) for key, value in opened.train[0].items()})
    steps = round(tera * 1e12 / (flops * BATCH))
    start, file = time.process_time(), workdir / "seconds.json"
    train(config_of(parts, data, steps), workdir, cache_dir=cache_dir())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    if lines[-1]["step"] < steps:
        raise SystemExit(f"{workdir} was stopped before its {steps} steps; the same command goes on")
    if not file.exists():
        file.write_text(json.dumps(time.process_time() - start))
    loaded = fmjax.load(workdir)
    size = sum(x.size for x in jax.tree.leaves(loaded.params))
    return loaded, {"steps": steps, "parameters": size, "processor_seconds": json.loads(file.read_text())}


class Judge:
    """Measures of made images, by a classifier that has seen real ones alone, and by principal components of these."""

    def __init__(self, model, data, training: int):
        from sklearn.decomposition import PCA
        from sklearn.svm import SVC

        self.model = model
        test = next(iter(data.evaluation.values()))
        rows = [data.train[i] for i in range(training)], [test[i] for i in range(len(test))]
        pixels = [np.stack([row["images"].ravel() for row in part]) for part in rows]
        labels = [np.array([int(row["labels"]) for row in part]) for part in rows]
        # Of larger images a part will do.
        settings, seen = ({"gamma": 0.02}, None) if pixels[0].shape[1] == 64 else ({"C": 10}, 5000)
        self.classifier = SVC(**settings).fit(pixels[0][:seen], labels[0][:seen])
        self.axes = PCA(COMPONENTS, random_state=0).fit(pixels[0])
        self.training, self.test = self.axes.transform(pixels[0]), self.axes.transform(pixels[1])
        self.accuracy = float(self.classifier.score(pixels[1][:2000], labels[1][:2000]))

    def bounds(self, count: int) -> dict:
        """The same measures of real test images, and the Fréchet distance of uniform noise."""
        from fmjax.tasks.metrics.distributions import frechet

        noise = np.random.default_rng(0).uniform(-1, 1, (count, self.axes.n_features_in_))
        return {
            "accuracy": self.accuracy,
            "frechet of test images": frechet(self.test[:count], self.training).value,
            "frechet of noise": frechet(self.axes.transform(noise), self.training).value,
            **self.spread(self.test[:count]),
        }

    def spread(self, vectors: np.ndarray) -> dict:
        from fmjax.tasks.metrics.neighbourhoods import inside

        real = self.training[: len(vectors)]
        return {
            "precision": float(inside(vectors, real, NEIGHBOURS).mean()),
            "recall": float(inside(real, vectors, NEIGHBOURS).mean()),
        }

    def __call__(self, images, asked: np.ndarray) -> dict:
        from fmjax.tasks.metrics.distributions import frechet

        pixels = np.stack([self.model.codec.encode(image)["images"].ravel() for image in images])
        vectors = self.axes.transform(pixels)
        read = float(np.mean(self.classifier.predict(pixels) == asked))
        return {"accuracy": read, "frechet": frechet(vectors, self.training).value, **self.spread(vectors)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of IDX files train*-images... and t10k-images..., with labels")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--tera", type=float, help="TFLOP of a run's training; default: 8 of digits, 40 of images")
    parser.add_argument("--count", type=int, default=100, help="images of each class")
    flags = parser.parse_args()
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir
    from fmjax.data.codecs.image import grid

    name = "fashion" if flags.images else "digits"
    source = {"name": "images", "source": flags.images, "image_size": 28, "channels": 1}
    data = source if flags.images else {"name": "digits", "max_shift": 0}
    tera = flags.tera or (40.0 if flags.images else 8.0)
    asked, classes = np.repeat(np.arange(10), flags.count), range(10)
    results, loaded, judge = {"tera": tera, "count": len(asked), "models": {}}, {}, None
    of_models = models(4 if flags.images else 2)
    opened = open_data(config_of(of_models["DiT, DDPM"], data, 1), cache_dir())
    for kind, parts in of_models.items():
        folder = flags.workdir / name / kind.lower().replace(", ", "_").replace(" ", "_")
        loaded[kind], took = trained(parts, opened, data, tera, folder)
        if judge is None:
            judge = Judge(loaded[kind], opened, 10_000 if flags.images else 1440)
            results["real"] = judge.bounds(len(asked))
            print("real", results["real"], flush=True)
        made = lambda **more: loaded[kind].generate(classes, num_samples=flags.count, seed=0, **more)
        results["models"][kind] = took | judge(made(sampler="dpmpp_2m", steps=20), asked)
        print(kind, results["models"][kind], flush=True)
    of = loaded["DiT, DDPM"], loaded["DiT, flow matching"]
    results["samplers"] = {
        f"{kind}, {sampler}": {
            steps: judge(model.generate(classes, num_samples=flags.count, seed=0, sampler=sampler, steps=steps), asked)
            for steps in STEPS
        }
        for kind, model in zip(("DDPM", "flow"), of)
        for sampler in SAMPLERS
        if not (kind == "flow" and sampler == "ancestral")
    }
    results["guidance"] = {
        scale: judge(of[1].generate(classes, num_samples=flags.count, seed=0, guidance=scale), asked)
        for scale in GUIDANCE
    }
    rows = [model.generate(classes, num_samples=2, seed=0, guidance=1.5) for model in loaded.values()]
    sheet = grid([image for row in rows for image in row], columns=20)
    judge.model.codec.write(np.kron(sheet, np.ones((3, 3, 1), np.uint8)), HERE / f"{name}.png")
    (HERE / f"{name}.json").write_text(json.dumps(results | {"setting": runs.setting()}, indent=2) + "\n")
    draw(name, results)
    print(json.dumps(results, indent=2))


def draw(name: str, results: dict) -> None:
    """Fréchet distance by steps, and by guidance with accuracy and recall."""
    curves = {kind: (list(by), [found["frechet"] for found in by.values()]) for kind, by in results["samplers"].items()}
    lines = {"real test images": results["real"]["frechet of test images"]}
    axis = dict(xlabel="steps", xscale="log", yscale="log")
    runs.plot(HERE / f"{name}_samplers.png", curves, "Fréchet distance", lines, **axis)
    by = results["guidance"]
    parts = {part: (list(by), [found[part] for found in by.values()]) for part in ("accuracy", "precision", "recall")}
    runs.plot(HERE / f"{name}_guidance.png", parts, "share", xlabel="guidance")


if __name__ == "__main__":
    main()
