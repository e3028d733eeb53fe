"""Latents that were encoded once: what may train on them, and by which autoencoder they are decoded."""

import json
import shutil

import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.commands.keep import keep
from fmjax.data.codecs.image import ImageCodec
from fmjax.errors import ConfigError, InputError
from fmjax.planning.plan import shapes
from fmjax.training import resume
from fmjax.training.loop import train
from tests.small_models import random_model

pytestmark = pytest.mark.usefixtures("one_device")

VAE = {
    "name": "autoencoder_kl", "widths": (4, 4), "num_blocks": 1, "latent_channels": 2, "norm_groups": 2,
    "mid_attention": False, "num_channels": 1,
}  # fmt: skip
ARRAYS = ("latents:float16[4x4x2]", "labels:int32[]")


def autoencoder(folder, seed, side=8, **normal):
    """A folder with an autoencoder of random weights."""
    codec = ImageCodec(side, side, 1, **normal)
    random_model(VAE | {"image_size": side}, image=codec, seed=seed, objective={"name": "vae"}).save(folder)
    return folder


def config(data, model=None, steps=2, **objective):
    """Of a small Diffusion Transformer of digits."""
    return configs.resolve({
        "train": {"steps": steps, "batch_size": 8, "log_every": 1, "tensorboard": False}, "mesh": {"data": 1},
        "model": model or {
            "name": "dit", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 2, "num_classes": 10,
            "image_size": 4, "num_channels": 2,
        },
        "objective": {"name": "latent_diffusion", "condition": "label", **objective},
        "data": data, "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    })  # fmt: skip


def encoded(first_stage):
    """A config whose rows are encoded in its steps."""
    return config({"name": "digits", "max_shift": 0}, first_stage=str(first_stage), latent_shape=(4, 4, 2))


@pytest.fixture(scope="module")
def vae(one_device, tmp_path_factory):
    return autoencoder(tmp_path_factory.mktemp("parts") / "vae", 5)


@pytest.fixture(scope="module")
def rows(vae):
    """Rows that it encoded."""
    keep(encoded(vae), vae.parent / "rows", rows=24, batch_size=16, dtype="float16")
    return vae.parent / "rows"


def kept(rows, **objective):
    return config({"name": "kept", "source": str(rows), "arrays": ARRAYS}, input_name="latents", **objective)


def run(settings, workdir):
    train(settings, workdir, cache_dir=workdir.parent / "cache", progress=False)
    return workdir


def test_a_run_is_told_afterwards_what_decodes_its_latents(vae, rows, tmp_path):
    """And by that one alone, whatever it computes in."""
    workdir = run(kept(rows), tmp_path / "run")
    with pytest.raises(InputError, match="again with --config.objective.first_stage=MODEL"):
        fmjax.load(workdir).generate([3], steps=2)
    stage = tmp_path / "vae"
    shutil.copytree(vae, stage)
    named = kept(rows, first_stage=str(stage), latent_shape=(4, 4, 2))
    run(named, workdir)
    for dtype in ("float32", "bfloat16"):
        assert fmjax.load(workdir, dtype=dtype).generate([3], steps=2)[0].shape == (8, 8, 1)
    with pytest.raises(ConfigError, match="label_dropout: 0.1 in the run, 0.2 now"):
        run(kept(rows, label_dropout=0.2), workdir)
    shutil.rmtree(stage)
    autoencoder(stage, 6)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(InputError, match="was trained with another objective.first_stage"):
            fmjax.load(workdir, dtype=dtype).generate([3], steps=2)


def test_classes_are_drawn_by_a_denoiser_of_latents_that_are_encoded_in_each_step(vae, tmp_path):
    """Which is of another size than the images of the data; of as many classes."""
    workdir = run(encoded(vae), tmp_path / "run")
    assert fmjax.load(workdir).generate([3], steps=2)[0].shape == (8, 8, 1)
    module, row = shapes(encoded(vae), tmp_path / "cache")  # as a plan asks
    assert module.image_size == 4 and row["images"].shape == (8, 8, 1)
    few = encoded(vae).to_dict()
    few["model"]["num_classes"] = 9
    with pytest.raises(ConfigError, match="num_classes = 9, .* the label 9"):
        run(configs.resolve(few), tmp_path / "few")
    other = autoencoder(tmp_path / "other", 5, side=16)
    with pytest.raises(ConfigError, match="latents of .* are .8, 8, 2."):
        run(encoded(other), tmp_path / "run2")


def test_of_rows_that_are_encoded_in_each_step_the_first_stage_stays(tmp_path):
    configs.save_config(encoded("one"), tmp_path / "config.json", {})
    resume.check_config(tmp_path, encoded("one"))
    with pytest.raises(ConfigError, match="objective.first_stage: 'one' in the run, 'another' now"):
        resume.check_config(tmp_path, encoded("another"))


def test_rows_say_what_made_them_and_are_as_large_as_asked_for(vae, rows):
    assert np.load(rows / "train/latents.npy").dtype == np.float16
    assert json.loads((rows / "made_by.json").read_text()).keys() == {"first_stage"}


@pytest.mark.parametrize("of, match", [
    (dict(mean=(0.1,), std=(0.3,)), r"'first_stage', .* with mean = \(0.1,\)"),
    (dict(side=16), "encodes images of 16x16 pixels, and the data have 8x8"),
])  # fmt: skip
def test_images_that_the_first_stage_does_not_encode_are_not_kept(tmp_path, of, match):
    other = autoencoder(tmp_path / "other", 5, **of)
    with pytest.raises(ConfigError, match=match):
        keep(encoded(other), tmp_path / "rows", rows=4)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_of_arrays_alone_trains(tmp_path):
    """Latents and states of texts that something else made, without codecs."""
    folder, rng = tmp_path / "rows/train", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, shape in (("latents", (4, 4, 2)), ("memory", (3, 8)), ("vector", (6,))):
        np.save(folder / f"{name}.npy", rng.normal(size=(16, *shape)).astype(np.float16))
    model = {
        "name": "mmdit", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 2, "memory_size": 8,
        "vector_size": 6, "image_size": 4, "num_channels": 2,
    }  # fmt: skip
    data = {"name": "kept", "source": str(tmp_path / "rows")}
    told = dict(input_name="latents", condition="states", latent_scale=1.0)
    workdir = run(config(data, model, 1, **told), tmp_path / "run")
    losses = [json.loads(line).get("train/loss") for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([loss for loss in losses if loss is not None]).all()
