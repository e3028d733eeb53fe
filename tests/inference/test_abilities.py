"""What a model can do is one table: an image classifier classifies and embeds on any mesh, and what else is asked of a
model is answered with what it lacks."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from small_models import byte_model

import fmjax
from fmjax.assemble import check_codecs
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.codecs.media import Media
from fmjax.data.digits import CODEC
from fmjax.errors import ConfigError, DataError, InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.inference.model import Model
from fmjax.models.conv_encoder import ConvEncoder
from fmjax.tasks.capabilities import capabilities
from tests.classifier import IMAGES, MODEL, logits_of
from tests.quick_keys import quick_key


def test_a_classifier_gives_the_softmax_of_its_logits_by_name(tmp_path):
    names = tuple("abcdefghij")
    named = dataclasses.replace(MODEL, codecs=MODEL.codecs | {"label": LabelCodec(10, names)})
    logits = logits_of(IMAGES)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for image, row in zip(named.can("classify")(IMAGES), want):
        assert [label for label, _ in image] == [names[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in image], np.sort(row)[::-1], rtol=2e-5)
    assert MODEL.classify(IMAGES[:1], top_k=1)[0][0][0] == logits[0].argmax()
    assert MODEL.classify([]) == [] and MODEL.embed([]).shape == (0, 16)
    CODEC.write(IMAGES[0], path := tmp_path / "image.png")
    for image in (path, str(path), Image.open(path)):
        assert MODEL.classify([image]) == MODEL.classify(IMAGES[:1])
    large = np.kron(IMAGES[0], np.ones((3, 2, 1), np.uint8))
    CODEC.write(large, path)
    assert MODEL.classify([large]) == MODEL.classify([path])


def test_classes_do_not_depend_on_batch_order_or_mesh(tmp_path):
    want = {label: p for label, p in MODEL.classify(IMAGES)[4]}
    MODEL.save(tmp_path / "model")
    for mesh in (None, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}):
        model = fmjax.load(tmp_path / "model", mesh=mesh)
        assert model.codecs == MODEL.codecs
        for found in (model.classify(IMAGES[4:5])[0], model.classify(IMAGES[::-1], batch_size=3)[2]):
            assert {label: pytest.approx(p, rel=1e-5) for label, p in found} == want
        np.testing.assert_allclose(model.embed(images=IMAGES[:3]), MODEL.embed(IMAGES[:3]), atol=2e-5)


def test_vectors_of_images_are_of_the_class_token():
    arrays = np.stack([MODEL.codecs["image"].encode(image)["images"] for image in IMAGES])
    hidden = np.asarray(MODEL.module.apply({"params": MODEL.params}, arrays, method="hidden"))
    np.testing.assert_allclose(MODEL.embed(images=IMAGES), hidden[:, 0], atol=1e-5)
    np.testing.assert_allclose(MODEL.embed(IMAGES, pooling="mean"), hidden.mean(axis=1), atol=1e-5)
    assert np.linalg.norm(MODEL.can("embed")(IMAGES, normalize=True), axis=1) == pytest.approx(1)
    np.testing.assert_allclose(MODEL.apply(images=arrays), MODEL.apply(arrays))


def test_vectors_of_a_module_that_pools_by_itself():
    digits = {"image": CODEC}
    module = ConvEncoder(image_size=8, num_channels=1)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), np.zeros((1, 8, 8, 1), np.float32))["params"])
    model = Model(module, params, codecs=digits)
    arrays = np.stack([CODEC.encode(image)["images"] for image in IMAGES])
    want = np.asarray(module.apply({"params": params}, arrays, method="pooled"))
    np.testing.assert_allclose(model.embed(images=IMAGES), want, atol=1e-5)
    assert set(model.abilities) == {"embed"} and model.embed([]).shape == (0, want.shape[1])
    with pytest.raises(InputError, match="pooling"):
        model.embed(IMAGES, pooling="mean")


def test_the_table_is_what_each_kind_of_model_can_do():
    text = byte_model()
    assert set(MODEL.abilities) == {"embed", "classify"} and set(MODEL.reads) == {"image"}
    assert capabilities(MODEL) == {"embed", "classify", "adapt:image"}
    assert set(text.abilities) == {"score", "rolling", "generate", "complete", "embed"} and not text.reads
    assert text.can("score")([("a", "b")]) == text.score([("a", "b")])
    twice = dataclasses.replace(MODEL, functions={"reward": jax.tree_util.Partial(lambda model, pairs: len(pairs))})
    assert twice.can("reward")([("a", "b")] * 3) == 3 and "reward" in twice.abilities


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.score([("a", "b")]),
         "ViT.* cannot score: it gives no log-likelihoods of texts: it reads images .*can do: embed, classify"),
        (lambda m: m.generate(["a"]), "cannot generate: it reads images, and tokens are continued"),
        (lambda m: m.fill_mask(["a"]), "cannot fill_mask: that takes a masked language model"),
        (lambda m: m.can("clasify"), "cannot clasify: that is no ability; did you mean 'classify'\\?"),
        (lambda m: m.can("act"), "cannot act: it is no policy"),
        (lambda m: m.classify(["a cat"]), "input 0 is the text 'a cat', and Model.*reads image"),
        (lambda m: m.embed([IMAGES[0], Media("audio", np.zeros(3))]),
         "input 1 is media of modality 'audio', and .* reads image"),
        (lambda m: m.classify([IMAGES[0] / 255]), r"input 0: an image is uint8, numbers from 0 to 255 \[height"),
        (lambda m: m.classify(IMAGES, topk=1), "classify has no option 'topk'; did you mean 'top_k'"),
        (lambda m: m.classify(IMAGES, top_k=11), "top_k must be a whole number from 1 to 10"),
        (lambda m: m.embed(image=IMAGES), "embed has no option 'image'; did you mean 'images'"),
        (lambda m: m.encode("a"), "the model from memory reads images, and no texts"),
        (lambda m: byte_model().embed([IMAGES[0]]),
         r"text 0 is an array uint8 of shape \(8, 8, 1\), and .*GPT.* reads texts"),
        (lambda m: byte_model().generate([Media("image", IMAGES[0])]),
         "prompt 0 must be a text or a list of token ids"),
        (lambda m: byte_model().classify(IMAGES),
         "GPT.* cannot classify: its objective names nothing that it predicts"),
        (lambda m: dataclasses.replace(m, codecs={}).classify(IMAGES), "no codec 'label' of what it predicts"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_do_is_said_with_what_it_lacks(call, message):
    with pytest.raises(InputError, match=message):
        call(MODEL)


def test_a_codec_that_does_not_fit_the_module_is_refused_at_load_and_before_training(tmp_path):
    other = ImageCodec(16, 16, 1)
    message = (
        r"codec 'image', ImageCodec\(height=16.* shape \(16, 16, 1\), "
        r"and ViT takes 'images' of shape \(8, 8, 1\) \(model.image_size = 8"
    )
    with pytest.raises(ConfigError, match=message):
        check_codecs({"image": other}, MODEL.module, MODEL.objective)
    dataclasses.replace(MODEL, codecs={"image": other}).save(tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        fmjax.load(tmp_path / "model")


def test_media_are_equal_where_modality_and_content_are():
    image = Media("image", IMAGES[0], "one.png")
    assert image == Media("image", IMAGES[0].copy()) and len({image, Media("image", IMAGES[0].copy(), "two")}) == 1
    others = [Media("video", IMAGES[0]), Media("image", IMAGES[1]), Media("image", IMAGES[0].astype(np.int32)),
              Media("image", IMAGES[0][None])]  # fmt: skip
    assert len({image, *others}) == 5
    assert image.record() == image.key() | {"name": "one.png"} and "array" not in repr(image)
    with pytest.raises(ValueError, match="read-only"):
        image.value[0] = 0
    with pytest.raises(DataError, match="an array of numbers, got the text 'x'"):
        Media("image", "x")


def test_codecs_and_carry_change_the_fingerprint():
    codec = dataclasses.replace(MODEL.codecs["image"], std=(0.25,))
    models = [MODEL, dataclasses.replace(MODEL, codecs=MODEL.codecs | {"image": codec}),
              dataclasses.replace(MODEL, carry={"mean": np.ones(2, np.float32)})]  # fmt: skip
    assert len({model_fingerprint(model) for model in models}) == 3
