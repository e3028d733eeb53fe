"""Images as colours of a palette, and data that hand them out so."""

import dataclasses

import numpy as np
import pytest

from fmjax.data.base import OpenData
from fmjax.data.codecs.base import load_codecs, save_codecs
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.codecs.pixels import PixelCodec, grey_levels
from fmjax.data.digits import CODEC, Digits, read_digits
from fmjax.data.pixels import PixelData
from fmjax.errors import ConfigError, DataError
from fmjax.models.image_gpt import ImageGPT

PALETTE = ((0.0, 0.0, 0.0), (0.9, 0.1, 0.2), (0.2, 0.3, 0.8), (1.0, 1.0, 1.0))


def test_each_pixel_is_the_nearest_colour_and_tokens_lag_by_one(tmp_path):
    codec = PixelCodec(3, 2, 3, PALETTE)
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 3), np.uint8)
    found = codec.encode(image)
    for place, pixel in enumerate(image.reshape(-1, 3) / 255):
        distances = [sum((a - b) ** 2 for a, b in zip(pixel, colour)) for colour in PALETTE]
        assert found["targets"][place] == distances.index(min(distances))
    np.testing.assert_array_equal(found["tokens"], [4, *found["targets"][:-1]])
    again = codec.decode(found)
    np.testing.assert_array_equal(again[1, 1], np.rint(np.array(PALETTE[found["targets"][3]]) * 255))
    np.testing.assert_array_equal(codec.encode(again)["targets"], found["targets"])
    save_codecs({"image": codec}, tmp_path)
    assert load_codecs(tmp_path) == {"image": codec}


def test_what_is_no_image_and_no_palette_is_refused():
    codec = PixelCodec(2, 2, 1, grey_levels(3))
    with pytest.raises(DataError, match=r"an image is uint8 .*, got an array uint8 of shape \(2, 3, 2\)"):
        codec.encode(np.zeros((2, 3, 2), np.uint8))
    with pytest.raises(DataError, match="4 numbers from 0 to 2, got an array int64 .* from 0 to 3"):
        codec.decode({"targets": np.array([0, 1, 2, 3])})
    with pytest.raises(ConfigError, match="two colours or more, 1 numbers each; got 1"):
        PixelCodec(2, 2, 1, ((0.5,),))
    with pytest.raises(ConfigError, match="3 numbers each; got 3"):
        PixelCodec(2, 2, 3, grey_levels(3))


def test_digits_of_17_shades_lose_nothing(tmp_path):
    data = PixelData(Digits(max_shift=0), num_colours=17).open(seed=0, cache_dir=tmp_path)
    images, _, test = read_digits()
    codec, row = data.codecs["image"], data.evaluation["test"][5]
    assert len(data.evaluation["test"]) == test.sum() and data.train[10**6]["tokens"][0] == 17
    np.testing.assert_array_equal(codec.decode(row), CODEC.decode({"images": images[np.flatnonzero(test)[5]]}))
    assert {name: (x.shape, x.dtype.name) for name, x in row.items()} == {
        "tokens": ((64,), "int32"), "targets": ((64,), "int32"), "loss_weights": ((64,), "float32")
    }  # fmt: skip
    assert data.model_fields == {"vocab_size": 18, "max_length": 64}
    with pytest.raises(ConfigError, match="model.vocab_size = 20, but images of 64 pixels of 17 colours"):
        data.check(ImageGPT(hidden_size=8, num_heads=1, vocab_size=20, max_length=64))


@dataclasses.dataclass(frozen=True)
class Blots:
    """Images in three colours, with a little noise."""

    codecs: tuple = ("image",)

    def open(self, **where):
        rng = np.random.default_rng(where["seed"])
        picked = np.array([[10, 20, 200], [250, 240, 10], [120, 120, 120]])[rng.integers(0, 3, (20, 4, 4))]
        pixels = (picked + rng.integers(-2, 3, picked.shape)).astype(np.uint8)
        codec = ImageCodec(4, 4)
        known = {"image": codec, "label": LabelCodec(2)}
        return OpenData([codec.encode(one) for one in pixels], codecs={name: known[name] for name in self.codecs})


def test_a_palette_is_fitted_to_the_training_images(tmp_path):
    data = PixelData(Blots(), num_colours=3, palette="kmeans").open(seed=0, cache_dir=tmp_path)
    expected = np.array([[10, 20, 200], [120, 120, 120], [250, 240, 10]]) / 255
    np.testing.assert_allclose(data.codecs["image"].palette, expected, atol=2 / 255)
    other = PixelData(Blots(), num_colours=3, palette="kmeans").open(seed=7, cache_dir=tmp_path)
    assert other.codecs["image"] == data.codecs["image"]  # nats a pixel of all seeds compare
    for fields, message in [
        (dict(images=Blots()), "data.palette = 'levels' is of grey images, and these have 3 channels"),
        (dict(images=Blots(), num_colours=4000, palette="kmeans"), "20 images have only [0-9]+ colours"),
        (dict(images=Blots(("label",))), "no codec of images .they have label"),
    ]:
        with pytest.raises(ConfigError, match=message):
            PixelData(**fields).open(seed=0, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="data.num_colours = 1 must be from 2"):
        PixelData(Blots(), num_colours=1)
