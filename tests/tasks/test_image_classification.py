"""Images classified by a probe, by neighbours, fine-tuned and by words: as scikit-learn and loops over classes do."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from fmjax.data.digits import CODEC, read_digits
from fmjax.errors import DataError, InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.load import Model
from fmjax.models.resnet import ResNet
from fmjax.models.state import STATE_KEY
from fmjax.parallel.placement import Placement
from fmjax.tasks import adaptation
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.neighbours import COUNT, TEMPERATURE, by_neighbours
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.runner import run_tasks
from tests import two_towers
from tests.classifier import MODEL
from tests.quick_keys import quick_key
from tests.small_models import applied, byte_model

DOCUMENTS = get_task("digits_train").documents(TaskContext())[:80]
IMAGES, LABELS = [d["image"] for d in DOCUMENTS], [int(d["label"]) for d in DOCUMENTS]


def test_a_probe_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    result = run_tasks(MODEL, ["digits_probe:60"], limit=50)["digits_probe:60"]
    task, context = get_task("digits_probe:60"), TaskContext()
    train, test = task.chosen(context), task.documents(context)[:50]
    vectors = [MODEL.embed(images=[d["image"].value for d in part]) for part in (train, test)]
    scaled = [(part - vectors[0].mean(0)) / vectors[0].std(0) for part in vectors]
    probe = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(scaled[0], [d["label"] for d in train])
    want = probe.predict_proba(scaled[1])
    for sample, row in zip(result.samples, want):
        found = dict(sample["answers"][0])
        np.testing.assert_allclose([found[name] for name in probe.classes_], row, atol=0.02)
    assert result.metrics["acc"] == pytest.approx(probe.score(scaled[1], [d["label"] for d in test]), abs=0.021)
    assert result.metrics["acc"] > 0.3 and result.flops > 0 and {"ece", "ece_mass"} <= set(result.metrics)


def test_neighbours_vote_as_scikit_learns_do():
    from sklearn.neighbors import KNeighborsClassifier

    vectors = MODEL.embed(IMAGES)
    weights = lambda distances: np.exp((1 - distances) / TEMPERATURE)
    known = KNeighborsClassifier(COUNT, weights=weights, algorithm="brute", metric="cosine").fit(
        vectors[:60], LABELS[:60]
    )
    model = by_neighbours(MODEL, IMAGES[:60], LABELS[:60], 10, seed=0)
    found = np.exp(model.functions["class_logits"](model, IMAGES))
    np.testing.assert_allclose(found, known.predict_proba(vectors), atol=1e-4)
    # Fewer than are asked vote all.
    few = by_neighbours(MODEL, IMAGES[:3], [0, 1, 1], 2, seed=0)
    np.testing.assert_allclose(np.exp(few.functions["class_logits"](few, IMAGES[:5])).sum(1), 1, atol=1e-6)
    task = run_tasks(MODEL, ["digits_knn:60"], limit=12)["digits_knn:60"]
    assert task.metrics["acc"] == np.mean([s["statistics"]["acc"] for s in task.samples])


@pytest.mark.parametrize("model", [MODEL, two_towers.MODEL], ids=["vit", "clip"])
def test_fine_tuning_trains_what_reads_images_and_nothing_else(model):
    before = model_fingerprint(model)
    recipe = adaptation.Recipe(epochs=0, min_steps=40, batch_size=16, learning_rate=0.01)
    few = [label < 2 for label in LABELS]
    images, labels = [i for i, keep in zip(IMAGES, few) if keep], [n for n in LABELS if n < 2]
    tuned = adaptation.fine_tune(model, images, labels, 2, 0, recipe)
    logits = tuned.functions["class_logits"](tuned, images)
    assert (logits.argmax(1) == labels).mean() > 0.9 and model_fingerprint(model) == before
    head = dict(zip(("kernel", "bias"), tuned.functions["class_logits"].args))
    arrays = np.stack([CODEC.encode(image.value)["images"] for image in images])
    method = "encode_images" if model is two_towers.MODEL else "pooled"
    vectors = applied(tuned.module, {"params": tuned.params}, arrays, method=method)
    np.testing.assert_allclose(logits, vectors @ head["kernel"] + head["bias"], atol=1e-4)
    if model is two_towers.MODEL:
        texts = [one.embed(texts=["a digit", "another"]) for one in (model, tuned)]
        np.testing.assert_array_equal(*texts)
    else:
        np.testing.assert_array_equal(tuned.params["head"]["kernel"], model.params["head"]["kernel"])


def test_fine_tuning_keeps_up_batch_statistics():
    """The state begins as the model's, moves with the images, and is what the tuned model answers with."""
    module = ResNet(
        image_size=8, num_channels=1, num_classes=3, depths=(1,), widths=(8,), stem_size=8, stem="cifar", block="basic"
    )
    variables = jax.jit(module.init)(quick_key(0), np.zeros((1, 8, 8, 1), np.float32))
    variables = jax.tree.map(lambda x: x + 0.1, nn.unbox(variables))
    state = {STATE_KEY: {"batch_stats": variables["batch_stats"]}}
    model = Model(module, variables["params"], {}, codecs={"image": CODEC}, carry=state)
    recipe = adaptation.Recipe(epochs=0, min_steps=60, batch_size=16, learning_rate=0.03)
    few = [label < 2 for label in LABELS]
    images, labels = [i for i, keep in zip(IMAGES, few) if keep], [n for n in LABELS if n < 2]
    tuned = adaptation.fine_tune(model, images, labels, 2, 0, recipe)
    logits = tuned.functions["class_logits"](tuned, images)
    assert (logits.argmax(1) == labels).mean() > 0.9
    arrays = np.stack([CODEC.encode(image.value)["images"] for image in images])
    kernel, bias = tuned.functions["class_logits"].args
    vectors = applied(module, tuned.variables, arrays, method="pooled")
    np.testing.assert_allclose(logits, vectors @ kernel + bias, atol=1e-4)
    # One step: the running statistics are 0.9 of the model's and 0.1 of the batch's.
    one = dataclasses.replace(recipe, min_steps=1, batch_size=None)
    moved = adaptation.fine_tune(model, images, labels, 2, 0, one).state
    _, after = applied(module, model.variables, arrays, train=True, method="pooled", mutable="batch_stats")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved["batch_stats"], after["batch_stats"])
    assert model.state is not moved and model.variables["params"] is variables["params"]
    # What would fill up batches over devices would count in the statistics.
    spread = dataclasses.replace(model, placement=Placement.make({"data": 8}))
    with pytest.raises(InputError, match="batches of 10 .* do not divide over 8 devices.*'batch_stats' of ResNet"):
        adaptation.fine_tune(spread, images[:10], labels[:10], 2, 0, one)


def test_zero_shot_is_the_nearest_of_the_classes_mean_vectors():
    model = two_towers.MODEL
    task = get_task("digits_zero_shot")
    result = run_tasks(model, ["digits_zero_shot"], limit=30)["digits_zero_shot"]
    shapes = {"images": (8, 8, 1), "tokens": (32,)}
    image, text, both = (
        model.module.flops_per_example({k: v for k, v in shapes.items() if k in names})
        for names in (("images",), ("tokens",), shapes)
    )
    assert both == image + text and 30 * image / 3 < result.flops < (30 * image + 40 * 2 * text) / 3
    words, templates = task.told(TaskContext())
    names = list("0123456789")
    classes = []
    for name in names:
        each = [model.embed(texts=[template.replace("{}", words[name])])[0] for template in templates]
        mean = np.mean(each, axis=0, dtype=np.float64)
        classes.append(mean / np.linalg.norm(mean))
    assert len(templates) > 2 and words["3"] == "three"
    scale = float(np.exp(model.params["log_scale"]))
    for document, sample in zip(task.documents(TaskContext()), result.samples):
        logits = scale * np.asarray(classes) @ model.embed(images=[document["image"].value])[0]
        want = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        found = dict(sample["answers"][0])
        np.testing.assert_allclose([found[name] for name in names], want, atol=1e-4)
        assert sample["statistics"]["acc"] == float(names[want.argmax()] == document["label"])


def test_a_folder_of_images_with_splits_or_without(tmp_path):
    images, labels, _ = read_digits()
    for index in range(60):
        split = "test" if index % 3 == 0 else "train"
        for folder in (tmp_path / "both" / split, tmp_path / "one"):
            path = folder / f"class_{labels[index] % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            CODEC.write(CODEC.decode({"images": images[index]}), path)
    context = TaskContext(tmp_path)
    task = get_task("images_knn:both:30")
    assert task.name == "images_knn:both:30" and len(task.chosen(context)) == 30 and len(task.documents(context)) == 20
    assert set(context.read) == {"both/heldout", "both/train"} and task.labels(context) == ["class_0", "class_1"]
    found = run_tasks(MODEL, ["images_knn:both", "images_probe:both"], data_dir=tmp_path)
    assert all(0.5 < one.metrics["acc"] <= 1 for one in found.values())
    one = get_task("images_probe:one")
    sides = [{d["image"].name for d in part} for part in (one.documents(context), one.training(context))]
    assert 0 < len(sides[0]) < 20 and len(sides[0] | sides[1]) == 60 and not sides[0] & sides[1]
    # Classes are told by their folders' names, or as zero_shot.json says.
    zero = get_task("images_zero_shot:both")
    assert zero.told(context)[0] == {} and len(zero.documents(context)) == 20
    given = {"words": {"class_1": "an odd digit"}, "templates": ["this is {}"]}
    (tmp_path / "both" / "zero_shot.json").write_text(json.dumps(given))
    assert zero.told(context) == (given["words"], given["templates"])
    result = run_tasks(two_towers.MODEL, ["images_zero_shot:both"], data_dir=tmp_path, limit=4)["images_zero_shot:both"]
    assert "both/zero_shot.json" in result.details["read"]
    (tmp_path / "both" / "zero_shot.json").write_text('{"words": {"cat": "a cat"}}')
    with pytest.raises(DataError, match="has words for 'cat', which is no class of the folder"):
        run_tasks(two_towers.MODEL, ["images_zero_shot:both"], data_dir=tmp_path)
    (tmp_path / "both" / "zero_shot.json").write_text('{"template": "a {}"}')
    with pytest.raises(DataError, match='expected {"words"'):
        run_tasks(two_towers.MODEL, ["images_zero_shot:both"], data_dir=tmp_path)


def test_a_model_that_cannot_is_refused_before_anything_is_computed(data):
    for model, task, message in (
        (byte_model(), "digits_probe", "digits_probe needs vectors of images"),
        (MODEL, "sst2_probe", r"sst2_probe needs vectors of texts \(it reads no texts; .*: vectors of images"),
        (MODEL, "digits_zero_shot", r"digits_zero_shot needs images and texts in one space \(as CLIP\)"),
        (two_towers.MODEL, "digits", "task digits: .* classifies by words"),
    ):
        with pytest.raises(InputError, match=message):
            run_tasks(model, [task], data_dir=data)
    with pytest.raises(InputError, match="task digits_probe:5000: there are only 14.. training documents"):
        run_tasks(MODEL, ["digits_probe:5000"])


def test_a_class_that_none_of_few_training_images_has_is_missed():
    task, context = get_task("digits_knn:8"), TaskContext()
    known = {document["label"] for document in task.chosen(context)}
    result = run_tasks(MODEL, ["digits_knn:8"], limit=40)["digits_knn:8"]
    labels = [document["label"] for document in task.documents(context)[:40]]
    assert len(known) < 10 and len(result.samples[0]["answers"][0]) == 10
    assert not any(s["statistics"]["acc"] for s, label in zip(result.samples, labels) if label not in known)


def test_a_class_that_no_training_image_has_is_an_error():
    task = get_task("digits_knn")
    documents = [d for d in task.training(TaskContext()) if d["label"] != "4"][:30]
    task.training = lambda context: documents
    with pytest.raises(InputError, match="is of the class '4', which the model does not know"):
        run_tasks(MODEL, [task], limit=40)


def test_texts_are_probed_by_a_model_of_images_and_texts(data):
    result = run_tasks(two_towers.MODEL, ["sst2_probe:16"], data_dir=data, limit=3)["sst2_probe:16"]
    assert 0 <= result.metrics["acc"] <= 1 and result.num_documents == 3
