"""Published Vision Transformers: pixels, logits and gradients are `transformers`'s, and folders are written back.

make_vision_fixtures.py wrote the fixtures, and check_vision_exports.py has the PyTorch classes load what is saved here.
"""

import json

import flax.linen as nn
import folders
import jax
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file
from test_parity import published_names

import fmjax
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop.preprocessor import PREPROCESSOR, _read_image_codec, write_preprocessor
from fmjax.load import Model
from fmjax.models.vit import ViT
from tests.quick_keys import quick_key


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model) of a classifier."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "vit")


def pixels_of(fixture):
    return fixture["pixels"].transpose(0, 2, 3, 1)


def test_the_preprocessor_is_the_codec_of_images(case, tmp_path):
    fixture, _, model = case
    codec = model.codecs["image"]
    found = np.stack([codec.encode(image)["images"] for image in fixture["images"]])
    np.testing.assert_allclose(found, pixels_of(fixture), atol=1e-6)
    Image.fromarray(fixture["images"][0]).save(tmp_path / "image.png")
    np.testing.assert_array_equal(codec.encode(codec.read(tmp_path / "image.png"))["images"], found[0])
    with pytest.raises(InputError, match=r"input 0: an image is uint8 .*, got an array uint8 of shape .*, 2\)"):
        model.classify([fixture["images"][0, :, :, :2]])


def test_an_image_is_classified_from_its_file_on(case):
    fixture, _, model = case
    np.testing.assert_allclose(model.apply(images=pixels_of(fixture)), fixture["out"], atol=1e-4)
    probabilities = np.exp(fixture["out"]) / np.exp(fixture["out"]).sum(1, keepdims=True)
    for row, best in zip(probabilities, model.classify(fixture["images"])):
        names = ["cat", "dog, hound", "ox"]
        assert [label for label, _ in best] == [names[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in best], np.sort(row)[::-1], atol=1e-4)


def test_loss_and_gradients(case):
    fixture, _, model = case

    def loss(params):
        logits = model.module.apply({"params": params}, pixels_of(fixture))
        return optax.softmax_cross_entropy_with_integer_labels(logits, fixture["labels"]).mean()

    found, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-4)
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(named[key], value, atol=1e-4, err_msg=key)


def check_saved(saved, folder, fixture):
    """That a folder is the published one, but for keys that say nothing of these models."""
    ignored = ("transformers_version", "encoder_stride", "pooler_act", "pooler_output_size")
    weights, written = folders.part(fixture, "weight/"), load_file(saved / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    for name in ("config.json", "preprocessor_config.json"):
        ours, theirs = (json.loads((at / name).read_text()) for at in (saved, folder))
        assert {k: v for k, v in theirs.items() if k not in ignored and ours.get(k) != v} == {}
    assert not (saved / "generation_config.json").exists()


def test_saving_gives_the_published_folder_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    check_saved(tmp_path / "saved", folder, fixture)
    again = fmjax.load(tmp_path / "saved")
    assert (again.module, again.codecs) == (model.module, model.codecs)
    model.save(tmp_path / "ours")
    ours = fmjax.load(tmp_path / "ours")
    assert ours.codecs == model.codecs and ours.classify(fixture["images"]) == model.classify(fixture["images"])


def test_a_mesh_reads_and_writes_the_same_in_shards(case, tmp_path):
    fixture, folder, model = case
    split = fmjax.load(folder, mesh={"fsdp": 4, "tensor": 2})
    assert len(split.params["patch_embedding"]["kernel"].devices()) == 8
    jax.tree.map(np.testing.assert_array_equal, split.params, model.params)
    split.save(tmp_path / "saved", format="hf")
    check_saved(tmp_path / "saved", folder, fixture)


def test_a_model_without_a_head_gives_vectors(tmp_path):
    fixture = folders.read_vision("vit_headless")
    folder = folders.write_vision(tmp_path / "published", fixture)
    model = fmjax.load(folder)
    np.testing.assert_allclose(model.embed(fixture["images"]), fixture["out"], atol=1e-4)
    np.testing.assert_allclose(model.embed(fixture["images"], pooling="first"), fixture["hidden"][:, 0], atol=1e-4)
    with pytest.raises(InputError, match="cannot classify"):
        model.classify(fixture["images"])
    model.save(tmp_path / "saved", format="hf")
    check_saved(tmp_path / "saved", folder, fixture)
    # Files of this class may have the prefix of the whole model, and no pooler.
    bare = {f"vit.{k}": v for k, v in folders.part(fixture, "weight/").items() if "pooler" not in k}
    other = fmjax.load(folders.write(tmp_path / "bare", bare, json.loads(str(fixture["file/config.json"]))))
    assert not other.module.use_pooler and not other.codecs
    np.testing.assert_allclose(other.apply(images=pixels_of(fixture)), fixture["hidden"][:, 0], atol=1e-4)


def test_a_run_of_ours_is_published_with_its_codecs(tmp_path):
    """Of one channel, whose codec has one mean for all."""
    fields = dict(num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, patch_size=2)
    module = ViT(**fields, image_size=8, num_channels=1, num_classes=3)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), np.zeros((1, 8, 8, 1), np.float32))["params"])
    codecs = {"image": ImageCodec(8, 8, 1), "label": LabelCodec(3)}
    model = Model(module, params, {"objective": {"name": "classification"}}, codecs=codecs)
    model.save(tmp_path / "saved", format="hf")
    again, images = fmjax.load(tmp_path / "saved"), np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert again.module == module.clone(attention_dropout=0.0) and again.codecs["label"] == LabelCodec(3)
    assert again.classify(images) == model.classify(images)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(patch_size=3), "images of 8x8 pixels do not divide into patches of 3x3"),
        (dict(patch_size=[4, 2]), r"patch_size = \[4, 2\].*one number of pixels for both axes"),
        (
            dict(image_size=12),
            r"'vit.embeddings.position_embeddings' .* has shape \(1, 5, 16\), expected \(1, 10, 16\)",
        ),
        (
            dict(patch_size=2, image_size=4),
            r"projection.weight' .* has shape \(16, 3, 4, 4\), expected \(16, 3, 2, 2\)",
        ),
        (dict(hidden_act="quick_gelu"), "hidden_act = 'quick_gelu'"),
        (dict(id2label={"0": "cat", "1": "dog", "3": "ox"}), "id2label does not name the classes 0 to 2"),
    ],
)
def test_what_does_not_fit_is_named(change, match, tmp_path):
    folder = folders.write_vision(tmp_path / "published", folders.read_vision("vit"), **change)
    with pytest.raises((CheckpointError, ConfigError), match=match):
        fmjax.load(folder)


def test_a_convolution_of_another_rank_is_named(tmp_path):
    fixture, name = folders.read_vision("vit"), "weight/vit.embeddings.patch_embeddings.projection.weight"
    folder = folders.write_vision(tmp_path / "published", fixture | {name: fixture[name].reshape(16, 48)})
    with pytest.raises(CheckpointError, match=r"projection.weight' .* has shape \(16, 48\), expected \(16, 3, 4, 4\)"):
        fmjax.load(folder)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(size={"height": 6, "width": 8}), r"makes arrays of shape \(6, 8, 3\), and ViT takes 'images'"),
        (dict(size={"shortest_edge": 8}), "size = .*expected .*height"),
        (dict(do_center_crop=True), "do_center_crop = True"),
        (dict(do_center_crop=True, crop_size={"height": 6, "width": 6}), "do_center_crop = True .*cuts out another"),
        (dict(do_center_crop=True, size={"shortest_edge": 8}, crop_size={"height": 8}), "size = .*shortest_edge"),
        (dict(resample=9), "resample = 9"),
    ],
)
def test_preprocessing_that_is_not_honoured_is_refused(case, change, match, tmp_path):
    folder = folders.write_vision(tmp_path / "published", case[0])
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=match):
        fmjax.load(folder)


def test_classes_of_one_name_are_told_apart(tmp_path):
    names = {"0": "crane", "1": "crane (2)", "2": "crane"}
    folder = folders.write_vision(tmp_path / "published", folders.read_vision("vit"), id2label=names)
    model = fmjax.load(folder)
    codec = model.codecs["label"]
    assert codec.names == ("crane (0)", "crane (2) (1)", "crane (2) (2)")
    assert [int(codec.encode(name)["labels"]) for name in codec.names] == [0, 1, 2]
    model.save(tmp_path / "saved", format="hf")
    assert fmjax.load(tmp_path / "saved").codecs["label"] == codec
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["label2id"] == {name: i for i, name in enumerate(codec.names)}


@pytest.mark.parametrize("resized", [True, False])
def test_whether_images_are_scaled_is_written_as_it_was_read(resized, tmp_path):
    values = json.loads(str(folders.read_vision("vit")["file/preprocessor_config.json"])) | {"do_resize": resized}
    (tmp_path / PREPROCESSOR).write_text(json.dumps(values))
    codec = _read_image_codec(tmp_path / PREPROCESSOR, 3)
    written = write_preprocessor(codec, "ViTImageProcessor")
    (tmp_path / PREPROCESSOR).write_text(json.dumps(written))
    assert written["do_resize"] is resized and _read_image_codec(tmp_path / PREPROCESSOR, 3) == codec


def test_rescaling_and_normalising_may_be_left_out(case, tmp_path):
    folder = folders.write_vision(tmp_path / "published", case[0])
    path, image = folder / "preprocessor_config.json", np.full((8, 8, 3), 51, np.uint8)
    values = json.loads(path.read_text())
    for change, expected in [
        (dict(do_rescale=False), (51 - 0.4) / 0.2),
        (dict(do_normalize=False), 0.2),
        (dict(rescale_factor=1 / 127.5), (0.4 - 0.4) / 0.2),
        (dict(size=8, do_resize=False), (0.2 - 0.4) / 0.2),
    ]:
        path.write_text(json.dumps(values | change))
        found = fmjax.load(folder).codecs["image"].encode(image)["images"]
        np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-5)
