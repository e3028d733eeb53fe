"""Learned prefixes and prompts: PEFT's logits, packed documents, decoding with a cache, and what trains."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.adapt.prefix import PrefixTuning, PromptTuning
from fmjax.assemble import build_module
from fmjax.checkpoint_files import save_params
from fmjax.errors import ConfigError, InputError
from fmjax.models.prompted import prompt_as_prefix
from fmjax.parallel.sharding import to_global
from fmjax.training.program import make_program

sys.path.append(str(pathlib.Path(__file__).parents[1] / "interop"))
import folders  # noqa: E402


@pytest.fixture(scope="module")
def oracle():
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / "prefix.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return fmjax.load(folders.published(tmp_path_factory.mktemp("prefix") / "base", "llama"))


def learned(base, oracle, name: str):
    """The base's parameters with what PEFT learned."""
    embedding = jnp.asarray(oracle[f"{name}/embedding"])
    if name == "prompt":
        return {**base.params, "prompt": {"embedding": embedding}}
    # PEFT: [N, layers * 2 * K * D], each layer's keys and then its values
    layers = embedding.reshape(len(embedding), base.module.num_layers, 2, -1).transpose(2, 1, 0, 3)
    params = PrefixTuning(3).attach(base.params, jax.random.key(0))
    params["stack"]["blocks"]["attention"]["prefix"] = dict(zip(("key", "value"), layers))
    return params


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_logits_are_those_of_peft_packed_or_not_and_decoding_agrees(name, base, oracle):
    params, tokens, logits = learned(base, oracle, name), oracle["tokens"], oracle[f"{name}/logits"]
    apply = jax.jit(lambda tokens, ids=None: base.module.apply({"params": params}, tokens, ids))
    np.testing.assert_allclose(apply(tokens), logits, atol=2e-4)
    assert np.abs(base.apply(tokens) - logits).max() > 0.05
    packed = np.concatenate([tokens[0], tokens[1], [0, 0]])[None]
    ids = np.repeat([1, 2, 0], [9, 9, 2])[None]
    np.testing.assert_allclose(apply(packed, ids)[0, :18].reshape(2, 9, -1), logits, atol=2e-4)
    model = dataclasses.replace(base, params=prompt_as_prefix(base.module, params), kept={})
    prompt = tokens[0, :4].tolist()
    drawn = model.complete([prompt], max_new_tokens=5, temperature=0)[0].tokens
    row = np.zeros((1, 9), np.int64)
    row[0, : 4 + len(drawn)] = [*prompt, *drawn]
    expected = np.asarray(apply(row))[0].argmax(-1)[3 : 3 + len(drawn)]
    assert list(drawn) == expected.tolist()


SIZES = {
    "num_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "vocab_size": 64, "max_length": 16,
}  # fmt: skip


@pytest.mark.parametrize("name, size", [("prefix", 2 * 2 * 3 * 16), ("prompt", 3 * 16)])
def test_the_beginning_alone_trains(name, size):
    config = configs.resolve({
        "train": {"steps": 2, "batch_size": 2},
        "model": {"name": "llama", **SIZES},
        "weights": {"name": name, "length": 3},
        "objective": {"name": "causal_lm"},
        "data": {"sequence_length": 16, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 0.1},
    })  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 64, (2, 17)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": np.ones((2, 16), np.float32)}
    row = {key: x[0] for key, x in batch.items()}
    program = make_program(config, build_module(config, {}), row, jax.devices()[:1])
    state, losses = program.init(), []
    begun = jax.device_get(state.params)
    for _ in range(2):
        state, metrics = program.train_step(state, to_global(batch, [0, 1], program.batch_spec), program.key)
        losses.append(float(metrics["loss"]))
    assert losses[1] < losses[0]
    assert 0 <= sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) - 8 * size <= 16
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), begun, jax.device_get(state.params))
    moved = [path for path, one in jax.tree_util.tree_flatten_with_path(changed)[0] if one]
    assert moved and all(f"'{name}'" in jax.tree_util.keystr(path) for path in moved)


def test_a_run_of_prompt_tuning_loads_with_its_prompt_and_is_no_published_model(base, oracle, tmp_path):
    save_params(tmp_path / "run", learned(base, oracle, "prompt"))
    config = {"model": base.config["model"], "weights": {"name": "prompt", "length": 3}, "train": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    model = fmjax.load(tmp_path / "run")
    np.testing.assert_allclose(model.apply(oracle["tokens"]), oracle["prompt/logits"], atol=2e-4)
    with pytest.raises(InputError, match="prefix/key' has no published name"):
        model.save(tmp_path / "hf", format="hf")


def test_what_cannot_begin_so_is_refused():
    params = {"token_embedding": {"embedding": jnp.ones((4, 2))}, "stack": {"blocks": {}}}
    with pytest.raises(ConfigError, match="weights.length = 5 is more than the 4 tokens"):
        PromptTuning(5).attach(params, jax.random.key(0))
    with pytest.raises(ConfigError, match="weights.name = 'prefix' is for decoders .* here they have 'dense'"):
        PrefixTuning(5).attach({"dense": {}}, jax.random.key(0))
