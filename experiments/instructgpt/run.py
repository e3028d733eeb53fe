"""InstructGPT end to end, small, with a gold reward that is a program: see README.md.

    python experiments/instructgpt/run.py --workdir=runs/instructgpt [--short]

What is finished in the workdir is not done again.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import runs  # noqa: E402

import fmjax  # noqa: E402
from experiments.instructgpt import measure, pictures, task  # noqa: E402

BETAS = (0.02, 0.1, 0.5)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Steps of the stages, and how much is drawn.

    Attributes:
      rankings: of four answers each, all of them.
      rewards: steps of the reward models, by how many of the rankings they are given.
      every: steps between measured checkpoints of PPO; DPO's is twice that.
      prompts: held-out ones that are measured on, `copies` replies each.
      texts: held-out documents that the language model's loss is of, `characters` of each.
    """

    pretrain: int = 1500
    sft: int = 200
    rankings: int = 4000
    rewards: tuple[tuple[int, int], ...] = ((100, 40), (600, 120), (4000, 500))
    ppo: int = 160
    dpo: int = 120
    every: int = 20
    prompts: int = 256
    copies: int = 4
    texts: int = 40
    characters: int = 2000
    numbers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


SHORT = Sizes(120, 80, 64, ((32, 4), (64, 8)), 8, 8, 4, 8, 2, 4, 200, (1, 2))


class Study:
    """The runs of one workdir, each trained when it is first asked for."""

    def __init__(self, folder: pathlib.Path, sizes: Sizes):
        self.folder, self.sizes = folder, sizes
        self.rows: dict[str, list[dict]] = {}
        self.file = folder / "measured.json"
        self.known = json.loads(self.file.read_text()) if self.file.exists() else {}

    def path(self, name: str) -> pathlib.Path:
        return self.folder / name

    def train(self, name: str, stage: str, *models: str, **overrides) -> str:
        """The name of the run, once it is done."""
        config = f"{HERE / 'stages.py'}:{','.join([stage, *(str(self.path(one)) for one in models)])}"
        self.rows[name] = runs.train_here(config, self.path(name), **overrides)
        return name

    def once(self, name: str, make):
        """What `make()` gives, kept for the next time."""
        if name not in self.known:
            begin = time.time()
            self.known[name] = make()
            print(f"{name}: {self.known[name]} ({time.time() - begin:.0f} s)", flush=True)
            self.file.write_text(json.dumps(self.known, indent=1))
        return self.known[name]

    def records(self, name: str) -> list[dict]:
        return task.read_records(self.path(f"{name}.jsonl"))

    def first_stages(self) -> None:
        """Pretraining and supervised fine-tuning."""
        if not self.path("heldout.jsonl").exists():
            task.write(self.folder)
        self.train("pretrained", "pretrain", train__steps=self.sizes.pretrain)
        self.train(
            "sft", "sft", "pretrained", data__source=self.path("demonstrations.jsonl"), train__steps=self.sizes.sft
        )

    def rankings(self, number: int) -> pathlib.Path:
        """A file of so many of the rankings of what is asked in training."""
        some = self.path(f"rankings_{number}.jsonl")
        if not some.exists():
            task.write_records(some, task.read_records(self.ranked("prompts", self.sizes.rankings))[:number])
        return some

    def ranked(self, asked: str, number: int) -> pathlib.Path:
        """A file of rankings of four replies of the fine-tuned model to each of so many prompts of a file."""
        file = self.path(f"ranked_{asked}.jsonl")
        if not file.exists():
            prompts = [record["prompt"] for record in self.records(asked)[:number]]
            policy = fmjax.load(self.path("sft"))
            said = [one.text for one in measure.drawn(policy, measure.prompts(policy, prompts), 4, seed=2)]
            found = [task.ranked(one, said[4 * i : 4 * i + 4], i) for i, one in enumerate(prompts)]
            task.write_records(file, [record for record in found if record])
        return file

    def of_rankings(self, number: int) -> dict:
        """Options of a run that learns from so many rankings; all are judged by those of held-out prompts."""
        held = self.ranked("heldout", self.sizes.prompts)
        return {"data__source": self.rankings(number), "data__eval_source": held}

    def reward_models(self) -> dict[int, str]:
        """The runs by how many rankings they are given."""
        return {
            number: self.train(
                f"reward_{number}", "reward", "sft", train__steps=steps, **self.of_rankings(number)
            )
            for number, steps in self.sizes.rewards
        }

    def ppo(self, name: str, taste: str, ptx: bool) -> str:
        every = self.sizes.every
        source = {"data__prompts__source" if ptx else "data__source": self.path("prompts.jsonl")}
        return self.train(
            name, "ppo" if ptx else "ppo_without_ptx", "sft", taste, train__steps=self.sizes.ppo,
            train__checkpoint_every=every, train__keep_every=every, **source,
        )  # fmt: skip

    def dpo(self, beta: float) -> str:
        every = 2 * self.sizes.every
        return self.train(
            f"dpo_{beta}", "dpo", "sft", objective__beta=beta, train__steps=self.sizes.dpo,
            train__checkpoint_every=every, train__keep_every=every, **self.of_rankings(self.sizes.rankings),
        )  # fmt: skip

    def judged(self, judge: measure.Judge, name: str, step: int) -> dict:
        """What is measured of a run at a step."""
        load = lambda: fmjax.load(self.path(name), step=step)
        return self.once(f"{name} at {step} by {judge.name}", lambda: judge.measured(load(), self.sizes.copies))

    def language_loss(self, name: str, step: int) -> float:
        """Of held-out documents of what the first stage read."""
        return self.once(
            f"language loss of {name} at {step}",
            lambda: measure.language_loss(fmjax.load(self.path(name), step=step), self.texts),
        )

    @functools.cached_property
    def texts(self) -> list[str]:
        return task.heldout_texts(self.sizes.texts, self.sizes.characters)

    def judge(self, taste: str) -> measure.Judge:
        asked = [record["prompt"] for record in self.records("heldout")[: self.sizes.prompts]]
        return measure.Judge(taste, fmjax.load(self.path("sft")), fmjax.load(self.path(taste)), asked)

    def best_of(self, judge: measure.Judge) -> list[dict]:
        """By n, of the best of n by the learnt reward."""

        def make():
            most = max(self.sizes.numbers)
            replies = measure.drawn(judge.reference, judge.prompts, most, seed=3)
            learnt, gold = (values.reshape(-1, most) for values in judge.rewards(replies))
            return [
                {
                    "n": n, "kl": measure.best_of_kl(n), "learnt": measure.best_of(n, learnt, learnt),
                    "gold": measure.best_of(n, learnt, gold), "gold_by_gold": measure.best_of(n, gold, gold),
                }
                for n in self.sizes.numbers
            ]  # fmt: skip

        return self.once("best of n", make)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/instructgpt"))
    parser.add_argument("--short", action="store_true", help="a minute, to see that all runs; results into the workdir")
    flags = parser.parse_args()
    folder = flags.workdir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    study = Study(folder, SHORT if flags.short else Sizes())
    results = whole(study)
    results["seconds"] = study.once("seconds", lambda: round(time.time() - begin))
    place = folder if flags.short else HERE
    runs.save(place, results)
    pictures.draw(place, results)


def whole(study: Study) -> dict:
    """All stages, and what is measured of them."""
    sizes = study.sizes
    study.first_stages()
    tastes = study.reward_models()
    most = max(tastes)
    study.ppo("ppo_ptx", tastes[most], ptx=True)
    by_rankings = {number: study.ppo(f"ppo_{number}", taste, ptx=False) for number, taste in tastes.items()}
    plain = by_rankings[most]
    by_beta = {beta: study.dpo(beta) for beta in BETAS}

    begin = {taste: study.judged(study.judge(taste), "sft", sizes.sft) for taste in tastes.values()}
    judge = study.judge(tastes[most])
    points = lambda name, steps, every: [
        {"step": step, **study.judged(judge, name, step)} for step in range(every, steps + 1, every)
    ]
    policies = ("ppo_ptx", plain)
    checked = range(sizes.every, sizes.ppo + 1, 2 * sizes.every)
    return {
        "stages": {
            "pretrained": {"language_loss": study.language_loss("pretrained", sizes.pretrain)},
            "sft": {"language_loss": study.language_loss("sft", sizes.sft), **begin[tastes[most]]},
            "reward": {
                name: {"accuracy": runs.last(study.rows[name], "eval/accuracy"), "sft": begin[name]["learnt"]}
                for name in tastes.values()
            },
        },
        "by_step": {name: by_step(study.rows[name]) for name in ("ppo_ptx", *by_rankings.values())},
        "language_loss": {name: [(step, study.language_loss(name, step)) for step in checked] for name in policies},
        "ppo": {name: points(name, sizes.ppo, 2 * sizes.every) for name in policies},
        "dpo": {beta: points(name, sizes.dpo, 2 * sizes.every) for beta, name in by_beta.items()},
        "best_of": study.best_of(judge),
    }


def by_step(rows: list[dict]) -> dict[str, list[float]]:
    """What a run of PPO told of its rollouts: steps, rewards, KL a reply."""
    names = {"learnt": "reward_learnt", "gold": "reward_gold", "kl": "reply_kl", "tokens": "reply_tokens"}
    found = {name: runs.curve(rows, f"train/{metric}") for name, metric in names.items()}
    return {"step": found["kl"][0], **{name: values for name, (_, values) in found.items()}}


if __name__ == "__main__":
    main()
