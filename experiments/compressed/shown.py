"""The table of the page, and its plot."""

import pathlib
from collections.abc import Mapping

import numpy as np

from asked import TASKS

COLOURS = {
    "float32": "black", "rounding": "C0", "calibrated": "C1", "zeros": "C2", "fewer": "C3", "file": "C4",
}  # fmt: skip
KINDS = {
    "float32": "float32", "rounding": "rounded to nearest", "calibrated": "few bits, by calibration",
    "zeros": "half of the weights zero", "fewer": "fewer layers, heads", "file": "the file's own types",
}  # fmt: skip


def table(ways: Mapping[str, Mapping]) -> str:
    """The rows of the page, in the order of the plot's kinds; without columns of which nothing is there."""
    titles = ["", "MB", "perplexity: token", "word", "byte", "nats lost", "PIQA", "ARC, easy"]
    titles += ["tokens/s: 1 row", "16 rows", "s to compress"]
    lines = [titles, ["---"] * len(titles)]
    for kind in COLOURS:
        for name, one in ways.items():
            if one["kind"] == kind:
                lines.append([name, f"{one['megabytes']:.0f}", *_quality(one, kind == "float32"), *_time(one)])
    shown = [i for i in range(len(titles)) if i == 0 or any(line[i] for line in lines[2:])]
    return "\n".join(f"| {' | '.join(line[i] for i in shown)} |" for line in lines)


def _quality(one, is_reference) -> list[str]:
    lost = "" if is_reference else f"{one['nats_lost']:+.3f} ± {one['nats_lost_stderr']:.3f}"
    units = f"{one['token_perplexity']:.2f}", f"{one['word_perplexity']:.1f}", f"{one['byte_perplexity']:.3f}"
    right = []
    for task in TASKS:
        if task not in one:
            right.append("")
        elif is_reference:
            right.append(f"{one[task]:.3f} ± {one[f'{task}_stderr']:.3f}")
        else:
            difference = one[f"{task}_difference"], one[f"{task}_difference_stderr"]
            right.append(f"{one[task]:.3f} ({difference[0]:+.3f} ± {difference[1]:.3f})")
    return [*units, lost, *right]


def _time(one) -> list[str]:
    rates = [one.get(f"tokens_per_second_{rows}") for rows in (1, 16)]
    seconds = f"{one['processor_seconds']:.0f}" if one["kind"] not in ("float32", "file") else ""
    return [*("" if rate is None else f"{rate:.0f}" for rate in rates), seconds]


def draw(file: pathlib.Path, ways: Mapping[str, Mapping]) -> None:
    """Perplexity and accuracy over megabytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    asked = {name: one for name, one in ways.items() if one.keys() >= set(TASKS)}
    figure, panels = pyplot.subplots(1, 2 if asked else 1, figsize=(13 if asked else 8, 5), squeeze=False)
    left, right = panels[0][0], panels[0][-1]
    for kind, colour in COLOURS.items():
        several = [one for one in ways.values() if one["kind"] == kind]
        if several:
            sizes, values = zip(*((one["megabytes"], one["token_perplexity"]) for one in several))
            left.plot(sizes, values, "o", color=colour, label=KINDS[kind])
        for one in asked.values():
            if one["kind"] == kind:  # with the error of what differs from float32, whose questions are the same
                accuracy = np.mean([one[task] for task in TASKS])
                error = np.hypot(*(one[f"{task}_difference_stderr"] for task in TASKS)) / 2
                right.errorbar(one["megabytes"], accuracy, yerr=error, fmt="o", color=colour, capsize=3)
    left.set(yscale="log", ylabel="perplexity a token, WikiText-2")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    if asked:
        right.set(ylabel=f"accuracy, mean of {' and '.join(TASKS)}")
    for axes in panels[0]:
        axes.set(xlabel="megabytes of parameters", xlim=(0, None))
        axes.grid(alpha=0.3, which="both")
    _name(left, ways)
    figure.legend(loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(file, dpi=150)


def _name(axes, ways: Mapping[str, Mapping]) -> None:
    """Writes names beside the points, in the free middle, none on another."""
    middle = max(one["megabytes"] for one in ways.values()) * 0.6
    low, high = np.log(axes.get_ylim())
    for is_large in (False, True):
        free = 0.0
        for name, one in sorted(ways.items(), key=lambda item: item[1]["token_perplexity"]):
            if (one["megabytes"] > middle) == is_large:
                at = one["megabytes"], one["token_perplexity"]
                free = max(free, (np.log(at[1]) - low) / (high - low))
                axes.annotate(
                    name, at, (at[0] + (-25 if is_large else 25), np.exp(low + free * (high - low))), fontsize=7,
                    color=COLOURS[one["kind"]], ha="right" if is_large else "left", va="center",
                    arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": COLOURS[one["kind"]]},
                )  # fmt: skip
                free += 0.035
