"""Environments that a model acts in, and the episodes that tasks ask for (`Rollout`).

An environment is two pure functions of a state, written in NumPy. A language model acts by the log-likelihood of each
action's name after what it was told so far, so an episode is deterministic given its seed; a policy (a model with a
method `act`) gets the observations themselves. Episodes advance together, a batch a step.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from fmjax.inference import scored_text
from fmjax.registry import Registry
from fmjax.tasks.protocol import Rollout


class Environment(Protocol):
    """What an environment has; `fmjax.tasks.environments:Grid` is an example.

    Attributes:
      actions: their names, in the order of their numbers.
      max_steps: steps after which an episode ends in any case.
    """

    actions: tuple[str, ...]
    max_steps: int

    def reset(self, seed: int) -> Any:
        """The state an episode begins with."""

    def step(self, state: Any, action: int) -> tuple[Any, float, bool]:
        """Next state, reward, and whether the episode ended."""

    def observe(self, state: Any) -> np.ndarray:
        """What a policy sees, float32."""

    def describe(self, state: Any) -> str:
        """What a language model is told, ending where the name of its action comes next."""


class Grid:
    """A square grid; reach the goal. Reward 1 there, so an episode's best is the Manhattan distance."""

    actions = (" up", " down", " left", " right")
    max_steps = 16
    size = 5
    _moves = np.asarray([(0, 1), (0, -1), (-1, 0), (1, 0)])

    def reset(self, seed: int):
        cells = np.random.default_rng(seed).choice(self.size**2, 2, replace=False)
        return tuple((int(cell % self.size), int(cell // self.size)) for cell in cells)

    def step(self, state, action: int):
        position, goal = state
        moved = np.clip(np.asarray(position) + self._moves[action], 0, self.size - 1)
        position = int(moved[0]), int(moved[1])
        return (position, goal), float(position == goal), position == goal

    def observe(self, state) -> np.ndarray:
        return np.asarray(state, np.float32).reshape(-1)

    def describe(self, state) -> str:
        (x, y), (goal_x, goal_y) = state
        return f"You are at column {x}, row {y}. The goal is at column {goal_x}, row {goal_y}. You go"


class CartPole:
    """The pole on a cart of Barto, Sutton and Anderson 1983, with the constants of Gymnasium's CartPole-v1."""

    actions = (" left", " right")
    max_steps = 500
    gravity, cart_mass, pole_mass, half_length, force, dt = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    limits = 2.4, 12 * 2 * np.pi / 360

    def reset(self, seed: int):
        return np.random.default_rng(seed).uniform(-0.05, 0.05, 4)

    def step(self, state, action: int):
        x, x_dot, theta, theta_dot = state
        total, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        sin, cos = np.sin(theta), np.cos(theta)
        push = (self.force * (2 * action - 1) + moment * theta_dot**2 * sin) / total
        theta_acc = (self.gravity * sin - cos * push) / (self.half_length * (4 / 3 - self.pole_mass * cos**2 / total))
        x_acc = push - moment * theta_acc * cos / total
        state = np.asarray([x, x_dot, theta, theta_dot]) + self.dt * np.asarray([x_dot, x_acc, theta_dot, theta_acc])
        return state, 1.0, bool(abs(state[0]) > self.limits[0] or abs(state[2]) > self.limits[1])

    def observe(self, state) -> np.ndarray:
        return np.asarray(state, np.float32)

    def describe(self, state) -> str:
        x, x_dot, theta, theta_dot = state
        pole = f"pole leaning {theta:.3f} turning {theta_dot:.2f}"
        return f"Cart at {x:.2f} moving {x_dot:.2f}, {pole}. Push the cart to the"


ENVIRONMENTS = Registry(
    "environment",
    {"grid": "fmjax.tasks.environments:Grid", "cartpole": "fmjax.tasks.environments:CartPole"},
)


def run(model, requests: Sequence[Rollout], progress: str | None = None, work=None) -> Iterator[tuple[int, dict]]:
    """(index, summary) of episodes in one environment, as they end.

    A summary has `return` (summed rewards), `steps`, and `ended` (1 where the environment ended it, 0 at `max_steps`).
    An environment with a method `play(model, requests, progress, work)` leads its episodes itself, and says what their
    summaries have: one whose actions are texts (`fmjax.agents.evaluation`).

    Args:
      model: a language model (`iter_scores`), or a policy: `act(observations float32 [N, D])` -> int [N].
      requests: all of one environment.
      progress: label of a progress bar over the episodes; None shows none.
      work: the lengths of what a language model read are added to it.
    """
    environment = ENVIRONMENTS.get(requests[0].environment)()
    if hasattr(environment, "play"):
        yield from environment.play(model, requests, progress, work)
        return
    act = _policy_actions if "act" in model.abilities else _language_actions
    states = {i: environment.reset(request.seed) for i, request in enumerate(requests)}
    totals = {i: 0.0 for i in states}
    shown = dict(desc=progress, disable=progress is None, unit=" episodes", dynamic_ncols=True)
    with tqdm(total=len(requests), **shown) as bar:
        for step in range(1, environment.max_steps + 1):
            indices = sorted(states)
            prompts = [requests[i].prompt for i in indices]
            chosen = act(model, environment, [states[i] for i in indices], prompts, work)
            for i, action in zip(indices, chosen):
                states[i], reward, ended = environment.step(states[i], int(action))
                totals[i] += reward
                if ended or step == environment.max_steps:
                    del states[i]
                    bar.update()
                    yield i, {"return": totals[i], "steps": step, "ended": float(ended)}
            if not states:
                return


def _policy_actions(model, environment, states, prompts, work) -> Sequence[int]:
    return model.can("act")(np.stack([environment.observe(state) for state in states]))


def _language_actions(model, environment, states, prompts, work) -> Sequence[int]:
    """For each state the likeliest action; of equally likely ones the first."""
    contexts = [prompt + environment.describe(state) for prompt, state in zip(prompts, states)]
    pairs = [(context, action) for context in contexts for action in environment.actions]
    segments, cut = scored_text.continuation_segments(model, pairs)
    if work is not None:
        work.truncated += sum(cut)
        work.lengths.update(len(inputs) for inputs in {segment.inputs for segment in segments})
    scores = dict(model.iter_scores(segments))
    table = np.asarray([scores[i][0] for i in range(len(pairs))]).reshape(len(states), -1)
    return table.argmax(axis=1)
