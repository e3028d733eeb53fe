"""Image GPT: its likelihood is a distribution over images, it draws from that, and completes what it is given."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.codecs.pixels import PixelCodec, grey_levels
from fmjax.errors import ConfigError, InputError
from fmjax.inference.model import Model
from fmjax.models.image_gpt import ImageGPT
from fmjax.objectives.causal_pixels import CausalPixels
from fmjax.tasks import functions
from fmjax.tasks.pixels import MNISTPixels
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=16, num_heads=2, vocab_size=3, max_length=6, init_std=0.5)


def made(codec, **fields) -> Model:
    module = ImageGPT(**SIZES | fields)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 6), jnp.int32)))
    if "head" in params["params"]:
        params["params"]["head"] *= 0.25  # nothing is all but certain
    config = {"model": {"name": "image_gpt", **SIZES, **fields}, "objective": {"name": "causal_pixels"}}
    return Model(module, params["params"], config, codecs={"image": codec})


@pytest.fixture(scope="module")
def model():
    """Of images of 3 x 2 pixels, black or white."""
    return made(PixelCodec(3, 2, 1, grey_levels(2)))


def all_images(codec):
    return [codec.decode({"targets": np.array(c)}) for c in itertools.product(range(2), repeat=6)]


@pytest.fixture(scope="module")
def probabilities(model):
    return np.exp(-model.can("pixel_nats")(all_images(model.codec)).sum(1))


def test_the_likelihoods_of_all_images_add_up_to_one(model, probabilities):
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-5)
    assert probabilities.std() > 0.005 and len(model.can("pixel_nats")([])) == 0


def test_the_loss_is_the_mean_of_the_nats_and_reaches_every_parameter(model):
    images = all_images(model.codec)[:5]
    rows = [model.codec.encode(image) for image in images]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["loss_weights"] = np.ones((5, 6), np.float32)

    def loss(params):
        total, weight = CausalPixels()(model.module.apply, params, batch, None, True)["loss"]
        return total / weight

    found, gradients = jax.value_and_grad(loss)(model.params)
    np.testing.assert_allclose(found, model.can("pixel_nats")(images).mean(), rtol=1e-5)
    assert all(np.abs(x).sum() > 0 and np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_images_are_drawn_as_often_as_they_are_likely(model, probabilities):
    drawn = model.generate(num_samples=2000, seed=1, batch_size=500)
    names = [int("".join(str(int(p > 0)) for p in image.ravel()), 2) for image in drawn]
    found = np.bincount(names, minlength=64) / 2000
    assert np.abs(found - probabilities).sum() < 0.25  # chance alone gives about 0.14
    assert model.generate(num_samples=2, seed=1)[0].tobytes() == drawn[0].tobytes()


def test_the_kept_rows_of_an_image_stay(model, probabilities):
    image = np.array([[0, 255], [255, 255], [0, 0]], np.uint8)[..., None]
    made = model.generate([image, None, image], num_samples=40, keep=0.67, seed=3)
    assert len(made) == 120
    for index, one in enumerate(made):
        assert index // 40 == 1 or np.array_equal(one[:2], image[:2])
    assert len({one.tobytes() for one in made[:40]}) > 1
    best = model.generate([image], temperature=0.0, keep=0.67)[0]
    first = 2 * int(best[2, 0, 0] > 0)
    group = probabilities[0b011100:0b100000]
    assert (group[:2].sum() > group[2:].sum()) == (first == 0)


def test_what_cannot_be_is_refused(model):
    wrong = [
        ({"keep": 1.0}, "keep = 1.0 must be at least 0 and below 1"),
        ({"keap": 1}, "did you mean 'keep'"),
        ({"top_p": 0}, "top_p"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            model.generate([None], **options)
    with pytest.raises(InputError, match="prompt 0 is the text 'a cat'"):
        model.generate(["a cat"])
    with pytest.raises(ConfigError, match="objective.sample_temperature"):
        CausalPixels(sample_temperature=-1.0)


@pytest.mark.parametrize("placement", ["pre", "normed"])
def test_placement_in_numpy(placement):
    """Normed: attention's output is added to its normalised input. With a tied head and RMSNorm, a token alone."""
    codec = PixelCodec(3, 2, 1, grey_levels(2))
    model = made(codec, placement=placement, norm="rmsnorm", tie_embeddings=True)
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(x.size).normal(size=x.shape), model.params)
    norm = lambda x, scale: x / np.sqrt((x**2).mean() + 1e-5) * scale
    gelu = lambda x: np.asarray(jax.nn.gelu(x, approximate=True))
    x = params["start"] + params["position_embedding"]["embedding"][0]
    for layer in range(2):
        block = jax.tree.map(lambda leaf: leaf[layer], params["stack"]["blocks"])
        product = lambda x, p: x @ p["kernel"] + p["bias"]
        y = norm(x, block["attention_norm"]["scale"])
        attended = product(product(y, block["attention"]["value"]), block["attention"]["out"])  # of itself alone
        x = (y if placement == "normed" else x) + attended
        y = norm(x, block["mlp_norm"]["scale"])
        x = x + product(gelu(product(y, block["mlp"]["up"])), block["mlp"]["down"])
    expected = norm(x, params["stack"]["final_norm"]["scale"]) @ params["token_embedding"]["embedding"].T
    found = model.module.apply({"params": params}, jnp.full((1, 1), 2))
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_task_counts_nats_a_pixel(model):
    task, image = MNISTPixels(), all_images(model.codec)[9]
    nats = model.can("pixel_nats")([image])[0]
    (request,) = task.requests({"image": image})
    totals = task.statistics({}, [functions.get(model, request.function)(model, [image])[0]])
    assert task.reduce(totals)["nats_per_pixel"] == pytest.approx(nats.mean())
    assert task.reduce(totals)["bits_per_pixel"] == pytest.approx(nats.mean() / np.log(2))
