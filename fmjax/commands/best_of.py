"""Best of n: replies of a model to prompts, re-ranked by a reward; the best of them as records to read or to train on.

    python -m fmjax.commands.best_of --model=runs/sft_tiny --source=PROMPTS.jsonl --output=BEST.jsonl \\
        --num_samples=16 --rewards='{"taste": {"models": ["runs/reward_tiny"]}}'

With --least=1 and --keep=4, say, it keeps up to four different replies that a verifier found right: rejection sampling,
whose records are chats that `fmjax.train` learns from (`data.name = "chats"`, `data.source = BEST.jsonl`). Without
--rewards replies are kept in the order in which they were drawn: a teacher's own, for a student to learn from
(sequence-level distillation, Kim & Rush 2016, https://arxiv.org/abs/1606.07947).
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from fmjax.commands import cli
from fmjax.data.chats.asked import Asked, ChatPromptData, read_asked
from fmjax.data.chats.sources import open_chats
from fmjax.data.sources import SourceSpec
from fmjax.errors import ConfigError, DataError, InputError
from fmjax.layers.checks import COMPUTE_DTYPES
from fmjax.objectives.base import OtherModel
from fmjax.rewards.base import RewardError, RewardSpec, Samples
from fmjax.rewards.models import check_reward_model, check_trained
from fmjax.rewards.several import Several
from fmjax.small_files import write_whole


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.commands.best_of", "Replies re-ranked by a reward.")
    add, number = parser.add_argument, cli.number
    add("--model", required=True, help="workdir of a run, a Hugging Face folder, or a hub id")
    add("--source", required=True, help="records with a prompt or messages, and perhaps an answer; or builtin")
    add("--output", required=True, help="JSONL file of chats with their rewards; it must not be there yet")
    add("--rewards", type=_rewards, help="as objective.rewards of a config, in JSON; without them replies are alike")
    add("--num_samples", type=number(int, low=1), default=16, help="replies to each prompt, n")
    add("--keep", type=number(int, low=1), default=1, help="how many different ones are kept, the best first")
    add("--least", type=number(float, low=-math.inf), default=-math.inf, help="reward of what is kept, at least")
    add("--keep_cut_off", action="store_true", help="keep replies, too, that did not end within max_new_tokens")
    add("--limit", type=number(int, low=0), default=0, help="prompts that are taken; 0: all")
    add("--max_new_tokens", type=number(int, low=1), default=64, help="tokens of a reply at most")
    add("--temperature", type=number(float, low=0, high=1e6), default=1.0, help="that replies are drawn at")
    add("--batch_size", type=number(int, low=1), default=64, help="replies drawn at once")
    add("--seed", type=number(int, low=0, high=2**31), default=0, help="of the draws")
    add("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    flags = parser.parse_args(argv)
    if not flags.rewards and flags.least > -math.inf:
        raise InputError(f"--least={flags.least:g} is of rewards; give --rewards, or leave it out")
    return flags


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
    cli.log_to_stderr()
    output = cli.new_output(flags.output)
    from fmjax.cache_folder import cache_dir, use_compilation_cache
    from fmjax.load import load, trained_with

    use_compilation_cache()
    rewards = Several("", flags.rewards) if flags.rewards else None
    asked = read_prompts(flags.source, cache_dir(), flags.limit)
    model = load(flags.model, dtype=flags.dtype)
    opened = {}
    for name, path in (rewards.models() if rewards else {}).items():
        other = load(path)
        check_reward_model(f"--rewards: {name}", other.module, model.module)
        check_trained(f"--rewards: {name}", trained_with(path))
        check_tokenizers(f"--rewards: {name} = {path!r}", other.tokenizer, model.tokenizer)
        opened[name] = OtherModel(other.module, other.params)
    options = {name: getattr(flags, name) for name in ("max_new_tokens", "temperature", "batch_size", "seed")}
    progress = "replies" if sys.stderr.isatty() else None
    replies, found = drawn(model, asked, rewards, opened, flags.num_samples, progress=progress, **options)
    ended = np.array([reply.finish == "stop" for reply in replies]) | flags.keep_cut_off
    records = kept(asked, replies, np.where(ended, found, -np.inf), flags.keep, flags.least)
    if rewards is None:
        records = [{name: value for name, value in record.items() if name != "reward"} for record in records]
    write_whole(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    as_asked = (len(asked), flags.num_samples)
    plain = flags.keep == 1 and flags.least == -math.inf
    if rewards is None:
        print(f"{ended.mean():.1%} of the replies ended within --max_new_tokens or are kept all the same")
    else:
        print(told(found.reshape(as_asked), ended.reshape(as_asked), plain))
    print(f"wrote {output}: {len(records)} chats")


def check_tokenizers(where: str, theirs, ours) -> None:
    """Raises ConfigError where a reward model reads other tokens than the model writes."""
    if theirs is not None and theirs.fingerprint != getattr(ours, "fingerprint", None):
        raise ConfigError(
            f"{where} reads the tokens of another tokenizer than --model writes, and is given these tokens; take two "
            "models whose texts were cut by the same tokenizer (data.tokenizer = the path of the one, when the other "
            "is trained)"
        )


def read_prompts(source: str, cache_dir: pathlib.Path, limit: int = 0) -> list[Asked]:
    """What the records of a source ask (`fmjax.data.chats.asked`). Raises DataError naming file and row."""
    found = open_chats(SourceSpec(source), cache_dir, read_asked, ChatPromptData.BUILTIN, skip_bad=False)
    asked = [one for _, _, one in found.read()]
    if not asked:
        raise DataError(f"{source!r} has no prompts")
    return asked[:limit] if limit else asked


def drawn(
    model, asked: Sequence[Asked], rewards: Several | None, opened: Mapping[str, OtherModel], num_samples: int,
    **options,
) -> tuple[list, np.ndarray]:  # fmt: skip
    """(replies, those to a prompt one after another; their rewards float32, -inf where one failed).

    Args:
      rewards: None: each is 0.
      opened: reward models by the names that `rewards` gives them.
      options: of `Model.complete`.

    Raises RewardError where a reward gives no numbers, and where all replies are without; InputError where a verifier
    has nothing to go by, or a reward model reads too few tokens.
    """
    if rewards and rewards.needs_answers and (missing := next((one for one in asked if not one.answer), None)):
        raise InputError(f"{missing.where}: no 'answer', which a verifier compares with")
    prompts = [model.encode_chat(one.messages, **({"tools": one.tools} if one.tools else {})) for one in asked]
    if rewards:
        rewards.check_context(_Opened(opened), max(map(len, prompts)) + options["max_new_tokens"])
    replies = model.complete(prompts, num_samples=num_samples, **options)
    if rewards is None:
        return replies, np.zeros(len(replies), np.float32)
    prompts = [tokens for tokens in prompts for _ in range(num_samples)]
    texts = [[*tokens, *reply.tokens] for tokens, reply in zip(prompts, replies)]
    answers = [one.answer for one in asked for _ in range(num_samples)]
    said = [model.tokenizer.decode(tokens) for tokens in prompts]
    samples = Samples(said, [reply.text for reply in replies], rows(prompts, answers), answers)
    with model.inference():
        graded = rewards.grade(samples, texts, _Opened(opened), max(map(len, texts)), options["batch_size"])
    there = np.isfinite(graded.total)
    if not there.any():
        raise RewardError(graded.wrong[0] if graded.wrong else f"none of {len(replies)} replies has a reward")
    for one in graded.wrong[:1]:
        print(f"{(~there).sum()} replies have no reward and are never kept: {one}", file=sys.stderr)
    return replies, np.where(there, graded.total, -np.inf)


def rows(prompts: Sequence[Sequence[int]], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """What a reward of three arguments gets, as rows of `chat_prompts` have it: `tokens`, `lengths`, `answers`."""
    padded = lambda rows, kind: np.array([[*row, *[0] * (max(map(len, rows)) - len(row))] for row in rows], kind)
    found = {"tokens": padded(prompts, np.int32), "lengths": np.array([*map(len, prompts)], np.int32)}
    return found | {"answers": padded([one.encode() for one in answers], np.uint8)}


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


def told(rewards: np.ndarray, ended: np.ndarray, plain: bool) -> str:
    """In a line: the mean reward of a reply, of the best of n, how many were left out because they did not end; and how
    far the best of n is at most from the model, where it is the best of all n.

    Args:
      rewards, ended: [prompts, n]; -inf where there is none.
      plain: whether the best one alone is kept, whatever its reward.
    """
    n, there = rewards.shape[1], np.isfinite(rewards)
    best = np.where(ended, rewards, -np.inf).max(axis=1)
    best = best[np.isfinite(best)]
    line = f"mean reward {rewards[there].mean():.4g}"
    line += f", of the best of {n} {best.mean():.4g}" if len(best) else ""
    if cut := int((~ended).sum()):
        line += f"; {cut} of {ended.size} replies did not end within --max_new_tokens and are left out"
    if plain and there.all() and not cut:
        line += f"; its KL to the model is at most log n - (n - 1) / n = {math.log(n) - (n - 1) / n:.3g} nats"
    return line


if __name__ == "__main__":
    cli.leave(cli.run(main))
