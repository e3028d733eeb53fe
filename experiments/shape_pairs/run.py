"""What BriVL's queue and Florence's labels are worth, on pictures of one shape.

    python experiments/shape_pairs/run.py [--study=queue|labels] [--steps=300] [--minutes=4] [--runs=DIR]

Trains each model for as many steps, each in at most so many minutes, and classifies held-out pictures by words, of the
colours and shapes that were trained on and of pairs of them that never were. Draws `zero_shot.png` and writes
`results.json`; a finished run is not run again.
"""

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

DATA = {
    "name": "shapes", "image_size": 32, "kinds": ("one",), "says_size": False, "says_place": False,
    "eval_examples": 480,
}  # fmt: skip
TEMPLATES = ("{}", "there is {}", "a picture of {}", "this shows {}")
IN_BATCH = {"name": "contrastive", "max_scale": None}
OWN, LABELS = ({"name": "contrastive", "positives": positives} for positives in ("own", "labels"))
QUEUE = {"name": "brivl", "queue_size": 1024, "momentum": 0.99}


def studies() -> dict[str, dict[str, tuple[str, dict, int]]]:
    """Of each study (config, objective, pictures to train on) by the name of the run."""
    queue = {
        "queue, own label masked": ("brivl_shapes", QUEUE, 10_000),
        "queue, nothing masked": ("brivl_shapes", QUEUE | {"mask_same_label": False}, 10_000),
        "no queue, batch of 64": ("brivl_shapes", IN_BATCH, 10_000),
        "queue, momentum .9": ("brivl_shapes", QUEUE | {"momentum": 0.9}, 10_000),
    }
    labels = {}
    for pictures in (96, 960):
        labels |= {
            f"CLIP, {pictures} pictures": ("clip_shapes", OWN, pictures),
            f"CLIP with labels, {pictures} pictures": ("clip_shapes", LABELS, pictures),
            f"Florence, {pictures} pictures": ("florence_shapes", LABELS, pictures),
        }
    return {"queue": queue, "labels": labels}


def config_of(name: str, objective: dict, pictures: int, steps: int, minutes: float):
    """A shipped config on these data."""
    from fmjax import config as configs

    raw = configs.load_config_file(str(runs.ROOT / "configs" / f"{name}.py"))
    raw |= {"objective": objective, "data": DATA | {"num_examples": pictures}}
    raw["train"] |= {"steps": steps, "max_minutes": minutes, "eval_every": 0, "checkpoint_every": 10_000}
    raw["optimizer"]["schedule"]["warmup_steps"] = max(1, steps // 10)
    if name == "clip_shapes":
        raw["model"]["vision"]["patch_size"] = 4
    if name == "florence_shapes":
        raw["model"]["vision"]["window"] = 4
    return configs.resolve(raw)


def zero_shot(model) -> dict[str, float]:
    """Shares of pictures whose colour and shape, of all 48, are the likeliest in words."""
    from fmjax.cache_folder import cache_dir
    from fmjax.data.shapes.data import CLASSES, Shapes

    data = Shapes(**{key: value for key, value in DATA.items() if key != "name"}, rows="combination")
    opened = data.open(seed=0, cache_dir=cache_dir())
    names = CLASSES["combination"]
    words = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    found = {}
    for split, rows in opened.evaluation.items():
        rows = [rows[i] for i in range(len(rows))]
        pictures = [model.codecs["image"].decode(row) for row in rows]
        answers = model.classify(pictures, words, templates=TEMPLATES, top_k=1)
        right = [answer[0][0] == words[int(row["labels"])] for answer, row in zip(answers, rows)]
        found[split] = sum(right) / len(right)
    return found


def measured(workdir: pathlib.Path, *settings) -> dict:
    """Trains a run, and how well it does."""
    import fmjax
    from fmjax.cache_folder import cache_dir
    from fmjax.training.loop import train

    if not (workdir / "zero_shot.json").exists():
        train(config_of(*settings), workdir, cache_dir=cache_dir())
        metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        result = {"steps": metrics[-1]["step"], "loss": runs.last(metrics, "train/loss")}
        result |= zero_shot(fmjax.load(workdir))
        (workdir / "zero_shot.json").write_text(json.dumps(result))
    return json.loads((workdir / "zero_shot.json").read_text())


def plot(file: pathlib.Path, results: dict[str, dict[str, dict]]) -> None:
    """A panel a study: bars of zero-shot accuracy, and the line of chance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(5.5 * len(results), 3.6), squeeze=False)
    for axes, (study, found) in zip(panels[0], results.items()):
        places = range(len(found))
        for number, (split, what) in enumerate((("heldout", "trained pairs"), ("combinations", "pairs held out"))):
            at, shares = [place + 0.4 * number - 0.2 for place in places], [r[split] for r in found.values()]
            axes.barh(at, shares, 0.4, label=what)
        axes.axvline(1 / 48, color="gray", linestyle="--", linewidth=1)
        axes.set(yticks=list(places), yticklabels=list(found), xlim=(0, 1), title=study)
        axes.set(xlabel="zero-shot accuracy among 48")
        axes.invert_yaxis()
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=("queue", "labels"), help="one of the two alone, whose results are renewed")
    parser.add_argument("--steps", default=300, type=int, help="of each run")
    parser.add_argument("--minutes", default=4.0, type=float, help="that a run may take at most")
    parser.add_argument("--runs", default="runs/shape_pairs", type=pathlib.Path, help="where the runs are kept")
    parser.add_argument("--output", default=HERE, type=pathlib.Path, help="where results.json and the plot go")
    flags = parser.parse_args()
    file = flags.output / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results.pop("setting", None)
    flags.output.mkdir(parents=True, exist_ok=True)
    for study, variants in studies().items():
        if flags.study not in (None, study):
            continue
        results[study] = {}
        for number, (name, settings) in enumerate(variants.items()):
            results[study][name] = measured(flags.runs / f"{study}_{number}", *settings, flags.steps, flags.minutes)
            print(f"{study}: {name}: {results[study][name]}", flush=True)
            runs.save(flags.output, results)  # after each: what is killed keeps what it has
    plot(flags.output / "zero_shot.png", results)


if __name__ == "__main__":
    main()
