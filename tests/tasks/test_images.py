"""Tasks on images: media in requests, the same runner, stored answers and invariance as texts have."""

import dataclasses
import gzip
import json
import shutil

import jax
import numpy as np
import pytest
from small_models import byte_model

import fmjax
from fmjax import evaluate
from fmjax.commands import cli
from fmjax.data.codecs.image import UnscaledImageCodec
from fmjax.data.codecs.media import Media
from fmjax.data.digits import CODEC, read_digits
from fmjax.errors import DataError, InputError
from fmjax.tasks.answers import Work, answer
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.image_classification import MNIST
from fmjax.tasks.images import read_idx
from fmjax.tasks.protocol import Apply, TaskContext
from fmjax.tasks.runner import run_tasks
from tests.classifier import MODEL, logits_of
from tests.tasks.quiz import Quiz


def test_accuracy_is_that_of_the_logits_whatever_batch_order_and_devices(tmp_path):
    documents = get_task("digits_test").documents(TaskContext())
    images, labels, test = read_digits()
    assert (
        len(documents) == test.sum() and len(documents) + len(get_task("digits_train").documents(TaskContext())) == 1797
    )
    np.testing.assert_allclose(documents[3]["image"].value / 127.5 - 1, images[np.flatnonzero(test)[3]], atol=1 / 255)
    right = logits_of([document["image"].value for document in documents[:40]]).argmax(axis=1) == labels[test][:40]
    found = run_tasks(MODEL, ["digits_test"], limit=40)["digits_test"]
    assert found.metrics["acc"] == pytest.approx(right.mean()) and 0 < right.mean() < 1
    requests = [Apply("classify", document["image"]) for document in documents[:10]]
    want = [[label for label, _ in one[:3]] for one in answer(requests, MODEL)]
    MODEL.save(tmp_path / "model")
    others = MODEL, fmjax.load(tmp_path / "model", mesh={"data": 2, "fsdp": 4})
    for model in others:
        found = answer(requests[::-1], model)[::-1] + [answer([request], model)[0] for request in requests[:2]]
        assert [[label for label, _ in one[:3]] for one in found] == want + want[:2]


def test_answers_are_stored_by_content_and_logged_by_name(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        fmjax.evaluate(MODEL, ["digits_test"], limit=12, output=folder, answers=tmp_path / "answers")
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["results"] == two["results"] and two["cost"]["digits_test"]["requests"] == 0
    assert one["cost"]["digits_test"]["requests"] == 12 and one["cost"]["digits_test"]["flops"] == pytest.approx(
        12 / 3 * MODEL.module.flops_per_example({})
    )
    lines = [(folder / "samples" / "digits_test.jsonl").read_text() for folder in folders]
    assert lines[0] == lines[1]
    sample = json.loads(lines[0].splitlines()[2])
    image = sample["document"]["image"]
    assert (
        image["media"] == "image" and image["name"].startswith("digits/") and sample["requests"][0]["inputs"] == image
    )
    # Equal pictures are one request, whatever they are called.
    work = Work()
    pictures = [Media("image", np.full((8, 8, 1), 9, np.uint8), name) for name in "abc"]
    assert len(answer([Apply("classify", one) for one in pictures], MODEL, work=work)) == 3 and work.requests == 1


def test_the_command_evaluates_a_saved_classifier(tmp_path, capsys):
    MODEL.save(tmp_path / "model")
    arguments = [f"--model={tmp_path / 'model'}", "--tasks=digits_test", "--limit=5", f"--output={tmp_path / 'out'}"]
    assert cli.run(evaluate.main, arguments) == 0
    assert "digits_test" in capsys.readouterr().out
    assert cli.run(evaluate.main, ["--list"]) == 0
    assert "\ndigits " in capsys.readouterr().out


def test_what_does_not_go_together_is_said_first(tmp_path):
    with pytest.raises(InputError, match=r"GPT.* cannot answer: digits needs classify"):
        run_tasks(byte_model(), ["digits"])
    with pytest.raises(InputError, match=r"ViT.* cannot answer: quiz needs score"):
        run_tasks(MODEL, [Quiz()])
    with pytest.raises(InputError, match="input 0 is the text 'seven', and .* reads image"):
        answer([Apply("classify", "seven")], MODEL)


def test_images_that_the_codec_refuses_are_refused_before_anything_is_computed(tmp_path):
    strict = dataclasses.replace(MODEL, codecs=MODEL.codecs | {"image": UnscaledImageCodec(4, 4, 1)})
    computes = jax.tree_util.Partial(lambda model, images: pytest.fail("it computed"))
    strict = dataclasses.replace(strict, functions={"classify": computes})
    with pytest.raises(InputError, match="task digits: digits/.*: an image is 8x8 pixels, and images here are 4x4"):
        run_tasks(strict, ["digits"])


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "cat").mkdir(parents=True)
        CODEC.write(np.zeros((8, 8, 1), np.uint8), tmp_path / "pets" / split / "cat" / "0.png")
    with pytest.raises(DataError, match="has splits, .*; choose images:pets/train or images:pets/test"):
        get_task("images:pets").documents(TaskContext(tmp_path))
    assert [one["label"] for one in get_task("images:pets/test").documents(TaskContext(tmp_path))] == ["cat"]


def test_a_folder_of_files_is_the_same_task(tmp_path, capsys):
    """Digits in files are answered as digits in memory, by the runner, its stored answers and comparison."""
    documents = get_task("digits_test").documents(TaskContext())[:30]
    folder = tmp_path / "data" / "digits"
    for place, document in enumerate(documents):
        (folder / document["label"]).mkdir(parents=True, exist_ok=True)
        CODEC.write(document["image"].value, folder / document["label"] / f"{place:02}.png")
    model, data = tmp_path / "model", ["--tasks=images:digits", f"--data_dir={folder.parent}"]
    MODEL.save(model)
    for out in ("one", "two"):
        arguments = [f"--model={model}", *data, f"--output={tmp_path / out}"]
        assert cli.run(evaluate.main, arguments) == 0
        shutil.copytree(tmp_path / "one" / "answers", tmp_path / "two" / "answers", dirs_exist_ok=True)
    one, two = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two"))
    want = run_tasks(MODEL, ["digits_test"], limit=30)["digits_test"].metrics
    assert (
        one["results"] == two["results"]
        and one["results"]["images:digits"]["acc"] == want["acc"]
        and 0 < want["acc"] < 1
    )
    assert [r["cost"]["images:digits"]["requests"] for r in (one, two)] == [30, 0]
    assert one["details"]["images:digits"]["read"]["digits"]["files"] == 30
    compare = ["--compare", str(tmp_path / "one"), str(tmp_path / "two"), f"--output={tmp_path / 'compared'}"]
    assert cli.run(evaluate.main, compare) == 0 and "images:digits" in capsys.readouterr().out
    requests = [
        Apply("classify", document["image"])
        for document in get_task("images:digits").documents(TaskContext(folder.parent))
    ]
    found, back = answer(requests, MODEL), answer(requests[::-1], MODEL)[::-1]
    assert [[label for label, _ in one] for one in found] == [[label for label, _ in one] for one in back]
    # Another name for a class than the model's is no wrong answer, but an error.
    (folder / "3").rename(folder / "three")
    with pytest.raises(
        InputError, match="task images:digits: document .*is of the class 'three', which the model does not know"
    ):
        run_tasks(MODEL, ["images:digits"], data_dir=folder.parent)
    with pytest.raises(DataError, match="task images:none: folder .*none' does not exist"):
        run_tasks(MODEL, ["images:none"], data_dir=folder.parent)
    (folder / "three" / "torn.png").write_bytes(b"PNG")
    with pytest.raises(InputError, match="torn.png' cannot be read as an image"):
        run_tasks(MODEL, [f"images:{folder}"])


def test_mnist_is_read_from_its_files(tmp_path):
    folder = tmp_path / "vision_mnist"
    folder.mkdir()
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    content = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3]))
    documents = MNIST().documents(TaskContext(tmp_path))
    assert [document["label"] for document in documents] == ["7", "3"]
    np.testing.assert_array_equal(documents[1]["image"].value[..., 0], images[1])
    torn = folder / "torn"
    for data, message in (
        (content[:-1], r"its shape is \(2, 28, 28\), but has 1567 numbers"),
        (b"PNG", "is no IDX file"),
    ):
        torn.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_idx(torn)
