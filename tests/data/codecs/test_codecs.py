"""Codecs: values come back as they were, files can be looked at, and a run's codec is the one that is loaded."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmjax.data.codecs.base import fingerprint, load_codecs, save_codecs
from fmjax.data.codecs.contact_sheet import LINE, SIDE, contact_sheet
from fmjax.data.codecs.image import CroppedImageCodec, ImageCodec, ResizedImageCodec, UnscaledImageCodec, grid
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.codecs.media import Media
from fmjax.errors import ConfigError, DataError

COLOUR = ImageCodec(4, 6, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_an_image_is_normalised_and_comes_back():
    image = noise((4, 6, 3))
    arrays = COLOUR.encode(image)
    assert arrays["images"].dtype == np.float32
    np.testing.assert_allclose(arrays["images"][1, 2, 1], (image[1, 2, 1] / 255 - 0.456) / 0.224, rtol=1e-5)
    np.testing.assert_array_equal(COLOUR.decode(arrays), image)
    np.testing.assert_array_equal(COLOUR.decode({"images": arrays["images"] + 100}), 255)
    grey = ImageCodec(4, 6, 1)
    np.testing.assert_array_equal(grey.decode(grey.encode(image[..., 0])), image[..., :1])


@pytest.mark.parametrize("value", [noise((6, 4, 2)), noise((4, 6, 3)).astype(np.float32), noise((4,)), "a text", None])
def test_what_is_no_image_is_refused(value):
    with pytest.raises(DataError, match=r"an image is uint8.* \[height, width, 1 or 3 channels\], got"):
        COLOUR.encode(value)


@pytest.mark.parametrize(
    "codec",
    [ImageCodec(4, 6), ResizedImageCodec(4, 6, resample="bicubic"), CroppedImageCodec(4, 6, shortest_edge=7),
     UnscaledImageCodec(4, 6), UnscaledImageCodec(9, 11), ImageCodec(4, 6, 1)],
)  # fmt: skip
def test_what_becomes_of_an_image_is_what_becomes_of_its_file(codec, tmp_path):
    """Arrays, Pillow images and files of any size and number of channels: one rule, the codec's."""
    for number, image in enumerate((noise((9, 11, 3)), noise((9, 11)), noise((4, 6, 3)), noise((5, 4, 1)))):
        Image.fromarray(image.squeeze()).save(tmp_path / f"{number}.png")
        picture = Image.open(tmp_path / f"{number}.png")
        ways = [image, picture, Media("image", tmp_path / f"{number}.png")]
        ways += [picture.convert("P")] * (picture.mode == "L")  # whose numbers are those of a palette
        found = []
        for value in ways:
            try:
                found.append((value.encode(codec) if isinstance(value, Media) else codec.encode(value))["images"])
            except DataError as error:
                found.append(str(error).partition(" is ")[2])
        for one in found[1:]:
            np.testing.assert_array_equal(one, found[0])
        assert isinstance(found[0], str) or found[0].shape == codec.shape
    refused = not codec.scales or codec.channels == 1
    with pytest.raises(DataError, match="images here are") if refused else contextlib.nullcontext():
        codec.encode(noise((8, 8, 3)))


def test_image_files(tmp_path):
    image = noise((4, 6, 3))
    COLOUR.write(image, tmp_path / "one.png")
    np.testing.assert_array_equal(COLOUR.read(tmp_path / "one.png"), image)
    grey = ImageCodec(2, 3, 1)
    with pytest.raises(DataError, match="one.png' is in colour, and images here are grey"):
        grey.read(tmp_path / "one.png")
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(image[..., :1], 3, axis=2)).save(tmp_path / "equal.png")
    assert grey.read(tmp_path / "grey.png").shape == (2, 3, 1)
    np.testing.assert_array_equal(grey.read(tmp_path / "equal.png"), grey.read(tmp_path / "grey.png"))
    np.testing.assert_array_equal(COLOUR.read(tmp_path / "grey.png"), np.repeat(image[..., :1], 3, axis=2))
    # What 8 bits a channel cannot hold would be lost without a word.
    Image.fromarray(image[..., 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
    clear = np.concatenate([image, np.full((4, 6, 1), 255, np.uint8)], axis=2)
    Image.fromarray(clear).save(tmp_path / "opaque.png")
    clear[0, 0, 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(COLOUR.read(tmp_path / "opaque.png"), image)
    for name, message in (("deep", "more than 8 bits a channel .mode I;16."), ("clear", "transparent in places")):
        with pytest.raises(DataError, match=f"{name}.png' .*{message}"):
            COLOUR.read(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "one.png").read_bytes()[:40])
    for name in ("torn.png", "none.png"):
        with pytest.raises(DataError, match=f"{name}' cannot be read as an image"):
            COLOUR.read(tmp_path / name)
    images = [noise((4, 6, 3), seed) for seed in range(5)]
    COLOUR.write_all(images, tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as file:
        np.testing.assert_array_equal(np.asarray(file), grid(images))
    assert grid(images).shape == (9, 20, 3)
    np.testing.assert_array_equal(grid(images)[5:, 7:13], images[4])


def test_a_picture_taken_upright_is_read_upright(tmp_path):
    """Orientation 6 of EXIF: the camera was turned, and what it stored is turned clockwise to be seen."""
    stored = np.repeat(np.repeat(np.array([[0, 80, 160], [40, 120, 240]], np.uint8), 8, axis=0), 8, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "upright.jpg", exif=exif, quality=100)
    want = np.rot90(stored, -1)[..., None].astype(int)
    for codec in (ImageCodec(24, 16, 1), ResizedImageCodec(24, 16, 1), UnscaledImageCodec(24, 16, 1)):
        assert np.abs(codec.read(tmp_path / "upright.jpg") - want).max() <= 3
    with pytest.raises(DataError, match="upright.jpg' is 16x24 pixels, and images here are 24x16; scale it"):
        UnscaledImageCodec(16, 24, 1).read(tmp_path / "upright.jpg")


def test_an_image_too_large_to_open_is_named(tmp_path, monkeypatch):
    COLOUR.write(noise((4, 6, 3)), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(DataError, match="large.png' is too large an image .*; make it smaller"):
        COLOUR.read(tmp_path / "large.png")


def test_labels_have_numbers_and_names():
    codec = LabelCodec(3, ("cat", "dog", "owl"))
    assert codec.encode("dog")["labels"] == codec.encode(1)["labels"] == codec.encode("1")["labels"] == 1
    assert codec.decode(codec.encode("owl")) == "owl" and LabelCodec(3).decode({"labels": np.int32(2)}) == 2
    with pytest.raises(DataError, match="no class 'dgo'; did you mean 'dog'"):
        codec.encode("dgo")
    for wrong in (3, -1, True, 1.5, None):
        with pytest.raises(DataError, match="a label is a whole number from 0 to 2"):
            codec.encode(wrong)


@dataclasses.dataclass(frozen=True)
class Thing:
    what: Any = None


class Plain:
    """What is no dataclass."""


def test_the_codecs_of_a_run_are_the_very_ones_that_are_loaded(tmp_path):
    codecs = {"image": COLOUR, "label": LabelCodec(2, ("a", "b")), "other": Thing(((1, 2), ("a",)))}
    save_codecs(codecs, tmp_path)
    assert load_codecs(tmp_path) == codecs and load_codecs(tmp_path / "elsewhere") == {}
    assert json.loads((tmp_path / "codecs.json").read_text())["image"]["name"] == "image"
    names = {fingerprint(c) for c in (*codecs.values(), dataclasses.replace(COLOUR, std=(1.0,)))}
    assert len(names) == 4
    with pytest.raises(DataError, match="Thing: its fields must be plain values"):
        save_codecs({"other": Thing(pathlib.Path())}, tmp_path)
    for wrong in (Plain(), Thing):
        with pytest.raises(ConfigError, match="(Plain|Thing).* is no instance of a dataclass; a codec is a frozen"):
            fingerprint(wrong)
    (tmp_path / "codecs.json").write_text('{"image": {"name": "image", "depth": 3}}')
    with pytest.raises(DataError, match="codecs.json: .*'depth'"):
        load_codecs(tmp_path)
    (tmp_path / "codecs.json").write_text('{"image": ')
    with pytest.raises(DataError, match="codecs.json is not readable JSON"):
        load_codecs(tmp_path)
    (tmp_path / "codecs.json").write_text('{"image": 3}')
    with pytest.raises(DataError, match="codecs.json holds 3, expected the name of a codec"):
        load_codecs(tmp_path)
    with pytest.raises(ConfigError, match="std = .* has not 1 or 3 numbers"):
        ImageCodec(2, 2, 3, std=(1.0, 2.0))


def test_a_contact_sheet_is_white_where_there_is_nothing():
    sheet = contact_sheet([noise((4, 6, 3))] * 3, ["a", "b", "c"], columns=2)
    assert sheet.shape == (2 * (SIDE + LINE) + 1, 2 * SIDE + 1, 3) and (sheet[SIDE + LINE :, SIDE:] == 255).all()
    assert (sheet[: SIDE + LINE, SIDE:] < 255).any()
