"""Rotated models compute what they did, and have no channels larger than others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.compress.rotation import Rotate, rotation
from fmjax.compress.rounding import Int4
from fmjax.errors import InputError
from fmjax.layers.weights import in_dtype
from tests.small_models import random_model, stirred

SIZES = {"num_layers": 2, "hidden_size": 24, "num_heads": 4, "vocab_size": 32, "max_length": 16}
LLAMA = {"name": "llama", **SIZES, "intermediate_size": 32, "num_kv_heads": 2, "head_dim": 4}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "tie_embeddings": True}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 9), np.int32)


@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
def test_rotations_are_orthogonal(kind):
    turn = rotation(24, kind, 0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(24), atol=1e-12)
    assert np.abs(turn - rotation(24, kind, 1)).max() > 0.1
    if kind == "hadamard":
        np.testing.assert_allclose(np.abs(rotation(16, kind, 0)), 0.25)


@pytest.mark.parametrize(
    "section", [{**LLAMA, **BIASED}, {**LLAMA, "name": "qwen3", "tie_embeddings": False}], ids=["tied", "qwen3"]
)
def test_logits_stay_and_large_channels_do_not(section):
    model = random_model(section)
    params = stirred(model.params)
    params["token_embedding"] = {"embedding": params["token_embedding"]["embedding"].at[:, 5].multiply(30)}
    model = dataclasses.replace(model, params=params)
    turned = Rotate().compress(model)
    assert turned.module.tie_embeddings is False and turned.config["model"]["tie_embeddings"] is False
    before, after = model.apply(TOKENS), turned.apply(TOKENS)
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max() + 1e-4)
    peaks = lambda m: np.abs(m.params["token_embedding"]["embedding"]).max(0)  # noqa: E731
    assert peaks(model).max() > 20 * np.median(peaks(model)) and peaks(turned).max() < 4 * np.median(peaks(turned))
    # Values turned, and what reads them turned back: heads of another model.
    values = lambda m: np.asarray(m.params["stack"]["blocks"]["attention"]["value"]["kernel"])  # noqa: E731
    assert np.abs(values(turned) - values(Rotate(heads=False).compress(model))).max() > 0.1


@pytest.fixture(scope="module")
def tied():
    model = random_model({**LLAMA, "tie_embeddings": True})
    return dataclasses.replace(model, params=stirred(model.params))


def test_a_rotated_model_is_saved_loaded_and_quantized(tied, tmp_path):
    turned = Rotate().compress(tied)
    turned.save(tmp_path / "turned")
    loaded = fmjax.load(tmp_path / "turned")
    np.testing.assert_array_equal(loaded.apply(TOKENS), turned.apply(TOKENS))
    few, again = (Int4(block=8).compress(model) for model in (turned, loaded))
    again.save(tmp_path / "few")
    kept = fmjax.load(tmp_path / "few")
    assert kept.config["compression"]["after"]["method"] == "rotate"
    jax.tree.map(np.testing.assert_array_equal, kept.params, few.params)
    np.testing.assert_array_equal(kept.apply(TOKENS), few.apply(TOKENS))
    assert 0 < np.abs(few.apply(TOKENS) - turned.apply(TOKENS)).max()


def test_arrays_keep_their_dtype_and_are_rounded_once(tied):
    half = dataclasses.replace(tied, params=in_dtype(tied.params, "bfloat16"), kept={})
    whole = dataclasses.replace(half, params=in_dtype(half.params, "float32"), kept={})
    found, expected = (Rotate().compress(model).params for model in (half, whole))
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(*map(jax.tree.leaves, (found, expected))):
        np.testing.assert_allclose(np.float32(a), b, rtol=2**-8, atol=1e-6)


def test_what_does_not_commute_with_a_rotation_is_refused():
    for section, message in (
        ({"name": "gpt", **SIZES}, "it has LayerNorm"),
        ({**LLAMA, "name": "gemma3"}, "its norms are placed 'sandwich'"),
        (
            {"name": "resnet", "depths": (1,), "widths": (8,), "image_size": 8, "num_channels": 1, "num_classes": 2},
            "is no decoder with an embedding, a stack and a head",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Rotate().compress(random_model(section))
