"""The variational autoencoder's bound in numpy, and a critic that trains beside it, each side by its own loss alone."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from fmjax.data.codecs.base import save_codecs
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.image_rows import check_module
from fmjax.errors import ConfigError
from fmjax.models.autoencoder_kl import AutoencoderKL
from fmjax.models.conv_encoder import ConvEncoder
from fmjax.models.vqgan import VQGAN, Criticised
from fmjax.objectives.base import OtherModel, sides_of
from fmjax.objectives.vae import VAE
from fmjax.objectives.vq_autoencoder import VQAutoencoder
from fmjax.training.gradients import make_gradient
from fmjax.training.other_models import check_prepared
from fmjax.training.state import TrainState
from fmjax.training.step import make_train_step, with_keys
from fmjax.training.trainable import ALL
from fmjax.training.turns import by_turns

ROWS = 6
SHAPE = (2, 2, 3)


def apply(variables, x, method):
    """A module of three numbers: the spread of latents, a factor that decodes, and one that criticises."""
    params = variables["params"]
    if method == "moments":
        return 0.5 * x, jnp.full_like(x, params["autoencoder"]["spread"])
    if method == "criticise":
        return jnp.tanh(params["critic"]["factor"] * x.sum(-1))
    return params["autoencoder"]["last"] * x


PARAMS = {
    "autoencoder": {"spread": jnp.float32(-1.0), "last": jnp.float32(1.7)},
    "critic": {"factor": jnp.float32(0.6)},
}  # fmt: skip
MODULE = type("Stub", (), dict(moments=1, decode=1, encode=1, criticise=1))()


def batch(seed=0):
    images = np.random.default_rng(seed).normal(size=(ROWS, *SHAPE)).astype(np.float32)
    weights = np.array([1, 1, 0, 1, 1, 1], np.float32)
    return with_keys({"images": images, "loss_weights": weights}, jax.random.key(seed))


def latents(data, params=PARAMS):
    noise = np.stack([jax.random.normal(key, SHAPE) for key in data["keys"]])
    return 0.5 * data["images"] + np.exp(params["autoencoder"]["spread"] / 2) * noise


@pytest.mark.parametrize("likelihood", ["normal", "laplace"])
def test_the_bound_is_the_papers(likelihood):
    objective, data = VAE(likelihood=likelihood, beta=0.3), batch()
    data["images"] = (np.clip(np.rint(127.5 * data["images"] + 127.5), 0, 255) / 127.5 - 1).astype(np.float32)
    carry = objective.initial(MODULE, PARAMS, jax.random.key(0))
    assert carry == {"scale": 1.0}
    carry = {"scale": jnp.float32(0.4)}
    sums, proposal = objective(apply, PARAMS, data, None, True, carry=carry)
    x, z, kept = data["images"], latents(data), data["loss_weights"] > 0
    apart = np.abs(x - 1.7 * z).reshape(ROWS, -1)
    if likelihood == "normal":
        density, error = np.exp(-(apart**2) / 0.8) / np.sqrt(2 * np.pi * 0.4), (apart**2).mean(1)
    else:
        density, error = np.exp(-apart / 0.4) / 0.8, apart.mean(1)
    # A level of 8-bit pixels in [-1, 1] is 2 / 255 wide, and the outer ones go on for ever.
    family = scipy.stats.norm(1.7 * z, np.sqrt(0.4)) if likelihood == "normal" else scipy.stats.laplace(1.7 * z, 0.4)
    upper = np.where(x > 0.999, 1.0, family.cdf(x + 1 / 255))
    levels = (upper - np.where(x < -0.999, 0.0, family.cdf(x - 1 / 255))).reshape(ROWS, -1)
    kl = 0.5 * ((0.5 * x) ** 2 + np.exp(-1) - 1 + 1).reshape(ROWS, -1).sum(1)  # the log of the variance is -1
    nats = -np.log(density).sum(1)
    metrics = objective.reduce(sums)
    means = {
        "loss": (nats + 0.3 * kl) / 12, "reconstruction": error, "kl": kl,
        "bits_per_dim": -np.log2(levels).mean(1) + kl / 12 / np.log(2),
    }  # fmt: skip
    for name, rows in means.items():
        np.testing.assert_allclose(metrics[name], rows[kept].mean(), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(metrics["latent_deviation"], z[kept].std(), rtol=1e-5)
    moved = objective.after(carry, proposal, PARAMS)
    np.testing.assert_allclose(moved["scale"], 0.99 * 0.4 + 0.01 * error[kept].mean(), rtol=1e-5)
    fixed = VAE(scale=0.7)
    assert fixed.after(fixed.initial(MODULE, PARAMS, None), proposal, PARAMS)["scale"] == np.float32(0.7)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("likelihood", ["normal", "laplace"])
def test_the_levels_of_a_pixel_have_all_the_probability(likelihood, scale):
    levels = (np.arange(256, dtype=np.float32) / 127.5 - 1).reshape(-1, 1, 1, 1)
    for made in (-1.3, -1.0, 0.1234, 0.998):
        nats = VAE(likelihood=likelihood)._level_nats(levels, jnp.full_like(levels, made), jnp.float32(scale))
        assert np.isfinite(nats).all()
        np.testing.assert_allclose(np.exp(-np.float64(nats)).sum(), 1, rtol=1e-4)


def test_features_of_another_network_are_compared_in_each_place():
    objective, data = VAE(perceptual="runs/other", perceptual_weight=0.5, scale=1.0), batch()
    weights = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    network = OtherModel(types.SimpleNamespace(apply=lambda variables, x, method: x @ variables["params"]), weights)
    carry, given = {"scale": jnp.float32(1.0)}, dict(models={"perceptual": network})
    found, plain = (
        one.reduce(one(apply, PARAMS, data, None, True, carry=carry, **more)[0])
        for one, more in ((objective, given), (VAE(scale=1.0), {}))
    )
    features = [x @ weights for x in (data["images"], 1.7 * latents(data))]
    first, second = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in features)
    expected = ((first - second) ** 2).sum(-1).mean((1, 2))[data["loss_weights"] > 0].mean()
    np.testing.assert_allclose(found["perceptual"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], plain["loss"] + 0.5 * expected, rtol=1e-5)
    assert objective.models() == {"perceptual": "runs/other"} and VAE().models() == {}
    with pytest.raises(ConfigError, match="'feature_map': VQGAN at 'runs/other' has no such method"):
        objective.check_models(None, {"perceptual": OtherModel(VQGAN())})


def test_a_perceptual_network_reads_the_images_and_makes_maps_of_them():
    network = ConvEncoder(image_size=8, num_channels=1, hidden_size=4)
    params = jax.eval_shape(network.init, jax.random.key(0), **network.example())["params"]
    models = {"perceptual": OtherModel(network, nn.unbox(params))}
    grey, coloured = (VQGAN(image_size=8, num_channels=channels, widths=(32,)) for channels in (1, 3))
    VAE(perceptual="runs/other").check_models(grey, models)
    with pytest.raises(ConfigError, match=r"'pooled': ConvEncoder at 'runs/other' makes \(1, 4\); expected features"):
        VAE(perceptual="runs/other", perceptual_method="pooled").check_models(grey, models)
    with pytest.raises(ConfigError, match=r"'feature_map': .* does not read images of shape \(8, 8, 3\)"):
        VAE(perceptual="runs/other").check_models(coloured, models)


def test_a_perceptual_network_of_images_normalised_otherwise_is_refused(tmp_path):
    theirs = ImageCodec(8, 8, 3, mean=(0.48, 0.46, 0.41), std=(0.23, 0.22, 0.23))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text('{"objective": {"name": "vae"}}')
    save_codecs({"image": theirs}, tmp_path)
    config = {"objective": {"name": "vae", "perceptual": str(tmp_path)}}
    check_prepared(config, {"image": dataclasses.replace(theirs, height=16, width=16)})
    check_prepared(config, {})
    with pytest.raises(ConfigError, match=r"'perceptual', .* mean = \(0.48, 0.46, 0.41\), .* mean = \(0.5,\)"):
        check_prepared(config, {"image": ImageCodec(8, 8, 3)})
    save_codecs({"image": ImageCodec(8, 8, 3)}, tmp_path)
    check_prepared(config, {"image": ImageCodec(8, 8, 3, mean=(0.5, 0.5, 0.5))})


CRITIC = dict(adversarial_weight=0.5, last_kernel="autoencoder/last", scale=1.0)


def test_one_gradient_holds_both_sides_of_the_game():
    objective, data = VAE(**CRITIC), batch()
    carry = {"scale": jnp.float32(1.0), "critic": {"step": jnp.int32(0), "ratio": jnp.float32(3.0)}}
    gradients, sums, proposal = make_gradient(apply, objective, ALL, 1)(PARAMS, data, jax.random.key(0), carry=carry)
    keep = jnp.asarray(data["loss_weights"]) / 5
    judge = lambda factor, x: jnp.tanh(factor * x.sum(-1))
    make = lambda last: last * latents(data)

    def critic(factor):
        true, false = judge(factor, data["images"]), judge(factor, make(1.7))
        hinge = 0.5 * (jnp.maximum(0, 1 - true) + jnp.maximum(0, 1 + false))
        return (hinge.mean((1, 2)) * keep).sum()

    def fooled(last):
        return (-judge(0.6, make(last)).mean((1, 2)) * keep).sum()

    def error(last):
        return (0.5 * ((data["images"] - make(last)) ** 2).mean((1, 2, 3)) * keep).sum()

    np.testing.assert_allclose(gradients["critic"]["factor"], jax.grad(critic)(0.6), rtol=1e-4)
    expected = jax.grad(lambda last: error(last) + 0.5 * 3.0 * fooled(last))(1.7)
    np.testing.assert_allclose(gradients["autoencoder"]["last"], expected, rtol=1e-4)
    after = objective.after(carry, proposal, PARAMS)["critic"]
    ratio = abs(jax.grad(error)(1.7)) / (abs(jax.grad(fooled)(1.7)) + 1e-4)
    np.testing.assert_allclose(after["ratio"], ratio, rtol=1e-4)
    assert int(after["step"]) == 1
    parts, _, same = make_gradient(apply, objective, ALL, 2)(PARAMS, data, jax.random.key(0), carry=carry)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (parts, same), (gradients, proposal))


def test_the_share_of_the_critic_is_computed_once_the_next_step_reads_it():
    objective, data = VAE(**CRITIC, adversarial_start=5), batch()
    gradient = jax.jit(make_gradient(apply, objective, ALL, 1))
    for step, computed in ((0, False), (3, False), (4, True), (5, True)):
        carry = {"scale": jnp.float32(1.0), "critic": {"step": jnp.int32(step), "ratio": jnp.float32(1.0)}}
        found = gradient(PARAMS, data, jax.random.key(0), carry=carry)[2].sums["critic"]
        assert all(bool(value) == computed for value in found.values())


def test_sides_take_turns_and_each_is_optimised_as_if_it_were_alone():
    """From step 2 on every second step is the critic's. Each side is clipped by its own norm and counts its own
    updates; the schedule goes by the run's."""
    objective = VAE(**CRITIC, adversarial_start=2, alternate=True)
    schedule, clip = optax.linear_schedule(0.1, 0.05, 6), optax.clip_by_global_norm(0.01)
    rule = optax.chain(clip, optax.adamw(schedule, weight_decay=0.1))
    optimizer = by_turns(rule, objective.sides())
    step = jax.jit(make_train_step(apply, objective, optimizer, schedule, rules=()))
    gradient = jax.jit(make_gradient(apply, objective, ALL, 1))
    alone = optax.chain(clip, optax.scale_by_adam(), optax.add_decayed_weights(0.1))
    states = {side: alone.init(PARAMS[side]) for side in PARAMS}
    carry = objective.initial(MODULE, PARAMS, None)
    state = TrainState(jnp.int32(0), jnp.int32(0), PARAMS, optimizer.init(PARAMS), None, carry)
    for number, side in enumerate(["autoencoder"] * 3 + ["critic", "autoencoder", "critic"]):
        key = jax.random.key(1)
        data = {name: value for name, value in batch(number).items() if name not in ("keys", "strata")}
        keyed = with_keys(data, jax.random.fold_in(key, number))
        grads, _, _ = gradient(state.params, keyed, key, carry=state.carry)
        updates, states[side] = alone.update(grads[side], states[side], state.params[side])
        moved = jax.tree.map(lambda p, u, rate=schedule(number): p - rate * u, state.params[side], updates)
        state, _ = step(state, data, key)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
        jax.tree.map(close, state.params[side], moved)
        _, (adam, _, place) = state.opt_state
        for index, name in enumerate(objective.sides()):
            kept = states[name][1]
            jax.tree.map(close, (adam.count[index], adam.mu[name], adam.nu[name]), (kept.count, kept.mu, kept.nu))
    np.testing.assert_array_equal(adam.count, [4, 2, 6])
    np.testing.assert_array_equal(place.count, [6, 6, 6])


INSIDE = dict(image_size=4, num_channels=1, widths=(4,), num_blocks=1, norm_groups=2, mid_attention=False)


def test_a_module_with_a_critic_trains_whole_however_the_batch_is_cut():
    module = Criticised(VQGAN(**INSIDE, code_size=3), critic_width=8, critic_halvings=1)
    objective = VQAutoencoder(num_codes=5, adversarial_weight=0.1, error="absolute")
    images = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 1)).astype(np.float32)
    data, optimizer = {"images": images, "loss_weights": np.ones(4, np.float32)}, by_turns(optax.sgd(0.1), ("critic",))

    @jax.jit
    def start(key):
        params = nn.unbox(module.init(key, images)["params"])
        carry = nn.unbox(objective.initial(module, params, key))
        return TrainState(jnp.int32(0), jnp.int32(0), params, optimizer.init(params), None, carry)

    def run(parts):
        step = make_train_step(module.apply, objective, optimizer, lambda _: 0.1, rules=(), accumulate_steps=parts)
        return jax.jit(step)(before, data, jax.random.key(1))

    before = start(jax.random.key(0))
    (one, metrics), *others = map(run, (1, 2))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    for two, same in others:
        jax.tree.map(close, (one.params, one.carry, metrics), (two.params, two.carry, same))
    assert metrics["finite"] and {"adversarial", "critic", "loss"} <= set(metrics)
    for side in ("autoencoder", "critic"):
        kept = jax.tree.map(np.array_equal, one.params[side], before.params[side])
        assert not all(jax.tree.leaves(kept))


def test_images_of_another_size_than_a_criticised_autoencoders_are_refused():
    with pytest.raises(ConfigError, match="model.image_size = 4, but the images have 16"):
        check_module(Criticised(VQGAN(**INSIDE)), ImageCodec(16, 16, 1))
    assert Criticised(VQGAN(**INSIDE)).num_channels == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: VAE(beta=-1.0), "objective.beta = -1.0"),
        (lambda: VAE(scale=0.0), "objective.scale = 0.0 must be above 0"),
        (lambda: VAE(adversarial_weight=-1.0), "objective.adversarial_weight = -1.0"),
        (lambda: VAE(**CRITIC).initial(AutoencoderKL(), {}, None), "AutoencoderKL has no critic; take .*'criticised'"),
        (lambda: VAE(adversarial_weight=1.0).initial(MODULE, PARAMS, None), "last_kernel = 'autoencoder/decoder/head"),
        (lambda: sides_of(types.SimpleNamespace(moves=None)), "has `moves` and no `sides`"),
        (lambda: VAE().initial(VQGAN(), {}, None), "which VQGAN does not have; take model.name = 'autoencoder_kl'"),
        (lambda: AutoencoderKL(image_size=30), "30x30 pixels cannot be halved 3 times"),
        (lambda: AutoencoderKL(widths=(12,)), "norm_groups = 32 does not divide"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
