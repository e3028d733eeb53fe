"""Logits, loss and every gradient against PyTorch's `transformers` classes, on stored random weights.

make_transformer_fixtures.py wrote the fixtures; they name the versions that computed them.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.objectives.causal_lm import CausalLM

HERE = pathlib.Path(__file__).parent
SIZES = dict(num_layers=2, hidden_size=16, intermediate_size=24, vocab_size=29)
MODULES = {
    "gpt2": GPT(**SIZES, num_heads=2, max_length=16),
    "llama": Llama(**SIZES, num_heads=4, max_length=32),
    "mistral": Llama(
        **SIZES, num_heads=4, num_kv_heads=2, head_dim=6, max_length=32, window=5, rope_theta=500.0, tie_embeddings=True
    ),
}


def gpt2(weights):
    def layer(name):
        return np.stack([weights[f"transformer.h.{i}.{name}"] for i in range(2)])

    def linear(name):
        return {"kernel": layer(f"{name}.weight"), "bias": layer(f"{name}.bias")}

    def norm(name):
        return {"scale": layer(f"{name}.weight"), "bias": layer(f"{name}.bias")}

    joint = linear("attn.c_attn")  # query, key and value side by side; GPT-2 stores kernels as [in, out]
    split = [dict(zip(joint, parts)) for parts in zip(*(np.split(x, 3, axis=-1) for x in joint.values()))]
    attention = dict(zip(("query", "key", "value"), split)) | {"out": linear("attn.c_proj")}
    blocks = {"attention": attention, "mlp": {"up": linear("mlp.c_fc"), "down": linear("mlp.c_proj")}}
    blocks |= {"attention_norm": norm("ln_1"), "mlp_norm": norm("ln_2")}
    final = {"scale": weights["transformer.ln_f.weight"], "bias": weights["transformer.ln_f.bias"]}
    return {
        "token_embedding": {"embedding": weights["transformer.wte.weight"]},
        "position_embedding": {"embedding": weights["transformer.wpe.weight"]},
        "stack": {"blocks": blocks, "final_norm": final},
    }


def llama(weights):
    def layer(name):
        return np.stack([weights[f"model.layers.{i}.{name}.weight"] for i in range(2)])

    def linear(name):
        return {"kernel": layer(name).swapaxes(1, 2)}  # PyTorch's Linear stores [out, in]

    attention = {
        mine: linear(f"self_attn.{theirs}_proj") for mine, theirs in zip(("query", "key", "value", "out"), "qkvo")
    }
    blocks = {"attention": attention, "mlp": {name: linear(f"mlp.{name}_proj") for name in ("gate", "up", "down")}}
    blocks |= {"attention_norm": {"scale": layer("input_layernorm")}}
    blocks |= {"mlp_norm": {"scale": layer("post_attention_layernorm")}}
    params = {
        "token_embedding": {"embedding": weights["model.embed_tokens.weight"]},
        "stack": {"blocks": blocks, "final_norm": {"scale": weights["model.norm.weight"]}},
    }
    if "lm_head.weight" in weights:
        params["head"] = weights["lm_head.weight"].T
    return params


@pytest.mark.parametrize("name", MODULES)
def test_logits_loss_and_gradients(name):
    with np.load(HERE / f"{name}.npz") as stored:
        fixture = dict(stored)
    convert = gpt2 if name == "gpt2" else llama
    params, gradients = (
        convert({key.removeprefix(kind): value for key, value in fixture.items() if key.startswith(kind)})
        for kind in ("weight/", "gradient/")
    )
    module, tokens = MODULES[name], jnp.asarray(fixture["tokens"])
    logits = jax.jit(lambda p: module.apply({"params": p}, tokens))(params)
    np.testing.assert_allclose(logits, fixture["logits"], atol=3e-5)
    batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], loss_weights=jnp.ones((2, 13)))

    def loss(params):
        value, weight = CausalLM(chunk_size=5)(module.apply, params, batch, None, True)["loss"]
        return value / weight

    found, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), grads, gradients)


def test_the_window_of_the_fixture_matters():
    """Mistral's window is shorter than the sequence, so leaving it out must show."""
    with np.load(HERE / "mistral.npz") as stored:
        weights = {key.removeprefix("weight/"): stored[key] for key in stored if key.startswith("weight/")}
        tokens, expected = stored["tokens"], stored["logits"]
    logits = MODULES["mistral"].clone(window=None).apply({"params": llama(weights)}, jnp.asarray(tokens))
    assert abs(logits[:, :5] - expected[:, :5]).max() < 1e-4 < 0.1 < abs(logits[:, 5:] - expected[:, 5:]).max()
