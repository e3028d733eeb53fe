"""Draft heads: their loss against numpy, and a run whose heads draft for the model that they were trained on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import byte_model

import fmjax
from fmjax import config as configs
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import ConfigError
from fmjax.models.draft_heads import DraftHeads
from fmjax.objectives.base import OtherModel
from fmjax.objectives.medusa import Medusa, further
from fmjax.training.loop import train


class Fixed:
    """A base whose last layer's output is its parameters, and whose head is a fixed matrix."""

    hidden_size = 5
    head = np.random.default_rng(9).normal(size=(5, 7)).astype(np.float32)

    @classmethod
    def apply(cls, variables, method, **inputs):
        return variables["params"], {"kernel": jnp.asarray(cls.head)}


def test_the_loss_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    module = DraftHeads(2, 5)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    hidden = draw(2, 6, 5)
    params = {f"heads_{i}": {"kernel": draw(5, 5), "bias": draw(5)} for i in range(2)}
    batch = {
        "tokens": rng.integers(0, 7, (2, 6)), "targets": rng.integers(0, 7, (2, 6)),
        "segment_ids": np.array([[1, 1, 1, 2, 2, 2], [1] * 4 + [0] * 2]),
        "loss_weights": np.array([[1, 1, 1, 1, 1, 0.5], [1, 2, 1, 1, 0, 0]], np.float32),
    }  # fmt: skip
    models = {"base": OtherModel(Fixed, jnp.asarray(hidden))}
    objective = Medusa(base="somewhere", decay=0.7)
    loss, correct, weight = 0.0, np.zeros(2), np.zeros(2)
    for i in range(2):
        x = hidden @ params[f"heads_{i}"]["kernel"] + params[f"heads_{i}"]["bias"]
        logits = (hidden + x / (1 + np.exp(-x))) @ Fixed.head
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for row in range(2):
            for at in range(6 - i - 1):
                ahead = at + i + 1
                if batch["segment_ids"][row, at] == batch["segment_ids"][row, ahead]:
                    w, target = batch["loss_weights"][row, ahead], batch["targets"][row, ahead]
                    loss -= 0.7 ** (i + 1) * w * logp[row, at, target]
                    correct[i] += w * (logp[row, at].argmax() == target)
                    weight[i] += w
    for training in (True, False):
        sums = objective(module.apply, params, batch, None, training, models=models)
        np.testing.assert_allclose(sums["loss"], (loss, batch["loss_weights"].sum()), rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy_1"], (correct[0], weight[0]), rtol=1e-6)
    np.testing.assert_allclose(sums["accuracy_2"], (correct[1], weight[1]), rtol=1e-6)
    targets, weights = further(batch, 2)
    assert targets.shape == weights.shape == (2, 2, 6)


def test_heads_begin_as_the_models_own_next_token():
    module = DraftHeads(3, 5)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    hidden = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    drafted = module.apply({"params": params}, hidden, method="drafted")
    np.testing.assert_array_equal(drafted, np.repeat(hidden[:, None], 3, axis=1))


def config_for(base):
    return configs.resolve({
        "train": {"steps": 20, "batch_size": 8, "log_every": 10, "eval_every": -1},
        "mesh": {"data": 1},
        "model": {"name": "draft_heads", "num_heads": 2, "hidden_size": 16},
        "objective": {"name": "medusa", "base": str(base)},
        "data": {"source": str(base.parent / "text.txt"), "sequence_length": 32, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 3e-2},
    })  # fmt: skip


def test_a_run_of_heads_drafts_for_its_base(tmp_path, one_device):
    (tmp_path / "text.txt").write_text("A rose is a rose is a rose.\n" * 200)
    base = byte_model(ByteTokenizer())
    base.save(tmp_path / "base")
    with pytest.raises(ConfigError, match="last layer of 16 numbers.*model.hidden_size = 16"):
        Medusa(base="x").check_models(DraftHeads(2, 8), {"base": base})
    train(config_for(tmp_path / "base"), tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]
    heads = fmjax.load(tmp_path / "run")
    assert sum(x.size for x in jax.tree.leaves(heads.params)) == 2 * (16 * 16 + 16)
    assert "score" not in heads.abilities and "complete" not in heads.abilities
    plain = base.complete(["A rose", "is"], max_new_tokens=20, seed=3)
    found = base.complete(["A rose", "is"], max_new_tokens=20, seed=3, draft=heads)
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert all(one.acceptance.proposed == 2 * (one.acceptance.passes - 1) for one in found)


def test_fields_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="objective.base is empty"):
        Medusa()
    with pytest.raises(ConfigError, match="decay"):
        Medusa(base="x", decay=0.0)
