"""Tasks about made images, of models that make what is known: cards, samples that are kept, scores in closed form."""

import collections
import dataclasses
import json
import pathlib
import shutil
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.commands import cli
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.digits import CODEC, Digits, read_digits
from fmjax.data.shapes.captions import claim_of
from fmjax.data.shapes.data import CLASSES
from fmjax.data.shapes.drawing import draw
from fmjax.data.shapes.scenes import Look, Thing
from fmjax.errors import DataError, InputError
from fmjax.load import Model
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.compare import compare
from fmjax.tasks.images import DigitsData
from fmjax.tasks.made import classified, references
from fmjax.tasks.made.captions import MadeCaptions
from fmjax.tasks.made.making import decoded, encoded
from fmjax.tasks.runner import run_tasks
from fmjax.training.loop import train
from tests.classifier import MODEL as CLASSIFIER
from tests.tasks.painter import DIGIT_PAINTER, PAINTER, STAGED, Painter

IMAGES, LABELS, IS_TEST = read_digits()


class Known(nn.Module):
    """The exact velocity towards an image a class: any sampler on straight lines ends there."""

    num_classes: int

    @nn.compact
    def __call__(self, inputs, times, labels, train=False):
        images = self.param("images", nn.initializers.zeros, (self.num_classes, *inputs.shape[1:]))
        return (inputs - images[labels]) / times.reshape(-1, 1, 1, 1)


def known(images, codec, names=(), **data):
    """A model that makes images float32 [classes, H, W, C], by class."""
    params = {"images": jnp.asarray(images)}
    config = {"objective": {"name": "flow_matching"}, "data": data, "train": {"ema_decay": 0.9}}
    codecs = {"image": codec, "label": LabelCodec(len(images), names)}
    return Model(Known(len(images)), params, config, codecs=codecs)


FIRST = np.stack([IMAGES[~IS_TEST][list(LABELS[~IS_TEST]).index(digit)] for digit in range(10)])
MODEL = known(FIRST, CODEC)  # a training image of each class


@pytest.fixture(autouse=True)
def rested():
    Painter.made, Painter.stop = collections.Counter(), None


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a classifier of digits."""
    folder = tmp_path_factory.mktemp("models") / "reader"
    CLASSIFIER.save(folder)
    return folder


def only(model, task, **options):
    (result,) = run_tasks(model, [task], **options).values()
    return result


def test_an_image_comes_back_as_it_was():
    for channels in (1, 3):
        image = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
        np.testing.assert_array_equal(decoded(encoded(image)), image)


def test_an_independent_classifier_reads_what_was_made(classifier):
    result = only(MODEL, f"made_accuracy:digits:classifier={classifier}:steps=2:sampler=euler:copies=2", limit=30)
    made = dict(zip("0123456789", CLASSIFIER.classify(list(map(as_image, FIRST)), top_k=1)))
    labels = LABELS[IS_TEST][:30]
    want = np.mean([made[str(label)][0][0] == label for label in labels])
    real = CLASSIFIER.classify(list(map(as_image, IMAGES[IS_TEST][:30])), top_k=1)
    acc_real = np.mean([found[0][0] == label for found, label in zip(real, labels)])
    assert result.metrics["acc"] == pytest.approx(want) and result.metrics["acc_real"] == pytest.approx(acc_real)
    card = result.details["card"]
    assert card["classifier"]["name"] == "reader" and card["classifier"]["acc_real"] == round(acc_real, 4)
    about = {"made": 60, "documents": 30, "steps": 2, "sampler": "euler", "guidance": 1.0, "seed": 0, "ema_decay": 0.9}
    assert about.items() <= card.items() and card["generator"] == "denoising" and "batch_size" not in card
    assert result.metrics["acc_stderr"] > 0


def as_image(array):
    return CODEC.decode({"images": array})


def test_repeated_training_images_are_nearest_and_noise_is_far():
    nearest = only(MODEL, "made_nearest:digits:steps=2:sampler=euler", limit=40).metrics
    assert nearest["equal"] == 1 and nearest["distance"] < 1e-6 and nearest["closer"] > 0.9
    assert 0.05 < nearest["distance_test"] < 0.3
    coverage = only(MODEL, "made_coverage:digits:k=5:steps=2:sampler=euler", limit=200).metrics
    assert coverage["recall"] < 0.1 < coverage["recall_train"] and coverage["precision_train"] > 0.3
    result = only(MODEL, "made_distance:digits:steps=2:sampler=euler", limit=200)
    found = result.metrics
    assert 0 < found["fd_pixels_train"] < found["fd_pixels"] < found["fd_pixels_noise"]
    assert found["kd_pixels_train"] < found["kd_pixels"] < found["kd_pixels_noise"]
    assert 0 < found["fd_pixels_stderr"] < found["fd_pixels"] and result.details["card"]["training_images"] == 200


def test_distances_are_named_for_their_extractor(classifier):
    task = get_task(f"made_distance:digits:extractor={classifier}:steps=2")
    assert task.metrics[:2] == ("fd_reader", "kd_reader")
    result = only(MODEL, task, limit=30)
    assert result.metrics["fd_reader_train"] < result.metrics["fd_reader_noise"]
    assert result.details["card"]["extractor"]["name"] == "reader"


def test_a_classifier_of_made_images_alone(monkeypatch):
    """One image a class teaches less than many real ones; more than nothing."""
    short = dataclasses.replace(classified.TAUGHT, epochs=0, min_steps=100, batch_size=32)
    monkeypatch.setattr(classified, "TAUGHT", short)
    found = only(MODEL, "made_training:digits:steps=2:sampler=euler", limit=150)
    assert 0.2 < found.metrics["acc"] < found.metrics["acc_train"] and found.metrics["acc_train"] > 0.5
    assert found.details["card"]["training_images"] == 150


def test_captions_are_of_the_world_that_kept_rows_were_made_of(tmp_path):
    section, asked = {"name": "kept", "source": str(tmp_path)}, MadeCaptions("combinations")
    prompts = lambda: [one["prompt"] for one in asked.documents(SimpleNamespace(run_data=section))]
    assert len(prompts()) == 500  # of the default world
    (tmp_path / "made_of.json").write_text(json.dumps({"name": "shapes", "kinds": ["one"], "eval_examples": 30}))
    found = prompts()
    assert len(found) == 30 and {claim_of(prompt).kind for prompt in found} == {"one"}


def test_captions_are_true_of_what_is_drawn_by_them_and_wrong_ones_are_not():
    result = only(PAINTER, "made_captions:shade=3", limit=40)
    found = result.metrics
    assert found["true"] > 0.97 and found["true_real"] > 0.97 and found["true_wrong"] < 0.1 and found["unread"] == 0
    assert result.details["card"]["shade"] == 3 and result.details["card"]["program"]["true_real"] > 0.97
    # A model of classes is asked for these, and made pictures of other classes are not as they were asked for.
    names = CLASSES["combination"]
    scenes = [(Thing(Look("large", *name.split()), (1, 2)),) for name in names]
    pictures = np.stack([draw(scene, 32) for scene in scenes]) / np.float32(127.5) - 1
    data = {"name": "shapes", "rows": "combination", "kinds": ("one", "many"), "image_size": 32}
    for images, true in ((pictures, 1.0), (np.roll(pictures, 1, axis=0), 0.0)):
        model = known(images, ImageCodec(32, 32, 3), names, **data)
        for part in ("", ":combinations"):
            assert only(model, f"made_captions{part}:steps=2:sampler=euler", limit=20).metrics["true"] == true
    colours = dataclasses.replace(model, config=model.config | {"data": data | {"rows": "colour"}})
    with pytest.raises(InputError, match="trained with data.rows = 'colour', which no caption tells"):
        only(colours, "made_captions")


def test_samples_are_made_once_and_an_interrupted_evaluation_goes_on(tmp_path):
    tasks = ["made_nearest:digits:shade=2", "made_coverage:digits:shade=2"]
    straight = run_tasks(DIGIT_PAINTER, tasks, limit=300)
    assert Painter.made.total() == 600
    Painter.made, Painter.stop = collections.Counter(), 280
    with pytest.raises(KeyboardInterrupt):
        run_tasks(DIGIT_PAINTER, tasks, limit=300, answers_dir=tmp_path)
    Painter.made, Painter.stop = collections.Counter(), None
    again = run_tasks(DIGIT_PAINTER, tasks, limit=300, answers_dir=tmp_path)
    assert Painter.made.total() == 300 - 256  # in 256s they are kept, and the second task finds them all
    for name in tasks:
        assert again[name].metrics == straight[name].metrics and again[name].samples == straight[name].samples
    copies = [sample["requests"][0]["inputs"][:2] for sample in again[tasks[0]].samples]
    assert len({tuple(one) for one in copies}) == 300  # each copy of a class is another image
    assert run_tasks(DIGIT_PAINTER, tasks[:1], limit=300, seed=1)[tasks[0]].details["card"]["seed"] == 1


def test_generators_that_make_no_part_of_their_values_are_asked_for_all(monkeypatch):
    whole = only(DIGIT_PAINTER, "made_nearest:digits:copies=2", limit=20)
    run = Painter.run
    monkeypatch.setattr(Painter, "run", lambda self, prompts, options: run(self, prompts, options))
    assert only(DIGIT_PAINTER, "made_nearest:digits:copies=2", limit=20).samples == whole.samples


def test_scores_of_unlike_cards_are_not_compared(tmp_path, capsys):
    task = "made_nearest:digits:steps=2:sampler=euler"
    for name, seed, model in (("a", 0, MODEL), ("b", 0, known(FIRST[::-1], CODEC)), ("c", 1, MODEL)):
        fmjax.evaluate(model, [task], output=tmp_path / name, limit=20, seed=seed)
    found = {one.metric: one for one in compare(tmp_path / "a", tmp_path / "b")}
    assert found["distance"].difference == pytest.approx(0, abs=1e-6) and found["equal"].num_documents == 20
    with pytest.raises(InputError, match="cards of the two evaluations are unlike.*seed: 0 of the first, 1 of the sec"):
        compare(tmp_path / "a", tmp_path / "c")
    report = json.loads((tmp_path / "b" / "results.json").read_text())
    report["details"][task]["card"]["ema_decay"] = 0.0
    (tmp_path / "b" / "results.json").write_text(json.dumps(report))
    argv = ["--compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.run(fmjax.evaluate.main, argv) == 2
    assert "ema_decay: 0.9 of the first, 0.0 of the second. Evaluate one of them again" in capsys.readouterr().err


def test_the_card_names_the_average_that_makes_the_images():
    kept = {"train": {"ema_decay": 0.0, "ema_sigma_rel": (0.05, 0.1)}}
    for more, said in [
        ({}, {"ema_decay": 0.9}),
        ({"train": {}}, {"ema_decay": 0.0}),
        (kept, {"ema_sigma_rel": 0.05}),
        (kept | {"average": {"sigma_rel": 0.2}}, {"ema_sigma_rel": 0.2}),
    ]:
        model = dataclasses.replace(MODEL, config=MODEL.config | more)
        for task in ("made_nearest:digits:steps=2:sampler=euler", "image_bits:digits:draws=1"):
            card = only(model, task, limit=2).details["card"]
            assert {name: value for name, value in card.items() if name.startswith("ema")} == said


def test_images_are_made_anew_where_another_model_lies_at_the_same_path(tmp_path, classifier):
    """And the card tells it by its weights, not by its path."""
    prior, cards = tmp_path / "prior", []
    other = dataclasses.replace(CLASSIFIER, params=jax.tree.map(lambda x: x + 0.1, CLASSIFIER.params))
    for number, model in enumerate((CLASSIFIER, CLASSIFIER, other)):
        shutil.rmtree(prior, ignore_errors=True)
        model.save(prior)
        # As another process sees it: nothing is opened yet.
        fresh = dataclasses.replace(STAGED, kept={}, open_path=fmjax.load)
        result = only(fresh, f"made_nearest:digits:prior={prior}", limit=5, answers_dir=tmp_path / "answers")
        assert Painter.made.total() == (5, 5, 10)[number]
        cards.append(result.details["card"]["prior"])
    assert cards[0] == cards[1] != cards[2] and {card["name"] for card in cards} == {"prior"}
    assert str(tmp_path) not in json.dumps(cards)


def test_the_card_tells_of_which_rows_the_training_images_are(monkeypatch, tmp_path):
    data, count = Digits().open(seed=0, cache_dir=tmp_path), int((~IS_TEST).sum())
    assert data.num_train == count
    for rows, opened, said in [
        (count, data, None),
        (50, data, f"the first 50 of {count}"),
        (50, dataclasses.replace(data, num_train=None), "the first 50 of more, or not: the data do not tell"),
    ]:
        monkeypatch.setattr(references, "TRAINING_ROWS", rows)
        result = only(MODEL, "made_nearest:own:steps=2:sampler=euler", limit=3, data=opened)
        assert result.details["card"].get("training_rows") == said
    with pytest.raises(DataError, match="hold no images"):
        latents = dataclasses.replace(data, train=[{"latents": np.zeros(3)}])
        only(MODEL, "made_nearest:own:steps=2:sampler=euler", limit=3, data=latents)


def test_too_few_training_images_for_a_manifold_are_refused(monkeypatch):
    training = DigitsData.training
    monkeypatch.setattr(DigitsData, "training", lambda self, context: training(self, context)[:3])
    with pytest.raises(InputError, match="3 training images have no 3 nearest others; give a smaller k"):
        only(MODEL, "made_coverage:digits:steps=2:sampler=euler", limit=5)


def test_a_short_run_is_judged_by_its_own_images(tmp_path, monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[:1])
    short = {
        "train.steps": "6", "train.batch_size": "8", "train.checkpoint_every": "6", "train.eval_every": "-1",
        "train.sample_every": "-1", "train.tensorboard": "false", "model.num_layers": "1", "model.hidden_size": "8",
        "model.num_heads": "2",
    }  # fmt: skip
    plain = configs.load_config_file(str(pathlib.Path(__file__).parents[2] / "configs" / "dit_digits.py"))
    config = configs.resolve(configs.apply_overrides(plain, short))
    train(config, tmp_path / "run", cache_dir=tmp_path, progress=False)
    tasks = "made_distance:own:steps=2,made_nearest:digits:steps=2"
    argv = [f"--model={tmp_path / 'run'}", f"--tasks={tasks}", f"--output={tmp_path / 'out'}", "--limit=70"]
    assert cli.run(fmjax.evaluate.main, argv) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    found = report["results"]["made_distance:own:steps=2"]
    assert found["fd_pixels_train"] < found["fd_pixels"] < 2 * found["fd_pixels_noise"]
    assert report["details"]["made_distance:own:steps=2"]["card"]["ema_decay"] == 0.995
    lines = (next((tmp_path / "out" / "answers").iterdir())).read_text().splitlines()
    assert len(lines) == 70  # the second task was asked for the same images


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("made_distance", "needs an argument: made_distance:DATA"),
        ("made_distance:digitz", "got 'digitz'; did you mean 'digits'"),
        ("made_distance:images", "expected images:FOLDER"),
        ("made_distance:digits:num_samples=3", "num_samples is not set here; give copies=N"),
        ("made_distance:digits:copies=0", "copies=0: expected a whole number of at least 1"),
        ("made_coverage:digits:copies=2", "as many made images as real ones"),
        ("made_distance:steps=2:digits", "'digits' stands behind settings"),
        ("made_distance:digits:steps=2:steps=3", "'steps' is set twice"),
        ("made_distance:digits:extractor=no/such/run", "extractor=no/such/run"),
        ("made_accuracy:digits", "task made_accuracy:digits: it needs classifier=..."),
        ("made_coverage:digits:k=3", "3 images have no 3 nearest others"),
        ("made_accuracy:digits:clasifier=x", "it needs classifier=..., .* given is clasifier"),
        ("made_distance:digits:stepz=3", "has no option 'stepz'; did you mean 'steps'"),
        ("made_distance:digits:steps=few", "steps = 'few'"),
        ("made_captions:heldou", "did you mean 'heldout'"),
        ("made_distance:digits:prompts=all", "only prompts=none"),
        ("made_accuracy:digits:classifier=x:prompts=none", "not set here: the score is about what images are"),
        ("made_training:digits:prompts=none", "task made_training:digits:prompts=none: prompts is not set here"),
        ("made_captions:prompts=none", "prompts is not set here"),
    ],
)
def test_what_cannot_be_judged_is_refused(task, message):
    with pytest.raises(InputError, match=message):
        run_tasks(MODEL, [task], limit=3)


def test_models_that_make_no_images_are_refused():
    with pytest.raises(InputError, match="needs images that are made of a class, a caption or nothing"):
        run_tasks(CLASSIFIER, ["made_nearest:digits"], limit=3)


def test_bits_of_images_are_a_bound_with_a_card():
    """Of a model that is sure of an image a class: what it makes takes few bits, other images many."""
    model = dataclasses.replace(MODEL, config=MODEL.config | {"objective": {"name": "flow_matching"}})
    result = only(model, "image_bits:digits:draws=4", limit=5)
    found = result.metrics
    assert found["bits_per_dim"] == pytest.approx(found["prior"] + found["between"] + found["last"])
    assert found["bits_per_dim"] > 8 and result.details["card"]["draws"] == 4 and result.flops_note is not None
    again = only(model, "image_bits:digits:draws=4", limit=3)
    for one, other in zip(again.samples, result.samples):
        assert one["statistics"] == pytest.approx(other["statistics"], rel=1e-4)
    with pytest.raises(InputError, match="'steps' is no setting"):
        get_task("image_bits:digits:steps=3")
    with pytest.raises(InputError, match="image_bits"):
        run_tasks(CLASSIFIER, ["image_bits:digits"], limit=3)


def test_bits_are_of_models_that_are_told_a_class_at_most():
    told = lambda **objective: dataclasses.replace(MODEL, config={"objective": objective})
    told(name="latent_diffusion", condition="label").can("image_bits")
    for objective in [
        dict(name="latent_diffusion"),
        dict(name="latent_diffusion", condition="states"),
        dict(name="embedded_images", text="a CLIP"),
        dict(name="upsampling"),
    ]:
        with pytest.raises(InputError, match="cannot image_bits: it is told more of an image than its class"):
            told(**objective).can("image_bits")
