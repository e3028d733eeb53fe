"""VQ-VAE against the equations of its paper, written out in numpy."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.data.digits import CODEC
from fmjax.errors import ConfigError
from fmjax.inference.model import Model
from fmjax.layers import quantizers
from fmjax.layers.batch_norm import BATCH_STATS, BatchNorm
from fmjax.models.conv_autoencoder import ConvAutoencoder
from fmjax.models.state import STATE_KEY
from fmjax.models.vit import ViT
from fmjax.objectives.vq_autoencoder import VQAutoencoder
from fmjax.training.step import with_keys
from tests.quick_keys import quick_key

ROWS, NUM, SIZE = 6, 4, 3  # vectors a row, numbers a vector


def scaled(variables, x, method):
    """Encodes by a factor, and decodes by another."""
    factor = variables["params"][method]
    return factor * (x.reshape(len(x), NUM, SIZE) if method == "encode" else x.reshape(len(x), 2, 2, SIZE))


def batch(seed, rows=ROWS):
    images = np.random.default_rng(seed).normal(size=(rows, 2, 2, SIZE)).astype(np.float32)
    return with_keys({"images": images, "loss_weights": np.ones(rows, np.float32)}, jax.random.key(seed))


def start(objective, seed=0):
    module = types.SimpleNamespace(encode=None, decode=None, code_size=SIZE)
    boxed = objective.initial(module, None, jax.random.key(seed))
    assert [boxed[name].names for name in ("counts", "sums")] == [("codes",), ("codes", None)]
    return {name: np.asarray(box.value) for name, box in boxed.items()}


def test_the_codebook_is_the_papers_with_dead_codes_restarted():
    """Equations 6 to 8 of appendix A.1 in loops, and, for each dead code in turn, the next row's candidate."""
    objective = VQAutoencoder(num_codes=30, decay=0.6, restart_below=0.5)
    params = {"encode": jnp.float32(1.5), "decode": jnp.float32(0.5)}
    carry = start(objective)
    counts, sums = np.ones(30), carry["sums"].astype(np.float64)
    restarts = 0
    for step in range(6):
        data = batch(step)
        _, proposal = objective(scaled, params, data, None, True, carry=carry)
        carry = objective.after(carry, proposal, params)
        vectors = 1.5 * np.asarray(data["images"]).reshape(ROWS, NUM, SIZE)
        book, number, total = sums / counts[:, None], np.zeros(30), np.zeros((30, SIZE))
        for vector in vectors.reshape(-1, SIZE):
            code = np.argmin([((vector - e) ** 2).sum() for e in book])
            number[code] += 1
            total[code] += vector
        counts, sums = 0.6 * counts + 0.4 * number, 0.6 * sums + 0.4 * total
        picks, places = [], []
        for row, key in enumerate(data["keys"]):
            first, second = jax.random.split(key)
            picks.append(vectors[row, int(jax.random.randint(first, (), 0, NUM))])
            places.append(float(jax.random.uniform(second)))
        offered = [picks[row] for row in np.argsort(places)]
        for code in np.flatnonzero(counts < 0.5):
            if offered:
                counts[code], sums[code], restarts = 1.0, offered.pop(0), restarts + 1
        np.testing.assert_allclose(carry["counts"], counts, rtol=1e-5)
        np.testing.assert_allclose(carry["sums"], sums, rtol=1e-4, atol=1e-5)
    assert restarts > 4


def test_more_dead_codes_than_rows_wait_and_rows_of_no_weight_are_not_taken():
    averages = {"counts": jnp.zeros(5), "sums": jnp.zeros((5, 1))}
    candidates, order = jnp.arange(1.0, 5.0)[:, None], jnp.array([0.5, jnp.inf, 0.1, 0.9])
    found = quantizers.restarted(averages, candidates, order, 0.5)
    np.testing.assert_array_equal(found["sums"][:, 0], [3, 1, 4, 0, 0])
    np.testing.assert_array_equal(found["counts"], [1, 1, 1, 0, 0])


def test_losses_and_gradients_are_those_of_the_paper():
    """The decoder's gradient reaches the encoder past the codes; none reaches the codes."""
    objective = VQAutoencoder(num_codes=5, commitment=0.3)
    carry, data, params = start(objective), batch(1), {"encode": jnp.float32(1.2), "decode": jnp.float32(0.7)}
    data["loss_weights"] = np.array([1, 1, 0, 1, 0, 1], np.float32)

    def loss(params, carry):
        sums, _ = objective(scaled, params, data, None, True, carry=carry)
        return sums["loss"][0], sums

    (gradient, codes), sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, carry)
    kept = data["loss_weights"] > 0
    x = np.asarray(data["images"]).reshape(ROWS, NUM, SIZE)[kept]
    z, book = 1.2 * x, carry["sums"] / carry["counts"][:, None]
    index = ((z[:, :, None] - book) ** 2).sum(-1).argmin(-1)
    q, numbers = book[index], NUM * SIZE
    wrong = 0.7 * q - x
    np.testing.assert_allclose(sums["loss"][0], ((wrong**2).sum() + 0.3 * ((z - q) ** 2).sum()) / numbers, rtol=1e-5)
    assert float(sums["loss"][1]) == 4
    np.testing.assert_allclose(gradient["decode"], 2 * (wrong * q).sum() / numbers, rtol=1e-5)
    past = 2 * (wrong * 0.7 * x).sum() + 0.3 * 2 * ((z - q) * x).sum()
    np.testing.assert_allclose(gradient["encode"], past / numbers, rtol=1e-5)
    used = np.bincount(index.ravel(), minlength=5)
    np.testing.assert_array_equal(sums["usage"][0], used)
    shares = used[used > 0] / used.sum()
    metrics = objective.reduce(sums)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(-(shares * np.log(shares)).sum()), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], sums["loss"][0] / 4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(codes))


def test_perplexity_of_equal_use_is_the_number_of_codes():
    np.testing.assert_allclose(quantizers.perplexity(jnp.array([3.0, 0, 3, 3])), 3, rtol=1e-6)
    assert quantizers.perplexity(jnp.zeros(4)) == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_codes": 0}, "num_codes=0: expected a whole number of at least 1"),
        ({"decay": 1.0}, "objective.decay=1.0"),
        ({"commitment": -1.0}, "objective.commitment = -1.0 must be at least 0"),
        ({"restart_below": 0.0}, "objective.restart_below = 0.0 must be between 0 and 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        VQAutoencoder(**fields)


def test_a_module_without_encoder_and_decoder_is_refused():
    with pytest.raises(ConfigError, match="which ViT does not have; take model.name = 'conv_autoencoder'"):
        VQAutoencoder().initial(ViT(), None, jax.random.key(0))


class Normed(ConvAutoencoder):
    """With state: its images are normalised by running statistics."""

    STATE = BATCH_STATS

    def setup(self):
        super().setup()
        self.norm = BatchNorm()

    def encode(self, images):
        return super().encode(self.norm(images))


def test_samples_of_a_module_with_state_read_it():
    module = Normed(image_size=8, num_channels=1, hidden_size=8, inner_size=4, num_blocks=1, code_size=SIZE)
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 1), np.uint8)
    arrays = CODEC.encode(image)["images"][None]
    variables = nn.unbox(jax.jit(module.init)(quick_key(0), arrays))
    state = {"batch_stats": jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])}
    carry = quantizers.initial(jax.random.normal(jax.random.key(1), (5, SIZE))) | {STATE_KEY: state}
    config = {"objective": {"name": "vq_autoencoder", "num_codes": 5}}
    model = Model(module, variables["params"], config, codecs={"image": CODEC}, carry=carry)
    codebook = quantizers.codes(carry)
    vectors = module.apply(model.variables, arrays, method="encode")
    want = module.apply(model.variables, codebook[quantizers.nearest(vectors, codebook)], method="decode")
    np.testing.assert_allclose(model.generate([image])[0].astype(int), CODEC.decode({"images": want[0]}), atol=1)
    assert len(model.objective.sample(model, jax.random.key(0), rows={"images": arrays})) == 2
