"""What does not fit of model and data is said before images are read."""

import pathlib

import pytest

from fmjax import config as configs
from fmjax.data import image_settings
from fmjax.errors import ConfigError
from fmjax.training.loop import train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "data", "changes", "message"),
    [
        ("vit_digits", {"name": "images", "image_size": 9}, {},
         "images of 9x9 pixels do not divide into patches of 2x2"),
        ("vit_digits", {"name": "images", "image_size": 8, "channels": 3}, {"model.num_channels": 1},
         "model.num_channels = 1, but the images have 3"),
        ("clip_digits", {"name": "captioned_images", "image_size": 8, "channels": 1}, {},
         "data.sequence_length is 64, but model.max_length is 32"),
        ("clip_digits", {"name": "captioned_images", "image_size": 7, "channels": 1}, {}, "images of 7x7 pixels"),
        ("igpt_digits", {"name": "pixels", "images": {"name": "images", "image_size": 8, "channels": 1}},
         {"model.max_length": 63}, "model.max_length = 63, but images of 64 pixels of 16 colours"),
        ("igpt_digits", {"name": "pixels", "images": {"name": "images", "image_size": 8}}, {},
         "data.palette = 'levels' is of grey images, and these have 3 channels"),
        ("igpt_digits", {"name": "pixels", "images": {"name": "images", "image_size": 0}}, {},
         r"data.images.image_size = 0 must be at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_images_are_read(name, data, changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(image_settings, "open_image_sets", lambda *arguments: pytest.fail("it reads"))
    raw = configs.load_config_file(str(CONFIGS / f"{name}.py"))
    (data.get("images") or data)["source"] = "pets"
    with pytest.raises(ConfigError, match=message):
        config = configs.resolve(configs.apply_overrides(raw | {"data": data}, changes))
        train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
