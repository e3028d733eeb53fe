"""Pictures drawn from captions, by four families of models: see README.md.

    python experiments/captions_drawn/run.py [--runs=DIR] [--only=NAME[,NAME]] [--pictures=N]

Trains what each family consists of (a finished run is used as it is), has it draw captions of combinations of colour
and shape that were never trained on together, and looks at the pictures by a program. Writes `results.json`, a strip of
pictures a family to `drawn/`, and `drawn.png` of these; families that are not asked for keep what is there.
"""

import argparse
import json
import pathlib
import resource
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import families  # noqa: E402
import runs  # noqa: E402

TIMED = 16  # pictures, drawn at once, of which seconds are told
SHOWN = 8  # captions of the grid


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, default=HERE.parents[1] / "runs")
    parser.add_argument("--only", help=f"families, separated by commas: {', '.join(families.FAMILIES)}")
    parser.add_argument("--pictures", type=int, default=500, help="captions, of each a picture is drawn")
    flags = parser.parse_args()
    wanted = flags.only.split(",") if flags.only else list(families.FAMILIES)
    if unknown := set(wanted) - set(families.FAMILIES):
        parser.error(f"--only: no family {sorted(unknown)}; known: {', '.join(families.FAMILIES)}")
    folder = flags.runs.absolute()
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {"families": {}}
    for name in wanted:
        family = families.FAMILIES[name]
        minutes = {stage: trained(stage, folder) for stage in family.stages}
        found = {"minutes": minutes} | measured(family, folder, flags.pictures)
        results["families"][name] = found | {"pictures": flags.pictures, "setting": runs.setting()}
        runs.save(HERE, results)
        keep_strip(name, family, folder)
        print(name, json.dumps(results["families"][name], indent=2), flush=True)
    draw([name for name in families.FAMILIES if name in results["families"]])


def trained(stage: str, folder: pathlib.Path) -> float:
    """Makes a run where it is not finished. Returns the minutes of processor time that it took, all in all."""
    told, done = folder / f"{stage}.minutes.json", folder / stage / families.DONE
    if not done.exists():
        spent, before = json.loads(told.read_text()) if told.exists() else 0.0, _children()
        families.make(stage, folder)
        told.write_text(json.dumps(spent + (_children() - before) / 60))
        done.touch()
    return round(json.loads(told.read_text()), 1)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(family, folder: pathlib.Path, pictures: int) -> dict:
    """Of one family: what is true of its pictures by part of the world, its parameters, seconds a picture."""
    import jax

    import fmjax

    model = fmjax.load(folder / family.model)
    found = {"parameters": {stage: _size(folder / stage) for stage in family.stages if stage != families.LATENTS}}
    if family.first_stage is not None:
        found["reconstructed"] = reconstructed(fmjax.load(folder / family.first_stage), pictures, family.kinds)
    options = family.options(folder)
    for part in ("combinations", "heldout"):
        task = ":".join([f"made_captions:{part}", *(f"{key}={value}" for key, value in options.items())])
        shown = fmjax.evaluate(model, tasks=[task], limit=pictures, output=folder / "scores" / family.model / part)
        (scores,) = shown["results"].values()
        found[part] = {name: round(scores[name], 4) for name in ("true", "true_stderr", "true_wrong", "unread")}
        found["program"] = round(scores["true_real"], 4)
    if family.kinds == ("one",):
        found["true by pair"] = by_pair(samples(family.model, folder))
        found["right by word"] = by_word(samples(family.model, folder))
    found["options"] = {key: str(value).removeprefix(f"{folder}/") for key, value in options.items()}
    prompts = captions(TIMED, family.kinds)
    model.generate(prompts, **options, seed=1)  # compiles
    start = time.perf_counter()
    jax.block_until_ready(model.generate(prompts, **options, seed=2))
    return found | {"seconds": round((time.perf_counter() - start) / TIMED, 3)}


def _size(run: pathlib.Path) -> int:
    import jax

    import fmjax

    return sum(leaf.size for leaf in jax.tree.leaves(fmjax.load(run).params))


def scenes(count: int, kinds: tuple[str, ...] | None = None, size: int = 32):
    """The first scenes of combinations that are never trained on, as the task has them."""
    from fmjax.data.shapes.captions import NUM_TEMPLATES
    from fmjax.data.shapes.data import Shapes
    from fmjax.data.shapes.examples import Scenes

    world = (Shapes() if kinds is None else Shapes(kinds=kinds)).world
    return Scenes(world, size, "combinations", count, range(NUM_TEMPLATES - 1))


def captions(count: int, kinds: tuple[str, ...] | None = None) -> list[str]:
    """Those of `scenes`."""
    found = scenes(count, kinds)
    return [found.captions(i)[0] for i in range(count)]


def reconstructed(model, count: int, kinds: tuple[str, ...] | None = None) -> dict:
    """What an autoencoder leaves of real pictures: how many captions are still true, and PSNR."""
    from fmjax.data.shapes.captions import is_true_of
    from fmjax.data.shapes.seeing import see

    real = scenes(count, kinds, model.module.image_size)
    images = [real.image(i) for i in range(count)]
    made = model.generate(images)
    true = [is_true_of(real.captions(i)[0], seen.scene) for i, seen in enumerate(see(made))]
    error = np.mean((np.stack(images).astype(np.float64) - np.stack(made)) ** 2)
    return {"true": float(np.mean(true)), "psnr": round(float(10 * np.log10(255**2 / error)), 2)}


def samples(model: str, folder: pathlib.Path) -> list[dict]:
    """What the evaluation of unseen pairs kept of each caption: {"document", "answers", "statistics", ...}."""
    (file,) = (folder / "scores" / model / "combinations" / "samples").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def by_pair(rows: list[dict]) -> dict[str, float]:
    """Share of true captions of single things, by colour and shape."""
    from fmjax.data.shapes.captions import claim_of

    found = {}
    for row in rows:
        look = claim_of(row["document"]["caption"]).looks[0]
        found.setdefault(f"{look.colour} {look.shape}", []).append(row["statistics"]["true"])
    return {pair: round(float(np.mean(values)), 4) for pair, values in sorted(found.items())}


def by_word(rows: list[dict]) -> dict[str, float]:
    """Share of pictures in which some thing has the colour, the shape, the size or the place that was asked for."""
    from fmjax.data.shapes.captions import claim_of
    from fmjax.data.shapes.seeing import see
    from fmjax.tasks.made.making import decoded

    found = {word: [] for word in ("colour", "shape", "size", "place")}
    for row, seen in zip(rows, see([decoded(row["answers"][0]) for row in rows])):
        claim = claim_of(row["document"]["caption"])
        for word, right in found.items():
            wanted = claim.cell if word == "place" else getattr(claim.looks[0], word)
            there = [one.cell if word == "place" else getattr(one.look, word) for one in seen.scene]
            right.append(wanted in there)
    return {word: round(float(np.mean(right)), 4) for word, right in found.items()}


def strip_of(name: str) -> pathlib.Path:
    """The file of a family's pictures, one beside the other as they are."""
    return HERE / "drawn" / f"{name.replace(' ', '_').replace('-', '')}.png"


def keep_strip(name: str, family, folder: pathlib.Path) -> None:
    """Writes the first pictures that the evaluation of unseen pairs kept."""
    from PIL import Image

    from fmjax.tasks.made.making import decoded

    pictures = [decoded(row["answers"][0]) for row in samples(family.model, folder)[:SHOWN]]
    strip_of(name).parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(pictures, axis=1)).save(strip_of(name))


def draw(names: list[str]) -> None:
    """`drawn.png`: captions of pairs that were never trained on, the pictures of their scenes, and a row a family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    lines = []  # (name, captions or None, pictures)
    for kinds in dict.fromkeys(families.FAMILIES[name].kinds for name in names):
        real = scenes(SHOWN, kinds)
        lines.append(("the scene", captions(SHOWN, kinds), [real.image(i) for i in range(SHOWN)]))
        for name in names:
            if families.FAMILIES[name].kinds == kinds:
                lines.append((name, None, np.split(np.asarray(Image.open(strip_of(name))), SHOWN, axis=1)))
    figure, axes = pyplot.subplots(len(lines), SHOWN, figsize=(1.6 * SHOWN + 1, 2 * len(lines)), squeeze=False)
    for row, (name, prompts, pictures) in zip(axes, lines):
        for place, (axis, picture) in enumerate(zip(row, pictures)):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if prompts:
                axis.set_title(_folded(prompts[place], 20), fontsize=8)
        row[0].set_ylabel(_folded(name, 16), rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout()
    figure.savefig(HERE / "drawn.png", dpi=80)


def _folded(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


if __name__ == "__main__":
    main()
