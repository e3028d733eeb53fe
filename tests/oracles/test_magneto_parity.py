"""Magneto's decoder and encoder against the code of the paper's authors, TorchScale: logits and every gradient.

make_magneto_fixtures.py wrote the fixtures; they name the versions that computed them.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.models.magneto import Magneto, MagnetoEncoder

HERE = pathlib.Path(__file__).parent
SIZES = dict(num_layers=2, hidden_size=16, intermediate_size=24, num_heads=2, vocab_size=23, max_length=16)
PARTS = {
    "attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm",
    "attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj", "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj", "attention/inner_norm": "self_attn.inner_attn_ln",
    "mlp/up": "ffn.fc1", "mlp/down": "ffn.fc2", "mlp/inner_norm": "ffn.ffn_layernorm",
}  # fmt: skip


def convert(weights):
    def part(name):
        weight, bias = (
            np.stack([weights[f"layers.{i}.{name}.{kind}"] for i in range(2)]) for kind in ("weight", "bias")
        )
        kernel = {"scale": weight} if weight.ndim == 2 else {"kernel": weight.swapaxes(1, 2)}
        return kernel | {"bias": bias}

    blocks = {}
    for mine, theirs in PARTS.items():
        half, _, name = mine.rpartition("/")
        (blocks.setdefault(half, {}) if half else blocks)[name] = part(theirs)
    return {
        "token_embedding": {"embedding": weights["embed_tokens.weight"]},
        "position_embedding": {"embedding": weights["embed_positions.weight"][2:]},  # its first position is number 2
        "stack": {
            "blocks": blocks,
            "final_norm": {"scale": weights["layer_norm.weight"], "bias": weights["layer_norm.bias"]},
        },
    }


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_logits_and_gradients(side):
    with np.load(HERE / f"magneto_{side}.npz") as stored:
        fixture = dict(stored)
    params, gradients = (
        convert({key.removeprefix(kind): value for key, value in fixture.items() if key.startswith(kind)})
        for kind in ("weight/", "gradient/")
    )
    module = Magneto(**SIZES)
    if side == "encoder":
        module = MagnetoEncoder(**SIZES)
        params["head_bias"] = np.zeros(23, np.float32)

    def product(params):
        logits = module.apply({"params": params}, jnp.asarray(fixture["tokens"]))
        return jnp.sum(logits * fixture["target"]), logits

    grads, logits = jax.jit(jax.grad(product, has_aux=True))(params)
    np.testing.assert_allclose(logits, fixture["logits"], atol=1e-4)
    grads.pop("head_bias", None)
    # Weight, width and number of layers make them large; what matters is their size relative to the largest.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * abs(b).max() + 2e-5), grads, gradients)
