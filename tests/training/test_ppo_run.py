"""A run of PPO from a policy, which is its reference too, and a reward model: what its first step says, and what is
loaded of it."""

import json
import pathlib

import jax
import numpy as np
import pytest
from small_models import byte_model, random_model

import fmjax
from fmjax import config as configs
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import ConfigError
from fmjax.models.gpt import GPT
from fmjax.training.loop import train

pytestmark = pytest.mark.usefixtures("one_device")
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "ppo_tiny.py"


def test_a_run_begins_with_what_it_is_given_and_is_a_policy(tmp_path):
    policy = byte_model(ByteTokenizer({"default": TURNS}), max_length=96)
    section = {**policy.config["model"], "vocab_size": policy.module.vocab_size}
    taste = random_model({"name": "reward", "decoder": section}, ByteTokenizer({"default": TURNS}))
    policy.save(tmp_path / "policy")
    taste.save(tmp_path / "taste")
    raw = configs.load_config_file(f"{CONFIG}:{tmp_path / 'policy'}+{tmp_path / 'taste'}")
    raw["model"] = {"name": "actor_critic", "policy": section, "value": {"name": "reward", "decoder": section}}
    raw["train"] |= {"steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "eval_every": 0}
    raw["train"] |= {"tensorboard": False, "eval_batches": 1}
    raw["objective"] |= {"kl_weight": 0.05, "kl_target": 1.0, "kl_horizon": 16}
    raw["objective"] |= {"max_new_tokens": 6, "decode_rows": 8}
    config = configs.resolve(raw)
    train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = {row["step"]: row for row in rows if "train/loss" in row}
    for step in (1, 3):  # the parameters are those that drew the rollout
        assert rows[step]["train/logprob_difference"] == 0 == rows[step]["train/clip_fraction"]
        assert rows[step]["train/ratio"] == pytest.approx(1) and rows[step]["train/sampler_difference"] < 1e-5
    assert abs(rows[1]["train/kl"]) < 1e-5 < abs(rows[3]["train/kl"]) and rows[2]["train/ratio"] != 1
    assert rows[1]["train/beta"] == rows[2]["train/beta"] == pytest.approx(0.05)
    assert rows[3]["train/beta"] == pytest.approx(0.05 * 0.8, rel=1e-5)  # far below the target: less of it
    assert 2 < rows[1]["train/ptx_loss"] and np.isfinite([row["train/value_loss"] for row in rows.values()]).all()
    made = fmjax.load(tmp_path / "run")
    assert isinstance(made.module, GPT) and made.config["model"]["name"] == "gpt" and made.eos_ids == (257,)
    before, after = (jax.tree.leaves(model.params) for model in (policy, made))
    assert all(np.shape(a) == np.shape(b) for a, b in zip(before, after))
    moved = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(before, after))
    assert 0 < moved < 0.01
    assert len(made.generate(["a"], max_new_tokens=3)) == 1
    raw["train"] |= {"init_parts": (str(tmp_path / "policy"),)}
    with pytest.raises(ConfigError, match="for model.policy, which begins with another model"):
        train(configs.resolve(raw), tmp_path / "twice", cache_dir=tmp_path / "cache", progress=False)
