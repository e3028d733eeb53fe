"""What an MAE shows: visible patches as they are, hidden ones as they are drawn; a short run writes it and goes on."""

import pathlib

import jax
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.data.digits import CODEC, read_digits
from fmjax.interop.family import different_fields
from fmjax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]
SHORT = {
    "train.steps": "6", "train.batch_size": "16", "train.log_every": "3", "train.eval_every": "6",
    "train.sample_every": "6", "train.checkpoint_every": "6", "train.tensorboard": "false",
    "objective.num_samples": "2", "model.num_layers": "1", "model.hidden_size": "16", "model.num_heads": "2",
    "model.encoder.num_layers": "1", "model.encoder.hidden_size": "16", "model.encoder.num_heads": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, on one device."""
    workdir = tmp_path_factory.mktemp("mae") / "run"
    raw = configs.load_config_file(str(ROOT / "configs" / "mae_digits.py"))
    train(configs.resolve(configs.apply_overrides(raw, SHORT)), workdir, cache_dir=workdir.parent, progress=False)
    return workdir


def test_samples_show_what_is_seen_and_what_is_made_of_it(run):
    codec, files = CODEC, run / "samples" / "6"
    images = [codec.read(files / f"{i}.png") for i in range(6)]
    assert (files / "all.png").is_file() and not (files / "6.png").exists()
    blocks = lambda image: image[..., 0].reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4).astype(int)
    hidden = []
    for whole, seen, made in (map(blocks, images[:3]), map(blocks, images[3:])):
        visible = (seen == whole).all(1)
        hidden.append(~visible)
        assert np.abs(seen[~visible] - 128).max() <= 1  # grey
        assert np.abs(made[visible] - whole[visible]).max() <= 1  # rounding
    assert all(h.sum() <= 12 for h in hidden) and any(h.sum() > 8 for h in hidden)


def test_a_loaded_run_draws_what_is_hidden_and_gives_vectors(run, tmp_path):
    model = fmjax.load(run)
    images = [CODEC.decode({"images": image}) for image in read_digits()[0][:3]]
    made = model.generate(images)
    assert [(image.shape, image.dtype) for image in made] == [((8, 8, 1), np.uint8)] * 3
    np.testing.assert_array_equal(model.generate(images[1:2])[0], made[1])  # whatever else is given
    assert model.embed(images=images).shape == (3, 16)
    model.save(tmp_path / "hf", format="hf")
    again = fmjax.load(tmp_path / "hf")
    assert not different_fields(again.module, model.module) and again.objective == type(model.objective)()
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    np.testing.assert_array_equal(again.generate(images), made)
