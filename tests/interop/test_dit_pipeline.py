"""A pipeline of a Diffusion Transformer, an autoencoder and a scheduler: the same noise becomes the same images.

make_dit_pipeline_fixture.py wrote the fixture.
"""

import dataclasses
import json

import folders
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.data.codecs.image import ImageCodec
from fmjax.diffusion.grids import make_grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.samplers import DDIM, columns, sample
from fmjax.errors import ConfigError, InputError
from fmjax.layers.modulation import NO_LABEL


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model)."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "dit_pipeline")


def made(fixture, model, guidance=1.0):
    """Five steps of DDIM from the fixture's noise, decoded by the folder's autoencoder."""
    objective, labels = model.objective, {True: fixture["labels"], False: np.full(2, NO_LABEL)}

    @jax.jit
    def run(params, stage, noise):
        apply = lambda x, times, given: model.module.apply({"params": params}, x, times, labels[given])
        predict = predictor(apply, objective.process, objective.target, Guidance(guidance), splits_variance=True)
        along = columns(DDIM(), make_grid(objective.process, 5, "trailing"), objective.process)
        latents = sample(DDIM(), predict, noise, along)
        return stage.apply(latents / objective.latent_scale, method="decode")

    found = run(model.params, model.opened("first_stage"), fixture["noise"].transpose(0, 2, 3, 1))
    return np.clip(np.asarray(found) / 2 + 0.5, 0, 1)


def test_the_same_noise_becomes_the_same_images(case):
    fixture, _, model = case
    assert fixture["images"].std() > 0.05
    np.testing.assert_allclose(made(fixture, model), fixture["images"], atol=1e-4)
    assert np.abs(fixture["guided"] - fixture["images"]).max() > 0.05
    np.testing.assert_allclose(made(fixture, model, 4.0), fixture["guided"], atol=2e-4)


def test_it_makes_images_of_classes(case):
    _, _, model = case
    assert model.codecs["image"] == ImageCodec(8, 8, 3) and model.objective.learned_variance
    images = model.generate([2, 0, 2], steps=3, sampler="ddim", seed=1)
    assert [image.shape for image in images] == [(8, 8, 3)] * 3 and (images[0] != images[2]).any()
    guided = model.generate([2], steps=3, sampler="ddim", seed=1, guidance=3.0)
    assert (guided[0] != images[0]).any()


def test_saving_gives_the_folder_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    for part in ("transformer", "vae"):
        written = load_file(tmp_path / "saved" / part / "diffusion_pytorch_model.safetensors")
        weights = folders.part(fixture, f"weight/{part}/")
        assert set(written) == set(weights)
        for name, value in weights.items():
            np.testing.assert_array_equal(written[name], value, err_msg=name)
    ours, theirs = (json.loads((at / "model_index.json").read_text()) for at in (tmp_path / "saved", folder))
    assert {name: ours[name] for name in ("transformer", "vae", "scheduler")} == {
        name: theirs[name] for name in ("transformer", "vae", "scheduler")
    }
    again = fmjax.load(tmp_path / "saved")
    assert again.objective == model.objective and again.codecs["image"] == model.codecs["image"]
    np.testing.assert_array_equal(made(fixture, again), made(fixture, model))


def test_a_run_goes_out_with_the_scale_of_its_latents(case, tmp_path):
    """Not with its autoencoder's, which the run did not ask for."""
    _, _, model = case
    section = model.config["objective"] | {"latent_scale": None}
    run = lambda **carry: dataclasses.replace(
        model, config=model.config | {"objective": section}, carry={"measured": np.int32(1), **carry}, kept={}
    )
    measured = run(shift=np.float32(0), scale=np.float32(1.25))
    measured.save(tmp_path / "measured", format="hf")
    assert json.loads((tmp_path / "measured/vae/config.json").read_text())["scaling_factor"] == 1.25
    again = fmjax.load(tmp_path / "measured")
    images, expected = (one.generate([2], steps=3, sampler="ddim", seed=1)[0] for one in (again, measured))
    np.testing.assert_array_equal(images, expected)
    assert (images != model.generate([2], steps=3, sampler="ddim", seed=1)[0]).any()
    with pytest.raises(ConfigError, match="shifted by 0.5, and a pipeline has a scale of latents alone"):
        run(shift=np.float32(0.5), scale=np.float32(1.25)).save(tmp_path / "shifted", format="hf")
    assert not (tmp_path / "shifted").exists()


def test_without_its_autoencoder_it_has_nothing_to_decode_with(case, tmp_path):
    fixture = {name: value for name, value in case[0].items() if "vae/" not in name}
    index = json.loads(str(fixture["file/model_index.json"])) | {"vae": [None, None]}
    model = fmjax.load(folders.write_vision(tmp_path / "alone", fixture | {"file/model_index.json": json.dumps(index)}))
    with pytest.raises(InputError, match="no codec 'image'"):
        model.generate([1])
