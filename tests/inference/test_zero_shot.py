"""A model of images and texts: vectors of either, classes told in words, and what is refused."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import fmjax
from fmjax.config import build
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.tokenizers.byte import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.model import Model
from fmjax.inference.pairs import class_vectors
from fmjax.models import MODELS
from fmjax.models.state import STATE_KEY, initial_state
from tests.quick_keys import quick_key
from tests.small_models import applied

TOKENIZER, CODEC = ByteTokenizer(), ImageCodec(8, 8, 3)
SIZES = dict(num_layers=1, hidden_size=16, num_heads=2)
VISION = {**SIZES, "name": "vit", "intermediate_size": 32, "patch_size": 4, "num_classes": 0, "init_std": 0.3}
VISION |= {"image_size": 8, "num_channels": 3}
TEXT = {**SIZES, "name": "text_tower", "max_length": 24, "vocab_size": TOKENIZER.vocab_size, "init_std": 1.0}
IMAGES = list(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8))
CLASSES = ["cat", "a longer name", "dog"]


def model_of(name: str, **fields) -> Model:
    section = {"name": name, "vision": VISION, "text": TEXT, "projection_size": 8, **fields}
    module = build(section, MODELS)
    example = {n: np.zeros(x.shape, x.dtype) for n, x in module.example().items()}
    params = nn.unbox(jax.jit(module.init)(quick_key(0), **example)["params"])
    return Model(module, params, {"model": section}, TOKENIZER, codecs={"image": CODEC})


MODEL = model_of("clip")


class Padded(ByteTokenizer):
    """Bytes that fill rows up with a token of their own."""

    pad_id = 0


def with_padding(model, pad_id):
    text = model.module.text.clone(pad_id=pad_id)
    return dataclasses.replace(model, module=model.module.clone(text=text), tokenizer=Padded())


def text_vectors(model, texts):
    """One text after the other, without padding."""
    rows = [np.array([model.tokenizer.encode_pair(text)[0]], np.int32) for text in texts]
    return np.concatenate([applied(model.module, {"params": model.params}, row, method="encode_texts") for row in rows])


def test_a_tower_with_statistics_is_read_with_them():
    vision = {"name": "resnet", "stem": "cifar", "block": "basic", "depths": (1,), "widths": (8,), "stem_size": 8}
    vision |= {"num_classes": 0, "image_size": 8, "num_channels": 3}
    model = model_of("clip", vision=vision)
    state = nn.unbox(initial_state(model.module, jax.random.key(1)))
    moved = jax.tree.map(lambda x: x + 0.5, state)
    found = [dataclasses.replace(model, carry={STATE_KEY: one}).embed(images=IMAGES) for one in (state, moved)]
    assert found[0].shape == (5, 8) and np.abs(found[0] - found[1]).max() > 1e-3
    expected = applied(model.module, {"params": model.params, **moved}, *_images(), method="encode_images")
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    with pytest.raises(InputError, match="has no 'batch_stats'"):
        model.embed(images=IMAGES)


def _images():
    return (np.stack([CODEC.encode(image)["images"] for image in IMAGES]),)


def test_vectors_are_those_of_each_value_by_itself():
    texts = [*CLASSES, "d"]
    found = MODEL.embed(texts=texts)
    np.testing.assert_allclose(found, text_vectors(MODEL, texts), atol=1e-5)
    np.testing.assert_allclose(MODEL.embed(texts), found)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    arrays = np.stack([CODEC.encode(image)["images"] for image in IMAGES])
    images = applied(MODEL.module, {"params": MODEL.params}, arrays, method="encode_images")
    np.testing.assert_allclose(MODEL.embed(images=IMAGES), images, atol=1e-5)
    np.testing.assert_allclose(MODEL.can("embed")(IMAGES, batch_size=2), images, atol=1e-5)
    assert MODEL.embed(texts=[]).shape == MODEL.embed(images=[]).shape == (0, 8)
    assert set(MODEL.abilities) == {"embed", "classify"}
    both = MODEL.apply(np.ones((1, 3), np.int32), images=arrays)
    np.testing.assert_allclose(both["image"], images, atol=1e-5)


def check_answers(found, likely):
    for row, want in zip(found, likely):
        assert [label for label, _ in row] == [CLASSES[i] for i in np.argsort(-want)]
        np.testing.assert_allclose([p for _, p in row], np.sort(want)[::-1], rtol=1e-3)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_classes_are_told_in_words_by_an_ensemble_of_prompts(name):
    model = model_of(name)
    templates = ("a {}.", "no {}!")
    each = np.stack([text_vectors(model, [t.replace("{}", c) for c in CLASSES]) for t in templates])
    names = each.mean(0) / np.linalg.norm(each.mean(0), axis=1, keepdims=True)
    np.testing.assert_allclose(class_vectors(model, CLASSES, templates), names, atol=1e-5)
    cosines = model.embed(images=IMAGES) @ names.T
    if name == "clip":
        likely = np.exp(cosines / 0.07) / np.exp(cosines / 0.07).sum(1, keepdims=True)
    else:
        likely = 1 / (1 + np.exp(10 - 10 * cosines))
    found = model.classify(IMAGES, CLASSES, templates=templates)
    check_answers(found, likely)
    cosines = np.einsum("ne,tce->nct", model.embed(images=IMAGES), each)
    likely = np.exp(cosines / 0.07) if name == "clip" else 1 / (1 + np.exp(10 - 10 * cosines))
    any_of = likely.sum(2) / likely.sum((1, 2))[:, None] if name == "clip" else 1 - (1 - likely).prod(2)
    check_answers(model.classify(IMAGES, CLASSES, templates=templates, alternatives=True), any_of)
    assert model.classify(IMAGES, CLASSES, templates=templates, top_k=1) == [row[:1] for row in found]
    assert model.classify([], CLASSES) == []


def test_vectors_do_not_depend_on_the_mesh(tmp_path):
    MODEL.save(tmp_path / "model")
    for mesh in (None, {"data": 2, "fsdp": 2, "tensor": 2}):
        model = fmjax.load(tmp_path / "model", mesh=mesh)
        assert model.module == MODEL.module
        np.testing.assert_allclose(model.embed(images=IMAGES), MODEL.embed(images=IMAGES), atol=2e-5)
        np.testing.assert_allclose(model.embed(texts=CLASSES), MODEL.embed(texts=CLASSES), atol=2e-5)
        for row, want in zip(model.classify(IMAGES, CLASSES), MODEL.classify(IMAGES, CLASSES)):
            assert {c: pytest.approx(p, rel=1e-3) for c, p in row} == dict(want)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.embed(texts=["a" * 30]), "text 0 has .* more than the model's context of 24"),
        (lambda m: m.embed(texts=["a", 3]), "text 1 is 3"),
        (lambda m: m.embed(IMAGES, texts=["a"]), "one list of inputs, got 2"),
        (lambda m: m.embed(), "one list of inputs, got 0"),
        (lambda m: m.embed(["a", IMAGES[0]]), "input 0 is "),
        (lambda m: m.embed(texts=["a"], pooling="mean"), "leave pooling = 'mean' out"),
        (lambda m: m.embed(text=["a"]), "no option 'text'; did you mean 'texts'"),
        (lambda m: m.classify(IMAGES), r"give it some, as in m.classify\(images"),
        (lambda m: m.classify(CLASSES, CLASSES), "image 0 is the text 'cat'"),
        (lambda m: m.classify(IMAGES, "cat"), "list of classes, got one text"),
        (lambda m: m.classify(IMAGES, []), "classes must be texts, at least one"),
        (lambda m: m.classify(IMAGES, ["cat", "dog", "cat"]), "the class 'cat' is there 2 times"),
        (lambda m: m.classify(IMAGES, CLASSES, templates=("a photo",)), "'a photo' must have one {}"),
        (lambda m: m.classify(IMAGES, CLASSES, top_k=4), "top_k must be a whole number from 1 to 3"),
        (lambda m: with_padding(m, 5).embed(texts=["a"]), "model.text.pad_id = 5, and the tokenizer .* with 0"),
        (lambda m: m.score([("a", "b")]), "gives no log-likelihoods"),
        (lambda m: m.generate(["a"]), "cannot generate"),
        (lambda m: dataclasses.replace(m, tokenizer=None).classify(IMAGES, CLASSES), "has no tokenizer"),
        (lambda m: dataclasses.replace(m, tokenizer=None).embed(texts=["a"]), "has no tokenizer"),
        (lambda m: dataclasses.replace(m, codecs={}).embed(images=IMAGES), "no option 'images'"),
    ],
)
def test_what_cannot_be_is_told(ask, message):
    with pytest.raises(InputError, match=message):
        ask(MODEL)
