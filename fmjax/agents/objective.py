"""Policy gradients of agents: the rows that a run trains on are whole episodes, of which the model's own tokens count.

What tools gave, and the rest of what the model was told, has no loss: `loss_weights` are 1 at drawn tokens alone. The
ids of a row are those that were read and drawn; nothing is encoded again.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fmjax.agents.choosing import Places, check, made
from fmjax.agents.episode import Budget, Episode
from fmjax.agents.formats import chosen
from fmjax.agents.loop import Drawing, run
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.drawn import prompt_ids
from fmjax.objectives.grpo import GRPO
from fmjax.objectives.reinforce import Reinforce
from fmjax.tasks.answers import CHAT_DATE


@dataclasses.dataclass(frozen=True)
class Whole:
    """An episode as a reply to its prompt.

    Attributes:
      tokens: ids after those that the conversation began with.
      logprobs: of each that was drawn; 0 elsewhere.
      text: the answer; "" where there was none.
      finish: "stop" after an answer, "length" else.
      ids, drawn: of the whole conversation, and 1 where the model drew.
    """

    tokens: list[int]
    logprobs: list[float]
    text: str
    finish: str
    ids: list[int]
    drawn: list[int]


@dataclasses.dataclass(frozen=True)
class Acting:
    """What objectives of agents have besides those of replies, from which they derive too.

    A prompt is a goal; its reward is of the answer, "" where there is none. `max_new_tokens` are those of one reply.

    Attributes:
      tools: names of `fmjax.agents.choosing`, but those that need a folder, or import paths. Pure functions, or a
        resumed run is another one.
      max_steps: replies of an episode at most.
      max_length: tokens of an episode at most, all that it reads and draws.
    """

    tools: tuple[str, ...] = ("calculator",)
    max_steps: int = 4
    max_length: int = 256

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{f"objective.{name}": getattr(self, name) for name in ("max_steps", "max_length")})
        check(self.tools, Places())
        if getattr(self, "overlong_buffer", 0):
            raise ConfigError("objective.overlong_buffer is of replies, and episodes have several; set it to 0")
        if self.models().keys() - {"reference"}:
            raise ConfigError("a reward model reads one reply, and episodes have several; take a function")

    def _length(self, prompt: int) -> int:
        return self.max_length - 1

    def draw(self, model, prompts: Mapping, num_samples: int, temperature: float, seed: int) -> list[Whole]:
        """Episodes of the prompts' goals, those of a prompt one after another, by the model as it now is."""
        served, budget = model.served, Budget(steps=self.max_steps, reply_tokens=self.max_new_tokens)
        goals = [served.tokenizer.decode(ids) for ids in prompt_ids(prompts) for _ in range(num_samples)]
        episodes = []
        for goal in goals:
            tools = made(self.tools, Places())  # notes are an episode's own
            format = chosen("auto", served.tokenizer, tools, CHAT_DATE)  # a resumed run draws the same
            episodes.append(Episode(format, goal, tools, budget, context_length=self.max_length, forgets=False))
        drawing = Drawing(temperature, seed=seed, batch_size=self.decode_rows, cache_length=self.max_length)
        run(served, episodes, drawing)
        return [whole(episode) for episode in episodes]

    def laid(self, prompts: Mapping, replies: Sequence[Whole]) -> dict[str, np.ndarray]:
        """Episodes as arrays, as `collected` tells."""
        shape = len(replies), self.max_length - 1
        rows = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "targets")}
        rows |= {name: np.zeros(shape, np.float32) for name in ("loss_weights", "sampler_logprobs")}
        for index, one in enumerate(replies):
            end = len(one.ids) - 1
            rows["tokens"][index, :end], rows["segment_ids"][index, :end] = one.ids[:-1], 1
            drawn = np.asarray(one.drawn[1:], np.float32)
            rows["targets"][index, :end] = np.where(drawn > 0, one.ids[1:], 0)
            rows["loss_weights"][index, :end] = drawn
            rows["sampler_logprobs"][index, :end] = [0.0] * (end - len(one.logprobs)) + one.logprobs
        return rows

    def check(self, module, data) -> None:
        """As of the objective of replies; ConfigError also without a tokenizer, or where one would hold its replies to
        a constraint, which is no part of the loss."""
        super().check(module, data)
        tokenizer = data.tokenizer
        name = f"objective {type(self).__name__}"
        if tokenizer is None:
            raise ConfigError(f"{name} needs texts, and these data have no tokenizer")
        if chosen("auto", tokenizer, made(self.tools, Places())).name == "json":
            raise ConfigError(
                f"{name}: replies by the chat template of {tokenizer.source} would be held to a JSON schema, whose "
                "distribution is not the model's; give a template with tools (<tool_call>), or none"
            )
        context = getattr(module, "max_length", None)
        if context is not None and self.max_length > context:
            raise ConfigError(f"objective.max_length = {self.max_length} is more than model.max_length = {context}")


def whole(episode: Episode) -> Whole:
    """An episode that has ended, as a reply."""
    ids, logprobs, drawn = episode.row()
    begun = len(episode.start)
    finish = "stop" if episode.answer is not None else "length"
    return Whole(ids[begun:], logprobs[begun:], episode.answer or "", finish, ids, drawn)


@dataclasses.dataclass(frozen=True)
class AgentReinforce(Acting, Reinforce):
    """REINFORCE with a leave-one-out baseline over episodes of an agent."""


@dataclasses.dataclass(frozen=True)
class AgentGRPO(Acting, GRPO):
    """GRPO over episodes of an agent."""
