"""Rewards of replies, computed on the host: `(prompts, replies) -> a number each`."""

from collections.abc import Sequence


def digits_of_prompt(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """The share of a reply's characters that are digits of its prompt: 2/3 of "314" after "123="; 0 of ""."""
    pairs = zip(prompts, replies)
    return [sum(one in prompt.rstrip("=") for one in reply) / max(len(reply), 1) for prompt, reply in pairs]
