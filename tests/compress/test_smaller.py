"""Heads and layers taken out: those that matter least, and the module says how many are left."""

import dataclasses

import jax
import numpy as np
import pytest

import fmjax
from fmjax.compress.smaller import Heads, Layers
from fmjax.errors import InputError
from tests.small_models import byte_model, random_model, stirred
from tests.two_towers import MODEL as TOWERS

LLAMA = {
    "name": "llama", "num_layers": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 8, "num_kv_heads": 4,
    "vocab_size": 32, "max_length": 16, "qkv_bias": True,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 32, (6, 9), np.int32)
CALIBRATION = {"tokens": TOKENS}


def model_of(section):
    model = random_model(section)
    return dataclasses.replace(model, params=stirred(model.params))


def changed(model, path, function):
    """The model with a leaf of its blocks changed; path: "attention/out/kernel"."""
    place = ("params", "stack", "blocks", *path.split("/"))
    is_it = lambda at: tuple(str(getattr(k, "key", k)) for k in at)[-len(place) + 1 :] == place[1:]  # noqa: E731
    params = jax.tree_util.tree_map_with_path(lambda at, x: function(x) if is_it(at) else x, model.params)
    return dataclasses.replace(model, params=params, kept={})


def test_heads_that_add_nothing_go_and_nothing_changes(tmp_path):
    """In each layer another group of two heads reads nothing out of its values."""
    model = model_of(LLAMA)
    silent = (2, 0, 3)

    def silenced(kernel):  # [3, 8 * 2, 16]
        for layer, group in enumerate(silent):
            kernel = kernel.at[layer, 4 * group : 4 * group + 4].set(0)
        return kernel

    model = changed(model, "attention/out/kernel", silenced)
    expected = model.apply(TOKENS)
    fewer = Heads(rows_at_once=4).compress(model, CALIBRATION)
    assert (fewer.module.num_heads, fewer.module.num_kv_heads, fewer.module.head_dim) == (6, 3, 2)
    assert fewer.config["compression"]["heads"] == {"stack": [[group] for group in silent]}
    assert fewer.params["stack"]["blocks"]["attention"]["query"]["bias"].shape == (3, 12)
    np.testing.assert_allclose(fewer.apply(TOKENS), expected, atol=1e-5)
    fewer.save(tmp_path / "fewer")
    np.testing.assert_array_equal(fmjax.load(tmp_path / "fewer").apply(TOKENS), fewer.apply(TOKENS))


def test_heads_removed_are_heads_zeroed():
    model = model_of(LLAMA)
    gone = Heads(share=0.5).compress(model, CALIBRATION)
    zero = Heads(share=0.5, remove=False).compress(model, CALIBRATION)
    assert gone.module.num_heads == 4 and zero.module == model.module
    np.testing.assert_allclose(gone.apply(TOKENS), zero.apply(TOKENS), atol=1e-5)
    rows = np.asarray(zero.params["stack"]["blocks"]["attention"]["out"]["kernel"]).reshape(3, 4, 4, 16)
    assert ((rows == 0).all((2, 3)).sum(1) == 2).all()
    assert np.abs(np.asarray(zero.apply(TOKENS)) - np.asarray(model.apply(TOKENS))).max() > 1e-3


def test_heads_of_towers_go_too():
    drawn = np.random.default_rng(1)
    batch = {
        "images": drawn.normal(size=(4, 8, 8, 1)).astype(np.float32), "tokens": drawn.integers(0, 250, (4, 7), np.int32)
    }
    fewer = Heads(share=0.5).compress(TOWERS, batch)
    assert (fewer.module.vision.num_heads, fewer.module.text.num_heads) == (1, 1)
    assert fewer.config["model"]["vision"]["head_dim"] == 8 and TOWERS.config["model"]["vision"].get("head_dim") is None
    zero = Heads(share=0.5, remove=False).compress(TOWERS, batch)
    for name, array in zero.apply(**batch).items():
        np.testing.assert_allclose(fewer.apply(**batch)[name], array, atol=1e-5)


def test_shares_that_are_no_heads_are_refused():
    for share, message in ((0.1, "is 0 of 4 groups of 2 heads, which go together"), (0.9, "is 4 of 4 groups")):
        with pytest.raises(InputError, match=message):
            Heads(share=share).compress(model_of(LLAMA), CALIBRATION)


def test_the_layer_that_does_nothing_goes_and_nothing_changes(tmp_path):
    model = model_of(LLAMA)
    for path in ("attention/out/kernel", "mlp/down/kernel"):
        model = changed(model, path, lambda x: x.at[1].set(0))
    expected = model.apply(TOKENS)
    fewer = Layers().compress(model, CALIBRATION)
    told = fewer.config["compression"]
    assert fewer.module.num_layers == 2 and told["drop"] == [1] and told["influence"][1] < 1e-6 < told["influence"][0]
    np.testing.assert_allclose(fewer.apply(TOKENS), expected, atol=1e-5)
    named = Layers(drop=(1,)).compress(model, CALIBRATION)
    jax.tree.map(np.testing.assert_array_equal, named.params, fewer.params)
    fewer.save(tmp_path / "fewer")
    assert fmjax.load(tmp_path / "fewer").module.num_layers == 2


def test_layers_that_cannot_go_are_refused_by_name():
    model = model_of(LLAMA)
    for options, message in (
        ({"drop": (3,)}, "has the layers 0 to 2, and no 3"),
        ({"number": 3}, "3 layers, all of which would go"),
        ({"stack": "stak"}, "has no stack 'stak'; did you mean 'stack'"),
    ):
        with pytest.raises(InputError, match=message):
            Layers(**options).compress(model, CALIBRATION)
    windows = model_of({**LLAMA, "window": 4, "layer_pattern": ("local", "global")})
    with pytest.raises(InputError, match="another window or rotary embedding"):
        Layers(drop=(0,)).compress(windows, CALIBRATION)
    with pytest.raises(InputError, match="has the stacks vision/stack, text/stack; say which"):
        Layers().compress(TOWERS, {"images": np.zeros((1, 8, 8, 1), np.float32), "tokens": np.zeros((1, 7), np.int32)})
    few = fmjax.compress.METHODS.get("int8")().compress(byte_model())
    with pytest.raises(InputError, match="is of int8 already"):
        Layers().compress(few, CALIBRATION)
