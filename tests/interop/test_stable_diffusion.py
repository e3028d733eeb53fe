"""A pipeline of a text tower, a U-Net, an autoencoder and a scheduler: the same noise becomes the same image of words.

make_stable_diffusion_fixture.py wrote the fixture.
"""

import dataclasses
import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.errors import ConfigError, InputError, TokenizerError


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model)."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "stable_diffusion")


def made(fixture, model, monkeypatch, **options):
    """The image of five steps of DDIM from the fixture's noise, uint8."""
    noise = jnp.asarray(fixture["noise"][0].transpose(1, 2, 0))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    return model.generate([str(fixture["prompt"])], sampler="ddim", steps=5, spacing="trailing", **options)[0]


def test_the_same_noise_becomes_the_same_image(case, monkeypatch):
    fixture, _, model = case
    for name, negative in (("guided", None), ("away", str(fixture["negative"]))):
        found = made(fixture, model, monkeypatch, guidance=4.0, negative=negative)
        np.testing.assert_allclose(found, fixture[name][0] * 255, atol=0.6)  # rounded to whole numbers
    assert fixture["images"].std() > 0.05
    for one, other in (("images", "guided"), ("guided", "away")):
        assert np.abs(fixture[one] - fixture[other]).max() > 0.02  # five of 255 levels


def test_saving_gives_the_folder_back(case, tmp_path, monkeypatch):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    for part in ("unet", "text_encoder", "vae"):
        (file,) = (tmp_path / "saved" / part).glob("*.safetensors")
        weights, written = folders.part(fixture, f"weight/{part}/"), load_file(file)
        assert {name.removeprefix("text_model.") for name in written} == {
            name.removeprefix("text_model.") for name in weights
        }
    ours, theirs = (json.loads((at / "model_index.json").read_text()) for at in (tmp_path / "saved", folder))
    for name in ("unet", "text_encoder", "vae", "scheduler", "tokenizer", "_class_name"):
        assert ours[name] == theirs[name]
    read = lambda name: json.loads((tmp_path / "saved" / name).read_text())
    assert read("tokenizer/tokenizer_config.json")["model_max_length"] == 20
    theirs = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    for name, value in read("scheduler/scheduler_config.json").items():  # x0 is not cut off, as where nothing is said
        assert name in ("num_train_timesteps", *theirs) and value == theirs[name], name
    again = fmjax.load(tmp_path / "saved")
    assert again.objective == model.objective and again.codecs["image"] == model.codecs["image"]
    images = [made(fixture, one, monkeypatch, guidance=4.0) for one in (again, model)]
    np.testing.assert_array_equal(*images)
    other = dataclasses.replace(model, config=model.config | {"objective": model.config["objective"] | {
        "null_tokens": (0,)}}, kept={})  # fmt: skip
    with pytest.raises(ConfigError, match="stand for no caption, and a StableDiffusionPipeline has the empty text"):
        other.save(tmp_path / "other", format="hf")


def test_what_is_another_models_or_too_long_is_refused(case, tmp_path):
    fixture, _, model = case
    with pytest.raises(InputError, match="more than the 20 that .* reads; shorten it"):
        model.generate(["a red circle above two blue squares beside a ring"])
    settings = json.loads(str(fixture["file/text_encoder/config.json"]))
    small = {"file/text_encoder/config.json": json.dumps(settings | {"vocab_size": 60})}
    with pytest.raises(TokenizerError, match="the text tower's vocabulary 60; is it another model's?"):
        fmjax.load(folders.write_vision(tmp_path / "small", fixture | small))
