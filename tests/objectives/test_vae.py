"""The variational autoencoder's bound in numpy, and a critic that trains beside it, each side by its own loss alone."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.errors import ConfigError
from fmjax.models.autoencoder_kl import AutoencoderKL
from fmjax.models.vqgan import VQGAN, Criticised
from fmjax.objectives.base import OtherModel
from fmjax.objectives.vae import VAE
from fmjax.objectives.vq_autoencoder import VQAutoencoder
from fmjax.training.gradients import make_gradient
from fmjax.training.step import make_train_step, with_keys
from fmjax.training.state import TrainState
from fmjax.training.trainable import ALL

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
    kl = 0.5 * ((0.5 * x) ** 2 + np.exp(-1) - 1 + 1).reshape(ROWS, -1).sum(1)  # the log of the variance is -1
    nats = -np.log(density).sum(1)
    metrics = objective.reduce(sums)
    means = {
        "loss": (nats + 0.3 * kl) / 12, "reconstruction": error, "kl": kl,
        # A level of 8-bit pixels in [-1, 1] is 2 / 255 wide.
        "bits_per_dim": -np.log2(density * 2 / 255).mean(1) + kl / 12 / np.log(2),
    }  # fmt: skip
    for name, rows in means.items():
        np.testing.assert_allclose(metrics[name], rows[kept].mean(), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(metrics["latent_deviation"], z[kept].std(), rtol=1e-5)
    moved = objective.after(carry, proposal, PARAMS)
    np.testing.assert_allclose(moved["scale"], 0.99 * 0.4 + 0.01 * error[kept].mean(), rtol=1e-5)
    fixed = VAE(scale=0.7)
    assert fixed.after(fixed.initial(MODULE, PARAMS, None), proposal, PARAMS)["scale"] == np.float32(0.7)


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


def test_sides_take_turns_and_who_waits_stays_as_it_is():
    """From step 2 on every second step is the critic's; before, and between, neither it nor Adam's moments move."""
    objective = VAE(**CRITIC, adversarial_start=2, alternate=True)
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    step = jax.jit(make_train_step(apply, objective, optimizer, lambda _: 0.1, rules=()))
    carry = objective.initial(MODULE, PARAMS, None)
    state = TrainState(jnp.int32(0), jnp.int32(0), PARAMS, optimizer.init(PARAMS), None, carry)
    moved = []
    for seed in range(6):
        data = {name: value for name, value in batch(seed).items() if name != "keys"}
        new, _ = step(state, data, jax.random.key(1))
        kept = [
            {side for side in PARAMS if jax.tree.all(jax.tree.map(np.array_equal, pick(state)[side], pick(new)[side]))}
            for pick in (lambda s: s.params, lambda s: s.opt_state[0].mu, lambda s: s.opt_state[0].nu)
        ]
        assert kept[0] == kept[1] == kept[2]
        moved.append("".join(side[0] for side in sorted(set(PARAMS) - kept[0])))
        state = new
    assert moved == ["a", "a", "a", "c", "a", "c"]


def test_a_module_with_a_critic_trains_whole():
    """Both objectives, of real modules: shapes alone."""
    inside = dict(image_size=8, num_channels=1, widths=(4, 8), num_blocks=1, norm_groups=2)
    for coder, objective in (
        (VQGAN(**inside, code_size=3), VQAutoencoder(num_codes=5, adversarial_weight=0.1, error="absolute")),
        (AutoencoderKL(**inside, latent_channels=2), VAE(adversarial_weight=0.1)),
    ):
        module = Criticised(coder, critic_width=8, critic_halvings=1)
        data = {"images": jnp.zeros((2, 8, 8, 1)), "loss_weights": jnp.ones(2)}

        def run(key):
            params = nn.unbox(module.init(key, data["images"])["params"])
            carry = nn.unbox(objective.initial(module, params, key))
            gradient = make_gradient(module.apply, objective, ALL, 1)
            gradients, sums, proposal = gradient(params, with_keys(data, key), key, carry=carry)
            return gradients, params, objective.reduce(sums), objective.after(carry, proposal, params), carry

        gradients, params, metrics, after, carry = jax.eval_shape(run, jax.random.key(0))
        assert jax.tree.structure(gradients) == jax.tree.structure(params)
        assert set(params) == {"autoencoder", "critic"} and {"adversarial", "critic", "loss"} <= set(metrics)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, after, carry))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: VAE(beta=-1.0), "objective.beta = -1.0"),
        (lambda: VAE(scale=0.0), "objective.scale = 0.0 must be above 0"),
        (lambda: VAE(adversarial_weight=-1.0), "objective.adversarial_weight = -1.0"),
        (lambda: VAE(**CRITIC).initial(AutoencoderKL(), {}, None), "AutoencoderKL has no critic; take .*'criticised'"),
        (lambda: VAE(adversarial_weight=1.0).initial(MODULE, PARAMS, None), "last_kernel = 'autoencoder/decoder/head"),
        (lambda: VAE().initial(VQGAN(), {}, None), "which VQGAN does not have; take model.name = 'autoencoder_kl'"),
        (lambda: AutoencoderKL(image_size=30), "30x30 pixels cannot be halved 3 times"),
        (lambda: AutoencoderKL(widths=(12,)), "norm_groups = 32 does not divide"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
