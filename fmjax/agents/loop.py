"""Episodes with a model: those that go on are asked together, a batch a step."""

import dataclasses
from collections.abc import Callable, Sequence

from fmjax.agents.episode import Episode, Step
from fmjax.errors import InputError
from fmjax.inference.rows import bucket


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How replies are drawn, as options of `Model.complete`.

    Attributes:
      temperature, top_k, top_p, min_p, repetition_penalty, seed: see `fmjax.inference.continuations.Options`. 0 is
        greedy.
      batch_size: episodes that are asked at once.
      cache_length: places of the cache, twice as many where they are too few: other lengths are other programs.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    batch_size: int = 16
    cache_length: int = 1024


def run(
    model, episodes: Sequence[Episode], drawing: Drawing = Drawing(), *, copies: Sequence[int] | None = None,
    after: Callable[[int, Step], None] | None = None,
) -> None:  # fmt: skip
    """Leads episodes to their ends.

    Args:
      model: `complete(prompts, **options)` as of `fmjax.inference.model.Model`.
      copies: a number for each that tells episodes of one goal apart; None counts them from 0.
      after: called with (number of the episode, step) after each step.
    """
    copies = range(len(episodes)) if copies is None else copies
    if len(copies) != len(episodes):
        raise InputError(f"copies: expected a number for each of {len(episodes)} episodes, got {len(copies)}")
    while asked := [number for number, episode in enumerate(episodes) if not episode.ended]:
        for some in _alike(episodes, asked):
            replies = ask(model, [episodes[number] for number in some], drawing, [copies[number] for number in some])
            for number, reply in zip(some, replies):
                step = episodes[number].take(reply)
                if after is not None:
                    after(number, step)


def _alike(episodes, asked) -> list[list[int]]:
    """Numbers of episodes whose next replies may have as many tokens, and end with the same ones."""
    groups: dict[tuple, list[int]] = {}
    for number in asked:
        episode = episodes[number]
        groups.setdefault((episode.room, tuple(episode.format.stop_ids)), []).append(number)
    return list(groups.values())


def ask(model, episodes: Sequence[Episode], drawing: Drawing, copies: Sequence[int]) -> list:
    """The next reply in each of some episodes with equal room."""
    options, contexts = dataclasses.asdict(drawing), [list(episode.context()) for episode in episodes]
    need = max(map(len, contexts)) + episodes[0].room
    options["cache_length"] = bucket(need, low=drawing.cache_length)
    if model.context_length is not None:
        options["cache_length"] = min(options["cache_length"], max(need, model.context_length))
    held = [episode.constraint for episode in episodes]
    if any(one is not None for one in held):
        options["constraint"] = held
    return model.complete(
        contexts, max_new_tokens=episodes[0].room, copies=list(copies), stop_ids=list(episodes[0].format.stop_ids),
        **options,
    )  # fmt: skip
