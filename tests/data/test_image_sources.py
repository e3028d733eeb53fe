"""The same few images from folders, tars, Parquet, IDX files, caption files and TFDS: the same pixels, classes and
captions; and what is wrong with a source is said."""

import csv
import dataclasses
import errno
import gzip
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fmjax.data.captioned_images import CaptionedImages
from fmjax.data.image_sources.opening import open_image_sets
from fmjax.data.image_sources.records import Fields
from fmjax.data.images import ImageData
from fmjax.errors import ConfigError, DataError, RunError

CLASSES = ("cat", "dog", "owl")
NAMES = [f"{i}" for i in range(12)]


def picture(index) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (6, 5, 3)).astype(np.uint8)


def png(index) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(index)).save(file, format="PNG")
    return file.getvalue()


def label(index) -> str:
    return CLASSES[index % 3]


def captions(index) -> list[str]:
    return [f"a {label(index)}, number {index}", f"{index}: this, too, is a {label(index)}"]


def write_folder(at):
    for index in range(12):
        (at / label(index)).mkdir(parents=True, exist_ok=True)
        (at / label(index) / f"{index}.png").write_bytes(png(index))
    return at


def write_tar(path, indices=range(12), texts=True):
    with tarfile.open(path, "w") as tar:
        for index in indices:
            record = {"label": label(index)} | ({"captions": captions(index)} if texts else {})
            for suffix, content in (("png", png(index)), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"./part/{index:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path, indices=range(12), metadata=True):
    table = pyarrow.table({
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in indices],
        "label": [i % 3 for i in indices],
        "caption": [captions(i) for i in indices],
    })  # fmt: skip
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=5)
    return path


def write_captions(at, suffix="csv", missing=()):
    """at/captions.SUFFIX and the images in at/images."""
    (at / "images").mkdir(parents=True)
    for index in range(12):
        if index not in missing:
            (at / "images" / f"{index}.png").write_bytes(png(index))
    with open(at / f"captions.{suffix}", "w", newline="", encoding="utf-8-sig" if suffix == "csv" else "utf-8") as file:
        if suffix == "jsonl":
            file.writelines(json.dumps({"file_name": f"{i}.png", "captions": captions(i)}) + "\n" for i in range(12))
        else:
            writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
            writer.writerow(["image", "caption"])
            writer.writerows([f"{i}.png", text] for i in range(12) for text in captions(i))
    return at


def zipped(at):
    """The images of `write_captions` in a zip with a folder, every other one compressed."""
    with zipfile.ZipFile(at / "all.zip", "w") as archive:
        for number, path in enumerate(sorted((at / "images").iterdir())):
            kind = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.write(path, f"photos/{path.name}", compress_type=kind)
    shutil.rmtree(at / "images")
    return at


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """The features of CIFAR-10 and of coco_captions in one."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "captions": tfds.features.Sequence({"id": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}),
        }))  # fmt: skip

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(12)), "test": self._generate_examples(range(3))}

    def _generate_examples(self, indices):
        for i in indices:
            texts = [{"id": n, "text": text} for n, text in enumerate(captions(i))]
            yield str(i), {"image": io.BytesIO(png(i)), "label": label(i), "captions": texts}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The folder with a prepared dataset."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyPhotos(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def seen(data, rows) -> dict[bytes, tuple[set, int]]:
    """Pixels of the images in rows -> (what is said of them, how often)."""
    found: dict[bytes, tuple[set, int]] = {}
    for row in rows:
        if "tokens" in row:
            said = data.tokenizer.decode(row["tokens"][row["segment_ids"] == 1].tolist())
        else:
            said = data.codecs["label"].decode(row)
        key = data.codecs["image"].decode(row).tobytes()
        old, count = found.get(key, (set(), 0))
        found[key] = (old | {said}, count + 1)
    return found


def scaled(index) -> bytes:
    return np.asarray(Image.fromarray(picture(index)).resize((4, 4), Image.Resampling.BILINEAR)).tobytes()


SOURCES = {
    "folder": lambda at, where: str(write_folder(at / "pets")),
    "tar": lambda at, where: str(write_tar(at / "pets.tar")),
    "parquet": lambda at, where: str(write_parquet(at / "pets.parquet")),
    "csv": lambda at, where: str(write_captions(at / "pets")),
    "tsv file": lambda at, where: str(write_captions(at / "pets", "tsv") / "captions.tsv"),
    "jsonl": lambda at, where: str(write_captions(at / "pets", "jsonl")),
    "zip": lambda at, where: str(zipped(write_captions(at / "pets"))),
    "tfds": lambda at, where: "tfds:tiny_photos:train",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_images_come_from_everywhere(kind, tmp_path, dataset):
    source = SOURCES[kind](tmp_path, dataset)
    place = {"tfds_data_dir": str(dataset)} if kind == "tfds" else {}
    common = {"source": source, "image_size": 4, "heldout_fraction": 0.0, **place}
    if kind in ("folder", "tar", "parquet", "tfds"):
        data = ImageData(**common).open(seed=0, cache_dir=tmp_path / "cache")
        assert data.codecs["label"].names == CLASSES
        found = seen(data, [data.train[i] for i in range(24)])
        assert found == {scaled(i): ({label(i)}, 2) for i in range(12)}
    if kind != "folder":
        opening = CaptionedImages(**common, tokenizer="bytes", sequence_length=48)
        data = opening.open(seed=0, cache_dir=tmp_path / "cache")
        found = seen(data, [data.train[i] for i in range(240)])
        assert found == {scaled(i): (set(captions(i)), 20) for i in range(12)}
        labels = {int(data.train[i]["labels"]) for i in range(12)}
        assert len(labels) == 12 and data.evaluation == {}
        assert opening.open(seed=0, cache_dir=tmp_path / "other").identity == data.identity


def test_held_out_images_come_with_all_their_captions_and_splits_have_names(tmp_path, dataset):
    data = CaptionedImages("tfds:tiny_photos", 4, tfds_data_dir=str(dataset), tokenizer="bytes")
    data = data.open(seed=0, cache_dir=tmp_path)
    rows = list(data.evaluation["heldout"])
    assert seen(data, rows) == {scaled(i): (set(captions(i)), 2) for i in range(3)}
    assert [int(row["labels"]) for row in rows] == [0, 0, 1, 1, 2, 2] and len(data.documents("heldout")) == 6
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, part in (("train-00", range(5)), ("train-01", range(5, 9)), ("val-00", range(9, 12))):
        write_tar(shards / f"{name}.tar", part)
    data = ImageData(str(shards), 4).open(seed=0, cache_dir=tmp_path / "cache")
    assert set(seen(data, data.evaluation["heldout"])) == {scaled(i) for i in (9, 10, 11)}
    assert len(seen(data, [data.train[i] for i in range(9)])) == 9
    glob = ImageData(str(shards / "train-*.tar"), 4, heldout_fraction=0.0).open(seed=0, cache_dir=tmp_path / "cache")
    assert len(seen(glob, [glob.train[i] for i in range(9)])) == 9
    with pytest.raises(ConfigError, match="heldout_fraction is never read"):
        ImageData(str(shards), 4, heldout_fraction=0.1).open(seed=0, cache_dir=tmp_path / "cache")
    table = write_captions(tmp_path / "split", "jsonl") / "captions.jsonl"
    lines = [json.loads(line) | {"split": "val" if i < 4 else "train"} for i, line in enumerate(table.open())]
    table.write_text("\n".join(map(json.dumps, lines)))
    sets = open_image_sets(str(table), Fields(), tmp_path / "cache", captions=True)
    assert sorted(sets["heldout"].names) == ["0.png", "1.png", "2.png", "3.png"] and len(sets["train"]) == 8


def test_captions_of_classes_by_templates(tmp_path):
    write_folder(tmp_path / "pets")
    data = CaptionedImages(
        str(tmp_path / "pets"), 4, tokenizer="bytes", templates=("a photo of a {}.", "{x} {}!"), heldout_fraction=0.3
    ).open(seed=0, cache_dir=tmp_path / "cache")
    rows = [data.train[i] for i in range(60)]
    for said, _ in seen(data, rows).values():
        assert len(said) == 2
    for row in [*rows, *data.evaluation["heldout"]]:
        name = CLASSES[int(row["labels"])]
        text = data.tokenizer.decode(row["tokens"][row["segment_ids"] == 1].tolist())
        assert text in (f"a photo of a {name}.", f"{{x}} {name}!")


def write_idx(path, array):
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(head + array.tobytes()))


def test_idx_files(tmp_path):
    images, labels = np.arange(12 * 16).reshape(12, 4, 4).astype(np.uint8), np.array([3, 10] * 6, np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images[:8])
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels[:8])
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images[8:])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels[8:])
    data = ImageData(str(tmp_path), 4, channels=1).open(seed=0, cache_dir=tmp_path / "cache")
    assert data.codecs["label"].names == ("3", "10")
    assert seen(data, [data.train[i] for i in range(8)]) == {
        images[i].tobytes(): ({str(labels[i])}, 1) for i in range(8)
    }
    assert [row["images"].shape for row in data.evaluation["heldout"]] == [(4, 4, 1)] * 4
    single = ImageData(str(tmp_path / "t10k-images-idx3-ubyte"), 4, heldout_fraction=0.0)
    row = single.open(seed=0, cache_dir=tmp_path / "cache").train[0]["images"]
    assert row.shape == (4, 4, 3) and (row == row[..., :1]).all()
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels[9:])
    with pytest.raises(
        DataError, match=r"images of shape \(4, 4, 4\), and .* labels of shape \(3,\): they do not belong"
    ):
        ImageData(str(tmp_path), 4, channels=1).open(seed=0, cache_dir=tmp_path / "cache")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no file of labels beside it"):
        ImageData(str(tmp_path), 4, channels=1).open(seed=0, cache_dir=tmp_path / "cache")


def test_classes_that_files_number_are_named(tmp_path):
    images, labels = np.arange(4 * 16).reshape(4, 4, 4).astype(np.uint8), np.array([1, 0, 1, 2], np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    names = ("owl", "cat", "dog")
    opened = lambda names: ImageData(str(tmp_path), 4, channels=1, class_names=names, heldout_fraction=0.0).open(
        seed=0, cache_dir=tmp_path / "cache"
    )
    data = opened(names)
    assert seen(data, [data.train[i] for i in range(4)]) == {
        images[i].tobytes(): ({names[labels[i]]}, 1) for i in range(4)
    }
    with pytest.raises(ConfigError, match="data.class_names has 2 names, for classes 0 to 1; .* classes are 0, 1, 2"):
        opened(("owl", "cat"))
    with pytest.raises(ConfigError, match="data.class_names has '7'; a name must not be empty, nor a number"):
        opened(("owl", "7", "dog"))
    with pytest.raises(ConfigError, match="has a name twice"):
        opened(("owl", "owl", "dog"))


def test_what_is_wrong_with_a_source_is_said(tmp_path, dataset):
    def refused(message, kind=ImageData, error=DataError, source=None, **fields):
        with pytest.raises(error, match=message):
            kind(str(source or tmp_path / "x"), 4, **fields).open(seed=0, cache_dir=tmp_path / "cache")

    refused("does not exist; expected a folder of images")
    (tmp_path / "empty").mkdir()
    refused("'.*empty' has no image", source=tmp_path / "empty")
    refused("'.*empty' has no image", CaptionedImages, source=tmp_path / "empty")
    folder = write_folder(tmp_path / "folder")
    refused("images have no captions; name their field", CaptionedImages, source=folder)
    refused("image_field is never read: source", error=ConfigError, source=folder, image_field="jpg")
    tar = write_tar(tmp_path / "some.tar", texts=False)
    refused(
        "no field 'said' .data.caption_field.; its fields: label", CaptionedImages, source=tar, caption_field="said"
    )
    tar.write_bytes(tar.read_bytes()[:3000])
    refused("some.tar' (ends within|cannot be read as a tar)", source=tar)
    (tmp_path / "no.tar").write_bytes(gzip.compress(b"x" * 2000))
    refused("cannot be read as a tar .* compressed has no random access: unpack it", source=tmp_path / "no.tar")
    parquet = write_parquet(tmp_path / "p.parquet")
    refused("has no column 'jpg'; it has image, label, caption", source=parquet, image_field="jpg")
    refused("the image is '0', expected its bytes", source=parquet, image_field="label")
    parquet.write_bytes(parquet.read_bytes()[:-40])
    refused("p.parquet' cannot be read as Parquet", source=parquet)
    refused(
        "no split 'tran'; did you mean 'train'",
        error=ConfigError,
        source="tfds:tiny_photos:tran",
        tfds_data_dir=str(dataset),
    )
    refused(
        "has no image 'label'; its features: .*captions",
        source="tfds:tiny_photos",
        tfds_data_dir=str(dataset),
        image_field="label",
    )
    table = tmp_path / "t.csv"
    for text, message in [
        (
            "image,caption\na.png,a cat, asleep\n",
            "t.csv, line 2 has 3 fields, and the first line 2; put text with ',' be",
        ),
        ("image,caption\na.png,\n", "line 2: the caption is '', expected text"),
        ("picture,words\na.png,x\n", "line 2: expected a field with the image's name .*got picture, words; name them"),
        ("image,caption\n", "t.csv' names no image"),
        ('image,caption\na.png,"a cat\n', "t.csv, line"),
        ("image,caption,split\na.png,x,monday\n", "the split of 'a.png' is 'monday'"),
    ]:
        table.write_text(text)
        refused(message, CaptionedImages, source=table)
    lines = [{"file_name": "a.png", "text": "x", "split": "train"}, {"file_name": "b.png", "text": "y"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused("1 of 2 images have no split, such as 'b.png'", CaptionedImages, source=tmp_path / "t.jsonl")
    (tmp_path / "tars").mkdir()
    for name in ("train-0.tar", "extra.tar"):
        write_tar(tmp_path / "tars" / name)
    refused("1 of 2 files name no split, such as 'extra.tar'", source=tmp_path / "tars")
    (tmp_path / "notes.doc").write_text("x")
    refused("'notes.doc' is no source of images", source=tmp_path / "notes.doc")
    for fields, message in [
        ({"templates": ("a photo",)}, "data.templates has 'a photo'; a template has one"),
        ({"label_field": "x"}, "label_field is never read without data.templates"),
        ({"templates": ("{}",), "caption_field": "x"}, "caption_field is never read with data.templates"),
    ]:
        refused(message, CaptionedImages, ConfigError, **fields)


def test_images_that_are_not_there_are_bad_ones(tmp_path, caplog):
    source = write_captions(tmp_path / "pets", missing=(3, 7))
    opening = CaptionedImages(str(source), 4, tokenizer="bytes", heldout_fraction=0.0)
    with pytest.raises(
        DataError, match="2 of 12 images cannot be read; .*3.png' cannot be read.*data.bad_images = 'skip'"
    ):
        opening.open(seed=0, cache_dir=tmp_path / "cache")
    opening = CaptionedImages(str(source), 4, tokenizer="bytes", heldout_fraction=0.0, bad_images="skip")
    data = opening.open(seed=0, cache_dir=tmp_path / "cache")
    assert len(seen(data, [data.train[i] for i in range(10)])) == 10
    assert "2 of 12 images cannot be read and are left out" in caplog.text and "7.png" in caplog.text
    zipped(source)
    content = bytearray((source / "all.zip").read_bytes())
    content[content.index(b"photos/0.png") + 40] ^= 1  # a bit of the image
    (source / "all.zip").write_bytes(content)
    with pytest.raises(DataError, match="3 of 12 images cannot be read; .*'0.png' is damaged: its checksum is another"):
        dataclasses.replace(opening, bad_images="refuse").open(seed=0, cache_dir=tmp_path / "cache")
    assert len(opening.open(seed=0, cache_dir=tmp_path / "cache").train._examples) == 9


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_keeps_a_file_from_being_read_is_not_held_against_it(kind, tmp_path, monkeypatch):
    source = write_folder(tmp_path / "pets") if kind == "folder" else write_tar(tmp_path / "pets.tar")
    opening = ImageData(str(source), 4, heldout_fraction=0.0, bad_images="skip")
    full = OSError(errno.EMFILE, "Too many open files")

    def refuse(*arguments):
        raise full

    monkeypatch.setattr(*(("PIL.Image.open", refuse) if kind == "folder" else (os, "pread", refuse)))
    with pytest.raises(RunError, match="cannot be read.*Too many open files"):
        opening.open(seed=0, cache_dir=tmp_path / "cache")
    monkeypatch.undo()
    data = opening.open(seed=0, cache_dir=tmp_path / "cache")
    assert len(seen(data, [data.train[i] for i in range(12)])) == 12


def test_captions_of_equal_images_are_positives_of_one_another(tmp_path):
    pets = write_captions(tmp_path / "pets", "jsonl")
    (pets / "images" / "copy.png").write_bytes(png(4))
    with open(pets / "captions.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "copy.png", "captions": "another view"}) + "\n")
    data = CaptionedImages(str(pets), 4, tokenizer="bytes", heldout_fraction=0.0)
    data = data.open(seed=0, cache_dir=tmp_path / "cache")
    rows = [data.train[i] for i in range(13)]
    key = data.codecs["image"]
    same = {int(row["labels"]) for row in rows if key.decode(row).tobytes() == scaled(4)}
    assert len(same) == 1 and len({int(row["labels"]) for row in rows}) == 12
