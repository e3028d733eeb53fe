"""GRPO and its kin, and PPO's parts, against trl's trainers and rlax, and against formulas.

The fixture is written by tests/oracles/make_policy_fixtures.py.
"""

import dataclasses
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.objectives.base import Proposal
from fmjax.objectives.advantages import generalised_advantages, token_rewards, whitened
from fmjax.objectives.groups import group_advantages, without_variance
from fmjax.objectives.grpo import DAPO, GRPO, GSPO, RLOO, DrGRPO
from fmjax.objectives.ppo import PPO, value_losses
from fmjax.objectives.surrogates import kl_estimates, log_ratios, surrogate
from fmjax.rewards.several import Graded

FIXTURE = json.loads((pathlib.Path(__file__).parents[1] / "oracles" / "policies.json").read_text())
DRAWN = {name: np.array(value) for name, value in FIXTURE["drawn"].items()}
MASK, ROWS = DRAWN["mask"], len(DRAWN["mask"])
REWARD = "fmjax.objectives.rewards:digits_of_prompt"
COMMON = dict(reward=REWARD, num_samples=2, max_new_tokens=MASK.shape[1])
OBJECTIVES = {
    "grpo": GRPO(clip_high=0.28, kl_weight=0.1, reference="reference", **COMMON),
    "dr_grpo": DrGRPO(clip_high=0.28, **COMMON), "dapo": DAPO(**COMMON),
    "gspo": GSPO(clip_low=0.03, clip_high=0.04, **COMMON), "rloo": RLOO(clip_high=0.28, **COMMON),
}  # fmt: skip
BATCH = {
    "loss_weights": MASK, "logprobs": DRAWN["kept"], "sampler_logprobs": DRAWN["kept"],
    "reference_logprobs": DRAWN["reference"], "advantages": DRAWN["advantages"], "rewarded": np.ones(ROWS),
    "rewards": np.ones(ROWS), "raw_rewards": np.ones(ROWS), "reward_parts": np.ones((ROWS, 1)),
    "parts_there": np.ones((ROWS, 1)), "ended": np.ones(ROWS),
    "no_variance": np.zeros(ROWS), "drawn_reward": np.zeros(ROWS),
}  # fmt: skip
BATCH = {name: jnp.asarray(value, jnp.float32) for name, value in BATCH.items()}


def saying(objective, monkeypatch):
    """Its sums as a function of the log-probabilities that the policy is to have."""
    monkeypatch.setattr(type(objective), "logprobs", lambda self, features, batch: features)
    monkeypatch.setattr(type(objective), "policy", lambda self, apply_fn, params: params)
    return lambda now, batch=BATCH: objective(None, now, batch, None, True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_those_of_trl(name, monkeypatch):
    sums = saying(OBJECTIVES[name], monkeypatch)
    loss = lambda now: jnp.divide(*sums(now)["loss"])
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(DRAWN["now"], jnp.float32))
    wanted = FIXTURE["trl"]["losses"][name]
    assert float(value) == pytest.approx(wanted["loss"], rel=1e-5)
    np.testing.assert_allclose(gradient * MASK, np.array(wanted["gradient"]) * MASK, atol=1e-6)


def test_replies_without_a_reward_change_nothing(monkeypatch):
    """Two more rows, which have none: every sum but their count is as before."""
    for objective in (OBJECTIVES["grpo"], OBJECTIVES["dr_grpo"], OBJECTIVES["dapo"]):
        sums = saying(objective, monkeypatch)
        more = {name: jnp.concatenate([value, value[:2]]) for name, value in BATCH.items()}
        for name in ("loss_weights", "rewarded"):
            more[name] = more[name].at[ROWS:].set(0.0)
        now = jnp.asarray(DRAWN["now"], jnp.float32)
        found, wanted = sums(jnp.concatenate([now, now[:2]]), more), sums(now)
        assert float(found.pop("reward_failures")[0]) == 2 and wanted.pop("reward_failures")
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, err_msg=name)


def test_generalised_advantages_and_the_surrogate_are_those_of_rlax():
    known = FIXTURE["rlax"]
    found = generalised_advantages(DRAWN["rewards"], DRAWN["values"], MASK, known["gamma"], known["lambda"])
    np.testing.assert_allclose(found, known["advantages"], atol=1e-12)
    losses, _ = surrogate((DRAWN["now"] - DRAWN["kept"]) * MASK, found, 0.2, 0.2)
    means = (losses * MASK).sum(axis=1) / MASK.sum(axis=1)
    np.testing.assert_allclose(means, known["surrogates"], rtol=1e-5)
    # Without values and discounts: the reward to go.
    to_go = generalised_advantages(DRAWN["rewards"], 0 * MASK, MASK, 1.0, 1.0)
    np.testing.assert_allclose(to_go, np.cumsum(DRAWN["rewards"][:, ::-1], axis=1)[:, ::-1] * MASK, atol=1e-12)


def test_group_advantages_by_hand():
    rewards, there = np.array([1.0, 2, 6, 0, 0, 3]), np.ones(6)
    np.testing.assert_allclose(group_advantages(rewards, there, 3), [-2, -1, 3, -1, -1, 2], rtol=1e-6)
    deviations = [np.std([1, 2, 6], ddof=1) + 1e-4, np.std([0, 0, 3], ddof=1) + 1e-4]
    scaled = group_advantages(rewards, there, 3, "mean", "group")
    np.testing.assert_allclose(scaled, np.array([-2, -1, 3, -1, -1, 2]) / np.repeat(deviations, 3), rtol=1e-6)
    # A reply without a reward is in no baseline; one alone has nothing to be measured by.
    there = np.array([1.0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(group_advantages(rewards, there, 3), [-0.5, 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(group_advantages(rewards, there, 3, "leave_one_out"), [-1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(without_variance(np.array([1.0, 1, 2, 1]), np.ones(4), 2), [1, 1, 0, 0])
    np.testing.assert_array_equal(without_variance(np.array([1.0, 2, 2, 1]), np.array([1.0, 0, 1, 1]), 2), [1, 1, 0, 0])


def test_estimates_of_kl_on_average():
    """Under the policy k1 and k3 have the mean KL, k3 is never below 0, and k2 is near for near policies."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 50)) * 0.1
    p, q = (np.exp(x) / np.exp(x).sum() for x in logits)
    exact = float(np.sum(p * np.log(p / q)))
    means = {kind: float(np.sum(p * kl_estimates(np.log(p), np.log(q), kind))) for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, rel=1e-4) == means["k3"]
    assert means["k2"] == pytest.approx(exact, rel=0.05)
    assert (kl_estimates(np.log(p), np.log(q), "k3") >= 0).all()


def test_the_reward_falls_towards_the_longest_reply_and_groups_that_differ_come_first():
    objective = DAPO(overlong_buffer=2, dynamic_sampling=2, reward=REWARD, num_samples=2, max_new_tokens=4)
    weights = (np.arange(4) < np.array([1, 2, 3, 4])[:, None]).astype(np.float32)
    np.testing.assert_allclose(objective._overlong({"rewards": np.zeros(4), "loss_weights": weights}), [0, 0, 0.5, 1])
    assert objective.num_prompts(8) == 8
    chosen = objective._chosen(np.repeat([1.0, 0, 1, 0, 1, 1], 2))
    np.testing.assert_array_equal(chosen, [0, 1, 2, 3, 6, 7])


def test_rewards_of_tokens_and_whitening_by_hand():
    mask = np.array([[0, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    logs, reference = np.full((2, 4), -1.0) * mask, np.full((2, 4), -1.5) * mask
    found = token_rewards(np.array([2.0, 3.0]), logs, reference, mask, np.array([0.1, 0.2]))
    np.testing.assert_allclose(found, [[0, -0.05, 1.95, 0], [-0.1, -0.1, -0.1, 2.9]], atol=1e-7)
    white = whitened(found, mask, 1)[mask > 0]
    assert white.mean() == pytest.approx(0, abs=1e-6) and white.var() == pytest.approx(1, abs=1e-6)
    apart = whitened(found, mask, 2)
    assert apart[0, 1:3].mean() == pytest.approx(0, abs=1e-6) and apart[1].var() == pytest.approx(1, abs=1e-6)
    assert whitened(found, mask, 0) is found and not apart[0, [0, 3]].any()


def test_values_are_clipped_around_those_that_were_kept():
    losses, cut = value_losses(np.array([0.5, 0.1, 2.0]), np.zeros(3), np.array([1.0, 0.2, 2.0]), 0.2)
    np.testing.assert_allclose(losses, [0.8**2 / 2, 0.1**2 / 2, 1.8**2 / 2], rtol=1e-5)
    np.testing.assert_array_equal(cut, [True, False, True])


@pytest.mark.parametrize("kl, change", [(4.4, 0.1), (0.0, -0.2), (40.0, 0.2)])
def test_beta_is_steered_by_a_whole_rollout_in_any_of_its_steps(kl, change):
    """So a step that is skipped, whose carry stays as it was, takes nothing from it."""
    ppo = PPO(reward=REWARD, rollout_steps=2, reference="x", kl_weight=0.1, kl_target=4.0, kl_horizon=100)
    count, mask = 10, np.ones((10, 2), np.float32)
    rows = {
        "loss_weights": mask, "logprobs": -mask, "reference_logprobs": -mask - kl / 2, "values": 0 * mask,
        "rewards": np.ones(count, np.float32), "rewarded": np.ones(count, np.float32),
        "beta": np.full(count, 0.1, np.float32),
    }  # fmt: skip
    found = ppo.complete(None, rows, 5)["next_beta"]
    assert found.dtype == np.float32 and found.shape == (count,)
    for step in (found[:5], found[5:]):
        carry = ppo.after(ppo.initial(None, None, None), Proposal(rows={"next_beta": jnp.asarray(step)}), None)
        assert float(carry["beta"]) == pytest.approx(0.1 * (1 + change * count / 100))


def test_ratios_that_overflow_are_bounded():
    kept, mask = np.full((2, 3), -90.0), np.ones((2, 3))
    for kind in ("token", "sequence", "product"):
        logs = log_ratios(jnp.zeros((2, 3)), kept, mask, kind)
        losses, _ = surrogate(logs, np.array([[0.0], [-1.0]]), 0.2, 0.2)
        assert np.isfinite(losses).all() and not losses[0].any() and (losses[1] > 1e8).all()
        assert np.isfinite(jax.grad(lambda now: surrogate(
            log_ratios(now, kept, mask, kind), np.array([[0.0], [1.0]]), 0.2, 0.2)[0].sum())(jnp.zeros((2, 3)))).all()


def test_what_is_taken_for_length_is_told_apart():
    """Groups are told apart by what a reward says, replies that did not end are counted and not learnt from."""
    objective = DAPO(reward=REWARD, num_samples=2, max_new_tokens=4, missing_eos_penalty=1.0, overlong_buffer=2)
    prompts = {"tokens": np.ones((2, 2), np.int32), "lengths": np.full(2, 2, np.int32)}
    reply = lambda length, finish: types.SimpleNamespace(tokens=[1] * length, logprobs=[-1.0] * length, finish=finish)
    replies = [reply(1, "stop"), reply(4, "length"), reply(2, "stop"), reply(3, "stop")]
    total = np.array([1.0, 1.0, 0.0, 1.0], np.float32)
    rows = objective.rows(prompts, replies, Graded(total, total[:, None], []))
    np.testing.assert_allclose(rows["rewards"], [1, -1, 0, 0.5])
    np.testing.assert_array_equal(rows["raw_rewards"], total)
    np.testing.assert_array_equal(rows["no_variance"], [1, 1, 0, 0])
    sums = lambda masked: dataclasses.replace(OBJECTIVES["dapo"], overlong_mask=masked)
    batch = BATCH | {"ended": jnp.zeros(ROWS).at[0].set(1.0)}
    with pytest.MonkeyPatch.context() as patch:
        now = jnp.asarray(DRAWN["now"], jnp.float32)
        whole, masked = (saying(sums(one), patch)(now, batch) for one in (False, True))
    assert float(masked["reply_tokens"][0]) == float(whole["reply_tokens"][0]) == MASK.sum()
    assert float(masked["ended"][0]) == 1 and float(masked["loss"][1]) == MASK[0].sum()


def test_texts_of_pretraining_that_nothing_reads_are_refused():
    row = {"tokens": np.zeros(4, np.int32), "lengths": np.int32(4), "ptx_tokens": np.zeros((1, 6), np.int32)}
    for objective in (OBJECTIVES["grpo"], PPO(**COMMON)):
        with pytest.raises(ConfigError, match="has texts beside the prompts, and objective .* reads none"):
            objective.collected(row)


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        (GRPO, dict(kl_weight=0.1), "no objective.reference to stay near to"),
        (GRPO, dict(kl_weight=0.1, reference="x", kl_estimator="k1"), "keeps the policy nowhere"),
        (GRPO, dict(aggregation="mean"), "sequence_mean"),
        (GRPO, dict(num_samples=1), "num_samples = 1 must be at least 2"),
        (DAPO, dict(overlong_buffer=99), "overlong_buffer = 99: expected 0 to max_new_tokens"),
        (PPO, dict(kl_target=1.0), "all have to be above 0"),
        (PPO, dict(whiten="all"), "rollout"),
        (GRPO, dict(rewards={"a": {"verifier": "maths"}}), "set one of them"),
    ],
)
def test_what_cannot_be_is_refused(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        kind(**COMMON | fields)
