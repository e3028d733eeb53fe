"""InternImages in their authors' layout: what the authors' code computes of them, and written back.

make_internimage_fixtures.py wrote the fixtures, and has that code load what is saved here.
"""

import json

import folders
import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop.family import publish, table_of
from fmjax.interop.opening import open_folder
from fmjax.interop.weights import flatten, slots

PROCESSOR = {
    "feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "do_center_crop": True,
    "do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3,
}  # fmt: skip


@pytest.fixture(scope="module", params=["internimage", "internimage_large"])
def case(request, tmp_path_factory):
    """(fixture, folder, model)."""
    within = tmp_path_factory.mktemp("published")
    fixture = folders.read_vision(request.param)
    folder = folders.write_vision(within / "published", fixture)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return fixture, folder, fmjax.load(folder)


def test_logits_stages_and_every_gradient(case):
    fixture, _, model = case
    images = fixture["pixels"].transpose(0, 2, 3, 1)
    module = model.module.clone(reach=None)  # the fewest operations; windows are compared with it elsewhere

    def loss(params):
        variables = {"params": params, **model.state}
        logits, seen = module.apply(variables, images, capture_intermediates=lambda _, method: method == "maps")
        maps = seen["intermediates"]["maps"][0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, fixture["labels"]).mean(), (logits, maps)

    expected = folders.part(fixture, "gradient/")  # of one case: the other differs in what is left out
    results = jax.jit(jax.value_and_grad(loss, has_aux=True) if expected else loss)(model.params)
    (found, (logits, maps)), gradients = results if expected else (results, None)
    np.testing.assert_allclose(logits, fixture["out"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-4)
    for i, ours in enumerate(maps):
        np.testing.assert_allclose(ours, fixture[f"stage/{i}"].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    if not expected:
        return
    leaves = flatten(gradients)
    table = slots(table_of(publish(model.module)[0], model.module), {k: tuple(v.shape) for k, v in leaves.items()})
    assert {slot.name for slot in table} == set(expected)
    for slot in table:
        ours, theirs = np.asarray(leaves[slot.path])[slot.place], slot.view(expected[slot.name])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=5e-4 * abs(theirs).max() + 1e-5, err_msg=slot.name)


def test_it_is_written_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "hf", format="hf")
    written, expected = load_file(tmp_path / "hf" / "model.safetensors"), folders.part(fixture, "weight/")
    expected.pop("model.conv_head.1.0.num_batches_tracked")
    assert set(written) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "hf", folder))
    told = {"layer_scale", *theirs} & {*ours} - {"architectures"}
    assert {key: ours[key] for key in told} == {key: theirs.get(key) for key in told}
    assert {"channels", "depths", "groups", "offset_scale", "layer_scale", "post_norm", "use_clip_projector"} <= told
    again = fmjax.load(tmp_path / "hf")
    assert again.module == model.module and again.codecs["image"] == model.codecs["image"]


def test_the_authors_own_files_name_the_same_weights_otherwise(tmp_path):
    fixture = folders.read_vision("internimage_large")
    weights = folders.part(fixture, "weight/")
    spelt = lambda name: name.removeprefix("model.").replace("layer_scale", "gamma")
    values = json.loads(str(fixture["file/config.json"]))
    folder = folders.write(tmp_path / "theirs", {spelt(k): v for k, v in weights.items()}, values)
    assert set(open_folder(folder).tensors) == set(weights)


@pytest.mark.parametrize(
    "key, value",
    [
        ("center_feature_scale", True), ("use_clip_projector", True), ("level2_post_norm", True),
        ("res_post_norm", True), ("remove_center", True), ("dw_kernel_size", 5), ("norm_layer", "BN"),
        ("act_layer", "SiLU"), ("cls_scale", 2.0), ("mlp_ratio", 2.5), ("depths", [1, 2]),
    ],
)  # fmt: skip
def test_what_other_sizes_add_is_refused_by_name(tmp_path, key, value):
    folder = folders.write_vision(tmp_path, folders.read_vision("internimage"), **{key: value})
    with pytest.raises(ConfigError, match=rf"{key} = .* is not supported"):
        fmjax.load(folder)


def test_what_has_no_published_form_is_refused(case, tmp_path):
    _, folder, model = case
    for changes, message in (
        (dict(stem_strides=(2, 1)), "stem_strides"), (dict(num_classes=0), "without a head of classes"),
        (dict(depths=(1, 2, 1), groups=(1, 2, 2)), "it has 4 stages, not 3"), (dict(num_channels=1), "num_channels"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            publish(model.module.clone(**changes))
    publish(model.module.clone(reach=None))
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "head" not in k}
    values = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="conv_head.0.weight' of shape .* is missing"):
        fmjax.load(folders.write(tmp_path / "bare", weights, values))
