"""The objective of diffusion, and the generator that follows a model from noise to data, against closed forms."""

import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fmjax.config import build
from fmjax.config_fields import field_types
from fmjax.config_values import FlagText, coerce
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.diffusion.grids import make_grid
from fmjax.diffusion.processes import DDPM
from fmjax.diffusion.samplers import columns
from fmjax.errors import ConfigError, DataError, InputError, RunError
from fmjax.inference.denoising import Denoising, Options
from fmjax.inference.model import Model
from fmjax.layers.modulation import NO_LABEL
from fmjax.models.dit import DiT
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import per_row
from fmjax.objectives.classification import Classification
from fmjax.objectives.diffusion import Diffusion, FlowMatching
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
    objective = FlowMatching(times="uniform", num_bins=3)
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
        np.testing.assert_allclose(sums[f"loss_bin_{third}"], (np.array(errors)[inside].sum(), inside.sum()), rtol=1e-5)


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

    @functools.partial(jax.jit, static_argnums=1)
    def loss(means, train):
        return objective(Blobs().apply, {"means": means}, with_keys(data, key), key, train)["loss"][0]

    means = PARAMS["means"]
    exact, *others = (loss(means.at[0].set(mean), False) for mean in (-0.5, -0.3, -0.7))
    assert all(exact < other for other in others)
    # With half of the labels dropped the mean without a label is what is asked in their place.
    slope = jax.jit(jax.grad(loss), static_argnums=1)
    assert abs(slope(means, True)[2]) > 1.0 and slope(means, False)[2] == 0.0
    assert NO_LABEL == -1


def solved(label, **options):
    """Solutions from the generator's own noise as float, before the codec cuts them, and that noise."""
    chosen = Options(**{"steps": 200} | options)
    jobs = np.array([[label, i] for i in range(8)], np.int32)
    return np.asarray(Denoising(MODEL)._program(chosen)(jax.random.key(0), jobs)), noise(jobs)


def noise(jobs):
    key = jax.random.key(0)
    keys = [jax.random.fold_in(jax.random.fold_in(key, int(label) + 1), int(i)) for label, i in jobs]
    return np.stack([jax.random.normal(jax.random.fold_in(k, 0), SHAPE) for k in keys])


def test_the_solver_reaches_the_solution_and_heun_is_of_second_order():
    # The flow of normal numbers into normal numbers keeps each one's place in its distribution.
    images, start = solved(0)
    np.testing.assert_allclose(images, -0.5 + 0.3 * start, atol=2e-4)
    errors = {
        (solver, steps): np.abs(solved(1, sampler=solver, steps=steps)[0] - (0.25 + 0.3 * start_of(1))).max()
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
    alone = MODEL.generate([1], num_samples=3, seed=5, steps=8)
    among = MODEL.generate(["dark", "bright", 0, 1], num_samples=2, seed=5, steps=8, batch_size=3)
    assert len(among) == 8 and all(image.shape == SHAPE and image.dtype == np.uint8 for image in among)
    np.testing.assert_array_equal(among[2:4], alone[:2])
    np.testing.assert_array_equal(among[6], alone[2])  # the third copy of the label
    assert not np.array_equal(alone, MODEL.generate([1], num_samples=3, seed=6, steps=8))
    assert len(MODEL.generate(steps=2)) == 2 and len(MODEL.generate([None], steps=2)) == 1


def test_what_cannot_be_made_is_refused():
    with pytest.raises(DataError, match="no class 'drak'; did you mean 'dark'"):
        MODEL.generate(["drak"])
    with pytest.raises(InputError, match="expected a list of prompts"):
        MODEL.generate("dark")
    for name, value in dict(
        steps=0, sampler="rk4", guidance=-1, num_samples=0, seed=-1, strength=0.5, negative=1, eta=0.5
    ).items():
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
    assert len(alone.generate(steps=2)) == 1
    with pytest.raises(InputError, match="guidance = 2.0: .* takes no labels to be guided by"):
        alone.generate(steps=2, guidance=2.0)
    always = dataclasses.replace(MODEL, config={"objective": {"name": "flow_matching", "label_dropout": 0.0}})
    with pytest.raises(InputError, match="guidance = 2.0: .* was trained with objective.label_dropout = 0"):
        always.generate([0], guidance=2.0)


class Spread(nn.Module):
    """Blobs' data as noise and the fraction of the variance, for processes of steps: what is exact for DDPM's."""

    process: DDPM = DDPM(num_steps=100)

    @nn.compact
    def __call__(self, inputs, times, labels, train=False):
        means = self.param("means", lambda key: PARAMS["means"])
        t, mean = times.reshape(-1, 1, 1, 1), means[labels].reshape(-1, 1, 1, 1)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        eps = sigma * (inputs - alpha * mean) / ((0.3 * alpha) ** 2 + sigma**2)
        between = self.param("between", lambda key: jnp.float32(0.0))
        return jnp.concatenate([eps, jnp.tanh(between + 0.5 * inputs)], axis=-1)


STEPS = {"name": "ddpm", "num_steps": 100}
SPREAD = PARAMS | {"between": jnp.float32(0.0)}
LEARNED = dataclasses.replace(
    MODEL,
    module=Spread(),
    params=SPREAD,
    config={"objective": {"name": "diffusion", "learned_variance": True, "process": STEPS}},
)


def test_the_bound_is_that_of_normal_numbers_in_closed_form():
    """At each step KL of the model's normal from the posterior, by the paper's formulas in float64; at step 0 the
    likelihood of a level."""
    objective = LEARNED.objective
    data = with_keys(batch(256), jax.random.key(1))
    data["images"] = data["images"].clip(-0.99, 0.99)  # within the outer levels
    sums = jax.jit(lambda data: objective(Spread().apply, SPREAD, data, None, False))(data)
    u, noise, _ = per_row(objective._draw, data["keys"], data["images"])
    k = np.floor(np.asarray(u) * np.float32(100)).astype(int)
    betas = np.linspace(1e-4, 0.02, 100)
    bars = np.cumprod(1 - betas)
    before = np.append(1.0, bars[:-1])
    variance = betas * (1 - before) / (1 - bars)
    variance[0] = variance[1]
    row = lambda table: table[k].reshape(-1, 1, 1, 1)
    x0 = data["images"].astype(np.float64)
    x = np.sqrt(row(bars)) * x0 + np.sqrt(1 - row(bars)) * np.asarray(noise)
    eps = np.asarray(Spread().apply({"params": SPREAD}, jnp.asarray(x, jnp.float32), k / 100, data["labels"]))[..., :1]
    predicted = (x - np.sqrt(1 - row(bars)) * eps) / np.sqrt(row(bars))
    mean = lambda x0: (
        (np.sqrt(row(before)) * row(betas) * x0 + np.sqrt(1 - row(betas)) * (1 - row(before)) * x) / (1 - row(bars))
    )
    fraction = 0.5 * (np.tanh(0.5 * x) + 1)
    log = fraction * np.log(row(betas)) + (1 - fraction) * np.log(row(variance))
    divergence = 0.5 * (
        log - np.log(row(variance)) + row(variance) / np.exp(log) + (mean(x0) - mean(predicted)) ** 2 / np.exp(log) - 1
    )
    deviation = np.exp(0.5 * log)
    cdf = lambda y: scipy.stats.norm.cdf(y, mean(predicted), deviation)
    level = np.clip(cdf(x0 + 1 / 255) - cdf(x0 - 1 / 255), 1e-12, None)
    each = np.where(row(np.arange(100)) == 0, -np.log(level), divergence).mean(axis=(1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(sums["bound"][0], each.sum(), rtol=2e-3)
    errors = ((eps - np.asarray(noise)) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(sums["loss"][0], (errors + each / 10).sum(), rtol=2e-3)
    # The mean has no gradient of it: with the weight of the bound alone nothing moves the parameters.
    other = lambda weight: dataclasses.replace(objective, bound_weight=weight, label_dropout=0.0)
    slope = lambda weight: jax.jit(
        jax.grad(lambda p: other(weight)(Spread().apply, p, data, jax.random.key(0), True)["loss"][0])
    )(SPREAD)
    with_bound, without = slope(1.0), slope(0.0)
    np.testing.assert_allclose(with_bound["means"], without["means"], rtol=1e-5)
    assert without["between"] == 0 and abs(with_bound["between"]) > 1e-3


def test_members_are_named_or_sections_and_fit_each_other():
    objective = build(
        {
            "name": "diffusion", "process": {"name": "vp", "min_time": 0.01}, "target": {"name": "v"},
            "weighting": {"name": "min_snr", "gamma": 3.0}, "times": {"name": "logit_normal"}, "stratified": True,
        },
        OBJECTIVES,
    )  # fmt: skip
    assert objective.process.min_time == 0.01 and objective.weighting.gamma == 3.0
    assert type(Diffusion(target="x0").target).__name__ == "X0" and hash(objective)
    data = with_keys(batch(64), jax.random.key(0))
    assert np.diff(np.sort(data["strata"])).max() < 2 / 64  # no gap is far from the mean one
    loss = jax.jit(lambda objective: objective(Blobs().apply, PARAMS, data, None, False)["loss"][0], static_argnums=0)
    assert loss(objective) != loss(dataclasses.replace(objective, stratified=False))
    for fields, message in [
        (dict(process="flow", target="eps"), "Eps says nothing new at t = 1.0"),
        (dict(process="vp", weighting="elbo", times="logit_normal"), "elbo is a bound with uniform times"),
        (dict(process="flow", target="velocity", weighting="elbo"), "elbo needs a continuous process"),
        (
            dict(process="vp", learned_variance=True),
            "learned_variance is about steps, which VariancePreserving has not",
        ),
        (dict(target="epz"), "unknown target 'epz'; did you mean 'eps'"),
        (dict(process="masked"), "hides tokens, and objective diffusion is of numbers"),
        (dict(num_bins=0), "num_bins=0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Diffusion(**fields)
    with pytest.raises(ConfigError, match=r"returns \(64, 2, 2, 1\) .* twice their channels: set model.out_channels"):
        LEARNED.objective(Blobs().apply, PARAMS, data, None, False)


def test_a_model_that_learned_its_variance_draws_with_it_and_others_are_refused():
    made = LEARNED.generate([0], num_samples=200, steps=50, sampler="ancestral", variance="learned", seed=3)
    values = np.stack(made).astype(float) / 127.5 - 1
    assert values.mean() == pytest.approx(-0.5, abs=0.05) and values.std() == pytest.approx(0.3, abs=0.04)
    with pytest.raises(
        InputError, match="variance = 'learned': .* does not predict a step's variance.*'small' or 'large'"
    ):
        MODEL.generate([0], steps=2, sampler="ancestral", variance="learned")
    with pytest.raises(InputError, match="steps = 200: the process of the model has 100 steps"):
        LEARNED.generate([0], steps=200)
    with pytest.raises(InputError, match="unknown sampler 'dimm'; did you mean 'ddim'"):
        MODEL.generate([0], sampler="dimm")
    with pytest.raises(RunError, match=r"value 0 of .* is not finite"):
        dataclasses.replace(MODEL, params={"means": jnp.full(3, jnp.nan)}).generate([0], steps=2)


def test_samples_on_the_way_are_by_a_sampler_that_the_process_allows():
    for process in (DDPM(), DDPM(num_steps=20), DDPM(zero_terminal_snr=True)):
        objective = Diffusion(process=process, target="v", sample_prompts=(0,))
        asked = []
        objective.sample(types.SimpleNamespace(generate=lambda *_, **options: asked.append(options)), jax.random.key(0))
        make_grid(objective.process, asked[0]["steps"])
        columns(Options(sampler=asked[0]["sampler"]).made_sampler, make_grid(objective.process, 20), objective.process)
    module = Blobs()
    object.__setattr__(module, "null_class", False)
    data = types.SimpleNamespace(train=[{"images": None, "labels": np.int32(0)}], codecs={"label": LabelCodec(2)})
    with pytest.raises(ConfigError, match="label_dropout = 0.1, and the model has no row for no label"):
        FlowMatching().check(module, data)


def test_a_negative_label_is_what_guidance_goes_away_from():
    # As with no label, whose mean is 0: the velocity of the mean 2 * mean - the negative's mean.
    images, start = solved(0, guidance=2.0, negative="bright")
    np.testing.assert_allclose(images, -1.25 + 0.3 * start, atol=4e-4)


def test_images_are_changed_kept_outside_of_a_mask_and_inverted():
    dark = np.full(SHAPE, 60, np.uint8)
    value = 60 / 127.5 - 1
    # Of one width the flow moves an image by the difference of the means, wholly or in part.
    (back,) = MODEL.generate([0], init_image=dark, invert=True, steps=100)
    np.testing.assert_allclose(back, dark, atol=1)
    mask = np.array([[True, False], [False, False]])
    drawn = np.stack(MODEL.generate([1], init_image=dark, mask=mask, num_samples=8, steps=20))
    assert (drawn[:, ~mask] == 60).all() and drawn[:, mask].std() > 5
    images, start = solved(0, init_image=dark, strength=0.5)
    x, deviation = 0.5 * value + 0.5 * start, np.sqrt(0.5**2 * 0.09 + 0.5**2)
    np.testing.assert_allclose(images, -0.5 + 0.3 * (x + 0.25) / deviation, atol=1e-3)
    for options, message in [
        (dict(strength=0.5), "strength = 0.5 is about an initial image: give init_image"),
        (dict(init_image=dark), "nothing is left at strength = 1"),
        (dict(init_image=np.zeros((2, 2, 1)), strength=0.5), "init_image: an image is uint8"),
        (dict(init_image=dark, mask=~mask[:1]), "mask: an array of 2 x 2 was expected, got shape"),
        (dict(init_image=dark, mask=mask & False), "mask: it is white nowhere"),
        (dict(init_image="no.png", strength=0.5), "init_image: 'no.png'"),
        (dict(init_image=dark, mask="no.png"), "mask: 'no.png' cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            MODEL.generate([0], steps=2, **options)
