"""The plots and picture grids of this study."""

import json
import pathlib

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

SPLITS = {"heldout": "trained pairs", "combinations": "pairs held out"}
QUERIES = (
    "a large purple ring",
    "a small white square at the top",
    "three large purple crosses",
    "four large yellow diamonds",
    "a large orange ring in the centre",
    "this is a picture where you see three small red circles",
)
"""Of these the last three show pairs of colour and shape that are never trained on; the last is worded in a new way."""


def bars(file: pathlib.Path, results: dict[str, dict[str, dict]]) -> None:
    """A panel a study: bars of zero-shot accuracy, and the line of chance."""
    figure, panels = pyplot.subplots(1, len(results), figsize=(5 * len(results), 3.6), squeeze=False)
    for axes, (study, found) in zip(panels[0], results.items()):
        places = np.arange(len(found))
        for number, (split, what) in enumerate(SPLITS.items()):
            for unseen, shift in (("", -0.3), (" in unseen words", -0.1)):
                shares = [one["zero-shot"][split + unseen] for one in found.values()]
                colour, faint = f"C{number}", 0.5 if unseen else 1.0
                axes.barh(places + shift + 0.4 * number, shares, 0.2, label=what + unseen, color=colour, alpha=faint)
        axes.axvline(1 / 48, color="gray", linestyle="--", linewidth=1)
        axes.set(yticks=list(places), yticklabels=list(found), xlim=(0, 1), title=study)
        axes.set(xlabel="zero-shot accuracy among 48")
        axes.invert_yaxis()
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def learning(file: pathlib.Path, folders: dict[str, pathlib.Path]) -> None:
    """For how many pictures the caption that fits best in a batch is right, over the steps, and chance."""
    figure, panels = pyplot.subplots(1, len(folders), figsize=(4.5 * len(folders), 3.4), sharey=True)
    for axes, (name, workdir) in zip(panels, folders.items()):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for split in ("heldout", "templates", "combinations"):
            key = f"eval/{split}/image_to_text"
            axes.plot(*zip(*[(line["step"], line[key]) for line in lines if key in line]), "o-", label=split)
        axes.axhline(1 / 64, color="gray", linestyle="--", linewidth=1)
        axes.set(title=name, xlabel="step", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="right captions of a batch of 64")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def found(file: pathlib.Path, workdir: pathlib.Path, columns: int = 6) -> None:
    """Rows of a query and the pictures found first among 1,000 that were not trained on, framed where it is true."""
    import fmjax
    from fmjax.data.shapes.captions import is_true_of
    from fmjax.data.shapes.data import Shapes
    from fmjax.data.shapes.examples import Scenes

    model = fmjax.load(workdir)
    sets = [Scenes(Shapes().world, 48, split, 500, (0,)) for split in ("heldout", "combinations")]
    # The world of the default has the same scenes as the configs', and the same pairs held out.
    scenes, images = zip(*((one.scene(i)[0], one.image(i)) for one in sets for i in range(len(one))))
    scores = model.embed(texts=list(QUERIES)) @ model.embed(images=list(images)).T
    # Titles are longer than a picture is wide: a tight layout would shrink the pictures to nothing.
    figure, panels = pyplot.subplots(len(QUERIES), columns, figsize=(columns * 1.2, len(QUERIES) * 1.5))
    for query, row, line in zip(QUERIES, scores, panels):
        right = sum(is_true_of(query, scene) for scene in scenes)
        line[0].set_title(f"{query} (true of {right} of {len(scenes)})", fontsize=8, loc="left")
        for axes, index in zip(line, np.argsort(-row)):
            axes.imshow(images[index])
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color="green" if is_true_of(query, scenes[index]) else "lightgray", linewidth=3)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, hspace=0.25, wspace=0.05)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
