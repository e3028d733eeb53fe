"""The four pictures of the study."""

import math
import pathlib
from collections.abc import Mapping


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


def _steps(axes, results) -> None:
    """Rewards and KL by step of PPO with pretraining in the gradient."""
    run, zero = results["by_step"]["ppo_ptx"], results["stages"]["sft"]
    for name in ("learnt", "gold"):
        axes[0].plot(run["step"], [value - zero[name] for value in run[name]], label=f"{name} reward")
    axes[0].set(xlabel="step", ylabel="gain over the fine-tuned model")
    axes[1].plot(run["step"], run["kl"], label="KL to the reference")
    axes[1].set(xlabel="step", ylabel="nats a reply")


def _ptx(axes, results) -> None:
    """The language model's loss with pretraining in the gradient and without."""
    before = results["stages"]["sft"]["language_loss"]
    for name, points in results["language_loss"].items():
        steps, losses = zip(*points)
        label = "with pretraining" if name == "ppo_ptx" else "without"
        axes[0].plot([0, *steps], [0.0, *(loss - before for loss in losses)], marker="o", label=label)
    axes[0].set(xlabel="step", ylabel="loss on held-out text, nats a token more")


def _optimised(axes, results) -> None:
    """Learnt and gold reward over the square root of KL, a reward model a panel."""
    rewards = results["stages"]["reward"]
    for place, (one, taste) in enumerate(zip(axes, rewards)):
        number = taste.rpartition("_")[2]
        run = results["by_step"][f"ppo_{number}"]
        distance = [math.sqrt(max(0.0, kl)) for kl in run["kl"]]
        for name, zero in (("learnt", rewards[taste]["sft"]), ("gold", results["stages"]["sft"]["gold"])):
            one.plot(distance, [value - zero for value in run[name]], ".-", label=f"{name} reward")
        one.set(xlabel="square root of KL", title=f"{number} rankings")
        if not place:
            one.set_ylabel("gain over the fine-tuned model")


def _frontier(axes, results) -> None:
    """Both rewards over KL, by all ways."""
    ways = {"PPO, pretraining mixed in": results["ppo"]["ppo_ptx"]}
    ways |= {"PPO": next(points for name, points in results["ppo"].items() if name != "ppo_ptx")}
    ways |= {f"DPO, beta {beta}": points for beta, points in results["dpo"].items()}
    ways |= {"best of n": results["best_of"]}
    for one, name in zip(axes, ("gold", "learnt")):
        zero = results["stages"]["sft"][name]
        for way, points in ways.items():
            one.plot([p["kl"] for p in points], [p[name] for p in points], ".-", label=way)
        one.plot([0], [zero], "k*", label="fine-tuned")
        one.set(xlabel="KL to the fine-tuned model, nats a reply", ylabel=f"{name} reward", xscale="symlog")


PICTURES = {
    "steps.png": (_steps, (1, 2, (9, 3.5))),
    "ptx.png": (_ptx, (1, 1, (6, 4))),
    "optimised.png": (_optimised, (1, 3, (12, 3.5))),
    "frontier.png": (_frontier, (1, 2, (12, 4.5))),
}
