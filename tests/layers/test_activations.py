"""What taps read, by name and layer, and maps of attention computed again: beside `transformers`, scanned or not."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.errors import ConfigError
from fmjax.layers.activations import activations, attention_map, named, read_shapes
from fmjax.layers.transformer import unstack_layers
from tests.interop import folders
from tests.small_models import applied

STORED = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "distillation.npz")


@pytest.mark.parametrize("name", ["bert_masked_lm", "gemma3", "llama"])
def test_maps_and_hidden_states_are_those_of_transformers(name, tmp_path):
    """Of padded texts that are read both ways, windows, grouped heads, and other scales of queries."""
    found = {key: STORED[f"{name}/{key}"] for key in ("tokens", "there", "attention", "hidden")}
    model = fmjax.load(folders.published(tmp_path / name, name))
    ids = jnp.asarray(found["there"])
    for module, params in ((model.module, model.params), (model.module.clone(scan_layers=False), None)):
        params = unstack_layers(model.params) if params is None else params
        _, state = applied(module, {"params": params}, found["tokens"], ids, method="hidden", mutable=("reads",))
        reads = activations(state["reads"])
        queries, residual = named(reads, "attention_probabilities", "of"), named(reads, "residual", "of")
        assert queries.layers == residual.layers == len(found["attention"])
        for layer, expected in enumerate(found["attention"]):
            probabilities, allowed = attention_map(module, reads, queries, layer, ids, probabilities=True)
            expected = expected * (ids > 0)[:, None, :, None]  # a padded query attends what nobody reads
            np.testing.assert_allclose(probabilities * (ids > 0)[:, None, :, None], expected, atol=2e-5)
            assert not np.any(expected * ~np.broadcast_to(allowed[:, None], expected.shape) > 1e-6)
            scores, _ = attention_map(module, reads, queries, layer, ids, probabilities=False)
            again = np.exp(scores) * allowed[:, None]
            np.testing.assert_allclose(again / again.sum(-1, keepdims=True), probabilities, atol=2e-5)
            if layer + 1 < residual.layers:  # the last is normed there
                np.testing.assert_allclose(
                    residual.at(layer) * (ids > 0)[..., None],
                    found["hidden"][layer + 1] * found["there"][..., None], atol=2e-4,
                )  # fmt: skip


def test_names_are_told_apart_or_refused():
    shapes = {"vision": {"stack": {"final": 1}}, "text": {"stack": {"final": 2}}, "embedded": 3}
    found = activations(shapes)
    assert named(found, "text/stack/final", "of").at(0) == 2 and named(found, "embedded", "of").layers is None
    with pytest.raises(ConfigError, match="key = 'final' is one of .*write more of its name"):
        named(found, "final", "key")
    with pytest.raises(ConfigError, match="key = 'embeded' names no activation; did you mean 'embedded'"):
        named(found, "embeded", "key")


def test_shapes_are_known_without_computing():
    from fmjax.models.vit import ViT

    module = ViT(num_layers=3, hidden_size=8, intermediate_size=8, num_heads=2, image_size=4, num_channels=1,
                 patch_size=2, num_classes=2, scan_layers=False)  # fmt: skip
    found = read_shapes(module)
    assert found["stack/residual"].layers == 3 and found["stack/residual"].at(2).shape == (1, 5, 8)
    assert found["stack/attention/q"].at(0).shape == (1, 5, 2, 4)
