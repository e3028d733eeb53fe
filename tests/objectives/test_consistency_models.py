"""A consistency model's loss by hand, and a run that learns from a teacher and draws."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.commands.values import generator_named_by
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.digits import CODEC
from fmjax.diffusion.processes import Flow
from fmjax.errors import ConfigError, InputError
from fmjax.inference.consistency import Consistent
from fmjax.inference.model import Model
from fmjax.layers.modulation import NO_LABEL
from fmjax.objectives.base import OtherModel, per_row
from fmjax.objectives.consistency import ConsistencyModel
from fmjax.tasks.made import making
from fmjax.training.loop import train
from fmjax.training.step import with_keys
from tests.small_models import random_model

pytestmark = pytest.mark.usefixtures("one_device")


class Linear:
    """Velocities that differ by label, time and parameter."""

    @staticmethod
    def apply(variables, inputs, times, labels, train=False, rngs=None):
        return variables["params"]["slope"] * inputs + (times + 0.3 * labels).reshape(-1, 1, 1, 1)


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 2, 2, 1)).astype(np.float32)
    labels = rng.integers(0, 3, count).astype(np.int32)
    data = {"images": images, "labels": labels, "loss_weights": np.ones(count, np.float32)}
    return with_keys(data, jax.random.key(1))


def test_the_loss_is_that_of_the_paper_by_hand():
    """A guided teacher's step of Heun's method on the velocity, the average's value there, pseudo-Huber distances."""
    data = batch(64)
    options = dict(target="velocity", num_intervals=6, guidance=2.5, label_dropout=0.3, huber=0.1, momentum=0.9)
    objective = ConsistencyModel(process="flow", teacher="a run", teacher_target="velocity", **options)
    params, average = {"slope": jnp.float32(0.7)}, {"slope": jnp.float32(0.5)}
    models = {"teacher": OtherModel(Linear, {"slope": jnp.float32(-0.4)})}
    call = lambda params, average: objective(
        Linear.apply, params, data, None, True, carry={"average": average}, models=models
    )[0]
    sums = call(params, average)
    u, noise, dropped = (np.asarray(one) for one in per_row(objective._draw, data["keys"], data["images"]))
    now, then = (np.floor(u * 6) + 1) / 6, np.floor(u * 6) / 6
    row = lambda values: np.asarray(values).reshape(-1, 1, 1, 1)
    labels = np.where(dropped, NO_LABEL, data["labels"])
    said = lambda slope, x, t, labels: slope * x + row(t + 0.3 * labels)
    guided = lambda x, t: -1.5 * said(-0.4, x, t, np.full(64, NO_LABEL)) + 2.5 * said(-0.4, x, t, labels)
    x = (1 - row(now)) * data["images"] + row(now) * noise
    first = guided(x, now)
    second = guided(x + row(then - now) * first, then)
    before = x + row(then - now) * 0.5 * (first + second)
    value = lambda slope, x, t: x - row(t) * said(slope, x, t, labels)
    apart = ((value(0.7, x, now) - value(0.5, before, then)) ** 2).reshape(64, 4).sum(axis=1)
    each = (np.sqrt(apart + 0.1**2 * 4) - 0.1 * 2) / 4
    np.testing.assert_allclose(sums["loss"][0], each.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["loss_bin_3"][0], each[now >= 0.75].sum(), rtol=1e-5)
    # Learnt alone, the earlier point is on the same straight line.
    alone = ConsistencyModel(process="flow", **options | {"guidance": 1.0, "distance": "squared"})
    assert alone.models() == {}
    sums, _ = alone(Linear.apply, params, data, None, True, carry={"average": average})
    before = (1 - row(then)) * data["images"] + row(then) * noise
    apart = (value(0.7, x, now) - value(0.5, before, then)) ** 2
    np.testing.assert_allclose(sums["loss"][0], apart.mean(axis=(1, 2, 3)).sum(), rtol=1e-5)
    # The average has no gradient, and follows.
    slopes = jax.grad(lambda both: call(*both)["loss"][0])((params, average))
    assert slopes[1]["slope"] == 0 and abs(slopes[0]["slope"]) > 1e-3
    carry = objective.after({"average": average}, None, params)
    np.testing.assert_allclose(carry["average"]["slope"], 0.9 * 0.5 + 0.1 * 0.7, rtol=1e-6)


class Velocity(nn.Module):
    """Half of x, for images without labels."""

    @nn.compact
    def __call__(self, inputs, times, train=False):
        return 0.5 * inputs


def test_a_model_is_drawn_from_by_its_own_sampler():
    section = {"name": "consistency", "process": {"name": "flow"}, "target": {"name": "velocity"}}
    model = Model(Velocity(), {}, {"objective": section}, codecs={"image": ImageCodec(2, 2, 1)})
    (image,) = model.generate(seed=1)
    np.testing.assert_array_equal(image, model.generate(seed=1, sampler="consistency", steps=2)[0])
    # Tasks about made images draw so too, and their cards say it.
    np.testing.assert_array_equal(making.decoded(making.make(model, [(None, 0, (), 1)])[0]), image)
    shown = making.card(model, (), 1)
    assert (shown["generator"], shown["sampler"], shown["steps"]) == ("consistency", "consistency", 2)
    for options, message in [
        (dict(sampler="heun"), "sampler = 'heun': .* says where a path ends, .* leave sampler out"),
        (dict(sampler="ddim", eta=1.0), "sampler = 'ddim'"),
        (dict(init_image=image, invert=True), "invert = True follows a path back to its noise"),
    ]:
        with pytest.raises(InputError, match=message):
            model.generate(**options)
    denoiser = Model(Velocity(), {}, {"objective": {"name": "flow_matching"}}, codecs=model.codecs)
    with pytest.raises(InputError, match="sampler = 'consistency': .* is no run of objective consistency"):
        denoiser.generate(sampler="consistency", steps=2)
    assert making.card(denoiser, (), 1)["sampler"] == "heun"


MODEL = {"name": "dit", "num_layers": 1, "hidden_size": 16, "num_heads": 2}
IMAGES = {"image_size": 8, "num_channels": 1, "num_classes": 10}


def test_a_run_distils_and_draws_in_one_step_and_in_two(tmp_path):
    teacher, workdir = tmp_path / "teacher", tmp_path / "run"
    random_model(MODEL | IMAGES, image=CODEC, objective={"name": "flow_matching"}).save(teacher)
    section = {"name": "consistency", "process": "flow", "target": "velocity", "teacher": str(teacher),
               "teacher_target": "velocity", "guidance": 1.5, "sample_prompts": [3], "sample_copies": 1}  # fmt: skip

    def config(**changes):
        return configs.resolve({
            "train": {"batch_size": 8, "steps": 3, "log_every": 1, "eval_every": -1, "tensorboard": False,
                      "ema_decay": 0.9, "init_from": str(teacher)},
            "model": MODEL, "objective": section | changes, "data": {"name": "digits"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        })  # fmt: skip

    train(config(), workdir, cache_dir=tmp_path / "cache", progress=False)
    model = fmjax.load(workdir)
    (one,) = model.generate([3], sampler="consistency", steps=1, seed=2)
    (two,) = model.generate([3], seed=2)
    np.testing.assert_array_equal(two, model.generate([3], sampler="consistency", steps=2, seed=2)[0])
    assert generator_named_by([f"--model={workdir}"]) is Consistent
    with pytest.raises(InputError, match="sampler = 'consistency': .* is no run of objective consistency"):
        fmjax.load(teacher).generate([3], sampler="consistency", steps=1)
    assert one.shape == two.shape == (8, 8, 1) and (one != two).any()
    # In one step it is what the module says of x0 of the noise.
    noise = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(2), 3 + 1), 0), 0)
    noise = jax.random.normal(noise, (1, 8, 8, 1))
    x0 = noise - jax.jit(model.module.apply)(model.variables, noise, jnp.ones(1), jnp.array([3]))
    np.testing.assert_allclose(one.astype(int), model.codec.decode({"images": x0[0]}), atol=1)
    with pytest.raises(ConfigError, match="was trained with process Flow.*, and objective.process is DDPM"):
        train(config(process="ddpm", target="consistency"), tmp_path / "other", cache_dir=tmp_path, progress=False)
    assert model.objective.process == Flow()
