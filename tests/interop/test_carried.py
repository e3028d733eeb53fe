"""A Vision Transformer begins with the parameters of another: of other sizes, classes, positions, of an MAE."""

import pathlib

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.assemble import build_module, completed, open_data
from fmjax.data.digits import CODEC
from fmjax.errors import ConfigError
from fmjax.interop.initial import initial_params
from fmjax.interop.loading import placed
from fmjax.layers.image_positions import grid_sinusoids, resized_positions
from fmjax.training.loop import train
from tests.small_models import random_model

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def resized(tmp_path_factory):
    """(fixture, folder, model) of images of 16 x 16 pixels."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "vit_resized")


def begun(path, module, classes_anew=False):
    """The parameters that a run of this module begins with."""
    shapes, shardings = placed(module, None)
    return initial_params(str(path), module, shapes, shardings, lambda: jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 7.0), shapes))  # fmt: skip


@pytest.mark.parametrize("size", [24, 12])
def test_images_of_another_size_have_positions_between_as_published(resized, size):
    fixture, folder, model = resized
    module = model.module.clone(image_size=size)
    params = begun(folder, module)
    pixels = fixture[f"pixels{size}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(module.apply({"params": params}, pixels), fixture[f"out{size}"], atol=2e-5)
    names = {name for name, leaf in params.items() if name != "position_embedding"}
    jax.tree.map(np.testing.assert_array_equal, *({n: tree[n] for n in names} for tree in (params, model.params)))


def test_positions_of_the_same_size_and_a_constant_stay():
    table = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    np.testing.assert_allclose(resized_positions(table, 3, 3), table, atol=1e-6)
    np.testing.assert_allclose(resized_positions(np.ones((9, 2)), 5, 4), np.ones((20, 2)), atol=1e-6)


def test_a_head_of_other_classes_is_made_anew_and_a_pooler_too(resized):
    _, folder, model = resized
    params = begun(folder, model.module.clone(num_classes=5, use_pooler=True, pooling="mean"))
    assert params["head"]["kernel"].shape == (16, 5) and (params["head"]["kernel"] == 7).all()
    assert (params["pooler"]["bias"] == 7).all()
    np.testing.assert_array_equal(params["class_token"], model.params["class_token"])
    with pytest.raises(ConfigError, match="another model:\n  model.patch_size: 4 there, 8 in this run"):
        begun(folder, model.module.clone(patch_size=8))
    with pytest.raises(ConfigError, match="model.positions = 'sincos', and the parameters to begin with have learned"):
        begun(folder, model.module.clone(positions="sincos"))


def test_an_mae_begins_a_classifier_with_its_positions_as_they_are(tmp_path):
    fixture = folders.read_vision("mae")
    folder = folders.write_vision(tmp_path / "mae", fixture)
    mae = fmjax.load(folder)
    fixed = mae.module.encoder.clone(num_classes=3)
    learned = fixed.clone(positions="learned")
    pixels = fixture["pixels"].transpose(0, 2, 3, 1)
    for module in (fixed, learned):
        params = begun(folder, module)
        found = module.apply({"params": params}, pixels, method="hidden")
        np.testing.assert_allclose(found, fixture["features"], atol=2e-5)
    np.testing.assert_allclose(params["position_embedding"]["embedding"][1:], grid_sinusoids(4, 4, 16), atol=1e-6)


def test_a_probe_of_an_maes_features_trains_the_head_alone(tmp_path):
    """What configs/mae_digits.py says one does with a run, in a few steps."""
    sizes = {"num_layers": "1", "hidden_size": "16", "num_heads": "2", "intermediate_size": "16"}
    quiet = {"train.steps": "2", "train.batch_size": "16", "train.eval_every": "-1", "train.tensorboard": "false"}
    quiet |= {"train.checkpoint_every": "2", "train.sample_every": "-1"}

    def config(name, **more):
        raw = configs.load_config_file(str(ROOT / "configs" / f"{name}.py"))
        return configs.resolve(configs.apply_overrides(raw, quiet | more))

    decoder = {f"model.{key}": value for key, value in sizes.items()}
    encoder = {f"model.encoder.{key}": value for key, value in sizes.items()}
    begun = config("mae_digits", **decoder, **encoder)
    section = completed(begun, build_module(begun, open_data(begun, tmp_path).model_fields)).to_dict()["model"]
    mae = random_model(section, image=CODEC, objective={"name": "mae"})
    mae.save(tmp_path / "mae_digits")
    begins = {"train.init_from": str(tmp_path / "mae_digits"), "model.positions": "sincos"}
    settings = config("vit_digits", **decoder, **begins, **{"train.trainable": "^head/"})
    train(settings, tmp_path / "probe", cache_dir=tmp_path, progress=False)
    probe = fmjax.load(tmp_path / "probe")
    jax.tree.map(np.testing.assert_array_equal, probe.params["stack"], mae.params["encoder"]["stack"])
    assert np.abs(probe.params["head"]["kernel"]).sum() > 0
