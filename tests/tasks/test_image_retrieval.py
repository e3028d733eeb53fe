"""Retrieval over captioned images: ranks as a loop finds them, files of captions, images in folders and archives."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from fmjax.data.codecs.media import Media
from fmjax.data.digits import CODEC
from fmjax.errors import DataError, InputError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.functions import embed
from fmjax.tasks.image_retrieval import read_captioned
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.runner import run_tasks
from tests.classifier import MODEL as VIT
from tests.two_towers import MODEL

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(12)]
CAPTIONS = [(i % 12, f"caption {i % 17} of {'many' if i % 2 else 'few'}") for i in range(30)]  # some are equal


def content(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder whose `set` has a csv and a zip, its images in a folder there."""
    path = tmp_path_factory.mktemp("data")
    (path / "set").mkdir()
    lines = ["image,caption", *(f'{image}.png,"{text}, ""quoted"""' for image, text in CAPTIONS), ""]
    (path / "set" / "captions.csv").write_text("\n".join(lines))
    with zipfile.ZipFile(path / "set" / "images.zip", "w") as archive:
        for number, image in enumerate(IMAGES):
            archive.writestr(f"inside/{number}.png", content(image))
    return path


def test_recall_is_that_of_a_loop_both_ways(folder):
    names = ("image_retrieval:set", "caption_retrieval:set")
    found = run_tasks(MODEL, list(names), data_dir=folder)
    texts = [f'{text}, "quoted"' for _, text in CAPTIONS]
    images = MODEL.embed(images=[image[..., None] for image in IMAGES]).astype(np.float64)
    sentences = MODEL.embed(texts=texts).astype(np.float64)
    describes = {(i, text) for (i, _), text in zip(CAPTIONS, texts)}
    order = [*dict.fromkeys(i for i, _ in CAPTIONS)]
    hits = {name: {k: [] for k in (1, 5, 10)} for name in names}
    for text, vector in zip(texts, sentences):
        ranked = sorted(order, key=lambda i: -(images[i] @ vector))
        place = next(place for place, i in enumerate(ranked) if (i, text) in describes)
        for k in (1, 5, 10):
            hits[names[0]][k].append(place < k)
    for i in order:
        scores = np.round(sentences @ images[i], 5)
        ranked = sorted(range(len(texts)), key=lambda n: (-scores[n], n))
        place = next(place for place, n in enumerate(ranked) if (i, texts[n]) in describes)
        for k in (1, 5, 10):
            hits[names[1]][k].append(place < k)
    for name in names:
        for k, each in hits[name].items():
            assert found[name].metrics[f"recall@{k}"] == pytest.approx(np.mean(each)), (name, k)
    assert 0 < found[names[0]].metrics["recall@5"] < 1 and found[names[0]].num_documents == 30
    assert found[names[0]].samples[0]["cluster"] == "0.png" and found[names[1]].num_documents == 12
    few = run_tasks(MODEL, [names[1]], data_dir=folder, limit=3)[names[1]]
    assert [s["answers"] for s in few.samples] == [s["answers"] for s in found[names[1]].samples[:3]]
    harder = run_tasks(MODEL, ["caption_retrieval:set+noise"], data_dir=folder)["caption_retrieval:set+noise"]
    assert harder.metrics["recall@5"] == found[names[1]].metrics["recall@5"] and "recall@5_drop" in harder.metrics


def test_captions_in_lines_of_json_and_images_in_folders(folder):
    path = folder / "lines"
    (path / "images").mkdir(parents=True)
    for number, image in enumerate(IMAGES[:3]):
        (path / "images" / f"{number}.png").write_bytes(content(image))
    records = [{"file_name": "0.png", "text": "a"}, {"image": "1.png", "captions": ["b", " c "]}]
    (path / "captions.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    context = TaskContext(folder)
    found = read_captioned(context, "lines")
    assert found.captions == [("a", 0), ("b", 1), ("c", 1)] and [one.name for one in found.images] == ["0.png", "1.png"]
    assert "lines/captions.jsonl" in context.read
    # A file in memory is the same medium as the file on disk.
    packed = Media("image", content(IMAGES[0]), "0.png")
    assert packed == found.images[0]
    np.testing.assert_array_equal(packed.encode(CODEC)["images"], found.images[0].encode(CODEC)["images"])
    with pytest.raises(DataError, match="'torn.png' cannot be read as an image"):
        Media("image", content(IMAGES[0])[:40], "torn.png").encode(CODEC)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "picture,words\na,b\n", "expected a field with the image's name .*, got picture, words"),
        ("captions.csv", "image,caption\na.png\n", "line 2 has 1 fields, and the first line 2"),
        ("captions.csv", "image,caption\n", "has no caption"),
        ("captions.csv", "image,caption\na.png,b\n", "a.png. cannot be read: No such file"),
        ("captions.jsonl", '{"image": "a.png"}\n', "line 1: expected a field with the image's name"),
        ("metadata.jsonl", '{"image": "a.png", "caption": ""}\n', "line 1: the caption is '', expected text"),
        ("captions.jsonl", "a caption\n", "line 1 is no JSON"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, name, text, message):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_captioned(TaskContext(tmp_path), "set")


def test_captions_that_are_too_long_go_by_the_rule_of_the_run(folder, tmp_path, caplog):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images.zip").write_bytes((folder / "set" / "images.zip").read_bytes())
    long = "a picture of something that takes far more than 48 bytes to tell"
    (tmp_path / "set" / "captions.csv").write_text(f"image,caption\n0.png,{long}\n1.png,short\n")
    for name in ("image_retrieval:set", "caption_retrieval:set"):
        assert run_tasks(MODEL, [name], data_dir=tmp_path)[name].num_documents == 2
        assert f"task {name}: 1 of 2 captions are longer" in caplog.text
    kept = MODEL.module.max_length - (len(MODEL.tokenizer.encode_pair(long)[0]) - len(MODEL.tokenizer.encode(long)))
    both = [embed(MODEL, [text])[0] for text in (long, long[:kept])]
    np.testing.assert_allclose(*both, atol=1e-6)
    strict = dataclasses.replace(MODEL, config=MODEL.config | {"data": {"overlong": "error"}})
    for name in ("image_retrieval:set", "caption_retrieval:set"):
        with pytest.raises(DataError, match=f"task {name}: 1 of 2 captions are longer .*'a picture"):
            run_tasks(strict, [name], data_dir=tmp_path)


def test_a_name_that_two_images_of_an_archive_have_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "images.zip", "w") as archive:
        for name, image in zip(("in/a/0.png", "in/b/0.png", "in/1.png"), IMAGES):
            archive.writestr(name, content(image))
    captions = tmp_path / "set" / "captions.csv"
    captions.write_text("image,caption\n1.png,b\n0.png,c\n")
    with pytest.raises(DataError, match="has 2 files '0.png', which a caption names: in/a/0.png, in/b/0.png; write"):
        read_captioned(TaskContext(tmp_path), "set")
    captions.write_text("image,caption\n1.png,b\nb/0.png,c\nin/a/0.png,d\n")
    found = read_captioned(TaskContext(tmp_path), "set").images
    assert [one.encode(CODEC)["images"].tobytes() for one in found] == [
        CODEC.encode(IMAGES[number])["images"].tobytes() for number in (2, 1, 0)
    ]


def test_what_lacks_is_said_first(folder, tmp_path):
    with pytest.raises(InputError, match="task flickr8k_image_retrieval: needs .*vision_flickr8k_sample/captions.csv"):
        run_tasks(VIT, ["flickr8k_image_retrieval"], data_dir=folder)
    with pytest.raises(InputError, match="image_retrieval:set needs vectors of texts, images and texts in one space"):
        run_tasks(VIT, ["image_retrieval:set"], data_dir=folder)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "captions.csv").write_text("image,caption\nnone.png,b\n")
    (tmp_path / "set" / "images.zip").write_bytes((folder / "set" / "images.zip").read_bytes())
    with pytest.raises(DataError, match="images.zip has no 'none.png', which a caption names"):
        get_task("caption_retrieval:set").documents(TaskContext(tmp_path))
    (tmp_path / "set" / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="images.zip cannot be read"):
        get_task("caption_retrieval:set").documents(TaskContext(tmp_path))
