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
    """The rows of the page, in the order of the plot's kinds."""
    titles = ["", "MB", "perplexity: token", "word", "byte", "nats lost", "PIQA", "ARC, easy"]
    titles += ["tokens/s: 1 row", "16 rows", "s to compress"]
    lines = [titles, ["---"] * len(titles)]
    for kind in COLOURS:
        for name, one in ways.items():
            if one["kind"] == kind:
                lines.append([name, f"{one['megabytes']:.0f}", *_quality(one, kind == "float32"), *_time(one)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quality(one, is_reference) -> list[str]:
    lost = "" if is_reference else f"{one['nats_lost']:+.3f} ± {one['nats_lost_stderr']:.3f}"
    units = f"{one['token_perplexity']:.2f}", f"{one['word_perplexity']:.1f}", f"{one['byte_perplexity']:.3f}"
    right = []
    for task in TASKS:
        right.append(f"{one[task]:.3f} ± {one[f'{task}_stderr']:.3f}")
        if not is_reference:
            difference = one[f"{task}_difference"], one[f"{task}_difference_stderr"]
            right[-1] = f"{one[task]:.3f} ({difference[0]:+.3f} ± {difference[1]:.3f})"
    return [*units, lost, *right]


def _time(one) -> list[str]:
    rates = [f"{one[f'tokens_per_second_{rows}']:.0f}" for rows in (1, 16)]
    return [*rates, f"{one['processor_seconds']:.0f}" if one["kind"] not in ("float32", "file") else ""]


def draw(file: pathlib.Path, ways: Mapping[str, Mapping]) -> None:
    """Perplexity and accuracy over megabytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    for kind, colour in COLOURS.items():
        several = {name: one for name, one in ways.items() if one["kind"] == kind}
        sizes = [one["megabytes"] for one in several.values()]
        accuracy = [np.mean([one[task] for task in TASKS]) for one in several.values()]
        # Of what differs from float32, whose questions are the same.
        errors = [np.hypot(*(one[f"{task}_difference_stderr"] for task in TASKS)) / 2 for one in several.values()]
        left.plot(sizes, [one["token_perplexity"] for one in several.values()], "o", color=colour, label=KINDS[kind])
        right.errorbar(sizes, accuracy, yerr=errors, fmt="o", color=colour, capsize=3)
    left.set(yscale="log", ylabel="perplexity a token, WikiText-2")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    right.set(ylabel=f"accuracy, mean of {' and '.join(TASKS)}")
    for axes in (left, right):
        axes.set(xlabel="megabytes of parameters", xlim=(0, None))
        axes.grid(alpha=0.3, which="both")
    _name(left, ways)
    figure.legend(loc="lower center", ncols=len(COLOURS), fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
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
