"""Images that a model's own run trained on are never what it is evaluated on, and those it held out are a task."""

import dataclasses

import numpy as np
import pytest

from fmjax.assemble import open_data
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.digits import CODEC, read_digits
from fmjax.errors import DataError, InputError
from fmjax.tasks.runner import run_tasks
from tests import two_towers
from tests.classifier import MODEL, logits_of


def run_on(source, model=MODEL, **data):
    """The model as a run on these data has it."""
    section = {"name": "images", "source": str(source), "image_size": 8, "channels": 1} | data
    codecs = {"image": CODEC, "label": LabelCodec(10, tuple("0123456789"))}
    return dataclasses.replace(model, config=model.config | {"seed": 0, "data": section}, codecs=codecs)


@pytest.fixture
def folder(tmp_path):
    images, labels, _ = read_digits()
    for number in range(60):
        path = tmp_path / "data" / "digits" / str(labels[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        CODEC.write(CODEC.decode({"images": images[number]}), path)
    folder = tmp_path / "data" / "digits"
    lines = [f"{path.relative_to(folder)},a {path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (folder / "captions.csv").write_text("\n".join(["file_name,text", *lines]))
    return folder


def test_a_folder_that_the_run_trained_on_is_scored_by_what_it_held_out(folder, tmp_path, caplog):
    model = run_on(folder, heldout_fraction=0.3)
    rows = open_data(model.config, tmp_path / "cache").evaluation["heldout"]
    labels = np.array([row["labels"] for row in rows])
    want = np.mean(logits_of([CODEC.decode(row) for row in rows]).argmax(1) == labels)
    tasks = ["images:digits", "images_heldout", "images_heldout:heldout"]
    found = run_tasks(model, tasks, data_dir=folder.parent)
    for name in tasks:
        assert 10 < found[name].num_documents == len(rows) < 30
        assert found[name].metrics["acc"] == pytest.approx(want) and 0 < want < 1
    left = 60 - len(rows)
    assert found["images:digits"].details["read"]["digits"]["trained_on_left_out"] == left
    assert f"digits: the model's run trained on {left} of its 60 images, which are left out" in caplog.text
    # Of another folder, and of a model of another run, all are asked.
    for other in (MODEL, run_on("elsewhere"), run_on("tfds:digits")):
        assert run_tasks(other, ["images:digits"], data_dir=folder.parent)["images:digits"].num_documents == 60
    # A probe's tenth is cut by what the run trained on too.
    probed = run_tasks(run_on(folder, heldout_fraction=0.05), ["images_knn:digits"], data_dir=folder.parent)
    assert 0 < probed["images_knn:digits"].num_documents < len(rows) / 2
    with pytest.raises(DataError, match="images:digits: the model's run trained on all 60 images .*images_heldout"):
        run_tasks(run_on(folder, heldout_fraction=0.0), ["images:digits"], data_dir=folder.parent)
    with pytest.raises(DataError, match="held out no images 'test'; it held out heldout"):
        run_tasks(model, ["images_heldout:test"])
    with pytest.raises(InputError, match="no text documents .* images_heldout"):
        run_tasks(model, ["heldout"])


def test_captions_that_the_run_trained_on_are_not_searched(folder):
    data = {"name": "captioned_images", "tokenizer": "bytes", "heldout_fraction": 0.3}
    model = run_on(folder, two_towers.MODEL, **data)
    found = run_tasks(model, ["image_retrieval:digits", "images_zero_shot:digits"], data_dir=folder.parent)
    counts = [one.num_documents for one in found.values()]
    assert 10 < counts[0] == counts[1] < 30
    assert found["image_retrieval:digits"].metrics["recall@10"] > 10 / counts[0] / 2
    classes = {name for name, _ in found["images_zero_shot:digits"].samples[0]["answers"][0]}
    assert classes == set("0123456789")
    with pytest.raises(DataError, match="no codec 'label': their rows are no images with classes"):
        run_tasks(dataclasses.replace(model, codecs=MODEL.codecs), ["images_heldout"])
