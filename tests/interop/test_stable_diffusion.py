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
from fmjax.data.tokenizers.byte import ByteTokenizer
from fmjax.data.tokenizers.huggingface import HuggingFaceTokenizer
from fmjax.errors import ConfigError, InputError, TokenizerError
from fmjax.interop.initial import initial_published
from fmjax.interop.published_objective import write_objective
from fmjax.interop.stable_diffusion import STABLE_DIFFUSION


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


def test_how_its_pipeline_draws_comes_back_as_it_was_read(case, tmp_path):
    fixture, _, _ = case
    said = json.loads(str(fixture["file/scheduler/scheduler_config.json"])) | {
        "_class_name": "PNDMScheduler", "timestep_spacing": "leading", "steps_offset": 1, "skip_prk_steps": True,
    }  # fmt: skip
    index = json.loads(str(fixture["file/model_index.json"])) | {"scheduler": ["diffusers", "PNDMScheduler"]}
    changes = {"scheduler/scheduler_config.json": said, "model_index.json": index}
    changes = {f"file/{name}": json.dumps(values) for name, values in changes.items()}
    model = fmjax.load(folders.write_vision(tmp_path / "published", fixture | changes))
    model.save(tmp_path / "saved", format="hf")
    read = lambda at, name: json.loads((tmp_path / at / name).read_text())
    found, expected = (read(at, "scheduler/scheduler_config.json") for at in ("saved", "published"))
    assert found == expected and found["steps_offset"] == 1
    assert read("saved", "model_index.json")["scheduler"] == index["scheduler"]
    # Not where the model has learnt something else, and not of a run that began with it.
    kept, section = model.config["published"], model.config["objective"]
    changed = write_objective(STABLE_DIFFUSION, section | {"target": {"name": "v"}}, kept)["scheduler"]
    own = write_objective(STABLE_DIFFUSION, section, initial_published(str(tmp_path / "published"), None))["scheduler"]
    for found, target in ((changed, "v_prediction"), (own, "epsilon")):
        assert (found["_class_name"], found["timestep_spacing"]) == ("DDIMScheduler", "trailing")
        assert found["prediction_type"] == target


def test_another_kind_of_tokenizer_does_not_go_out_as_clips(case, tmp_path):
    _, folder, model = case
    definition = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    specials = model.tokenizer.special_tokens
    kinds = [
        (ByteTokenizer(), "is a ByteTokenizer"),
        ({"model": definition["model"] | {"end_of_word_suffix": None}}, "is a BPE whose words end with None"),
        ({"normalizer": None}, "reads texts by normalizer = None"),
        ({"post_processor": None}, "puts BOS in front of a text: False, EOS behind it: False"),
    ]
    for other, found in kinds:
        if isinstance(other, dict):
            other = HuggingFaceTokenizer(json.dumps(definition | other), specials)
        with pytest.raises(TokenizerError, match=f"has a CLIPTokenizer, and that of the model .* {found}.*Expected a"):
            dataclasses.replace(model, tokenizer=other, kept={}).save(tmp_path / "saved", format="hf")
        assert not (tmp_path / "saved").exists()
    with pytest.raises(InputError, match="has no tokenizer, and a StableDiffusionPipeline is not loaded without its"):
        dataclasses.replace(model, tokenizer=None, kept={}).save(tmp_path / "saved", format="hf")
    assert not (tmp_path / "saved").exists()


def test_what_is_another_models_or_too_long_is_refused(case, tmp_path):
    fixture, _, model = case
    with pytest.raises(InputError, match="more than the 20 that .* reads; shorten it"):
        model.generate(["a red circle above two blue squares beside a ring"])
    settings = json.loads(str(fixture["file/text_encoder/config.json"]))
    small = {"file/text_encoder/config.json": json.dumps(settings | {"vocab_size": 60})}
    with pytest.raises(TokenizerError, match="the text tower's vocabulary 60; is it another model's?"):
        fmjax.load(folders.write_vision(tmp_path / "small", fixture | small))
