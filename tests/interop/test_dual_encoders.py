"""Published CLIP and SigLIP: pixels, vectors, loss and gradients are `transformers`'s, and folders are written back.

make_pair_fixtures.py wrote the fixtures, and check_vision_exports.py has the PyTorch classes load what is saved here.
"""

import json

import folders
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from test_parity import published_names

import fmjax
from fmjax.data.codecs.image import CroppedImageCodec
from fmjax.errors import ConfigError, InputError
from fmjax.interop.family import publish
from fmjax.interop.preprocessor import PREPROCESSOR, _read_image_codec
from fmjax.objectives.contrastive import Contrastive

NAMES = ("clip", "clip_first_eos", "siglip")


@pytest.fixture(scope="module", params=NAMES)
def case(request, tmp_path_factory):
    """(fixture, folder, model)."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), request.param)


def batch_of(fixture):
    """Its rows as data have them: padding is 0, and known by its segment."""
    lengths, longest = fixture["lengths"], fixture["lengths"].max()
    segment_ids = (np.arange(longest) < lengths[:, None]).astype(np.int32)
    return {
        "images": fixture["pixels"].transpose(0, 2, 3, 1), "segment_ids": segment_ids,
        "tokens": fixture["tokens"][:, :longest] * segment_ids, "loss_weights": np.ones(len(lengths), np.float32),
    }  # fmt: skip


def test_images_are_prepared_as_the_processor_does(case):
    fixture, _, model = case
    codec = model.codecs["image"]
    found = np.stack([codec.encode(image)["images"] for image in fixture["images"]])
    np.testing.assert_allclose(found, batch_of(fixture)["images"], atol=1e-6)
    np.testing.assert_allclose(model.embed(images=list(fixture["images"])), fixture["image"], atol=1e-4)


def test_vectors_and_logits(case):
    fixture, _, model = case
    batch = batch_of(fixture)
    out = model.apply(batch["tokens"], images=batch["images"], segment_ids=batch["segment_ids"])
    for name in ("image", "text"):
        np.testing.assert_allclose(out[name], fixture[name], atol=1e-4, err_msg=name)
    logits = out["scale"] * out["image"] @ out["text"].T + out["bias"]
    np.testing.assert_allclose(logits, fixture["logits"], atol=1e-3)
    whole = model.module.apply({"params": model.params}, fixture["tokens"], method="encode_texts")
    np.testing.assert_allclose(whole, fixture["text"], atol=1e-4)


def test_loss_and_gradients(case):
    fixture, _, model = case
    objective = model.objective
    assert isinstance(objective, Contrastive)

    def loss(params):
        total, weight = objective(model.module.apply, params, batch_of(fixture), jax.random.key(0), True)["loss"]
        return total / weight

    found, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-4)
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(named[key], value, atol=2e-4 * max(1, np.abs(value).max()), err_msg=key)


def test_saving_gives_the_published_folder_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    weights, written = folders.part(fixture, "weight/"), load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    for name in ("config.json", "preprocessor_config.json"):
        ours, theirs = (json.loads((at / name).read_text()) for at in (tmp_path / "saved", folder))
        for key in ("vision_config", "text_config", None):
            have, want = (x.get(key, {}) if key else x for x in (ours, theirs))
            free = ["transformers_version", "vision_config", "text_config", "initializer_factor", "do_convert_rgb"]
            if key:  # what says nothing of these towers
                free += ["projection_dim", "initializer_range", "bos_token_id"]
                free += ["eos_token_id"] if "pad_token_id" in have else ["pad_token_id"]
            assert {k: v for k, v in want.items() if k not in free and have.get(k) != v} == {}, (name, key)
    assert not (tmp_path / "saved" / "generation_config.json").exists()
    again = fmjax.load(tmp_path / "saved")
    assert (again.module, again.codecs) == (model.module, model.codecs)
    model.save(tmp_path / "ours")
    ours = fmjax.load(tmp_path / "ours", mesh={"fsdp": 4, "tensor": 2})
    assert ours.module == model.module
    jax.tree.map(np.testing.assert_array_equal, ours.params, model.params)


def test_each_tower_is_a_model_of_its_own(case, tmp_path):
    fixture, folder, model = case
    parts = {name: fmjax.load(folder, part=name) for name in ("vision", "text")}
    for name, part in parts.items():
        assert part.module == getattr(model.module, name)
        jax.tree.map(np.testing.assert_array_equal, part.params, model.params[name])
        part.save(tmp_path / name, format="hf")
        again = fmjax.load(tmp_path / name)
        assert again.module == part.module
        jax.tree.map(np.testing.assert_array_equal, again.params, part.params)
    found = parts["vision"].embed(images=list(fixture["images"]), normalize=True)
    assert parts["vision"].codecs == model.codecs and found.shape[0] == 3
    # Files of a tower may have the prefix of the whole, as older ones do.
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    older = {f"text_model.{n}": x for n, x in load_file(tmp_path / "text" / "model.safetensors").items()}
    older["text_model.embeddings.position_ids"] = np.arange(8)[None]
    assert fmjax.load(folders.write(tmp_path / "older", older, config)).module == parts["text"].module


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("siglip", {"vision_config": {"vision_use_head": False}}, "vision_use_head = False"),
        ("clip", {"text_config": {"hidden_act": "gelu_fast"}}, "hidden_act = 'gelu_fast' is not supported"),
        ("clip", {"text_config_dict": {"hidden_size": 99}}, "text_config_dict = {'hidden_size': 99}"),
        ("clip", {"vision_config": {"patch_size": [4, 2]}}, "one number of pixels"),
    ],
)
def test_what_is_not_honoured_is_refused(name, changes, message, tmp_path):
    fixture = folders.read_vision(name)
    config = json.loads(str(fixture["file/config.json"]))
    changes = {k: (config.get(k, {}) | v if k in ("text_config", "vision_config") else v) for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message):
        fmjax.load(folders.write_vision(tmp_path / name, fixture, **changes))


def test_a_module_that_no_class_computes_is_not_published(case):
    _, _, model = case
    text = model.module.text.clone(pooling="last", eos_id=None, pad_id=None)
    with pytest.raises(InputError, match="first end token" if text.causal else "reads padding"):
        publish(model.module.clone(text=text))


OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.mark.parametrize(
    "values",
    [
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3, **OPENAI},
        {"image_processor_type": "CLIPImageProcessor"},
    ],
)
def test_older_and_shorter_files_of_processors_mean_the_same(values, tmp_path):
    (tmp_path / PREPROCESSOR).write_text(json.dumps(values))
    codec = _read_image_codec(tmp_path / PREPROCESSOR, 3)
    assert (codec.shape, codec.shortest_edge, codec.resample) == ((224, 224, 3), 224, "bicubic")
    assert list(codec.mean) == OPENAI["image_mean"] and list(codec.std) == OPENAI["image_std"]


@pytest.mark.parametrize(("size", "edge", "crop"), [((9, 14), 7, 6), ((14, 9), 9, 8), ((5, 4), 4, 7), ((8, 8), 12, 8)])
def test_the_middle_of_an_image_is_cut_out(size, edge, crop):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    codec = CroppedImageCodec(crop, crop, 3, mean=(0.0,), std=(1.0,), shortest_edge=edge)
    found = np.rint(codec.encode(image)["images"] * 255).astype(np.uint8)
    height, width = (edge if side == min(size) else int(edge * side / min(size)) for side in size)
    scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    expected = np.zeros((crop, crop, 3), np.uint8)
    for row in range(crop):
        for column in range(crop):
            y, x = row + (height - crop) // 2, column + (width - crop) // 2
            if 0 <= y < height and 0 <= x < width:
                expected[row, column] = scaled[y, x]
    np.testing.assert_array_equal(found, expected)


def test_a_file_is_cut_once(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    codec = CroppedImageCodec(6, 6, 3, shortest_edge=7)
    found, expected = (codec.encode(one)["images"] for one in (codec.read(tmp_path / "image.png"), image))
    np.testing.assert_array_equal(found, expected)
