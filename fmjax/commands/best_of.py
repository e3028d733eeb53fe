"""Best of n: replies of a model to prompts, re-ranked by a reward; the best of them as records to read or to train on.

    python -m fmjax.commands.best_of --model=runs/sft_tiny --source=PROMPTS.jsonl --output=BEST.jsonl \\
        --num_samples=16 --rewards='{"taste": {"models": ["runs/reward_tiny"]}}'

With --least=1 and --keep=4, say, it keeps up to four different replies that a verifier found right: rejection sampling,
whose records are chats that `fmjax.train` learns from (`data.name = "chats"`, `data.source = BEST.jsonl`).
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from fmjax import cpu
from fmjax.commands import cli
from fmjax.data.chats.asked import Asked, ChatPromptData, read_asked
from fmjax.data.chats.sources import open_chats
from fmjax.data.sources import SourceSpec
from fmjax.errors import DataError, InputError
from fmjax.layers.checks import COMPUTE_DTYPES
from fmjax.objectives.base import OtherModel
from fmjax.rewards.base import RewardSpec, Samples
from fmjax.rewards.models import check_reward_model
from fmjax.rewards.several import Several
from fmjax.small_files import write_whole


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.commands.best_of", "Replies re-ranked by a reward.")
    add, number = parser.add_argument, cli.number
    add("--model", required=True, help="workdir of a run, a Hugging Face folder, or a hub id")
    add("--source", required=True, help="records with a prompt or messages, and perhaps an answer; or builtin")
    add("--output", required=True, help="JSONL file of chats with their rewards; it must not be there yet")
    add("--rewards", required=True, type=_rewards, help="as objective.rewards of a config, in JSON")
    add("--num_samples", type=number(int, low=1), default=16, help="replies to each prompt, n")
    add("--keep", type=number(int, low=1), default=1, help="how many different ones are kept, the best first")
    add("--least", type=number(float, low=-math.inf), default=-math.inf, help="reward of what is kept, at least")
    add("--limit", type=number(int, low=0), default=0, help="prompts that are taken; 0: all")
    add("--max_new_tokens", type=number(int, low=1), default=64, help="tokens of a reply at most")
    add("--temperature", type=number(float, low=0, high=1e6), default=1.0, help="that replies are drawn at")
    add("--batch_size", type=number(int, low=1), default=64, help="replies drawn at once")
    add("--seed", type=number(int, low=0, high=2**31), default=0, help="of the draws")
    add("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    return parser.parse_args(argv)


def _rewards(text: str) -> dict:
    known = ", ".join(RewardSpec.__dataclass_fields__)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(section, dict) for section in found.values()):
        raise argparse.ArgumentTypeError(f'expected {{"NAME": {{...}}}} with {known} in a section')
    for name, section in found.items():
        if wrong := sorted(section.keys() - RewardSpec.__dataclass_fields__.keys()):
            raise argparse.ArgumentTypeError(f"{name}.{wrong[0]} is no key of a reward; known: {known}")
    return found


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cpu.order_collectives()
    cli.log_to_stderr()
    output = pathlib.Path(flags.output).expanduser()
    if output.exists():
        raise DataError(f"{output} is there already; choose another name")
    if not output.parent.is_dir():
        raise DataError(f"--output={str(output)!r}: the folder {str(output.parent)!r} does not exist")
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.load import load

    use_compilation_cache()
    rewards = Several("", flags.rewards)
    asked = read_prompts(flags.source, cache_dir(), flags.limit)
    model = load(flags.model, dtype=flags.dtype)
    opened = {}
    for name, path in rewards.models().items():
        other = load(path)
        check_reward_model(f"--rewards: {name}", other.module, model.module)
        opened[name] = OtherModel(other.module, other.params)
    options = {name: getattr(flags, name) for name in ("max_new_tokens", "temperature", "batch_size", "seed")}
    progress = "replies" if sys.stderr.isatty() else None
    replies, found = drawn(model, asked, rewards, opened, flags.num_samples, progress=progress, **options)
    records = kept(asked, replies, found, flags.keep, flags.least)
    write_whole(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    print(told(found.reshape(len(asked), -1)))
    print(f"wrote {output}: {len(records)} chats")


def read_prompts(source: str, cache_dir: pathlib.Path, limit: int = 0) -> list[Asked]:
    """What the records of a source ask (`fmjax.data.chats.asked`). Raises DataError naming file and row."""
    found = open_chats(SourceSpec(source), cache_dir, read_asked, ChatPromptData.BUILTIN, skip_bad=False)
    asked = [one for _, _, one in found.read()]
    if not asked:
        raise DataError(f"{source!r} has no prompts")
    return asked[:limit] if limit else asked


def drawn(
    model, asked: Sequence[Asked], rewards: Several, opened: Mapping[str, OtherModel], num_samples: int, **options
) -> tuple[list, np.ndarray]:
    """(replies, those to a prompt one after another; their rewards float32, -inf where one failed).

    Args:
      opened: reward models by the names that `rewards` gives them.
      options: of `Model.complete`.

    Raises RewardError where a reward gives no numbers; InputError where a verifier has nothing to go by.
    """
    if rewards.needs_answers and (missing := next((one for one in asked if not one.answer), None)):
        raise InputError(f"{missing.where}: no 'answer', which a verifier compares with")
    prompts = [model.encode_chat(one.messages, **({"tools": one.tools} if one.tools else {})) for one in asked]
    replies = model.complete(prompts, num_samples=num_samples, **options)
    prompts = [tokens for tokens in prompts for _ in range(num_samples)]
    texts = [[*tokens, *reply.tokens] for tokens, reply in zip(prompts, replies)]
    answers = [one.answer for one in asked for _ in range(num_samples)]
    said = [model.tokenizer.decode(tokens) for tokens in prompts]
    samples = Samples(said, [reply.text for reply in replies], {}, answers)
    with model.inference():
        graded = rewards.grade(samples, texts, _Opened(opened), max(map(len, texts)), options["batch_size"])
    for one in graded.wrong[:1]:
        print(f"{len(graded.wrong)} replies have no reward and are never kept: {one}", file=sys.stderr)
    return replies, np.where(np.isfinite(graded.total), graded.total, -np.inf)


class _Opened:
    """Gives reward models as a `Model` gives those of its objective."""

    def __init__(self, models: Mapping[str, OtherModel]):
        self.opened = models.__getitem__


def kept(asked: Sequence[Asked], replies: Sequence, rewards: np.ndarray, keep: int, least: float) -> list[dict]:
    """Chats with the best replies to each prompt, different ones, with their `reward` and `answer`."""
    records, per_prompt = [], len(replies) // len(asked)
    for index, one in enumerate(asked):
        places = np.arange(index * per_prompt, (index + 1) * per_prompt)
        best: dict[str, float] = {}
        for place in places[np.argsort(-rewards[places], kind="stable")]:
            text, reward = replies[place].text, float(rewards[place])
            if len(best) < keep and math.isfinite(reward) and reward >= least and text.strip():
                best.setdefault(text, reward)
        for text, reward in best.items():
            chat = [*one.messages, {"role": "assistant", "content": text}]
            records.append({"messages": chat, "reward": reward} | ({"answer": one.answer} if one.answer else {}))
    return records


def told(rewards: np.ndarray) -> str:
    """In a line: the mean reward of a reply, of the best of n, and how far the best of n is at most from the model.

    rewards: [prompts, n].
    """
    n = rewards.shape[1]
    there = np.where(np.isfinite(rewards), rewards, np.nan)
    best = there[np.isfinite(there).any(axis=1)]
    mean = lambda values: float(np.mean(values)) if len(values) else math.nan
    return (
        f"mean reward {mean(there[np.isfinite(there)]):.4g}, of the best of {n} {mean(np.nanmax(best, axis=1)):.4g}; "
        f"their KL to the model is at most log n - (n - 1) / n = {math.log(n) - (n - 1) / n:.3g} nats"
    )


if __name__ == "__main__":
    cli.leave(cli.run(main))
