"""What losses, BriVL's queue and Florence's labels are worth, on pictures of coloured shapes.

    python experiments/shape_pairs/run.py [--study=losses|queue|labels] [--steps=N] [--runs=DIR]

Trains each model, and classifies held-out pictures by words, of the colours and shapes that were trained on and of
pairs of them that never were, in words that were trained on and in others. Draws `zero_shot.png`, of the losses
`learning.png` and `found.png` too, and writes `results.json`; a finished run is not run again.
"""

import argparse
import json
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import pictures  # noqa: E402
import runs  # noqa: E402

PLAIN = {
    "name": "shapes", "image_size": 32, "kinds": ("one",), "says_size": False, "says_place": False,
    "sequence_length": 20,
}  # fmt: skip
STEPS = {"losses": 400, "queue": 500, "labels": 150}
IN_BATCH = {"name": "contrastive", "max_scale": None}
OWN, LABELS = ({"name": "contrastive", "positives": positives} for positives in ("own", "labels"))


def studies() -> dict[str, dict[str, tuple[str, dict]]]:
    """Of each study (config, changes of it) by the name of the run."""
    from fmjax import config as configs

    queue = configs.load_config_file(str(runs.ROOT / "configs/brivl_shapes.py"))["objective"]
    labels = {}
    for count in (96, 960):
        data, florence = PLAIN | {"num_examples": count}, {"vision": {"window": 4}}
        labels |= {
            f"CLIP, {count} pictures": ("clip_shapes", {"objective": OWN, "data": data}),
            f"CLIP with labels, {count} pictures": ("clip_shapes", {"objective": LABELS, "data": data}),
            f"Florence, {count} pictures": ("florence_shapes", {"objective": LABELS, "data": data, "model": florence}),
        }
    return {
        "losses": {"CLIP": ("clip_shapes", {}), "SigLIP": ("siglip_shapes", {})},
        "queue": {
            name: ("brivl_shapes", {"objective": objective, "data": PLAIN})
            for name, objective in {
                "queue, own label masked": queue,
                "queue, nothing masked": queue | {"mask_same_label": False},
                "queue of 1,024": queue | {"queue_size": 1024},
                "queue, momentum .9": queue | {"momentum": 0.9},
                "no queue, batch of 64": IN_BATCH,
            }.items()
        },
        "labels": labels,
    }


def config_of(name: str, changes: dict, steps: int):
    """A shipped config with these changes: its objective and data are replaced, its model's towers changed."""
    from fmjax import config as configs

    raw = configs.load_config_file(str(runs.ROOT / "configs" / f"{name}.py"))
    raw |= {part: changes[part] for part in ("objective", "data") if part in changes}
    for tower, fields in changes.get("model", {}).items():
        raw["model"][tower] |= fields
    raw["train"] |= {"steps": steps, "eval_every": max(1, steps // 4), "checkpoint_every": 100_000}
    raw["optimizer"]["schedule"]["warmup_steps"] = max(1, steps // 10)
    return configs.resolve(raw)


def prompts(says: bool) -> dict[str, list[str]]:
    """Templates of prompts in words that were trained on, and in words that were not; with sizes and places where
    captions tell them."""
    from fmjax.data.shapes.captions import PLACES

    things = [f"a {size} {{}} {place}" for size in ("small", "large") for row in PLACES for place in row]
    things = things if says else ["{}"]
    frames = ("{}", "there is {}", "a picture of {}", "this shows {}")
    unseen = [f"this is a picture where you see {thing}" for thing in things]
    return {"": [frame.format(thing) for thing in things for frame in frames], " in unseen words": unseen}


def zero_shot(model, config) -> dict[str, float]:
    """Shares of pictures whose colour and shape, of all 48 pairs, are the likeliest in words; of these each alone."""
    from fmjax.cache_folder import cache_dir
    from fmjax.data.shapes.data import CLASSES, Shapes

    seen = {"image_size": config.data.image_size, "eval_examples": 480, "says_size": config.data.says_size}
    opened = Shapes(kinds=("one",), rows="combination", **seen).open(seed=0, cache_dir=cache_dir())
    article = lambda name: name if config.data.says_size else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    words = [article(name) for name in CLASSES["combination"]]
    found = {}
    for split, rows in opened.evaluation.items():
        rows = [rows[i] for i in range(len(rows))]
        images = [model.codecs["image"].decode(row) for row in rows]
        for kind, templates in prompts(config.data.says_size).items():
            answers = model.classify(images, words, templates=templates, alternatives=True, top_k=1)
            pairs = [(answer[0][0].split(), words[int(row["labels"])].split()) for answer, row in zip(answers, rows)]
            parts = {"": slice(None), ", colour": slice(-2, -1), ", shape": slice(-1, None)}
            for part, place in parts.items():
                found[split + kind + part] = sum(said[place] == true[place] for said, true in pairs) / len(pairs)
    return found


def measured(workdir: pathlib.Path, config) -> dict:
    """Trains a run, and how well it does."""
    import fmjax
    from fmjax.cache_folder import cache_dir
    from fmjax.training.loop import train

    file = workdir / "zero_shot.json"
    if not file.exists():
        start = time.time(), time.process_time()
        train(config, workdir, cache_dir=cache_dir())
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        if not lines or lines[-1]["step"] < config.train.steps:
            raise SystemExit(f"{workdir} was stopped before its {config.train.steps} steps; the same command goes on")
        result = {"steps": lines[-1]["step"], "loss": runs.last(lines, "train/loss")}
        # Of a run that was stopped only the last part.
        result |= {"seconds": round(time.time() - start[0]), "processor_seconds": round(time.process_time() - start[1])}
        ends = ("image_to_text", "text_to_image")
        scores = [key for line in lines for key in line if key.startswith("eval/") and key.endswith(ends)]
        result["of a batch"] = {key.removeprefix("eval/"): runs.last(lines, key) for key in dict.fromkeys(scores)}
        result["zero-shot"] = zero_shot(fmjax.load(workdir), config)
        file.write_text(json.dumps(result))
    return json.loads(file.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STEPS), help="one of them alone, whose results are renewed")
    parser.add_argument("--steps", type=int, help=f"of each run (default: {STEPS})")
    parser.add_argument("--runs", default="runs/shape_pairs", type=pathlib.Path, help="where the runs are kept")
    parser.add_argument("--output", default=HERE, type=pathlib.Path, help="where results.json and the plots go")
    flags = parser.parse_args()
    file = flags.output / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results.pop("setting", None)
    flags.output.mkdir(parents=True, exist_ok=True)
    for study, variants in studies().items():
        if flags.study not in (None, study):
            continue
        results[study], steps = {}, flags.steps or STEPS[study]
        folders = {name: flags.runs / f"{study}_{number}" for number, name in enumerate(variants)}
        for name, (config, changes) in variants.items():
            results[study][name] = measured(folders[name], config_of(config, changes, steps))
            print(f"{study}: {name}: {results[study][name]}", flush=True)
            runs.save(flags.output, results)  # after each: what is killed keeps what it has
        if study == "losses":
            pictures.learning(flags.output / "learning.png", folders)
            pictures.found(flags.output / "found.png", folders["CLIP"])
    pictures.bars(flags.output / "zero_shot.png", results)


if __name__ == "__main__":
    main()
