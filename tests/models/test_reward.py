"""Reward models: the loss against trl and in numpy, the score at a text's end, a decoder to begin with, the ability."""

import itertools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import byte_model

import fmjax
from fmjax import config as configs
from fmjax.data.chats.arithmetic import rankings
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import ConfigError, InputError
from fmjax.load import Model
from fmjax.models.llama import Llama
from fmjax.models.reward import RewardModel
from fmjax.objectives.ranking import Ranking
from fmjax.training.loop import train
from tests.quick_keys import quick_key

ROOT = pathlib.Path(__file__).parents[2]
FIXTURE = json.loads((ROOT / "tests" / "oracles" / "preferences.json").read_text())


def loss_of(objective, scores, batch) -> float:
    total, weight = objective.sums(jnp.asarray(scores, jnp.float32), batch)["loss"]
    return float(total / weight)


def judged(scores, weights=None, margins=None):
    scores = jnp.asarray(scores, jnp.float32)
    weights = jnp.ones_like(scores) if weights is None else jnp.asarray(weights, jnp.float32)
    margins = jnp.zeros(len(scores)) if margins is None else jnp.asarray(margins, jnp.float32)
    return {"scores": scores, "answer_weights": weights, "margins": margins}


def test_pairs_are_trls():
    scores = np.array(FIXTURE["scores"]).reshape(2, 4).T
    pairs = np.tile([1.0, 0.0], (4, 1))
    assert loss_of(Ranking(center=0.01), scores, judged(pairs)) == pytest.approx(FIXTURE["losses"]["reward"], rel=1e-5)
    batch = judged(pairs, margins=FIXTURE["margins"])
    assert loss_of(Ranking(center=0.01), scores, batch) == pytest.approx(FIXTURE["losses"]["reward_margin"], rel=1e-5)


def test_k_answers_are_all_their_pairs():
    """Equation 1 of InstructGPT, its gradient the same whatever is added to the scores of a prompt."""
    rng = np.random.default_rng(0)
    scores, ranks = rng.normal(size=(3, 5)), np.stack([rng.permutation(5) for _ in range(3)])
    expected = np.mean([
        [np.log1p(np.exp(scores[row, worse] - scores[row, better]))
         for better, worse in itertools.permutations(range(5), 2) if ranks[row, better] > ranks[row, worse]]
        for row in range(3)
    ])  # fmt: skip
    assert loss_of(Ranking(), scores, judged(ranks)) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(lambda x: Ranking().sums(x, judged(ranks))["loss"][0])
    shifted = scores + rng.normal(size=(3, 1))
    np.testing.assert_allclose(gradient(jnp.asarray(scores)), gradient(jnp.asarray(shifted)), atol=1e-5)
    np.testing.assert_allclose(gradient(jnp.asarray(scores)).sum(axis=1), 0, atol=1e-6)


def test_a_score_is_read_at_the_end_of_a_text():
    decoder = byte_model().module
    module = RewardModel(decoder, offset=0.5)
    tokens = np.random.default_rng(0).integers(0, 256, (3, 16)).astype(np.int32)
    there = (np.arange(16) < np.array([[16], [5], [9]])).astype(np.int32)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), tokens[:1])["params"])
    apply = jax.jit(lambda tokens, there: module.apply({"params": params}, tokens, there))
    found = apply(tokens, there)
    hidden = decoder.apply({"params": params["decoder"]}, tokens, there, method="hidden")
    last = np.asarray(hidden)[np.arange(3), [15, 4, 8]]
    np.testing.assert_allclose(found, last @ np.asarray(params["head"]["kernel"])[:, 0] + 0.5, atol=1e-5)
    np.testing.assert_allclose(apply(np.where(there, tokens, 7), there), found, atol=1e-6)  # padding is not read
    with pytest.raises(ConfigError, match="model.decoder = Dense has no method hidden"):
        RewardModel(nn.Dense(3))


def test_the_tiny_config_begins_with_a_decoder_and_its_run_scores_replies(tmp_path):
    tokenizer = ByteTokenizer({"default": TURNS})
    sizes = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 2}
    sizes |= {"max_length": 64, "tie_embeddings": False}
    module = Llama(**sizes, vocab_size=258)
    params = jax.jit(module.init)(quick_key(1), np.zeros((1, 4), np.int32))["params"]
    decoder = Model(module, nn.unbox(params), {"model": {"name": "llama", **sizes}}, tokenizer)
    decoder.save(tmp_path / "decoder")
    raw = configs.load_config_file(f"{ROOT / 'configs' / 'reward_tiny.py'}:{tmp_path / 'decoder'}")
    overrides = {"train.steps": "6", "train.batch_size": "8", "train.tensorboard": "False", "train.eval_batches": "2"}
    overrides |= {f"model.decoder.{name}": str(value) for name, value in sizes.items()}
    overrides |= {"optimizer.learning_rate": "1e-30", "data.source": str(tmp_path / "a.jsonl")}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rankings(80)))
    config = configs.resolve(configs.apply_overrides(raw, overrides))
    metrics = train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    assert 0 <= metrics["eval/accuracy"] <= 1 and np.isfinite(metrics["eval/loss"])
    model = fmjax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, model.params["decoder"], nn.unbox(params))
    pairs = [("What is 3 + 4?", "7."), ([{"role": "user", "content": "Hi"}], "Hello, hello, hello."), ("a", "b")]
    found = model.can("reward")(pairs)
    assert len(set(found)) == 3
    ids = model.encode_chat([{"role": "user", "content": "a"}]) + [ord("b"), 257]
    assert found[2] == pytest.approx(float(model.module.apply({"params": model.params}, np.array([ids]))[0]), abs=1e-5)
    with pytest.raises(InputError, match=r"pair 0 must be \(prompt, reply\)"):
        model.can("reward")(["a"])
    with pytest.raises(InputError, match="more than the model's context of 64"):
        model.can("reward")([("a" * 80, "b")])
    with pytest.raises(InputError, match="it gives a text no one number"):
        decoder.can("reward")
