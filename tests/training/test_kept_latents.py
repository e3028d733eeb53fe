"""Latents and states of texts that were encoded once: what may train on them, and by which models values are made."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.assemble import open_data
from fmjax.commands.keep import _cast, keep
from fmjax.data.base import stacked
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import ConfigError, InputError
from fmjax.objectives.base import OtherModel
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
TEXT = {"name": "text_tower", "num_layers": 1, "hidden_size": 8, "num_heads": 2, "vocab_size": 258, "max_length": 96}
JOINT = {
    "name": "mmdit", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 2, "memory_size": 8,
    "vector_size": 8, "image_size": 4, "num_channels": 2,
}  # fmt: skip


def autoencoder(folder, seed, side=8, channels=1, **normal):
    """A folder with an autoencoder of random weights."""
    codec = ImageCodec(side, side, channels, **normal)
    section = VAE | {"image_size": side, "num_channels": channels}
    random_model(section, image=codec, seed=seed, objective={"name": "vae"}).save(folder)
    return folder


def config(data, model=None, steps=2, **objective):
    """Of a small Diffusion Transformer of digits."""
    return configs.resolve({
        "train": {"steps": steps, "batch_size": 8, "log_every": 1, "eval_every": -1, "sample_every": -1,
                  "tensorboard": False},
        "mesh": {"data": 1},
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


def batches(*latents):
    """Of one row each, as they come from an encoder."""
    for row in latents:
        yield {"latents": np.full((1, 2, 2), row, np.float32), "mask": np.ones((1, 2), bool)}, {"labels": np.zeros(1)}


@pytest.mark.parametrize("value, dtype, match", [
    (7e4, "float16", r"test, row 2, latents: 70000 is beyond what float16 holds, 65504; give --dtype=float32"),
    (np.nan, "float32", r"test, row 2, latents: the encoder says nan, in float32"),
])  # fmt: skip
def test_what_is_not_finite_in_the_files_is_refused(value, dtype, match):
    with pytest.raises(InputError, match=match):
        list(_cast(batches(1, -6e4, value), dtype, "test"))
    first, last = _cast(batches(1, 7e4), "float32", "test")
    assert first.keys() == {"latents", "mask", "labels"} and last["latents"].max() == 7e4


@pytest.mark.parametrize("of, match", [
    (dict(mean=(0.1,), std=(0.3,)), r"'first_stage', .* with mean = \(0.1,\)"),
    (dict(side=16), "encodes images of 16x16 pixels, and the data have 8x8"),
])  # fmt: skip
def test_images_that_the_first_stage_does_not_encode_are_not_kept(tmp_path, of, match):
    other = autoencoder(tmp_path / "other", 5, **of)
    with pytest.raises(ConfigError, match=match):
        keep(encoded(other), tmp_path / "rows", rows=4)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_of_arrays_alone_trains(tmp_path, caplog):
    """Latents and states of texts that something else made, without codecs, of which nothing says what."""
    folder, rng = tmp_path / "rows/train", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, shape in (("latents", (4, 4, 2)), ("memory", (3, 8)), ("vector", (6,))):
        np.save(folder / f"{name}.npy", rng.normal(size=(16, *shape)).astype(np.float16))
    data = {"name": "kept", "source": str(tmp_path / "rows")}
    told = dict(input_name="latents", condition="states", latent_scale=1.0)
    workdir = run(config(data, JOINT | {"vector_size": 6}, 1, **told), tmp_path / "run")
    assert np.isfinite(losses(workdir)).all()
    assert "has no made_by.json: nothing says which models encoded its rows" in caplog.text
    stage = dict(first_stage=str(autoencoder(tmp_path / "vae", 5)), latent_shape=(4, 4, 2))
    run(config(data, JOINT | {"vector_size": 6}, 1, **told, **stage), workdir)
    fmjax.load(workdir).opened("first_stage")
    assert "says which objective.first_stage it, or what made its rows, was trained with" in caplog.text


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def states_are_added(config, scenes, model, parts, shape, rows, tmp_path):
    """To rows whose latents were kept before, by the same first stage alone: as if both had been kept at once."""
    stage, before, after = parts["first_stage"], tmp_path / "before", tmp_path / "after"
    told = dict(condition="caption", **shape)
    of = lambda folder, **parts: config({"name": "kept", "source": str(folder)}, model, **told, **parts)
    keep(config(scenes, model, condition="none", first_stage=stage, latent_shape=(4, 4, 2)), before, rows=16)
    keep(of(before, **parts), after, rows=16)
    for name in ("made_by.json", "made_of.json"):
        assert (after / name).read_text() == (rows / name).read_text()
    ours, theirs = ({name: np.load(folder / f"train/{name}.npy") for name in ("latents", "memory", "labels")}
                    for folder in (after, rows))  # fmt: skip
    place = {row.tobytes(): number for number, row in enumerate(theirs["latents"])}
    order = [place[row.tobytes()] for row in ours["latents"]]
    assert sorted(order) == list(range(16))
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name][order], atol=1e-5)
    with pytest.raises(InputError, match="hold latents and memory already: nothing to encode"):
        keep(of(after, **parts), tmp_path / "no", rows=4)
    other = parts | {"first_stage": str(autoencoder(tmp_path / "another", 6, channels=3))}
    with pytest.raises(InputError, match="another model made the 'latents' of these rows"):
        keep(of(before, **other), tmp_path / "no", rows=4)


def test_texts_that_are_kept_train_as_captions_do(tmp_path):
    """And draw by the encoder alone that said them."""
    text = tmp_path / "text"
    random_model(TEXT, ByteTokenizer(), seed=1).save(text)
    parts = {"text": str(text), "first_stage": str(autoencoder(tmp_path / "vae", 5, channels=3))}
    scenes = {"name": "shapes", "image_size": 8, "tokenizer": "bytes", "sequence_length": 96, "eval_examples": 4}
    model, rows = {"name": "text_to_image", "denoiser": JOINT, "text": None}, tmp_path / "rows"
    shape = dict(latent_shape=(4, 4, 2), label_dropout=0.5)
    encoded_in_steps = config(scenes, model, condition="caption", **shape, **parts)
    keep(encoded_in_steps, rows, rows=16)
    made_by = json.loads((rows / "made_by.json").read_text())
    assert made_by.keys() == parts.keys()
    assert json.loads((rows / "made_of.json").read_text())["eval_examples"] == 4
    states_are_added(config, scenes, model, parts, shape, rows, tmp_path)
    told = parts | shape | dict(input_name="latents", condition="states")
    workdir = run(config({"name": "kept", "source": str(rows)}, model, **told), tmp_path / "run")
    trained = fmjax.load(workdir)

    names = {path.stem for path in (rows / "train").iterdir()}
    assert names == {"latents", "memory", "memory_mask", "vector", "labels"}
    batch = {name: np.load(rows / f"train/{name}.npy") for name in names} | {
        "keys": jax.random.split(jax.random.key(0), 16), "loss_weights": np.ones(16, np.float32)
    }  # fmt: skip
    data = open_data(encoded_in_steps, tmp_path / "cache")
    batch |= stacked([{name: data.train[i][name] for name in ("tokens", "segment_ids")} for i in range(16)])
    opened = fmjax.load(text)
    others, key = {"text": OtherModel(opened.module, opened.params)}, jax.random.key(1)

    def loss(params, condition):
        objective = dataclasses.replace(trained.objective, condition=condition, null_tokens=())
        apply = trained.module.apply
        return objective(apply, params, batch, key, True, carry=trained.carry, models=others)[0]["loss"][0]

    said, by_captions = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(trained.params, condition)
                         for condition in ("states", "caption"))  # fmt: skip
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), said, by_captions)
    assert trained.generate(["a red circle"], steps=2, guidance=2.0)[0].shape == (8, 8, 3)
    shutil.rmtree(text)
    random_model(TEXT, ByteTokenizer(), seed=2).save(text)
    with pytest.raises(InputError, match="was trained with another objective.text"):
        fmjax.load(workdir).generate(["a red circle"], steps=2)
    with pytest.raises(InputError, match="names nothing to encode with: a first_stage of images, or a frozen"):
        keep(config(scenes, JOINT, condition="none"), tmp_path / "none", rows=4)
