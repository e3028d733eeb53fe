"""Photographs and their captions, from 320 photographs alone: what a small CLIP finds among 80 others.

    python experiments/flickr_retrieval/run.py --photographs=DATA/vision_flickr8k_sample [--steps=200] [--runs=DIR]

DATA/vision_flickr8k_sample has captions.csv (image,caption) and images400.zip. Trains `configs/clip_shapes.py` on four
of every five photographs (a finished run is not run again), asks for the photograph of a caption and the captions of a
photograph among the others, and asks the same of a linear map between words and simple numbers of pictures. Writes
results.json, recall.png, training.png and, of photographs that may not be passed on, found.png into the run's folder.
"""

import argparse
import csv
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

DEPTHS = (1, 5, 10)
WAYS = {"image_retrieval": "photograph of a caption", "caption_retrieval": "captions of a photograph"}
SIDE = 64
MODEL = {"num_layers": 2, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4}


def folders(photographs: pathlib.Path, where: pathlib.Path) -> dict[str, pathlib.Path]:
    """Folders of captions and photographs as tasks read them, "train" and "heldout", and "both" to train from."""
    from fmjax.tasks.image_retrieval import read_captioned
    from fmjax.tasks.protocol import TaskContext

    found = read_captioned(TaskContext(data_dir=photographs.parent), photographs.name)
    images = where / "images"
    images.mkdir(parents=True, exist_ok=True)
    for media in found.images:
        (images / media.name).write_bytes(media.value)
    heldout = {number for number in range(len(found.images)) if number % 5 == 0}
    made = {}
    for split in ("both", "train", "heldout"):
        made[split] = where / split
        made[split].mkdir(exist_ok=True)
        if not (made[split] / "images").exists():
            (made[split] / "images").symlink_to(images.absolute(), target_is_directory=True)
        with open(made[split] / "captions.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "caption", "split"])
            for text, number in found.captions:
                side = "validation" if number in heldout else "train"
                if split == "both" or (split == "heldout") == (number in heldout):
                    table.writerow([found.images[number].name, text, side])
    return made


def clip(data: dict[str, pathlib.Path], workdir: pathlib.Path, steps: int) -> tuple[list[dict], dict]:
    """Metrics of a run, and what its model finds among the photographs of each split."""
    import fmjax

    sides = {f"model__{side}__{key}": value for side in ("vision", "text") for key, value in MODEL.items()}
    metrics = runs.train(
        "clip_shapes.py", workdir, train__steps=steps, train__eval_every=max(1, steps // 5),
        train__checkpoint_every=10_000, optimizer__schedule__warmup_steps=max(1, steps // 10),
        data__name="captioned_images", data__source=data["both"].absolute(),
        data__image_size=SIDE, data__tokenizer="train:1000",
        data__sequence_length=48, model__text__max_length=48, data__augmentation__name="standard",
        data__augmentation__min_area=0.4, data__augmentation__flip=0.5, **sides,
    )  # fmt: skip
    model = fmjax.load(workdir)
    found = {}
    for split in ("heldout", "train"):
        tasks = [f"{way}:{data[split].name}" for way in WAYS]
        scores = fmjax.evaluate(model, tasks, data_dir=data[split].parent)["results"]
        found[split] = {way: scores[f"{way}:{data[split].name}"] for way in WAYS}
    return metrics, found


def numbers_of(image: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 3] in simple numbers: its colours at 8 x 8 places, how often each of 64 colours occurs,
    and in each of 4 x 4 parts how much its edges go in each of 8 directions."""
    from PIL import Image

    picture = Image.fromarray(image)
    layout = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.float32).ravel() / 255
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
    bins = (small // 64).astype(int) @ np.array([16, 4, 1])
    colours = np.sqrt(np.bincount(bins.ravel(), minlength=64) / bins.size)
    down, right = np.gradient(small.astype(np.float32).mean(-1))
    turned = (np.arctan2(down, right) % np.pi * 8 / np.pi).astype(int) % 8
    strength, part = np.hypot(down, right), np.arange(SIDE) // (SIDE // 4)
    place = (part[:, None] * 4 + part[None]) * 8 + turned
    edges = np.bincount(place.ravel(), strength.ravel(), minlength=128).reshape(16, 8)
    edges /= np.linalg.norm(edges) + 1e-6
    return np.concatenate([layout, colours, edges.ravel()])


def linear(data: dict[str, pathlib.Path]) -> dict[str, dict]:
    """What ridge regression finds, from those numbers to TF-IDF of the words of a photograph's captions."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from fmjax.tasks.image_retrieval import read_captioned
    from fmjax.tasks.protocol import TaskContext

    sides = {split: read_captioned(TaskContext(data_dir=data[split].parent), split) for split in ("train", "heldout")}
    pixels = {split: np.stack([numbers_of(pixels_of(media)) for media in one.images]) for split, one in sides.items()}
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=3)
    words.fit(text for text, _ in sides["train"].captions)
    joined = [" ".join(t for t, n in sides["train"].captions if n == number) for number in range(len(pixels["train"]))]
    fit = make_pipeline(StandardScaler(), RidgeCV(np.logspace(1, 5, 13)))
    fit.fit(pixels["train"], words.transform(joined).toarray())
    found = {}
    for split, one in sides.items():
        guessed = fit.predict(pixels[split]) - words.transform(joined).mean(0).A1  # what sets a photograph apart
        vectors = words.transform(text for text, _ in one.captions).toarray()
        found[split] = recalls(guessed, vectors, one)
    return found


def recalls(images: np.ndarray, texts: np.ndarray, captioned) -> dict[str, dict]:
    """Both ways, by cosine, as the tasks count them."""
    from fmjax.tasks.retrieval import best_rank

    unit = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    scores = unit(texts) @ unit(images).T
    right = captioned.images_of()
    gold = [right[text] for text, _ in captioned.captions]
    theirs = [[row for row, found in enumerate(gold) if number in found] for number in range(len(images))]
    ranks = {
        "image_retrieval": [best_rank(row, found) for row, found in zip(scores, gold)],
        "caption_retrieval": [best_rank(row, found) for row, found in zip(scores.T, theirs)],
    }
    return {way: {f"recall@{k}": float(np.mean(np.array(found) < k)) for k in DEPTHS} for way, found in ranks.items()}


def chance(folder: pathlib.Path) -> dict[str, dict]:
    """Of an order drawn at random: of a caption one photograph is right, of a photograph its captions."""
    from fmjax.tasks.image_retrieval import read_captioned
    from fmjax.tasks.protocol import TaskContext

    found = read_captioned(TaskContext(data_dir=folder.parent), folder.name)
    images, captions = len(found.images), len(found.captions)
    own = captions / images
    none = lambda k: np.prod([(captions - own - i) / (captions - i) for i in range(k)])
    return {
        "image_retrieval": {f"recall@{k}": k / images for k in DEPTHS},
        "caption_retrieval": {f"recall@{k}": float(1 - none(k)) for k in DEPTHS},
    }


def pixels_of(media) -> np.ndarray:
    """A photograph as uint8 [H, W, 3]."""
    from PIL import Image

    return np.asarray(Image.open(media.value).convert("RGB"))


def plot(file: pathlib.Path, results: dict[str, dict]) -> None:
    """A panel each way: recall of each method among photographs that none of them has seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for axes, (way, title) in zip(panels, WAYS.items()):
        for number, (name, found) in enumerate(results.items()):
            heights = [found[way][f"recall@{k}"] for k in DEPTHS]
            errors = [found[way].get(f"recall@{k}_stderr", 0) for k in DEPTHS]
            axes.bar(np.arange(3) + 0.25 * (number - 1), heights, 0.25, yerr=errors, label=name)
        axes.set(xticks=range(3), xticklabels=[f"recall@{k}" for k in DEPTHS], title=title)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def grid(file: pathlib.Path, workdir: pathlib.Path, heldout: pathlib.Path) -> None:
    """Rows of captions: the photograph that each belongs to, and the five that the model finds first."""
    import fmjax
    from fmjax.data.codecs.contact_sheet import contact_sheet, write_sheet
    from fmjax.tasks.image_retrieval import read_captioned
    from fmjax.tasks.protocol import TaskContext

    found = read_captioned(TaskContext(data_dir=heldout.parent), heldout.name)
    model, paths = fmjax.load(workdir), [pathlib.Path(media.value) for media in found.images]
    asked = found.captions[::67]
    scores = model.embed(texts=[text for text, _ in asked]) @ model.embed(images=paths).T
    pictures, lines = [], []
    for (text, own), row in zip(asked, scores):
        nearest = np.argsort(-row)[:5]
        pictures += [paths[own], *(paths[i] for i in nearest)]
        lines += [text, *(f"{row[i]:.2f}{' its own' if i == own else ''}" for i in nearest)]
    write_sheet(contact_sheet(pictures, lines, columns=6), file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", required=True, type=pathlib.Path, help="folder of captions.csv and the images")
    parser.add_argument("--steps", default=200, type=int, help="of training")
    parser.add_argument("--runs", default="runs/flickr_retrieval", type=pathlib.Path, help="where the run is kept")
    flags = parser.parse_args()
    data = folders(flags.photographs.absolute(), flags.runs / "photographs")
    workdir = flags.runs / "clip"
    captions = {"chance": chance(data["heldout"]), "words, linear": (baseline := linear(data))["heldout"]}
    metrics, found = clip(data, workdir, flags.steps)
    results = captions | {"CLIP": found["heldout"]}
    plot(HERE / "recall.png", results)
    seen = {"words, linear": baseline["train"], "CLIP": found["train"], "chance": chance(data["train"])}
    losses = {"trained on": runs.curve(metrics, "train/loss"), "held out": runs.curve(metrics, "eval/loss")}
    runs.plot(HERE / "training.png", losses, "loss of a batch of pairs, nats")
    grid(flags.runs / "found.png", workdir, data["heldout"])
    runs.save(HERE, {"held out": results, "trained on": seen, "steps": flags.steps})


if __name__ == "__main__":
    main()
