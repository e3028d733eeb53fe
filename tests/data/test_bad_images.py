"""Images that cannot be used: refused, or left out, counted and named; and a run over many of which some are."""

import dataclasses
import io
import json
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fmjax import config as configs
from fmjax.data import image_set
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.images import ImageData
from fmjax.errors import ConfigError, DataError
from fmjax.objectives.classification import Classification
from fmjax.training.loop import train

pytestmark = pytest.mark.usefixtures("one_device")


def saved(array, format="PNG", mode=None, **options) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, format=format, **options)
    return file.getvalue()


def deep_colour() -> bytes:
    """A PNG of 2x2 pixels with 16 bits a channel, which Pillow cannot write."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + np.arange(6, dtype=">u2").tobytes() for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def noise(seed, shape=(40, 40, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


COLOUR, GREY = noise(0), noise(1, (40, 40))
CLEAR = np.concatenate([COLOUR, np.full((40, 40, 1), 100, np.uint8)], axis=-1)
BAD = {
    "torn.png": (saved(COLOUR)[:1000], "cannot be read as an image"),
    "torn.jpg": (saved(COLOUR, "JPEG")[:600], "cannot be read as an image"),
    "changed.png": (saved(COLOUR)[:300] + b"\0\0\0\0" + saved(COLOUR)[304:], "cannot be read as an image"),
    "empty.png": (b"", "it is of no known format"),
    "text.png": (b"<html>404</html>", "it is of no known format"),
    "deep.png": (saved(GREY.astype(np.uint16)), "more than 8 bits a channel"),
    "deep_colour.png": (deep_colour(), "more than 8 bits a channel"),
    "clear.png": (saved(CLEAR), "is transparent in places"),
}
GOOD = {
    "grey.png": saved(GREY),
    "cmyk.jpg": saved(COLOUR, "JPEG", mode="CMYK"),
    "palette.gif": saved(GREY, "GIF"),
    "moving.gif": saved(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
    "stride.bmp": saved(COLOUR[:5, :5], "BMP"),
    "opaque.png": saved(np.concatenate([COLOUR, np.full((40, 40, 1), 255, np.uint8)], axis=-1)),
}


@pytest.mark.parametrize("name", [*BAD, *GOOD])
def test_what_is_wrong_with_a_file_is_said_and_what_is_right_is_read(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD[name][0] if name in BAD else GOOD[name])
    if name in BAD:
        with pytest.raises(DataError, match=f"{name}' .*{BAD[name][1]}"):
            ImageCodec(8, 8).read(path)
    else:
        pixels = ImageCodec(8, 8).read(path)
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        if name in ("grey.png", "moving.gif", "palette.gif"):  # the first frame
            small = Image.fromarray(GREY).resize((8, 8), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(pixels[..., 0], np.asarray(small), atol=1)


def test_colour_among_grey_is_said(tmp_path):
    for name in ("cmyk.jpg", "opaque.png", "grey.png"):
        (tmp_path / name).write_bytes(GOOD[name])
    assert ImageCodec(8, 8, 1).read(tmp_path / "grey.png").shape == (8, 8, 1)
    for name in ("cmyk.jpg", "opaque.png"):
        with pytest.raises(DataError, match=f"{name}' is in colour, and images here are grey"):
            ImageCodec(8, 8, 1).read(tmp_path / name)


@pytest.fixture
def many(tmp_path):
    """300 images of two classes, 3 of them bad."""
    for index in range(300):
        folder = tmp_path / "many" / ("ab"[index % 2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(saved(noise(index, (4, 4, 3))))
    for name, index in (("torn.png", 17), ("empty.png", 40), ("clear.png", 201)):
        (tmp_path / "many" / "ab"[index % 2] / f"{index}.png").write_bytes(BAD[name][0])
    return tmp_path / "many"


def test_a_run_over_images_of_which_a_hundredth_is_bad_ends_and_says_how_many(many, tmp_path, caplog):
    config = {
        "train": {"steps": 12, "batch_size": 32, "eval_every": 12, "log_every": 12},
        "model": {
            "name": "vit", "num_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "patch_size": 4,
        },
        "objective": {"name": "classification"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "data": {"name": "images", "source": str(many), "image_size": 4},
    }  # fmt: skip
    with pytest.raises(DataError, match="3 of 300 images cannot be read; .*40.png.*data.bad_images = 'skip'"):
        train(configs.resolve(config), tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    config = configs.apply_overrides(config, {"data.bad_images": "skip"})
    with caplog.at_level(logging.INFO, "fmjax"):
        train(configs.resolve(config), tmp_path / "skipping", cache_dir=tmp_path / "cache", progress=False)
    assert "3 of 300 images cannot be read and are left out" in caplog.text
    for name in ("17.png", "40.png", "201.png"):
        assert f"{name}' " in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "skipping" / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 12


def test_when_all_are_bad_and_when_many_are(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "few" / "a"
    folder.mkdir(parents=True)
    for index in range(15):
        (folder / f"{index:02}.png").write_bytes(b"x")
    opening = ImageData(str(folder.parent), 4, bad_images="skip", heldout_fraction=0.0)
    with pytest.raises(DataError, match="15 of 15 images cannot be read"):
        opening.open(seed=0, cache_dir=tmp_path / "cache")
    (folder / "good.png").write_bytes(saved(COLOUR))
    data = opening.open(seed=0, cache_dir=tmp_path / "cache")
    assert data.train[0]["images"].shape == (4, 4, 3)
    assert "09.png" in caplog.text and "10.png" not in caplog.text and "and 5 more; all of them: " in caplog.text
    kept = caplog.text.partition("all of them: ")[2].split()[0]
    assert len(json.load(open(kept))) == 15
    # What becomes of decoded pixels does not decide what can be read.
    monkeypatch.setattr(image_set, "_bad", lambda *_: pytest.fail("files are read again"))
    other = dataclasses.replace(opening, image_size=8, mean=(0.1,))
    data = other.open(seed=0, cache_dir=tmp_path / "cache")
    with pytest.raises(ConfigError, match="all of these data have one class, 'a', .* a subfolder for each class"):
        Classification().check(None, data)
