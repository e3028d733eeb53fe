"""Policy gradients against closed forms: the baseline, the gradient, its expectation; and rewards that are none."""

import itertools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.objectives.logprobs import token_logprobs
from fmjax.objectives.groups import group_advantages
from fmjax.objectives.reinforce import Reinforce
from fmjax.rewards.base import RewardError

VOCAB, LENGTH = 3, 2
PARAMS = {"table": jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB, VOCAB)), jnp.float32)}


class Table(nn.Module):
    """A tabular policy: the logits after a token are its row of the table."""

    @nn.compact
    def features(self, tokens, segment_ids=None):
        table = self.param("table", nn.initializers.zeros, (VOCAB, VOCAB))
        return jax.nn.one_hot(tokens, VOCAB), {"kernel": table}


def reward(prompts, replies):
    return [float(len(reply)) for reply in replies]


def with_rows(prompts, replies, rows):
    return rows["lengths"]


def broken(prompts, replies):
    if "bad" in replies:
        raise ZeroDivisionError("no ground")
    return [1.0] * len(replies)


def not_a_number(prompts, replies):
    return [float("nan") if reply == "bad" else 1.0 for reply in replies]


def too_few(prompts, replies):
    return [1.0]


def one_argument(prompts):
    return []


def objective(name="reward", **fields):
    return Reinforce(reward=f"{__name__}:{name}", **{"num_samples": 2, "max_new_tokens": LENGTH} | fields)


def advantages(rewards, num_samples):
    return group_advantages(rewards, np.ones(len(rewards)), num_samples, "leave_one_out")


def rows(replies, rewards, num_samples=2):
    """The batch of replies (token lists) after the prompt [0]."""
    count = len(replies)
    tokens = np.array([[0, *reply[:-1]] for reply in replies], np.int32)
    kept = np.zeros((count, LENGTH), np.float32)
    return {
        "tokens": tokens, "segment_ids": np.ones_like(tokens), "targets": np.array(replies, np.int32),
        "loss_weights": np.ones((count, LENGTH), np.float32), "logprobs": kept, "sampler_logprobs": kept,
        "rewards": np.asarray(rewards, np.float32), "advantages": advantages(np.asarray(rewards), num_samples),
        "rewarded": np.ones(count, np.float32), "ended": np.ones(count, np.float32),
        "reward_parts": np.zeros((count, 1), np.float32), "parts_there": np.ones((count, 1), np.float32),
        "raw_rewards": np.asarray(rewards, np.float32),
    }  # fmt: skip


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_the_baseline_is_the_mean_of_the_others():
    found = advantages(np.array([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    np.testing.assert_allclose(found, [1 - 4, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_and_gradient_are_those_of_a_tabular_policy_by_hand(temperature):
    replies, rewards = [[1, 2], [0, 0], [2, 1], [1, 1]], [1.0, -1.0, 0.5, 3.0]
    batch, policy = rows(replies, rewards), np.asarray(PARAMS["table"], np.float64) / temperature
    loss, gradient = 0.0, np.zeros((VOCAB, VOCAB))
    for reply, advantage in zip(replies, batch["advantages"]):
        for before, token in zip([0, *reply], reply):
            loss -= advantage * log_softmax(policy)[before, token]
            gradient[before] -= advantage * (np.eye(VOCAB)[token] - np.exp(log_softmax(policy)[before])) / temperature
    total = lambda params: objective(temperature=temperature)(Table().apply, params, batch, None, True)["loss"]
    value, weight = total(PARAMS)
    assert float(weight) == len(replies)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda p: total(p)[0])(PARAMS)["table"], gradient, atol=1e-5)


def test_the_expected_gradient_is_that_of_the_expected_reward():
    """Over all pairs of replies of two tokens, each pair as probable as the policy makes it."""
    every = list(itertools.product(range(VOCAB), repeat=LENGTH))
    values = np.random.default_rng(1).normal(size=len(every)).astype(np.float32)

    def probabilities(params):
        logs = jax.nn.log_softmax(params["table"])
        return jnp.stack([jnp.exp(logs[0, a] + logs[a, b]) for a, b in every])

    exact = jax.grad(lambda params: probabilities(params) @ values)(PARAMS)["table"]
    chances, loss = np.asarray(probabilities(PARAMS)), objective()
    pairs = list(itertools.product(range(len(every)), repeat=2))
    replies = [every[i] for pair in pairs for i in pair]
    batch = rows(replies, [values[i] for pair in pairs for i in pair])
    batch["advantages"] = batch["advantages"] * np.repeat([chances[i] * chances[j] for i, j in pairs], 2)

    def expected(params):  # of the loss's mean over a pair
        return loss(Table().apply, params, batch, None, True)["loss"][0] / 2

    np.testing.assert_allclose(-jax.grad(expected)(PARAMS)["table"], exact, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 2, 3])
def test_log_probabilities_are_those_of_the_softmax_however_they_are_cut(chunk_size):
    rng = np.random.default_rng(0)
    hidden, table = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 5, 4), (7, 4)))
    targets = rng.integers(0, 7, (2, 5))
    wanted = np.take_along_axis(log_softmax(hidden @ table.T / 0.7), targets[..., None], axis=-1)[..., 0]
    found = token_logprobs(hidden, {"embedding": table}, targets, temperature=0.7, chunk_size=chunk_size)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def replies(*texts):
    return [types.SimpleNamespace(text=text, tokens=[1], logprobs=[-1.0], finish="stop") for text in texts]


TOKENIZER = types.SimpleNamespace(decode=lambda tokens: f"prompt {tokens[0]}")
PROMPTS = {"tokens": np.array([[4, 0], [5, 6]], np.int32), "lengths": np.array([1, 2], np.int32)}


def graded(tokenizer, texts, name="reward", **fields):
    return objective(name, **fields).graded(types.SimpleNamespace(tokenizer=tokenizer), PROMPTS, replies(*texts), 2)


def test_a_reward_reads_texts_and_rows():
    four = ("a", "bb", "", "dddd")
    np.testing.assert_array_equal(graded(TOKENIZER, four).total, [1, 2, 0, 4])
    np.testing.assert_array_equal(graded(None, four).total, [1, 1, 1, 1])
    np.testing.assert_array_equal(graded(TOKENIZER, four, "with_rows").total, [1, 1, 2, 2])


FAILURES = [
    ("broken", "raised ZeroDivisionError: no ground; for the reply 'bad' to 'prompt 5'"),
    ("not_a_number", "gave nan, which is not finite, for the reply 'bad' to 'prompt 5'"),
]


@pytest.mark.parametrize("name, message", [*FAILURES, ("too_few", "gave 1 values for 4 replies")])
def test_a_reward_that_is_none_names_the_reply(name, message):
    with pytest.raises(RewardError, match=message):
        graded(TOKENIZER, ("good", "good", "bad", "good"), name, reward_failures="stop")


@pytest.mark.parametrize("name, message", FAILURES)
def test_a_reply_without_a_reward_is_left_out_and_told(name, message, caplog):
    texts = ("good", "good", "bad", "good")
    found = graded(TOKENIZER, texts, name)
    np.testing.assert_array_equal(found.total, [1, 1, np.nan, 1])
    assert "1 of 4 replies have no reward and are left out" in caplog.text and message in caplog.text
    made = objective(name).rows(PROMPTS, replies(*texts), found)
    np.testing.assert_array_equal(made["rewarded"], [1, 1, 0, 1])
    np.testing.assert_array_equal(made["loss_weights"].sum(axis=1), [1, 1, 0, 1])
    np.testing.assert_array_equal(objective(name).complete(None, made, 4)["advantages"], [0, 0, 0, 0])
    with pytest.raises(RewardError, match="'bad'"):  # all of a rollout
        graded(TOKENIZER, ("bad",) * 4, name)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(num_samples=1), "num_samples = 1 must be at least 2"),
        (dict(temperature=0.0), "temperature = 0.0 must be above 0"),
        (dict(rollout_steps=0), "rollout_steps"),
        (dict(name="one_argument"), r"cannot be called as reward\(prompts, replies"),
        (dict(name="rewrad"), "did you mean 'reward'"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        objective(**fields)


def test_a_batch_has_whole_groups_and_data_are_prompts():
    assert objective().num_prompts(6) == 3
    with pytest.raises(ConfigError, match="train.batch_size = 5 is not divisible by objective.num_samples = 2"):
        objective().num_prompts(5)
    with pytest.raises(ConfigError, match="needs prompts, rows with tokens and lengths"):
        objective().collected({"tokens": np.zeros(3)})
