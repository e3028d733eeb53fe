"""Published ResNets: logits in training and evaluation, gradients and running statistics are `transformers`'s.

make_resnet_fixtures.py wrote the fixtures, and check_vision_exports.py has the PyTorch class load what is saved here.
"""

import dataclasses
import json

import folders
import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.data.codecs.image import CroppedImageCodec, ResizedImageCodec, UnscaledImageCodec
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop.family import publish, table_of
from fmjax.interop.preprocessor import PREPROCESSOR, read_codecs, write_preprocessor
from fmjax.interop.weights import flatten, slots
from fmjax.models.resnet import ResNet

CASES = ("resnet_basic", "resnet_bottleneck", "resnet_early")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(fixture, folder, model) of a classifier."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), request.param)


def images_of(fixture):
    return fixture["pixels"].transpose(0, 2, 3, 1)


def check_named(model, tree, expected, tolerance):
    """That the arrays of a tree have the published values, by the published names."""
    leaves = flatten(tree)
    table = slots(table_of(publish(model.module)[0], model.module), {k: tuple(v.shape) for k, v in leaves.items()})
    assert {slot.name for slot in table} == set(expected)
    for slot in table:
        ours = np.asarray(leaves[slot.path])
        np.testing.assert_allclose(ours, slot.view(expected[slot.name]), **tolerance, err_msg=slot.name)


def test_evaluation_normalises_by_the_published_statistics(case):
    fixture, _, model = case
    np.testing.assert_allclose(model.apply(images=images_of(fixture)), fixture["out"], rtol=1e-4, atol=1e-4)
    pooled = model.module.apply(model.variables, images_of(fixture), method="pooled")
    np.testing.assert_allclose(pooled, fixture["pooled"], rtol=1e-4, atol=1e-4)


def test_training_normalises_by_the_batch_and_moves_the_statistics(case):
    fixture, _, model = case
    images = images_of(fixture)
    apply = jax.jit(lambda params, state, images: model.module.apply(
        {"params": params, **state}, images, train=True, mutable=["batch_stats"]
    ))  # fmt: skip

    def loss(params):
        logits, state = apply(params, model.state, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, fixture["labels"])
        return losses.mean(), (logits, state)

    (found, (logits, state)), gradients = jax.value_and_grad(loss, has_aux=True)(model.params)
    np.testing.assert_allclose(logits, fixture["trained"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-4)
    check_named(model, gradients, folders.part(fixture, "gradient/"), dict(rtol=1e-3, atol=2e-4))
    _, state = apply(model.params, state, 2 * images[:2])
    check_named(model, state, folders.part(fixture, "after/"), dict(rtol=1e-4, atol=1e-5))


def test_folders_are_written_back_with_their_statistics(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "hf", format="hf")
    written = load_file(tmp_path / "hf" / "model.safetensors")
    expected = {k: v for k, v in folders.part(fixture, "weight/").items() if not k.endswith("num_batches_tracked")}
    assert set(written) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "hf", folder))
    told = ("embedding_size", "hidden_sizes", "depths", "layer_type", "downsample_in_first_stage", "id2label",
            "downsample_in_bottleneck", "hidden_act", "architectures", "model_type", "num_channels")  # fmt: skip
    assert {key: ours[key] for key in told} == {key: theirs[key] for key in told}
    assert fmjax.load(tmp_path / "hf").module == model.module
    model.save(tmp_path / "ours")
    again = fmjax.load(tmp_path / "ours", mesh={"fsdp": 2})
    jax.tree.map(np.testing.assert_array_equal, again.carry, model.carry)
    np.testing.assert_allclose(again.apply(images=images_of(fixture)), fixture["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side, step", [(14, 1), (384, 48)])
def test_images_are_scaled_and_cut_as_by_the_published_class(side, step, tmp_path):
    """A ConvNext's, which published ResNets name: the model is called with what it makes, of any size."""
    fixture, folder, _ = folders.loaded_vision(tmp_path, "resnet_basic")
    found = folders.read_vision("resnet_pixels")
    said = json.loads(str(found[f"{side}/preprocessor_config.json"]))
    older = {"image_processor_type": None, "feature_extractor_type": "ConvNextFeatureExtractor", "size": side}
    for values in (said, said | older):
        (folder / PREPROCESSOR).write_text(json.dumps(values))
        model = fmjax.load(folder)
        assert model.module.image_size == side and len(model.codecs) == 2
        pixels = np.stack([model.codecs["image"].encode(image)["images"] for image in found["images"]])
        expected = found[f"{side}/pixels"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(pixels[:, ::step, ::step], expected, atol=1e-5)
    model.save(tmp_path / "hf", format="hf")
    written = json.loads((tmp_path / "hf" / PREPROCESSOR).read_text())
    assert written == {key: value for key, value in said.items() if key != "crop_pct" or side == 14}
    again = fmjax.load(tmp_path / "hf")
    assert again.codecs == model.codecs and again.module == model.module


def test_preprocessing_that_is_not_known_is_refused(tmp_path):
    _, folder, _ = folders.loaded_vision(tmp_path, "resnet_basic")
    said = json.loads(str(folders.read_vision("resnet_pixels")["14/preprocessor_config.json"]))
    for change, match in (
        ({"image_processor_type": "LevitImageProcessor"}, "image_processor_type = 'LevitImageProcessor'.*ConvNext"),
        ({"size": {"height": 14, "width": 14}}, "size = .*shortest_edge"),
        ({"crop_pct": 1.5}, "crop_pct = 1.5"),
        ({"do_flip_channel_order": True}, "these keys are not supported: do_flip_channel_order=True"),
    ):
        (folder / PREPROCESSOR).write_text(json.dumps(said | change))
        with pytest.raises(ConfigError, match=match):
            fmjax.load(folder)


def test_every_codec_is_written_as_a_class_that_says_it(tmp_path):
    row = dict(channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    codecs = [CroppedImageCodec(14, 14, **row, shortest_edge=edge) for edge in range(14, 32)]
    codecs += [CroppedImageCodec(14, 12, **row, shortest_edge=16), ResizedImageCodec(14, 14, **row)]
    codecs += [UnscaledImageCodec(384, 384, **row), ResizedImageCodec(384, 384, **row)]
    for codec in codecs:
        (tmp_path / PREPROCESSOR).write_text(json.dumps(write_preprocessor(codec, "ConvNextImageProcessor")))
        assert read_codecs(tmp_path, {}, ResNet(num_channels=3), "config.json")["image"] == codec


def test_half_precision_keeps_the_statistics_whole(tmp_path):
    fixture, folder, model = folders.loaded_vision(tmp_path, "resnet_basic")
    half = fmjax.load(folder, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, half.carry, model.carry)
    np.testing.assert_allclose(half.apply(images=images_of(fixture)), fixture["out"], rtol=0.1, atol=0.5)


def test_a_folder_without_a_head_gives_vectors(tmp_path):
    fixture = folders.read_vision("resnet_basic")
    values = json.loads(str(fixture["file/config.json"])) | {"architectures": ["ResNetModel"]}
    weights = {k: v for k, v in folders.part(fixture, "weight/").items() if not k.startswith("classifier")}
    model = fmjax.load(folders.write(tmp_path / "headless", weights, values))
    np.testing.assert_allclose(model.apply(images=images_of(fixture)), fixture["pooled"], rtol=1e-4, atol=1e-4)


def test_missing_statistics_are_named(tmp_path):
    fixture = folders.read_vision("resnet_basic")
    name = "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var"
    weights = {k: v for k, v in folders.part(fixture, "weight/").items() if k != name}
    folder = folders.write(tmp_path / "torn", weights, json.loads(str(fixture["file/config.json"])))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' of shape .* is missing"):
        fmjax.load(folder)
    _, _, model = folders.loaded_vision(tmp_path, "resnet_basic")
    bare = dataclasses.replace(model, carry=None)
    for attempt in (lambda: bare.apply(images=images_of(fixture)), lambda: bare.save(tmp_path / "no", format="hf")):
        with pytest.raises(InputError, match="has no 'batch_stats', which its module keeps besides parameters"):
            attempt()


@pytest.mark.parametrize(
    "options, count",
    [
        (dict(depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), block="basic"), 11_689_512),
        (dict(), 25_557_032),
        (dict(depths=(3, 4, 23, 3)), 44_549_160),
    ],
    ids=["resnet18", "resnet50", "resnet101"],
)
def test_published_sizes(options, count):
    """As torchvision counts them."""
    module = ResNet(image_size=224, num_channels=3, num_classes=1000, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), module.example()["images"])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
