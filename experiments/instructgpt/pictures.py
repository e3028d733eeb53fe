"""The four pictures of the study."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np


def label(way: str) -> str:
    """What a way of PPO is called."""
    return "PPO, pretraining mixed in" if way == "ppo_ptx" else "PPO"


def draw(folder: pathlib.Path, results: Mapping) -> None:
    """Draws them into a folder from `results.json`'s content, as it is before it is written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, (make, size) in PICTURES.items():
        figure, axes = pyplot.subplots(*size[:2], figsize=size[2], squeeze=False)
        make(axes[0], results)
        for one in axes[0]:
            one.grid(alpha=0.3)
            one.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / name, dpi=150)
        pyplot.close(figure)


def _spread(axes, places: Sequence[float], seeds: Sequence[Sequence[float]], **style) -> None:
    """The mean over seeds, and a band from the least to the most."""
    line = axes.plot(places, np.mean(seeds, axis=0), **style)[0]
    if len(seeds) > 1:
        axes.fill_between(places, np.min(seeds, axis=0), np.max(seeds, axis=0), color=line.get_color(), alpha=0.2)


def _steps(axes, results) -> None:
    """Rewards and KL by step of PPO, with pretraining in the gradient and without."""
    zero = results["stages"]["sft"]
    for way, style in zip(results["ppo"], ("-", "--")):
        seeds = results["by_step"][way]
        for number, name in enumerate(("learnt", "gold")):
            gains = [[value - zero[name] for value in run[name]] for run in seeds]
            told = dict(label=f"{name} reward, {label(way)}", linestyle=style, color=f"C{number}")
            _spread(axes[0], seeds[0]["step"], gains, **told)
        _spread(axes[1], seeds[0]["step"], [run["kl"] for run in seeds], label=label(way), linestyle=style, color="C2")
    axes[0].set(xlabel="step", ylabel="gain over the fine-tuned model")
    axes[0].margins(y=0.4)  # room for the names
    axes[1].set(xlabel="step", ylabel="KL to the fine-tuned model, nats a reply")


def _ptx(axes, results) -> None:
    """The language model's loss with pretraining in the gradient and without."""
    before = results["stages"]["sft"]["language_loss"]
    for way, seeds in results["language_loss"].items():
        steps = [0, *(step for step, _ in seeds[0])]
        rises = [[0.0, *(loss - before for _, loss in run)] for run in seeds]
        _spread(axes[0], steps, rises, marker="o", label=label(way))
    axes[0].set(xlabel="step", ylabel="rise of the loss on held-out text, nats a token")


def _optimised(axes, results) -> None:
    """Learnt and gold reward over the square root of KL, a reward model a panel, a line a seed."""
    rewards = results["stages"]["reward"]
    for place, (one, taste) in enumerate(zip(axes, rewards)):
        number = taste.rpartition("_")[2]
        zeros = {"learnt": rewards[taste]["sft"], "gold": results["stages"]["sft"]["gold"]}
        for seed, run in enumerate(results["by_step"][f"ppo_{number}"]):
            distance = [math.sqrt(max(0.0, kl)) for kl in run["kl"]]
            for index, (name, zero) in enumerate(zeros.items()):
                gains = [value - zero for value in run[name]]
                one.plot(distance, gains, f"C{index}.-", alpha=0.7, label=None if seed else f"{name} reward")
        one.set(xlabel="square root of KL", title=f"{number} rankings, accuracy {rewards[taste]['accuracy']:.2f}")
        if not place:
            one.set_ylabel("gain over the fine-tuned model")


def _frontier(axes, results) -> None:
    """Both rewards over KL, by all ways; of PPO a line a seed."""
    ways = {label(way): seeds for way, seeds in results["ppo"].items()}
    ways |= {f"DPO, beta {beta}": [points] for beta, points in results["dpo"].items()}
    ways |= {"best of n": [results["best_of"]]}
    for one, name in zip(axes, ("gold", "learnt")):
        zero = results["stages"]["sft"][name]
        for index, (way, seeds) in enumerate(ways.items()):
            for seed, points in enumerate(seeds):
                places, values = ([p[key] for p in points] for key in ("kl", name))
                one.plot(places, values, f"C{index}.-", alpha=0.8, label=None if seed else way)
        one.plot([0], [zero], "k*", label="fine-tuned")
        one.set(xlabel="KL to the fine-tuned model, nats a reply", ylabel=f"{name} reward", xscale="symlog")


PICTURES = {
    "steps.png": (_steps, (1, 2, (11, 4))),
    "ptx.png": (_ptx, (1, 1, (6, 4))),
    "optimised.png": (_optimised, (1, 2, (9, 3.8))),
    "frontier.png": (_frontier, (1, 2, (12, 4.5))),
}
