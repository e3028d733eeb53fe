"""Published Swins: logits, features and gradients are `transformers`'s, windows shifted and not; and written back.

make_swin_fixtures.py wrote the fixture, and check_vision_exports.py has the PyTorch class load what is saved here.
"""

import json

import folders
import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.errors import ConfigError
from fmjax.interop.family import publish, table_of
from fmjax.interop.weights import flatten, slots


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model) of a classifier."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "swin")


def images_of(fixture):
    return fixture["pixels"].transpose(0, 2, 3, 1)


def test_logits_features_and_every_gradient(case):
    fixture, _, model = case
    images = images_of(fixture)
    for name, expected in (("pooled", fixture["pooled"]), ("feature_map", fixture["features"].transpose(0, 2, 3, 1))):
        found = model.module.apply({"params": model.params}, images, method=name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    def loss(params):
        logits = model.module.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, fixture["labels"]).mean(), logits

    (found, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    np.testing.assert_allclose(logits, fixture["out"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-4)
    leaves, expected = flatten(gradients), folders.part(fixture, "gradient/")
    table = slots(table_of(publish(model.module)[0], model.module), {k: tuple(v.shape) for k, v in leaves.items()})
    assert {slot.name for slot in table} == set(expected)
    for slot in table:
        ours, theirs = np.asarray(leaves[slot.path])[slot.place], slot.view(expected[slot.name])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5 * abs(theirs).max() + 1e-5, err_msg=slot.name)


def test_it_is_written_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "hf", format="hf")
    written, expected = load_file(tmp_path / "hf" / "model.safetensors"), folders.part(fixture, "weight/")
    assert set(written) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "hf", folder))
    told = {"depths", "num_heads", "embed_dim", "window_size", "mlp_ratio", "qkv_bias", "hidden_act", "layer_norm_eps",
            "patch_size", "image_size", "drop_path_rate", "id2label", "architectures"}  # fmt: skip
    assert {key: ours[key] for key in told} == {key: theirs[key] for key in told}
    assert fmjax.load(tmp_path / "hf").module == model.module


def test_a_folder_without_a_head_gives_vectors_and_other_options_are_refused(case, tmp_path):
    fixture, _, _ = case
    values = json.loads(str(fixture["file/config.json"])) | {"architectures": ["SwinModel"]}
    weights = {k: v for k, v in folders.part(fixture, "weight/").items() if not k.startswith("classifier")}
    model = fmjax.load(folders.write(tmp_path / "headless", weights, values))
    np.testing.assert_allclose(model.apply(images=images_of(fixture)), fixture["pooled"], rtol=1e-4, atol=1e-4)
    other = folders.write(tmp_path / "other", weights, values | {"use_absolute_embeddings": True})
    with pytest.raises(ConfigError, match="use_absolute_embeddings = True is not supported"):
        fmjax.load(other)
