"""Augmentation: closed forms of every change, the laws that crops and mixtures are drawn by, and rows that are a pure
function of the seed and the index, on however many threads."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import config as configs
from fmjax.data.augmentation.geometry import Flip, RandomResizedCrop
from fmjax.data.augmentation.mixing import Mixing, beta, box
from fmjax.data.augmentation.rand_augment import OPERATIONS, RandAugment, apply
from fmjax.data.augmentation.standard import Standard
from fmjax.data.codecs.base import load_codecs, save_codecs
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.images import ImageData
from fmjax.data.loader import Loader
from fmjax.data.shuffle import Draws
from fmjax.errors import ConfigError
from fmjax.objectives.classification import Classification

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)


def test_draws_are_uniform_and_named_by_their_seed():
    draws = Draws("a", 1)
    numbers = np.array([draws.uniform(2, 6) for _ in range(4000)])
    assert abs(numbers.mean() - 4) < 0.1 and numbers.min() >= 2 and numbers.max() < 6
    assert abs(np.bincount([draws.below(3) for _ in range(3000)]) - 1000).max() < 100
    assert Draws("a", 1).uniform(2, 6) == numbers[0] != Draws("a", 2).uniform(2, 6)
    assert sorted(draws.some(range(5), 5)) == [0, 1, 2, 3, 4]


def test_crops_have_the_areas_and_ratios_asked_for():
    crop = RandomResizedCrop(0.25, 1.0, 1.0)
    boxes = [crop.box(200, 200, Draws(i)) for i in range(1500)]
    areas = np.array([(r - left) * (b - top) for left, top, r, b in boxes]) / 200**2
    np.testing.assert_allclose(np.quantile(areas, [0, 0.25, 0.5, 0.75, 1]), [0.25, 0.44, 0.63, 0.81, 1], atol=0.03)
    assert all(0 <= left < r <= 200 and 0 <= top < b <= 200 for left, top, r, b in boxes)
    lefts = np.array([left / (200 - (r - left)) for left, top, r, b in boxes if r - left < 150])
    assert abs(lefts.mean() - 0.5) < 0.05 and lefts.min() == 0 and lefts.max() == 1
    ratios = [
        (r - left) / (b - top) for left, top, r, b in (RandomResizedCrop().box(300, 400, Draws(i)) for i in range(300))
    ]
    assert 0.74 < min(ratios) < 0.78 and 1.29 < max(ratios) < 1.35 and abs(np.log(ratios).mean()) < 0.05
    # A strip holds no such part of half its area: the middle, as wide as the ratio lets it be.
    assert RandomResizedCrop(0.5).box(30, 400, Draws(0)) == (180, 0, 220, 30)


def grey(image):
    return (image[..., 0] * 19595 + image[..., 1] * 38470 + image[..., 2] * 7471 + 0x8000).astype(np.int64) >> 16


def blended(base, factor):
    return np.clip(base + factor * (IMAGE.astype(np.float32) - base), 0, 255).astype(np.uint8)


def sheared(amount):
    moved = np.zeros_like(IMAGE)
    for y in range(12):
        for x in range(10):
            source = math.floor(x + 0.5 + amount * (y + 0.5))
            if 0 <= source < 10:
                moved[y, x] = IMAGE[y, source]
    return moved


TALL = np.tile(IMAGE // 2, (6, 1, 1))  # dark, and enough pixels for a histogram


def equalized():
    """Each channel by the rule of Pillow: a table from the histogram's running sum."""
    made = np.empty_like(TALL)
    for channel in range(3):
        counts = np.bincount(TALL[..., channel].ravel(), minlength=256)
        used = counts[counts > 0]
        step = (used.sum() - used[-1]) // 255
        table = np.arange(256) if not step else (step // 2 + np.cumsum(counts) - counts) // step
        made[..., channel] = np.minimum(table, 255)[TALL[..., channel]]
    return made


def autocontrasted():
    low, high = (f(IMAGE.reshape(-1, 3), axis=0).astype(float) for f in (np.min, np.max))
    scale = 255 / (high - low)
    return np.clip((IMAGE * scale - low * scale).astype(int), 0, 255).astype(np.uint8)


CASES = {
    "identity": (0.7, lambda: IMAGE),
    "brightness": (0.5, lambda: blended(0.0, 1.45)),
    "colour": (-1.0, lambda: blended(grey(IMAGE.astype(np.int64))[..., None].astype(np.float32), 0.1)),
    "contrast": (-0.5, lambda: blended(float(int(grey(IMAGE.astype(np.int64)).mean() + 0.5)), 0.55)),
    "posterize": (1.0, lambda: IMAGE & 0xF0),
    "solarize": (0.5, lambda: np.where(IMAGE < 128, IMAGE, 255 - IMAGE)),
    "translate_x": (-2 / 4.5, lambda: np.concatenate([np.zeros((12, 2, 3), np.uint8), IMAGE[:, :-2]], axis=1)),
    "translate_y": (3 / 5.4, lambda: np.concatenate([IMAGE[3:], np.zeros((3, 10, 3), np.uint8)], axis=0)),
    "shear_x": (1.0, lambda: sheared(0.3)),
    "equalize": (1.0, equalized),
    "autocontrast": (1.0, autocontrasted),
}


@pytest.mark.parametrize("name", CASES)
def test_a_change_is_what_its_formula_says(name):
    strength, expected = CASES[name]
    image = TALL if name == "equalize" else IMAGE
    found = apply(name, image, strength)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected()).max() <= 1
    assert name == "identity" or (found != image).any()


def test_the_other_changes_by_what_they_leave_alone():
    np.testing.assert_array_equal(
        apply("shear_y", IMAGE, 0.8), apply("shear_x", IMAGE.swapaxes(0, 1), 0.8).swapaxes(0, 1)
    )
    disc = np.hypot(*np.meshgrid(np.arange(41) - 20, np.arange(41) - 20)) < 12
    image = np.uint8(255 * disc)[..., None]
    assert (apply("rotate", image, 1.0) != image).mean() < 0.03  # a disc turned is a disc
    line = np.zeros((41, 41, 1), np.uint8)
    line[20] = 255
    y, x = np.nonzero(apply("rotate", line, 1.0)[..., 0])
    assert np.polyfit(x, y, 1)[0] == pytest.approx(-math.tan(math.radians(30)), abs=0.02)  # counter-clockwise
    flat = np.full((6, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(apply("sharpness", flat, 1.0), flat)
    assert apply("sharpness", IMAGE, -1.0).astype(float).std() < IMAGE.std() < apply("sharpness", IMAGE, 1.0).std()
    for name in OPERATIONS:
        assert apply(name, IMAGE, 0.5).shape == IMAGE.shape and apply(name, IMAGE[..., :1], 0.5).shape == (12, 10, 1)
    changed = [(RandAugment(2, 9.0)(IMAGE, Draws(i)) != IMAGE).any() for i in range(60)]
    assert 45 < sum(changed) <= 60
    flips = [(Flip(0.25)(IMAGE, Draws(i)) == IMAGE[:, ::-1]).all() for i in range(800)]
    assert abs(np.mean(flips) - 0.25) < 0.05


def test_mixup_and_cutmix_mix_labels_as_they_mix_pixels():
    first, second = np.full((8, 6, 1), 1.0, np.float32), np.full((8, 6, 1), -1.0, np.float32)
    labels = np.eye(3, dtype=np.float32)[0], np.eye(3, dtype=np.float32)[2]
    for mixing in (Mixing(mixup=0.4), Mixing(cutmix=1.0)):
        for index in range(40):
            image, label = mixing(first, second, labels, Draws(index))
            assert image.dtype == label.dtype == np.float32
            assert label[0] + label[2] == pytest.approx(1) and label[1] == 0
            assert image.mean() == pytest.approx(label[0] - label[2], abs=1e-5)
            if mixing.mixup:
                assert np.ptp(image) == 0
            else:
                rows, columns = (np.flatnonzero((image[..., 0] < 0).any(axis=axis)) for axis in (1, 0))
                assert set(np.unique(image)) <= {-1.0, 1.0} and (image < 0).sum() == len(rows) * len(columns)
    both = [Mixing(0.4, 1.0)(first, second, labels, Draws(i))[0] for i in range(200)]
    assert 70 < sum(np.ptp(image) == 0 for image in both) < 150
    for alpha in (0.2, 1.0, 3.0):
        draws = Draws(alpha)
        shares = np.array([beta(alpha, draws) for _ in range(3000)])
        assert abs(shares.mean() - 0.5) < 0.03 and shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    # A quarter of the area has half of each side, where it is not cut off.
    sizes = {(b - t, r - left) for t, b, left, r in (box(100, 60, 0.25, Draws(i)) for i in range(200))}
    assert max(sizes) == (50, 30)


def test_soft_labels_give_the_mean_of_the_losses():
    logits = jax.random.normal(jax.random.key(0), (4, 5))
    weights, share = jnp.array([1.0, 1, 0, 2]), jnp.array([0.25, 1, 0.5, 0.75])
    first, second = jnp.array([0, 1, 2, 3]), jnp.array([4, 4, 4, 4])

    def loss(logits, labels):
        batch = {"images": jnp.zeros((4, 1)), "labels": labels, "loss_weights": weights}
        sums = Classification(label_smoothing=0.1)(lambda *_, **__: logits, {}, batch, jax.random.key(0), True)
        return sums["loss"][0], sums["accuracy"]

    soft = share[:, None] * jax.nn.one_hot(first, 5) + (1 - share)[:, None] * jax.nn.one_hot(second, 5)
    found, (right, total) = loss(logits, soft)
    # Each row's loss alone, by the gradient of the sum in its weight.
    rows = lambda labels: jnp.stack(
        [loss(jnp.where(jnp.arange(4)[:, None] == i, logits, 0), labels)[0] for i in range(4)]
    )
    flat = loss(jnp.zeros((4, 5)), first)[0]
    alone = lambda labels: rows(labels) - flat + weights * jnp.log(5.0)
    np.testing.assert_allclose(found, (share * alone(first) + (1 - share) * alone(second)).sum(), rtol=1e-5)
    assert total == 4 and right == (weights * (logits.argmax(-1) == soft.argmax(-1))).sum()
    hard = jax.grad(lambda x: loss(x, jax.nn.one_hot(first, 5))[0])(logits)
    np.testing.assert_allclose(hard, jax.grad(lambda x: loss(x, first)[0])(logits), atol=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    codec = ImageCodec(20, 16)
    for kind in ("cat", "dog", "owl"):
        (folder / kind).mkdir()
        for number in range(7):
            picture = np.random.default_rng([number, ord(kind[0])]).integers(0, 256, (20, 16, 3)).astype(np.uint8)
            codec.write(picture, folder / kind / f"{number}.png")
    return folder


ALL = Standard(min_area=0.3, flip=0.5, rand_augment=2, magnitude=5.0, mixup=0.2, cutmix=1.0)


def opened(photos, tmp_path, seed=0, **fields):
    data = ImageData(str(photos), image_size=8, heldout_fraction=0.3, mean=(0.5, 0.4, 0.3), std=(0.2,), **fields)
    return data.open(seed=seed, cache_dir=tmp_path)


def test_augmented_rows_are_a_pure_function_of_seed_and_index_on_any_threads(photos, tmp_path):
    data = opened(photos, tmp_path, augmentation=ALL)
    rows = [data.train[i] for i in range(24)]
    again = opened(photos, tmp_path, augmentation=ALL)
    for index in (20, 3, 0):
        for name, value in again.train[index].items():
            np.testing.assert_array_equal(value, rows[index][name])
    assert any(
        (opened(photos, tmp_path, 1, augmentation=ALL).train[i]["images"] != rows[i]["images"]).any() for i in range(2)
    )
    for threads in (0, 4):
        with contextlib.closing(Loader(data.train, 8, num_threads=threads)) as loader:
            for step in range(3):
                np.testing.assert_array_equal(
                    next(loader)["images"], [r["images"] for r in rows[8 * step : 8 * step + 8]]
                )
    assert {(row["images"].shape, row["labels"].shape, row["labels"].dtype.name) for row in rows} == {
        ((8, 8, 3), (3,), "float32")
    }
    assert {round(float(row["labels"].sum()), 5) for row in rows} == {1.0}
    assert len({row["images"].tobytes() for row in rows}) == 24


def test_what_is_evaluated_is_not_changed_and_statistics_lie_in_the_codec(photos, tmp_path):
    data, plain = opened(photos, tmp_path, augmentation=ALL), opened(photos, tmp_path)
    assert len(data.evaluation["heldout"]) == len(plain.evaluation["heldout"]) > 0
    for row, expected in zip(data.evaluation["heldout"], plain.evaluation["heldout"]):
        np.testing.assert_array_equal(row["images"], expected["images"])
        np.testing.assert_array_equal(row["labels"], np.eye(3)[expected["labels"]])
    save_codecs(data.codecs, tmp_path)
    codec = load_codecs(tmp_path)["image"]
    assert codec == data.codecs["image"] and codec.mean == (0.5, 0.4, 0.3) and codec.std == (0.2,)
    read = codec.read(photos / "cat" / "0.png")
    np.testing.assert_array_equal(codec.decode(codec.encode(read)), read)
    np.testing.assert_allclose(codec.encode(read)["images"], (read / 255 - [0.5, 0.4, 0.3]) / 0.2, rtol=1e-4, atol=1e-5)


def test_configs_name_augmentations():
    section = {"name": "images", "source": "x", "image_size": 8, "augmentation": {"name": "standard", "flip": 0.5}}
    raw = {
        "model": {"name": "vit", "num_layers": 1, "hidden_size": 8, "num_heads": 1, "patch_size": 2},
        "data": section,
    }
    raw |= {"objective": {"name": "classification"}, "optimizer": {"name": "adamw", "learning_rate": 1e-3}}
    raw |= {"train": {"steps": 1, "batch_size": 2}}
    config = configs.resolve(configs.apply_overrides(raw, {"data.augmentation.mixup": "0.2"}))
    data = configs.build(config.data, configs.PLUGINS["data"])
    assert data.augmentation == Standard(flip=0.5, mixup=0.2)
    for fields, message in [
        ({"flip": 1.5}, "augmentation.flip = 1.5 must be from 0 to 1"),
        ({"min_area": 0.0}, "min_area = 0.0 must be from 0.001"),
        ({"magnitude": 3.0}, "magnitude is never read without data.augmentation.rand_augment"),
        ({"rand_augment": 1, "magnitude": 11.0}, "magnitude = 11.0 must be from 0 to 10"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Standard(**fields)
    with pytest.raises(ConfigError, match="soft labels are of 3 classes, and model.num_classes = 4"):
        row = {"labels": np.zeros(3, np.float32)}
        Classification().check(type("M", (), {"num_classes": 4}), type("D", (), {"train": [row], "codecs": {}}))
