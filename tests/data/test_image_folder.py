"""Folders of images: rows are a pure function of the index, equal files lie on one side, and a bad file is an error."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from fmjax import config as configs
from fmjax.data import image_set, image_settings
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.image_files import labelled_files, split_folders
from fmjax.data.images import ImageData
from fmjax.data.prepared import content_hash
from fmjax.errors import ConfigError, DataError

CODEC = ImageCodec(4, 4, 1)
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, CODEC.shape).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """12 images of two classes, the last two of each equal."""
    for kind, label in enumerate(("cat", "dog")):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(6):
            CODEC.write(image(10 * kind + min(number, 4)), tmp_path / "pets" / label / f"{number}.png")
    (tmp_path / "pets" / "dog" / "licence.txt").write_text("free")
    (tmp_path / "pets" / ".cache").mkdir()
    return tmp_path / "pets"


def opened(folder, tmp_path, seed=0, **options):
    data = ImageData(str(folder), image_size=4, channels=1, **options)
    return data.open(seed=seed, cache_dir=tmp_path / "cache")


def test_rows_are_a_pure_function_of_seed_and_index(folder, tmp_path):
    data = opened(folder, tmp_path, max_shift=1, heldout_fraction=0.0)
    assert data.evaluation == {} and data.model_fields == {"image_size": 4, "num_channels": 1, "num_classes": 2}
    rows = [data.train[i] for i in range(24)]
    again = opened(folder, tmp_path, max_shift=1, heldout_fraction=0.0)
    for i in (17, 3, 23, 0):
        for name, value in again.train[i].items():
            np.testing.assert_array_equal(value, rows[i][name])
    assert any(
        (opened(folder, tmp_path, seed=1, heldout_fraction=0.0).train[i]["images"] != rows[i]["images"]).any()
        for i in range(3)
    )
    # Without moves an epoch is the files, each once, with their labels.
    still = opened(folder, tmp_path, heldout_fraction=0.0)
    epoch = sorted((int(row["labels"]), row["images"].tobytes()) for row in (still.train[12 + i] for i in range(12)))
    files = [
        (kind, CODEC.encode(image(10 * kind + min(n, 4)))["images"].tobytes()) for kind in (0, 1) for n in range(6)
    ]
    assert epoch == sorted(files)
    row = still.train[0]
    assert (row["images"].dtype, row["labels"].dtype, float(row["loss_weights"])) == (np.float32, np.int32, 1.0)
    # A move leaves black where nothing is.
    moves = {tuple(np.argwhere((row["images"] == -1).all(axis=(1, 2))).ravel()) for row in rows}
    assert moves == {(), (0,), (3,)}


def test_equal_images_are_on_one_side_and_content_is_what_counts(folder, tmp_path):
    data = opened(folder, tmp_path, heldout_fraction=0.4)
    held = {row["images"].tobytes() for row in data.evaluation["heldout"]}
    seen = {data.train[i]["images"].tobytes() for i in range(40)}
    assert held and seen and not held & seen and len(held | seen) == 10
    moved = pathlib.Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert opened(moved, tmp_path, heldout_fraction=0.4).identity == data.identity
    CODEC.write(image(99), moved / "cat" / "0.png")
    assert opened(moved, tmp_path, heldout_fraction=0.4).identity != data.identity


def test_folders_of_splits_and_files_named_by_metadata(folder, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(folder, both / "train")
    shutil.copytree(folder / "dog", both / "test" / "dog")
    data = opened(both, tmp_path)
    assert len(data.evaluation["heldout"]) == 6 and {int(row["labels"]) for row in data.evaluation["heldout"]} == {1}
    with pytest.raises(ConfigError, match="heldout_fraction is never read"):
        opened(both, tmp_path, heldout_fraction=0.1)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in labelled_files(folder):
        shutil.copy(file.path, flat / file.name.replace("/", "_"))
    lines = [{"file_name": file.name.replace("/", "_"), "label": file.label} for file in labelled_files(folder)]
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert [(file.label, file.path.read_bytes()) for file in labelled_files(flat)] == [
        (file.label, file.path.read_bytes()) for file in labelled_files(folder)
    ]
    assert split_folders(flat) == {"train": flat}
    for line, message in [
        ('{"file_name": "cat_0.png"}', "line 13: expected"),
        ('{"file_name": "cat_0.png", "label": "dog"}', "'cat_0.png' has a label already"),
        ('{"file_name": "none.png", "label": "dog"}', "none.png' does not exist"),
    ]:
        (flat / "metadata.jsonl").write_text("\n".join([*map(json.dumps, lines), line]))
        with pytest.raises(DataError, match=message):
            labelled_files(flat)


def test_what_is_wrong_with_a_folder_is_said_when_it_is_opened(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere' does not exist"):
        opened(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match="cache' has no image"):
        opened(folder / ".cache", tmp_path)
    with pytest.raises(DataError, match="all 12 images are held out; lower heldout_fraction"):
        opened(folder, tmp_path, heldout_fraction=0.999)
    with pytest.raises(DataError, match=r"0.png' lies in no class's subfolder; put it into one"):
        opened(folder / "cat", tmp_path)
    split = tmp_path / "split"
    shutil.copytree(folder / "cat", split / "train" / "cat")
    shutil.copytree(folder / "dog", split / "test" / "dog")
    with pytest.raises(DataError, match="dog/0.png': no image to train on has its class 'dog'; put some into .*train'"):
        opened(split, tmp_path)
    whole = (folder / "cat" / "3.png").read_bytes()
    (folder / "cat" / "3.png").write_bytes(whole[:50])
    with pytest.raises(DataError, match="cat/3.png' cannot be read as an image"):
        opened(folder, tmp_path)
    ImageCodec(4, 4, 3).write(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), folder / "cat" / "3.png")
    with pytest.raises(DataError, match="cat/3.png' is in colour"):
        opened(folder, tmp_path)


def test_few_images_of_each_class_are_among_those_of_more(folder, tmp_path):
    for number in range(2, 6):
        (folder / "dog" / f"{number}.png").unlink()
    few = lambda count, seed=0: [
        (int(row["labels"]), row["images"].tobytes())
        for row in map(
            opened(folder, tmp_path, seed, heldout_fraction=0.0, train_images=count).train.__getitem__, range(count)
        )
    ]
    counts = lambda rows: [sum(label == kind for label, _ in rows) for kind in (0, 1)]
    assert [counts(few(count)) for count in (2, 4, 6, 8)] == [[1, 1], [2, 2], [4, 2], [6, 2]]
    assert sorted(counts(few(3))) == [1, 2]
    assert set(few(2)) <= set(few(4)) <= set(few(6))
    assert len({frozenset(few(2, seed)) for seed in range(8)}) > 1
    data = opened(folder, tmp_path, heldout_fraction=0.0, train_images=1)  # a class without an image keeps its number
    assert data.model_fields["num_classes"] == 2
    with pytest.raises(DataError, match="data.train_images = 9, but .*pets' has 8 images to train on"):
        opened(folder, tmp_path, heldout_fraction=0.0, train_images=9)
    with pytest.raises(ConfigError, match="data.train_images = 0 must be at least 1"):
        opened(folder, tmp_path, train_images=0)


def folder_of(at, *names):
    for name in names:
        (at / name).mkdir(parents=True)
    return at


def test_subfolders_are_splits_where_all_have_the_whole_name_of_one(tmp_path, caplog):
    for number, names in enumerate([("bus_station", "train_station"), ("test-tube", "train.set")]):
        classes = folder_of(tmp_path / str(number), *names)
        assert split_folders(classes) == {"train": classes} and not caplog.text
    classes = folder_of(tmp_path / "vehicles", "bus", "train")
    assert split_folders(classes) == {"train": classes} and "train are taken for classes" in caplog.text
    splits = folder_of(tmp_path / "splits", "Train", "val", "test")
    assert split_folders(splits) == {"train": splits / "Train", "heldout": splits / "val"}
    for number, names, message in [
        (3, ("train", "training", "test"), "has 'train' and 'training', which are one split; merge.*metadata.jsonl"),
        (4, ("train", "val", "validation"), "has 'val' and 'validation', which are one split"),
        (5, ("dev", "test"), "has splits .dev, test., and 'train' is missing; choose.*metadata.jsonl"),
    ]:
        with pytest.raises(DataError, match=message):
            split_folders(folder_of(tmp_path / str(number), *names))


def test_what_a_hash_holds_out_of_few_images_is_explained(folder, tmp_path, caplog, monkeypatch):
    for number in range(1, 6):
        (folder / "dog" / f"{number}.png").unlink()
    name = content_hash(folder / "dog" / "0.png", tmp_path)
    monkeypatch.setattr(image_settings, "is_heldout", lambda content, fraction: fraction > 0.5 and content == name)
    with pytest.raises(DataError, match="has its class 'dog'; lower data.heldout_fraction, or make folders train and"):
        opened(folder, tmp_path, heldout_fraction=0.6)
    assert opened(folder, tmp_path, heldout_fraction=0.0).evaluation == {} and not caplog.text
    assert opened(folder, tmp_path, heldout_fraction=0.4).evaluation == {}
    assert "none of its 7 images is held out at data.heldout_fraction = 0.4" in caplog.text


def test_another_reading_of_the_same_files_is_other_data(folder, tmp_path, monkeypatch):
    before = opened(folder, tmp_path).identity
    monkeypatch.setattr(image_set, "READING", "as stored")
    assert opened(folder, tmp_path).identity != before


def test_a_config_of_digits_takes_a_folder(folder, tmp_path):
    changes = {"data.name": "images", "data.source": str(folder), "data.image_size": "4", "data.channels": "1"}
    plain = configs.load_config_file(str(CONFIGS / "vit_digits.py"))
    assert configs.resolve(configs.apply_overrides(plain, changes)).data.source == str(folder)
    for key, value, message in [
        ("data.image_size", "0", "data.image_size = 0 must be at least 1"),
        ("data.channels", "2", "channels = 2 must be 1 or 3"),
        ("data.max_shift", "4", "data.max_shift = 4 must be from 0 to 3"),
    ]:
        with pytest.raises(ConfigError, match=message):
            configs.resolve(configs.apply_overrides(plain, changes | {key: value}))
