"""InstructGPT end to end, small, with a gold reward that is a program: see README.md.

    python experiments/instructgpt/run.py --workdir=runs/instructgpt [--seeds=2] [--short]

What is finished in the workdir is not done again.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import fmjax  # noqa: E402
from experiments import best_of_n, runs  # noqa: E402
from experiments.instructgpt import measure, pictures, stages, task  # noqa: E402

BETAS = (0.02, 0.1, 0.5)
FILES = [HERE / name for name in ("stages.py", "task.py", "measure.py", "signature.jinja")]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Steps of the stages, and how much is drawn.

    Attributes:
      asked: prompts whose replies are ranked, in training; where fewer than two end, there is no ranking.
      rankings: of up to four answers each, by reward model; DPO has the most of them.
      epochs: of every reward model over its rankings.
      every: steps between measured checkpoints of PPO; DPO's is twice that.
      prompts: held-out ones that are measured on, `copies` replies each.
      texts: held-out documents that the language model's loss is of, `characters` of each.
      numbers: of replies that the best is taken of.
    """

    pretrain: int = 1200
    sft: int = 200
    asked: int = 3000
    rankings: tuple[int, ...] = (100, 2000)
    epochs: int = 3
    ppo: int = 160
    dpo: int = 80
    every: int = 20
    prompts: int = 256
    copies: int = 2
    texts: int = 20
    characters: int = 2000
    numbers: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


SHORT = Sizes(200, 200, 256, (32, 64), 1, 8, 8, 4, 8, 2, 4, 200, (1, 2))


class Study:
    """The runs of one workdir, each trained when it is first asked for."""

    def __init__(self, folder: pathlib.Path, sizes: Sizes, seeds: int):
        self.folder, self.sizes, self.seeds = folder, sizes, seeds
        self.rows: dict[str, list[dict]] = {}
        self.kept = runs.Kept(folder, {**dataclasses.asdict(sizes), "betas": BETAS, "files": runs.digest(*FILES)})

    def path(self, name: str) -> pathlib.Path:
        return self.folder / name

    def train(self, name: str, stage: str, *models: str, **overrides) -> str:
        """The name of the run, once it is done."""
        config = f"{HERE / 'stages.py'}:{','.join([stage, *(str(self.path(one)) for one in models)])}"
        self.rows[name] = self.kept.once(
            f"metrics of {name}", lambda: runs.train_here(config, self.path(name), **overrides), told=False
        )
        return name

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
        """A file of so many rankings of what is asked in training."""
        some = self.path(f"rankings_{number}.jsonl")
        if not some.exists():
            found = task.read_records(self.ranked("prompts", self.sizes.asked))
            if len(found) < number:
                raise SystemExit(f"Sizes.rankings has {number}, and there are {len(found)}; raise Sizes.asked")
            task.write_records(some, found[:number])
        return some

    def ranked(self, asked: str, number: int) -> pathlib.Path:
        """A file of rankings of four replies of the fine-tuned model to each of so many prompts of a file at most."""
        file = self.path(f"ranked_{asked}.jsonl")
        if not file.exists():
            prompts = [record["prompt"] for record in self.records(asked)[:number]]
            policy = fmjax.load(self.path("sft"))
            drawn = measure.drawn(policy, measure.prompts(policy, prompts), 4, seed=2)
            said = [[one.text for one in drawn[4 * i : 4 * i + 4] if one.finish == "stop"] for i in range(len(prompts))]
            found = [task.ranked(one, replies, i) for i, (one, replies) in enumerate(zip(prompts, said))]
            task.write_records(file, [record for record in found if record])
        return file

    def of_rankings(self, number: int) -> dict:
        """Options of a run that learns from so many rankings; all are judged by those of held-out prompts."""
        held = self.ranked("heldout", task.HELD_OUT)
        return {"data__source": self.rankings(number), "data__eval_source": held}

    def reward_models(self) -> dict[int, str]:
        """The runs by how many rankings they are given."""
        steps = lambda number: max(1, self.sizes.epochs * number // stages.RANKED_ROWS)
        return {
            number: self.train(
                f"reward_{number}", "reward", "sft", train__steps=steps(number), **self.of_rankings(number)
            )
            for number in self.sizes.rankings
        }

    def ppo(self, name: str, taste: str, ptx: bool, seed: int = 0) -> str:
        every = self.sizes.every
        source = {"data__prompts__source" if ptx else "data__source": self.path("prompts.jsonl")}
        return self.train(
            name + (f"_seed{seed}" if seed else ""), "ppo" if ptx else "ppo_without_ptx", "sft", taste, seed=seed,
            train__steps=self.sizes.ppo, train__checkpoint_every=every, train__keep_every=every, **source,
        )  # fmt: skip

    def dpo(self, beta: float) -> str:
        every = 2 * self.sizes.every
        return self.train(
            f"dpo_{beta}", "dpo", "sft", objective__beta=beta, train__steps=self.sizes.dpo,
            train__checkpoint_every=every, train__keep_every=every, **self.of_rankings(max(self.sizes.rankings)),
        )  # fmt: skip

    def judged(self, judge: measure.Judge, name: str, step: int) -> dict:
        """What is measured of a run at a step."""
        load = lambda: fmjax.load(self.path(name), step=step)
        return self.kept.once(f"{name} at {step} by {judge.name}", lambda: judge.measured(load(), self.sizes.copies))

    def points(self, judge: measure.Judge, name: str, steps: int) -> list[dict]:
        """What is measured of a run along its way."""
        every = 2 * self.sizes.every
        return [{"step": step, **self.judged(judge, name, step)} for step in range(every, steps + 1, every)]

    def language_loss(self, name: str, step: int) -> float:
        """Of held-out documents of what the first stage read."""
        return self.kept.once(
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
                    "n": n, "kl": best_of_n.most_kl(n), "learnt": best_of_n.mean(n, learnt, learnt),
                    "gold": best_of_n.mean(n, learnt, gold), "gold_by_gold": best_of_n.mean(n, gold, gold),
                }
                for n in self.sizes.numbers
            ]  # fmt: skip

        return self.kept.once("best of n", make)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/instructgpt"))
    parser.add_argument("--seeds", type=int, default=2, help="of PPO's runs")
    parser.add_argument("--short", action="store_true", help="minutes, to see that all runs; results into the workdir")
    flags = parser.parse_args()
    folder = flags.workdir.absolute() / ("short" if flags.short else "")
    study = Study(folder, SHORT if flags.short else Sizes(), flags.seeds)
    results = {**whole(study), "seeds": flags.seeds, "seconds": round(study.kept.seconds())}
    place = folder if flags.short else HERE
    runs.save(place, results)
    pictures.draw(place, results)
    for row in table(results):
        print("|", " | ".join(row), "|")


def whole(study: Study) -> dict:
    """All stages, and what is measured of them; runs of PPO and their points in lists, one a seed."""
    sizes = study.sizes
    study.first_stages()
    tastes = study.reward_models()
    most = max(tastes)
    ways = {"ppo_ptx": (tastes[most], True), f"ppo_{most}": (tastes[most], False)}
    policies = tuple(ways)
    ways |= {f"ppo_{number}": (taste, False) for number, taste in tastes.items() if number != most}
    by_seed = [{way: study.ppo(way, *what, seed) for way, what in ways.items()} for seed in range(study.seeds)]
    found = {way: [one[way] for one in by_seed] for way in ways}
    by_beta = {beta: study.dpo(beta) for beta in BETAS}

    begin = {taste: study.judged(study.judge(taste), "sft", sizes.sft) for taste in tastes.values()}
    judge = study.judge(tastes[most])
    checked = range(sizes.every, sizes.ppo + 1, 2 * sizes.every)
    loss = lambda name: [(step, study.language_loss(name, step)) for step in (*checked, sizes.ppo)]
    return {
        "stages": {
            "pretrained": {"language_loss": study.language_loss("pretrained", sizes.pretrain)},
            "sft": {"language_loss": study.language_loss("sft", sizes.sft), **begin[tastes[most]]},
            "reward": {
                name: {"accuracy": runs.last(study.rows[name], "eval/accuracy"), "sft": begin[name]["learnt"]}
                for name in tastes.values()
            },
        },
        "by_step": {way: [by_step(study.rows[one]) for one in many] for way, many in found.items()},
        "language_loss": {way: [loss(one) for one in found[way]] for way in policies},
        "ppo": {way: [study.points(judge, one, sizes.ppo) for one in found[way]] for way in policies},
        "dpo": {beta: study.points(judge, name, sizes.dpo) for beta, name in by_beta.items()},
        "dpo_language_loss": {beta: study.language_loss(name, sizes.dpo) for beta, name in by_beta.items()},
        "best_of": study.best_of(judge),
    }


def by_step(rows: list[dict]) -> dict[str, list[float]]:
    """What a run of PPO told of its rollouts: steps, rewards less what cut replies pay, KL a reply."""
    names = {"learnt": "reward_learnt", "gold": "reward_gold", "kl": "reply_kl", "tokens": "reply_tokens"}
    found = {name: runs.curve(rows, f"train/{metric}")[1] for name, metric in names.items()}
    steps, ended = runs.curve(rows, "train/ended")
    for name in ("learnt", "gold"):
        found[name] = [value - task.CUT * (1 - share) for value, share in zip(found[name], ended)]
    return {"step": steps, **found}


def table(results: dict) -> list[list[str]]:
    """Rows of the page: what is held at the end of each way; of several seeds the least and the most."""

    def row(name: str, many: list[dict], losses: list[float]) -> list[str]:
        told = lambda values, form: "–".join(dict.fromkeys(f"{one:{form}}" for one in (min(values), max(values))))
        forms = {"gold": ".2f", "learnt": ".2f", "kl": ".1f", "ended": ".0%", "tokens": ".1f"}
        cells = [told([one[key] for one in many], form) if key in many[0] else "" for key, form in forms.items()]
        return [name, *cells, told(losses, ".3f") if losses else ""]

    first = results["stages"]
    rows = [
        row("pretrained", [{}], [first["pretrained"]["language_loss"]]),
        row("fine-tuned", [first["sft"]], [first["sft"]["language_loss"]]),
    ]
    for way, many in results["ppo"].items():
        losses = [one[-1][1] for one in results["language_loss"][way]]
        rows.append(row(pictures.label(way), [points[-1] for points in many], losses))
    for beta, points in results["dpo"].items():
        rows.append(row(f"DPO, beta {beta}", [points[-1]], [results["dpo_language_loss"][beta]]))
    rows += [row(f"best of {one['n']}", [one], []) for one in results["best_of"] if one["n"] > 1]
    return rows


if __name__ == "__main__":
    main()
