"""PPO's whole loss and its gradient against a formula in numpy; PPO and GRPO in parts are what they are at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.objectives.grpo import GRPO
from fmjax.objectives.ppo import PPO
from fmjax.training.gradients import make_gradient
from fmjax.training.state import TrainState
from fmjax.training.step import make_train_step

REWARD = "fmjax.objectives.rewards:digits_of_prompt"
VOCAB, WIDTH, ROWS, LENGTH, TEXTS, LONG = 5, 3, 4, 4, 2, 3
RNG = np.random.default_rng(0)
normal = lambda *shape: RNG.normal(size=shape).astype(np.float32)
PARAMS = {"embed": normal(VOCAB, WIDTH), "head": normal(VOCAB, WIDTH), "value": normal(WIDTH)}
MASK = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32)
ints = lambda *shape: RNG.integers(0, VOCAB, shape).astype(np.int32)
BATCH = {
    "tokens": ints(ROWS, LENGTH), "segment_ids": np.ones((ROWS, LENGTH), np.int32), "targets": ints(ROWS, LENGTH),
    "loss_weights": MASK, "sampler_logprobs": 0 * MASK, "advantages": 2 * normal(ROWS, LENGTH) * MASK,
    "returns": normal(ROWS, LENGTH) * MASK, "values": normal(ROWS, LENGTH) * MASK,
    "rewarded": np.ones(ROWS, np.float32),
    "rewards": np.ones(ROWS, np.float32), "raw_rewards": np.ones(ROWS, np.float32), "ended": np.ones(ROWS, np.float32),
    "reward_parts": np.ones((ROWS, 1), np.float32), "parts_there": np.ones((ROWS, 1), np.float32),
    "beta": np.full(ROWS, 0.5, np.float32), "next_beta": np.full(ROWS, 0.6, np.float32),
    "ptx_tokens": ints(ROWS, TEXTS, LONG), "ptx_targets": ints(ROWS, TEXTS, LONG),
    "ptx_segment_ids": np.ones((ROWS, TEXTS, LONG), np.int32), "ptx_positions": np.zeros((ROWS, TEXTS, LONG), np.int32),
    "ptx_loss_weights": RNG.integers(0, 2, (ROWS, TEXTS, LONG)).astype(np.float32),
}  # fmt: skip


def apply(variables, tokens, segment_ids, positions=None, *, method, train=False, rngs=None):
    """A policy and its values, of each token alone."""
    params = variables["params"]
    hidden = params["embed"][tokens]
    return hidden @ params["value"] if method == "values" else (hidden, {"embedding": params["head"]})


def logprobs(params, tokens, targets):
    logits = params["embed"][tokens] @ params["head"].T
    return np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), targets[..., None], -1)[..., 0]


BATCH["logprobs"] = (logprobs(PARAMS, BATCH["tokens"], BATCH["targets"]) + 0.3 * normal(ROWS, LENGTH)) * MASK
BATCH["reference_logprobs"] = BATCH["logprobs"] - 0.1 * MASK
OBJECTIVE = PPO(
    reward=REWARD, num_samples=1, max_new_tokens=4, reference="x", kl_weight=0.5, clip=0.1, value_clip=0.2,
    value_weight=0.7, ptx_weight=3.0,
)  # fmt: skip


def formula(params):
    """Means over the batch's tokens, and over those of the texts, in float64."""
    ratio = np.exp(logprobs(params, BATCH["tokens"], BATCH["targets"]) - BATCH["logprobs"])
    advantages, kept, returns = BATCH["advantages"], BATCH["values"], BATCH["returns"]
    policy = -np.minimum(ratio * advantages, np.clip(ratio, 0.9, 1.1) * advantages)
    values = params["embed"][BATCH["tokens"]] @ params["value"]
    near = np.clip(values, kept - 0.2, kept + 0.2)
    errors = np.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    found = -logprobs(params, BATCH["ptx_tokens"], BATCH["ptx_targets"])
    mean = lambda x, weights: (x * weights).sum() / weights.sum()
    return mean(policy + 0.7 * errors, MASK) + 3.0 * mean(found, BATCH["ptx_loss_weights"])


@functools.cache
def of_parts(objective, parts):
    fixed = {"models": None} | ({"carry": objective.initial(None, None, None)} if hasattr(objective, "initial") else {})
    gradient = jax.jit(make_gradient(apply, objective, parts=parts))
    return gradient(PARAMS, jax.tree.map(jnp.asarray, BATCH | GROUPS[type(objective)]), jax.random.key(0), **fixed)


GROUPS = {
    PPO: {},
    GRPO: {
        "advantages": normal(ROWS), "no_variance": np.zeros(ROWS, np.float32), "drawn_reward": np.ones(ROWS, np.float32)
    },
}  # fmt: skip


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_and_gradient_of_ppo_are_those_of_the_formula(parts):
    gradient, sums, _ = of_parts(OBJECTIVE, parts)
    exact = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    assert sum(float(total / weight) for total, weight in sums["loss"]) == pytest.approx(formula(exact), rel=1e-5)
    for name, value in exact.items():
        wanted, step = np.zeros(value.size), 1e-6
        for place in range(value.size):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved.flat[place] += sign * step
                ends.append(formula(exact | {name: moved}))
            wanted[place] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient[name].reshape(-1), wanted, atol=2e-5, err_msg=name)
    assert 0 < float(sums["clip_fraction"][0]) and 0 < float(sums["value_clip_fraction"][0])
    assert float(sums["reply_kl"][0]) == pytest.approx(0.1 * MASK.sum(), rel=1e-5)


@pytest.mark.parametrize("objective", [
    OBJECTIVE, GRPO(reward=REWARD, num_samples=2, max_new_tokens=4, reference="x", kl_weight=0.1, clip_low=0.1),
])  # fmt: skip
def test_parts_add_up_to_the_whole(objective):
    whole, cut = (of_parts(objective, parts) for parts in (1, 2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), whole, cut)


def test_a_step_that_is_skipped_leaves_beta_to_the_others():
    optimizer, schedule = optax.sgd(0.1), lambda step: 0.1
    step = jax.jit(make_train_step(apply, OBJECTIVE, optimizer, schedule, rules=(), nonfinite="skip"))
    zero = jnp.zeros((), jnp.int32)
    carry = OBJECTIVE.initial(None, None, None)
    state = TrainState(zero, zero, PARAMS, optimizer.init(PARAMS), None, carry, None)
    bad = BATCH | {"returns": BATCH["returns"] + np.float32("inf")}
    for batch, skipped, beta in ((bad, 1, 0.5), (BATCH, 1, 0.6), (bad, 2, 0.6)):
        state, metrics = step(state, batch, jax.random.key(0))
        assert metrics["skipped"] == skipped and float(state.carry["beta"]) == pytest.approx(beta)
    assert np.isfinite(state.params["embed"]).all() and not np.array_equal(state.params["embed"], PARAMS["embed"])
