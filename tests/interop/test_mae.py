"""Published masked autoencoders and image GPTs: outputs, losses and gradients are `transformers`'s, folders are written
back. make_mae_fixtures.py wrote the fixtures."""

import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from test_parity import published_names
from test_vision import pixels_of

import fmjax
from fmjax import generate
from fmjax.commands import cli
from fmjax.errors import CheckpointError, ConfigError
from fmjax.objectives.causal_pixels import CausalPixels
from fmjax.objectives.mae import MaskedAutoencoder
from fmjax.tasks.capabilities import capabilities
from fmjax.training.step import with_keys
from tests.small_models import applied
@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """(fixture, folder, model)."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "mae")


@pytest.fixture(scope="module")
def image_gpt(tmp_path_factory):
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "image_gpt")


def check_gradients(model, gradients, fixture, fixed=()):
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected) - set(fixed)
    for name, value in named.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)


IGNORED = {
    "transformers_version", "clusters", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
    "reorder_and_upcast_attn", "use_cache", "n_inner",
}  # fmt: skip
KEY = jax.random.key(1)
FIXED = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


def published(fixture):
    """With the names as models on the hub have them, and not as transformers 5.24 writes them."""
    return {k.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): v for k, v in fixture.items()}


def check_saved(saved, folder, fixture):
    """That a folder has the published one's tensors and keys."""
    weights, written = folders.part(fixture, "weight/"), load_file(saved / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_allclose(written[name], value, atol=1e-5 if name in FIXED else 0, err_msg=name)
    for name in {"config.json", "preprocessor_config.json"} & {path.name for path in folder.iterdir()}:
        ours, theirs = (json.loads((at / name).read_text()) for at in (saved, folder))
        assert {k: v for k, v in theirs.items() if ours.get(k) != v}.keys() <= IGNORED


def test_what_is_drawn_loss_and_gradients_for_given_noise(mae):
    fixture, _, model = mae
    pixels, objective = pixels_of(fixture), model.objective
    assert objective == MaskedAutoencoder(normalise_pixels=True)
    made = applied(model.module, {"params": model.params}, pixels, fixture["noise"])
    np.testing.assert_array_equal(made["mask"], fixture["mask"])
    np.testing.assert_allclose(made["patches"], fixture["out"], atol=2e-5)

    def loss(params):
        made = model.module.apply({"params": params}, pixels, fixture["noise"])
        return objective.losses(made, pixels).mean()

    found, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-5)
    check_gradients(model, gradients, published(fixture), FIXED)


def test_the_encoder_alone_reads_whole_images(mae):
    fixture, _, model = mae
    found = applied(model.module, {"params": model.params}, pixels_of(fixture), method="hidden")
    np.testing.assert_allclose(found, fixture["features"], atol=2e-5)


def test_the_encoder_sees_visible_patches_alone(mae):
    """Whatever is hidden, it is never looked at; and it is computed with as many tokens as are seen."""
    fixture, _, model = mae
    pixels, noise = pixels_of(fixture), fixture["noise"]
    hidden = np.kron(fixture["mask"].reshape(2, 4, 4), np.ones((2, 2)))[..., None] > 0
    other = np.where(hidden, 7.0, pixels)
    apply = jax.jit(lambda images: model.module.apply({"params": model.params}, images, noise, mutable=["reads"]))
    (made, state), (again, _) = apply(pixels), apply(other)
    np.testing.assert_array_equal(made["patches"], again["patches"])
    reads = state["reads"]["encoder"]
    assert model.module.num_kept == 4 and reads["embedded"].shape == (2, 1 + 4, 16)
    assert state["reads"]["stack"]["blocks"]["attention"]["q"].shape[:3] == (1, 2, 1 + 16)


def test_a_batch_draws_for_each_row_and_rows_of_no_weight_do_not_count(mae):
    fixture, _, model = mae
    pixels = np.tile(pixels_of(fixture)[:1], (3, 1, 1, 1))
    batch = with_keys({"images": pixels, "loss_weights": np.ones(3, np.float32)}, jax.random.key(0))
    sums = MaskedAutoencoder()(model.module.apply, model.params, batch, KEY, False)["loss"]
    single = []
    for row in range(3):
        part = {name: value[row : row + 1] for name, value in batch.items()}
        single.append(MaskedAutoencoder()(model.module.apply, model.params, part, KEY, False)["loss"][0])
    np.testing.assert_allclose(sums[0], sum(single), rtol=1e-5)
    assert len({float(x) for x in single}) == 3
    batch["loss_weights"] = np.array([0, 1, 0], np.float32)
    total, weight = MaskedAutoencoder()(model.module.apply, model.params, batch, KEY, False)["loss"]
    np.testing.assert_allclose([total, weight], [single[1], 1], rtol=1e-5)


def test_a_saved_mae_is_the_published_one(mae, tmp_path):
    fixture, folder, model = mae
    model.save(tmp_path / "saved", format="hf")
    check_saved(tmp_path / "saved", folder, published(fixture))
    again = fmjax.load(tmp_path / "saved")
    assert again.module == model.module and again.objective == model.objective
    # Positions that are not the sines and cosines that everyone has are refused, not passed over.
    weights = folders.part(fixture, "weight/")
    weights["decoder.decoder_pos_embed"] = weights["decoder.decoder_pos_embed"] + 1e-3
    with pytest.raises(CheckpointError, match="'decoder.decoder_pos_embed' has other numbers"):
        fmjax.load(folders.write(tmp_path / "other", weights, json.loads(str(fixture["file/config.json"]))))


def test_an_mae_that_cannot_be_is_refused(mae):
    _, _, model = mae
    for fields, message in [
        ({"mask_ratio": 1.0}, "model.mask_ratio = 1.0 must be between 0 and 1"),
        ({"mask_ratio": 0.99}, "leaves none of 16 patches to the encoder"),
        ({"hidden_size": 18}, "model.hidden_size = 18 must be a multiple of 4"),
        ({"encoder": model.module.encoder.clone(num_classes=3)}, "an MAE's is a 'vit'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model.module.clone(**fields)
    with pytest.raises(ConfigError, match="objective mae needs a module that sees a part"):
        MaskedAutoencoder().check(model.module.encoder, None)


def test_image_gpt_reads_draws_and_learns_as_published(image_gpt, tmp_path):
    fixture, folder, model = image_gpt
    codec = model.codecs["image"]
    rows = [codec.encode(image) for image in fixture["images"]]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.testing.assert_array_equal(batch["targets"], fixture["colours"])
    np.testing.assert_allclose(model.apply(batch["tokens"]), fixture["out"], atol=2e-5)
    batch["loss_weights"] = np.ones((2, 25), np.float32)

    def loss(params):
        total, weight = CausalPixels()(model.module.apply, params, batch, None, True)["loss"]
        return total / weight

    found, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-5)
    check_gradients(model, gradients, fixture)
    model.save(tmp_path / "saved", format="hf")
    check_saved(tmp_path / "saved", folder, fixture)
    again = fmjax.load(tmp_path / "saved")
    image = np.zeros((9, 7, 3), np.uint8)
    assert again.can("pixel_nats")([image]).shape == (1, 25) and again.generate([image])[0].shape == (5, 5, 3)
    np.testing.assert_allclose(again.codecs["image"].palette, codec.palette, atol=1e-7)
    assert jnp.isfinite(model.can("pixel_nats")([image])).all()
    # What a linear probe reads, Chen et al. 2020's: the state in the middle, the mean over pixels.
    for one in (model, again, model.unrolled()):
        np.testing.assert_allclose(one.embed(images=list(fixture["images"])), fixture["middle"], atol=2e-5)
    assert np.linalg.norm(model.embed([image], normalize=True)) == pytest.approx(1, abs=1e-5)
    assert model.embed(images=[]).shape == (0, 16) and {"embed", "adapt:image"} <= capabilities(model)
    arguments = [f"--model={folder}", f"--output={tmp_path / 'drawn.png'}", "--num_samples=4"]
    assert cli.run(generate.main, arguments) == 0
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (11, 11)
