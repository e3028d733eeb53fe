"""DALL-E 2's prior: what diffusers' class computes, its gradients, and a folder written back.

make_prior_fixture.py wrote the fixture.
"""

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity import published_names
from test_unet import check_written, write

import fmjax
from fmjax.errors import ConfigError, InputError
from fmjax.interop.family import publish
from fmjax.models.prior_transformer import PriorTransformer
from tests.quick_keys import quick_key


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model)."""
    fixture, folder, _ = write(tmp_path_factory.mktemp("published"), "prior_transformer")
    # As it was saved: what is null there is not what the class does without the key.
    (folder / "config.json").write_text(str(fixture["file/part/config.json"]))
    return fixture, folder, fmjax.load(folder)


def test_output_and_gradients_are_those_of_diffusers(case):
    fixture, _, model = case
    told = {"inputs": fixture["inputs"], "times": np.float32(fixture["times"] / 1000), "memory": fixture["memory"]}
    told |= {"memory_mask": fixture["mask"].astype(np.int32), "vector": fixture["vector"]}

    @jax.jit
    def both(params):
        out = model.module.apply({"params": params}, **told)
        return (out * fixture["target"]).sum(), out

    gradients, out = jax.grad(both, has_aux=True)(model.params)
    np.testing.assert_allclose(out, fixture["out"], atol=1e-4 * np.abs(fixture["out"]).max())
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected) | {"clip_mean", "clip_std"}
    for name, value in expected.items():
        np.testing.assert_allclose(named[name], value, atol=1e-4 * max(np.abs(value).max(), 1), err_msg=name)
    assert not named["clip_mean"].any() and not named["clip_std"].any()
    found = model.module.apply(model.variables, out, method="to_embedding")
    weights = folders.part(fixture, "weight/part/")
    np.testing.assert_allclose(found, out * weights["clip_std"] + weights["clip_mean"], rtol=1e-5)


def test_saving_gives_the_published_folder_back(case, tmp_path):
    check_written(*case, tmp_path / "saved")


def test_the_published_size_is_diffusers():
    """Of the class with its default config, without the buffer of its mask."""
    module = PriorTransformer()
    shapes = jax.eval_shape(module.init, jax.random.key(0), **module.example())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_022_030_080


def test_what_does_not_fit_is_refused():
    small = dict(num_layers=1, hidden_size=8, num_heads=2, embedding_size=6, max_length=5)
    assert publish(PriorTransformer(**small))[0].architectures == ("PriorTransformer",)
    with pytest.raises(InputError, match="intermediate_size"):
        publish(PriorTransformer(**small, intermediate_size=16))
    vectors = jnp.zeros((1, 6))
    with pytest.raises(ConfigError, match="texts of 4 tokens: model.max_length = 5"):
        PriorTransformer(**small).init(quick_key(0), vectors, jnp.zeros(1), jnp.zeros((1, 4, 6)), None, vectors)
