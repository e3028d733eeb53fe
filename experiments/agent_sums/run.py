"""A little agent before, while and after it learns to call its calculator from rewards of its answers: see README.md.

    python experiments/agent_sums/run.py --workdir=runs/agent_sums [--short]
"""

import argparse
import json
import pathlib
import statistics
import sys

import numpy as np

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

CONFIG = "agent_tiny.py"
REPLIES, REPLY_TOKENS = 3, 20  # of an episode, as in the config
WAYS = {"drawn": 1.0, "likeliest": 0.0}


def goals(count: int) -> dict[str, list[str]]:
    """Sums by name: of two digits, which neither the shown episodes nor the drawn ones had; of three digits."""
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir
    from fmjax.agents.problems import demonstrations
    from fmjax.config import load_config_file, resolve

    config = resolve(load_config_file(f"{runs.ROOT / 'configs' / CONFIG}:run"))  # any name: the data are the same
    shown = {text.splitlines()[0].removeprefix("> ") for text in demonstrations()}
    new = [goal for goal in open_data(config, cache_dir()).documents("heldout") if goal not in shown]
    numbers = np.random.default_rng(0).integers(100, 1000, (count, 2)).tolist()
    return {"two digits, new": new[:count], "three digits": [f"{a}+{b}" for a, b in numbers]}


def judged(model, some: list[str], temperature: float) -> dict[str, float]:
    """Means over an episode of each goal."""
    from fmjax.agents.calculator import Calculator
    from fmjax.agents.episode import Budget, Episode
    from fmjax.agents.evaluation import summary
    from fmjax.agents.formats import chosen
    from fmjax.agents.loop import Drawing, run
    from fmjax.agents.problems import right_sum

    tools, budget = [Calculator()], Budget(steps=REPLIES, reply_tokens=REPLY_TOKENS)
    format = chosen("auto", model.tokenizer, tools)
    episodes = [Episode(format, goal, tools, budget, context_length=model.context_length) for goal in some]
    run(model, episodes, Drawing(temperature, seed=1, batch_size=len(episodes), cache_length=model.context_length))
    right = right_sum(some, [episode.answer or "" for episode in episodes])
    found = [summary(episode, one) for episode, one in zip(episodes, right)]
    guessed = [one["success"] for one in found if not one["calls"]]
    means = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    return means | {"right_without_call": statistics.mean(guessed) if guessed else None}


def by_step(workdir: pathlib.Path, base: pathlib.Path, asked: dict[str, list[str]]) -> dict[int, dict]:
    """What the agent does at each checkpoint, and before the first of them; found once."""
    import fmjax
    from fmjax.checkpoint_files import complete_steps

    file = workdir / "judged.json"
    found = {int(step): one for step, one in json.loads(file.read_text()).items()} if file.exists() else {}
    for step in sorted({0, *complete_steps(workdir / "checkpoints")} - found.keys()):
        model = fmjax.load(workdir, step=step) if step else fmjax.load(base)
        found[step] = {
            name: {way: judged(model, some, temperature) for way, temperature in WAYS.items()}
            for name, some in asked.items()
        }
        file.write_text(json.dumps(found))
    return dict(sorted(found.items()))


def mean(found: list[dict[int, dict]], name: str, way: str, number: str) -> tuple[list[int], list[float]]:
    """Steps, and a number's mean over the seeds."""
    return [*found[0]], [statistics.mean(one[step][name][way][number] for one in found) for step in found[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/agent_sums"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--goals", type=int, default=200, help="of each kind that are asked")
    parser.add_argument("--shown", type=int, default=2000, help="steps of learning from shown episodes")
    parser.add_argument("--steps", type=int, default=40, help="of learning from drawn episodes")
    parser.add_argument("--every", type=int, default=5, help="steps from one judged checkpoint to the next")
    parser.add_argument("--short", action="store_true", help="a few steps of one seed; results stay in the workdir")
    flags = parser.parse_args()
    if flags.short:
        flags.seeds, flags.goals, flags.shown, flags.steps, flags.every = 1, 16, 60, 4, 2
    folder = flags.workdir.absolute() / ("short" if flags.short else "")
    folder.mkdir(parents=True, exist_ok=True)
    asked, found, reward = goals(flags.goals), [], []
    for seed in range(flags.seeds):
        base, place = folder / f"shown_{seed}", folder / f"acting_{seed}"
        runs.train(CONFIG, base, seed=seed, train__steps=flags.shown)
        metrics = runs.train(
            f"{CONFIG}:{base}", place, seed=seed, train__steps=flags.steps, train__log_every=1, train__eval_every=-1,
            train__checkpoint_every=flags.every, train__keep_last=flags.steps,
        )  # fmt: skip
        reward.append(runs.curve(metrics, "train/reward"))
        found.append(by_step(place, base, asked))
    output = folder if flags.short else HERE
    settings = {name: getattr(flags, name) for name in ("seeds", "goals", "shown", "steps")}
    runs.save(output, {**settings, "train_reward": reward, "judged": found})
    for name in asked:
        for number in ("success", "calls", "malformed", "tokens"):
            print(f"{name}, {number}:", {way: mean(found, name, way, number)[1] for way in WAYS})
    draw(output / "agent.png", found)


def draw(file: pathlib.Path, found: list[dict[int, dict]]) -> None:
    """What becomes of new sums of two digits."""
    shown = {
        "right": ("drawn", "success"), "right, of the likeliest episodes": ("likeliest", "success"),
        "calls": ("drawn", "calls"), "format errors": ("drawn", "malformed"),
    }  # fmt: skip
    curves = {label: mean(found, "two digits, new", *which) for label, which in shown.items()}
    runs.plot(file, curves, "an episode, means of the seeds", xlabel="steps of reinforcement learning")


if __name__ == "__main__":
    main()
