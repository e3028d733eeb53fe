"""Positive continuations by GRPO at several weights of the KL, beside the best that can be at each KL: see README.md.

    pip install -e '.[experiments]'
    python experiments/positive_continuations/run.py --model=MODEL --data_dir=DATA \\
        --workdir=runs/positive_continuations [--short]
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys

import numpy as np

from fmjax import cpu
from fmjax.small_files import write_whole

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import frontier  # noqa: E402
import runs  # noqa: E402

WORDS, LONGEST, NEW = 4, 6, 8  # words and tokens of a prompt, tokens of a reply, as in positive.py
TILTS = np.geomspace(0.05, 10, 40)


def prompts(data_dir: pathlib.Path, tokenizer, count: int) -> list[str]:
    """The first words of sentences of SST-2, of different ones, that are no more tokens than a row has."""
    lines = (data_dir / "eval_sst2" / "dev.tsv").read_text().splitlines()
    words = [line.rpartition("\t")[0].split() for line in lines]
    found = dict.fromkeys(" ".join(one[:WORDS]) for one in words if len(one) > 2 * WORDS)
    return [one for one in found if len(tokenizer.encode(one)) <= LONGEST][:count]


def drawn(model, asked: list[str], copies: int, seed: int):
    """Token ids of each prompt, and `copies` continuations of each one after another, at temperature 1."""
    ids = [model.tokenizer.encode(prompt) for prompt in asked]
    return ids, model.complete(ids, num_samples=copies, max_new_tokens=NEW, seed=seed, batch_size=64)


def rewards_of(replies, copies: int) -> np.ndarray:
    """[prompts, copies]."""
    from fmjax.rewards.lexicon import open_lexicon

    score = open_lexicon("vader", "the reward").score
    return np.asarray([score(reply.text) for reply in replies]).reshape(-1, copies)


def untrained(model, asked: list[str], copies: int, file: pathlib.Path) -> np.ndarray:
    """Rewards of the untrained model's replies [prompts, copies]; drawn once."""
    if not file.exists():
        _, replies = drawn(model(), asked, copies, seed=1)
        write_whole(file, json.dumps(rewards_of(replies, copies).tolist()))
    return np.asarray(json.loads(file.read_text()))


def judged(base, workdir: pathlib.Path, asked: list[str], copies: int) -> dict:
    """Reward of a trained policy's replies, and its KL to `base` by them, with their standard errors; drawn once."""
    import fmjax
    from fmjax.inference.segments import Segment

    file = workdir / "judged.json"
    if not file.exists():
        policy = fmjax.load(workdir)
        ids, replies = drawn(policy, asked, copies, seed=2)
        whole = [Segment([*ids[i // copies], *reply.tokens], len(ids[i // copies])) for i, reply in enumerate(replies)]
        found = dict(base().iter_scores(whole))
        kls = [sum(reply.logprobs) - found[i][0] for i, reply in enumerate(replies)]
        rewards = rewards_of(replies, copies).reshape(-1)
        error = lambda values: float(np.std(values, ddof=1) / len(values) ** 0.5)
        write_whole(file, json.dumps({
            "reward": float(rewards.mean()), "reward_stderr": error(rewards),
            "kl": statistics.mean(kls), "kl_stderr": error(kls),
            "examples": [asked[i] + replies[i * copies].text for i in range(min(4, len(asked)))],
        }))  # fmt: skip
    return json.loads(file.read_text())


def path(metrics: list[dict], width: int = 10) -> tuple[list[float], list[float]]:
    """KLs and rewards of a run's rollouts, means over `width` steps each."""
    columns = [runs.curve(metrics, name)[1] for name in ("train/reply_kl", "train/raw_reward")]
    return tuple([statistics.mean(one[i : i + width]) for i in range(len(one) - width + 1)] for one in columns)


def draw(file: pathlib.Path, curves: dict[str, tuple], paths: dict[str, tuple], found: dict[str, dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for (name, (kls, rewards)), line in zip(curves.items(), ("-", "--")):
        axes.plot(kls, rewards, line, color="black", label=name)
    for index, (name, one) in enumerate(found.items()):
        axes.plot(*paths[name], color=f"C{index}", alpha=0.4, linewidth=1)
        errors = dict(xerr=one["kl_stderr"], yerr=one["reward_stderr"], capsize=3)
        axes.errorbar(one["kl"], one["reward"], **errors, marker="o", color=f"C{index}", label=f"GRPO, beta = {name}")
    axes.set(xlabel="KL to the untrained model, nats a reply", ylabel="reward (VADER)")
    axes.set_xlim(-0.1, 1.3 * max([1.0, *(one["kl"] for one in found.values())]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a decoder: a GGUF file, a Hugging Face folder or a hub id")
    parser.add_argument("--data_dir", required=True, type=pathlib.Path, help="folder with eval_sst2")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/positive_continuations"))
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.3, 0.1])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=256, help="of the untrained model, of each prompt")
    parser.add_argument("--judged", type=int, default=16, help="samples of a trained policy, of each prompt")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--short", action="store_true", help="two steps of one beta; results stay in the workdir")
    flags = parser.parse_args()
    flags.model = runs.found(flags.model)
    if flags.short:
        flags.betas, flags.prompts, flags.samples, flags.judged, flags.steps = [0.1], 8, 8, 2, 2
    folder = flags.workdir.absolute() / ("short" if flags.short else "")
    settings = {name: getattr(flags, name) for name in ("prompts", "samples", "judged", "steps")}
    files = runs.digest(HERE / "positive.py", HERE / "plain.jinja")
    lengths = {"words": WORDS, "longest": LONGEST, "new": NEW}
    runs.keyed(folder, {**settings, **lengths, "model": flags.model, "files": files})

    import fmjax
    from fmjax.interop.loading import find_folder, find_tokenizer

    base = functools.cache(lambda: fmjax.load(flags.model))
    tokenizer = find_tokenizer(find_folder(flags.model))
    asked, records = prompts(flags.data_dir, tokenizer, flags.prompts), folder / "prompts.jsonl"
    records.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    begun = untrained(base, asked, flags.samples, folder / "untrained.json")
    found, paths = {}, {}
    for beta in flags.betas:
        place = folder / f"beta_{beta}"
        metrics = runs.train(
            f"{HERE / 'positive.py'}:{flags.model},{beta}", place, data__source=records, train__steps=flags.steps
        )
        paths[beta] = path(metrics, min(10, flags.steps))
        best = next(iter(frontier.reached(begun, [beta])), None)
        found[beta] = judged(base, place, asked, flags.judged) | {"asked_for": best}
        print(beta, json.dumps(found[beta]), flush=True)
    tilts = frontier.reached(begun, TILTS)
    bests = [frontier.best_of(begun, n) for n in (1, 2, 4, 8, 16, 32, 64) if n <= flags.samples]
    output = folder if flags.short else HERE
    runs.save(output, {
        **settings, "untrained": float(begun.mean()), "trained": found, "paths": paths, "tilted": tilts,
        "best_of_n": bests,
    })  # fmt: skip
    curves = {"best at its KL: pi0 exp(r / beta)": tilts, "best of n, at the most KL that it can have": bests}
    draw(output / "frontier.png", {name: frontier.curve(points) for name, points in curves.items()}, paths, found)


if __name__ == "__main__":
    main()
