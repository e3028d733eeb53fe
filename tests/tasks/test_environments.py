"""Environments step as their equations say, and episodes in them depend on model and seed alone."""

import dataclasses
import math

import numpy as np

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.tasks.answers import answer
from fmjax.tasks.environments import CartPole, Grid
from fmjax.tasks.protocol import Rollout
from fmjax.tasks.runner import run_tasks
from tests.tasks.quiz import MODEL, MODULE, PARAMS


def test_episodes_of_a_policy_and_of_a_language_model():
    @dataclasses.dataclass(frozen=True)
    class ToGoal(Model):
        def act(self, observations):
            delta = observations[:, 2:] - observations[:, :2]
            vertical = np.where(delta[:, 1] > 0, 0, 1)
            return np.where(delta[:, 1] != 0, vertical, np.where(delta[:, 0] > 0, 3, 2))

    policy = ToGoal(MODULE, PARAMS, {}, ByteTokenizer())
    requests = [Rollout("grid", seed) for seed in range(12)]
    for request, summary in zip(requests, answer(requests, policy)):
        (x, y), (goal_x, goal_y) = Grid().reset(request.seed)
        assert summary == {"return": 1.0, "steps": abs(x - goal_x) + abs(y - goal_y), "ended": 1.0}
    metrics = run_tasks(policy, ["grid"], limit=20)["grid"].metrics
    assert metrics["return"] == metrics["ended"] == 1 and 1 <= metrics["steps"] <= 8
    summaries = answer(requests[:3], MODEL)
    assert summaries == answer(requests[:3][::-1], MODEL)[::-1] and all(1 <= s["steps"] <= 16 for s in summaries)


def test_cartpole_falls_as_the_equations_say():
    """One step of Euler by the equations of Gymnasium's CartPole-v1, and both limits."""
    environment = CartPole()
    state, reward, ended = environment.step(np.asarray([0.01, -0.02, 0.03, 0.04]), 1)
    force, sin, cos = 10.0, math.sin(0.03), math.cos(0.03)
    temp = (force + 0.05 * 0.04**2 * sin) / 1.1
    theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    x_acc = temp - 0.05 * theta_acc * cos / 1.1
    expected = [0.01 - 0.02 * 0.02, -0.02 + 0.02 * x_acc, 0.03 + 0.02 * 0.04, 0.04 + 0.02 * theta_acc]
    np.testing.assert_allclose(state, expected, rtol=1e-12)
    assert reward == 1.0 and not ended
    assert environment.step(np.asarray([2.399, 1.0, 0.0, 0.0]), 1)[2]
    assert environment.step(np.asarray([0, 0, 0.3, 0]), 0)[2]
