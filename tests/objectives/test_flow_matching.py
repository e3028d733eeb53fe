"""Flow matching, and the generator that solves its flow, against what is known in closed form."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config_fields import field_types
from fmjax.config_values import FlagText, coerce
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.errors import ConfigError, DataError, InputError
from fmjax.inference.denoising import Options
from fmjax.inference.model import Model
from fmjax.layers.modulation import NO_LABEL
from fmjax.models.dit import DiT
from fmjax.objectives.base import per_row
from fmjax.objectives.classification import Classification
from fmjax.objectives.flow_matching import FlowMatching
from fmjax.training.step import make_eval_step, with_keys


class Blobs(nn.Module):
    """The exact velocity where the images of label c are normal, with mean means[c] and standard deviation 0.3.

    x_t is then normal, and noise - x given x_t the linear regression on it. Without a label the mean is 0.
    """

    num_classes: int = 2
    deviation: float = 0.3

    @nn.compact
    def __call__(self, inputs, times, labels, train=False):
        means = self.param("means", lambda key: jnp.array([-0.5, 0.25, 0.0]))  # the last is no label's
        t, mean = times.reshape(-1, 1, 1, 1), means[labels].reshape(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * self.deviation**2 + t**2
        return (t - (1 - t) * self.deviation**2) / variance * (inputs - (1 - t) * mean) - mean


SHAPE = (2, 2, 1)
PARAMS = {"means": jnp.array([-0.5, 0.25, 0.0])}
MODEL = Model(
    Blobs(),
    PARAMS,
    {"objective": {"name": "flow_matching"}},
    codecs={"image": ImageCodec(2, 2, 1), "label": LabelCodec(2, ("dark", "bright"))},
)


def batch(rows=64):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, rows).astype(np.int32)
    images = rng.normal(size=(rows, *SHAPE)) * 0.3 + np.array([-0.5, 0.25])[labels][:, None, None, None]
    return {"images": images.astype(np.float32), "labels": labels, "loss_weights": np.ones(rows, np.float32)}


def test_the_loss_is_the_squared_error_of_the_velocity_by_hand():
    data, key = batch(16), jax.random.key(3)
    data["loss_weights"][5] = 0
    objective = FlowMatching(time_sampling="uniform")
    sums = make_eval_step(Blobs().apply, objective, rules=())(PARAMS, data, key)
    times, noise, _ = per_row(objective._draw, with_keys(data, key)["keys"], data["images"])
    errors = []
    for x, label, t, e in zip(data["images"], data["labels"], times, noise):
        v = Blobs().apply({"params": PARAMS}, ((1 - t) * x + t * e)[None], t[None], label[None])[0]
        errors.append(np.mean((v - (e - x)) ** 2))
    kept = np.arange(16) != 5
    np.testing.assert_allclose(sums["loss"][0], np.sum(np.array(errors)[kept]), rtol=1e-5)
    assert float(sums["loss"][1]) == 15
    for third in range(3):
        inside = kept & (np.floor(3 * np.array(times)) == third)
        np.testing.assert_allclose(sums[f"loss_t{third}"], (np.array(errors)[inside].sum(), inside.sum()), rtol=1e-5)


def test_a_module_that_returns_more_than_a_velocity_is_refused():
    """Published diffusion models return a variance too."""
    data, twice = (
        with_keys(batch(2), jax.random.key(0)),
        lambda variables, inputs, **_: jnp.concatenate([inputs] * 2, -1),
    )
    with pytest.raises(ConfigError, match=r"returns \(2, 2, 2, 2\) for images of shape \(2, 2, 2, 1\)"):
        FlowMatching()(twice, {}, data, None, False)


def test_the_exact_velocity_has_the_least_loss_and_labels_are_dropped_in_training_alone():
    data, key = batch(512), jax.random.key(0)
    objective = FlowMatching(label_dropout=0.5)

    def loss(mean, train=False):
        params = {"means": PARAMS["means"].at[0].set(mean)}
        return objective(Blobs().apply, params, with_keys(data, key), key, train)["loss"][0]

    exact, *others = (loss(mean) for mean in (-0.5, -0.3, -0.7))
    assert all(exact < other for other in others)
    # With half of the labels dropped the mean without a label is what is asked in their place.
    gradient = jax.grad(lambda m: objective(Blobs().apply, {"means": m}, with_keys(data, key), key, True)["loss"][0])
    assert abs(gradient(PARAMS["means"])[2]) > 1.0
    assert jax.grad(lambda m: objective(Blobs().apply, {"means": m}, with_keys(data, key), key, False)["loss"][0])(
        PARAMS["means"]
    )[2] == 0.0
    assert NO_LABEL == -1


def solved(label, **options):
    """Solutions of the flow from the generator's own noise as float, before the codec cuts them, and that noise."""
    from fmjax.inference.denoising import _solve

    chosen = {"num_steps": 200, "solver": "heun", "guidance": 1.0} | options
    jobs = np.array([[label, i] for i in range(8)], np.int32)
    arguments = (Blobs(), PARAMS, jax.random.key(0), jobs, SHAPE)
    return np.asarray(_solve(*arguments, *chosen.values())), noise(jobs)


def noise(jobs):
    key = jax.random.key(0)
    keys = [jax.random.fold_in(jax.random.fold_in(key, int(label) + 1), int(i)) for label, i in jobs]
    return np.stack([jax.random.normal(k, SHAPE) for k in keys])


def test_the_solver_reaches_the_solution_and_heun_is_of_second_order():
    # The flow of normal numbers into normal numbers keeps each one's place in its distribution.
    images, start = solved(0)
    np.testing.assert_allclose(images, -0.5 + 0.3 * start, atol=2e-4)
    errors = {
        (solver, steps): np.abs(solved(1, solver=solver, num_steps=steps)[0] - (0.25 + 0.3 * start_of(1))).max()
        for solver in ("euler", "heun") for steps in (20, 40)
    }  # fmt: skip
    assert 1.7 < errors["euler", 20] / errors["euler", 40] < 2.3
    assert errors["heun", 20] / errors["heun", 40] > 2.5 and errors["heun", 20] < 0.3 * errors["euler", 20]


def start_of(label):
    return noise([[label, i] for i in range(8)])


def test_guidance_moves_away_from_the_velocity_without_a_label():
    # Of normal numbers of one width, a guidance of 2 has the velocity of the mean 2 * mean - mean without.
    images, start = solved(0, guidance=2.0)
    np.testing.assert_allclose(images, -1.0 + 0.3 * start, atol=4e-4)


def test_values_depend_on_prompt_copy_and_seed_alone():
    alone = MODEL.generate([1], num_samples=3, seed=5, num_steps=8)
    among = MODEL.generate(["dark", "bright", 0, 1], num_samples=2, seed=5, num_steps=8, batch_size=3)
    assert len(among) == 8 and all(image.shape == SHAPE and image.dtype == np.uint8 for image in among)
    np.testing.assert_array_equal(among[2:4], alone[:2])
    np.testing.assert_array_equal(among[6], alone[2])  # the third copy of the label
    assert not np.array_equal(alone, MODEL.generate([1], num_samples=3, seed=6, num_steps=8))
    assert len(MODEL.generate(num_steps=2)) == 2 and len(MODEL.generate([None], num_steps=2)) == 1


def test_what_cannot_be_made_is_refused():
    with pytest.raises(DataError, match="no class 'drak'; did you mean 'dark'"):
        MODEL.generate(["drak"])
    with pytest.raises(InputError, match="expected a list of prompts"):
        MODEL.generate("dark")
    for name, value in dict(num_steps=0, solver="rk4", guidance=-1, num_samples=0, seed=-1).items():
        with pytest.raises(InputError, match=name):
            Options(**{name: value})
    with pytest.raises(InputError, match="no codec 'image' to write its values with"):
        dataclasses.replace(MODEL, codecs={}).generate([0])
    row = {"pixels": np.zeros(3)}
    data = types.SimpleNamespace(train=[row], codecs={})
    with pytest.raises(ConfigError, match="objective.input_name = 'images' is not in the data: pixels"):
        FlowMatching().check(None, data)
    data = types.SimpleNamespace(train=[{"images": None}], codecs={"image": None, "label": LabelCodec(2)})
    with pytest.raises(ConfigError, match="objective.sample_prompts has 2: a label is a whole number from 0 to 1"):
        FlowMatching(sample_prompts=(0, 2)).check(None, data)
    data.codecs.pop("label")
    with pytest.raises(ConfigError, match="objective.sample_prompts has 0: the data have no codec for 'label'"):
        FlowMatching(sample_prompts=(0,)).check(None, data)


def test_classes_are_sampled_by_name_and_labels_fit_the_model():
    codecs = {"image": ImageCodec(2, 2, 1), "label": LabelCodec(2, ("dark", "bright"))}
    rows = [{"images": None, "labels": np.int32(label)} for label in (0, NO_LABEL, 2)]
    data = types.SimpleNamespace(train=rows, codecs=codecs)
    FlowMatching(sample_prompts=("dark", 1)).check(Blobs(), data)
    key = "objective.sample_prompts"
    assert coerce(FlagText("dark,1"), field_types(FlowMatching)["sample_prompts"][0], key) == ("dark", 1)
    with pytest.raises(ConfigError, match="sample_prompts has 'drak': no class 'drak'; did you mean 'dark'"):
        FlowMatching(sample_prompts=("drak",)).check(Blobs(), data)
    with pytest.raises(ConfigError, match="model.num_classes = 1, so labels are 0 to 0, and .* have the label 1"):
        FlowMatching().check(Blobs(num_classes=1), data)
    codecs.pop("label")
    with pytest.raises(ConfigError, match="labels are 0 to 1, and these data have the label 2"):
        FlowMatching().check(Blobs(), data)
    FlowMatching().check(Blobs(num_classes=3), data)
    with pytest.raises(ConfigError, match="these data have the label -1"):  # a class, where it is what is learnt
        Classification().check(Blobs(num_classes=3), data)
    with pytest.raises(ConfigError, match="learns `labels`, which the rows of these data lack: images"):
        Classification().check(Blobs(), types.SimpleNamespace(train=[{"images": None}], codecs={}))


def test_a_model_of_labels_is_refused_data_without_them():
    model = DiT(num_layers=1, hidden_size=8, num_heads=1, image_size=2, num_channels=1, num_classes=2)
    with pytest.raises(ConfigError, match="model.num_classes = 2, but there are no labels; set it to 0"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 2, 1)), jnp.zeros(1))


class Unlabelled(nn.Module):
    """The exact velocity of normal images, without labels."""

    @nn.compact
    def __call__(self, inputs, times, train=False):
        return Blobs(parent=None).apply({"params": PARAMS}, inputs, times, jnp.full(len(inputs), NO_LABEL))


def test_guidance_needs_a_velocity_without_a_label_and_no_prompts_make_nothing():
    assert MODEL.generate([]) == []
    alone = dataclasses.replace(MODEL, module=Unlabelled(), codecs={"image": MODEL.codecs["image"]})
    assert len(alone.generate(num_steps=2)) == 1
    with pytest.raises(InputError, match="guidance = 2.0: .* takes no labels to be guided by"):
        alone.generate(num_steps=2, guidance=2.0)
    always = dataclasses.replace(MODEL, config={"objective": {"name": "flow_matching", "label_dropout": 0.0}})
    with pytest.raises(InputError, match="guidance = 2.0: .* was trained with objective.label_dropout = 0"):
        always.generate([0], guidance=2.0)
