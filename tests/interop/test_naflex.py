"""Published SigLIP 2 of any proportions: patches, vectors, loss and gradients are `transformers`'s, both directions.

make_pair_fixtures.py wrote the fixture.
"""

import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_parity import published_names

import fmjax
from fmjax.data.codecs.patches import PatchCodec
from fmjax.errors import ConfigError, DataError
from fmjax.interop.family import read_section
from fmjax.interop.siglip import SIGLIP2
from fmjax.objectives.contrastive import contrast
from tests.quick_keys import quick_key


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model)."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "siglip2")


def arrays_of(fixture):
    return {"images": fixture["pixels"], "image_ids": fixture["ids"], "image_grids": fixture["grids"]}


def test_images_of_any_proportions_are_prepared_as_the_processor_does(case):
    fixture, _, model = case
    images, codec = list(folders.part(fixture, "image/").values()), model.codecs["image"]
    assert codec.max_num_patches == 13 != model.module.vision.num_patches
    for image, *expected in zip(images, *arrays_of(fixture).values(), strict=True):
        found = codec.encode(image)
        for value, want in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(value, want, atol=1e-6)
        np.testing.assert_array_equal(codec.decode(found), codec.fitted(image))
    np.testing.assert_allclose(model.embed(images=images), fixture["image"], atol=1e-4)
    np.testing.assert_allclose(model.embed(images=images[1:2]), fixture["image"][1:2], atol=1e-4)
    with pytest.raises(DataError, match="an image is uint8"):
        codec.encode(np.zeros((4, 4, 3), np.float32))


def test_vectors_loss_and_gradients(case):
    fixture, _, model = case

    def loss(params):
        ids = np.ones_like(fixture["tokens"])
        out = model.module.apply({"params": params}, tokens=fixture["tokens"], segment_ids=ids, **arrays_of(fixture))
        weights = np.ones(len(ids), np.float32)
        return contrast(**out, weights=weights, loss="sigmoid")["loss"].mean(), out

    (found, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    for name in ("image", "text"):
        np.testing.assert_allclose(out[name], fixture[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(out["scale"] * out["image"] @ out["text"].T + out["bias"], fixture["logits"], atol=1e-3)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-4)
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(named[key], value, atol=2e-4 * max(1, np.abs(value).max()), err_msg=key)


def test_saving_gives_the_published_folder_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    weights, written = folders.part(fixture, "weight/"), load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "saved", folder))
    assert ours["architectures"] == theirs["architectures"] == ["Siglip2Model"]
    for key in ("num_patches", "patch_size", "model_type", "hidden_size"):
        assert ours["vision_config"][key] == theirs["vision_config"][key]
    again = fmjax.load(tmp_path / "saved")
    assert (again.module, again.codecs) == (model.module, model.codecs)
    model.save(tmp_path / "ours")
    ours = fmjax.load(tmp_path / "ours")
    assert (ours.module, ours.codecs) == (model.module, model.codecs)
    vision = fmjax.load(folder, part="vision")
    images = list(folders.part(fixture, "image/").values())
    found = vision.embed(images=images, normalize=True)
    np.testing.assert_allclose(found, fixture["image"], atol=1e-4)


def test_a_text_tower_of_gemmas_vocabulary_reads_its_padding(case):
    config = json.loads(str(case[0]["file/config.json"]))
    del config["text_config"]["pad_token_id"]
    for vocab_size, pad_id in ((20, 1), (256_000, 0)):
        config["text_config"]["vocab_size"] = vocab_size
        assert read_section(SIGLIP2, config, (), "config.json")["text"]["pad_id"] == pad_id


def test_it_is_not_trained_on_images_of_one_size(case):
    module = case[2].module
    inputs = {name: jnp.zeros((1, 8), jnp.int32) for name in ("tokens", "segment_ids")}
    with pytest.raises(ConfigError, match="the codec 'patches' makes and these data do not"):
        jax.eval_shape(lambda: module.init(quick_key(0), images=jnp.zeros((1, 8, 8, 3)), **inputs))


def test_codecs_that_cannot_be_are_refused(case, tmp_path):
    with pytest.raises(ConfigError, match="max_num_patches=0"):
        PatchCodec(max_num_patches=0)
    folder = folders.write_vision(tmp_path / "other", case[0])
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 2}))
    with pytest.raises(ConfigError, match="makes arrays of shape"):
        fmjax.load(folder)
